"""Base class of the models: field queries, training randomness, compositing."""

import torch
from torch import nn

from fields.base import Field, FieldOutput
from fields.hash import HashField
from ray_utils import cast_rays, compute_weights, multisample_rays, volumetric_rendering
from runtime.memory import free_memory
from structures import RenderOutput

# At test time every other interval's multisamples are rotated by 30 degrees and mirrored, as in
# Zip-NeRF's code; in the units of `multisample_rays`.
ODD_INTERVAL_ROTATION = 0.5 + 1 / 24

# Samples rendered at once. On two CPU cores 8,192 are 1.4 to 1.8 times as fast as 500,000; for
# fields whose widest layer has fewer than `REFERENCE_WIDTH` inputs and outputs, proportionally more
# stay in the cache.
CHUNK_SAMPLES = {"cpu": 1 << 13, "cuda": 1 << 19}
REFERENCE_WIDTH = 256

# Memory that rendering a sample takes per input and output of the widest layer (3.4 to 6.4 bytes
# were measured), and the fraction of free memory that a chunk may take.
BYTES_PER_FEATURE = 8
MEMORY_FRACTION = 0.5


class RayModel(nn.Module):
    """Base class: field queries, training randomness, compositing.

    `model(rays)` samples jitter and noise if and only if `model.training`. A subclass sets `field`,
    the finest level's network; `max_samples_per_level`; and `first_rgb_level`, the first level with
    colours (those before are black).
    stages: (start, length) of each stage, as fractions of training.
    """

    stages = ((0.0, 1.0),)

    def __init__(self, config):
        super().__init__()
        self.ray_shape, self.num_samples = config.ray_shape, config.num_samples
        self.opaque_background, self.contraction = config.opaque_background, config.contraction
        self.random_bkgd, self.bg_rgb = config.random_bkgd, float(config.white_bkgd)

    @property
    def samples_evenly(self):
        """Whether samples are as far apart near the camera as away from it, like grid cells."""
        return not (self.contraction or self.opaque_background)

    def stage_at(self, train_frac):
        """The index into `stages` after a fraction of the training."""
        # Compare in float32, as progress is stored.
        train_frac = torch.as_tensor(train_frac, dtype=torch.float32)
        starts = train_frac.new_tensor([start for start, _ in self.stages])
        return int((train_frac >= starts).sum()) - 1

    def set_train_frac(self, train_frac):
        """Take note of the fraction of training that is done; most models have no need to."""

    def max_samples_per_chunk(self, device):
        """Default number of samples per field query: what fits a CPU's cache, or a GPU."""
        widest = max(layer.in_features + layer.out_features for layer in self.field.layers())
        fits_memory = MEMORY_FRACTION * free_memory(device) / (BYTES_PER_FEATURE * widest)
        samples = CHUNK_SAMPLES.get(device.type, CHUNK_SAMPLES["cuda"])
        return max(1, int(min(samples * max(1, REFERENCE_WIDTH / widest), fits_memory)))

    def compilable_fields(self, device):
        """The fields that torch.compile can take; on a CPU hash grids have kernels of their own."""
        return [part for part in self.modules() if isinstance(part, Field)
                and not (isinstance(part, HashField) and device.type == "cpu")]

    def grids(self):
        """The fields that are hash grids."""
        return [part for part in self.modules() if isinstance(part, HashField)]

    def set_box(self, box):
        """Fit the hash grids to a scene's box `[2, 3]`, unless they hold contracted space."""
        for field in self.grids():
            if not field.contraction:
                field.box.copy_(box)

    def density(self, means, covs):
        """Density `[..., S]` of Gaussians in the coordinates of rays (NDC for NDC scenes)."""
        return self.field(self.field.make_gaussians(means, covs), with_rgb=False).density

    def distortion_fenceposts(self, output):
        """Bin edges `[..., S + 1]` in which the distortion loss measures a level's weights."""
        return output.sdist

    def view_inputs(self, rays):
        """What colour depends on besides position: `[..., 3]`."""
        return rays.viewdirs

    def cast_gaussians(self, field, tdist, rays, rng, index=None):
        """Gaussians of intervals, of the field's kind.

        index: `[..., S]`, the intervals' indices along their rays, if they are not all of them.
        """
        if not field.num_multisamples:
            return cast_rays(tdist, rays.origins, rays.directions, rays.radii, self.ray_shape,
                             diag=not field.needs_full_covariance)
        rotations = self._random(torch.rand, tdist[..., 1:].shape, tdist, rng)
        if rotations is None:
            if index is None:
                index = torch.arange(tdist.shape[-1] - 1, device=tdist.device)
            rotations = torch.where(index % 2 == 0, 0.0, ODD_INTERVAL_ROTATION)
            rotations = rotations.expand_as(tdist[..., 1:])
        return multisample_rays(tdist, rays.origins, rays.directions, rays.radii, self.ray_shape,
                                field.num_multisamples, rotations)

    def query_field(self, field, tdist, rays, rng, density_noise=None, with_rgb=True):
        """The `FieldOutput` of all intervals `[..., S]` of a level."""
        gaussians = self.cast_gaussians(field, tdist, rays, rng)
        view_inputs = self.view_inputs(rays) if with_rgb else None
        return field(gaussians, view_inputs, density_noise, with_rgb)

    def query_occupied(self, field, tdist, rays, ray_occupancy, with_rgb):
        """As `query_field` for flat rays, skipping intervals in empty cells (density 0)."""
        density = torch.zeros_like(tdist[:, 1:])
        rgb = density.new_zeros(*density.shape, 3) if with_rgb else None
        view_inputs = self.view_inputs(rays) if with_rgb else None
        occupied = ray_occupancy.occupied_intervals(tdist).nonzero()
        for part in occupied.split(ray_occupancy.max_queries):
            ray, sample = part.unbind(-1)
            ends = torch.stack([tdist[ray, sample], tdist[ray, sample + 1]], dim=-1)
            gaussians = self.cast_gaussians(field, ends, rays[ray], None, sample[:, None])
            samples = field(gaussians, view_inputs[ray] if with_rgb else None, with_rgb=with_rgb)
            density[ray, sample] = samples.density[:, 0]
            if with_rgb:
                rgb[ray, sample] = samples.rgb[:, 0]
        return FieldOutput(density, rgb)

    def composite(self, samples, tdist, sdist, rays, rng):
        """The `RenderOutput` of a level from its `FieldOutput`."""
        weights = compute_weights(samples.density, tdist, rays.directions, self.opaque_background)
        bg_rgb = self.bg_rgb
        if self.random_bkgd and self.training:
            bg_rgb = self._random(torch.rand, (*rays.shape, 3), tdist, rng)
        rgb = samples.rgb
        if rgb is None:
            rgb = torch.zeros((), device=tdist.device).expand(*weights.shape, 3)
        composited = volumetric_rendering(rgb, weights, tdist, bg_rgb)
        return RenderOutput(**composited._asdict(), sdist=sdist, tdist=tdist, weights=weights)

    def _random(self, distribution, shape, like, rng):
        """Random numbers in training, else None."""
        if not self.training:
            return None
        if rng is None:
            return distribution(shape, dtype=like.dtype, device=like.device)
        return rng(distribution, shape, like)
