"""Zip-NeRF's field: an anti-aliased multiresolution hash grid and small MLPs."""

import math

import torch
from torch import Tensor, nn

import coord
from fields import hash_grid
from fields.base import Field, Head, Trunk

# Initialise tables near zero: uniform in plus or minus this range.
TABLE_INIT_RANGE = 1e-4

# Radius of the ball that contains contracted space.
CONTRACTED_RADIUS = 2.0

# Clamp the exponent of density to keep gradients finite.
MAX_LOG_DENSITY = 15.0


class HashField(Field):
    """Zip-NeRF's field: an anti-aliased multiresolution hash grid and small networks.

    trunk: without a skip connection (`Trunk.skip` is None).
    levels: a `hash_grid.Levels`; features: numbers per table entry.
    num_multisamples: isotropic Gaussians per sample, whose features are averaged.
    downweight: whether features of levels finer than the Gaussian are attenuated (Zip-NeRF's
        anti-aliasing).
    contraction: whether the grid covers contracted space; if not, it covers the smallest cube
        around the buffer `box [2, 3]`.
    Other arguments as in `Field` and `Field.build_heads`.
    """

    box: Tensor
    resolutions: Tensor

    def __init__(self, trunk: Trunk, head: Head | None, *, levels: hash_grid.Levels, features: int,
                 num_multisamples: int, downweight: bool, density_bias: float,
                 contraction: bool = False, init: str = "glorot",
                 compute_dtype: torch.dtype = torch.float32, has_density: bool = True):
        super().__init__(head, density_bias=density_bias, has_density=has_density,
                         compute_dtype=compute_dtype)
        self.levels, self.num_multisamples = levels, num_multisamples
        self.downweight, self.contraction = downweight, contraction
        self.table = nn.Parameter(torch.empty(levels.table_size, features))
        nn.init.uniform_(self.table, -TABLE_INIT_RANGE, TABLE_INIT_RANGE)
        self.register_buffer("box", CONTRACTED_RADIUS * torch.tensor([[-1.0] * 3, [1.0] * 3]))
        resolutions = torch.tensor(levels.resolutions, dtype=torch.get_default_dtype())
        self.register_buffer("resolutions", resolutions, persistent=False)
        sizes = [len(levels.resolutions) * features] + trunk.depth * [trunk.hidden]
        self.trunk = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes, sizes[1:], strict=False))
        self.build_heads(sizes[-1], trunk.hidden, init)

    @staticmethod
    def make_gaussians(means: Tensor, covs: Tensor) -> coord.IsotropicGaussians:
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
        stds_in_cells = (stds / side)[..., None] * self.resolutions
        weights = downweights(stds_in_cells) if self.downweight else torch.ones_like(stds_in_cells)
        features = hash_grid.encode(
            points.reshape(-1, *means.shape[-2:]),
            weights.reshape(-1, *stds_in_cells.shape[-2:]), self.table, self.levels)
        return features.reshape(*stds.shape[:-1], features.shape[-1])

    def activate_density(self, raw_density: Tensor) -> Tensor:
        """Exponential, with a clamped exponent."""
        return raw_density.clamp(max=MAX_LOG_DENSITY).exp()

    def grid_decay(self) -> Tensor:
        """Sum over levels of the mean square of their entries (Zip-NeRF, section 4)."""
        levels = self.table.split(self.levels.num_entries)
        return sum((level**2).mean() for level in levels)


def downweights(stds_in_cells: Tensor) -> Tensor:
    """Fraction of an isotropic Gaussian within half a cell of its mean, per axis (Zip-NeRF, eq. 5).

    stds_in_cells: its standard deviation in cell widths, of any shape. 0.383 at one cell.
    """
    smallest = torch.finfo(stds_in_cells.dtype).tiny
    return torch.erf(1 / (math.sqrt(8) * stds_in_cells).clamp(min=smallest))
