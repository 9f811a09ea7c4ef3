"""A report on a scene before training: number of views, lenses, ray range, and a plot.

The plot shows cameras and sparse points from above and from the side; most defects of a capture are
visible there.
"""

import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

import pose_utils
from cameras.paths import CameraLayout, choose_path, summarize_cameras
from config import get_config
from datasets import DATASETS, load_dataset
from loaders.folders import shipped_folders
from ray_utils import corner_rays
from runtime.errors import UserError
from structures import Cameras, Scene, concatenate

# Side of each half of the plot in pixels; it is drawn larger by OVERSAMPLING. It shows the cameras,
# and points up to MAX_EXTENT times the cameras' distance to their focus.
SIDE = 480
OVERSAMPLING = 2
MAX_EXTENT = 3.0

# The corners of an image as `corner_rays` orders them, in the order of a closed polygon.
POLYGON = (0, 1, 3, 2)

# Colours, 8 bits: training views, test views, points, optical axes, text.
TRAIN, TEST, POINT, AXIS, TEXT = (31, 90, 180), (230, 110, 20), (60, 60, 60), (215,) * 3, (0,) * 3


class Report(NamedTuple):
    """A report on a scene.

    lines: sentences; image: the plot, uint8 `[h, w, 3]`; statistics: numbers by name.
    """

    lines: list[str]
    image: np.ndarray
    statistics: dict


def scene_config(folder: str | Path, dataset_name: str | None = None, factor: int | None = None):
    """The config of the scene in `folder`, with the format and the finest size if not given.

    Raises UserError if the folder does not look like any known format.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one that holds a scene.")
    dataset_name = dataset_name or detect_format(folder)
    if factor is None:
        shipped = shipped_folders(folder) if dataset_name in ("colmap", "llff") else {}
        factor = min(shipped, default=1)
    return get_config(["--dataset_name", dataset_name, "--scene", str(folder), "--factor",
                       str(factor)])


def detect_format(folder: Path) -> str:
    """The name of the format whose marker the folder holds. Raises UserError if there is none."""
    markers = {name: loader.marker for name, loader in DATASETS.items()}
    for name, marker in markers.items():
        if (folder / marker).exists():
            return name
    raise UserError(f"{folder} holds none of {', '.join(markers.values())}, which identify the "
                    "formats; give --dataset_name, or make a scene from photographs with "
                    "`python scripts/prepare_capture.py FOLDER OUT`.")


def examine_scene(config) -> Report:
    """The `Report` of a config's scene. Raises UserError for missing or inconsistent files."""
    dataset = load_dataset(config, "train", read_pixels=False)
    loader, scenes = dataset.loader, dataset.scenes()
    loaded = [loader.load(split) for split in scenes]
    for scene in loaded:
        loader.check_images(scene)
    has_masks = any(scene.mask_files for scene in loaded)
    train, test = scenes["train"], scenes.get("test", scenes.get("val"))
    cameras = concatenate([train.cameras, *([test.cameras] if test else [])])
    path, arrangement = choose_path(train.cameras)
    near, far = cameras.visible_range or (float(cameras.near.min()), float(cameras.far.max()))
    statistics = {
        "dataset_name": config.dataset_name, "factor": config.factor,
        "views": {split: len(scene.names) for split, scene in scenes.items()},
        "reprojection_error": loader.reprojection_error, "points": len(loader.points()),
        "scale": train.scale, "near": near, "far": far,
        "arrangement": arrangement, "path": path,
    }
    lines = [views_line(config, scenes, has_masks), lens_line(cameras), points_line(statistics),
             range_line(statistics, cameras.ndc), f"{arrangement.capitalize()}: --path {path}."]
    is_test = np.arange(len(cameras)) >= len(train.names)
    return Report(lines, plot_cameras(cameras, is_test, loader.points(), train.scale), statistics)


# Sentences.


def views_line(config, scenes: dict[str, Scene], has_masks: bool) -> str:
    """The number of views and their sizes."""
    train, test, val = (scenes[s].names if s in scenes else () for s in ("train", "test", "val"))
    counts = [f"{len(train)} training", f"{len(test) or 'no'} test"]
    if val not in ((), test):
        counts.append(f"{len(val)} validation")
    sizes = sorted({tuple(size) for scene in scenes.values()
                    for size in scene.cameras.sizes.tolist()}, reverse=True)
    listed = ", ".join(f"{width}x{height}" for width, height in sizes[:4])
    more = ", ..." if len(sizes) > 4 else ""
    masked = ", with masks" if has_masks else ""
    return (f"{Path(config.scene).name} ({config.dataset_name}, --factor {config.factor}): "
            f"{' and '.join(counts)} views of {listed}{more} pixels{masked}.")


def lens_line(cameras: Cameras) -> str:
    """Lens model, focal lengths and fields of view."""
    focal = 1 / cameras.pixtocams[:, 0, 0].abs()
    across = (0.5 * cameras.sizes[:, 0] / focal).arctan().rad2deg() * 2
    kind = "pinhole" if cameras.distortion is None else "distorted"
    kind = kind if cameras.fisheye is None else "fisheye"
    return (f"Lenses: {kind}, focal lengths {interval(focal, '.1f')} pixels"
            + ("." if kind == "fisheye" else f", {interval(across, '.0f')} degrees wide."))


def interval(values, form: str) -> str:
    """The smallest and the largest of some values as text; one number if they are equal."""
    ends = [format(float(end), form) for end in (values.min(), values.max())]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def points_line(statistics: dict) -> str:
    """The number of sparse points and their reprojection error."""
    error = statistics["reprojection_error"]
    text = ("unknown reprojection error" if error is None
            else f"mean reprojection error {error:.2f} pixels of the full size")
    return f"{statistics['points']:,} sparse points; {text}."


def range_line(statistics: dict, ndc: tuple | None) -> str:
    """The scene's scale and the visible range of t."""
    near, far, scale = statistics["near"], statistics["far"], statistics["scale"]
    line = f"Scale: 1 unit of the files is {scale:.4g} units of the scene. "
    if ndc is not None:
        return line + f"Rays run from {near:g} to {far:g} in NDC."
    return line + (f"The cameras see distances from {near:.3g} to {far:.3g} ({near / scale:.3g} to "
                   f"{far / scale:.3g} units of the files).")


# The plot.


def plot_cameras(cameras: Cameras, is_test: np.ndarray, points: np.ndarray,
                 scale: float) -> np.ndarray:
    """The cameras and points `[M, 3]` from above and from the side: uint8 `[h, w, 3]`.

    is_test: bool `[N]`, which cameras are drawn as test views; scale: `Scene.scale`, for the ruler.
    """
    camtoworlds = cameras.camtoworlds.double().numpy()
    up = pose_utils.up_direction(camtoworlds)
    x, y = pose_utils.horizontal_axes(up)
    layout = summarize_cameras(cameras)
    centre, half_width = plot_extent(layout, points)
    extent = np.ptp(camtoworlds[:, :, 3], axis=0).max()
    size = min(0.1 * half_width, 0.2 * extent or np.inf)
    corners = (size * corner_rays(cameras).viewdirs.double().numpy()
               + camtoworlds[:, None, :, 3])
    panels = []
    for title, axes in (("from above", [x, y]), ("from the side", [x, up])):
        canvas = Canvas(centre, np.stack(axes), half_width)
        if not len(points):
            for pose in camtoworlds:
                canvas.line(pose[:, 3], pose[:, 3] - layout.distance * pose[:, 2], AXIS)
        canvas.dots(points, POINT)
        for pose, ends, test in zip(camtoworlds, corners, is_test, strict=True):
            canvas.pyramid(pose[:, 3], ends, TEST if test else TRAIN)
        panels.append(canvas.finish(title, scale))
    return np.concatenate(panels, axis=1)


def plot_extent(layout: CameraLayout, points: np.ndarray) -> tuple[np.ndarray, float]:
    """The centre `[3]` of the plotted region, and half its width."""
    positions = layout.camtoworlds[:, :, 3]
    centre = 0.5 * (positions.min(axis=0) + positions.max(axis=0))
    if len(points):
        centre = 0.5 * (centre + np.median(points, axis=0))
    radius = np.linalg.norm(positions - centre, axis=1).max()
    if len(points):
        distances = np.linalg.norm(points - centre, axis=1)
        largest = MAX_EXTENT * max(layout.distance, radius)
        radius = max(radius, min(np.percentile(distances, 90), largest))
    else:
        radius = max(radius, layout.distance)
    return centre, 1.2 * max(radius, 1e-6)


class Canvas:
    """A square orthographic plot of space, drawn oversampled.

    centre: `[3]`, the point at its centre; axes: `[2, 3]`, unit vectors to the right and upward.
    """

    def __init__(self, centre: np.ndarray, axes: np.ndarray, half_width: float):
        self.centre, self.axes, self.half_width = centre, axes, half_width
        self.side = OVERSAMPLING * SIDE
        self.image = np.full((self.side, self.side, 3), 255, dtype=np.uint8)

    def pixels(self, points) -> np.ndarray:
        """Integer pixel coordinates `[..., 2]` of points `[..., 3]`."""
        offset = (np.asarray(points) - self.centre) @ self.axes.T / self.half_width
        # Keep far points within the range of OpenCV's integers.
        offset = np.clip(offset, -50, 50) * [1, -1]
        return np.rint((0.5 + 0.5 * offset) * self.side).astype(int)

    def line(self, start: np.ndarray, end: np.ndarray, colour: tuple) -> None:
        """Draw a line between two points `[3]`."""
        ends = (tuple(p.tolist()) for p in self.pixels([start, end]))
        cv2.line(self.image, *ends, colour, OVERSAMPLING, cv2.LINE_AA)

    def dots(self, points: np.ndarray, colour: tuple) -> None:
        """Draw points `[M, 3]` as squares of 2x2 pixels."""
        x, y = self.pixels(points).T
        inside = (x >= 0) & (x < self.side - 1) & (y >= 0) & (y < self.side - 1)
        x, y = x[inside], y[inside]
        for across in (0, 1):
            for down in (0, 1):
                self.image[y + down, x + across] = colour

    def pyramid(self, apex: np.ndarray, corners: np.ndarray, colour: tuple) -> None:
        """Draw a camera: its position connected to the corners `[4, 3]` of its image plane."""
        for i in range(4):
            self.line(apex, corners[i], colour)
            self.line(corners[POLYGON[i]], corners[POLYGON[(i + 1) % 4]], colour)

    def finish(self, title: str, scale: float) -> np.ndarray:
        """The plot with its title and a ruler in the units of the scene's files."""
        length = 10 ** math.floor(math.log10(self.half_width / scale))
        pixels = round(length * scale / self.half_width * self.side / 2)
        bottom = self.side - 12 * OVERSAMPLING
        start = 10 * OVERSAMPLING
        cv2.line(self.image, (start, bottom), (start + pixels, bottom), TEXT, 2 * OVERSAMPLING)
        self._write(f"{length:g}", (start, bottom - 5 * OVERSAMPLING))
        self._write(title, (start, 20 * OVERSAMPLING))
        return cv2.resize(self.image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)

    def _write(self, text, position):
        """Write text at pixel coordinates."""
        cv2.putText(self.image, text, position, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * OVERSAMPLING, TEXT,
                    OVERSAMPLING, cv2.LINE_AA)
