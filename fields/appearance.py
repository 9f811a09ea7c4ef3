"""Appearance embeddings ("GLO"): a learnt vector per training image, for its exposure and colours.

The forms of the released code: mip-NeRF 360 (multinerf) appends the vector to the inputs of the
view branch, Zip-NeRF (camp_zipnerf) turns it into an affine map of the bottleneck.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fields.safe_exp import SafeExp

# Widths of the layers between an embedding and the affine map, as released.
AFFINE_HIDDEN = (128, 128)

# Standard deviation of a standard normal distribution truncated to [-2, 2].
TRUNCATED_STD = 0.87962566


class ImageEmbeddings(nn.Module):
    """A vector of `features` numbers per training image.

    Normal with variance 1 / features at first, the default of flax's `nn.Embed`: about unit length.
    """

    def __init__(self, num_images: int, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_images, features) / math.sqrt(features))

    def forward(self, image_idx: Tensor) -> Tensor:
        """The vectors `[..., features]` of images `[..., 1]`."""
        return F.embedding(image_idx[..., 0], self.weight)


class AppendedAppearance(nn.Module):
    """Appends an embedding to the view branch's encoded input (mip-NeRF 360)."""

    def forward(self, bottleneck: Tensor, encoded: Tensor, embedding: Tensor
                ) -> tuple[Tensor, Tensor]:
        """The bottleneck and the view branch's encoded input, changed by an embedding.

        bottleneck: `[..., S, W]`; encoded: `[..., 1, E]`; embedding: `[..., 1, N]` or `[N]`.
        """
        embedding = embedding.expand(*encoded.shape[:-1], -1)
        return bottleneck, torch.cat([encoded, embedding], dim=-1)


class AffineAppearance(nn.Module):
    """Scales and shifts the bottleneck by functions of an embedding (Zip-NeRF).

    exp(a) * bottleneck + b, where an MLP with SiLU gives the pairs (a, b). Its weights are
    LeCun-normal, its biases 0 at first. A zero embedding then changes nothing; after training it
    gives the map that the biases learnt.
    """

    def __init__(self, features: int, width: int):
        super().__init__()
        sizes = [features, *AFFINE_HIDDEN, 2 * width]
        layers = [nn.Linear(*pair) for pair in zip(sizes, sizes[1:], strict=False)]
        for layer in layers:
            std = 1 / math.sqrt(layer.in_features) / TRUNCATED_STD
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, bottleneck: Tensor, encoded: Tensor, embedding: Tensor
                ) -> tuple[Tensor, Tensor]:
        """As `AppendedAppearance.forward`."""
        scale, shift = self.scale_and_shift(embedding)
        # Computed once per ray, and applied to each sample in the precision of the layers.
        changed = scale.to(bottleneck.dtype) * bottleneck + shift.to(bottleneck.dtype)
        return changed, encoded

    def scale_and_shift(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift `[..., W]` of the bottleneck for embeddings `[..., N]`."""
        *hidden, last = self.layers
        x = embedding
        for layer in hidden:
            x = F.silu(layer(x))
        pairs = last(x).to(embedding.dtype)
        log_scale, shift = pairs[..., 0::2], pairs[..., 1::2]
        return SafeExp.apply(log_scale), shift
