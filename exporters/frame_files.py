"""The files of a video's frames: images, images with alpha, and measured distances."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import image_utils
from relighting.radiance_files import radiance_size
from runtime.errors import UserError
from runtime.files import atomic_file

# Kinds of frames that are files for other programs, and are not shown beside the others.
RGBA, DISTANCES = "rgba", "distances"


def frame_file(folder: Path, kind: str, index: int) -> Path:
    """The file of a frame's image."""
    suffix = "exr" if kind == DISTANCES else "png"
    return folder / "frames" / f"{kind}_{index:05d}.{suffix}"


def is_complete(path: Path, size: tuple[int, int]) -> bool:
    """Whether an image file of this size (width, height) exists and can be read."""
    try:
        if path.suffix == ".exr":
            return path.exists() and radiance_size(path) == size
        return path.exists() and image_utils.read_image(path, 3).shape[1::-1] == size
    except UserError:
        return False


def straight_rgba(rgb: Tensor, acc: Tensor, background: float) -> Tensor:
    """Colours `[h, w, 3]` and opacities `[h, w]` as `[h, w, 4]`, not multiplied by alpha.

    rgb: composited over the background, which is removed.
    """
    alpha = acc[..., None].clamp(0, 1)
    rgb = (rgb - (1 - alpha) * background) / alpha.clamp(min=1e-3)
    return torch.cat([rgb.clamp(0, 1), alpha], dim=-1)


def write_distances(path: Path, distance: Tensor, depth: Tensor, acc: Tensor) -> None:
    """Atomically write an OpenEXR file of float32 channels. Raises UserError if that fails.

    distance `[h, w]` from the camera; Z, the depth along its axis; A, the opacity.
    """
    import OpenEXR

    values = {"distance": distance, "Z": depth, "A": acc}
    channels = {name: np.ascontiguousarray(x.float().cpu().numpy()) for name, x in values.items()}
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with atomic_file(path) as temporary, OpenEXR.File(header, channels) as file:
        file.write(str(temporary))
