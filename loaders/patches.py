"""Square patches of images, from which --robust trains."""

import torch
from torch import Tensor

from presets import PATCH_SIDE
from runtime.errors import UserError
from structures import Scene


def check_holds_patches(scene: Scene, config) -> None:
    """Raise UserError if an image is smaller than a patch of --robust."""
    width, height = scene.cameras.sizes.amin(dim=0).tolist()
    if config.robust and min(width, height) < PATCH_SIDE:
        raise UserError(f"--robust trains on patches of {PATCH_SIDE}x{PATCH_SIDE} pixels, but the "
                        f"smallest images of {config.scene} are {width} wide or {height} high; "
                        "lower --factor, or leave the flag out.")


def pixels_of_patches(pixels: Tensor, offsets: Tensor, sizes: Tensor) -> Tensor:
    """Indices `[N * PATCH_SIDE**2]` into all pixels, of the patches about `pixels [N]`.

    offsets: `[M + 1]`, the first pixel of each image; sizes: `[M, 2]`, width and height of each, at
    least those of a patch. Patches lie within their image: one about a pixel near the edge is
    moved, which covers the pixels at the edge more evenly than corners drawn at random. Patches
    follow one another, each row by row.
    """
    image = torch.searchsorted(offsets, pixels, right=True) - 1
    width, height = sizes[image].unbind(-1)
    within = pixels - offsets[image]
    half = PATCH_SIDE // 2
    left = (within % width - half).clamp(min=0).minimum(width - PATCH_SIDE)
    top = (within // width - half).clamp(min=0).minimum(height - PATCH_SIDE)
    side = torch.arange(PATCH_SIDE)
    rows = offsets[image, None] + (top[:, None] + side) * width[:, None]
    return (rows[:, :, None] + left[:, None, None] + side).flatten()
