"""Zip-NeRF's field: an anti-aliased multiresolution hash grid and small MLPs."""

import math

import torch
from torch import nn

import coord
from fields import hash_grid
from fields.base import Field

# A grid begins near zero, so that its first gradients decide.
TABLE_INIT_RANGE = 1e-4

# Of the ball that holds contracted space.
CONTRACTED_RADIUS = 2.0

# Beyond exp of this, a density says nothing more and a gradient too much.
MAX_LOG_DENSITY = 15.0


class HashField(Field):
    """Zip-NeRF's field: an anti-aliased multiresolution hash grid and small networks.

    levels: of the grid, a `hash_grid.Levels`; features: numbers per entry.
    num_multisamples: round Gaussians per sample, whose features are averaged.
    downweight: whether a level counts the less, the larger a Gaussian is beside its cells.
    contraction: whether all of space is contracted into the grid; else it lies in `box [2, 3]`,
        the smallest cube about it.
    Other arguments as in `MLPField`; there is no skip connection in the trunk.
    """

    def __init__(
        self, *, levels, features, num_multisamples, downweight, hidden, depth, density_bias,
        has_rgb=True, bottleneck=None, view_hidden=0, view_depth=0, view_skip=4,
        use_viewdirs=False, view_deg=0, rgb_padding=0.0, contraction=False, init="glorot",
        compute_dtype=torch.float32, has_density=True, channels=3, view_inputs=3,
    ):
        super().__init__(has_rgb=has_rgb, use_viewdirs=use_viewdirs, view_deg=view_deg,
                         view_skip=view_skip, density_bias=density_bias, rgb_padding=rgb_padding,
                         compute_dtype=compute_dtype, has_density=has_density, channels=channels,
                         view_inputs=view_inputs)
        self.levels, self.num_multisamples = levels, num_multisamples
        self.downweight, self.contraction = downweight, contraction
        self.table = nn.Parameter(torch.empty(levels.num_entries, features))
        nn.init.uniform_(self.table, -TABLE_INIT_RANGE, TABLE_INIT_RANGE)
        self.register_buffer("box", CONTRACTED_RADIUS * torch.tensor([[-1.0] * 3, [1.0] * 3]))
        resolutions = torch.tensor(levels.resolutions, dtype=torch.get_default_dtype())
        self.register_buffer("resolutions", resolutions, persistent=False)
        sizes = [len(levels.sizes) * features] + depth * [hidden]
        self.trunk = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes, sizes[1:], strict=False))
        self.build_heads(sizes[-1], bottleneck=bottleneck or hidden, view_hidden=view_hidden,
                         view_depth=view_depth, init=init)

    @staticmethod
    def make_gaussians(means, covs):
        """Gaussians `[..., S]` of this field's kind; covs: `[..., S, 3]` or `[..., S, 3, 3]`."""
        variance = covs if covs.dim() == means.dim() else covs.diagonal(dim1=-2, dim2=-1)
        stds = variance.mean(dim=-1).sqrt()
        return coord.IsotropicGaussians(means[..., None, :], stds[..., None])

    def _encode(self, gaussians):
        """Features `[..., S, L F]` of `IsotropicGaussians`."""
        if self.contraction:
            gaussians = coord.contract_isotropic(*gaussians)
        means, stds = gaussians
        low, high = self.box
        side = (high - low).max()
        points = (means - 0.5 * (low + high)) / side + 0.5
        cells = (stds / side)[..., None] * self.resolutions
        weights = downweights(cells) if self.downweight else torch.ones_like(cells)
        groups = stds.shape[:-1]
        found = hash_grid.encode(points.reshape(-1, *means.shape[-2:]),
                                 weights.reshape(-1, *cells.shape[-2:]), self.table, self.levels)
        return found.reshape(*groups, found.shape[-1])

    def activate_density(self, raw_density):
        return raw_density.clamp(max=MAX_LOG_DENSITY).exp()

    def grid_decay(self):
        """The sum over levels of the mean square of their entries (Zip-NeRF, section 4)."""
        parts = self.table.split(self.levels.sizes)
        return sum((part**2).mean() for part in parts)


def downweights(cells):
    """The share of a round Gaussian within a cell's width of its mean (Zip-NeRF, eq. 5).

    cells: its standard deviation in widths of a cell, any shape. Per axis, as in the paper.
    """
    return torch.erf(1 / (math.sqrt(8) * cells).clamp(min=torch.finfo(cells.dtype).tiny))
