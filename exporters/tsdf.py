"""Fusion of rendered distances into a truncated signed distance function (TSDF).

Distances along rays are less ragged than an isosurface of the density, which is noisy in fog and
behind what is seen (Curless and Levoy 1996).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from exporters.survey import coarse_rays, grid_to_world, opaque_distance, survey_cameras
from ray_utils import points_to_pixels
from rendering import Renderer
from structures import Cameras, Scene

# Most rays that are fused, over all views.
FUSION_RAYS = 1_500_000

# Points fused at once, few enough for a CPU's cache.
POINTS_PER_CHUNK = 1 << 14

# Signed distances are truncated to this many grid cells.
TRUNCATION_IN_CELLS = 10.0

# A point is known if at least this many views see it, or all of them if there are fewer.
MIN_VIEWS = 3

# Neighbouring rays whose distances differ by more than this factor see different surfaces.
EDGE_RATIO = 1.05

# The threshold of `fused_occupancy` on the surface.
SURFACE = 0.5


class DistanceMaps(NamedTuple):
    """Distances seen from cameras.

    cameras: `Cameras` of the N views; stride: distance of the rays in pixels; distances: N tensors
    `[h, w]`, world distances to the surface, infinite where a ray is not opaque.
    """

    cameras: Cameras
    stride: int
    distances: list[Tensor]


def render_distances(renderer: Renderer, scene: Scene, **render_options: Any) -> DistanceMaps:
    """The `DistanceMaps` of the views of a survey. render_options: of `Renderer.render`."""
    cameras = survey_cameras(scene.cameras)
    num_pixels = int(cameras.sizes.prod(dim=-1).sum())
    stride = max(1, round((num_pixels / FUSION_RAYS) ** 0.5))
    distances = []
    for index in range(len(cameras)):
        rays = coarse_rays(cameras, index, stride)
        output = renderer.render(scene.light_rays(rays, 0), **render_options)
        distances.append(opaque_distance(cameras, rays, output))
    return DistanceMaps(cameras, stride, distances)


def fused_occupancy(maps: DistanceMaps, cell_size: float,
                    ndc: tuple | None) -> Callable[[np.ndarray], np.ndarray]:
    """A function from points `[M, 3]` to `[M]`: 1 inside, 0 outside, 0.5 on the surface.

    Between them it falls linearly over twice the truncation; -inf where too few views see a point.
    Points are in the coordinates of a grid with this `cell_size`; ndc: of `Cameras`.
    """
    device = maps.cameras.sizes.device

    @torch.no_grad()
    def occupancy(points: np.ndarray) -> np.ndarray:
        values = [np.empty(0, dtype=np.float32)]
        for part in np.array_split(points, -(-len(points) // POINTS_PER_CHUNK) or 1):
            world, cells = (torch.as_tensor(x, dtype=torch.float32, device=device)
                            for x in grid_to_world(part, cell_size, ndc))
            values.append(fuse(maps, world, TRUNCATION_IN_CELLS * cells).cpu().numpy())
        return np.concatenate(values)

    return occupancy


def fuse(maps: DistanceMaps, points: Tensor, truncation: Tensor) -> Tensor:
    """The value `[M]` of `fused_occupancy` at world points `[M, 3]`. truncation: `[M]`."""
    total, count = torch.zeros_like(truncation), torch.zeros_like(truncation)
    for index in range(len(maps.distances)):
        signed = signed_distances(maps, index, points) / truncation
        seen = signed >= -1
        total += signed.clamp(max=1).where(seen, 0.0)
        count += seen
    enough = count >= min(MIN_VIEWS, len(maps.distances))
    return (0.5 - 0.5 * total / count).where(enough, -torch.inf)


def signed_distances(maps: DistanceMaps, index: int, points: Tensor) -> Tensor:
    """How far before the surface of a view world points `[M, 3]` lie; -inf outside the view."""
    surface = maps.distances[index]
    camera = torch.full((len(points),), index, device=points.device)
    pixels, depth = points_to_pixels(maps.cameras, camera, points)
    # The first ray of a row or column is half a stride from the border (`coarse_rays`).
    first = (maps.cameras.sizes[index] - 1).clamp(max=maps.stride // 2)
    cell = (pixels - 0.5 - first) / maps.stride
    height, width = surface.shape
    last = cell.new_tensor([width - 1, height - 1])
    inside = ((cell >= -0.5) & (cell <= last + 0.5)).all(dim=-1) & (depth > 0)
    cell = cell.where(inside[:, None], 0.0).clamp(min=0).minimum(last)
    distance = (points - maps.cameras.camtoworlds[index, :, 3]).norm(dim=-1)
    return (interpolated(surface, cell) - distance).where(inside, -torch.inf)


def interpolated(surface: Tensor, cell: Tensor) -> Tensor:
    """Distances at `cell [M, 2]`, columns and rows: bilinear, but nearest across an edge.

    Between a near and a far surface, interpolation would put a sheet that no view shows.
    """
    height, width = surface.shape
    x0, y0 = cell.floor().long().unbind(-1)
    x1, y1 = (x0 + 1).clamp(max=width - 1), (y0 + 1).clamp(max=height - 1)
    fx, fy = (cell - cell.floor()).unbind(-1)
    corners = torch.stack([surface[y0, x0], surface[y0, x1], surface[y1, x0], surface[y1, x1]])
    weights = torch.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy])
    nearest = corners.gather(0, weights.argmax(dim=0)[None])[0]
    is_edge = corners.amax(dim=0) > EDGE_RATIO * corners.amin(dim=0)
    return torch.where(is_edge, nearest, (weights * corners.where(~is_edge, 0.0)).sum(dim=0))
