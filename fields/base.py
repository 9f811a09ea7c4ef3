"""Base class of the fields: encoded samples to density and colour."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import coord
from fields.appearance import AffineAppearance, AppendedAppearance

# Normals of gradients whose squared length is smaller are shorter than 1.
MIN_SQUARED_GRADIENT = 2.0**-23


@dataclass(frozen=True)
class Trunk:
    """The layers between the encoding and the heads.

    hidden, depth: width and number of layers; skip: the encoding is concatenated again after each
    layer whose index is a positive multiple of it, as in the official code (None: never).
    """

    hidden: int
    depth: int
    skip: int | None = None


@dataclass(frozen=True)
class Head:
    """The layers between the trunk and colour; a field without colour has no `Head`.

    bottleneck: width between trunk and view branch (None: the trunk's); view_hidden, view_depth,
    view_skip: the view branch, of at least one layer, as in `Trunk`; view_deg: number of scales
    of its encoded input; use_viewdirs: whether there is a bottleneck and a view branch;
    rgb_padding: how far colours may leave [0, 1]; channels: of a colour; view_inputs: size of the
    view branch's input before encoding; glo_features: size of the appearance embedding of an
    image (0: none); glo_affine: whether it scales and shifts the bottleneck (Zip-NeRF), instead of
    being an input of the view branch (mip-NeRF 360); predicts_normals: whether a linear layer after
    the trunk predicts normals (Ref-NeRF, section 4).
    """

    bottleneck: int | None
    view_hidden: int
    view_depth: int
    view_skip: int
    view_deg: int
    use_viewdirs: bool
    rgb_padding: float
    channels: int = 3
    view_inputs: int = 3
    glo_features: int = 0
    glo_affine: bool = False
    predicts_normals: bool = False

    def __post_init__(self):
        if self.use_viewdirs and self.view_depth < 1:
            raise ValueError(f"view_depth is {self.view_depth}; at least 1 is expected with "
                             "use_viewdirs")
        if self.glo_features and not self.use_viewdirs:
            raise ValueError(f"glo_features is {self.glo_features}; 0 is expected without "
                             "use_viewdirs")


class FieldOutput(NamedTuple):
    """Output of a field for Gaussians `[..., S]`.

    density: `[..., S]` per unit of the rays' coordinates; rgb: `[..., S, C]` for C channels;
    raw_density: `[..., S]`, before the bias and the activation; predicted_normals: those of the
    linear layer; density_normals: those of `normals.query_with_normals`; both `[..., S, 3]`, unit
    vectors in the rays' coordinates. None if the field lacks it or it was not requested.
    """

    density: Tensor | None
    rgb: Tensor | None
    raw_density: Tensor | None = None
    predicted_normals: Tensor | None = None
    density_normals: Tensor | None = None


class Field(nn.Module, ABC):
    """Base class: encoded samples to density and colour.

    A subclass sets `trunk` (a list of layers), then calls `build_heads`; it defines `_encode`, from
    Gaussians to features `[..., S, F]`; `activate_density`, from raw density to density; and
    `make_gaussians`, from means and covariances to the kind of Gaussians that it takes.

    head: a `Head`, or None for a field without colour; has_density: whether there is a density.
    compute_dtype: dtype of the linear layers. Arguments of encodings, raw density and raw colour
    stay float32: with 8 bits, rounding errors of 2^15 x would exceed a full turn of its sine.
    """

    trunk: nn.ModuleList
    num_multisamples: int

    def __init__(self, head: Head | None, *, density_bias: float, has_density: bool,
                 compute_dtype: torch.dtype):
        super().__init__()
        self.head, self.has_density = head, has_density
        self.use_viewdirs = head is not None and head.use_viewdirs
        self.predicts_normals = head is not None and head.predicts_normals
        self.density_bias, self.compute_dtype = density_bias, compute_dtype

    def build_heads(self, size: int, hidden: int, init: str):
        """Add the layers after the trunk, then initialise all weights.

        size: of the trunk's output; hidden: default width of the bottleneck; init: "glorot" or
        "he", both uniform. Biases start at zero.
        """
        if self.has_density:
            self.density = nn.Linear(size, 1)
        if self.predicts_normals:
            self.normal = nn.Linear(size, 3)
        self.view = nn.ModuleList()
        if self.use_viewdirs:
            head, bottleneck = self.head, self.head.bottleneck or hidden
            self.bottleneck = nn.Linear(size, bottleneck)
            size = inputs = (bottleneck + head.view_inputs * (1 + 2 * head.view_deg)
                             + (0 if head.glo_affine else head.glo_features))
            for i in range(head.view_depth):
                self.view.append(nn.Linear(size, head.view_hidden))
                size = head.view_hidden + (inputs if is_skip_layer(i, head.view_skip) else 0)
        if self.head is not None:
            self.rgb = nn.Linear(size, self.head.channels)
        fills: dict[str, Callable] = {"glorot": nn.init.xavier_uniform_,
                                      "he": nn.init.kaiming_uniform_}
        for layer in self.layers():
            fills[init](layer.weight)
            nn.init.zeros_(layer.bias)
        if self.use_viewdirs and head.glo_features:
            self.appearance: nn.Module = (AffineAppearance(head.glo_features, bottleneck)
                                          if head.glo_affine else AppendedAppearance())

    @property
    def needs_full_covariance(self) -> bool:
        """Whether full covariances are encoded differently from diagonal ones."""
        return False

    @abstractmethod
    def make_gaussians(self, means: Tensor, covs: Tensor) -> Any:
        """Gaussians `[..., S]` of this field's kind; covs: `[..., S, 3]` or `[..., S, 3, 3]`."""

    @abstractmethod
    def _encode(self, gaussians) -> Tensor:
        """Features `[..., S, F]` of Gaussians."""

    @abstractmethod
    def activate_density(self, raw_density: Tensor) -> Tensor:
        """Raw density, with its bias, to density."""

    def layers(self) -> list[nn.Linear]:
        """All linear layers in the official code's order."""
        density = [self.density] if self.has_density else []
        normal = [self.normal] if self.predicts_normals else []
        bottleneck = [self.bottleneck] if self.use_viewdirs else []
        rgb = [self.rgb] if self.head is not None else []
        return [*self.trunk, *density, *normal, *bottleneck, *self.view, *rgb]

    def reference_params(self, name: str) -> dict[str, Tensor]:
        """The weights of all linear layers as views, (in, out), and their biases.

        name: a format of the arrays' names, with `{index}` of a layer and `{kind}`, kernel or bias.
        """
        parameters = {}
        for index, layer in enumerate(self.layers()):
            parameters[name.format(index=index, kind="kernel")] = layer.weight.t()
            parameters[name.format(index=index, kind="bias")] = layer.bias
        return parameters

    def forward(self, gaussians, viewdirs: Tensor | None = None,
                density_noise: Tensor | None = None, with_rgb: bool = True,
                appearance: Tensor | None = None) -> FieldOutput:
        """Density and colour of Gaussians.

        gaussians: `[..., S]`, of the field's kind. viewdirs: `[..., V]` inputs of the view branch
        (unit directions in most models), the same for all S; or `[..., K, V]` for a single
        Gaussian (S = 1), whose colours are then `[..., K, C]`. density_noise: `[..., S]`, added to
        raw density. with_rgb: whether to evaluate colour and predicted normals, if there are any.
        appearance: `[..., N]` embeddings, the same for all S (`Head.glo_features`); zero if None.
        """
        with_rgb = with_rgb and self.head is not None
        encoding = self._encode(gaussians)
        raw_density, raw_rgb, raw_normals = self._raw_outputs(
            encoding, viewdirs, with_rgb, appearance)
        density = rgb = normals = None
        if self.has_density:
            raw_density = raw_density.to(encoding.dtype)
            if density_noise is not None:
                raw_density = raw_density + density_noise
            density = self.activate_density(raw_density + self.density_bias)
        if with_rgb:
            raw_rgb, padding = raw_rgb.to(encoding.dtype), self.head.rgb_padding
            rgb = torch.sigmoid(raw_rgb) * (1 + 2 * padding) - padding
        if raw_normals is not None:
            normals = normals_from_gradients(raw_normals.to(encoding.dtype))
        return FieldOutput(density, rgb, raw_density, normals)

    def _raw_outputs(self, encoding, viewdirs, with_rgb, appearance):
        """Raw density `[..., S]`, colours `[..., S, C]` and normals `[..., S, 3]`, or None."""
        shape = encoding.shape[:-1]
        if self.use_viewdirs and with_rgb and viewdirs.dim() == len(shape):
            viewdirs = viewdirs[..., None, :]
        with torch.autocast(encoding.device.type, self.compute_dtype,
                            enabled=self.is_low_precision()):
            # Flatten to rows: an in-place activation on a reshaped view would make autograd copy
            # the gradient.
            features = self.trunk_features(encoding.flatten(0, -2))
            raw_density = self.density(features).reshape(shape) if self.has_density else None
            raw_normals = (self.normal(features).reshape(*shape, 3)
                           if with_rgb and self.predicts_normals else None)
            raw_rgb = (self._raw_rgb(features, viewdirs, shape, appearance)
                       if with_rgb else None)
        return raw_density, raw_rgb, raw_normals

    def trunk_features(self, encoding: Tensor) -> Tensor:
        """The trunk's output `[N, size]` for encodings `[N, F]`."""
        x = encoding
        for layer in self.trunk:
            x = F.relu(layer(x), inplace=True)
        return x

    def is_low_precision(self) -> bool:
        """Whether the linear layers run in less than float32."""
        return self.compute_dtype != torch.float32

    def _raw_rgb(self, features, viewdirs, shape, appearance):
        """Raw colours `[..., S, C]` from trunk features `[N, size]` of samples of a `shape`."""
        if not self.use_viewdirs:
            return self.rgb(features).reshape(*shape, self.head.channels)
        encoded = coord.pos_enc(viewdirs, 0, self.head.view_deg)
        inputs = self.bottleneck(features)
        if self.head.glo_features:
            inputs, encoded = self._with_appearance(inputs, encoded, shape, appearance)
        first, width = self.view[0], inputs.shape[-1]
        # The first layer is linear: its terms of direction and position are computed once per ray
        # and once per sample, then added.
        direction_term = F.linear(encoded, first.weight[:, width:], first.bias)
        position_term = F.linear(inputs, first.weight[:, :width])
        position_term = position_term.reshape(*shape, first.out_features)
        x = position_term + direction_term
        shape = x.shape[:-1]
        x = F.relu(x.flatten(0, -2), inplace=True)
        for i, layer in enumerate(self.view[1:], 1):
            x = F.relu(layer(x), inplace=True)
            if is_skip_layer(i, self.head.view_skip):
                skip_inputs = (inputs.reshape(*position_term.shape[:-1], width),
                               encoded.to(x.dtype))
                skip_inputs = [v.expand(*shape, -1).flatten(0, -2) for v in skip_inputs]
                x = torch.cat([x, *skip_inputs], dim=-1)
        return self.rgb(x).reshape(*shape, self.head.channels)

    def _with_appearance(self, bottleneck, encoded, shape, appearance):
        """The bottleneck `[N, W]` and encoded directions `[..., 1, E]`, changed by embeddings."""
        if appearance is None:
            appearance = encoded.new_zeros(self.head.glo_features)
        else:
            appearance = appearance[..., None, :]
        bottleneck = bottleneck.reshape(*shape, bottleneck.shape[-1])
        bottleneck, encoded = self.appearance(bottleneck, encoded, appearance)
        return bottleneck.flatten(0, -2), encoded


def normals_from_gradients(gradients: Tensor) -> Tensor:
    """Normals against gradients `[..., 3]` of density: unit vectors, shorter for tiny gradients.

    The smallest squared length that is divided by is that of the released code of Ref-NeRF, for
    finite derivatives at 0.
    """
    squared = (gradients**2).sum(dim=-1, keepdim=True)
    return -gradients * squared.clamp(min=MIN_SQUARED_GRADIENT).rsqrt()


def is_skip_layer(index: int, skip: int | None) -> bool:
    """Whether a network's inputs are concatenated again after its layer `index`."""
    return skip is not None and index > 0 and index % skip == 0
