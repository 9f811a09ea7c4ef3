"""mip-NeRF's MLP: integrated positional encodings to density and colour."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import coord
from fields.base import Field, Head, Trunk, is_skip_layer


class MLPField(Field):
    """mip-NeRF's network: IPE, a trunk with a skip connection, and a view-dependent branch.

    min_deg, max_deg: the encoding has scales 2^min_deg to 2^(max_deg - 1).
    contraction: whether Gaussians are contracted first (mip-NeRF 360).
    basis: "axes", or "icosahedron" for mip-NeRF 360's off-axis encoding.
    Other arguments as in `Field` and `Field.build_heads`.
    """

    num_multisamples = 0

    def __init__(self, trunk: Trunk, head: Head | None, *, min_deg: int, max_deg: int,
                 density_bias: float, contraction: bool = False, basis: str = "axes",
                 init: str = "glorot", compute_dtype: torch.dtype = torch.float32,
                 has_density: bool = True):
        super().__init__(head, density_bias=density_bias, has_density=has_density,
                         compute_dtype=compute_dtype)
        self.min_deg, self.max_deg, self.skip = min_deg, max_deg, trunk.skip
        self.contraction = contraction
        directions = coord.icosahedron_basis() if basis == "icosahedron" else None
        self.register_buffer("basis", directions, persistent=False)
        num_directions = 3 if directions is None else directions.shape[1]
        encoding_size = 2 * num_directions * (max_deg - min_deg)
        self.trunk = nn.ModuleList()
        size = encoding_size
        for i in range(trunk.depth):
            self.trunk.append(nn.Linear(size, trunk.hidden))
            size = trunk.hidden + (encoding_size if is_skip_layer(i, trunk.skip) else 0)
        self.build_heads(size, trunk.hidden, init)

    @property
    def needs_full_covariance(self) -> bool:
        """Whether Gaussians with full covariances are encoded differently from diagonal ones."""
        return self.contraction or self.basis is not None

    @staticmethod
    def make_gaussians(means: Tensor, covs: Tensor) -> coord.Gaussians:
        """Gaussians `[..., S]` of this field's kind; covs: `[..., S, 3]` or `[..., S, 3, 3]`."""
        return coord.Gaussians(means, covs)

    def _encode(self, gaussians):
        """The encoding `[..., S, 2 K L]` of Gaussians along K directions at L scales."""
        if self.contraction:
            gaussians = coord.contract_gaussians(*gaussians)
        if self.basis is not None:
            gaussians = coord.project_gaussians(gaussians, self.basis)
        return coord.integrated_pos_enc(*gaussians, self.min_deg, self.max_deg)

    def trunk_features(self, encoding: Tensor) -> Tensor:
        if self.is_low_precision():
            encoding = encoding.to(self.compute_dtype)
        x = encoding
        for i, layer in enumerate(self.trunk):
            x = F.relu(layer(x), inplace=True)
            if is_skip_layer(i, self.skip):
                x = torch.cat([x, encoding], dim=-1)
        return x

    def activate_density(self, raw_density: Tensor) -> Tensor:
        """Softplus (mip-NeRF, section 3.1)."""
        return F.softplus(raw_density)
