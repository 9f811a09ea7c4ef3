"""Where a scene is empty: a grid that tells which parts of rays a model need not be asked about.

Cells are cubes in the coordinates of rays. (Models of all space gain nothing: nearly all of their
rays end at something, and proposals have found the empty part already.)
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Cells along a side; at first half as many, of which the occupied ones are looked at more closely.
RESOLUTION = 128

# The finest grid and the coarser ones above it.
SIDES = [RESOLUTION >> level for level in range(RESOLUTION.bit_length())]

# A cell is empty if what passes through it loses less than this share of its light.
SMALLEST_OPACITY = 0.005


@dataclass(frozen=True)
class Occupancy:
    """cells: bool, of grids of 128, 64, … 1 cells along a side, one after another, by x, y and z: 1
    where that cell or one of its neighbours holds something; low `[3]`: the grids' corner; step:
    side of a finest cell."""

    cells: Tensor
    low: Tensor
    step: float

    def between(self, starts, ends):
        """Whether there may be something on the way from `starts` to `ends`, both `[..., 3]`.

        Outside of the grid there may.
        """
        # Where a cell is as long as half of the way, all of it is in the middle's cell and its
        # neighbours.
        half = 0.5 * (ends - starts).norm(dim=-1) / self.step
        level = half.clamp(min=1).log2().ceil().nan_to_num(nan=0.0).clamp(max=len(SIDES) - 1).long()
        place = (0.5 * (starts + ends) - self.low) / (self.step * RESOLUTION)
        inside = ((place >= 0) & (place < 1)).all(dim=-1)
        side = RESOLUTION >> level
        cell = (place.nan_to_num(nan=0.0) * side[..., None]).long()
        cell = cell.clamp(min=0).minimum(side[..., None] - 1)
        x, y, z = cell.unbind(-1)
        # Of the finer grids before it, which shrink by 8.
        first = (RESOLUTION**3 - side**3) * 8 // 7
        return self.cells[first + (x * side + y) * side + z] | ~inside


@torch.no_grad()
def find_occupancy(density, box, at_once=1 << 16):
    """The `Occupancy` of a model, or None where less than half of a coarse grid is empty.

    density: a function of means and variances `[M, 3]` of Gaussians that gives `[M]`; box:
    `[2, 3]`, the scene's, about which the smallest cube is laid; at_once: how many Gaussians
    `density` is asked about in one call.
    """
    size = float((box[1] - box[0]).max())
    low = 0.5 * (box[0] + box[1]) - 0.5 * size
    occupied = torch.ones(1, 1, 1, dtype=torch.bool, device=box.device)
    for side in (RESOLUTION // 2, RESOLUTION):
        wanted = F.interpolate(_dilated(occupied)[None, None].float(), size=(side,) * 3)[0, 0] > 0
        step = size / side
        occupied = torch.zeros_like(wanted)
        for part in wanted.nonzero().split(at_once):
            centres = low + (part + 0.5) * step
            opacity = -torch.expm1(-step * density(centres, torch.full_like(centres, step**2 / 12)))
            # What is no number counts as something.
            occupied[tuple(part.T)] = ~(opacity < SMALLEST_OPACITY)
        if occupied.float().mean() > 0.5:
            return None
    pyramid = []
    while True:
        pyramid.append(_dilated(occupied).flatten())
        if len(occupied) == 1:
            return Occupancy(torch.cat(pyramid), low, size / RESOLUTION)
        occupied = F.max_pool3d(occupied[None, None].float(), 2)[0, 0] > 0


def _dilated(cells):
    """Cells with all their neighbours."""
    return F.max_pool3d(cells[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0
