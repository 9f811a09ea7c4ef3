"""Models: rays in, one `RenderOutput` per level out; how they are built and how they render."""

from dataclasses import replace

import torch
from torch import nn

import coord
import distributed
import hash_grid
import stepfun
from config import UserError
from fields import Field, FieldOutput, HashField, MLPField
from memory import free_memory, smaller_until_it_fits
from occupancy import find_occupancy
from ray_utils import (
    RenderOutput,
    cast_rays,
    compute_weights,
    concatenate,
    multisample_rays,
    resample_along_rays,
    sample_along_rays,
    volumetric_rendering,
)

# A grid stands in for a coarse level whose intervals are at most so many of its cells long: there
# PSNR changed by 0.01 dB at most, and with five times as long ones it fell by 0.1 to 0.3 dB.
CELLS_PER_INTERVAL = 2.0

# Fewest samples in all for which a grid of what is empty is made: it asks about half a million.
WORTH_IT = 2_000_000

# Without chance, every other section's multisamples are turned by half a sixth and in the other
# sense, as in the official code.
HALF_TURNED = 0.5 + 1 / 24

# Measured on two cores: 8,192 samples at once render 1.4 to 1.8 times as fast as 500,000.
SAMPLES_AT_ONCE = {"cpu": 1 << 13, "cuda": 1 << 19}

# What rendering a sample holds, for each input and output of the widest layer (3.4 to 6.4 were
# measured), and the share of free memory that it may take.
BYTES_PER_FEATURE = 8
SHARE_OF_MEMORY = 0.5

# Where empty space is passed over, so many times as many rays leave as many samples or fewer.
FEWER_SAMPLES = 32


class RayModel(nn.Module):
    """What the models share: a field, chance while training, and pictures of levels.

    `model(rays)` draws jitter and noise if and only if `model.training`. A subclass sets `field`,
    the finest level's network; `samples_per_level`, the most that a level has; and
    `first_coloured`, the first level with colours (those before are black).
    """

    def __init__(self, config):
        super().__init__()
        self.ray_shape, self.num_samples = config.ray_shape, config.num_samples
        self.opaque_background, self.contraction = config.opaque_background, config.contraction
        self.lindisp = config.lindisp
        self.random_bkgd, self.bg_rgb = config.random_bkgd, float(config.white_bkgd)
        self.occupancy = None

    def skip_empty_space(self, box, num_rays):
        """From now on rendering passes over what is empty in a box `[2, 3]` that holds the rays.

        Training does not. Nothing changes where finding out costs more than `num_rays` rays can
        save, where little is empty, or where the model is of all space, near and far.
        """
        def density(means, variances):
            return self.density(means[:, None], variances[:, None])[:, 0]

        # Cells are all of one size: too coarse where samples are dense near the camera.
        uneven = self.contraction or self.opaque_background or self.lindisp
        if not uneven and num_rays * self.samples_per_level > WORTH_IT:
            self.occupancy = find_occupancy(density, box, self.samples_at_once(box.device))

    def samples_at_once(self, device):
        """How many the field is asked about at once in rendering, where nothing else is said.

        As many as stay in a CPU's cache, or fill a GPU, and as memory has room for.
        """
        widest = max(layer.in_features + layer.out_features for layer in self.field.layers())
        room = SHARE_OF_MEMORY * free_memory(device) / (BYTES_PER_FEATURE * widest)
        return max(1, int(min(SAMPLES_AT_ONCE.get(device.type, SAMPLES_AT_ONCE["cuda"]), room)))

    def grids(self):
        """The fields that are hash grids."""
        return []

    def set_box(self, box):
        """Take the box `[2, 3]` of the scene; networks of positions need none."""

    def density(self, means, covs):
        """Density `[..., S]` of Gaussians in the coordinates of rays (NDC for NDC scenes)."""
        return self.field(coord.Gaussians(means, covs), with_rgb=False).density

    def _gaussians(self, field, tdist, rays, draws, index=None):
        """The Gaussians of intervals, of the kind that a field wants.

        index: `[..., S]` their places along their rays, if these are not all intervals.
        """
        if not field.num_multisamples:
            return cast_rays(tdist, rays.origins, rays.directions, rays.radii, self.ray_shape,
                             diag=not field.wants_full_covariances)
        rotations = self._draw(torch.rand, tdist[..., 1:].shape, tdist, draws)
        if rotations is None:
            if index is None:
                index = torch.arange(tdist.shape[-1] - 1, device=tdist.device)
            rotations = torch.where(index % 2 == 0, 0.0, HALF_TURNED).expand_as(tdist[..., 1:])
        return multisample_rays(tdist, rays.origins, rays.directions, rays.radii, self.ray_shape,
                                field.num_multisamples, rotations)

    def profile(self, rays):
        """The `Profile` of flat rays, which tells what need not be asked; None if nothing does."""
        return None if self.occupancy is None else self.occupancy.along(rays)

    def _ask(self, field, tdist, rays, draws, density_noise=None):
        """A level's `FieldOutput` of all intervals `[..., S]`."""
        gaussians = self._gaussians(field, tdist, rays, draws)
        return field(gaussians, rays.viewdirs, density_noise)

    def _ask_where_needed(self, field, tdist, rays, profile, with_rgb):
        """As `_ask` for flat rays, but not about intervals that hold nothing."""
        density = torch.zeros_like(tdist[:, 1:])
        rgb = density.new_zeros(*density.shape, 3) if with_rgb else None
        needed = profile.may_hold_something(tdist).nonzero()
        for part in needed.split(self.samples_at_once(tdist.device)):
            ray, sample = part.unbind(-1)
            ends = torch.stack([tdist[ray, sample], tdist[ray, sample + 1]], dim=-1)
            gaussians = self._gaussians(field, ends, rays[ray], None, sample[:, None])
            found = field(gaussians, rays.viewdirs[ray], with_rgb=with_rgb)
            density[ray, sample] = found.density[:, 0]
            if with_rgb:
                rgb[ray, sample] = found.rgb[:, 0]
        return FieldOutput(density, rgb)

    def _output(self, samples, tdist, sdist, rays, draws):
        """The `RenderOutput` of a level from its field's answers."""
        weights = compute_weights(samples.density, tdist, rays.directions, self.opaque_background)
        bg_rgb = self.bg_rgb
        if self.random_bkgd and self.training:
            bg_rgb = self._draw(torch.rand, (*rays.shape, 3), tdist, draws)
        rgb = samples.rgb
        if rgb is None:
            rgb = torch.zeros((), device=tdist.device).expand(*weights.shape, 3)
        rendering = volumetric_rendering(rgb, weights, tdist, bg_rgb)
        return RenderOutput(**rendering._asdict(), sdist=sdist, tdist=tdist, weights=weights)

    def _draw(self, distribution, shape, like, draws):
        """Random numbers while training, else None."""
        if not self.training:
            return None
        if draws is None:
            return distribution(shape, dtype=like.dtype, device=like.device)
        return draws(distribution, shape, like)


class MipNeRF(RayModel):
    """mip-NeRF (Barron et al., ICCV 2021): one network, sampled coarse to fine."""

    def __init__(self, config, compute_dtype=torch.float32):
        super().__init__(config)
        self.compute_dtype = compute_dtype
        self.num_levels = config.num_levels
        self.samples_per_level, self.first_coloured = config.num_samples, 0
        self.resample_padding = config.resample_padding
        self.density_noise = config.density_noise
        self.field = colour_field(config, compute_dtype)

    def forward(self, rays, train_frac=1.0, draws=None, profile=None):
        """What each level sees: a list of `RenderOutput`, coarse to fine; the last is the picture.

        rays: `Rays [...]`; train_frac: share of the training done, in [0, 1] (this model does not
        change with it); draws: of jitter and noise while training, as `BatchDraws.of` gives them;
        PyTorch's own random numbers if None; profile: of flat rays, what need not be asked, and
        then coarser levels have no colours.
        """
        outputs = []
        for level in range(self.num_levels):
            tdist = self._sample(rays, outputs, draws)
            noise = self._density_noise(tdist[..., 1:], draws)
            if profile is None:
                samples = self._ask(self.field, tdist, rays, draws, noise)
            elif level == self.num_levels - 1:
                samples = self._ask_where_needed(self.field, tdist, rays, profile, with_rgb=True)
            elif profile.num_parts <= CELLS_PER_INTERVAL * self.num_samples:
                samples = FieldOutput(profile.mean_density(tdist), None)
            else:
                samples = self._ask_where_needed(self.field, tdist, rays, profile, with_rgb=False)
            sdist = (tdist - rays.near) / (rays.far - rays.near)
            outputs.append(self._output(samples, tdist, sdist, rays, draws))
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

    def _sample(self, rays, outputs, draws):
        posts = (*rays.shape, self.num_samples + 1)
        jitter = self._draw(torch.rand, posts, rays.origins, draws)
        if not outputs:
            return sample_along_rays(rays.near, rays.far, self.num_samples, jitter, self.lindisp)
        coarser = outputs[-1]
        return resample_along_rays(
            coarser.tdist, coarser.weights, self.num_samples, jitter, self.resample_padding
        )

    def _density_noise(self, like, draws):
        if self.density_noise == 0:
            return None
        noise = self._draw(torch.randn, like.shape, like, draws)
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
        self._make_fields(config, compute_dtype)

    def _make_fields(self, config, compute_dtype):
        self.field = colour_field(config, compute_dtype)
        self.proposal = MLPField(
            hidden=config.prop_hidden, depth=config.prop_depth, skip=config.skip, has_rgb=False,
            min_deg=config.min_deg, max_deg=config.max_deg, density_bias=config.density_bias,
            contraction=config.contraction, basis=config.basis, init=config.weight_init,
            compute_dtype=compute_dtype,
        )

    def forward(self, rays, train_frac=1.0, draws=None, profile=None):
        """What each round sees: a list of `RenderOutput`, of which the last is the picture.

        rays: `Rays [...]`; train_frac: share of the training done, in [0, 1], with which the
        proposals are trusted more; draws: of jitter while training, and profile: as in
        `MipNeRF`.
        """
        warps = coord.construct_ray_warps(self.ray_warp, rays.near, rays.far)
        outputs, drawn = [], 1
        for level in range(self.prop_rounds + 1):
            last = level == self.prop_rounds
            field = self.field if last else self._proposal(level)
            count = self.num_samples if last else self.prop_samples
            dilation = self.dilation_bias + self.dilation_mult / drawn
            sdist = self._sample(rays, outputs, count, dilation, train_frac, draws)
            drawn *= count
            tdist = warps.s_to_t(sdist)
            if profile is None:
                samples = self._ask(field, tdist, rays, draws)
            else:
                samples = self._ask_where_needed(field, tdist, rays, profile, with_rgb=last)
            outputs.append(self._output(samples, tdist, sdist, rays, draws))
        return outputs

    def _proposal(self, level):
        """The field of a proposal round."""
        return self.proposal

    @torch.no_grad()
    def _sample(self, rays, outputs, count, dilation, train_frac, draws):
        """Fence posts `[..., count + 1]` in s, from the round before or, at first, evenly."""
        jitter = self._draw(torch.rand, (*rays.shape, 1), rays.origins, draws)
        if not outputs:
            sdist = torch.cat([torch.zeros_like(rays.near), torch.ones_like(rays.near)], dim=-1)
            logits = torch.zeros_like(rays.near)
            return stepfun.sample_intervals(sdist, logits, count, jitter, domain=(0.0, 1.0))
        sdist, weights = outputs[-1].sdist, outputs[-1].weights
        if dilation > 0:
            sdist, weights = stepfun.max_dilate_weights(
                sdist, weights, dilation, (0.0, 1.0), renormalize=True)
            sdist, weights = sdist[..., 1:-1], weights[..., 1:-1]
        # At first all weights count alike (Schlick's bias; mip-NeRF 360, section 3.2).
        anneal = self.anneal_slope * train_frac / ((self.anneal_slope - 1) * train_frac + 1)
        # An empty ray, or 0 log 0 at the first step, must not become NaN.
        logits = anneal * weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
        logits = logits.where(sdist[..., 1:] > sdist[..., :-1], -torch.inf)
        return stepfun.sample_intervals(sdist, logits, count, jitter, domain=(0.0, 1.0))


class ZipNeRF(MipNeRF360):
    """Zip-NeRF (Barron et al., ICCV 2023): mip-NeRF 360's sampling of anti-aliased hash grids.

    Each proposal round has a grid of its own, finer from round to round.
    """

    def _make_fields(self, config, compute_dtype):
        shared = dict(
            num_multisamples=config.num_multisamples, downweight=config.downweight,
            density_bias=config.density_bias, contraction=config.contraction,
            init=config.weight_init, compute_dtype=compute_dtype,
        )
        self.field = HashField(
            levels=self._levels(config, config.grid_finest), features=config.grid_features,
            hidden=config.hidden, depth=config.depth, **heads(config), **shared,
        )
        self.pulse_widths = config.pulse_width
        self.proposals = nn.ModuleList(
            HashField(levels=self._levels(config, finest), features=config.prop_features,
                      hidden=config.prop_hidden, depth=config.prop_depth, has_rgb=False, **shared)
            for finest in config.prop_finest
        )

    @staticmethod
    def _levels(config, finest):
        return hash_grid.make_levels(config.grid_coarsest, finest, config.grid_log2_size)

    def grids(self):
        return [*self.proposals, self.field]

    def set_box(self, box):
        """Lay the grids into a scene's box `[2, 3]`, unless they hold all of contracted space."""
        for field in self.grids():
            if not field.contraction:
                field.box.copy_(box)

    def density(self, means, covs):
        variance = covs if covs.dim() == means.dim() else covs.diagonal(dim1=-2, dim2=-1)
        stds = variance.mean(dim=-1).sqrt()
        gaussians = coord.IsotropicGaussians(means[..., None, :], stds[..., None])
        return self.field(gaussians, with_rgb=False).density

    def _proposal(self, level):
        return self.proposals[level]


def colour_field(config, compute_dtype):
    """The network of the finest level."""
    return MLPField(
        hidden=config.hidden, depth=config.depth, skip=config.skip, min_deg=config.min_deg,
        max_deg=config.max_deg, density_bias=config.density_bias, contraction=config.contraction,
        basis=config.basis, init=config.weight_init, compute_dtype=compute_dtype, **heads(config),
    )


def heads(config):
    """What the fields of finest levels have between features and colour."""
    return dict(
        bottleneck=config.bottleneck, view_hidden=config.view_hidden,
        view_depth=config.view_depth, view_skip=config.view_skip,
        use_viewdirs=config.use_viewdirs, view_deg=config.view_deg,
        rgb_padding=config.rgb_padding,
    )


MODELS = {"mipnerf": MipNeRF, "mipnerf360": MipNeRF360, "zipnerf": ZipNeRF}


def build_model(config, device="cpu", box=None):
    """The config's model with fresh weights, drawn from `--seed` alone, on `device`.

    box: `[2, 3]`, what the scene fills of the space of its rays, for models with a grid.
    """
    device = torch.device(device)
    compute_dtype = select_precision(config, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = MODELS[config.model](config, compute_dtype)
    if box is not None:
        model.set_box(box)
    return model.to(device)


def compile_fields(model, device):
    """Have torch.compile fuse what fields do between their matrix products, from the next call on.

    Where that fails they run as they are. Hash grids on a CPU have kernels of their own.
    """
    from torch._dynamo import config as compiler  # Takes a second to import.

    compiler.suppress_errors = True
    for part in model.modules():
        if isinstance(part, Field) and not (isinstance(part, HashField) and device.type == "cpu"):
            part.compile()


def select_device(config):
    """The device of `--device`; 'auto' takes CUDA, then MPS, then the CPU.

    Of several processes on one machine each has a GPU of its own.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind = config.device
    if kind == "auto":
        kind = next((name for name, found in there.items() if found), "cpu")
    if not there.get(kind, True):
        raise UserError(f"--device {kind} was given, but PyTorch finds none here; use "
                        "--device auto or cpu.")
    if kind == "cuda" and distributed.local_rank() >= torch.cuda.device_count():
        raise UserError(f"there are {torch.cuda.device_count()} GPUs here and more ranks; start "
                        "as many by --nproc_per_node, or use --device cpu.")
    return torch.device(kind, distributed.local_rank()) if kind == "cuda" else torch.device(kind)


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

    Only the finest level's per-ray quantities are kept. A chunk of None takes `rays_at_once`; it
    is halved where memory does not suffice.
    """
    shape = rays.shape
    flat = rays.flatten()
    chunk = chunk or rays_at_once(model, flat.origins.device)
    parts, first = [], 0
    while first < len(flat) or not parts:
        part, chunk = smaller_until_it_fits(
            chunk, lambda size, first=first: render_chunk(model, flat[first : first + size]))
        parts.append(part)
        first += chunk
    return concatenate(parts).map(lambda x: x.reshape((*shape, *x.shape[1:])))


def rays_at_once(model, device):
    """How many rays to render at once, by how many samples the model can take."""
    samples = model.samples_at_once(device)
    if model.occupancy is not None:
        samples *= FEWER_SAMPLES
    return max(1, samples // model.samples_per_level)


@torch.no_grad()
def render_chunk(model, rays):
    """The finest level's per-ray quantities of a flat `Rays`."""
    profile = model.profile(rays)
    if profile is None:
        return replace(model(rays)[-1], sdist=None, tdist=None, weights=None)
    index = profile.holds_something().nonzero()[:, 0]
    output = model(rays[index], profile=profile[index])[-1]

    def placed(found, elsewhere):
        return elsewhere.index_copy(0, index, found)

    far = rays.far[:, 0]
    return RenderOutput(
        rgb=placed(output.rgb, torch.full_like(rays.origins, model.bg_rgb)),
        acc=placed(output.acc, torch.zeros_like(far)),
        distance_mean=placed(output.distance_mean, far),
        distance_median=placed(output.distance_median, far),
        extras={name: placed(value, value.new_zeros(len(rays), *value.shape[1:]))
                for name, value in output.extras.items()},
    )
