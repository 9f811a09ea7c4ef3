"""mip-NeRF, the table of models, and building one from a config."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from fields.base import FieldOutput
from fields.hash import HashField
from fields.occupancy import RayOccupancy
from models.base import RayModel
from models.build import head_config, mlp_field
from models.mipnerf360 import MipNeRF360
from models.zipnerf import ZipNeRF
from ray_utils import resample_along_rays, sample_along_rays
from relighting.nerv import NeRV
from runtime.devices import select_precision
from structures import Rays, RenderOutput

logger = logging.getLogger(__name__)

# The occupancy grid replaces the coarse level if its intervals span at most this many cells: PSNR
# then changes by 0.01 dB at most; with intervals five times as long it fell by 0.1 to 0.3 dB.
CELLS_PER_INTERVAL = 2.0


class MipNeRF(RayModel):
    """mip-NeRF (Barron et al., ICCV 2021): one MLP, sampled coarse to fine."""

    def __init__(self, config, compute_dtype=torch.float32):
        super().__init__(config)
        self.compute_dtype = compute_dtype
        self.num_levels = config.num_levels
        self.max_samples_per_level, self.first_rgb_level = config.num_samples, 0
        self.lindisp, self.resample_padding = config.lindisp, config.resample_padding
        self.density_noise = config.density_noise
        self.field = mlp_field(config, compute_dtype, head_config(config))

    @property
    def samples_evenly(self) -> bool:
        return super().samples_evenly and not self.lindisp

    def render_levels(self, rays: Rays, train_frac: float, rng,
                      ray_occupancy: RayOccupancy | None,
                      density_normals: bool = False) -> list[RenderOutput]:
        """Render every level. With `ray_occupancy` only the last level has colours."""
        outputs: list[RenderOutput] = []
        for level in range(self.num_levels):
            tdist = self.sample_level(rays, outputs, rng)
            noise = self.sample_density_noise(tdist[..., 1:], rng)
            is_last = level == self.num_levels - 1
            if ray_occupancy is None:
                samples = self.query_field(self.field, tdist, rays, rng, noise,
                                           density_normals=is_last and density_normals)
            else:
                samples = self.query_with_occupancy(tdist, rays, ray_occupancy, is_last,
                                                    is_last and density_normals)
            sdist = (tdist - rays.near) / (rays.far - rays.near)
            outputs.append(self.composite(samples, tdist, sdist, rays, rng))
        return outputs

    def sample_level(self, rays: Rays, outputs: list[RenderOutput], rng) -> Tensor:
        """Bin edges `[..., S + 1]` in t: stratified, or resampled from the level before."""
        edges = (*rays.shape, self.num_samples + 1)
        jitter = self._random(torch.rand, edges, rays.origins, rng)
        if not outputs:
            return sample_along_rays(rays.near, rays.far, self.num_samples, jitter, self.lindisp)
        coarse = outputs[-1]
        return resample_along_rays(
            coarse.tdist, coarse.weights, self.num_samples, jitter, self.resample_padding)

    def query_with_occupancy(self, tdist: Tensor, rays: Rays, ray_occupancy: RayOccupancy,
                             is_last: bool, density_normals: bool = False) -> FieldOutput:
        """The `FieldOutput` of a level, skipping empty intervals.

        A coarse level takes its densities from the occupancy grid if that is fine enough.
        """
        fine_enough = ray_occupancy.num_segments <= CELLS_PER_INTERVAL * self.num_samples
        if not is_last and fine_enough:
            return FieldOutput(ray_occupancy.mean_density(tdist), None)
        return self.query_occupied(self.field, tdist, rays, ray_occupancy, with_rgb=is_last,
                                   density_normals=density_normals)

    def sample_density_noise(self, like: Tensor, rng) -> Tensor | None:
        """Noise for the raw density in training (NeRF's regularisation), shaped `like`; or None."""
        if self.density_noise == 0:
            return None
        noise = self._random(torch.randn, like.shape, like, rng)
        return None if noise is None else self.density_noise * noise

    def reference_params(self) -> dict[str, Tensor]:
        return self.field.reference_params("Dense_{index}_{kind}")


MODELS: dict[str, Callable[..., RayModel]] = {
    "mipnerf": MipNeRF, "mipnerf360": MipNeRF360, "zipnerf": ZipNeRF, "nerv": NeRV}


def build_model(config, device: torch.device | str = "cpu", box: Tensor | None = None, *,
                num_images: int | None = None) -> RayModel:
    """The config's model on a device, its weights initialised from `--seed` only.

    box: `[2, 3]`, the scene's bounding box in the coordinates of rays, for models with a grid.
    num_images: number of photographs to train on, for `--glo_features` and `--robust`.
    """
    device = torch.device(device)
    compute_dtype = select_precision(config, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = MODELS[config.model](config, compute_dtype)
        model.add_embeddings(num_images)
    if config.robust:
        model.add_outlier_map(num_images)
    if box is not None:
        model.set_box(box)
    return model.to(device)


def compile_fields(model: RayModel, device: torch.device):
    """Compile the fields by torch.compile, which fuses operations between matrix multiplications.

    Fields that cannot be compiled run uncompiled.
    """
    from torch._dynamo import config as compiler  # Takes a second to import.

    compiler.suppress_errors = True
    fields = model.compilable_fields(device)
    if not fields:
        logger.info("--compile has no effect: hash grids on a CPU use numba kernels.")
    for field in fields:
        if isinstance(field, HashField):
            # The lookups have their own kernels; compiled, they would keep every intermediate.
            setattr(field, "_encode", torch.compiler.disable(field._encode))  # noqa: B010
        field.compile()
