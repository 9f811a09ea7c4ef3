"""Copies of scenes whose photographs or cameras scripts change."""

import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image  # noqa: E402

import image_utils  # noqa: E402
from capture.photos import JPEG_QUALITY  # noqa: E402
from capture.report import detect_format, scene_config  # noqa: E402
from datasets import DATASETS  # noqa: E402
from loaders.base import SPLITS  # noqa: E402
from loaders.folders import shipped_folders  # noqa: E402
from runtime.errors import UserError  # noqa: E402
from runtime.files import new_folder  # noqa: E402

# Formats whose photographs are found.
FORMATS = ("blender", "llff", "colmap", "nerfstudio")

# Caches of pixels and points, which belong to the original photographs.
CACHES = (".pixels", ".points")


@contextmanager
def copied_scene(source: Path, destination: Path):
    """Yield a copy of a scene's folder, which becomes `destination` if nothing fails.

    Raises UserError if the destination exists or lies inside the scene.
    """
    if destination.exists():
        raise UserError(f"{destination} exists and is not changed; give a new folder.")
    if source.absolute() in destination.absolute().parents:
        raise UserError(f"{destination} lies inside {source}; give a folder outside.")
    with new_folder(destination) as unfinished:
        shutil.copytree(source, unfinished, dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns(*CACHES))
        yield unfinished


def find_photographs(scene, splits=SPLITS, llffhold=8):
    """The names, relative to a scene folder, of each photograph's files: one per stored size.

    Of some splits; llffhold: every n-th view of a capture is a test view. Raises UserError if the
    folder is no scene of a known format.
    """
    dataset_name = detect_format(scene) if scene.is_dir() else None
    if dataset_name not in FORMATS:
        found = f"holds a {dataset_name} scene" if dataset_name else "is not a folder"
        raise UserError(f"{scene} {found}; a scene of {', '.join(FORMATS)} is expected.")
    factors = [1] if dataset_name == "blender" else sorted(shipped_folders(scene)) or [1]
    photographs = {}
    for factor in factors:
        config = scene_config(scene, dataset_name, factor).replace(ndc=False, llffhold=llffhold)
        loader = DATASETS[dataset_name](config)
        for split in (s for s in loader.splits() if s in splits):
            part = loader.load(split)
            # LLFF's downsampled images have other names, but the same order.
            keys = range(len(part.names)) if dataset_name == "llff" else part.names
            for key, file in zip(keys, part.files, strict=True):
                names = photographs.setdefault((split, key), {})
                names[name_inside(scene, Path(file))] = None
    # Splits that share a photograph hold the same files of it.
    return list(dict.fromkeys(map(tuple, photographs.values())))


def name_inside(scene, file):
    """The name of a file relative to a scene folder. Raises UserError if it is outside."""
    if not file.is_relative_to(scene) or ".." in file.relative_to(scene).parts:
        raise UserError(f"{file} lies outside {scene}; move it there, and correct the scene's "
                        "files that name it.")
    return file.relative_to(scene).as_posix()


def write_like(file, target, pixels):
    """Write the changed pixels of a photograph `file` over its copy, with its EXIF data."""
    target.unlink()  # The copy may be read-only.
    if file.suffix.lower() == ".png":
        image_utils.write_image(target, pixels)
        return
    with Image.open(file) as original:
        exif = original.getexif()
    Image.fromarray(pixels).save(target, quality=JPEG_QUALITY, subsampling=0, exif=exif)
