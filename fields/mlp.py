"""mip-NeRF's MLP: integrated positional encodings to density and colour."""

import torch
import torch.nn.functional as F
from torch import nn

import coord
from fields.base import Field, is_skip_layer


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
            size = hidden + (encoding_size if is_skip_layer(i, skip) else 0)
        self.build_heads(size, bottleneck=bottleneck or hidden, view_hidden=view_hidden,
                         view_depth=view_depth, init=init)

    @property
    def needs_full_covariance(self):
        """Whether Gaussians with full covariances are encoded differently from diagonal ones."""
        return self.contraction or self.basis is not None

    @staticmethod
    def make_gaussians(means, covs):
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
        if self.is_low_precision():
            encoding = encoding.to(self.compute_dtype)
        x = encoding
        for i, layer in enumerate(self.trunk):
            x = F.relu(layer(x), inplace=True)
            if is_skip_layer(i, self.skip):
                x = torch.cat([x, encoding], dim=-1)
        return x

    def activate_density(self, raw_density):
        return F.softplus(raw_density)
