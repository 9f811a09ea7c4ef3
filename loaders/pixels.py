"""Pixels of a scene: read into memory, or memory-mapped."""

import hashlib
import mmap
import os
import warnings

import numpy as np
import torch

import image_utils
from runtime.errors import UserError
from runtime.files import new_folder, remove_abandoned, try_lock, writable_folder

PIXELS = "pixels.bin"


def read_pixels_of(files, sizes, num_channels):
    """All images, made `sizes [N, 2]` big by area averages, as uint8 `[P, num_channels]`."""
    pixels = np.empty((int(sizes.prod(dim=-1).sum()), num_channels), dtype=np.uint8)
    first = 0
    for file, (width, height) in zip(files, sizes.tolist(), strict=True):
        image = image_utils.read_image(file, num_channels)
        small = image_utils.resize_area(image, width, height)
        pixels[first : first + width * height] = small.reshape(-1, num_channels)
        first += width * height
    return torch.from_numpy(pixels)


def read_masks_of(files, sizes):
    """All masks, in the images' `sizes [N, 2]`, as uint8 `[P]`; ones for a file that is None."""
    masks = [
        np.ones(width * height, dtype=np.uint8) if file is None
        else image_utils.read_mask(file, width, height).reshape(-1)
        for file, (width, height) in zip(files, sizes.tolist(), strict=True)
    ]
    return torch.from_numpy(np.concatenate(masks))


def memory_mapped(root, files, sizes, num_channels, read):
    """What `read(files, sizes)` gives, uint8 `[P, num_channels]`, in a file and not in memory.

    What is touched is read from there, and memory for it is given back when others need it. The
    file is made once, in a hidden folder of the scene `root`, or of the user's cache where that
    cannot be written.
    """
    facts = repr((str(root.resolve()), [file and state_of(file) for file in files],
                  sizes.tolist(), num_channels))
    digest = hashlib.sha256(facts.encode()).hexdigest()[:16]
    folder = root / ".pixels" / digest
    if not folder.is_dir():
        folder = writable_folder(root / ".pixels", f"{root.name}_pixels") / digest
    count = int(sizes.prod(dim=-1).sum()) * num_channels
    if not folder.is_dir():
        print(f"Writing {count / 1e9:.1f} GB of pixels to {folder}, once ...", flush=True)
        remove_abandoned(folder, PIXELS)
        with new_folder(folder) as unfinished, open(unfinished / PIXELS, "wb") as out:
            try_lock(out)
            for i in range(len(files)):
                out.write(read(files[i : i + 1], sizes[i : i + 1]).numpy())
            out.flush()
            os.fsync(out.fileno())
    found = (folder / PIXELS).stat().st_size
    if found != count:
        raise UserError(f"{folder / PIXELS} has {found:,} bytes and should have {count:,}; remove "
                        f"{folder}, and it is made again.")
    return map_bytes(folder / PIXELS).reshape(-1, num_channels)


def map_bytes(path):
    """The bytes of a file `[M]`, read when they are touched, and never to be written."""
    with open(path, "rb") as file:
        # Memory that might be written would be counted as if all of it were there.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.frombuffer(mapped, dtype=np.uint8))


def state_of(file):
    """What changes when a file does: its name, size and time."""
    try:
        info = os.stat(file)
    except FileNotFoundError:
        raise UserError(f"{file} is missing, though the scene's files name it.") from None
    return str(file), info.st_size, info.st_mtime_ns


def composite(pixels, background):
    """8-bit pixels `[..., C]`, with straight alpha if C is 4, as float RGB on a background."""
    values = pixels.float() / 255
    if values.shape[-1] == 3:
        return values
    rgb, alpha = values[..., :3], values[..., 3:]
    return rgb * alpha + background * (1 - alpha)
