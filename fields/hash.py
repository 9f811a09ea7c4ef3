"""Zip-NeRF's field: an anti-aliased multiresolution hash grid and small MLPs."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

import coord
from fields import fused_mlp, hash_grid
from fields.base import Field, FieldOutput, Head, Trunk, is_skip_layer
from fields.safe_exp import SafeExp

# Features are multiplied by this after the lookup, so that the small steps of Adam move them far
# enough (Zip-NeRF's code).
PRECONDITIONING = 10.0

# Entries start uniform in plus or minus this range.
TABLE_INIT_RANGE = 1e-4 / PRECONDITIONING

# Radius of the ball that contains contracted space.
CONTRACTED_RADIUS = 2.0


class CubeSamples(NamedTuple):
    """Gaussians `[..., S, J]` in a grid's unit cube.

    points: means, `[..., S, J, 3]`; weights: of each level, `[..., S, J, L]`; inside: whether the
    mean of a sample's J points is in the cube, `[..., S]`.
    """

    points: Tensor
    weights: Tensor
    inside: Tensor


class HashField(Field):
    """Zip-NeRF's field: an anti-aliased multiresolution hash grid and small networks.

    trunk: without a skip connection (`Trunk.skip` is None).
    levels: a `hash_grid.Levels`; features: numbers per table entry.
    num_multisamples: isotropic Gaussians per sample, whose features are averaged.
    downweight: whether features of levels finer than the Gaussian are attenuated (Zip-NeRF's
        anti-aliasing); append_scale: whether each level also has a feature of this attenuation.
    contraction: whether the grid covers contracted space; if not, it covers the smallest cube
        around the buffer `box [2, 3]`, outside of which there is no density.
    Other arguments as in `Field` and `Field.build_heads`.
    """

    box: Tensor
    resolutions: Tensor

    def __init__(self, trunk: Trunk, head: Head | None, *, levels: hash_grid.Levels, features: int,
                 num_multisamples: int, downweight: bool, append_scale: bool, density_bias: float,
                 contraction: bool = False, init: str = "glorot",
                 compute_dtype: torch.dtype = torch.float32, has_density: bool = True):
        super().__init__(head, density_bias=density_bias, has_density=has_density,
                         compute_dtype=compute_dtype)
        self.levels, self.num_multisamples = levels, num_multisamples
        self.downweight, self.append_scale = downweight, append_scale
        self.contraction = contraction
        self._kept_scales: tuple = (None, None)
        self.table = nn.Parameter(torch.empty(levels.table_size, features))
        nn.init.uniform_(self.table, -TABLE_INIT_RANGE, TABLE_INIT_RANGE)
        self.register_buffer("box", CONTRACTED_RADIUS * torch.tensor([[-1.0] * 3, [1.0] * 3]))
        resolutions = torch.tensor(levels.resolutions, dtype=torch.get_default_dtype())
        self.register_buffer("resolutions", resolutions, persistent=False)
        size = len(levels.resolutions) * (features + append_scale)
        sizes = [size] + trunk.depth * [trunk.hidden]
        self.trunk = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes, sizes[1:], strict=False))
        self.build_heads(sizes[-1], trunk.hidden, init)

    @staticmethod
    def make_gaussians(means: Tensor, covs: Tensor) -> coord.IsotropicGaussians:
        """Gaussians `[..., S]` of this field's kind; covs: `[..., S, 3]` or `[..., S, 3, 3]`."""
        variance = covs if covs.dim() == means.dim() else covs.diagonal(dim1=-2, dim2=-1)
        stds = variance.mean(dim=-1).sqrt()
        return coord.IsotropicGaussians(means[..., None, :], stds[..., None])

    def cube_samples(self, gaussians: coord.IsotropicGaussians) -> "CubeSamples":
        """Gaussians `[..., S, J]` in the grid's unit cube.

        On a CPU by a kernel, unless the means have a gradient.
        """
        means, stds = gaussians
        differentiable = torch.is_grad_enabled() and means.requires_grad
        if (means.device.type != "cpu" or means.dtype != torch.float32 or differentiable
                or not hash_grid.has_numba()):
            return self.cube_samples_torch(gaussians)
        from fields import kernels_cube

        points, stds, inside = kernels_cube.cube_samples(
            means.detach().flatten(0, -3), stds.detach().flatten(0, -2), self.contraction,
            *self._cube())
        weights = (kernels_cube.level_weights(stds, self.resolutions) if self.downweight
                   else stds.new_ones(*stds.shape, len(self.resolutions)))
        shape = means.shape[:-2]
        return CubeSamples(points.reshape(means.shape), weights.reshape(*shape, *weights.shape[1:]),
                           inside.reshape(shape))

    def cube_samples_torch(self, gaussians: coord.IsotropicGaussians) -> "CubeSamples":
        """`cube_samples` in PyTorch operations, for any device."""
        if self.contraction:
            gaussians = coord.contract_isotropic(*gaussians)
        means, stds = gaussians
        low, side = self._cube()
        points = (means - low) / side
        stds_in_cells = (stds.detach() / side)[..., None] * self.resolutions
        weights = downweights(stds_in_cells) if self.downweight else torch.ones_like(stds_in_cells)
        mean = points.mean(dim=-2)
        return CubeSamples(points, weights, ((mean >= 0) & (mean <= 1)).all(dim=-1))

    def _encode(self, samples: "CubeSamples"):
        """Features `[..., S, L F]`, or `[..., S, L (F + 1)]` with scale."""
        points, weights, _ = samples
        features = hash_grid.encode(points.flatten(0, -3), weights.flatten(0, -3), self.table,
                                    self.levels)
        features = features.reshape(*points.shape[:-2], features.shape[-1])
        if self.append_scale:
            features = self._with_scale(features, weights.mean(dim=-2))
        return features

    def _with_scale(self, features, weights):
        """The features of each level followed by 2 w - 1, in the units of its entries.

        features: `[..., L F]`; weights: `[..., L]`, the mean w of the multisamples.
        """
        scale = (2 * weights - 1) * self._scales_of_entries()
        levels = features.unflatten(-1, (weights.shape[-1], -1))
        return torch.cat([levels, scale[..., None]], dim=-1).flatten(-2)

    def train(self, mode: bool = True):
        # Fused optimizers do not raise the version of a tensor.
        self._kept_scales = None, None
        return super().train(mode)

    @torch.no_grad()
    def _scales_of_entries(self):
        """The root mean square of each level's entries, `[L]`, at least their initial range.

        Kept between the chunks of an image.
        """
        version = None if self.training else (self.table.data_ptr(), self.table._version)
        if version is None or self._kept_scales[0] != version:
            self._kept_scales = version, (TABLE_INIT_RANGE**2 + self.mean_squares()).sqrt()
        return self._kept_scales[1]

    def forward(self, gaussians, viewdirs: Tensor | None = None,
                density_noise: Tensor | None = None, with_rgb: bool = True,
                appearance: Tensor | None = None) -> FieldOutput:
        samples = self.cube_samples(gaussians)
        output = super().forward(samples, viewdirs, density_noise, with_rgb, appearance)
        if self.contraction or output.density is None:
            return output
        return output._replace(density=output.density.where(samples.inside, 0.0))

    def _raw_outputs(self, encoding, viewdirs, with_rgb, appearance):
        shape = encoding.shape[:-1]
        if not self._is_fusable(encoding, viewdirs if with_rgb else None):
            return super()._raw_outputs(
                PRECONDITIONING * encoding, viewdirs, with_rgb, appearance)
        directions = None
        if with_rgb and self.use_viewdirs:
            directions = coord.pos_enc(viewdirs.flatten(0, -2), 0, self.head.view_deg)
        outputs = fused_mlp.query(self, encoding.flatten(0, -2), directions, with_rgb, shape[-1],
                                  PRECONDITIONING)
        density, rgb = outputs.split([1, outputs.shape[-1] - 1], dim=-1)
        rgb = rgb.reshape(*shape, self.head.channels) if with_rgb else None
        return density.reshape(shape), rgb, None

    def _is_fusable(self, encoding, viewdirs):
        """Whether the kernel of the small networks serves; viewdirs: None without colours."""
        if (encoding.device.type != "cpu" or encoding.dtype != torch.float32
                or self.is_low_precision() or not self.has_density or not hash_grid.has_numba()):
            return False
        if viewdirs is None or not self.use_viewdirs:
            return True
        # Other inputs differ between samples, or between directions of one sample.
        skips = any(is_skip_layer(i, self.head.view_skip) for i in range(self.head.view_depth))
        return not (skips or self.head.glo_features) and viewdirs.dim() == encoding.dim() - 1

    def _cube(self) -> tuple[Tensor, Tensor]:
        """The corner `[3]` of the grid's cube and its side."""
        low, high = self.box
        side = (high - low).max()
        return 0.5 * (low + high) - 0.5 * side, side

    def activate_density(self, raw_density: Tensor) -> Tensor:
        """Exponential, with a clamped exponent."""
        return SafeExp.apply(raw_density)

    def table_levels(self) -> tuple[Tensor, ...]:
        """The entries of each level, `[entries, F]`."""
        return self.table.split(self.levels.num_entries)

    def mean_squares(self) -> Tensor:
        """The mean square of each level's entries, `[L]`."""
        return torch.stack([(level**2).mean() for level in self.table_levels()])

    def reference_grids(self, name: str) -> dict[str, Tensor]:
        """The entries of each level as views, named `name/grid_<n>` (dense) or `name/hash_<n>`.

        A dense level is `[n, n, n, F]` by x, y and z, a hashed one `[entries, F]`.
        """
        digits, arrays = len(str(self.levels.resolutions[-1])), {}
        for i, entries in enumerate(self.table_levels()):
            n = self.levels.resolutions[i]
            dense = self.levels.is_dense(i)
            key = f"{name}/{'grid' if dense else 'hash'}_{n:0{digits}d}"
            arrays[key] = entries.unflatten(0, (n, n, n)) if dense else entries
        return arrays

    def grid_decay(self) -> Tensor:
        """Half the mean square of each level's entries, summed (Zip-NeRF, section 4)."""
        return 0.5 * self.mean_squares().sum()


def downweights(stds_in_cells: Tensor) -> Tensor:
    """Fraction of an isotropic Gaussian within half a cell of its mean, per axis (Zip-NeRF, eq. 5).

    stds_in_cells: its standard deviation in cell widths, of any shape; about 0.383 at one cell. The
    error function is approximated as in Zip-NeRF's code, to 0.007.
    """
    smallest = torch.finfo(stds_in_cells.dtype).tiny
    x = 1 / (math.sqrt(8) * stds_in_cells).clamp(min=smallest)
    return (-torch.expm1(-4 / math.pi * x**2)).sqrt()
