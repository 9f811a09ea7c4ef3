"""Networks from Gaussians and view directions to density and colour."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import coord


class FieldOutput(NamedTuple):
    """density: `[..., S]` per unit of the rays' coordinates; rgb: `[..., S, 3]`, or None."""

    density: Tensor
    rgb: Tensor | None


class MLPField(nn.Module):
    """mip-NeRF's network: IPE, a trunk with a skip connection, and a view-dependent branch.

    hidden, depth: width and number of the trunk's layers; the encoding is concatenated again
        after each layer whose index is a positive multiple of `skip`, as in the official code.
    has_rgb: whether there are colours; a proposal field has none.
    bottleneck: width between trunk and view branch, `hidden` if None.
    view_hidden, view_depth: of the branch that sees the view direction; none without viewdirs.
    contraction: whether all of space is contracted first (mip-NeRF 360).
    basis: "axes", or "icosahedron" for mip-NeRF 360's off-axis encoding.
    init: of the weights, "glorot" or "he" (both uniform); biases begin at zero.
    compute_dtype: of the linear layers alone. The arguments of the encoding, raw density and
        colour stay float32: rounding 2^15 x to 8 bits would leave noise of the angle.
    """

    def __init__(
        self, *, hidden, depth, skip, min_deg, max_deg, density_bias, has_rgb=True,
        bottleneck=None, view_hidden=0, view_depth=0, use_viewdirs=False, view_deg=0,
        rgb_padding=0.0, contraction=False, basis="axes", init="glorot",
        compute_dtype=torch.float32,
    ):
        super().__init__()
        self.min_deg, self.max_deg, self.view_deg = min_deg, max_deg, view_deg
        self.use_viewdirs, self.skip, self.has_rgb = use_viewdirs and has_rgb, skip, has_rgb
        self.density_bias, self.rgb_padding = density_bias, rgb_padding
        self.contraction, self.compute_dtype = contraction, compute_dtype
        directions = coord.icosahedron_basis() if basis == "icosahedron" else None
        self.register_buffer("basis", directions, persistent=False)
        encoding_size = 2 * (21 if basis == "icosahedron" else 3) * (max_deg - min_deg)
        view_size = 3 + 6 * view_deg
        self.trunk = nn.ModuleList()
        size = encoding_size
        for i in range(depth):
            self.trunk.append(nn.Linear(size, hidden))
            size = hidden + encoding_size if self._skips_after(i) else hidden
        self.density = nn.Linear(size, 1)
        self.view = nn.ModuleList()
        if self.use_viewdirs:
            width = bottleneck or hidden
            self.bottleneck = nn.Linear(size, width)
            size = width + view_size
            for _ in range(view_depth):
                self.view.append(nn.Linear(size, view_hidden))
                size = view_hidden
        if has_rgb:
            self.rgb = nn.Linear(size, 3)
        fill = {"glorot": nn.init.xavier_uniform_, "he": nn.init.kaiming_uniform_}[init]
        for layer in self.layers():
            fill(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def wants_full_covariances(self):
        """Whether Gaussians with full covariances are encoded differently from diagonal ones."""
        return self.contraction or self.basis is not None

    def layers(self):
        """All linear layers in the official code's order."""
        bottleneck = [self.bottleneck] if self.use_viewdirs else []
        rgb = [self.rgb] if self.has_rgb else []
        return [*self.trunk, self.density, *bottleneck, *self.view, *rgb]

    def forward(self, gaussians, viewdirs=None, density_noise=None, with_rgb=True):
        """Density and colour of Gaussians.

        gaussians: `[..., S]` `Gaussians`; viewdirs: `[..., 3]` unit vectors; density_noise:
        `[..., S]`, added to raw density; with_rgb: whether colour is wanted, where there is any.
        """
        with_rgb = with_rgb and self.has_rgb
        shape = gaussians.means.shape[:-1]
        encoding = self._encode(gaussians)
        with torch.autocast(encoding.device.type, self.compute_dtype, enabled=self._is_reduced()):
            # Rows, not rays: an activation in place on a view would cost copies in the backward.
            features = self._features(encoding.flatten(0, -2))
            raw_density = self.density(features)
            raw_rgb = self._raw_rgb(features, viewdirs, shape) if with_rgb else None
        raw_density = raw_density.to(encoding.dtype).reshape(shape)
        if density_noise is not None:
            raw_density = raw_density + density_noise
        density = F.softplus(raw_density + self.density_bias)
        if not with_rgb:
            return FieldOutput(density, None)
        raw_rgb = raw_rgb.to(encoding.dtype).reshape(*shape, 3)
        rgb = torch.sigmoid(raw_rgb) * (1 + 2 * self.rgb_padding) - self.rgb_padding
        return FieldOutput(density, rgb)

    def _encode(self, gaussians):
        """The encoding `[..., S, 2 K L]` of Gaussians along K directions at L scales."""
        if self.contraction:
            gaussians = coord.contract_gaussians(*gaussians)
        if self.basis is not None:
            gaussians = coord.project_gaussians(gaussians, self.basis)
        return coord.integrated_pos_enc(*gaussians, self.min_deg, self.max_deg)

    def _is_reduced(self):
        return self.compute_dtype != torch.float32

    def _skips_after(self, index):
        return index > 0 and index % self.skip == 0

    def _features(self, encoding):
        if self._is_reduced():
            encoding = encoding.to(self.compute_dtype)
        x = encoding
        for i, layer in enumerate(self.trunk):
            x = F.relu(layer(x), inplace=True)
            if self._skips_after(i):
                x = torch.cat([x, encoding], dim=-1)
        return x

    def _raw_rgb(self, features, viewdirs, shape):
        if not self.use_viewdirs:
            return self.rgb(features)
        encoded = coord.pos_enc(viewdirs, 0, self.view_deg)
        x = self.bottleneck(features)
        first, width = self.view[0], x.shape[-1]
        # A ray has one direction, so its share of the first layer is computed once per ray.
        of_ray = F.linear(encoded, first.weight[:, width:], first.bias)
        x = F.linear(x, first.weight[:, :width]).reshape(*shape, first.out_features)
        x = F.relu((x + of_ray[..., None, :]).flatten(0, -2), inplace=True)
        for layer in self.view[1:]:
            x = F.relu(layer(x), inplace=True)
        return self.rgb(x)
