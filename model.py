"""Models: rays in, one `RenderOutput` per level out; how they are built and how they render."""

import argparse
from dataclasses import replace

import torch
from torch import nn

import coord
import distributed
import hash_grid
import lights
import nerv
import stepfun
from config import UserError
from fields import Field, FieldOutput, HashField, MLPField
from memory import free_memory, smaller_until_it_fits
from occupancy import find_occupancy
from ray_utils import (
    RenderOutput,
    cast_rays,
    compute_weights,
    multisample_rays,
    resample_along_rays,
    sample_along_rays,
    volumetric_rendering,
)
from records import concatenate

# A grid stands in for a coarse level whose intervals are at most so many of its cells long: there
# PSNR changed by 0.01 dB at most, and with five times as long ones it fell by 0.1 to 0.3 dB.
CELLS_PER_INTERVAL = 2.0

# Fewest samples in all for which a grid of what is empty is made: it asks about half a million.
WORTH_IT = 2_000_000

# Without chance, every other section's multisamples are turned by half a sixth and in the other
# sense, as in the official code.
HALF_TURNED = 0.5 + 1 / 24

# Of the curve P(premult t, lambda) along which the spread of a ray's mass counts in unbounded
# scenes of zipnerf, as in the released code: ten times as far away, the same spread is an 18th.
SPREAD_PREMULT = 10_000
SPREAD_LAMBDA = -0.25

# Of a sample in its pixel: lighter ones are not shaded by themselves (NeRV).
SMALLEST_WEIGHT = 0.01

# To each side, in cells of the finest grid, for normals by differences: in four views of a trained
# scene they were 19.0 degrees wrong on average with 1, 17.7 with 2, 19.1 with 4.
NORMAL_STEP = 2

# How much wider, as a share of the box, Gaussians are when networks are asked for normals. Samples
# are longer than a pixel is wide: what the finest encodings do within them is not learnt.
NORMAL_WIDTH = 0.015

# Below it, the logarithm of a density says nothing.
SMALLEST_DENSITY = 1e-10

# How far, as a share of the box, a ray from a surface starts above it: the density is some cells
# thick, and light would not leave it.
SURFACE_OFFSET = 1 / 128

# Measured on two cores: 8,192 samples at once render 1.4 to 1.8 times as fast as 500,000. Of a
# network whose widest layer has fewer than `WIDE` inputs and outputs, more stay in the cache:
# `demozip` renders 1.4 to 1.5 times as fast for it.
SAMPLES_AT_ONCE = {"cpu": 1 << 13, "cuda": 1 << 19}
WIDE = 256

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
    stages: where training changes its course, and for what share of it it keeps that.
    """

    stages = ((0.0, 1.0),)

    def __init__(self, config):
        super().__init__()
        self.ray_shape, self.num_samples = config.ray_shape, config.num_samples
        self.opaque_background, self.contraction = config.opaque_background, config.contraction
        self.lindisp = config.lindisp
        self.random_bkgd, self.bg_rgb = config.random_bkgd, float(config.white_bkgd)
        self.occupancy = None

    def stage_at(self, share):
        """The number of the stage, as in `stages`, after a share of the training."""
        # In the precision of what is kept of a training, so that a stage begins where it says.
        share = torch.as_tensor(share, dtype=torch.float32)
        return int((share >= share.new_tensor([begin for begin, _ in self.stages])).sum()) - 1

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
        at_once = SAMPLES_AT_ONCE.get(device.type, SAMPLES_AT_ONCE["cuda"]) * max(1, WIDE / widest)
        return max(1, int(min(at_once, room)))

    def compilable_fields(self, device):
        """The fields that torch.compile can take; hash grids on a CPU have kernels of their own."""
        return [part for part in self.modules() if isinstance(part, Field)
                and not (isinstance(part, HashField) and device.type == "cpu")]

    def grids(self):
        """The fields that are hash grids."""
        return [part for part in self.modules() if isinstance(part, HashField)]

    def set_rendering(self, config):
        """Take the flags that a reader of a run may change; most models have none."""

    def set_box(self, box):
        """Lay the grids into a scene's box `[2, 3]`, unless they hold all of contracted space."""
        for field in self.grids():
            if not field.contraction:
                field.box.copy_(box)

    def density(self, means, covs):
        """Density `[..., S]` of Gaussians in the coordinates of rays (NDC for NDC scenes)."""
        return self.field(self.field.gaussians_of(means, covs), with_rgb=False).density

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

    def spread_posts(self, output):
        """A level's fence posts `[..., S + 1]` between which the spread of its mass counts."""
        return output.sdist

    def _seen_from(self, rays):
        """What colours depend on besides the place: `[..., 3]`."""
        return rays.viewdirs

    def _ask(self, field, tdist, rays, draws, density_noise=None, with_rgb=True):
        """A level's `FieldOutput` of all intervals `[..., S]`."""
        gaussians = self._gaussians(field, tdist, rays, draws)
        seen_from = self._seen_from(rays) if with_rgb else None
        return field(gaussians, seen_from, density_noise, with_rgb)

    def _ask_where_needed(self, field, tdist, rays, profile, with_rgb):
        """As `_ask` for flat rays, but not about intervals that hold nothing."""
        density = torch.zeros_like(tdist[:, 1:])
        rgb = density.new_zeros(*density.shape, 3) if with_rgb else None
        seen_from = self._seen_from(rays) if with_rgb else None
        needed = profile.may_hold_something(tdist).nonzero()
        for part in needed.split(self.samples_at_once(tdist.device)):
            ray, sample = part.unbind(-1)
            ends = torch.stack([tdist[ray, sample], tdist[ray, sample + 1]], dim=-1)
            gaussians = self._gaussians(field, ends, rays[ray], None, sample[:, None])
            found = field(gaussians, seen_from[ray] if with_rgb else None, with_rgb=with_rgb)
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
        self.field = mlp_field(config, compute_dtype, **heads(config))

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
        self.field = mlp_field(config, compute_dtype, **heads(config))
        self.proposal = mlp_proposal(config, compute_dtype)

    def forward(self, rays, train_frac=1.0, draws=None, profile=None):
        """What each round sees: a list of `RenderOutput`, of which the last is the picture.

        rays: `Rays [...]`; train_frac: share of the training done, in [0, 1], with which the
        proposals are trusted more; draws: of jitter while training, and profile: as in
        `MipNeRF`.
        """
        return self._look(rays, train_frac, draws, profile)

    def _look(self, rays, train_frac, draws, profile, with_rgb=True):
        """As `forward`; without `with_rgb` the last round has no colours either."""
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
            coloured = last and with_rgb
            if profile is None:
                samples = self._ask(field, tdist, rays, draws, with_rgb=coloured)
            else:
                samples = self._ask_where_needed(field, tdist, rays, profile, coloured)
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
        self.field = hash_field(config, compute_dtype, **heads(config))
        self.proposals = hash_proposals(config, compute_dtype)
        self.pulse_widths = config.pulse_width

    def spread_posts(self, output):
        if self.ray_warp == "power":
            return coord.power_ladder(SPREAD_PREMULT * output.tdist, SPREAD_LAMBDA)
        return super().spread_posts(output)

    def _proposal(self, level):
        return self.proposals[level]


class NeRV(MipNeRF360):
    """NeRV (Srinivasan et al., CVPR 2021): geometry, reflectance and visibility under known light.

    Training has three stages. First the colours are those of a network that is told the view and
    where the light comes from on the whole: they give the geometry. Then visibility is learnt from
    that, too. Last, and in every picture from then on, colours are what surfaces reflect.
    """

    def _make_fields(self, config, compute_dtype):
        make_field = hash_field if config.nerv_field == "hash" else mlp_field
        view = heads(config)
        self.field = make_field(config, compute_dtype, view_inputs=6, **view)
        if config.nerv_field == "hash":
            self.proposals = hash_proposals(config, compute_dtype)
            self.pulse_widths = config.pulse_width
        else:
            self.proposals = nn.ModuleList([mlp_proposal(config, compute_dtype)])
        unseen = view | {"use_viewdirs": False, "rgb_padding": 0.0}
        seen = view | {"use_viewdirs": True, "rgb_padding": 0.0,
                       "bottleneck": config.visibility_features,
                       "view_hidden": config.visibility_hidden,
                       "view_depth": config.visibility_depth}
        coarser = argparse.Namespace(**vars(config) | {"grid_finest": config.visibility_finest})
        self.appearance = nerv.Appearance(
            make_field(config, compute_dtype, has_density=False, channels=4, **unseen),
            make_field(coarser, compute_dtype, has_density=False, channels=2, **seen),
            config.bounce_directions,
        )
        self.light_samples = config.light_samples
        self.set_rendering(config)
        lit_from = config.geometry_share + config.visibility_share
        self.stages = ((0.0, config.geometry_share), (config.geometry_share,
                       config.visibility_share), (lit_from, 1 - lit_from))
        self.cells = self.field.levels.resolutions[-1] if config.nerv_field == "hash" else None
        self.register_buffer("box", torch.tensor([[-1.0] * 3, [1.0] * 3]))
        # The share of the training that is done.
        self.register_buffer("progress", torch.zeros(()))

    def set_rendering(self, config):
        self.shade_at, self.march_shadows = config.shade_at, config.march_shadows
        self.appearance.bounce_directions = config.bounce_directions

    def set_box(self, box):
        super().set_box(box)
        self.box.copy_(box)
        self.appearance.reach.copy_((box[1] - box[0]).norm())

    def forward(self, rays, train_frac=1.0, draws=None, profile=None):
        """What each round sees, as in `MipNeRF360`; rays have `lights [..., K]`.

        Colours are tone-mapped radiance before the background. While training, train_frac tells the
        stage; pictures are those of the stage that was reached. The last round's `extras [..., C]`
        are quantities of what is seen, weighted by opacity: albedo, roughness, normals, visibility
        (of the lights), direct and indirect (radiance). Rays without lights see black shapes.
        """
        shape, rays = rays.shape, rays.flatten()
        if self.training:
            self.progress.fill_(train_frac)
        dark, lit = rays.lights is None, self.is_lit()
        outputs = self._look(rays, train_frac, draws, profile, with_rgb=not (dark or lit))
        if lit and not dark:
            outputs[-1] = self._lit(outputs[-1], rays, draws)
        if self.training and self.stage() > 0:
            error = self._visibility_error(outputs[-1], rays, draws)
            outputs[-1] = replace(
                outputs[-1], extras=outputs[-1].extras | {"visibility_error": error})
        return [o.map(lambda x: x.reshape((*shape, *x.shape[1:]))) for o in outputs]

    def stage(self):
        """The number of the stage that the training has reached."""
        return self.stage_at(self.progress)

    def is_lit(self):
        """Whether colours are those of surfaces under light."""
        return self.stage() == len(self.stages) - 1

    def compilable_fields(self, device):
        # Normals of networks are derivatives, and what is compiled can be differentiated only once.
        return [field for field in super().compilable_fields(device)
                if field is not self.field or field.num_multisamples]

    def _proposal(self, level):
        return self.proposals[level % len(self.proposals)]

    def _seen_from(self, rays):
        return torch.cat([rays.viewdirs, lights.overall(rays.lights)[0]], dim=-1)

    def _output(self, samples, tdist, sdist, rays, draws):
        """A level's output: colours of the field are shares of the light that arrives."""
        output = super()._output(samples._replace(rgb=None), tdist, sdist, rays, draws)
        if samples.rgb is None:
            return output
        arriving = lights.overall(rays.lights)[1]
        radiance = arriving * (output.weights[..., None] * samples.rgb).sum(dim=-2)
        return replace(output, rgb=output.rgb + lights.tone_map(radiance))

    # Shading.

    def _lit(self, output, rays, draws):
        """The last round's output with the colours of surfaces under the rays' lights."""
        few = self._few_lights(rays.lights, draws)
        ray, t, share = self._places(output)
        points = self._surface(*self._seen_at(rays, ray, t), -rays.viewdirs[ray])
        shining, visible = few if self.training else rays.lights, None
        if self.march_shadows and not self.training:
            visible = self._marched_visibility(output, rays, shining)[ray]
        direct, visibility = self.appearance.direct(points, shining[ray], visible)

        def composited(values):
            total = values.new_zeros(len(rays), values.shape[-1])
            return total.index_add(0, ray, share[:, None] * values)

        extras = {"albedo": points.albedo, "roughness": points.roughness,
                  "normals": points.normals, "visibility": visibility, "direct": direct}
        extras = {name: composited(values) for name, values in extras.items()}
        extras["indirect"] = self._bounced(output, rays, ray.unique(), few, extras, draws)
        radiance = extras["direct"] + extras["indirect"]
        return replace(output, rgb=output.rgb + lights.tone_map(radiance), extras=extras)

    def _places(self, output):
        """Where rays are shaded: of M places the index of the ray, t, and the share in its colour.

        These are the samples that count, which stand for the others too; or one at the mean t.
        """
        acc, weights = output.acc, output.weights
        if self.shade_at == "surface":
            ray = (acc.detach() > SMALLEST_WEIGHT).nonzero()[:, 0]
            return ray, expected_t(output)[ray], acc[ray]
        ray, sample = (weights.detach() > SMALLEST_WEIGHT).nonzero().unbind(-1)
        middle = 0.5 * (output.tdist[:, 1:] + output.tdist[:, :-1])
        weight = weights[ray, sample]
        counted = torch.zeros_like(acc).index_add(0, ray, weight)
        return ray, middle[ray, sample], weight * (acc / counted.clamp(min=SMALLEST_WEIGHT))[ray]

    def _seen_at(self, rays, ray, t):
        """Positions `[M, 3]` and variances `[M]` of what pixels see at t `[M]` of some rays."""
        positions = rays.origins[ray] + t[:, None] * rays.directions[ray]
        width = 0.5 * rays.radii[ray, 0] * (t if self.ray_shape == "cone" else 1)
        return positions, width**2

    def _surface(self, positions, variances, outgoing):
        """`nerv.Points` there."""
        return self.appearance.points(
            positions, variances, self._normals(positions, variances), outgoing)

    def _normals(self, positions, variances):
        """Normals `[M, 3]` of the density."""
        side = float((self.box[1] - self.box[0]).max())
        if not self.field.num_multisamples:
            variances = variances + (NORMAL_WIDTH * side) ** 2

        def log_density(means):
            covs = variances[:, None, None].expand(-1, means.shape[1], 3)
            return self.density(means, covs).clamp(min=SMALLEST_DENSITY).log()

        if self.field.num_multisamples:
            return nerv.difference_normals(log_density, positions, NORMAL_STEP * side / self.cells)
        return nerv.gradient_normals(log_density, positions)

    def _bounced(self, output, rays, ray, few_lights, seen, draws):
        """Light `[N, 3]` that reaches the mean surface of some rays by way of another one."""
        shift = self._draw(torch.rand, (len(rays), 2), rays.origins, draws)
        acc = output.acc[ray, None]
        points = nerv.Points(
            *self._seen_at(rays, ray, expected_t(output).detach()[ray]),
            normals=torch.nn.functional.normalize(seen["normals"][ray].detach(), dim=-1),
            outgoing=-rays.viewdirs[ray], albedo=seen["albedo"][ray] / acc,
            roughness=seen["roughness"][ray] / acc,
        )
        radiance = self.appearance.indirect(
            points, few_lights[ray], self._surface, None if shift is None else shift[ray])
        return torch.zeros_like(rays.origins).index_add(0, ray, acc * radiance)

    def _marched_visibility(self, output, rays, shining):
        """The share `[N, K]` of each light that reaches the rays' mean surfaces, by the density."""
        surface, _, normals = self._mean_surface(output, rays)
        light = lights.incident(shining, surface)
        visible = torch.zeros_like(light.distance)
        facing = nerv.dot(light.directions, normals[:, None])[..., 0] > 0
        ray, which = (facing & (output.acc > SMALLEST_WEIGHT)[:, None]).nonzero().unbind(-1)
        starts, unlit = surface + self._above(normals), replace(rays, lights=None)
        # As many at once as there are rays in a chunk.
        for part in torch.arange(len(ray), device=ray.device).split(max(1, len(rays))):
            one, k = ray[part], which[part]
            seen = self._march(unlit[one], starts[one], light.directions[one, k], None)
            visible[one, k] = seen.of_light(light.distance[one, k])
        return visible

    def _mean_surface(self, output, rays):
        """Positions `[N, 3]`, variances `[N]` and normals `[N, 3]` where rays end on average."""
        every = torch.arange(len(rays), device=rays.origins.device)
        positions, variances = self._seen_at(rays, every, expected_t(output).detach())
        with torch.no_grad():
            return positions, variances, self._normals(positions, variances)

    def _above(self, normals):
        """From a surface to where rays that leave it start."""
        return SURFACE_OFFSET * (self.box[1] - self.box[0]).max() * normals

    def _few_lights(self, all_lights, draws):
        """A choice of many lights, evenly among their brightness, by chance while training."""
        count, few = len(all_lights.places), self.light_samples
        begin = self._draw(torch.rand, (count, 1), all_lights.places, draws)
        if all_lights.places.shape[1] <= few:
            return all_lights
        begin = 0.5 if begin is None else begin
        steps = torch.arange(few, device=all_lights.places.device).expand(count, -1)
        return lights.draw_lights(all_lights, (steps + begin) / few)

    # What the visibility field learns from.

    def _visibility_error(self, output, rays, draws):
        """How wrong `[N]` the visibility field is about a ray from what is seen, and a random one.

        The rays are marched through the density, which learns nothing from it (NeRV, section 4.3).
        """
        surface, variances, normals = self._mean_surface(output, rays)
        outward = self._random_directions(rays, draws)
        side = nerv.dot(outward, normals)
        outward = torch.where(side < 0, -outward, outward)
        solid = (output.acc.detach() > 0.5).to(surface)
        low, high = self.box
        anywhere = self._draw(torch.rand, rays.origins.shape, rays.origins, draws)
        anywhere = low + (high - low) * anywhere
        starts = surface + self._above(normals)
        return (
            solid * self._error_along(rays, surface, starts, variances, outward, draws)
            + self._error_along(rays, anywhere, anywhere, variances,
                                self._random_directions(rays, draws), draws)
        )

    def _random_directions(self, rays, draws):
        return torch.nn.functional.normalize(
            self._draw(torch.randn, rays.origins.shape, rays.origins, draws), dim=-1)

    def _error_along(self, rays, positions, origins, variances, directions, draws):
        """The squared errors `[N]` of what is said to be seen at positions, in directions.

        Distances count in shares of the farthest, and by how much is stopped there.
        """
        truth = self._march(rays, origins, directions, draws)
        said = self.appearance.seen(positions, variances, directions[:, None])
        beside = (1 - truth.share) * (said.distance[:, 0] - truth.distance) / self.appearance.reach
        return (said.share[:, 0] - truth.share) ** 2 + beside**2

    @torch.no_grad()
    def _march(self, rays, origins, directions, draws):
        """What is `nerv.Seen [N]` from origins in directions, as wide as the pixels of `rays`."""
        away = replace(
            rays, origins=origins, directions=directions, viewdirs=directions, lights=None,
            near=torch.zeros_like(rays.near), far=self._way_out(origins, directions))
        output = self._look(away, 1.0, draws, None, with_rgb=False)[-1]
        middle = 0.5 * (output.tdist[:, 1:] + output.tdist[:, :-1])
        distance = (output.weights * middle).sum(dim=-1) / output.acc.clamp(min=1e-6)
        return nerv.Seen((1 - output.acc).clamp(min=0), distance)

    def _way_out(self, origins, directions):
        """How far `[N, 1]` it is from origins to the box's sides."""
        ends = torch.where(directions > 0, self.box[1], self.box[0]) - origins
        steps = ends / directions.where(directions.abs() > 1e-9, 1e-9)
        return steps.where(directions.abs() > 1e-9, torch.inf).amin(
            dim=-1, keepdim=True).clamp(min=1e-3)


def expected_t(output):
    """The mean t `[...]` of a level's weights, with their gradient; the far end of empty rays."""
    middle = 0.5 * (output.tdist[..., 1:] + output.tdist[..., :-1])
    mean = (output.weights * middle).sum(dim=-1) / output.acc.clamp(min=1e-3)
    return torch.where(output.acc > 1e-3, mean, output.tdist[..., -1])


def mlp_field(config, compute_dtype, **others):
    """A network of the config's size."""
    return MLPField(
        hidden=config.hidden, depth=config.depth, skip=config.skip, min_deg=config.min_deg,
        max_deg=config.max_deg, density_bias=config.density_bias, contraction=config.contraction,
        basis=config.basis, init=config.weight_init, compute_dtype=compute_dtype, **others,
    )


def mlp_proposal(config, compute_dtype):
    """The small network of all proposal rounds."""
    return MLPField(
        hidden=config.prop_hidden, depth=config.prop_depth, skip=config.skip, has_rgb=False,
        min_deg=config.min_deg, max_deg=config.max_deg, density_bias=config.density_bias,
        contraction=config.contraction, basis=config.basis, init=config.weight_init,
        compute_dtype=compute_dtype,
    )


def hash_field(config, compute_dtype, **others):
    """A grid and networks of the config's size."""
    return _hash_field(config, compute_dtype, config.grid_finest, features=config.grid_features,
                       hidden=config.hidden, depth=config.depth, **others)


def hash_proposals(config, compute_dtype):
    """A small grid for each proposal round."""
    return nn.ModuleList(
        _hash_field(config, compute_dtype, finest, features=config.prop_features,
                    hidden=config.prop_hidden, depth=config.prop_depth, has_rgb=False)
        for finest in config.prop_finest
    )


def _hash_field(config, compute_dtype, finest, **others):
    return HashField(
        levels=hash_grid.make_levels(config.grid_coarsest, finest, config.grid_log2_size),
        num_multisamples=config.num_multisamples, downweight=config.downweight,
        density_bias=config.density_bias, contraction=config.contraction,
        init=config.weight_init, compute_dtype=compute_dtype, **others,
    )


def heads(config):
    """What the fields of finest levels have between features and colour."""
    return dict(
        bottleneck=config.bottleneck, view_hidden=config.view_hidden,
        view_depth=config.view_depth, view_skip=config.view_skip,
        use_viewdirs=config.use_viewdirs, view_deg=config.view_deg,
        rgb_padding=config.rgb_padding,
    )


MODELS = {"mipnerf": MipNeRF, "mipnerf360": MipNeRF360, "zipnerf": ZipNeRF, "nerv": NeRV}


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

    Where that fails they run as they are.
    """
    from torch._dynamo import config as compiler  # Takes a second to import.

    compiler.suppress_errors = True
    fields = model.compilable_fields(device)
    if not fields:
        print("--compile finds nothing to do: hash grids on a CPU have kernels of their own.")
    for field in fields:
        field.compile()


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
