"""Occupancy grids for empty-space skipping.

`OccupancyGrid` finds empty ray segments and estimates the density of the others; its cells are
cubes in the coordinates of rays. (Unbounded models gain nothing from it: nearly all of their rays
end at a surface, and the proposals have found the empty space already.) `MarchGrid` says how far
rays may jump, also in contracted space; march.py marches rays through it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from structures import Rays

# Cells per side; built coarse to fine, from half as many.
RESOLUTION = 128

# Cells with less opacity are empty.
MIN_OPACITY = 0.005

# Cells of a `MarchGrid` and their neighbours are looked at closely if the opacity at their centre
# is at least this.
CANDIDATE_OPACITY = 0.0005


@dataclass(frozen=True)
class OccupancyGrid:
    """A grid of densities, 0 in empty cells.

    density: `[1, 1, 128, 128, 128]` by z, y and x; origin: `[3]`, the grid's corner; cell_size: in
    the coordinates of rays; max_queries: samples per field query of the renderer.
    """

    density: Tensor
    origin: Tensor
    cell_size: float
    max_queries: int

    def along_rays(self, rays: Rays) -> "RayOccupancy":
        """The `RayOccupancy` of flat rays.

        Segments are at most one cell long and their density is trilinearly interpolated, so 0 means
        that no cell they touch is occupied. Space outside the grid, which no training ray reaches,
        is empty.
        """
        spans = (rays.far - rays.near) * rays.directions.norm(dim=-1, keepdim=True)
        longest = float(spans.max()) if len(spans) else 0.0
        num_segments = max(1, math.ceil(longest / self.cell_size))
        midpoints = (torch.arange(num_segments, device=spans.device) + 0.5) / num_segments
        t = rays.near + (rays.far - rays.near) * midpoints
        points = rays.origins[:, None] + t[..., None] * rays.directions[:, None]
        grid_coords = 2 * (points - self.origin) / (self.cell_size * RESOLUTION) - 1
        density = F.grid_sample(self.density, grid_coords[None, None], align_corners=False)
        return RayOccupancy.from_density(
            density[0, 0, 0], rays.near, rays.far, self.max_queries)


@dataclass(frozen=True)
class RayOccupancy:
    """Density along N rays, in P segments of equal length between near and far.

    cum_occupied, cum_density: `[N, P+1]`, cumulative count of occupied segments, and cumulative
    density, before each segment edge; near, far: `[N, 1]`; max_queries: as in `OccupancyGrid`.
    """

    cum_occupied: Tensor
    cum_density: Tensor
    near: Tensor
    far: Tensor
    max_queries: int

    @classmethod
    def from_density(cls, density: Tensor, near: Tensor, far: Tensor, max_queries: int):
        """Build from densities `[N, P]` of the segments between near and far `[N, 1]`."""
        sums = torch.stack([(density > 0).to(density.dtype), density]).cumsum(dim=-1)
        cum_occupied, cum_density = F.pad(sums, (1, 0))
        return cls(cum_occupied, cum_density, near, far, max_queries)

    def __getitem__(self, index) -> "RayOccupancy":
        """The occupancy of the rays at `index`."""
        return RayOccupancy(self.cum_occupied[index], self.cum_density[index], self.near[index],
                            self.far[index], self.max_queries)

    @property
    def num_segments(self) -> int:
        """Number of segments P of each ray."""
        return self.cum_density.shape[1] - 1

    def any_occupied(self) -> Tensor:
        """Which rays `[N]` have an occupied segment."""
        return self.cum_occupied[:, -1] > 0

    def occupied_intervals(self, tdist: Tensor) -> Tensor:
        """Which intervals `[N, S]` between bin edges `tdist [N, S+1]` touch an occupied segment."""
        edges = self.to_segments(tdist)
        starts = edges[:, :-1].floor().long()
        ends = edges[:, 1:].ceil().long()
        return self.cum_occupied.gather(1, ends) > self.cum_occupied.gather(1, starts)

    def mean_density(self, tdist: Tensor) -> Tensor:
        """Mean density `[N, S]` of each interval between bin edges `tdist [N, S+1]`."""
        edges = self.to_segments(tdist)
        segment = edges.floor().clamp(max=self.num_segments - 1).long()
        low, high = (self.cum_density.gather(1, segment + i) for i in (0, 1))
        cumulative = low + (edges - segment) * (high - low)
        return cumulative.diff(dim=-1) / edges.diff(dim=-1).clamp(min=1e-6)

    def to_segments(self, tdist: Tensor) -> Tensor:
        """Bin edges `[N, S+1]` in units of a segment, from 0 to P."""
        fraction = (tdist - self.near) / (self.far - self.near)
        return (self.num_segments * fraction).clamp(0, self.num_segments)


@torch.no_grad()
def build_occupancy_grid(density: Callable, box: Tensor, max_queries: int) -> OccupancyGrid | None:
    """The `OccupancyGrid` of a model, or None if less than half of its cells are empty.

    density: a function of means and variances `[M, 3]` of Gaussians that returns `[M]`; box:
    `[2, 3]`, which contains all rays: the grid is the smallest cube around it; max_queries: samples
    per call of `density`.
    """
    size = float((box[1] - box[0]).max())
    origin = 0.5 * (box[0] + box[1]) - 0.5 * size
    occupied = torch.ones(1, 1, 1, dtype=torch.bool, device=box.device)
    for resolution in (RESOLUTION // 2, RESOLUTION):
        candidates = F.interpolate(_dilate(occupied)[None, None].float(),
                                   size=(resolution,) * 3)[0, 0] > 0
        cell_size = size / resolution
        grid = torch.zeros_like(candidates, dtype=box.dtype)
        for cells in candidates.nonzero().split(max_queries):
            centres = origin + (cells.flip(-1) + 0.5) * cell_size
            grid[tuple(cells.T)] = density(centres, torch.full_like(centres, cell_size**2 / 12))
        # NaN counts as occupied.
        grid = grid.nan_to_num(nan=1 / cell_size, posinf=1e6 / cell_size)
        grid = grid.where(-torch.expm1(-cell_size * grid) >= MIN_OPACITY, 0.0)
        occupied = grid > 0
        if occupied.float().mean() > 0.5:
            return None
    return OccupancyGrid(grid[None, None], origin, cell_size, max_queries)


def _dilate(cells):
    """Occupied cells `[R, R, R]` and all their neighbours."""
    return F.max_pool3d(cells[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0


@dataclass(frozen=True)
class MarchGrid:
    """How far a ray may jump from a cell of the cube that a hash grid covers.

    skip: uint8 `[R, R, R]` by x, y and z: 0 in occupied cells, otherwise the distance in cells
    (the largest along an axis) to the nearest one, at most 255; centre `[3]`, side: of the cube, in
    the coordinates of rays, or contracted ones with `contraction`.
    """

    skip: Tensor
    centre: Tensor
    side: float
    contraction: bool

    @classmethod
    def from_cells(cls, occupied: Tensor, centre: Tensor, side: float,
                   contraction: bool) -> "MarchGrid":
        """Build from bool cells `[R, R, R]`."""
        from scipy.ndimage import distance_transform_cdt  # Slow to import.

        cells = occupied.cpu().numpy()
        if cells.any():
            distance = distance_transform_cdt(~cells, metric="chessboard")
        else:
            distance = np.full(cells.shape, 255)
        skip = torch.from_numpy(np.minimum(distance, 255).astype(np.uint8))
        return cls(skip, centre, side, contraction)

    @property
    def occupied_fraction(self) -> float:
        """Fraction of the cells that are occupied."""
        return float((self.skip == 0).float().mean())


@torch.no_grad()
def find_occupied(opacity: Callable[[Tensor], Tensor], resolution: int,
                  among: Tensor | None = None) -> Tensor:
    """Which cells `[R, R, R]` of the unit cube hold something, by x, y and z.

    opacity: a function from points `[M, 3]` in the unit cube to the opacity `[M]` of a cell of the
    density there; NaN counts as occupied. Near centres with some opacity, thin surfaces are also
    looked for at 4 points between a cell's centre and its corners. among: bool `[R, R, R]`, the
    cells that may hold something; all if None.
    """
    among = torch.ones(3 * (resolution,), dtype=torch.bool) if among is None else among
    cells, at_centres = among.nonzero(), torch.zeros(among.shape)
    at_centres[among] = opacity((cells + 0.5) / resolution)
    occupied = ~(at_centres < MIN_OPACITY)
    near_some = _dilate(~(at_centres < CANDIDATE_OPACITY))
    candidates = (near_some & among & ~occupied).nonzero()
    corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    points = (candidates[:, None] + 0.5 + 0.25 * corners) / resolution
    found = ~(opacity(points.reshape(-1, 3)) < MIN_OPACITY)
    occupied[tuple(candidates.T)] = found.reshape(-1, len(corners)).any(dim=-1)
    return occupied


def halved(cells: Tensor) -> Tensor:
    """Cells `[R, R, R]` as cells of half the width, `[2R, 2R, 2R]`."""
    for axis in range(3):
        cells = cells.repeat_interleave(2, dim=axis)
    return cells
