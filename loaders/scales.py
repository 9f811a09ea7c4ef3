"""The images of a capture at several scales in one set, as in Zip-NeRF's multiscale benchmark."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from loaders.pixels import Source
from runtime.errors import UserError
from structures import Cameras, concatenate

# All sets hold the images at the first scale, then those at the next one, and so on. `scales` are
# downsampling factors, beginning with 1. As in the released code, images are cropped at the right
# and bottom to a multiple of all factors before they are downsampled; those at scale 1 are not.


def cameras_at_scales(cameras: Cameras, scales: Sequence[int]) -> Cameras:
    """Cameras of the images at all scales.

    A pixel of scale s has the loss weight s; in mip-NeRF, and Multicam, it is s².
    """
    multiple = math.lcm(*scales)
    return concatenate([cameras, *(
        replace(cameras, sizes=cameras.sizes // multiple * (multiple // scale),
                pixtocams=cameras.pixtocams * torch.tensor([scale, scale, 1.0]),
                lossmult=cameras.lossmult * scale)
        for scale in scales[1:]
    )])


def scale_labels(count: int, scales: Sequence[int]) -> Tensor | None:
    """`Scene.labels` of `count` images at all scales: log2 of the factors; None for one scale."""
    if len(scales) == 1:
        return None
    return torch.tensor(scales).log2().long().repeat_interleave(count)


def check_sizes(files: Sequence, sizes: Tensor, scales: Sequence[int]) -> None:
    """Raise UserError if an image has no pixel left at the coarsest scale."""
    multiple = math.lcm(*scales)
    for file, (width, height) in zip(files, sizes.tolist(), strict=True):
        if min(width, height) < multiple:
            raise UserError(f"{file} is used at {width}x{height}; --scales "
                            f"{' '.join(map(str, scales))} needs at least {multiple} pixels per "
                            "side, so use fewer scales, or a smaller --factor.")


def image_sources(files: Sequence, sizes: Tensor, scales: Sequence[int]) -> list[Source]:
    """The `Source` of each file of a scene; sizes: `[N, 2]` of its cameras, at all scales."""
    sides = [(width, height) for width, height in sizes.tolist()]
    count = len(files) // len(scales)
    return [Source(file, sides[i % count], scales[i // count], sides[i])
            for i, file in enumerate(files)]
