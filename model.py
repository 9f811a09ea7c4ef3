"""Models: rays in, one `RenderOutput` per level out; how they are built and how they render."""

import torch
from torch import nn

import coord
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


class MipNeRF(nn.Module):
    """mip-NeRF (Barron et al., ICCV 2021): one network, sampled coarse to fine.

    `model(rays)` draws jitter and density noise if and only if `model.training`.
    """

    def __init__(self, config, compute_dtype=torch.float32):
        super().__init__()
        self.compute_dtype = compute_dtype
        self.num_levels, self.num_samples = config.num_levels, config.num_samples
        self.ray_shape, self.lindisp = config.ray_shape, config.lindisp
        self.resample_padding = config.resample_padding
        self.density_noise = config.density_noise
        self.bg_rgb = float(config.white_bkgd)
        self.field = MLPField(
            hidden=config.hidden, depth=config.depth, skip=config.skip,
            view_hidden=config.view_hidden, view_depth=config.view_depth,
            use_viewdirs=config.use_viewdirs, min_deg=config.min_deg, max_deg=config.max_deg,
            view_deg=config.view_deg, density_bias=config.density_bias,
            rgb_padding=config.rgb_padding, compute_dtype=compute_dtype,
        )

    def forward(self, rays, train_frac=1.0, generator=None):
        """What each level sees: a list of `RenderOutput`, coarse to fine; the last is the picture.

        rays: `Rays [...]`; train_frac: share of the training done, in [0, 1] (this model does not
        change with it); generator: of jitter and noise while training, on the rays' device.
        """
        outputs = []
        for _ in range(self.num_levels):
            tdist = self._sample(rays, outputs, generator)
            gaussians = cast_rays(tdist, rays.origins, rays.directions, rays.radii, self.ray_shape)
            noise = self._density_noise(tdist[..., 1:], generator)
            field = self.field(gaussians, rays.viewdirs, noise)
            weights = compute_weights(field.density, tdist, rays.directions)
            rendering = volumetric_rendering(field.rgb, weights, tdist, self.bg_rgb)
            sdist = (tdist - rays.near) / (rays.far - rays.near)
            outputs.append(
                RenderOutput(**rendering._asdict(), sdist=sdist, tdist=tdist, weights=weights)
            )
        return outputs

    def density(self, means, covs):
        """Density `[..., S]` of Gaussians in the coordinates of rays (NDC for NDC scenes)."""
        return self.field(coord.Gaussians(means, covs), with_rgb=False).density

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

    def _draw(self, distribution, shape, like, generator):
        """Random numbers while training, else None."""
        if not self.training:
            return None
        return distribution(shape, generator=generator, dtype=like.dtype, device=like.device)


MODELS = {"mipnerf": MipNeRF}


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
    return max(1, samples // model.num_samples)


@torch.no_grad()
def render_chunk(model, rays):
    """The finest level's per-ray quantities of a flat `Rays`."""
    output = model(rays)[-1]
    return RenderOutput(
        rgb=output.rgb, acc=output.acc, distance_mean=output.distance_mean,
        distance_median=output.distance_median, extras=output.extras,
    )
