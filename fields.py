"""Networks from Gaussians and view directions to density and colour."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import coord
import hash_grid

# A grid begins near zero, so that its first gradients decide.
TABLE_INIT = 1e-4

# Of the ball that holds contracted space.
CONTRACTED_RADIUS = 2.0

# Beyond exp of this, a density says nothing more and a gradient too much.
LARGEST_EXPONENT = 15.0


class FieldOutput(NamedTuple):
    """density: `[..., S]` per unit of the rays' coordinates; rgb: `[..., S, 3]`, or None."""

    density: Tensor
    rgb: Tensor | None


class Field(nn.Module):
    """From features of samples to density and colour: what the fields share.

    A subclass makes `trunk`, then calls `_make_heads`; it has `_encode`, from what `forward` is
    given to features `[..., S, F]`, and `_activate`, from raw density to density.
    compute_dtype: of the linear layers alone. The arguments of encodings, raw density and colour
    stay float32: rounding 2^15 x to 8 bits would leave noise of the angle.
    """

    def __init__(self, *, has_rgb, use_viewdirs, view_deg, view_skip, density_bias, rgb_padding,
                 compute_dtype):
        super().__init__()
        self.has_rgb, self.use_viewdirs = has_rgb, use_viewdirs and has_rgb
        self.view_deg, self.view_skip = view_deg, view_skip
        self.density_bias, self.rgb_padding = density_bias, rgb_padding
        self.compute_dtype = compute_dtype

    def _make_heads(self, size, *, bottleneck, view_hidden, view_depth, init):
        """The layers behind a trunk that is `size` wide; then weights are drawn, biases zero."""
        self.density = nn.Linear(size, 1)
        self.view = nn.ModuleList()
        if self.use_viewdirs:
            self.bottleneck = nn.Linear(size, bottleneck)
            size = inputs = bottleneck + 3 + 6 * self.view_deg
            for i in range(view_depth):
                self.view.append(nn.Linear(size, view_hidden))
                size = view_hidden + (inputs if skips_after(i, self.view_skip) else 0)
        if self.has_rgb:
            self.rgb = nn.Linear(size, 3)
        fill = {"glorot": nn.init.xavier_uniform_, "he": nn.init.kaiming_uniform_}[init]
        for layer in self.layers():
            fill(layer.weight)
            nn.init.zeros_(layer.bias)

    def layers(self):
        """All linear layers in the official code's order."""
        bottleneck = [self.bottleneck] if self.use_viewdirs else []
        rgb = [self.rgb] if self.has_rgb else []
        return [*self.trunk, self.density, *bottleneck, *self.view, *rgb]

    def forward(self, gaussians, viewdirs=None, density_noise=None, with_rgb=True):
        """Density and colour of Gaussians.

        gaussians: `[..., S]`, of the field's kind; viewdirs: `[..., 3]` unit vectors;
        density_noise: `[..., S]`, added to raw density; with_rgb: whether colour is wanted, where
        there is any.
        """
        with_rgb = with_rgb and self.has_rgb
        encoding = self._encode(gaussians)
        shape = encoding.shape[:-1]
        with torch.autocast(encoding.device.type, self.compute_dtype, enabled=self._is_reduced()):
            # Rows, not rays: an activation in place on a view would cost copies in the backward.
            features = self._features(encoding.flatten(0, -2))
            raw_density = self.density(features)
            raw_rgb = self._raw_rgb(features, viewdirs, shape) if with_rgb else None
        raw_density = raw_density.to(encoding.dtype).reshape(shape)
        if density_noise is not None:
            raw_density = raw_density + density_noise
        density = self._activate(raw_density + self.density_bias)
        if not with_rgb:
            return FieldOutput(density, None)
        raw_rgb = raw_rgb.to(encoding.dtype).reshape(*shape, 3)
        rgb = torch.sigmoid(raw_rgb) * (1 + 2 * self.rgb_padding) - self.rgb_padding
        return FieldOutput(density, rgb)

    def _features(self, encoding):
        """The trunk's output `[N, size]`."""
        x = encoding
        for layer in self.trunk:
            x = F.relu(layer(x), inplace=True)
        return x

    def _is_reduced(self):
        return self.compute_dtype != torch.float32

    def _raw_rgb(self, features, viewdirs, shape):
        if not self.use_viewdirs:
            return self.rgb(features)
        encoded = coord.pos_enc(viewdirs, 0, self.view_deg)
        inputs = self.bottleneck(features)
        first, width = self.view[0], inputs.shape[-1]
        # A ray has one direction, so its share of the first layer is computed once per ray.
        of_ray = F.linear(encoded, first.weight[:, width:], first.bias)
        x = F.linear(inputs, first.weight[:, :width]).reshape(*shape, first.out_features)
        x = F.relu((x + of_ray[..., None, :]).flatten(0, -2), inplace=True)
        for i, layer in enumerate(self.view[1:], 1):
            x = F.relu(layer(x), inplace=True)
            if skips_after(i, self.view_skip):
                of_ray = encoded[..., None, :].expand(*shape, -1).flatten(0, -2)
                x = torch.cat([x, inputs, of_ray.to(x.dtype)], dim=-1)
        return self.rgb(x)


def skips_after(index, skip):
    """Whether a network's inputs are concatenated again after its layer `index`."""
    return index > 0 and index % skip == 0


class MLPField(Field):
    """mip-NeRF's network: IPE, a trunk with a skip connection, and a view-dependent branch.

    hidden, depth: width and number of the trunk's layers; the encoding is concatenated again
        after each layer whose index is a positive multiple of `skip`, as in the official code.
    has_rgb: whether there are colours; a proposal field has none.
    bottleneck: width between trunk and view branch, `hidden` if None.
    view_hidden, view_depth, view_skip: of the branch that sees the view direction; none without
        viewdirs.
    contraction: whether all of space is contracted first (mip-NeRF 360).
    basis: "axes", or "icosahedron" for mip-NeRF 360's off-axis encoding.
    init: of the weights, "glorot" or "he" (both uniform); biases begin at zero.
    """

    num_multisamples = 0

    def __init__(
        self, *, hidden, depth, skip, min_deg, max_deg, density_bias, has_rgb=True,
        bottleneck=None, view_hidden=0, view_depth=0, view_skip=4, use_viewdirs=False, view_deg=0,
        rgb_padding=0.0, contraction=False, basis="axes", init="glorot",
        compute_dtype=torch.float32,
    ):
        super().__init__(has_rgb=has_rgb, use_viewdirs=use_viewdirs, view_deg=view_deg,
                         view_skip=view_skip, density_bias=density_bias, rgb_padding=rgb_padding,
                         compute_dtype=compute_dtype)
        self.min_deg, self.max_deg, self.skip = min_deg, max_deg, skip
        self.contraction = contraction
        directions = coord.icosahedron_basis() if basis == "icosahedron" else None
        self.register_buffer("basis", directions, persistent=False)
        encoding_size = 2 * (21 if basis == "icosahedron" else 3) * (max_deg - min_deg)
        self.trunk = nn.ModuleList()
        size = encoding_size
        for i in range(depth):
            self.trunk.append(nn.Linear(size, hidden))
            size = hidden + (encoding_size if skips_after(i, skip) else 0)
        self._make_heads(size, bottleneck=bottleneck or hidden, view_hidden=view_hidden,
                         view_depth=view_depth, init=init)

    @property
    def wants_full_covariances(self):
        """Whether Gaussians with full covariances are encoded differently from diagonal ones."""
        return self.contraction or self.basis is not None

    def _encode(self, gaussians):
        """The encoding `[..., S, 2 K L]` of Gaussians along K directions at L scales."""
        if self.contraction:
            gaussians = coord.contract_gaussians(*gaussians)
        if self.basis is not None:
            gaussians = coord.project_gaussians(gaussians, self.basis)
        return coord.integrated_pos_enc(*gaussians, self.min_deg, self.max_deg)

    def _features(self, encoding):
        if self._is_reduced():
            encoding = encoding.to(self.compute_dtype)
        x = encoding
        for i, layer in enumerate(self.trunk):
            x = F.relu(layer(x), inplace=True)
            if skips_after(i, self.skip):
                x = torch.cat([x, encoding], dim=-1)
        return x

    def _activate(self, raw_density):
        return F.softplus(raw_density)


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
        compute_dtype=torch.float32,
    ):
        super().__init__(has_rgb=has_rgb, use_viewdirs=use_viewdirs, view_deg=view_deg,
                         view_skip=view_skip, density_bias=density_bias, rgb_padding=rgb_padding,
                         compute_dtype=compute_dtype)
        self.levels, self.num_multisamples = levels, num_multisamples
        self.downweight, self.contraction = downweight, contraction
        self.table = nn.Parameter(torch.empty(levels.num_entries, features))
        nn.init.uniform_(self.table, -TABLE_INIT, TABLE_INIT)
        self.register_buffer("box", CONTRACTED_RADIUS * torch.tensor([[-1.0] * 3, [1.0] * 3]))
        resolutions = torch.tensor(levels.resolutions, dtype=torch.get_default_dtype())
        self.register_buffer("resolutions", resolutions, persistent=False)
        sizes = [len(levels.sizes) * features] + depth * [hidden]
        self.trunk = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes, sizes[1:], strict=False))
        self._make_heads(sizes[-1], bottleneck=bottleneck or hidden, view_hidden=view_hidden,
                         view_depth=view_depth, init=init)

    def _encode(self, gaussians):
        """Features `[..., S, L F]` of `IsotropicGaussians`."""
        if self.contraction:
            gaussians = coord.contract_isotropic(*gaussians)
        means, stds = gaussians
        low, high = self.box
        side = (high - low).max()
        points = (means - 0.5 * (low + high)) / side + 0.5
        cells = (stds / side)[..., None] * self.resolutions
        weights = level_weights(cells) if self.downweight else torch.ones_like(cells)
        groups = stds.shape[:-1]
        found = hash_grid.encode(points.reshape(-1, *means.shape[-2:]),
                                 weights.reshape(-1, *cells.shape[-2:]), self.table, self.levels)
        return found.reshape(*groups, found.shape[-1])

    def _activate(self, raw_density):
        return raw_density.clamp(max=LARGEST_EXPONENT).exp()

    def grid_decay(self):
        """The sum over levels of the mean square of their entries (Zip-NeRF, section 4)."""
        parts = self.table.split(self.levels.sizes)
        return sum((part**2).mean() for part in parts)


def level_weights(cells):
    """The share of a round Gaussian within a cell's width of its mean (Zip-NeRF, eq. 5).

    cells: its standard deviation in widths of a cell, any shape. Per axis, as in the paper.
    """
    return torch.erf(1 / (math.sqrt(8) * cells).clamp(min=torch.finfo(cells.dtype).tiny))
