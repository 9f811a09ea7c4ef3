"""Camera poses and lenses of photographs by COLMAP (the package `pycolmap`, on the CPU)."""

import itertools
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from capture.photos import MIN_IMAGES
from image_utils import image_size, list_images
from loaders.colmap import import_pycolmap
from runtime.errors import UserError, first_line

logger = logging.getLogger(__name__)

# Above this many photographs, each is matched only with its neighbours in name order: the number of
# all pairs grows with the square.
MAX_EXHAUSTIVE = 200

# Sequential matching also pairs this many of the first images with as many of the last.
LOOP_CLOSURE_IMAGES = 10

# Features are extracted from images no longer than this. Images of 12 megapixels would take minutes
# each on a small machine, and at this size cameras are accurate to a fraction of a pixel.
MAX_FEATURE_SIDE = 1600

# A pair of images is alike if it has at least this fraction of the most matches that either image
# has with any other. It contradicts the cameras if the median epipolar error of its matches exceeds
# COLMAP's own limit for a point, in pixels. In a folded capture this held for pairs with fractions
# of 0.74 to 0.82; in a good capture of repeated texture, for none above 0.13.
ALIKE_FRACTION = 0.5
MAX_EPIPOLAR_ERROR = 4.0

ADVICE = ("take more photographs that overlap by two thirds, sharp, of surfaces with texture, from "
          "different places (misc/Data.md has a guide)")


def find_cameras(images: Path, out: Path, *, matching: str, camera: str, lens: str,
                 from_video: bool) -> Any:
    """The COLMAP model with the most registered images, as a `pycolmap.Reconstruction`.

    images: the folder of images; out: the scene's folder, whose `database.db` keeps features and
    matches, so that an interrupted run resumes.
    matching: "exhaustive", "sequential" or "auto"; camera: "single", "per_image" or "auto";
    lens: a lens model of COLMAP; from_video: whether the images are frames of a video.
    Logs what was found. Raises UserError if no image could be registered.
    """
    pycolmap = import_pycolmap()
    # COLMAP's own messages are for experts; the important ones are logged here.
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)
    pycolmap.set_random_seed(0)
    files = list_images(images)
    database = out / "database.db"
    matching = choose_matching(matching, from_video, len(files))
    try:
        timed("Features", lambda: extract_features(pycolmap, database, images, camera, lens))
        timed(f"Matches ({matching})",
              lambda: match_features(pycolmap, database, matching, files, images))
        models = timed("Cameras", lambda: reconstruct(pycolmap, database, images, out))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"COLMAP stopped with: {first_line(error)}; remove {out} and try again, or "
                        "use other images.") from None
    if not models:
        raise UserError(f"COLMAP could not register any of the {len(files)} images: their features "
                        f"do not match; {ADVICE}.")
    largest = max(models, key=lambda model: model.num_reg_images())
    report_models(files, images, models, largest)
    report_contradictions(largest, matched_pairs(pycolmap, database))
    return largest


def timed(stage: str, work: Callable[[], Any]) -> Any:
    """The result of `work()`; logs the stage and the time it took."""
    logger.info("%s ...", stage)
    begin = time.perf_counter()
    result = work()
    logger.info("%s: %.0f s", stage, time.perf_counter() - begin)
    return result


# Stages.


def extract_features(pycolmap, database: Path, images: Path, camera: str, lens: str) -> None:
    """Add the features of all images to the database; images that it has already are skipped."""
    files = list_images(images)
    equal_sizes = len({image_size(file) for file in files}) == 1
    single = camera == "single" or (camera == "auto" and equal_sizes)
    reader_options = pycolmap.ImageReaderOptions()
    reader_options.camera_model = lens
    extraction_options = pycolmap.FeatureExtractionOptions()
    extraction_options.max_image_size = MAX_FEATURE_SIDE
    mode = pycolmap.CameraMode.SINGLE if single else pycolmap.CameraMode.PER_IMAGE
    pycolmap.extract_features(
        database, images, image_names=relative_names(files, images), camera_mode=mode,
        reader_options=reader_options, extraction_options=extraction_options,
        device=pycolmap.Device.cpu,
    )


def relative_names(files: Sequence[Path], images: Path) -> list[str]:
    """The names of image files as COLMAP stores them."""
    return [file.relative_to(images).as_posix() for file in files]


def choose_matching(matching: str, from_video: bool, count: int) -> str:
    """"exhaustive" (all pairs) or "sequential" (neighbours in name order)."""
    if matching != "auto":
        return matching
    return "sequential" if from_video or count > MAX_EXHAUSTIVE else "exhaustive"


def match_features(pycolmap, database: Path, matching: str, files: Sequence[Path],
                   images: Path) -> None:
    """Add feature matches to the database; pairs that it has already are skipped."""
    if matching == "exhaustive":
        pycolmap.match_exhaustive(database, device=pycolmap.Device.cpu)
        return
    pycolmap.match_sequential(database, device=pycolmap.Device.cpu)
    # A walk around an object ends where it began. (COLMAP's list of pairs cuts names at spaces.)
    names = [name for name in relative_names(files, images) if " " not in name]
    ends = itertools.product(names[:LOOP_CLOSURE_IMAGES], names[-LOOP_CLOSURE_IMAGES:])
    pairs = {tuple(sorted(pair)) for pair in ends if len(set(pair)) == 2}
    lines = "".join(f"{first} {last}\n" for first, last in sorted(pairs))
    with tempfile.TemporaryDirectory(dir=database.parent) as folder:
        pairing = pycolmap.ImportedPairingOptions()
        pairing.match_list_path = Path(folder) / "pairs.txt"
        pairing.match_list_path.write_text(lines, encoding="utf-8")
        pycolmap.match_image_pairs(database, pairing_options=pairing, device=pycolmap.Device.cpu)


def reconstruct(pycolmap, database: Path, images: Path, out: Path) -> list:
    """The models that COLMAP's incremental mapping finds; each registers some of the images."""
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size = MIN_IMAGES
    options.random_seed = 0
    with tempfile.TemporaryDirectory(dir=out) as folder:
        return list(pycolmap.incremental_mapping(database, images, folder, options).values())


# Quality.


def report_models(files: Sequence[Path], images: Path, models: Sequence, largest) -> None:
    """Log how many images the largest model registers, and the names of the others."""
    names = relative_names(files, images)
    registered = {image.name for image in largest.images.values() if image.has_pose}
    others = sorted((m.num_reg_images() for m in models if m is not largest), reverse=True)
    separate = (f"; {len(others)} smaller model(s) of {others} images remain separate" if others
                else "")
    logger.info("%d of %d images are registered%s.", len(registered), len(names), separate)
    missing = [name for name in names if name not in registered]
    if missing:
        logger.info("Not registered: %s. To add them, %s.", ", ".join(missing), ADVICE)


def matched_pairs(pycolmap, database: Path) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    """The verified matches of image pairs: two names, then pixels `[K, 2]` in each image."""
    with pycolmap.Database.open(str(database)) as opened:
        names = {image.image_id: image.name for image in opened.read_all_images()}
        pixels = {i: opened.read_keypoints(i)[:, :2] for i in names}
        pairs, geometries = opened.read_two_view_geometries()
    matches = []
    for pair, geometry in zip(pairs, geometries, strict=True):
        first, second = pycolmap.pair_id_to_image_pair(pair)
        in_first, in_second = geometry.inlier_matches.T
        matches.append((names[first], names[second],
                        pixels[first][in_first], pixels[second][in_second]))
    return matches


def report_contradictions(model, pairs: Sequence[tuple]) -> None:
    """Log which pairs of very similar images contradict the cameras; pairs: `matched_pairs`.

    Repeated texture makes COLMAP fold a capture: it places views of two sides on one side, and so
    separates neighbours that have most of their features in common.
    """
    views = {image.name: image for image in model.images.values() if image.has_pose}
    pairs = [pair for pair in pairs if pair[0] in views and pair[1] in views]
    max_matches = Counter()
    for a, b, pixels, _ in pairs:
        max_matches |= Counter({a: len(pixels), b: len(pixels)})
    alike = [pair for pair in pairs
             if len(pair[2]) >= ALIKE_FRACTION * max(max_matches[pair[0]], max_matches[pair[1]])]
    wrong = [f"{a} and {b}" for a, b, in_a, in_b in alike
             if epipolar_error(views[a], views[b], in_a, in_b) > MAX_EPIPOLAR_ERROR]
    logger.info("%d of the %d most similar pairs of images agree with the cameras.",
                len(alike) - len(wrong), len(alike))
    if wrong:
        logger.info("These do not: %s. COLMAP merged different places with similar textures "
                    "there; photograph them again with distinctive objects beside them.",
                    ", ".join(wrong))


def epipolar_error(a, b, in_a: np.ndarray, in_b: np.ndarray) -> float:
    """The median epipolar error in pixels of matches `[K, 2]` between two images of a model.

    Sampson's distance (Hartley and Zisserman, section 11.4.3) on the undistorted image planes.
    """
    rays = [np.c_[view.camera.cam_from_img(pixels), np.ones(len(pixels))]
            for view, pixels in ((a, in_a), (b, in_b))]
    from_world = [view.cam_from_world().matrix() for view in (a, b)]
    rotation = from_world[1][:, :3] @ from_world[0][:, :3].T
    translation = from_world[1][:, 3] - rotation @ from_world[0][:, 3]
    essential = np.cross(translation, rotation, axisb=0, axisc=0)
    lines_in_b, lines_in_a = rays[0] @ essential.T, rays[1] @ essential
    slope = np.sqrt((lines_in_b[:, :2] ** 2 + lines_in_a[:, :2] ** 2).sum(axis=1))
    distance = np.abs((rays[1] * lines_in_b).sum(axis=1)) / np.maximum(slope, 1e-12)
    return float(np.median(distance)) * a.camera.mean_focal_length()
