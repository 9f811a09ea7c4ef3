"""Base class of the models: field queries, training randomness, compositing."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fields.appearance import ImageEmbeddings
from fields.base import Field, FieldOutput
from fields.hash import HashField
from fields.normals import query_with_normals
from fields.occupancy import RayOccupancy
from models.outliers import OutlierMap
from ray_utils import cast_rays, compute_weights, multisample_rays, volumetric_rendering
from runtime.memory import free_memory
from structures import Rays, RenderOutput, Shading

# At test time every other interval's multisamples are mirrored and rotated by 90 degrees, as in
# Zip-NeRF's code; in the units of `multisample_rays`.
ODD_INTERVAL_ROTATION = 0.5 + 1 / 8

# Samples rendered at once. On two CPU cores 8,192 are 1.4 to 1.8 times as fast as 500,000. If the
# widest layer has fewer than `REFERENCE_WIDTH` inputs and outputs, proportionally more samples fit
# the cache.
CHUNK_SAMPLES = {"cpu": 1 << 13, "cuda": 1 << 19}
REFERENCE_WIDTH = 256

# Memory of a sample per input and output of the widest layer while rendering (3.4 to 6.4 bytes were
# measured), and the fraction of free memory that a chunk may take.
BYTES_PER_FEATURE = 8
MEMORY_FRACTION = 0.5


class RayModel(nn.Module, ABC):
    """Base class: field queries, training randomness, compositing.

    `model(rays)` samples jitter and noise if and only if `model.training`. A subclass defines
    `render_levels` and `reference_params`, and sets `field`, the finest level's network;
    `max_samples_per_level`; and `first_rgb_level`, the first level with colours (those before are
    black).
    stages: (start, length) of each stage, as fractions of training; log_distance: whether the mean
    distance of a ray is that of logarithms; trains_normals: whether losses compare the normals of
    the finest level's density.
    """

    field: Field
    embeddings: ImageEmbeddings | None
    outliers: OutlierMap | None
    max_samples_per_level: int
    first_rgb_level: int
    compute_dtype: torch.dtype
    stages: Sequence[tuple[float, float]] = ((0.0, 1.0),)
    log_distance: bool = False
    trains_normals: bool = False

    def __init__(self, config):
        super().__init__()
        self.ray_shape, self.num_samples = config.ray_shape, config.num_samples
        self.opaque_background, self.contraction = config.opaque_background, config.contraction
        self.bg_range = config.bg_range
        self.embeddings = None
        self.outliers = None

    def forward(self, rays: Rays, train_frac: float = 1.0, rng=None,
                ray_occupancy: RayOccupancy | None = None, shading: Shading | None = None,
                density_normals: bool = False) -> list[RenderOutput]:
        """Render rays at every level, coarse to fine; returns one `RenderOutput` per level.

        The last one is the image. rays: `Rays [...]`; train_frac: fraction of training done, in
        [0, 1]; rng: random numbers of training, as from `BatchRandom.for_rows`, PyTorch's own if
        None; ray_occupancy: `RayOccupancy` of flat rays, to skip empty intervals; shading: how a
        NeRV shades surfaces, as in training if None; other models ignore it; density_normals:
        whether the last level has normals of the density.
        """
        density_normals = density_normals or self.training and self.trains_normals
        return self.render_levels(rays, train_frac, rng, ray_occupancy, density_normals)

    @abstractmethod
    def render_levels(self, rays: Rays, train_frac: float, rng,
                      ray_occupancy: RayOccupancy | None,
                      density_normals: bool = False) -> list[RenderOutput]:
        """Render every level, as `forward` does, without shading."""

    @property
    def samples_evenly(self) -> bool:
        """Whether samples are evenly spaced along a ray, as cells of an occupancy grid are."""
        return not self.opaque_background

    @property
    def bg_rgb(self) -> float:
        """The background of images, the middle of the range drawn from in training."""
        return sum(self.bg_range) / 2

    def is_shading(self) -> bool:
        """Whether colours are those of shaded surfaces: NeRV's are, in its last stage."""
        return False

    def stage_at(self, train_frac: float | Tensor) -> int:
        """Index into `stages` after a fraction of the training."""
        # Compare in float32, as progress is stored.
        train_frac = torch.as_tensor(train_frac, dtype=torch.float32)
        starts = train_frac.new_tensor([start for start, _ in self.stages])
        return int((train_frac >= starts).sum()) - 1

    def set_train_frac(self, train_frac: float):
        """Store the fraction of training done, if rendering depends on it. Call once per step."""

    def extra_images(self, output: RenderOutput) -> dict:
        """Further images `[h, w, 3]` of a model's predictions, by name."""
        return {}

    def max_samples_per_chunk(self, device: torch.device) -> int:
        """Default number of samples per field query: what fits a CPU's cache, or a GPU."""
        widest = max(layer.in_features + layer.out_features for layer in self.field.layers())
        fits_memory = MEMORY_FRACTION * free_memory(device) / (BYTES_PER_FEATURE * widest)
        samples = CHUNK_SAMPLES.get(device.type, CHUNK_SAMPLES["cuda"])
        return max(1, int(min(samples * max(1, REFERENCE_WIDTH / widest), fits_memory)))

    def fields(self) -> list[Field]:
        """All networks of the model."""
        return [part for part in self.modules() if isinstance(part, Field)]

    def clipped_parts(self) -> list[nn.Module]:
        """The parts whose gradients are clipped each by itself: networks and embeddings."""
        embeddings = [] if self.embeddings is None else [self.embeddings]
        return [*self.fields(), *embeddings]

    def grids(self) -> list[HashField]:
        """The fields that are hash grids."""
        return [field for field in self.fields() if isinstance(field, HashField)]

    def compilable_fields(self, device: torch.device) -> list[Field]:
        """The fields for torch.compile: all but hash grids on a CPU, which have numba kernels.

        Compiled code cannot be differentiated twice, as losses of the density's normals are.
        """
        return [field for field in self.fields()
                if not (isinstance(field, HashField) and device.type == "cpu")
                and not (field is self.field and self.trains_normals)]

    @torch.no_grad()
    def load_reference_params(self, arrays: Mapping):
        """Load the weights of the official JAX code.

        arrays: by the names of `reference_params`, of equal shapes. Raises ValueError for a missing
        or extra name or a shape that does not fit.
        """
        if self.embeddings is not None:
            raise ValueError("the arrays hold no appearance embeddings; --glo_features 0 is "
                             "expected")
        parameters = self.reference_params()
        if set(arrays) != set(parameters):
            raise ValueError(f"missing or extra arrays: {sorted(set(arrays) ^ set(parameters))}")
        values = {name: torch.as_tensor(array) for name, array in arrays.items()}
        for name, parameter in parameters.items():
            if values[name].shape != parameter.shape:
                raise ValueError(f"{name} is {tuple(values[name].shape)}; "
                                 f"{tuple(parameter.shape)} is expected")
        for name, parameter in parameters.items():
            parameter.copy_(values[name])

    @abstractmethod
    def reference_params(self) -> dict[str, Tensor]:
        """All parameters but those of embeddings, by the shapes and names of the official code.

        Kernels of linear layers are (in, out). Raises ValueError if there is no such code.
        """

    def set_box(self, box: Tensor):
        """Fit the hash grids to a scene's bounding box `[2, 3]`, unless they contract space."""
        for field in self.grids():
            if not field.contraction:
                field.box.copy_(box)

    def add_embeddings(self, num_images: int | None):
        """Add an appearance embedding for each training image, if the field takes them."""
        features = self.field.head.glo_features
        if not features:
            return
        if num_images is None:
            raise ValueError("num_images is None; the number of training images is expected with "
                             f"--glo_features {features}")
        self.embeddings = ImageEmbeddings(num_images, features)

    def add_outlier_map(self, num_images: int | None):
        """Add the memory of the training images' errors (--robust)."""
        if num_images is None:
            raise ValueError("num_images is None; the number of training images is expected with "
                             "--robust")
        self.outliers = OutlierMap(num_images)

    def appearance_of(self, rays: Rays) -> Tensor | None:
        """Appearance embeddings `[..., N]`; None, which fields take for zero, without an image."""
        if self.embeddings is None or rays.image_idx is None:
            return None
        return self.embeddings(rays.image_idx)

    def density(self, means: Tensor, covs: Tensor) -> Tensor:
        """Density `[..., S]` of Gaussians in the coordinates of rays (NDC for NDC scenes)."""
        return self.field(self.field.make_gaussians(means, covs), with_rgb=False).density

    def distortion_fenceposts(self, output: RenderOutput) -> Tensor:
        """Fenceposts `[..., S + 1]` between which the distortion loss measures distances."""
        return output.sdist

    def normalized_distance(self, rays: Rays, t: Tensor) -> Tensor:
        """Distances t `[..., 1]` along rays in s, in which `RenderOutput.sdist` is."""
        return (t - rays.near) / (rays.far - rays.near)

    def view_inputs(self, rays: Rays) -> Tensor:
        """Inputs of the view branch, `[..., 3]`."""
        return rays.viewdirs

    def cast_gaussians(self, field: Field, tdist: Tensor, rays: Rays, rng,
                       index: Tensor | None = None):
        """Gaussians of the intervals between `tdist [..., S+1]`, of the field's kind.

        index: `[..., S]`, index of each interval along its ray; None if these are all intervals.
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

    def query_field(self, field: Field, tdist: Tensor, rays: Rays, rng,
                    density_noise: Tensor | None = None, with_rgb: bool = True,
                    density_normals: bool = False) -> FieldOutput:
        """The `FieldOutput` of all intervals `[..., S]` of a level."""
        gaussians = self.cast_gaussians(field, tdist, rays, rng)
        view_inputs = self.view_inputs(rays) if with_rgb else None
        appearance = self.appearance_of(rays) if with_rgb else None
        query = partial(query_with_normals, field) if density_normals else field
        return query(gaussians, view_inputs, density_noise, with_rgb, appearance)

    def query_occupied(self, field: Field, tdist: Tensor, rays: Rays, ray_occupancy: RayOccupancy,
                       with_rgb: bool, density_normals: bool = False) -> FieldOutput:
        """Query the field at intervals of flat rays; those in empty cells get density 0."""
        found: dict[str, Tensor] = {}
        view_inputs = self.view_inputs(rays) if with_rgb else None
        occupied = ray_occupancy.occupied_intervals(tdist).nonzero()
        for part in occupied.split(ray_occupancy.max_queries):
            ray, sample = part.unbind(-1)
            ends = torch.stack([tdist[ray, sample], tdist[ray, sample + 1]], dim=-1)
            gaussians = self.cast_gaussians(field, ends, rays[ray], None, sample[:, None])
            query = partial(query_with_normals, field) if density_normals else field
            samples = query(gaussians, view_inputs[ray] if with_rgb else None, None, with_rgb,
                            self.appearance_of(rays[ray]) if with_rgb else None)
            for name, values in samples._asdict().items():
                if values is not None:
                    if name not in found:
                        found[name] = values.new_zeros(*tdist[:, 1:].shape, *values.shape[2:])
                    found[name][ray, sample] = values[:, 0]
        return FieldOutput(*(found.get(name) for name in FieldOutput._fields))

    def composite(self, samples: FieldOutput, tdist: Tensor, sdist: Tensor, rays: Rays,
                  rng) -> RenderOutput:
        """Composite the `FieldOutput` of a level."""
        weights = compute_weights(samples.density, tdist, rays.directions, self.opaque_background)
        low, high = self.bg_range
        bg_rgb = self.bg_rgb
        if low < high and self.training:
            bg_rgb = low + (high - low) * self._random(torch.rand, (*rays.shape, 3), tdist, rng)
        rgb = samples.rgb
        if rgb is None:
            rgb = torch.zeros((), device=tdist.device).expand(*weights.shape, 3)
        composited = volumetric_rendering(rgb, weights, tdist, bg_rgb, self.log_distance)
        return RenderOutput(**composited._asdict(), sdist=sdist, tdist=tdist, weights=weights,
                            predicted_normals=samples.predicted_normals,
                            density_normals=samples.density_normals)

    def _random(self, distribution, shape, like, rng):
        """Random numbers of a `shape` in training, otherwise None.

        distribution: `torch.rand` or `torch.randn`; like: a tensor of the same dtype and device;
        rng: as in `forward`.
        """
        if not self.training:
            return None
        if rng is None:
            return distribution(shape, dtype=like.dtype, device=like.device)
        return rng(distribution, shape, like)
