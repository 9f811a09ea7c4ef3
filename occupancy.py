"""What a trained scene holds where: a grid of densities that saves asking the model for them.

It tells which parts of rays are empty, and about how dense the others are. Cells are cubes in the
coordinates of rays. (Models of all space gain nothing: nearly all of their rays end at something,
and proposals have found the empty part already.)
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Cells along a side; at first half as many, of which the occupied ones are looked at more closely.
RESOLUTION = 128

# A cell is empty if what passes through it loses less than this share of its light.
SMALLEST_OPACITY = 0.005


@dataclass(frozen=True)
class Occupancy:
    """density: `[1, 1, 128, 128, 128]` of the cells by z, y and x, 0 where they are empty; low
    `[3]`: the grid's corner; step: side of a cell."""

    density: Tensor
    low: Tensor
    step: float

    def along(self, rays):
        """The `Profile` of flat rays. Outside of the grid, where no training ray went, it is empty.

        A part is not longer than a cell, and its density is interpolated between the cells about
        its middle; so it is 0 only if no cell that the part touches holds anything.
        """
        spans = (rays.far - rays.near) * rays.directions.norm(dim=-1, keepdim=True)
        longest = float(spans.max()) if len(spans) else 0.0
        num_parts = max(1, math.ceil(longest / self.step))
        middles = (torch.arange(num_parts, device=spans.device) + 0.5) / num_parts
        t = rays.near + (rays.far - rays.near) * middles
        points = rays.origins[:, None] + t[..., None] * rays.directions[:, None]
        places = 2 * (points - self.low) / (self.step * RESOLUTION) - 1
        found = F.grid_sample(self.density, places[None, None], align_corners=False)
        return Profile.of(found[0, 0, 0], rays.near, rays.far)


@dataclass(frozen=True)
class Profile:
    """About the density of N rays, in P parts of equal length between near and far.

    occupied, mass: `[N, P+1]`, of the parts before each fence post how many hold something, and the
    sum of their densities; near, far: `[N, 1]`.
    """

    occupied: Tensor
    mass: Tensor
    near: Tensor
    far: Tensor

    @classmethod
    def of(cls, density, near, far):
        """Of the parts' `density [N, P]`."""
        sums = torch.stack([(density > 0).to(density.dtype), density]).cumsum(dim=-1)
        return cls(*F.pad(sums, (1, 0)), near, far)

    def __getitem__(self, index):
        return Profile(*(value[index] for value in vars(self).values()))

    @property
    def num_parts(self):
        return self.mass.shape[1] - 1

    def holds_something(self):
        """Which rays do: `[N]`."""
        return self.occupied[:, -1] > 0

    def may_hold_something(self, tdist):
        """Which of the intervals between fence posts `[N, S+1]` do: `[N, S]`."""
        place = self._place(tdist)
        starts = place[:, :-1].floor().long()
        ends = place[:, 1:].ceil().long()
        return self.occupied.gather(1, ends) > self.occupied.gather(1, starts)

    def mean_density(self, tdist):
        """Of the intervals between fence posts `[N, S+1]`: `[N, S]`."""
        place = self._place(tdist)
        before = place.floor().clamp(max=self.num_parts - 1).long()
        low, high = self.mass.gather(1, before), self.mass.gather(1, before + 1)
        mass = low + (place - before) * (high - low)
        return mass.diff(dim=-1) / place.diff(dim=-1).clamp(min=1e-6)

    def _place(self, tdist):
        """Fence posts in lengths of a part, from 0 to P."""
        share = (tdist - self.near) / (self.far - self.near)
        return (self.num_parts * share).clamp(0, self.num_parts)


@torch.no_grad()
def find_occupancy(density, box, at_once=1 << 16):
    """The `Occupancy` of a model, or None where less than half of a coarse grid is empty.

    density: a function of means and variances `[M, 3]` of Gaussians that gives `[M]`; box:
    `[2, 3]`, which holds all rays, and about which the smallest cube is laid; at_once: how many
    Gaussians `density` is asked about in one call.
    """
    size = float((box[1] - box[0]).max())
    low = 0.5 * (box[0] + box[1]) - 0.5 * size
    occupied = torch.ones(1, 1, 1, dtype=torch.bool, device=box.device)
    for side in (RESOLUTION // 2, RESOLUTION):
        wanted = F.interpolate(_dilated(occupied)[None, None].float(), size=(side,) * 3)[0, 0] > 0
        step = size / side
        found = torch.zeros_like(wanted, dtype=box.dtype)
        for part in wanted.nonzero().split(at_once):
            centres = low + (part.flip(-1) + 0.5) * step
            found[tuple(part.T)] = density(centres, torch.full_like(centres, step**2 / 12))
        # What is no number counts as something.
        found = found.nan_to_num(nan=1 / step)
        found = found.where(-torch.expm1(-step * found) >= SMALLEST_OPACITY, 0.0)
        occupied = found > 0
        if occupied.float().mean() > 0.5:
            return None
    return Occupancy(found[None, None], low, step)


def _dilated(cells):
    """Cells with all their neighbours."""
    return F.max_pool3d(cells[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0
