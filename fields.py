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
    """density: `[..., S]` per unit of the rays' coordinates; rgb: `[..., S, 3]`, or as many
    channels as the field has. None where there is none or it was not wanted."""

    density: Tensor | None
    rgb: Tensor | None


class Field(nn.Module):
    """From features of samples to density and colour: what the fields share.

    A subclass makes `trunk`, then calls `_make_heads`; it has `_encode`, from what `forward` is
    given to features `[..., S, F]`, and `_activate`, from raw density to density; and
    `gaussians_of`, which makes what it is given.
    has_density, has_rgb: which of the two there are; channels: numbers per colour; view_inputs:
    numbers that the view branch is given.
    compute_dtype: of the linear layers alone. The arguments of encodings, raw density and colour
    stay float32: rounding 2^15 x to 8 bits would leave noise of the angle.
    """

    def __init__(self, *, has_rgb, use_viewdirs, view_deg, view_skip, density_bias, rgb_padding,
                 compute_dtype, has_density, channels, view_inputs):
        super().__init__()
        self.has_rgb, self.use_viewdirs = has_rgb, use_viewdirs and has_rgb
        self.has_density, self.channels, self.view_inputs = has_density, channels, view_inputs
        self.view_deg, self.view_skip = view_deg, view_skip
        self.density_bias, self.rgb_padding = density_bias, rgb_padding
        self.compute_dtype = compute_dtype

    def _make_heads(self, size, *, bottleneck, view_hidden, view_depth, init):
        """The layers behind a trunk that is `size` wide; then weights are drawn, biases zero."""
        if self.has_density:
            self.density = nn.Linear(size, 1)
        self.view = nn.ModuleList()
        if self.use_viewdirs:
            self.bottleneck = nn.Linear(size, bottleneck)
            size = inputs = bottleneck + self.view_inputs * (1 + 2 * self.view_deg)
            for i in range(view_depth):
                self.view.append(nn.Linear(size, view_hidden))
                size = view_hidden + (inputs if skips_after(i, self.view_skip) else 0)
        if self.has_rgb:
            self.rgb = nn.Linear(size, self.channels)
        fill = {"glorot": nn.init.xavier_uniform_, "he": nn.init.kaiming_uniform_}[init]
        for layer in self.layers():
            fill(layer.weight)
            nn.init.zeros_(layer.bias)

    def layers(self):
        """All linear layers in the official code's order."""
        density = [self.density] if self.has_density else []
        bottleneck = [self.bottleneck] if self.use_viewdirs else []
        rgb = [self.rgb] if self.has_rgb else []
        return [*self.trunk, *density, *bottleneck, *self.view, *rgb]

    def forward(self, gaussians, viewdirs=None, density_noise=None, with_rgb=True):
        """Density and colour of Gaussians.

        gaussians: `[..., S]`, of the field's kind; viewdirs: `[..., 3]` unit vectors, the same for
        all S, or `[..., K, 3]`, from each of which a single Gaussian (S = 1) is seen: then K takes
        the place of S in the colours; density_noise: `[..., S]`, added to raw density; with_rgb:
        whether colour is wanted, where there is any.
        """
        with_rgb = with_rgb and self.has_rgb
        encoding = self._encode(gaussians)
        shape = encoding.shape[:-1]
        if self.use_viewdirs and with_rgb and viewdirs.dim() == len(shape):
            viewdirs = viewdirs[..., None, :]
        with torch.autocast(encoding.device.type, self.compute_dtype, enabled=self._is_reduced()):
            # Rows, not rays: an activation in place on a view would cost copies in the backward.
            features = self._features(encoding.flatten(0, -2))
            raw_density = self.density(features) if self.has_density else None
            raw_rgb = self._raw_rgb(features, viewdirs, shape) if with_rgb else None
        density = rgb = None
        if self.has_density:
            raw_density = raw_density.to(encoding.dtype).reshape(shape)
            if density_noise is not None:
                raw_density = raw_density + density_noise
            density = self._activate(raw_density + self.density_bias)
        if with_rgb:
            raw_rgb = raw_rgb.to(encoding.dtype)
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
        """Raw colours `[..., S, C]` of features `[N, size]` of samples of some `shape`."""
        if not self.use_viewdirs:
            return self.rgb(features).reshape(*shape, self.channels)
        encoded = coord.pos_enc(viewdirs, 0, self.view_deg)
        inputs = self.bottleneck(features)
        first, width = self.view[0], inputs.shape[-1]
        # The shares of position and direction in the first layer are computed once for each.
        of_direction = F.linear(encoded, first.weight[:, width:], first.bias)
        of_position = F.linear(inputs, first.weight[:, :width]).reshape(*shape, first.out_features)
        x = of_position + of_direction
        shape = x.shape[:-1]
        x = F.relu(x.flatten(0, -2), inplace=True)
        for i, layer in enumerate(self.view[1:], 1):
            x = F.relu(layer(x), inplace=True)
            if skips_after(i, self.view_skip):
                both = inputs.reshape(*of_position.shape[:-1], width), encoded.to(x.dtype)
                both = [v.expand(*shape, -1).flatten(0, -2) for v in both]
                x = torch.cat([x, *both], dim=-1)
        return self.rgb(x).reshape(*shape, self.channels)


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
        compute_dtype=torch.float32, has_density=True, channels=3, view_inputs=3,
    ):
        super().__init__(has_rgb=has_rgb, use_viewdirs=use_viewdirs, view_deg=view_deg,
                         view_skip=view_skip, density_bias=density_bias, rgb_padding=rgb_padding,
                         compute_dtype=compute_dtype, has_density=has_density, channels=channels,
                         view_inputs=view_inputs)
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

    @staticmethod
    def gaussians_of(means, covs):
        """Gaussians `[..., S]` of this field's kind; covs: `[..., S, 3]` or `[..., S, 3, 3]`."""
        return coord.Gaussians(means, covs)

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
        compute_dtype=torch.float32, has_density=True, channels=3, view_inputs=3,
    ):
        super().__init__(has_rgb=has_rgb, use_viewdirs=use_viewdirs, view_deg=view_deg,
                         view_skip=view_skip, density_bias=density_bias, rgb_padding=rgb_padding,
                         compute_dtype=compute_dtype, has_density=has_density, channels=channels,
                         view_inputs=view_inputs)
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

    @staticmethod
    def gaussians_of(means, covs):
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
