"""Models: rays in, one `RenderOutput` per level out; how they are built and how they render."""

import torch
from torch import nn

import coord
import stepfun
from config import UserError
from fields import MLPField
from ray_utils import (
    RenderOutput,
    cast_rays,
    compute_weights,
    concatenate,
    resample_along_rays,
    sample_along_rays,
    volumetric_rendering,
)

# Measured on two cores: 8,192 samples at once render 1.4 to 1.8 times as fast as 500,000.
SAMPLES_AT_ONCE = {"cpu": 1 << 13, "cuda": 1 << 19}


class RayModel(nn.Module):
    """What the models share: a field, chance while training, and pictures of levels.

    `model(rays)` draws jitter and noise if and only if `model.training`. A subclass sets `field`,
    the finest level's network; `samples_per_level`, the most that a level has; and
    `first_coloured`, the first level with colours (those before are black).
    """

    def __init__(self, config):
        super().__init__()
        self.ray_shape, self.num_samples = config.ray_shape, config.num_samples
        self.opaque_background = config.opaque_background
        self.random_bkgd, self.bg_rgb = config.random_bkgd, float(config.white_bkgd)

    def density(self, means, covs):
        """Density `[..., S]` of Gaussians in the coordinates of rays (NDC for NDC scenes)."""
        return self.field(coord.Gaussians(means, covs), with_rgb=False).density

    def _gaussians(self, field, tdist, rays):
        return cast_rays(tdist, rays.origins, rays.directions, rays.radii, self.ray_shape,
                         diag=not field.wants_full_covariances)

    def _output(self, samples, tdist, sdist, rays, generator):
        """The `RenderOutput` of a level from its field's answers."""
        weights = compute_weights(samples.density, tdist, rays.directions, self.opaque_background)
        bg_rgb = self.bg_rgb
        if self.random_bkgd and self.training:
            bg_rgb = self._draw(torch.rand, (*rays.shape, 3), tdist, generator)
        rgb = samples.rgb
        if rgb is None:
            rgb = torch.zeros((), device=tdist.device).expand(*weights.shape, 3)
        rendering = volumetric_rendering(rgb, weights, tdist, bg_rgb)
        return RenderOutput(**rendering._asdict(), sdist=sdist, tdist=tdist, weights=weights)

    def _draw(self, distribution, shape, like, generator):
        """Random numbers while training, else None."""
        if not self.training:
            return None
        return distribution(shape, generator=generator, dtype=like.dtype, device=like.device)


class MipNeRF(RayModel):
    """mip-NeRF (Barron et al., ICCV 2021): one network, sampled coarse to fine."""

    def __init__(self, config, compute_dtype=torch.float32):
        super().__init__(config)
        self.compute_dtype = compute_dtype
        self.num_levels, self.lindisp = config.num_levels, config.lindisp
        self.samples_per_level, self.first_coloured = config.num_samples, 0
        self.resample_padding = config.resample_padding
        self.density_noise = config.density_noise
        self.field = colour_field(config, compute_dtype)

    def forward(self, rays, train_frac=1.0, generator=None):
        """What each level sees: a list of `RenderOutput`, coarse to fine; the last is the picture.

        rays: `Rays [...]`; train_frac: share of the training done, in [0, 1] (this model does not
        change with it); generator: of jitter and noise while training, on the rays' device.
        """
        outputs = []
        for _ in range(self.num_levels):
            tdist = self._sample(rays, outputs, generator)
            gaussians = self._gaussians(self.field, tdist, rays)
            noise = self._density_noise(tdist[..., 1:], generator)
            samples = self.field(gaussians, rays.viewdirs, noise)
            sdist = (tdist - rays.near) / (rays.far - rays.near)
            outputs.append(self._output(samples, tdist, sdist, rays, generator))
        return outputs

    def load_reference_params(self, arrays):
        """Take the weights of the official JAX code.

        arrays: a mapping of `Dense_<i>_kernel` (in, out) and `Dense_<i>_bias`: the trunk, then
        density, bottleneck, view layers, colour. Raises ValueError for a missing or extra name or
        a shape that does not fit.
        """
        layers = self.field.layers()
        names = {f"Dense_{i}_{kind}" for i in range(len(layers)) for kind in ("kernel", "bias")}
        if set(arrays) != names:
            raise ValueError(f"missing or extra arrays: {sorted(set(arrays) ^ names)}")
        with torch.no_grad():
            for i, layer in enumerate(layers):
                pairs = ((layer.weight.t(), "kernel"), (layer.bias, "bias"))
                for parameter, kind in pairs:
                    value = torch.as_tensor(arrays[f"Dense_{i}_{kind}"])
                    if value.shape != parameter.shape:
                        raise ValueError(f"Dense_{i}_{kind} is {tuple(value.shape)}; "
                                         f"{tuple(parameter.shape)} is wanted")
                    parameter.copy_(value)

    def _sample(self, rays, outputs, generator):
        posts = (*rays.shape, self.num_samples + 1)
        jitter = self._draw(torch.rand, posts, rays.origins, generator)
        if not outputs:
            return sample_along_rays(rays.near, rays.far, self.num_samples, jitter, self.lindisp)
        coarser = outputs[-1]
        return resample_along_rays(
            coarser.tdist, coarser.weights, self.num_samples, jitter, self.resample_padding
        )

    def _density_noise(self, like, generator):
        if self.density_noise == 0:
            return None
        noise = self._draw(torch.randn, like.shape, like, generator)
        return None if noise is None else self.density_noise * noise


class MipNeRF360(RayModel):
    """mip-NeRF 360 (Barron et al., CVPR 2022): proposals, contraction, off-axis encoding.

    A small network without colours, the same in every proposal round, says where the samples of the
    next round go; the large network sees the last round's alone. Samples lie in s, in [0, 1].
    """

    def __init__(self, config, compute_dtype=torch.float32):
        super().__init__(config)
        self.compute_dtype = compute_dtype
        self.prop_rounds, self.prop_samples = config.prop_rounds, config.prop_samples
        self.samples_per_level = max(config.num_samples, config.prop_samples)
        self.first_coloured = config.prop_rounds
        self.ray_warp, self.anneal_slope = config.ray_warp, config.anneal_slope
        self.dilation_bias, self.dilation_mult = config.dilation_bias, config.dilation_mult
        self.field = colour_field(config, compute_dtype)
        self.proposal = MLPField(
            hidden=config.prop_hidden, depth=config.prop_depth, skip=config.skip, has_rgb=False,
            min_deg=config.min_deg, max_deg=config.max_deg, density_bias=config.density_bias,
            contraction=config.contraction, basis=config.basis, init=config.weight_init,
            compute_dtype=compute_dtype,
        )

    def forward(self, rays, train_frac=1.0, generator=None):
        """What each round sees: a list of `RenderOutput`, of which the last is the picture.

        rays: `Rays [...]`; train_frac: share of the training done, in [0, 1], with which the
        proposals are trusted more; generator: of jitter while training, on the rays' device.
        """
        warps = coord.construct_ray_warps(self.ray_warp, rays.near, rays.far)
        outputs, drawn = [], 1
        for level in range(self.prop_rounds + 1):
            last = level == self.prop_rounds
            field = self.field if last else self.proposal
            count = self.num_samples if last else self.prop_samples
            dilation = self.dilation_bias + self.dilation_mult / drawn
            sdist = self._sample(rays, outputs, count, dilation, train_frac, generator)
            drawn *= count
            tdist = warps.s_to_t(sdist)
            samples = field(self._gaussians(field, tdist, rays), rays.viewdirs)
            outputs.append(self._output(samples, tdist, sdist, rays, generator))
        return outputs

    @torch.no_grad()
    def _sample(self, rays, outputs, count, dilation, train_frac, generator):
        """Fence posts `[..., count + 1]` in s, from the round before or, at first, evenly."""
        jitter = self._draw(torch.rand, (*rays.shape, 1), rays.origins, generator)
        if not outputs:
            sdist = torch.cat([torch.zeros_like(rays.near), torch.ones_like(rays.near)], dim=-1)
            logits = torch.zeros_like(rays.near)
            return stepfun.sample_intervals(sdist, logits, count, jitter, domain=(0.0, 1.0))
        sdist, weights = stepfun.max_dilate_weights(
            outputs[-1].sdist, outputs[-1].weights, dilation, (0.0, 1.0), renormalize=True)
        sdist, weights = sdist[..., 1:-1], weights[..., 1:-1]
        # At first all weights count alike (Schlick's bias; mip-NeRF 360, section 3.2).
        anneal = self.anneal_slope * train_frac / ((self.anneal_slope - 1) * train_frac + 1)
        # An empty ray, or 0 log 0 at the first step, must not become NaN.
        logits = anneal * weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
        logits = logits.where(sdist[..., 1:] > sdist[..., :-1], -torch.inf)
        return stepfun.sample_intervals(sdist, logits, count, jitter, domain=(0.0, 1.0))


def colour_field(config, compute_dtype):
    """The network of the finest level."""
    return MLPField(
        hidden=config.hidden, depth=config.depth, skip=config.skip, bottleneck=config.bottleneck,
        view_hidden=config.view_hidden, view_depth=config.view_depth,
        use_viewdirs=config.use_viewdirs, min_deg=config.min_deg, max_deg=config.max_deg,
        view_deg=config.view_deg, density_bias=config.density_bias,
        rgb_padding=config.rgb_padding, contraction=config.contraction, basis=config.basis,
        init=config.weight_init, compute_dtype=compute_dtype,
    )


MODELS = {"mipnerf": MipNeRF, "mipnerf360": MipNeRF360}


def build_model(config, device="cpu"):
    """The config's model with fresh weights, drawn from `--seed` alone, on `device`."""
    device = torch.device(device)
    compute_dtype = select_precision(config, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = MODELS[config.model](config, compute_dtype)
    return model.to(device)


def select_device(config):
    """The device of `--device`; 'auto' takes CUDA, then MPS, then the CPU."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if config.device == "auto":
        return torch.device(next((name for name, found in there.items() if found), "cpu"))
    if not there.get(config.device, True):
        raise UserError(f"--device {config.device} was given, but PyTorch finds none here; use "
                        "--device auto or cpu.")
    return torch.device(config.device)


def select_precision(config, device):
    """The dtype of the linear layers; 'auto' is bf16 where the device multiplies it in hardware."""
    if config.precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[config.precision]
    return torch.bfloat16 if has_fast_bf16(device) else torch.float32


def has_fast_bf16(device):
    """Whether the device has instructions for bf16 products; without, they are far slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def render_image(model, rays, chunk=None):
    """Render rays of any batch shape, `chunk` at a time, without gradient: a `RenderOutput`.

    Only the finest level's per-ray quantities are kept. A chunk of None takes `rays_at_once`.
    """
    shape = rays.shape
    flat = rays.flatten()
    chunk = chunk or rays_at_once(model, flat.origins.device)
    parts = [render_chunk(model, flat[i : i + chunk]) for i in range(0, len(flat), chunk)]
    if not parts:
        parts = [render_chunk(model, flat)]
    return concatenate(parts).map(lambda x: x.reshape(*shape, *x.shape[1:]))


def rays_at_once(model, device):
    """How many rays to render at once: as many as stay in a CPU's cache, or fill a GPU."""
    samples = SAMPLES_AT_ONCE.get(device.type, SAMPLES_AT_ONCE["cuda"])
    return max(1, samples // model.samples_per_level)


@torch.no_grad()
def render_chunk(model, rays):
    """The finest level's per-ray quantities of a flat `Rays`."""
    output = model(rays)[-1]
    return RenderOutput(
        rgb=output.rgb, acc=output.acc, distance_mean=output.distance_mean,
        distance_median=output.distance_median, extras=output.extras,
    )
