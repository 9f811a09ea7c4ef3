"""Copy a scene with another exposure for each photograph, to try appearance embeddings on.

    python scripts/change_exposures.py data/colmap/garden data/colmap/garden_exposures --stops 1

Linear light is multiplied by 2^u with u uniform in plus or minus --stops, the same for all sizes
of a photograph, in all splits. Masks and all other files are copied as they are; `exposures.json`
holds the multiples. For Blender, LLFF, COLMAP and nerfstudio scenes.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

import image_utils  # noqa: E402
from capture.photos import JPEG_QUALITY  # noqa: E402
from capture.report import detect_format, scene_config  # noqa: E402
from datasets import DATASETS  # noqa: E402
from loaders.base import SPLITS  # noqa: E402
from loaders.folders import shipped_folders  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from runtime.files import new_folder  # noqa: E402

FORMATS = ("blender", "llff", "colmap", "nerfstudio")
MAX_STOPS = 16


def main(argv=None):
    args = parse(argv)
    source, destination = args.source.absolute(), args.destination.absolute()
    if destination.exists():
        raise UserError(f"{args.destination} exists and is not changed; give a new folder.")
    if source in destination.parents:
        raise UserError(f"{args.destination} lies inside {args.source}; give a folder outside.")
    photographs = find_photographs(source)
    stops = np.random.default_rng(args.seed).uniform(-args.stops, args.stops, len(photographs))
    multiples = {}
    with new_folder(destination) as unfinished:
        shutil.copytree(source, unfinished, dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns(".pixels"))
        for files, stop in zip(photographs, stops, strict=True):
            for name in files:
                multiples[name] = float(2**stop)
                write_exposed(source / name, unfinished / name, multiples[name])
                print(f"{name}: {multiples[name]:.3f}")
        (unfinished / "exposures.json").write_text(json.dumps(multiples, indent=1))


def parse(argv):
    """The parsed command line; exits with status 2 for a wrong one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False)
    parser.add_argument("source", type=Path, help="the folder of a scene")
    parser.add_argument("destination", type=Path, help="folder to write; must be new")
    parser.add_argument("--stops", type=float, default=1.0,
                        help="largest change, in factors of 2 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0,
                        help="determines the exposures (default: %(default)s)")
    args = parser.parse_args(argv)
    if not 0 <= args.stops <= MAX_STOPS:
        parser.error(f"--stops must be between 0 and {MAX_STOPS}")
    if args.seed < 0:
        parser.error("--seed must be at least 0")
    return args


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


def write_exposed(file, target, multiple):
    """Write a photograph whose linear light is multiplied; alpha and EXIF data are kept."""
    pixels = image_utils.read_image(file, 4 if image_utils.has_alpha(file) else 3)
    light = image_utils.srgb_to_linear(torch.arange(256, dtype=torch.float64) / 255)
    levels = image_utils.to_uint8(image_utils.linear_to_srgb((multiple * light).clamp(max=1)))
    exposed = pixels.copy()
    exposed[..., :3] = levels[pixels[..., :3]]
    write_like(file, target, exposed)


def write_like(file, target, pixels):
    """Write the changed pixels of a photograph `file` over its copy, with its EXIF data."""
    target.unlink()  # The copy may be read-only.
    if file.suffix.lower() == ".png":
        image_utils.write_image(target, pixels)
        return
    with Image.open(file) as original:
        exif = original.getexif()
    Image.fromarray(pixels).save(target, quality=JPEG_QUALITY, subsampling=0, exif=exif)


if __name__ == "__main__":
    run_script(main)
