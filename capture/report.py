"""What a scene's files hold, told before anything is trained: counts, lenses, ranges, a picture.

The picture shows cameras and known points from above and from the side: what is wrong with a
capture can usually be seen there.
"""

import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

import pose_utils
from cameras.paths import choose_path, look
from config import get_config
from datasets import load_dataset
from loaders.folders import shipped_folders
from ray_utils import corner_rays
from runtime.errors import UserError
from structures import concatenate

# A file or folder that tells a format, in the order in which they are looked for.
MARKS = {
    "metadata.json": "multicam",
    "transforms_train.json": "blender",
    "train_point": "nerv",
    "sparse": "colmap",
    "transforms.json": "nerfstudio",
    "poses_bounds.npy": "llff",
}

# Side of a view in pixels. It shows the cameras and what lies within so many times their distance
# to what they look at.
SIDE = 480

REACH = 3.0

OVERSAMPLING = 2

# The corners of a picture, one beside the next.
RING = (0, 1, 3, 2)

# Colours, 8 bits: training views, test views, points, lines of sight, text.
TRAIN, TEST, POINT, SIGHT, TEXT = (31, 90, 180), (230, 110, 20), (60, 60, 60), (215,) * 3, (0,) * 3


class Report(NamedTuple):
    """lines: sentences about a scene; picture: uint8 `[h, w, 3]`; facts: the numbers, by name."""

    lines: list
    picture: np.ndarray
    facts: dict


def scene_config(folder, dataset_name=None, factor=None):
    """The configuration that reads the scene in `folder`: its format and finest size, if not given.

    Raises UserError where the folder looks like no known format.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one that holds a scene.")
    if dataset_name is None:
        dataset_name = next((MARKS[mark] for mark in MARKS if (folder / mark).exists()), None)
    if dataset_name is None:
        raise UserError(f"{folder} holds none of {', '.join(MARKS)}, by which formats are told; "
                        "give --dataset_name, or make a scene of photographs by "
                        "`python scripts/prepare_capture.py FOLDER OUT`.")
    if factor is None:
        shipped = shipped_folders(folder) if dataset_name in ("colmap", "llff") else {}
        factor = min(shipped, default=1)
    return get_config(["--dataset_name", dataset_name, "--scene", str(folder), "--factor",
                       str(factor)])


def examine(config):
    """The `Report` of a config's scene. Raises UserError for anything that does not fit."""
    dataset = load_dataset(config, "train", read_pixels=False)
    loader, scenes = dataset.loader, dataset.scenes()
    train, test = scenes["train"], scenes["test"]
    cameras = concatenate([train.cameras, test.cameras])
    path, arrangement = choose_path(train.cameras)
    facts = {
        "dataset_name": config.dataset_name, "factor": config.factor,
        "views": {split: len(scene.names) for split, scene in scenes.items()},
        "reprojection_error": loader.reprojection_error, "points": len(loader.points()),
        "scale": train.scale, "near": float(cameras.near.min()), "far": float(cameras.far.max()),
        "arrangement": arrangement, "path": path,
    }
    lines = [views_line(config, scenes), lens_line(cameras), points_line(facts),
             range_line(facts, cameras.ndc), f"{arrangement.capitalize()}: --path {path}."]
    is_test = np.arange(len(cameras)) >= len(train.names)
    return Report(lines, draw(cameras, is_test, loader.points(), train.scale), facts)


def views_line(config, scenes):
    """How many views there are, and of which size."""
    counts = [f"{len(scenes['train'].names)} training", f"{len(scenes['test'].names)} test"]
    if scenes.get("val", scenes["test"]).names != scenes["test"].names:
        counts.append(f"{len(scenes['val'].names)} validation")
    sizes = sorted({tuple(size) for scene in scenes.values()
                    for size in scene.cameras.sizes.tolist()}, reverse=True)
    listed = ", ".join(f"{width}x{height}" for width, height in sizes[:4])
    more = ", ..." if len(sizes) > 4 else ""
    masked = ", with masks" if scenes["train"].mask_files else ""
    return (f"{Path(config.scene).name} ({config.dataset_name}, --factor {config.factor}): "
            f"{' and '.join(counts)} views of {listed}{more} pixels{masked}.")


def lens_line(cameras):
    """Focal lengths and angles of view."""
    focal = 1 / cameras.pixtocams[:, 0, 0].abs()
    across = (0.5 * cameras.sizes[:, 0] / focal).arctan().rad2deg() * 2
    kind = "pinhole" if cameras.distortion is None else "distorted"
    kind = kind if cameras.fisheye is None else "fisheye"
    return (f"Lenses: {kind}, focal lengths {spanned(focal, '.1f')} pixels"
            + ("." if kind == "fisheye" else f", {spanned(across, '.0f')} degrees wide."))


def spanned(values, form):
    """One number, or the smallest and the largest."""
    ends = [format(float(end), form) for end in (values.min(), values.max())]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def points_line(facts):
    """How many sparse points there are, and how well the cameras agree about them."""
    error = facts["reprojection_error"]
    told = ("no reprojection error is told" if error is None
            else f"mean reprojection error {error:.2f} pixels of the full size")
    return f"{facts['points']:,} sparse points; {told}."


def range_line(facts, ndc):
    """The scene's scale and the range in which rays are sampled."""
    near, far, scale = facts["near"], facts["far"], facts["scale"]
    line = f"Scale: 1 unit of the files is {scale:.4g} of the scene's. "
    if ndc is not None:
        return line + f"Rays run from {near:g} to {far:g} in NDC."
    return line + (f"Rays run from near {near:.3g} to far {far:.3g} ({near / scale:.3g} to "
                   f"{far / scale:.3g} units of the files).")


def draw(cameras, is_test, points, scale):
    """The cameras and points `[M, 3]` from above and from the side: uint8 `[h, w, 3]`.

    is_test: `[N]`, which cameras are drawn as test views; scale: of the scene, for the ruler.
    """
    camtoworlds = cameras.camtoworlds.double().numpy()
    up = pose_utils.up_direction(camtoworlds)
    x, y = pose_utils.horizontal_axes(up)
    view = look(cameras)
    middle, half_width = shown(view, points)
    spread = np.ptp(camtoworlds[:, :, 3], axis=0).max()
    size = min(0.1 * half_width, 0.2 * spread or np.inf)
    corners = (size * corner_rays(cameras).viewdirs.double().numpy()
               + camtoworlds[:, None, :, 3])
    panels = []
    for title, axes in (("from above", [x, y]), ("from the side", [x, up])):
        canvas = Canvas(middle, np.stack(axes), half_width)
        if not len(points):
            for pose in camtoworlds:
                canvas.line(pose[:, 3], pose[:, 3] - view.distance * pose[:, 2], SIGHT)
        canvas.dots(points, POINT)
        for pose, ends, test in zip(camtoworlds, corners, is_test, strict=True):
            canvas.pyramid(pose[:, 3], ends, TEST if test else TRAIN)
        panels.append(canvas.finished(title, scale))
    return np.concatenate(panels, axis=1)


def shown(view, points):
    """The middle `[3]` of what a picture shows, and half its width."""
    positions = view.camtoworlds[:, :, 3]
    middle = 0.5 * (positions.min(axis=0) + positions.max(axis=0))
    if len(points):
        middle = 0.5 * (middle + np.median(points, axis=0))
    reach = np.linalg.norm(positions - middle, axis=1).max()
    if len(points):
        away = np.linalg.norm(points - middle, axis=1)
        reach = max(reach, min(np.percentile(away, 90), REACH * max(view.distance, reach)))
    else:
        reach = max(reach, view.distance)
    return middle, 1.2 * max(reach, 1e-6)


class Canvas:
    """A square picture of space seen along one direction, drawn larger than it becomes.

    middle: `[3]`, the point in its middle; axes: `[2, 3]`, unit vectors to the right and upward.
    """

    def __init__(self, middle, axes, half_width):
        self.middle, self.axes, self.half_width = middle, axes, half_width
        self.side = OVERSAMPLING * SIDE
        self.image = np.full((self.side, self.side, 3), 255, dtype=np.uint8)

    def pixels(self, points):
        """Where points `[..., 3]` are drawn: integers `[..., 2]`."""
        offset = (np.asarray(points) - self.middle) @ self.axes.T / self.half_width
        # Far outside, where OpenCV's integers still hold.
        offset = np.clip(offset, -50, 50) * [1, -1]
        return np.rint((0.5 + 0.5 * offset) * self.side).astype(int)

    def line(self, start, end, colour):
        ends = (tuple(p.tolist()) for p in self.pixels([start, end]))
        cv2.line(self.image, *ends, colour, OVERSAMPLING, cv2.LINE_AA)

    def dots(self, points, colour):
        x, y = self.pixels(points).T
        inside = (x >= 0) & (x < self.side - 1) & (y >= 0) & (y < self.side - 1)
        x, y = x[inside], y[inside]
        for across in (0, 1):
            for down in (0, 1):
                self.image[y + down, x + across] = colour

    def pyramid(self, apex, corners, colour):
        """A camera: lines from its position to the corners `[4, 3]` of its picture, and these."""
        for i in range(4):
            self.line(apex, corners[i], colour)
            self.line(corners[RING[i]], corners[RING[(i + 1) % 4]], colour)

    def finished(self, title, scale):
        """The picture, with its title and a ruler in the units of the scene's files."""
        length = 10 ** math.floor(math.log10(self.half_width / scale))
        pixels = round(length * scale / self.half_width * self.side / 2)
        bottom = self.side - 12 * OVERSAMPLING
        start = 10 * OVERSAMPLING
        cv2.line(self.image, (start, bottom), (start + pixels, bottom), TEXT, 2 * OVERSAMPLING)
        self._write(f"{length:g}", (start, bottom - 5 * OVERSAMPLING))
        self._write(title, (start, 20 * OVERSAMPLING))
        return cv2.resize(self.image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)

    def _write(self, text, place):
        cv2.putText(self.image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * OVERSAMPLING, TEXT,
                    OVERSAMPLING, cv2.LINE_AA)
