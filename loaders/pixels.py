"""Read the pixels of a scene into memory, or memory-map a cache file of them."""

import hashlib
import logging
import mmap
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import image_utils
from runtime.errors import UserError
from runtime.files import new_folder, remove_abandoned, try_lock, writable_folder

logger = logging.getLogger(__name__)

CACHE_FILE = "pixels.bin"


# In memory.


def read_pixels_of(files: Sequence[str], sizes: Tensor, num_channels: int) -> Tensor:
    """All images, resized to `sizes [N, 2]` by area averages, as uint8 `[P, num_channels]`."""
    pixels = np.empty((int(sizes.prod(dim=-1).sum()), num_channels), dtype=np.uint8)
    first = 0
    for file, (width, height) in zip(files, sizes.tolist(), strict=True):
        image = image_utils.read_image(file, num_channels)
        small = image_utils.resize_area(image, width, height)
        pixels[first : first + width * height] = small.reshape(-1, num_channels)
        first += width * height
    return torch.from_numpy(pixels)


def read_masks_of(files: Sequence[str | None], sizes: Tensor) -> Tensor:
    """All masks, resized to `sizes [N, 2]`, as uint8 `[P]`; ones for a file that is None."""
    masks = [
        np.ones(width * height, dtype=np.uint8) if file is None
        else image_utils.read_mask(file, width, height).reshape(-1)
        for file, (width, height) in zip(files, sizes.tolist(), strict=True)
    ]
    return torch.from_numpy(np.concatenate(masks))


def composite(pixels: Tensor, background: float) -> Tensor:
    """uint8 pixels `[..., C]`, with straight alpha if C is 4, as float RGB on a background."""
    values = pixels.float() / 255
    if values.shape[-1] == 3:
        return values
    rgb, alpha = values[..., :3], values[..., 3:]
    return rgb * alpha + background * (1 - alpha)


# Memory-mapped.


def memory_mapped(root: Path, files: Sequence[str | None], sizes: Tensor, num_bytes: int,
                  read: Callable[[Sequence, Tensor], Tensor]) -> Tensor:
    """Memory-mapped uint8 `[P, num_bytes]`; the cache file is written once, image by image.

    read: a function of files and sizes that returns their bytes.
    The file is in a hidden folder of the scene `root`, or in the user's cache if that is read-only.
    Its name depends on the files' names, sizes and times. Raises UserError if it is truncated.
    """
    folder = _cache_folder(root, repr((str(root.resolve()), [file and file_state(file)
                                                             for file in files],
                                       sizes.tolist(), num_bytes)))
    count = int(sizes.prod(dim=-1).sum()) * num_bytes
    if not folder.is_dir():
        logger.info("Writing %.1f GB of pixels to %s, once ...", count / 1e9, folder)
        remove_abandoned(folder, CACHE_FILE)
        with new_folder(folder) as unfinished, open(unfinished / CACHE_FILE, "wb") as out:
            try_lock(out)
            for i in range(len(files)):
                out.write(read(files[i : i + 1], sizes[i : i + 1]).numpy())
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
    try:
        info = os.stat(file)
    except FileNotFoundError:
        raise UserError(f"{file} is missing, but the scene's metadata lists it.") from None
    return str(file), info.st_size, info.st_mtime_ns
