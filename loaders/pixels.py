"""Read the pixels of a scene into memory, or memory-map a cache file of them."""

import hashlib
import logging
import mmap
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import image_utils
from runtime.errors import UserError
from runtime.files import new_folder, remove_abandoned, try_lock, writable_folder
from runtime.reading import check_file

logger = logging.getLogger(__name__)

CACHE_FILE = "pixels.bin"


class Source(NamedTuple):
    """An image or mask file, and how it becomes an image of the scene. Sizes are (width, height).

    file: its path; None for a mask that keeps all pixels.
    full_size: the size to which it is resized by area averages.
    scale: the factor by which the result is then downsampled, from its top left part to `size`.
    """

    file: str | None
    full_size: tuple[int, int]
    scale: int
    size: tuple[int, int]

    @property
    def num_pixels(self) -> int:
        """The pixels of the image."""
        return self.size[0] * self.size[1]

    def crop(self, image: np.ndarray) -> np.ndarray:
        """The part of an image of `full_size` that is downsampled."""
        width, height = self.size
        return image[: height * self.scale, : width * self.scale]


# In memory.


def read_pixels_of(sources: Sequence[Source], num_channels: int) -> Tensor:
    """The pixels of images one after another as uint8 `[P, num_channels]`."""
    pixels = np.empty((sum(source.num_pixels for source in sources), num_channels), dtype=np.uint8)
    first = 0
    for source in sources:
        image = image_utils.read_image(source.file, num_channels)
        image = source.crop(image_utils.resize_area(image, *source.full_size))
        small = image_utils.resize_area(image, *source.size)
        pixels[first : first + source.num_pixels] = small.reshape(-1, num_channels)
        first += source.num_pixels
    return torch.from_numpy(pixels)


def read_masks_of(sources: Sequence[Source]) -> Tensor:
    """The pixels of masks one after another as uint8 `[P]`: 1 if all pixels downsampled to it are.
    """
    return torch.from_numpy(np.concatenate([_read_mask(source).reshape(-1) for source in sources]))


def _read_mask(source):
    if source.file is None:
        return np.ones(source.num_pixels, dtype=np.uint8)
    mask = source.crop(image_utils.read_mask(source.file, *source.full_size))
    width, height = source.size
    return mask.reshape(height, source.scale, width, source.scale).min(axis=(1, 3))


def composite(pixels: Tensor, background: float) -> Tensor:
    """uint8 pixels `[..., C]`, with straight alpha if C is 4, as float RGB on a background."""
    values = pixels.float() / 255
    if values.shape[-1] == 3:
        return values
    rgb, alpha = values[..., :3], values[..., 3:]
    return rgb * alpha + background * (1 - alpha)


# Memory-mapped.


def memory_mapped(root: Path, sources: Sequence[Source], num_bytes: int,
                  read: Callable[[Sequence[Source]], Tensor]) -> Tensor:
    """Memory-mapped uint8 `[P, num_bytes]`; the cache file is written once, image by image.

    read: a function of sources that returns their bytes.
    The file is in a hidden folder of the scene `root`, or in the user's cache if that is read-only.
    Its name depends on the files' names, sizes and times. Raises UserError if it is truncated.
    """
    states = [source.file and file_state(source.file) for source in sources]
    sizes = [list(source.size if source.scale == 1 else source[1:]) for source in sources]
    folder = _cache_folder(root, repr((str(root.resolve()), states, sizes, num_bytes)))
    count = sum(source.num_pixels for source in sources) * num_bytes
    if not folder.is_dir():
        logger.info("Writing %.1f GB of pixels to %s, once ...", count / 1e9, folder)
        remove_abandoned(folder, CACHE_FILE)
        with new_folder(folder) as unfinished, open(unfinished / CACHE_FILE, "wb") as out:
            try_lock(out)
            for source in sources:
                out.write(read([source]).numpy())
            out.flush()
            os.fsync(out.fileno())
    found = (folder / CACHE_FILE).stat().st_size
    if found != count:
        raise UserError(f"{folder / CACHE_FILE} has {found:,} bytes and should have {count:,}; "
                        f"remove {folder}, and it will be rebuilt.")
    return map_bytes(folder / CACHE_FILE).reshape(-1, num_bytes)


def _cache_folder(root, key):
    """The folder of a scene's cache file with this key, whether or not it exists."""
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    folder = root / ".pixels" / digest
    if folder.is_dir():
        return folder
    return writable_folder(root / ".pixels", f"{root.name}_pixels") / digest


def map_bytes(path: Path) -> Tensor:
    """The bytes of a file `[M]`, memory-mapped and read-only."""
    with open(path, "rb") as file:
        # A private writable mapping would reserve memory for the whole file.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.frombuffer(mapped, dtype=np.uint8))


def file_state(file: str | Path) -> tuple[str, int, int]:
    """A file's name, size and modification time, which change when its content does."""
    check_file(file, "but the scene's metadata lists it, so restore it")
    info = os.stat(file)
    return str(file), info.st_size, info.st_mtime_ns
