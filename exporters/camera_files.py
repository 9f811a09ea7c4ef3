"""Cameras as other programs read them: nerfstudio's transforms.json and COLMAP's text model.

Poses are in the coordinates of the scene's files.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

import pose_utils
from runtime.errors import UserError
from structures import Scene


class Photograph(NamedTuple):
    """One camera. pose: `[3, 4]`, OpenGL axes; the lens in pixels, with OpenCV's distortion."""

    name: str
    split: str
    pose: np.ndarray
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...]
    is_fisheye: bool


def photographs(scenes: Mapping[str, Scene]) -> Iterator[Photograph]:
    """The cameras of some splits, each photograph once."""
    names = set()
    for split, scene in scenes.items():
        cameras = scene.cameras
        to_files = np.linalg.inv(scene.world_to_scene.cpu().double().numpy())
        poses = pose_utils.transform_poses(cameras.camtoworlds.cpu().double().numpy(), to_files)
        for i, name in enumerate(scene.names):
            if name in names:
                continue
            names.add(name)
            camera = np.linalg.inv(cameras.pixtocams[i].cpu().double().numpy()
                                   * np.array([[1.0], [-1.0], [-1.0]]))
            distortion = (0.0,) * 6 if cameras.distortion is None else tuple(
                cameras.distortion[i].tolist())
            yield Photograph(name, split, poses[i][:3], *cameras.sizes[i].tolist(), camera[0, 0],
                             camera[1, 1], camera[0, 2], camera[1, 2], distortion,
                             cameras.fisheye is not None and bool(cameras.fisheye[i]))


def transforms_json(scenes: Mapping[str, Scene]) -> str:
    """nerfstudio's `transforms.json` of some splits, with the lens of each frame."""
    frames: list[dict[str, Any]] = []
    lists: dict[str, list[str]] = {f"{split}_filenames": [] for split in scenes}
    for photo in photographs(scenes):
        k1, k2, k3, k4, p1, p2 = photo.distortion
        frames.append({
            "file_path": photo.name, "w": photo.width, "h": photo.height, "fl_x": photo.fx,
            "fl_y": photo.fy, "cx": photo.cx, "cy": photo.cy,
            "camera_model": "OPENCV_FISHEYE" if photo.is_fisheye else "OPENCV",
            "k1": k1, "k2": k2, "k3": k3, "k4": k4, "p1": p1, "p2": p2,
            "transform_matrix": pose_utils.homogeneous(photo.pose[None])[0].tolist()})
        lists[f"{photo.split}_filenames"].append(photo.name)
    lists = {name: files for name, files in lists.items() if files}
    return json.dumps(lists | {"frames": frames}, indent=1)


def colmap_files(scenes: Mapping[str, Scene]) -> dict[str, str]:
    """The text files of a COLMAP model by name: a camera per photograph, no points.

    Raises UserError for a lens that COLMAP's models cannot express.
    """
    cameras, images = [], []
    for i, photo in enumerate(photographs(scenes), start=1):
        model, parameters = colmap_lens(photo)
        numbers = " ".join(f"{x:.17g}" for x in (photo.fx, photo.fy, photo.cx, photo.cy,
                                                 *parameters))
        cameras.append(f"{i} {model} {photo.width} {photo.height} {numbers}\n")
        rotation = (photo.pose[:, :3] * [1.0, -1.0, -1.0]).T
        placed = [*quaternion(rotation), *(-rotation @ photo.pose[:, 3])]
        images.append(f"{i} {' '.join(f'{x:.17g}' for x in placed)} {i} {photo.name}\n\n")
    return {"cameras.txt": "".join(cameras), "images.txt": "".join(images), "points3D.txt": ""}


def colmap_lens(photo: Photograph) -> tuple[str, tuple[float, ...]]:
    """COLMAP's camera model of a lens, and its parameters after the principal point."""
    k1, k2, k3, k4, p1, p2 = photo.distortion
    if photo.is_fisheye:
        return "OPENCV_FISHEYE", (k1, k2, k3, k4)
    if k4:
        raise UserError(f"the lens of {photo.name} has k4 = {k4:g}, which no model of COLMAP "
                        "expresses; use transforms.json.")
    if k3:
        return "FULL_OPENCV", (k1, k2, p1, p2, k3, 0.0, 0.0, 0.0)
    return ("OPENCV", (k1, k2, p1, p2)) if any((k1, k2, p1, p2)) else ("PINHOLE", ())


def quaternion(rotation: np.ndarray) -> list[float]:
    """The unit quaternion w, x, y, z of a rotation matrix `[3, 3]`."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation).as_quat().tolist()
    return [w, x, y, z]
