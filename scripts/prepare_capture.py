"""Turn photographs or a video into a scene: estimate the cameras and report the result.

    python scripts/prepare_capture.py photos/garden data/colmap/garden
    python scripts/prepare_capture.py walk.mp4 data/colmap/walk --num_frames 150
    python scripts/prepare_capture.py photos/garden --train --minutes 5    on to a video and a mesh
    python scripts/prepare_capture.py --check data/colmap/garden      any scene of any format

Runs COLMAP's feature extraction, matching and mapping on the CPU, through the package `pycolmap`.
The photographs are copied and not changed. An interrupted run is resumed by the same command. The
report gives the number of registered images, the reprojection error, the scene's scale and range,
and plots cameras and points from above and from the side.

With --train a Zip-NeRF of preset laptop is then trained for --minutes and scored, and a video and a
mesh are made of it. The scene's folder may be left out: it is then data/colmap/<name>. The same
command resumes what was interrupted; with more --minutes it trains further.
"""

import argparse
import json
import shlex
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
from checkpoint import list_checkpoints  # noqa: E402
from config import get_config, run_folder  # noqa: E402
from datasets import DATASETS  # noqa: E402
from image_utils import image_size, list_images, write_image  # noqa: E402
from loaders.lenses import LENSES  # noqa: E402
from runtime.commands import command, run_command  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from runtime.files import new_folder, sole_writer, write_atomically  # noqa: E402
from runtime.flags import number  # noqa: E402

# The longest side of the images on which the suggested command trains.
TRAINING_SIDE = 400

# The model that is trained, and what is made of it: frames have the size of the training images.
MODEL = "--preset laptop --model zipnerf"
VIDEO = "--frames 60 --fps 20 --visualize_depth"
MESH = "--grid_size 256"
VIDEO_FILE, MESH_FILE = "video_*/rgb_depth_*fps.[!g]*", "mesh_*/mesh.ply"
SCORES_FILE = "eval_test_*/scores.json"


def main(argv=None):
    args = parse(argv)
    if args.check:
        report(scene_config(args.paths[0], args.dataset_name, args.factor))
        return 0
    source, out = args.paths
    check_new(source, out, args.train)
    with sole_writer(out, "preparing a capture"):
        check_same_command(out, source, args)
        if not is_scene(out):
            make_scene(source, out, args)
        if not (out / "report.json").exists():
            write_report(out)
    if args.train:
        return make_film(out, args.minutes)
    print(f"Check {out / 'report.png'}. Then:\n  python train.py {shlex.join(training_flags(out))}")
    return 0


def make_scene(source, out, args):
    """Write images and cameras into the scene's folder."""
    images = make_images(source, out / "images", args.num_frames)
    model = find_cameras(images, out, matching=args.matching, camera=args.camera,
                         lens=args.lens, from_video=not source.is_dir())
    write_smaller_copies(out)
    # Last, because a folder with cameras counts as finished.
    with new_folder(out / "sparse" / "0") as folder:
        model.write(str(folder))
    (out / "database.db").unlink()


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
    parser.add_argument("--train", action="store_true",
                        help="then train a model, and make a video and a mesh")
    parser.add_argument("--minutes", type=number(above=0),
                        help="with --train: minutes of training (default: preset laptop's)")
    args = parser.parse_args(argv)
    if args.minutes is not None and not args.train:
        parser.error("--minutes is the time of training; give --train, too")
    if args.check and args.train:
        parser.error("--check only reports; leave out --train")
    if args.train and len(args.paths) == 1:
        args.paths.append(default_folder(args.paths[0]))
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


def default_folder(source):
    """The scene's folder for photographs or a video."""
    source = source.absolute()
    return Path("data") / "colmap" / (source.name if source.is_dir() else source.stem)


def is_scene(out):
    """Whether a folder holds a finished scene."""
    return (out / "sparse" / "0").exists()


def check_new(source, out, may_be_scene=False):
    """Raise UserError if the source is missing or the scene's folder cannot be used.

    may_be_scene: whether a scene that this script has made is accepted.
    """
    if not source.exists():
        raise UserError(f"{source} does not exist; give a folder of photographs or a video.")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} is inside the folder of photographs, {source}, and would add "
                        "images to it; choose a folder outside.")
    if is_scene(out) and not (may_be_scene and read_settings(out)):
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


def write_report(out):
    """Print the report of a new scene and write it into its folder."""
    result = report(scene_config(out, "colmap"))
    write_image(out / "report.png", result.image)
    content = json.dumps(result.statistics, indent=1).encode()
    write_atomically(out / "report.json", lambda file: file.write(content))


def report(config):
    """Print and return the `Report` of a scene."""
    result = examine_scene(config)
    print("\n".join(result.lines), flush=True)
    return result


# Training, video and mesh.


def training_flags(out):
    """The flags of train.py that train a small model on the scene."""
    longest = max(max(image_size(file)) for file in list_images(out / "images"))
    factor = next((f for f in (1, *REDUCTIONS) if longest / f <= TRAINING_SIDE), REDUCTIONS[-1])
    # A word without a separator would be the name of a scene in --data_dir.
    scene = str(out) if len(out.parts) > 1 else f"./{out}"
    return [*MODEL.split(), "--dataset_name", "colmap", "--scene", scene, "--factor", str(factor)]


def make_film(out, minutes):
    """Train on a scene and make a video and a mesh, unless they exist; returns the exit status.

    Ends with the status of the first command that fails.
    """
    flags = training_flags(out)
    run = run_folder(get_config(flags))
    for words in unfinished_commands(run, flags, minutes):
        print(f"\n{shlex.join(['python', Path(words[1]).name, *words[2:]])}", flush=True)
        status = run_command(words)
        if status:
            return status
    print_results(run)
    return 0


def unfinished_commands(run, flags, minutes):
    """The commands that a run folder still lacks, one after the other."""
    flags = flags + (["--minutes", f"{minutes:g}"] if minutes else [])
    if not list_checkpoints(run):
        yield command("train.py", *flags)
    elif not newest(run, SCORES_FILE) or has_changed(run, minutes):
        yield command("train.py", *flags, "--continue_training")
    if not newest(run, VIDEO_FILE):
        yield command("visualize.py", "--run", run, *VIDEO.split())
    if not newest(run, MESH_FILE):
        yield command("extract_mesh.py", "--run", run, *MESH.split())


def has_changed(run, minutes):
    """Whether a run was planned for other minutes."""
    return minutes not in (None, json.loads((run / "config.json").read_text()).get("minutes"))


def newest(run, pattern):
    """The newest of a run's files of its last step; None if there is none."""
    steps = json.loads((run / "config.json").read_text())["max_steps"]
    files = [path for path in run.glob(pattern) if f"_{steps:08d}" in path.parent.name]
    return max(files, key=lambda path: path.stat().st_mtime, default=None)


def print_results(run):
    """Print where a run's video, mesh and scores are, and which commands show more."""
    name = shlex.quote(str(run))
    print(f"""
Video:  {newest(run, VIDEO_FILE)}
Mesh:   {newest(run, MESH_FILE)}
Scores: {newest(run, SCORES_FILE)}, images beside them
Next:   python visualize.py --run {name} --visualize_depth --visualize_normals --frames 120
        the same command with more --minutes, for a sharper scene""")


if __name__ == "__main__":
    run_script(main)
