"""Survey of a trained scene from its training cameras: surface, bounding box, density threshold."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

import coord
import pose_utils
from cameras.paths import summarize_cameras
from models.base import RayModel
from ray_utils import footprint_radius, pixels_to_rays, points_to_pixels
from rendering import render_image, world_distance
from runtime.errors import UserError
from structures import Cameras, Rays, RenderOutput, Scene

# Rays of the survey, over all views, and largest number of views.
SURVEY_RAYS = 1 << 16
SURVEY_VIEWS = 48

# The bounding box excludes this percentage of the surface points on each side, and adds a margin,
# as a fraction of its longest side.
BOX_PERCENTILE = 0.5
BOX_MARGIN = 0.05

# If more than this fraction of the surface points lies within the circle of the cameras, the others
# are surroundings.
ENCLOSED_FRACTION = 0.1

# The density threshold, as a percentile of the densities at the surface, where rays have lost half
# their light. On the demo scene higher values make the mesh too thin, lower ones too thick.
THRESHOLD_PERCENTILE = 10


# Rendering from the training cameras.


class Survey(NamedTuple):
    """Surfaces seen from some of the training cameras.

    cameras: `Cameras` of the N views; stride: distance of the rays in pixels; distances: N tensors
    `[h, w]`, world distances to the surface, infinite where a ray is not opaque.
    points: `[M, 3]` on the surface, in the coordinates of rays, without surroundings; radius: the
    median radius of the rays' cones or cylinders there.
    """

    cameras: Cameras
    stride: int
    distances: list[Tensor]
    points: Tensor
    radius: float


def survey_scene(model: RayModel, scene: Scene, **render_options: Any) -> Survey:
    """Render a coarse image of each training camera and collect the surface points.

    scene: that of the training views, on the model's device. render_options: of `render_image`.
    """
    cameras = survey_cameras(scene.cameras)
    stride = max(1, round((int(cameras.sizes.prod(dim=-1).sum()) / SURVEY_RAYS) ** 0.5))
    distances, points, radii = [], [], []
    for index in range(len(cameras)):
        rays = coarse_rays(cameras, index, stride)
        output = render_image(model, rays, **render_options)
        opaque = output.acc > 0.5
        t = output.distance_median
        distances.append(opaque_distance(cameras, rays, output))
        points.append((rays.origins + t[..., None] * rays.directions)[opaque])
        radii.append(footprint_radius(rays.radii[..., 0], t, model.ray_shape)[opaque])
    surface, radius = enclosed_points(scene.cameras, torch.cat(points), torch.cat(radii))
    return Survey(cameras, stride, distances, surface,
                  float(radius.median()) if len(radius) else 0.0)


def survey_cameras(cameras: Cameras) -> Cameras:
    """At most `SURVEY_VIEWS` of the cameras, evenly spaced; of Multicam only the finest scale."""
    num_pixels = cameras.sizes.prod(dim=-1)
    large = torch.nonzero(2 * num_pixels > num_pixels.max())[:, 0]
    count = min(SURVEY_VIEWS, len(large))
    return cameras[large[torch.linspace(0, len(large) - 1, count).round().long()]]


def coarse_rays(cameras: Cameras, index: int, stride: int) -> Rays:
    """Rays `[h, w]` of every `stride`-th pixel of a camera."""
    device = cameras.sizes.device
    axes = [torch.arange(min(stride // 2, side - 1), side, stride, device=device)
            for side in cameras.sizes[index].tolist()]
    y, x = torch.meshgrid(axes[1], axes[0], indexing="ij")
    return pixels_to_rays(cameras, torch.full_like(x, index), x, y)


def opaque_distance(cameras: Cameras, rays: Rays, output: RenderOutput) -> Tensor:
    """World distances to the surface along rays, infinite where a ray is not opaque."""
    distance = world_distance(cameras, rays, output.distance_median)
    return distance.where(output.acc > 0.5, torch.inf)


def enclosed_points(cameras: Cameras, points: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    """The points, with their radii, inside the circle on which inward-facing cameras stand.

    Otherwise the surroundings of an unbounded capture would leave few grid points for its centre.
    All points, if few of them are inside or the cameras do not face inward.
    """
    view = summarize_cameras(cameras)
    if not view.forward_facing and view.distance:
        focus = torch.as_tensor(view.focus, device=points.device)
        inside = (points.double() - focus).norm(dim=-1) <= view.distance
        if inside.float().mean() > ENCLOSED_FRACTION:
            return points[inside], radii[inside]
    return points, radii


# Bounding box and density threshold.


def choose_box(config: Any, survey: Survey, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Corners `[3]`, `[3]` of the mesh's bounding box: that of the survey's points.

    With `--keep_unseen` it is the whole box of the scene. `--x_range`, `--y_range` and `--z_range`
    override both; with `--units file` they are along the axes of the scene's files, and the box is
    the one around theirs. Raises UserError for an empty range.
    """
    to_scene = box_axes(config, scene)
    to_box = np.linalg.inv(to_scene)
    points = pose_utils.transform_points(survey.points.double().cpu().numpy(), to_box)
    scene_low, scene_high = _moved_box(*scene.box.double().cpu().numpy(), to_box)
    if len(points) and not config.keep_unseen:
        low, high = np.percentile(points, [BOX_PERCENTILE, 100 - BOX_PERCENTILE], axis=0)
        margin = BOX_MARGIN * (high - low).max()
        low, high = np.maximum(low - margin, scene_low), np.minimum(high + margin, scene_high)
    else:
        low, high = scene_low, scene_high
    for axis, (name, ends) in enumerate(box_ranges(config).items()):
        if ends is not None:
            low[axis], high[axis] = ends
        if not low[axis] < high[axis]:
            raise UserError(f"the bounding box goes from {low[axis]:g} to {high[axis]:g} along "
                            f"{name}; give --{name}_range a smaller and a larger number.")
    return _moved_box(low, high, to_scene)


def box_axes(config: Any, scene: Scene) -> np.ndarray:
    """The similarity `[4, 4]` to the scene's world from the axes of the box (`--units`).

    Raises UserError for the files' axes in NDC.
    """
    if config.units == "scene":
        return np.eye(4)
    if scene.cameras.ndc:
        raise UserError("--units file has no meaning for a run in NDC, whose box has no length; "
                        "leave it out.")
    return scene.world_to_scene.cpu().double().numpy()


def _moved_box(low, high, transform):
    """The corners of the box around a moved box."""
    corners = np.array(list(itertools.product(*zip(low, high, strict=True))))
    moved = pose_utils.transform_points(corners, transform)
    return moved.min(axis=0), moved.max(axis=0)


def box_ranges(config: Any) -> dict[str, Any]:
    """`--x_range`, `--y_range` and `--z_range` by axis; None if not given."""
    return {"x": config.x_range, "y": config.y_range, "z": config.z_range}


def choose_threshold(config: Any, survey: Survey, density: Callable) -> float:
    """`--sigma_threshold`, else a low percentile of the density at the survey's points.

    Raises UserError if there are no such points.
    """
    if config.sigma_threshold is not None:
        return config.sigma_threshold
    if not len(survey.points):
        raise UserError("no ray of the training views hits a surface; train longer, or set "
                        "--sigma_threshold.")
    return float(np.percentile(density(survey.points.cpu().numpy()), THRESHOLD_PERCENTILE))


def density_at(model: RayModel, survey: Survey, cell_size: float,
               chunk: int | None) -> Callable[[np.ndarray], np.ndarray]:
    """A function from points `[M, 3]` to the model's density `[M]`.

    The field is queried with isotropic Gaussians of the grid's resolution (the variance of a
    uniform distribution over a cell), but not finer than the training rays' footprint.
    chunk: number of rays whose samples are queried together (`--chunk`), or None.
    """
    variance = max(cell_size**2 / 12, survey.radius**2 / 4)
    device = survey.points.device
    max_points = (chunk * model.max_samples_per_level if chunk
                  else model.max_samples_per_chunk(device))

    @torch.no_grad()
    def density(points: np.ndarray) -> np.ndarray:
        densities = [np.empty(0, dtype=np.float32)]
        for part in np.array_split(points, max(1, -(-len(points) // max_points))):
            means = torch.as_tensor(part, dtype=torch.float32, device=device)[:, None]
            covs = torch.full_like(means, variance)
            densities.append(model.density(means, covs)[:, 0].cpu().numpy())
        return np.concatenate(densities)

    return density


# Visibility.


def is_seen(survey: Survey, points: np.ndarray, slack: np.ndarray,
            normals: np.ndarray | None = None) -> np.ndarray:
    """Which world points `[M, 3]` a view of the survey sees, bool `[M]`.

    slack: `[M]`, how far behind the visible surface a point may lie, in world units; normals: of a
    surface `[M, 3]` that has to face the view, or None.
    """
    seen = np.zeros(len(points), dtype=bool)
    device = survey.points.device
    world, tolerance = _on_device(device, points, slack)
    outward = None if normals is None else _on_device(device, normals)[0]
    for index, position in enumerate(survey.cameras.camtoworlds[:, :, 3]):
        from_here = _is_seen_from(survey, index, world, tolerance)
        if outward is not None:
            from_here &= ((position - world) * outward).sum(dim=-1) > 0
        seen |= from_here.cpu().numpy()
    return seen


def _on_device(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    return [torch.as_tensor(array, dtype=torch.float32, device=device) for array in arrays]


def viewing_directions(survey: Survey, points: np.ndarray, normals: np.ndarray,
                       slack: np.ndarray) -> Tensor:
    """Unit directions `[M, 3]` in which views see world points: a mean that favours frontal views.

    A model's colours are reliable only in directions from which it was seen. Points that no view
    sees are looked at against their `normals [M, 3]`. slack: as for `is_seen`.
    """
    world, outward, tolerance = _on_device(survey.points.device, points, normals, slack)
    total = torch.zeros_like(world)
    for index, position in enumerate(survey.cameras.camtoworlds[:, :, 3]):
        directions = normalize(world - position, dim=-1)
        frontal = -(directions * outward).sum(dim=-1, keepdim=True)
        seen = _is_seen_from(survey, index, world, tolerance)[:, None] & (frontal > 0)
        total += (frontal**2 * directions).where(seen, 0.0)
    is_known = total.norm(dim=-1, keepdim=True) > 1e-6
    return normalize(total.where(is_known, -outward), dim=-1)


def _is_seen_from(survey: Survey, index: int, points: Tensor, slack: Tensor) -> Tensor:
    """Which world points the view at `index` sees."""
    surface = survey.distances[index]
    camera = torch.full_like(slack, index, dtype=torch.long)
    pixels, depth = points_to_pixels(survey.cameras, camera, points)
    cell = (pixels / survey.stride).floor()
    height, width = surface.shape
    inside = ((cell >= 0) & (cell < cell.new_tensor([width, height]))).all(dim=-1) & (depth > 0)
    x, y = cell.where(inside[:, None], 0.0).long().unbind(-1)
    distance = (points - survey.cameras.camtoworlds[index, :, 3]).norm(dim=-1)
    # A survey pixel covers this width, and a slanted surface may be that much deeper within it.
    cell_width = survey.stride * pixel_width(survey.cameras, index) * distance
    return inside & (distance <= surface[y, x] + slack + cell_width)


def pixel_width(cameras: Cameras, index: int) -> float:
    """Width of the central pixel of a camera at distance 1."""
    return float(cameras.pixtocams[index, 0, :2].norm())


def grid_to_world(points: np.ndarray, cell_size: float, ndc: tuple | None
                  ) -> tuple[np.ndarray, np.ndarray]:
    """World positions `[M, 3]` of grid points, and the size `[M]` of a grid cell there.

    ndc: of `Cameras`; if not None, the grid is in NDC, and cells grow with depth.
    """
    if ndc is None:
        return points, np.full(len(points), cell_size)
    near = torch.as_tensor(points)
    far = near + near.new_tensor([0.0, 0.0, cell_size])
    world, beyond = (coord.from_ndc(p, *ndc).numpy() for p in (near, far))
    return world, np.linalg.norm(beyond - world, axis=1)


def world_to_grid(vertices: np.ndarray, ndc: tuple | None) -> np.ndarray:
    """World points `[M, 3]` in the coordinates of rays, and of grids. ndc: of `Cameras`."""
    return vertices if ndc is None else coord.points_to_ndc(torch.as_tensor(vertices), *ndc).numpy()
