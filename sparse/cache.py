"""The sparse points of a scene's images: matched once, then read from a file."""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from runtime.files import writable_folder, write_atomically
from sparse.triangulation import MIN_VIEWS, triangulate
from structures import Cameras, SparsePoints

logger = logging.getLogger(__name__)

FOLDER = ".points"

# Fewer points than this are accidents: even of noise, a few features match.
MIN_POINTS = 20

# Raised when points of the same images and cameras change.
VERSION = 2


def matched_points(root: Path, cameras: Cameras, files: Sequence, read_image: Callable,
                   threads: int) -> SparsePoints | None:
    """The points that images show, from the cache file of a scene, or matched and written there.

    root: the scene's folder, in which (or in the user's cache, if that is read-only) the file lies;
    files: what the images depend on, such as names, sizes and times of their files, which with the
    cameras makes the file's name; the others: of `triangulate`. None, with a notice, if too few
    points are found.
    """
    path = _cache_file(root, cameras, files)
    points = _read(path) if path and path.is_file() else None
    if points is None:
        begin = time.perf_counter()
        logger.info("Matching features of %d images, once ...", len(cameras))
        points = triangulate(cameras, read_image, threads)
        if path:
            arrays = {f.name: getattr(points, f.name).numpy() for f in fields(points)}
            write_atomically(path, lambda file: np.savez(file, **arrays))
        seconds = time.perf_counter() - begin
        if len(points) >= MIN_POINTS:
            logger.info("%s, %.0f s.", summary(points), seconds)
    if len(points) < MIN_POINTS:
        logger.warning("%d point(s) were found that at least %d of the %d training images show; "
                       "that is too few, so training goes on without points.", len(points),
                       MIN_VIEWS, len(cameras))
        return None
    return points


def summary(points: SparsePoints) -> str:
    """The number of points, and means of their numbers of views and reprojection errors."""
    return (f"{len(points):,} points, each in {len(points.point_idx) / len(points):.1f} training "
            f"images, reprojection error {float(points.errors.mean()):.2f} pixels")


def _cache_file(root, cameras, files):
    """The cache file of some images and cameras; None if there is no folder to write to."""
    digest = hashlib.sha256(repr((VERSION, list(files))).encode())
    for f in fields(cameras):
        value = getattr(cameras, f.name)
        # Range and loss weights do not matter to matches.
        if isinstance(value, torch.Tensor) and f.name not in ("near", "far", "lossmult"):
            digest.update(repr((f.name, value.shape)).encode() + value.cpu().numpy().tobytes())
    try:
        folder = root / FOLDER
        name = f"{digest.hexdigest()[:16]}.npz"
        if (folder / name).is_file():
            return folder / name
        return writable_folder(folder, f"{root.name}_points") / name
    except OSError:
        return None


def _read(path):
    """The `SparsePoints` of a cache file; None, with a notice, if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            points = SparsePoints(**{f.name: torch.from_numpy(file[f.name])
                                     for f in fields(SparsePoints)})
        points.check()
        return points
    except Exception as error:  # Damaged archives fail in many ways.
        logger.warning("%s is damaged (%s); it is made anew.", path, type(error).__name__)
        return None
