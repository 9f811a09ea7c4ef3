"""The demo scene, a still life with exact images, and its files in each format.

The forward-facing scene and the captures show it with surroundings.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import imageio.v3 as imageio
import numpy as np
import torch

from procedural.still_life import FORWARD_FACING, ROOM
from procedural.tracing import intersect, pixel_rays, render, single_thread, trace
from runtime.files import new_folder

# Blender: square images from a hemisphere, supersampled along each axis.
BLENDER_SIZE = 200
BLENDER_SUPERSAMPLE = 3
BLENDER_ANGLE_X = 0.69
BLENDER_RADIUS = 4.0
NUM_BLENDER_VIEWS = 80
TEST_EVERY = 4

# LLFF: a grid of forward-facing cameras.
LLFF_SIZE = (120, 90)
LLFF_FACTOR = 4
LLFF_FOCAL = 112.0
LLFF_GRID = (6, 4)
LLFF_HOLD = 8

# COLMAP and nerfstudio: a walk around the still life. The lens, in pixels of the stored images, is
# distorted and its principal point off the centre.
CAPTURE_SIZE = (96, 72)
CAPTURE_FACTOR = 4
NUM_CAPTURE_VIEWS = 40
NUM_CAPTURE_POINTS = 2000
CAPTURE_LENS = {"fl_x": 84.0, "fl_y": 85.0, "cx": 49.5, "cy": 34.8,
                "k1": -0.08, "k2": 0.02, "p1": 0.004, "p2": -0.003}


# Cameras.


def look_at(position, target=(0.0, 0.0, 0.0)) -> np.ndarray:
    """camtoworld [4, 4], with OpenGL axes, of an upright camera at `position` facing `target`."""
    camtoworld = np.eye(4)
    back = np.asarray(position, np.float64) - target
    right = np.cross((0.0, 0.0, 1.0), back)
    camtoworld[:3, 2] = back / np.linalg.norm(back)
    camtoworld[:3, 0] = right / np.linalg.norm(right)
    camtoworld[:3, 1] = np.cross(camtoworld[:3, 2], camtoworld[:3, 0])
    camtoworld[:3, 3] = position
    return camtoworld


def pinhole(width: int, height: int, focal: float) -> np.ndarray:
    """pixtocam [3, 3] to OpenGL camera axes; `focal` in pixels, principal point at the centre."""
    return np.array([[1, 0, -width / 2], [0, -1, height / 2], [0, 0, -focal]]) / focal


def blender_cameras(split: str, size: int = BLENDER_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """camtoworlds [N, 4, 4] and their common pixtocam [3, 3], for images of size x size pixels.

    split: "train" or "test". The cameras are evenly distributed over the upper hemisphere on a
    spiral, from 80° to 5° above the horizon. Every fourth view is a test view, so its neighbours
    are training views.
    """
    i = np.arange(NUM_BLENDER_VIEWS)
    z = np.interp(i, (0, NUM_BLENDER_VIEWS - 1), np.sin(np.radians((80, 5))))
    angle = i * math.pi * (3 - math.sqrt(5))
    xyz = np.stack([np.cos(angle) * np.sqrt(1 - z**2), np.sin(angle) * np.sqrt(1 - z**2), z], -1)
    chosen = (i % TEST_EVERY == TEST_EVERY // 2) == (split == "test")
    focal = size / 2 / math.tan(BLENDER_ANGLE_X / 2)
    camtoworlds = np.stack([look_at(BLENDER_RADIUS * p) for p in xyz[chosen]])
    return camtoworlds, pinhole(size, size, focal)


def llff_cameras() -> tuple[np.ndarray, np.ndarray]:
    """camtoworlds [N, 4, 4] on a jittered grid facing +y, and pixtocam [3, 3] of the stored size.

    Every eighth view, which LLFF holds out, is moved inwards, so that others surround it.
    """
    columns, rows = LLFF_GRID
    z, x = np.meshgrid(np.linspace(0.3, -0.3, rows), np.linspace(-0.5, 0.5, columns), indexing="ij")
    grid = np.stack([x.ravel(), z.ravel()], -1)
    grid += np.random.default_rng(0).uniform(-0.05, 0.05, grid.shape)
    grid[::LLFF_HOLD] *= 0.6
    camtoworlds = [look_at((x, -3.3, 0.5 + z), (0.25 * x, 0.3, 0.02)) for x, z in grid]
    return np.stack(camtoworlds), pinhole(*LLFF_SIZE, LLFF_FOCAL)


def capture_cameras() -> np.ndarray:
    """camtoworlds [N, 4, 4] of a walk around the still life, facing inward: low, then high.

    The walk is an ellipse, so that the cameras' principal axes are well defined.
    """
    angle = np.arange(NUM_CAPTURE_VIEWS) * (4 * math.pi / NUM_CAPTURE_VIEWS)
    high = np.arange(NUM_CAPTURE_VIEWS) >= NUM_CAPTURE_VIEWS // 2
    x, y = 3.6 * np.cos(angle), 3.1 * np.sin(angle)
    z = np.where(high, 1.9, 0.7) + 0.15 * np.sin(3 * angle)
    return np.stack([look_at(p, (0.0, 0.0, 0.05)) for p in np.stack([x, y, z], axis=-1)])


def capture_matrix() -> np.ndarray:
    """OpenCV's intrinsic matrix [3, 3] of the images of the walk."""
    lens = CAPTURE_LENS
    return np.array([[lens["fl_x"], 0, lens["cx"]], [0, lens["fl_y"], lens["cy"]], [0, 0, 1]])


def capture_pixtocam() -> np.ndarray:
    """pixtocam [3, 3] of the images of the walk, without their distortion."""
    return np.diag([1.0, -1.0, -1.0]) @ np.linalg.inv(capture_matrix())


def undistort_capture(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Undistorted pixel coordinates of the walk's images, by OpenCV."""
    matrix, distortion = capture_matrix(), [CAPTURE_LENS[k] for k in ("k1", "k2", "p1", "p2")]
    pixels = np.stack([x, y], axis=-1).reshape(-1, 1, 2)
    criteria = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 100, 1e-12)
    undistorted = cv2.undistortPoints(
        pixels, matrix, np.array(distortion), P=matrix, criteria=criteria
    )
    return undistorted[:, 0, 0].reshape(x.shape), undistorted[:, 0, 1].reshape(y.shape)


def capture_image(camtoworld) -> np.ndarray:
    """One image of the walk as uint8 RGB [height, width, 3]."""
    return render(camtoworld, capture_pixtocam(), *CAPTURE_SIZE, supersample=2, parts=ROOM,
                  undistort=undistort_capture)[..., :3]


def capture_points() -> tuple[np.ndarray, np.ndarray]:
    """Surface points [M, 3] that the walk's images show, and their colours, uint8 [M, 3]."""
    rng = np.random.default_rng(0)
    points, colours = [], []
    for camtoworld in capture_cameras():
        pixels = rng.uniform(0, CAPTURE_SIZE, (NUM_CAPTURE_POINTS // NUM_CAPTURE_VIEWS, 2))
        rays = pixel_rays(camtoworld, capture_pixtocam(), *undistort_capture(*pixels.T))
        hits = trace(*rays, ROOM)
        points.append(rays[0] + hits.distance[:, None] * rays[1])
        colours.append(hits.rgb)
    colours = (255 * torch.cat(colours)).round().to(torch.uint8)
    return torch.cat(points).numpy(), colours.numpy()


def in_parallel(render_view: Callable, camtoworlds: Iterable) -> Iterator[np.ndarray]:
    """The image of each camera, in order; the cores of the machine divide the views."""
    pool = ThreadPoolExecutor(os.cpu_count())
    with single_thread():
        try:
            yield from pool.map(render_view, camtoworlds)
        finally:
            pool.shutdown(cancel_futures=True)


def capture_views() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """camtoworld [4, 4] and image of each view of the walk."""
    camtoworlds = capture_cameras()
    return zip(camtoworlds, in_parallel(capture_image, camtoworlds), strict=True)


# Files.


def write_blender(folder: str | Path, size: int = BLENDER_SIZE) -> None:
    """Write the scene in Blender format, unless `folder` exists.

    60 training and 20 test images of size x size pixels.
    """
    folder = Path(folder)
    if folder.exists():
        return
    with new_folder(folder) as unfinished:
        for split in ("train", "test"):
            (unfinished / split).mkdir()
            camtoworlds, pixtocam = blender_cameras(split, size)
            frames = []
            images = in_parallel(lambda pose, pixtocam=pixtocam: render(
                pose, pixtocam, size, size, BLENDER_SUPERSAMPLE), camtoworlds)
            for i, (camtoworld, rgba) in enumerate(zip(camtoworlds, images, strict=True)):
                imageio.imwrite(unfinished / split / f"r_{i}.png", rgba)
                frames.append(
                    {"file_path": f"./{split}/r_{i}", "transform_matrix": camtoworld.tolist()}
                )
            meta = {"camera_angle_x": BLENDER_ANGLE_X, "frames": frames}
            (unfinished / f"transforms_{split}.json").write_text(json.dumps(meta, indent=2))


def _depth_bounds(camtoworld, pixtocam, width: int, height: int) -> tuple[float, float]:
    """Smallest and largest depth in an image, slightly widened."""
    corners = np.meshgrid(np.arange(width + 1.0), np.arange(height + 1.0))
    depth = intersect(*pixel_rays(camtoworld, pixtocam, *corners), FORWARD_FACING).distance
    return 0.97 * depth.min().item(), 1.03 * depth.max().item()


def write_llff(folder: str | Path) -> None:
    """Write the forward-facing scene in LLFF format, unless `folder` exists.

    `poses_bounds.npy` describes images LLFF_FACTOR times larger than those in `images_4`.
    """
    folder = Path(folder)
    if folder.exists():
        return
    camtoworlds, pixtocam = llff_cameras()
    width, height = LLFF_SIZE
    full_size = LLFF_FACTOR * np.array([height, width, LLFF_FOCAL])
    with new_folder(folder) as unfinished:
        images = unfinished / f"images_{LLFF_FACTOR}"
        images.mkdir()
        rows = []
        views = in_parallel(lambda pose: render(pose, pixtocam, width, height,
                                                parts=FORWARD_FACING), camtoworlds)
        for i, (camtoworld, rgba) in enumerate(zip(camtoworlds, views, strict=True)):
            imageio.imwrite(images / f"image{i:03d}.png", rgba[..., :3])
            right, up, back, position = camtoworld[:3].T
            pose = np.stack([-up, right, back, position, full_size], axis=1)
            bounds = _depth_bounds(camtoworld, pixtocam, width, height)
            rows.append(np.concatenate([pose.ravel(), bounds]))
        np.save(unfinished / "poses_bounds.npy", np.stack(rows))


def write_nerfstudio(folder: str | Path) -> None:
    """Write the walk around the still life in nerfstudio's format, unless `folder` exists."""
    folder = Path(folder)
    if folder.exists():
        return
    with new_folder(folder) as unfinished:
        (unfinished / "images").mkdir()
        frames = []
        for i, (camtoworld, image) in enumerate(capture_views()):
            name = f"images/frame_{i:05d}.png"
            imageio.imwrite(unfinished / name, image)
            frames.append({"file_path": name, "transform_matrix": camtoworld.tolist()})
        width, height = CAPTURE_SIZE
        meta = {"camera_model": "OPENCV", "w": width, "h": height} | CAPTURE_LENS
        text = json.dumps(meta | {"frames": frames}, indent=2)
        (unfinished / "transforms.json").write_text(text)


def write_colmap(folder: str | Path) -> None:
    """Write the walk around the still life as a COLMAP model and images, unless `folder` exists.

    The model describes images CAPTURE_FACTOR times larger than those in `images_4`.
    """
    import pycolmap

    folder = Path(folder)
    if folder.exists():
        return
    lens, factor = list(CAPTURE_LENS.values()), CAPTURE_FACTOR
    width, height = (factor * side for side in CAPTURE_SIZE)
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(pycolmap.Camera(
        camera_id=1, model="OPENCV", width=width, height=height,
        params=[*(factor * value for value in lens[:4]), *lens[4:]],
    ))
    with new_folder(folder) as unfinished:
        images, sparse = unfinished / f"images_{factor}", unfinished / "sparse" / "0"
        images.mkdir()
        sparse.mkdir(parents=True)
        for i, (camtoworld, image) in enumerate(capture_views()):
            name = f"frame_{i:05d}.png"
            imageio.imwrite(images / name, image)
            opencv = np.linalg.inv(camtoworld @ np.diag([1.0, -1.0, -1.0, 1.0]))
            model.add_image_with_trivial_frame(
                pycolmap.Image(name=name, camera_id=1, image_id=i + 1),
                pycolmap.Rigid3d(opencv[:3]),
            )
        for point, colour in zip(*capture_points(), strict=True):
            model.add_point3D(point, pycolmap.Track(), colour)
        model.write(str(sparse))
