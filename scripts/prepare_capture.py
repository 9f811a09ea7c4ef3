"""Turn photographs or a video into a scene: estimate the cameras and report the result.

    python scripts/prepare_capture.py photos/garden data/colmap/garden
    python scripts/prepare_capture.py walk.mp4 data/colmap/walk --num_frames 150
    python scripts/prepare_capture.py --check data/colmap/garden      any scene of any format

Runs COLMAP's feature extraction, matching and mapping on the CPU, through the package `pycolmap`.
The photographs are copied and not changed. An interrupted run is resumed by the same command. The
report gives the number of registered images, the reprojection error, the scene's scale and range,
and plots cameras and points from above and from the side.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capture.find_cameras import MAX_EXHAUSTIVE, find_cameras  # noqa: E402
from capture.photos import (  # noqa: E402
    MIN_IMAGES,
    REDUCTIONS,
    make_images,
    write_smaller_copies,
)
from capture.report import examine_scene, scene_config  # noqa: E402
from datasets import DATASETS  # noqa: E402
from image_utils import image_size, list_images, write_image  # noqa: E402
from loaders.lenses import LENSES  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from runtime.files import new_folder, sole_writer, write_atomically  # noqa: E402

# The longest side of the images on which the suggested command trains.
TRAINING_SIDE = 400


def main(argv=None):
    args = parse(argv)
    if args.check:
        report(scene_config(args.paths[0], args.dataset_name, args.factor))
        return 0
    source, out = args.paths
    check_new(source, out)
    with sole_writer(out, "preparing a capture"):
        check_same_command(out, source, args)
        images = make_images(source, out / "images", args.num_frames)
        model = find_cameras(images, out, matching=args.matching, camera=args.camera,
                             lens=args.lens, from_video=not source.is_dir())
        write_smaller_copies(out)
        # Last, because a folder with cameras counts as finished.
        with new_folder(out / "sparse" / "0") as folder:
            model.write(str(folder))
        (out / "database.db").unlink()
    result = report(scene_config(out, "colmap"))
    write_image(out / "report.png", result.image)
    content = json.dumps(result.statistics, indent=1).encode()
    write_atomically(out / "report.json", lambda file: file.write(content))
    print(f"Check {out / 'report.png'}. Then:\n  {training_command(out)}")
    return 0


def parse(argv):
    """The parsed and checked command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH",
                        help="a folder of photographs or a video, and a new folder for the scene")
    parser.add_argument("--check", action="store_true",
                        help="only report on the scene in the folder PATH")
    parser.add_argument("--dataset_name", choices=sorted(DATASETS),
                        help="with --check: the scene's format, if it cannot be detected")
    parser.add_argument("--factor", type=int, help="with --check: downsampling factor of images")
    parser.add_argument("--num_frames", type=int, default=150,
                        help="number of frames to use of a video: the sharpest of as many equal "
                        "sections (default: %(default)s)")
    parser.add_argument("--matching", choices=["auto", "exhaustive", "sequential"], default="auto",
                        help="match all pairs, or neighbours in name order; auto: sequential for a "
                        f"video and for more than {MAX_EXHAUSTIVE} photographs")
    parser.add_argument("--camera", choices=["auto", "single", "per_image"], default="auto",
                        help="whether all images have one lens or each has its own; auto: one if "
                        "their sizes are equal")
    parser.add_argument("--lens", choices=sorted(LENSES), default="SIMPLE_RADIAL",
                        help="COLMAP's lens model (default: %(default)s)")
    args = parser.parse_args(argv)
    expected = 1 if args.check else 2
    if len(args.paths) != expected:
        parser.error(f"{len(args.paths)} paths were given; "
                     + ("--check expects one, the scene's folder" if args.check else
                        "two are expected: photographs or a video, and a new folder"))
    if args.num_frames < MIN_IMAGES:
        parser.error(f"--num_frames {args.num_frames} must be at least {MIN_IMAGES}")
    if args.factor is not None and args.factor < 1:
        parser.error(f"--factor {args.factor} must be at least 1")
    return args


# The scene's folder.


def check_new(source, out):
    """Raise UserError if the source is missing or the scene's folder cannot be used."""
    if not source.exists():
        raise UserError(f"{source} does not exist; give a folder of photographs or a video.")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} is inside the folder of photographs, {source}, and would add "
                        "images to it; choose a folder outside.")
    if (out / "sparse" / "0").exists():
        raise UserError(f"{out} holds a scene already; choose another folder, or report on it with "
                        f"--check {out}.")
    if out.exists() and (not out.is_dir() or read_settings(out) is None and any(out.iterdir())):
        raise UserError(f"{out} exists and was not created by this script; choose a new "
                        "folder.")


def read_settings(out):
    """The settings that an earlier run saved in the folder, or None."""
    try:
        return json.loads((out / "prepare.json").read_text())
    except (OSError, ValueError):
        return None


def check_same_command(out, source, args):
    """Save the settings in the folder. Raises UserError if an earlier run used other settings."""
    settings = {"source": str(source.absolute()), "num_frames": args.num_frames,
                "matching": args.matching, "camera": args.camera, "lens": args.lens}
    before = read_settings(out) if (out / "images").is_dir() else None
    if before not in (None, settings):
        raise UserError(f"{out} was started with {before}, but the flags are now {settings}; give "
                        "the same flags, or choose another folder.")
    if before:
        print(f"{out} was started before; resuming.", flush=True)
    content = json.dumps(settings, indent=1).encode()
    write_atomically(out / "prepare.json", lambda file: file.write(content))


# The report.


def report(config):
    """Print and return the `Report` of a scene."""
    result = examine_scene(config)
    print("\n".join(result.lines), flush=True)
    return result


def training_command(out):
    """A command that trains a small model on the scene."""
    longest = max(max(image_size(file)) for file in list_images(out / "images"))
    factor = next((f for f in (1, *REDUCTIONS) if longest / f <= TRAINING_SIDE), REDUCTIONS[-1])
    return ("python train.py --preset laptop --model zipnerf --dataset_name colmap "
            f"--scene {out} --factor {factor}")


if __name__ == "__main__":
    run_script(main)
