"""Locate scenes and image folders, and choose the test views."""

import hashlib
import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

import image_utils
from runtime.errors import UserError
from runtime.files import new_folder, writable_folder

logger = logging.getLogger(__name__)

DEMO = "demo"

# Above this relative difference an image does not have the size that a file states.
SIZE_TOLERANCE = 0.01


# Scenes.


def find_scene(config, folders: Sequence[str], write_demo: Callable[[Path], None]) -> Path:
    """The folder of `--scene`. The demo scene is created by `write_demo(folder)` on first use.

    A path is used as it is; a name is searched in `folders` of `--data_dir`, then in `--data_dir`.
    Raises UserError if no such folder exists.
    """
    data_dir = Path(config.data_dir)
    if Path(config.scene).is_absolute():
        candidates = [Path(config.scene)]
    else:
        candidates = [data_dir / folder / config.scene for folder in folders]
        candidates.append(data_dir / config.scene)
    for folder in candidates:
        if folder.is_dir():
            return folder
    if config.scene == DEMO:
        folder = writable_folder(data_dir / folders[0], folders[0]) / DEMO
        if not folder.is_dir():
            logger.info("Creating the demo scene in %s ...", folder)
            write_demo(folder)
        return folder
    searched = " or ".join(str(folder) for folder in candidates)
    raise UserError(
        f"the scene {config.scene!r} is not at {searched}; download it (scripts/download_*.sh) or "
        "set --data_dir and --scene (a name or a path)."
    )


# Image folders.


def image_folder(root: Path, factor: int) -> Path:
    """The folder of images at `factor`: shipped with the scene, or made from the next finer one.

    Raises UserError if the scene ships no images at `factor` or finer.
    """
    name = "images" if factor == 1 else f"images_{factor}"
    if (root / name).is_dir():
        return root / name
    shipped = shipped_folders(root)
    finer = [f for f in shipped if f < factor]
    if not finer:
        available = ", ".join(str(f) for f in sorted(shipped)) or "no images folder at all"
        raise UserError(f"{root} has no images at --factor {factor} or finer; it has: "
                        f"{available}. Set --factor to one of these or a coarser one.")
    source = max(finer)
    # The digest keeps scenes of the same name apart in the cache.
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]
    target = writable_folder(root, f"{root.name}_{digest}") / name
    if not target.is_dir():
        _downsample_folder(shipped[source], target, factor, factor / source)
    return target


def shipped_folders(root: Path) -> dict[int, Path]:
    """The image folders that a scene ships, by factor."""
    shipped = {1: root / "images"} if (root / "images").is_dir() else {}
    for folder in root.glob("images_*"):
        if re.fullmatch("[1-9][0-9]{0,8}", folder.name[7:]) and folder.is_dir():
            shipped[int(folder.name[7:])] = folder
    return shipped


def _downsample_folder(source, target, factor, ratio):
    """Downsample the images of `source` by `ratio`, averaging areas, and write them to `target`."""
    files = image_utils.list_images(source)
    logger.info("Making %d images at --factor %d in %s ...", len(files), factor, target)
    with new_folder(target) as folder:
        for file in files:
            image = image_utils.read_image(file, 4 if image_utils.has_alpha(file) else 3)
            height, width = (max(1, round(side / ratio)) for side in image.shape[:2])
            small = image_utils.resize_area(image, width, height)
            output = folder / file.relative_to(source).with_suffix(".png")
            output.parent.mkdir(parents=True, exist_ok=True)
            image_utils.write_image(output, small)


# Image files.


def find_image(path: Path) -> Path | None:
    """The image file `path`, whose suffix may be missing or differ; None if there is no file.

    If no file has this name, one is taken that only case or Unicode's normal form tells apart:
    Windows ignores case, and macOS decomposes accents.
    """
    if path.is_file():
        return path
    base = path.with_suffix("") if path.suffix.lower() in image_utils.IMAGE_SUFFIXES else path
    suffixes = sorted(image_utils.IMAGE_SUFFIXES)
    candidates = (Path(f"{base}{s}") for s in (*suffixes, *map(str.upper, suffixes)))
    return next((file for file in candidates if file.is_file()), None) or _other_spelling(base)


def _other_spelling(base):
    """The one image whose path without suffix equals `base` but for case and normal form."""
    folder = _other_folder(base.parent)
    files = _by_spelling(folder, folder.stat().st_mtime_ns).get(_spelling(base.name), ()) if (
        folder) else ()
    images = [folder / name for name in files
              if Path(name).suffix.lower() in image_utils.IMAGE_SUFFIXES]
    return images[0] if len(images) == 1 and images[0].is_file() else None


def _other_folder(folder):
    """The folder at a path but for case and normal form; None if there is none, or several."""
    if folder.is_dir() or folder == folder.parent:
        return folder
    parent = _other_folder(folder.parent)
    found = parent and [path for path in parent.iterdir()
                        if _spelling(path.name) == _spelling(folder.name) and path.is_dir()]
    return found[0] if found and len(found) == 1 else None


@lru_cache(maxsize=64)
def _by_spelling(folder, _modified):
    """The names of a folder's files by their `_spelling` without the suffix."""
    names: dict[str, list[str]] = {}
    for path in folder.iterdir():
        names.setdefault(_spelling(path.stem), []).append(path.name)
    return names


def _spelling(name):
    return unicodedata.normalize("NFC", name).casefold()


def located(folder: Path, name: str) -> Path:
    """The path of an image that a JSON file in `folder` names; there may be no such file.

    An absolute path may be of another machine: if it leads to no file, its last parts are tried in
    `folder`, the longest first.
    """
    path = folder / name
    if not re.match("/|[A-Za-z]:/", name) or find_image(path):
        return path
    parts = PurePosixPath(name).parts[1:]
    ends = (folder.joinpath(*parts[i:]) for i in range(len(parts)))
    found = next((end for end in ends if find_image(end)), None)
    if found:
        log_once(f"{folder}: absolute paths such as {name} lead to no file; images of the same "
                 "names in this folder are used.")
    return found or path


def frame_file(folder: Path, name: str) -> Path:
    """The image file of a Blender frame, whose suffix may be missing; a PNG if there is no file."""
    path = located(folder, name)
    has_suffix = path.suffix.lower() in image_utils.IMAGE_SUFFIXES
    return find_image(path) or (path if has_suffix else Path(f"{path}.png"))


def check_different(files: Sequence[Path | None], names: Sequence[str], source: Path) -> None:
    """Raise UserError if two names of `source` lead to one image file; None is no file."""
    first: dict[Path, str] = {}
    for file, name in zip(files, names, strict=True):
        if file and first.setdefault(file, name) != name:
            raise UserError(f"{source} has {first[file]} and {name}, which are both the image "
                            f"{file}; remove one, or add the missing image.")


def find_masks(root: Path, files: Sequence[Path], names: Sequence[str]) -> list[str | None]:
    """The mask of each image file, or None; empty if no image has one. Logs a partial `masks/`.

    names: of the images, relative to their folder of images.
    """
    masks = [find_mask(root, file, name) for file, name in zip(files, names, strict=True)]
    if (root / "masks").is_dir():
        without = [name for name, mask in zip(names, masks, strict=True) if mask is None]
        if without:
            log_once(f"{root / 'masks'} has no mask of {len(without)} of {len(names)} images, such "
                     f"as {without[0]}: all pixels of theirs count.")
    return [mask and str(mask) for mask in masks] if any(masks) else []


def find_mask(root: Path, file: Path, name: str) -> Path | None:
    """The mask of an image, or None: `masks/` of the scene, or instant-ngp's beside the image.

    name: of the image, relative to its folder of images. COLMAP appends .png to the whole name,
    nerfstudio has the image's name with another suffix.
    """
    image = root / "masks" / name
    appended = Path(f"{image}.png"), Path(f"{image.with_name(file.name)}.png")
    found = next((path for path in appended if path.is_file()), None) or find_image(image)
    beside = file.with_name(f"{image_utils.DYNAMIC_MASK}{file.stem}.png")
    return found or (beside if beside.is_file() else None)


def image_channels(files: Sequence[Path], source: Path, alpha: str) -> int:
    """4 if an image of a capture has an alpha channel, else 3; logs what alpha means.

    Reads every image's header. alpha: of the config.
    """
    count = sum(map(image_utils.has_alpha, files))
    if not count:
        return 3
    meaning = ("composited onto the background (--bg_range); --alpha mask leaves transparent "
               "pixels out instead" if alpha == "composite" else "a mask: transparent pixels do "
               "not count")
    log_once(f"{source}: {count} of {len(files)} images have an alpha channel, which is {meaning}.")
    return 4


def has_size(size: np.ndarray, expected: np.ndarray) -> bool:
    """Whether (width, height) are as expected, up to rounding."""
    return bool((np.abs(size - expected) <= np.maximum(1, SIZE_TOLERANCE * expected)).all())


# Views.


def every_nth(split: str, count: int, hold: int, source: Path) -> list[int]:
    """Indices of a split of `count` views: every `hold`-th is for "test" and "val", the rest train.

    All train if `hold` is 0. Raises UserError if the split is empty.
    """
    held_out = [i for i in range(count) if hold and i % hold == 0]
    index = sorted(set(range(count)) - set(held_out)) if split == "train" else held_out
    if not index:
        raise UserError(f"{source} has {count} image(s); with --llffhold {hold} the {split} split "
                        "is empty.")
    return index


def log_left_out(source: Path, reason: str, names: Sequence[str]) -> None:
    """Log one line with the views of `source` that are not used."""
    if names:
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        log_once(f"{source}: left out {len(names)} {reason}: {listed}")


@cache
def log_once(message: str) -> None:
    """Log a line, unless it was logged before: every split reads the same files."""
    logger.info(message)
