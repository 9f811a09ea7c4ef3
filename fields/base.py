"""Base class of the fields: encoded samples to density and colour."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import coord


class FieldOutput(NamedTuple):
    """density: `[..., S]` per unit of the rays' coordinates; rgb: `[..., S, 3]`, or as many
    channels as the field has. None where there is none or it was not wanted."""

    density: Tensor | None
    rgb: Tensor | None


class Field(nn.Module):
    """From features of samples to density and colour: what the fields share.

    A subclass makes `trunk`, then calls `build_heads`; it has `_encode`, from what `forward` is
    given to features `[..., S, F]`, and `activate_density`, from raw density to density; and
    `make_gaussians`, which makes what it is given.
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

    def build_heads(self, size, *, bottleneck, view_hidden, view_depth, init):
        """The layers behind a trunk that is `size` wide; then weights are drawn, biases zero."""
        if self.has_density:
            self.density = nn.Linear(size, 1)
        self.view = nn.ModuleList()
        if self.use_viewdirs:
            self.bottleneck = nn.Linear(size, bottleneck)
            size = inputs = bottleneck + self.view_inputs * (1 + 2 * self.view_deg)
            for i in range(view_depth):
                self.view.append(nn.Linear(size, view_hidden))
                size = view_hidden + (inputs if is_skip_layer(i, self.view_skip) else 0)
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
        with torch.autocast(encoding.device.type, self.compute_dtype,
                            enabled=self.is_low_precision()):
            # Rows, not rays: an activation in place on a view would cost copies in the backward.
            features = self._features(encoding.flatten(0, -2))
            raw_density = self.density(features) if self.has_density else None
            raw_rgb = self._raw_rgb(features, viewdirs, shape) if with_rgb else None
        density = rgb = None
        if self.has_density:
            raw_density = raw_density.to(encoding.dtype).reshape(shape)
            if density_noise is not None:
                raw_density = raw_density + density_noise
            density = self.activate_density(raw_density + self.density_bias)
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

    def is_low_precision(self):
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
            if is_skip_layer(i, self.view_skip):
                both = inputs.reshape(*of_position.shape[:-1], width), encoded.to(x.dtype)
                both = [v.expand(*shape, -1).flatten(0, -2) for v in both]
                x = torch.cat([x, *both], dim=-1)
        return self.rgb(x).reshape(*shape, self.channels)


def is_skip_layer(index, skip):
    """Whether a network's inputs are concatenated again after its layer `index`."""
    return index > 0 and index % skip == 0
