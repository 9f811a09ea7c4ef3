"""Rays to whole images: chunks, empty-space skipping, marching, depth and normal images."""

import logging
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize

import image_utils
from coord import points_to_ndc, smallest_eigenvector
from fields import hash_grid
from fields.hash import HashField
from fields.march import Footprints, Marcher
from fields.occupancy import OccupancyGrid, build_occupancy_grid
from models.base import RayModel
from models.zipnerf import ZipNeRF
from ray_utils import corner_rays, reached_box, world_points
from runtime.memory import smaller_until_it_fits
from structures import Cameras, Rays, RenderOutput, Scene, Shading, concatenate

logger = logging.getLogger(__name__)

# Smallest number of samples for which an occupancy grid is built, which takes half a million.
MIN_SAMPLES_FOR_OCCUPANCY = 2_000_000

# Rays marched at once, and the most cameras that give the footprints of pixels.
MARCH_CHUNK = 1 << 16
FOOTPRINT_CAMERAS = 16

# Largest box, in radii of the ball that a contraction leaves as it is, with cells small enough to
# tell empty space from the scene.
MAX_CONTRACTED_BOX = 16.0

# With empty-space skipping a chunk may hold this many times more rays.
OCCUPANCY_CHUNK_MULT = 32

# Normals are fitted to a window of pixels, this many (least, most) to each side. It grows with the
# noise of the distances, in pixel widths. Tuned on the demo scene and checked on captures, whose
# distances are three times as noisy.
NORMAL_WINDOWS = (3, 9)
WINDOW_PER_NOISE = 10

# Normals of the density keep the activations of all layers, so a chunk holds this fraction of rays.
GRADIENT_CHUNK_MULT = 0.25


# Rays to images.


def build_occupancy(model: RayModel, box: Tensor, num_rays: int) -> OccupancyGrid | None:
    """The model's `OccupancyGrid` in a box `[2, 3]` that contains the rays, or None.

    None if building it costs more than skipping saves over `num_rays` rays, if most of the box is
    occupied, if the model's samples are not evenly spaced along rays, or if it contracts space and
    the rays reach far beyond the scene.
    """
    num_samples = num_rays * model.max_samples_per_level
    if not model.samples_evenly or num_samples <= MIN_SAMPLES_FOR_OCCUPANCY:
        return None
    if model.contraction and float((box[1] - box[0]).max()) > MAX_CONTRACTED_BOX:
        return None

    def density(means, variances):
        return model.density(means[:, None], variances[:, None])[:, 0]

    return build_occupancy_grid(density, box, model.max_samples_per_chunk(box.device))


def render_image(model: RayModel, rays: Rays, chunk: int | None = None,
                 occupancy: OccupancyGrid | None = None, shading: Shading | None = None,
                 normals_from: str = "depth") -> RenderOutput:
    """Render rays of any batch shape without gradient; only per-pixel quantities are kept.

    chunk: rays rendered at once, `default_chunk` if None; on out-of-memory it is halved.
    occupancy: grid whose empty space is skipped. shading: how a NeRV shades surfaces, as in
    training if None; other models ignore it. normals_from: "density" or "predicted" for an output
    with these normals; "depth" for none.
    """
    shape = rays.shape
    flat = rays.flatten()
    chunk = chunk or default_chunk(model, flat.origins.device, occupancy, normals_from)
    parts: list[RenderOutput] = []
    first = 0
    while first < len(flat) or not parts:
        def render(size: int, first: int = first) -> RenderOutput:
            return render_chunk(
                model, flat[first : first + size], occupancy, shading, normals_from)

        part, chunk = smaller_until_it_fits(chunk, render)
        parts.append(part)
        first += chunk
    return concatenate(parts).map(lambda x: x.reshape((*shape, *x.shape[1:])))


def default_chunk(model: RayModel, device: torch.device,
                  occupancy: OccupancyGrid | None = None, normals_from: str = "depth") -> int:
    """Default number of rays rendered at once, from the model's number of samples per chunk."""
    samples = model.max_samples_per_chunk(device)
    if occupancy is not None:
        samples *= OCCUPANCY_CHUNK_MULT
    if normals_from == "density":
        samples = int(GRADIENT_CHUNK_MULT * samples)
    return max(1, samples // model.max_samples_per_level)


@torch.no_grad()
def render_chunk(model: RayModel, rays: Rays, occupancy: OccupancyGrid | None = None,
                 shading: Shading | None = None, normals_from: str = "depth") -> RenderOutput:
    """Per-pixel quantities of flat rays at the finest level; arguments as in `render_image`."""
    options = {"shading": shading, "density_normals": normals_from == "density"}
    if occupancy is None:
        return per_pixel(model(rays, **options)[-1], normals_from)
    ray_occupancy = occupancy.along_rays(rays)
    index = ray_occupancy.any_occupied().nonzero()[:, 0]
    output = model(rays[index], ray_occupancy=ray_occupancy[index], **options)[-1]
    output = per_pixel(output, normals_from)

    def scatter(values, background):
        return background.index_copy(0, index, values)

    far = rays.far[:, 0]
    return RenderOutput(
        rgb=scatter(output.rgb, torch.full_like(rays.origins, model.bg_rgb)),
        acc=scatter(output.acc, torch.zeros_like(far)),
        distance_mean=scatter(output.distance_mean, far),
        distance_median=scatter(output.distance_median, far),
        extras={name: scatter(value, value.new_zeros(len(rays), *value.shape[1:]))
                for name, value in output.extras.items()},
        normals=None if output.normals is None
        else scatter(output.normals, torch.zeros_like(rays.origins)),
    )


def per_pixel(output: RenderOutput, normals_from: str) -> RenderOutput:
    """The per-pixel quantities of a level, with composited normals of the given kind."""
    normals = {"depth": None, "density": output.density_normals,
               "predicted": output.predicted_normals}[normals_from]
    if normals is not None:
        normals = (output.weights[..., None] * normals).sum(dim=-2)
    return replace(output, sdist=None, tdist=None, weights=None, predicted_normals=None,
                   density_normals=None, normals=normals)


# One renderer for many images.


@dataclass(frozen=True)
class Renderer:
    """Renders any rays of a model, for videos and meshes; built once by `make_renderer`.

    occupancy: grid of the exact path; marcher: the fast path, None if it does not apply. (Scores
    come from `render_image` alone.)
    """

    model: RayModel
    occupancy: OccupancyGrid | None = None
    marcher: Marcher | None = None

    def render(self, rays: Rays, chunk: int | None = None, shading: Shading | None = None,
               normals_from: str = "depth") -> RenderOutput:
        """The `RenderOutput` of rays of any batch shape; arguments as in `render_image`.

        Normals other than those of the distances take the exact path.
        """
        if self.marcher is None or normals_from != "depth":
            return render_image(self.model, rays, chunk, self.occupancy, shading, normals_from)
        flat = rays.flatten()
        chunk = chunk or MARCH_CHUNK
        parts = [self._march(flat[first : first + chunk])
                 for first in range(0, max(1, len(flat)), chunk)]
        return concatenate(parts).map(lambda x: x.reshape((*rays.shape, *x.shape[1:])))

    @torch.no_grad()
    def with_appearance(self, image_idx: int) -> "Renderer":
        """The same renderer with the appearance of a training image.

        Rays must have its index, `Rays.image_idx`, too: the exact path reads it there.
        """
        if self.marcher is None:
            return self
        embedding = self.model.embeddings(torch.tensor([image_idx]))
        field = cast(HashField, self.model.field)
        return replace(self, marcher=self.marcher.with_appearance(field, embedding))

    @torch.no_grad()
    def _march(self, rays: Rays) -> RenderOutput:
        output = self.marcher(rays, self.model.view_inputs(rays))
        near, far = rays.near[:, 0], rays.far[:, 0]
        mean = output.log_mean.exp().maximum(near).minimum(far)
        return RenderOutput(
            rgb=output.rgb, acc=output.acc, distance_mean=mean.where(output.acc > 0, far),
            distance_median=output.median.where(output.median >= 0, far))


def make_renderer(model: RayModel, scene: Scene, exact: bool = False,
                  num_rays: int | None = None, skip_empty: bool = True) -> Renderer:
    """The `Renderer` of a model: the fast path unless `exact`, where it applies.

    scene: of the training views, on the model's device. num_rays: number of rays to be rendered,
    if known: for few of them no grid is built. skip_empty: whether to use a grid at all.
    """
    num_rays = 1 << 62 if num_rays is None else num_rays
    if not skip_empty:
        return Renderer(model)
    is_worth_it = num_rays * model.max_samples_per_level > MIN_SAMPLES_FOR_OCCUPANCY
    if not exact and is_worth_it and can_march(model, scene.box.device):
        return Renderer(model, marcher=make_marcher(model, scene))
    return Renderer(model, build_occupancy(model, reached_box(scene), num_rays))


def can_march(model: RayModel, device: torch.device) -> bool:
    """Whether the fast path applies; logs why not, if the model is one of grids."""
    if not model.grids() or device.type != "cpu":
        return False
    if not hash_grid.has_numba():
        reason = "numba is missing"
    elif not isinstance(model, ZipNeRF):
        reason = "the surfaces of a NeRV are shaded under its lights"
    elif model.field.num_multisamples > 1:
        reason = "the fast path takes one multisample per interval"
    else:
        return True
    logger.info("Images are rendered by the exact path: %s.", reason)
    return False


def make_marcher(model: RayModel, scene: Scene) -> Marcher:
    """The `Marcher` of a Zip-NeRF."""
    cameras = scene.cameras[:: -(-len(scene.cameras) // FOOTPRINT_CAMERAS)]
    positions = cameras.camtoworlds[:, :, 3] if model.ray_shape == "cone" else None
    footprints = Footprints(float(corner_rays(cameras).radii.median()), positions)
    field = cast(HashField, model.field)
    return Marcher(field, footprints, model.bg_rgb, model.opaque_background)


def render_view(model: RayModel, dataset, index: int, chunk: int | None,
                with_geometry: bool = True, shading: Shading | None = None,
                normals_from: str = "depth") -> dict:
    """Images of one view of a `NeRFDataset`: a `dict` of float arrays `[h, w, 3]`.

    Its keys are ground_truth, rgb, `with_geometry` also depth and normals, and those of
    `model.extra_images`. `model` is in eval mode; other arguments as in `render_image`.
    """
    batch = dataset.image(index)
    output = render_image(model, batch.rays, chunk, shading=shading,
                          normals_from=normals_from if with_geometry else "depth")
    images = {
        "ground_truth": image_utils.quantize(batch.rgb), "rgb": image_utils.quantize(output.rgb)
    }
    if with_geometry:
        distance = world_distance(dataset.cameras, batch.rays, output.distance_median)
        near, far = image_utils.distance_range(distance, output.acc)
        images["depth"] = image_utils.visualize_distance(distance, output.acc, near, far)
        normals = world_normals(dataset.cameras, batch.rays, output)
        if normals is None:
            normals = surface_normals(distance, batch.rays.viewdirs, output.acc)
        images["normals"] = image_utils.visualize_normals(normals, output.acc)
    return images | model.extra_images(output)


# Distance maps to normals.


def world_distance(cameras: Cameras, rays: Rays, distance: Tensor) -> Tensor:
    """Euclidean distance from the camera, in world units, of points at t = `distance [...]`."""
    positions = cameras.camtoworlds[rays.cam_idx[..., 0], :, 3]
    return (world_points(cameras, rays, distance) - positions).norm(dim=-1)


def world_normals(cameras: Cameras, rays: Rays, output: RenderOutput) -> Tensor | None:
    """Unit world normals `[..., 3]` of an image's composited normals, 0 in empty pixels.

    None if it has none. Normals are covectors: those of NDC are multiplied by the transposed
    Jacobian of the map to NDC, at the surface.
    """
    normals = output.normals
    if normals is not None and cameras.ndc is not None:
        points = world_points(cameras, rays, output.distance_median)
        with torch.enable_grad():
            in_ndc = points_to_ndc(points.requires_grad_(), *cameras.ndc)
            normals, = torch.autograd.grad(in_ndc, points, normals)
    if normals is None:
        return None
    return normalize(normals, dim=-1, eps=1e-20) * (output.acc > 0.5).to(normals)[..., None]


class NormalFit(NamedTuple):
    """How planes are fitted in an image: angle between pixels in radians, pixels to each side."""

    pixel_angle: Tensor
    window: int


def normal_fit(distance: Tensor, viewdirs: Tensor, acc: Tensor) -> NormalFit:
    """The `NormalFit` of a distance map; arguments as in `surface_normals`."""
    angles = [viewdirs.diff(dim=axis).norm(dim=-1).flatten() for axis in (0, 1)]
    pixel_angle = torch.nan_to_num(torch.cat(angles).mean(), nan=1.0)
    noise = _noise(distance, distance * pixel_angle, (acc > 0.5).to(distance))
    window = min(max(round(WINDOW_PER_NOISE * noise), NORMAL_WINDOWS[0]), NORMAL_WINDOWS[1])
    return NormalFit(pixel_angle, window)


def surface_normals(distance: Tensor, viewdirs: Tensor, acc: Tensor,
                    fit: NormalFit | None = None) -> Tensor:
    """World normals `[h, w, 3]` of the surface in a distance map; 0 in empty pixels.

    distance: `[h, w]` from the camera in world units along the unit vectors `viewdirs [h, w, 3]`;
    acc: `[h, w]` opacity; fit: that of the whole image, for a part of it; a pixel's normal depends
    on the pixels within its window. Each normal is that of the plane that best fits the points of
    the neighbouring pixels. So normals show the visible surface; gradients of the density would
    also show noise inside it.
    """
    points = distance[..., None] * viewdirs
    solid = (acc > 0.5).to(points)
    pixel_angle, window = fit or normal_fit(distance, viewdirs, acc)
    pixel_width = distance * pixel_angle
    normals = -viewdirs
    # The first fit weights neighbours by distance along the ray, the second by distance from the
    # first plane.
    for scale in (2 / 3 * window, 1 / 3 * window):
        normals = _fit_normals(points, solid, normals, scale * pixel_width, window, viewdirs)
    return normals * solid[..., None]


def _noise(distance, pixel_width, solid):
    """Median difference between a pixel and the mean of two neighbours, in pixel widths."""
    residuals = []
    for x, width, valid in ((distance, pixel_width, solid), (distance.T, pixel_width.T, solid.T)):
        residual = (x[1:-1] - 0.5 * (x[2:] + x[:-2])).abs() / width[1:-1].clamp(min=1e-12)
        residuals.append(residual[(valid[1:-1] * valid[2:] * valid[:-2]) > 0])
    residuals = torch.cat(residuals)
    return float(residuals.median()) if len(residuals) else 0.0


def _fit_normals(points, solid, guess, scale, window, viewdirs):
    """Normals `[h, w, 3]` of planes fitted to neighbours, weighted by distance from a first guess.

    guess: `[h, w, 3]`, normals of first planes; scale: `[h, w]`, standard deviation of the weights.
    """
    height, width = solid.shape
    # Coordinates first, so that pixels are contiguous: nearly four times as fast on a CPU.
    centre, direction = points.movedim(-1, 0).contiguous(), guess.movedim(-1, 0).contiguous()
    padded = torch.nn.functional.pad(torch.cat([centre, solid[None]]), [window] * 4)
    total, first = torch.zeros_like(solid), torch.zeros_like(centre)
    # Regularises pixels whose neighbours do not span a plane: their planes then face the camera.
    identity = torch.eye(3, dtype=points.dtype, device=points.device)
    facing = identity - viewdirs[..., :, None] * viewdirs[..., None, :]
    second = (0.01 * (scale**2)[..., None, None] * facing).movedim((-2, -1), (0, 1)).contiguous()
    for dy in range(-window, window + 1):
        for dx in range(-window, window + 1):
            shifted = padded[:, window + dy : window + dy + height,
                             window + dx : window + dx + width]
            offset = shifted[:3] - centre
            distance = (offset * direction).sum(dim=0) / scale.clamp(min=1e-12)
            log_weight = -0.5 * distance**2 - (dx**2 + dy**2) / (2 * (0.6 * window) ** 2)
            weight = shifted[3] * torch.exp(log_weight)
            weighted = weight * offset
            total += weight
            first += weighted
            second.addcmul_(weighted[:, None], offset)
    mean = first / total.clamp(min=1e-12)
    covariance = (second - mean[:, None] * first).movedim((0, 1), (-2, -1))
    normals = smallest_eigenvector(covariance)
    behind = (normals * viewdirs).sum(dim=-1, keepdim=True) > 0
    return torch.where(behind, -normals, normals)
