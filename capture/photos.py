"""An images folder from a folder of photographs, or from a video."""

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from capture.hdr import is_hdr, tone_mapped_frames
from image_utils import (
    IMAGE_SUFFIXES,
    MODES,
    ORIENTATION_TAG,
    image_size,
    list_images,
    read_image,
    register_heif,
)
from loaders.folders import image_folder, log_left_out
from runtime.errors import UserError
from runtime.files import new_folder
from runtime.reading import is_heif

logger = logging.getLogger(__name__)

# Fewest images of a capture.
MIN_IMAGES = 3

# A frame's sharpness is measured at this width, or at its own if that is smaller.
SHARPNESS_WIDTH = 480

# Formats that every version of COLMAP reads.
COMMON_SUFFIXES = {".jpg", ".jpeg", ".png"}

# Names of maps that scanning apps write beside their photographs.
OTHER_MAPS = re.compile(r"(^|[_.-])(depth|confidence|conf|mask|disparity|normal)([_.-]|\d*$)", re.I)

# Quality of the JPEGs of video frames and of rotated photographs.
JPEG_QUALITY = 95

# Factors of the smaller copies of the images, as long as no side falls below MIN_SIDE.
REDUCTIONS = (2, 4, 8)
MIN_SIDE = 64


def make_images(source: Path, folder: Path, num_frames: int) -> Path:
    """Write upright RGB photographs, or the sharpest video frames, to `folder` if it is missing.

    source: a folder of photographs, or a video file, of which `num_frames` frames are used.
    Returns `folder`. Raises UserError if there are too few images.
    """
    if not folder.is_dir():
        with new_folder(folder) as unfinished:
            if source.is_dir():
                copy_photographs(source, unfinished)
            else:
                extract_frames(source, unfinished, num_frames)
    logger.info("%d images in %s.", len(list_images(folder)), folder)
    return folder


def write_smaller_copies(scene: Path) -> None:
    """Make `images_2` and so on of a scene's `images` by area averages, down to a useful size."""
    shortest = min(min(image_size(file)) for file in list_images(scene / "images"))
    for factor in REDUCTIONS:
        if shortest // factor >= MIN_SIDE:
            image_folder(scene, factor)


# Photographs.


def copy_photographs(source: Path, folder: Path) -> None:
    """Copy a folder's photographs; unreadable ones are left out and logged.

    Raises UserError if fewer than `MIN_IMAGES` are readable.
    """
    files = list_images(source)
    others = [file for file in files if OTHER_MAPS.search(file.stem)]
    readable = [file for file in files if file not in others and is_readable(file)]
    log_left_out(source, "depth or confidence map(s) or mask(s)", [file.name for file in others])
    log_left_out(source, "image(s) that cannot be read",
                 [file.name for file in files if file not in readable and file not in others])
    log_left_out(source, "file(s) that are no images", sorted(
        path.name for path in source.rglob("*") if path.is_file() and path not in files
        and not path.name.startswith(".")))
    if len(readable) < MIN_IMAGES:
        raise UserError(f"{source} holds {len(readable)} readable images "
                        f"({', '.join(sorted(IMAGE_SUFFIXES))}); at least {MIN_IMAGES} are "
                        "expected, and some dozens are usual.")
    for file in readable:
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_upright(file, target)


def is_readable(file: Path) -> bool:
    """Whether a file is a complete image. Raises UserError for HEIC without its package."""
    try:
        if is_heif(file):
            register_heif(file)
        with Image.open(file) as image:
            image.load()
            return image.mode in MODES | {"CMYK"}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False  # Pillow raises these for damaged files.


def copy_upright(file: Path, target: Path) -> None:
    """Copy an upright RGB photograph byte by byte; rotate and convert any other.

    Cameras store their orientation beside the pixels, and not every reader applies it. Formats that
    COLMAP may not read become JPEGs, or PNGs if they are transparent.
    """
    with Image.open(file) as image:
        upright = image.getexif().get(ORIENTATION_TAG, 1) == 1
        is_common = file.suffix.lower() in COMMON_SUFFIXES and not is_heif(file)
        if upright and is_common and image.mode in ("RGB", "RGBA"):
            shutil.copyfile(file, target)
            return
        rotated = ImageOps.exif_transpose(image)
        exif, transparent = rotated.getexif(), "A" in image.mode
        if image.mode.startswith("I;16"):
            rotated = ImageOps.exif_transpose(Image.fromarray(read_image(file, 3)))
        if not is_common:
            target = target.with_name(target.name + (".png" if transparent else ".jpg"))
        rotated.convert("RGBA" if transparent else "RGB").save(
            target, quality=JPEG_QUALITY, subsampling=0, exif=exif)


# Videos.


def extract_frames(video: Path, folder: Path, count: int) -> None:
    """Write the sharpest frame of each of `count` equal sections of a video, as JPEGs.

    Raises UserError if the file is not a video, or has fewer than `MIN_IMAGES` frames.
    """
    sharpness = [frame_sharpness(frame) for frame in decode_frames(video)]
    if len(sharpness) < MIN_IMAGES:
        raise UserError(f"{video} is not a readable video with {MIN_IMAGES} frames or more; give "
                        "a folder of photographs or another video (MP4, MOV, AVI).")
    sections = np.array_split(np.arange(len(sharpness)), min(count, len(sharpness)))
    chosen = {int(frames[np.argmax(np.take(sharpness, frames))]) for frames in sections}
    logger.info("The sharpest %d of %d frames are used.", len(chosen), len(sharpness))
    for index, frame in enumerate(decode_frames(video)):
        if index in chosen:
            image = Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            image.save(folder / f"frame_{index:06d}.jpg", quality=JPEG_QUALITY, subsampling=0)


def decode_frames(video: Path) -> Iterator[np.ndarray]:
    """The frames of a video in order, uint8 BGR `[h, w, 3]`, upright; HDR is tone-mapped."""
    if is_hdr(video):
        yield from tone_mapped_frames(video)
        return
    capture = cv2.VideoCapture(str(video))
    try:
        while True:
            success, frame = capture.read()
            if not success:
                return
            yield frame
    finally:
        capture.release()


def frame_sharpness(frame: np.ndarray) -> float:
    """The variance of the Laplacian of a BGR frame, which blur reduces."""
    grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    scale = min(1, SHARPNESS_WIDTH / grey.shape[1])
    small = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.Laplacian(small, cv2.CV_64F).var()
