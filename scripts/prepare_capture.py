"""Make a scene of photographs or of a video: find the cameras, and report what was found.

    python scripts/prepare_capture.py photos/garden data/colmap/garden
    python scripts/prepare_capture.py walk.mp4 data/colmap/walk --num_frames 150
    python scripts/prepare_capture.py --check data/colmap/garden      any scene of any format

Runs COLMAP's own feature extraction, matching and mapping on the CPU, through the package
`pycolmap`. The photographs are copied; they stay as they are. What was interrupted goes on: the
same command does it. The report tells how many images were placed, how well, the scene's scale and
range, and draws cameras and points from above and from the side.
"""

import argparse
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402

from capture.report import examine, scene_config  # noqa: E402
from config import DATASET_DEFAULTS  # noqa: E402
from image_utils import IMAGE_SUFFIXES, image_size, list_images, write_image  # noqa: E402
from loaders.colmap import import_pycolmap  # noqa: E402
from loaders.folders import image_folder, report_left_out  # noqa: E402
from loaders.lenses import LENSES  # noqa: E402
from runtime.errors import UserError, first_line, run_script  # noqa: E402
from runtime.files import new_folder, sole_writer, write_atomically  # noqa: E402

# Above so many photographs, each is matched with its neighbours in name order alone: pairs of all
# with all grow with the square.
MOST_EXHAUSTIVE = 200

# Of images in an order, so many of the first are also matched with as many of the last.
CLOSING = 10

# Features are sought in pictures no longer than this. A limit on time: 12 megapixels take minutes
# a picture on a small machine, and the cameras of this length are good to a fraction of a pixel.
FEATURE_SIDE = 1600

# How sharp a video's frame is, is told from one no wider than this.
SHARPNESS_WIDTH = 480

# The tag in which cameras note how they were held; 1 is upright.
ORIENTATION = 0x0112

# Quality of the JPEGs that are made of a video's frames and of turned photographs.
JPEG_QUALITY = 95

SMALLER = (2, 4, 8)
# No smaller copy has a shorter side below this.
SHORTEST_SIDE = 64

FEWEST = 3

# Images are most alike that share at least this part of the features that either shares with any
# other. They contradict cameras by which these features, in the median, miss one another by more
# pixels than COLMAP's own limit for a point. In a folded capture, parts of 0.74 to 0.82 did so; in
# a good one, of a scene with repeated texture, none above 0.13.
ALIKE = 0.5
CONTRADICTION = 4.0

ADVICE = ("take more photographs that overlap by two thirds, sharp, of surfaces with texture, from "
          "different places (misc/Data.md has a guide)")


def main(argv=None):
    args = parse(argv)
    if args.check:
        report(scene_config(args.paths[0], args.dataset_name, args.factor))
        return 0
    source, out = args.paths
    check_new(source, out)
    with sole_writer(out, "preparing a capture"):
        check_same_frames(out, source, args)
        images = make_images(source, out / "images", args.num_frames)
        model = find_cameras(images, out, args)
        make_smaller_copies(out)
        # Last, since a folder with cameras counts as done.
        with new_folder(out / "sparse" / "0") as folder:
            model.write(str(folder))
        (out / "database.db").unlink()
    found = report(scene_config(out, "colmap"))
    write_image(out / "report.png", found.picture)
    facts = json.dumps(found.facts, indent=1).encode()
    write_atomically(out / "report.json", lambda file: file.write(facts))
    print(f"Look at {out / 'report.png'}. Then:\n  {training_command(out)}")
    return 0


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH",
                        help="a folder of photographs, or a video; and a folder for the scene, "
                        "which must be new")
    parser.add_argument("--check", action="store_true",
                        help="report on the scene in the folder PATH, and run nothing")
    parser.add_argument("--dataset_name", choices=sorted(DATASET_DEFAULTS),
                        help="with --check: the scene's format, if its files do not tell")
    parser.add_argument("--factor", type=int, help="with --check: of the images that are looked at")
    parser.add_argument("--num_frames", type=int, default=150,
                        help="so many frames of a video are used, the sharpest of as many equal "
                        "parts (default: %(default)s)")
    parser.add_argument("--matching", choices=["auto", "exhaustive", "sequential"], default="auto",
                        help="match all pairs, or neighbours in name order; auto: sequential for a "
                        f"video and for more than {MOST_EXHAUSTIVE} photographs")
    parser.add_argument("--camera", choices=["auto", "single", "per_image"], default="auto",
                        help="whether the images share one lens or each has its own; auto: one if "
                        "they have one size")
    parser.add_argument("--lens", choices=sorted(LENSES), default="SIMPLE_RADIAL",
                        help="COLMAP's model of the lens (default: %(default)s)")
    args = parser.parse_args(argv)
    wanted = 1 if args.check else 2
    if len(args.paths) != wanted:
        parser.error(f"{len(args.paths)} paths were given; "
                     + ("--check wants one, the scene's folder" if args.check else
                        "two are wanted: the photographs or the video, and the new scene's folder"))
    if args.num_frames < FEWEST:
        parser.error(f"--num_frames {args.num_frames} must be at least {FEWEST}")
    if args.factor is not None and args.factor < 1:
        parser.error(f"--factor {args.factor} must be at least 1")
    return args


# Where the scene is made.


def check_new(source, out):
    """Raise UserError where the source is missing, or where the scene is, or something else."""
    if not source.exists():
        raise UserError(f"{source} does not exist; give a folder of photographs or a video.")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} lies in the folder of photographs, {source}, whose images it would "
                        "add to; choose a folder outside.")
    if (out / "sparse" / "0").exists():
        raise UserError(f"{out} holds a scene already; choose another folder, or describe that one "
                        f"by --check {out}.")
    if out.exists() and (not out.is_dir() or note_of(out) is None and any(out.iterdir())):
        raise UserError(f"{out} is there and is no capture that was begun here; choose a new "
                        "folder.")


def note_of(out):
    """What an earlier start noted, or None."""
    try:
        return json.loads((out / "prepare.json").read_text())
    except (OSError, ValueError):
        return None


def check_same_frames(out, source, args):
    """Note what the scene is made of. Raises UserError if it was begun otherwise."""
    made_of = {"source": str(source.absolute()), "num_frames": args.num_frames,
               "matching": args.matching, "camera": args.camera, "lens": args.lens}
    before = note_of(out) if (out / "images").is_dir() else None
    if before not in (None, made_of):
        raise UserError(f"{out} was begun with {before}, and now {made_of} is asked for; give the "
                        "same, or choose another folder.")
    if before:
        print(f"{out} was begun before: going on.")
    content = json.dumps(made_of, indent=1).encode()
    write_atomically(out / "prepare.json", lambda file: file.write(content))


# Images.


def make_images(source, folder, num_frames):
    """The folder of images: upright RGB copies of photographs, or the sharpest frames of a video.

    Raises UserError where there are too few.
    """
    if not folder.is_dir():
        with new_folder(folder) as unfinished:
            if source.is_dir():
                copy_photographs(source, unfinished)
            else:
                take_frames(source, unfinished, num_frames)
    count = len(list_images(folder))
    print(f"{count} images in {folder}.", flush=True)
    return folder


def copy_photographs(source, folder):
    """Copies of a folder's photographs; those that cannot be read are left out by name."""
    files = list_images(source)
    readable = [file for file in files if is_readable(file)]
    report_left_out(source, "image(s) that cannot be read",
                    [file.name for file in files if file not in readable])
    if len(readable) < FEWEST:
        raise UserError(f"{source} holds {len(readable)} readable images "
                        f"({', '.join(sorted(IMAGE_SUFFIXES))}); at least {FEWEST} are wanted, and "
                        "some dozens are usual.")
    for file in readable:
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_upright(file, target)


def is_readable(file):
    """Whether a file is a whole image of 8 bits a channel."""
    try:
        with Image.open(file) as image:
            image.load()
            return image.mode in ("RGB", "RGBA", "L", "LA", "P", "CMYK")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False  # Pillow raises these for damaged files.


def copy_upright(file, target):
    """A copy with the same bytes, or, where a photograph lies on its side or is no RGB, a new one.

    A camera notes how it was held beside the pixels, and not every reader turns them.
    """
    with Image.open(file) as image:
        upright = image.getexif().get(ORIENTATION, 1) == 1
        if upright and image.mode in ("RGB", "RGBA"):
            shutil.copyfile(file, target)
        else:
            turned = ImageOps.exif_transpose(image)
            turned.convert("RGB").save(target, quality=JPEG_QUALITY, subsampling=0,
                                       exif=turned.getexif())


def take_frames(video, folder, count):
    """The sharpest frame of each of `count` equal parts of a video, as JPEGs.

    Raises UserError for what is no video, and for one with fewer frames than are wanted.
    """
    sharpness = [sharpness_of(frame) for frame in frames_of(video)]
    if len(sharpness) < FEWEST:
        raise UserError(f"{video} is no video with {FEWEST} frames or more that can be read; give "
                        "a folder of photographs or another video (MP4, MOV, AVI).")
    parts = np.array_split(np.arange(len(sharpness)), min(count, len(sharpness)))
    chosen = {int(part[np.argmax(np.take(sharpness, part))]) for part in parts}
    print(f"The sharpest {len(chosen)} of {len(sharpness)} frames are used.", flush=True)
    for index, frame in enumerate(frames_of(video)):
        if index in chosen:
            image = Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            image.save(folder / f"frame_{index:06d}.jpg", quality=JPEG_QUALITY, subsampling=0)


def frames_of(video):
    """Frame after frame of a video, uint8 BGR, upright."""
    capture = cv2.VideoCapture(str(video))
    try:
        while True:
            there, frame = capture.read()
            if not there:
                return
            yield frame
    finally:
        capture.release()


def sharpness_of(frame):
    """The variance of the Laplacian, which blur takes away."""
    grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    scale = min(1, SHARPNESS_WIDTH / grey.shape[1])
    small = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.Laplacian(small, cv2.CV_64F).var()


def make_smaller_copies(out):
    """`images_2` and so on, by area averages, as far down as pictures are useful."""
    shortest = min(min(image_size(file)) for file in list_images(out / "images"))
    for factor in SMALLER:
        if shortest // factor >= SHORTEST_SIDE:
            image_folder(out, factor)


# Structure from motion.


def find_cameras(images, out, args):
    """The COLMAP model with the most images. Raises UserError where there is none."""
    pycolmap = import_pycolmap()
    # Its messages are for those who know it; what matters is said here.
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)
    pycolmap.set_random_seed(0)
    files = list_images(images)
    database = out / "database.db"
    try:
        timed("Features", lambda: extract(pycolmap, database, images, files, args))
        matching = choose_matching(args, len(files))
        timed(f"Matches ({matching})", lambda: match(pycolmap, database, matching, files, images))
        models = timed("Cameras", lambda: place(pycolmap, database, images, out))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"COLMAP stopped with: {first_line(error)}; remove {out} and try again, or "
                        "take other images.") from None
    if not models:
        raise UserError(f"COLMAP could not place any of the {len(files)} images: their features "
                        f"do not fit together; {ADVICE}.")
    largest = max(models, key=lambda model: model.num_reg_images())
    report_models(files, images, models, largest)
    report_contradictions(largest, matched_pairs(pycolmap, database))
    return largest


def timed(what, work):
    """What `work()` returns; prints how long it took."""
    print(f"{what} ...", end=" ", flush=True)
    begin = time.perf_counter()
    result = work()
    print(f"{time.perf_counter() - begin:.0f} s", flush=True)
    return result


def extract(pycolmap, database, images, files, args):
    """Features of the images into the database; images that it has already are passed over."""
    one_size = len({image_size(file) for file in files}) == 1
    single = args.camera == "single" or (args.camera == "auto" and one_size)
    reading = pycolmap.ImageReaderOptions()
    reading.camera_model = args.lens
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.max_image_size = FEATURE_SIDE
    mode = pycolmap.CameraMode.SINGLE if single else pycolmap.CameraMode.PER_IMAGE
    pycolmap.extract_features(
        database, images, image_names=[file.relative_to(images).as_posix() for file in files],
        camera_mode=mode, reader_options=reading, extraction_options=extraction,
        device=pycolmap.Device.cpu,
    )


def choose_matching(args, count):
    """How images are paired: all with all, or neighbours."""
    if args.matching != "auto":
        return args.matching
    from_video = not args.paths[0].is_dir()
    return "sequential" if from_video or count > MOST_EXHAUSTIVE else "exhaustive"


def match(pycolmap, database, matching, files, images):
    """Matches of features into the database; pairs that it has already are passed over."""
    if matching == "exhaustive":
        pycolmap.match_exhaustive(database, device=pycolmap.Device.cpu)
        return
    pycolmap.match_sequential(database, device=pycolmap.Device.cpu)
    # Who has walked around a thing comes back to the beginning. (COLMAP's list of pairs ends a name
    # at a space.)
    names = [file.relative_to(images).as_posix() for file in files]
    names = [name for name in names if " " not in name]
    ends = itertools.product(names[:CLOSING], names[-CLOSING:])
    pairs = {tuple(sorted(pair)) for pair in ends if len(set(pair)) == 2}
    lines = "".join(f"{first} {last}\n" for first, last in sorted(pairs))
    with tempfile.TemporaryDirectory(dir=database.parent) as folder:
        pairing = pycolmap.ImportedPairingOptions()
        pairing.match_list_path = Path(folder) / "pairs.txt"
        pairing.match_list_path.write_text(lines, encoding="utf-8")
        pycolmap.match_image_pairs(database, pairing_options=pairing, device=pycolmap.Device.cpu)


def place(pycolmap, database, images, out):
    """Models of which images fit together."""
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size = FEWEST
    options.random_seed = 0
    with tempfile.TemporaryDirectory(dir=out) as folder:
        return list(pycolmap.incremental_mapping(database, images, folder, options).values())


def report_models(files, images, models, largest):
    """Say which images the largest model leaves out."""
    names = [file.relative_to(images).as_posix() for file in files]
    placed = {image.name for image in largest.images.values() if image.has_pose}
    others = sorted((m.num_reg_images() for m in models if m is not largest), reverse=True)
    print(f"{len(placed)} of {len(names)} images are placed"
          + (f"; {len(others)} smaller model(s) of {others} images do not join them" if others
             else "") + ".")
    left_out = [name for name in names if name not in placed]
    if left_out:
        print(f"Not placed: {', '.join(left_out)}. To have them, {ADVICE}.")


def matched_pairs(pycolmap, database):
    """A list of pairs of images and their common features: names, then pixels `[K, 2]` in each."""
    with pycolmap.Database.open(str(database)) as opened:
        names = {image.image_id: image.name for image in opened.read_all_images()}
        pixels = {i: opened.read_keypoints(i)[:, :2] for i in names}
        pairs, geometries = opened.read_two_view_geometries()
    found = []
    for pair, geometry in zip(pairs, geometries, strict=True):
        first, second = pycolmap.pair_id_to_image_pair(pair)
        in_first, in_second = geometry.inlier_matches.T
        found.append((names[first], names[second],
                      pixels[first][in_first], pixels[second][in_second]))
    return found


def report_contradictions(model, pairs):
    """Say which images that look most alike are not placed as their common features want it.

    Texture that repeats makes COLMAP fold a capture: views of two sides end up on one. Where it
    does, neighbours that share most of their features come apart.
    """
    views = {image.name: image for image in model.images.values() if image.has_pose}
    pairs = [pair for pair in pairs if pair[0] in views and pair[1] in views]
    most = Counter()
    for a, b, pixels, _ in pairs:
        most |= Counter({a: len(pixels), b: len(pixels)})
    alike = [pair for pair in pairs if len(pair[2]) >= ALIKE * max(most[pair[0]], most[pair[1]])]
    wrong = [f"{a} and {b}" for a, b, in_a, in_b in alike
             if epipolar_error(views[a], views[b], in_a, in_b) > CONTRADICTION]
    print(f"{len(alike) - len(wrong)} of the {len(alike)} pairs of images that are most alike "
          "agree with the cameras.")
    if wrong:
        print(f"These do not: {', '.join(wrong)}. The capture is folded there: texture that "
              "repeats was taken for one place; photograph it again with something unlike beside "
              "it.")


def epipolar_error(a, b, in_a, in_b):
    """The median distance in pixels of features `[K, 2]` of two images from where they must meet.

    Sampson's distance (Hartley and Zisserman, section 11.4.3) on the undistorted image planes.
    """
    rays = [np.c_[view.camera.cam_from_img(pixels), np.ones(len(pixels))]
            for view, pixels in ((a, in_a), (b, in_b))]
    from_world = [view.cam_from_world().matrix() for view in (a, b)]
    rotation = from_world[1][:, :3] @ from_world[0][:, :3].T
    shift = from_world[1][:, 3] - rotation @ from_world[0][:, 3]
    essential = np.cross(shift, rotation, axisb=0, axisc=0)
    lines_in_b, lines_in_a = rays[0] @ essential.T, rays[1] @ essential
    slope = np.sqrt((lines_in_b[:, :2] ** 2 + lines_in_a[:, :2] ** 2).sum(axis=1))
    distance = np.abs((rays[1] * lines_in_b).sum(axis=1)) / np.maximum(slope, 1e-12)
    return float(np.median(distance)) * a.camera.mean_focal_length()


# The report.


def report(config):
    """Print what `examine` finds."""
    found = examine(config)
    print("\n".join(found.lines), flush=True)
    return found


def training_command(out):
    """A command that trains a small model on the scene."""
    longest = max(max(image_size(file)) for file in list_images(out / "images"))
    factor = next((f for f in (1, *SMALLER) if longest / f <= 400), SMALLER[-1])
    return ("python train.py --preset demozip --dataset_name colmap "
            f"--scene {out} --factor {factor}")


if __name__ == "__main__":
    run_script(main)
