"""Small scenes on disk, written without the project's own writers, and helpers to open them."""

import json
from pathlib import Path

import cv2
import numpy as np
from imageio.v3 import imwrite
from scipy.spatial.transform import Rotation

from config import get_config
from datasets import load_dataset

GOLDEN_DATASETS = Path(__file__).parent / "golden" / "google_datasets.npz"
ANGLE = 0.7


def look_at(position):
    """A pose `[4, 4]` at `position` that looks at the origin, z up."""
    position = np.asarray(position, dtype=float)
    z = position / np.linalg.norm(position)
    x = np.cross([0, 0, 1], z)
    x /= np.linalg.norm(x)
    pose = np.eye(4)
    pose[:3] = np.stack([x, np.cross(z, x), z, position], axis=1)
    return pose


def random_images(count, size, channels, seed=0):
    rng = np.random.default_rng(seed)
    width, height = size
    return [rng.integers(0, 256, (height, width, channels), dtype=np.uint8) for _ in range(count)]


def round_poses(count):
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return [look_at([3.5 * np.cos(a), 3.5 * np.sin(a), 1.5]) for a in angles]


def write_blender(folder, num_views=3, size=(12, 8), images=None, splits=("train", "test")):
    images = images or random_images(num_views, size, 4)
    poses = round_poses(len(images))
    for split in splits:
        (folder / split).mkdir(parents=True)
        frames = []
        for i, (image, pose) in enumerate(zip(images, poses, strict=True)):
            imwrite(folder / split / f"r_{i}.png", image)
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": pose.tolist()})
        (folder / f"transforms_{split}.json").write_text(
            json.dumps({"camera_angle_x": ANGLE, "frames": frames})
        )


def write_llff(folder, num_views=9, factor=4, size=(12, 8), poses=None):
    """Forward-facing cameras in a row, or at `poses [N, 4, 4]`."""
    if poses is None:
        poses = np.tile(np.eye(4), (num_views, 1, 1))
        poses[:, 0, 3] = np.linspace(-0.5, 0.5, num_views)
        poses[:, 1, 3] = 0.2 * np.cos(np.arange(num_views))
        poses[:, 2, 3] = 0.1 * np.sin(np.arange(num_views))
    right, up, rest = np.split(poses[:, :3], [1, 2], axis=2)
    hwf = np.tile(np.array([size[1], size[0], 15.0]) * factor, (len(poses), 1))
    matrices = np.concatenate([-up, right, rest, hwf[:, :, None]], axis=2)
    bounds = np.tile([2.0, 9.0], (len(poses), 1))
    (folder / f"images_{factor}").mkdir(parents=True)
    np.save(folder / "poses_bounds.npy", np.c_[matrices.reshape(-1, 15), bounds])
    for i, image in enumerate(random_images(len(poses), size, 3)):
        imwrite(folder / f"images_{factor}" / f"{i:03d}.png", image)


def walk_poses(count):
    """Poses on an ellipse about the origin that look at it, at varying heights."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return [look_at([4 * np.cos(a), 3 * np.sin(a), 1.5 + 0.2 * np.sin(2 * a)]) for a in angles]


def to_opencv(pose):
    """World-to-camera `[4, 4]` with OpenCV axes, from a camera-to-world `pose` with OpenGL axes."""
    return np.linalg.inv(pose @ np.diag([1, -1, -1, 1]))


def write_colmap(folder, num_views=9, factor=4, size=(12, 8), model="OPENCV", params=None,
                 names=None, points=None):
    """A model in COLMAP's text format, with one camera per view, and `images_<factor>`.

    params: parameters of all cameras, or a list per camera, in pixels of the full size.
    """
    width, height = factor * size[0], factor * size[1]
    params = params or [1.2 * width, 1.3 * width, 0.52 * width, 0.47 * height,
                        -0.05, 0.01, 0.002, -0.001]
    params = params if isinstance(params[0], list) else [params] * num_views
    names = names or [f"{i:03d}.png" for i in range(num_views)]
    if points is None:
        points = np.random.default_rng(1).uniform(-0.7, 0.7, (50, 3))
    cameras, images = [], []
    for i, (pose, name) in enumerate(zip(walk_poses(num_views), names, strict=True)):
        opencv = to_opencv(pose)
        x, y, z, w = Rotation.from_matrix(opencv[:3, :3]).as_quat()
        cameras.append((i + 1, model, width, height, *params[i]))
        images.append((i + 1, w, x, y, z, *opencv[:3, 3], i + 1, name))
    (folder / "sparse" / "0").mkdir(parents=True)
    for file, rows, between in (
        ("cameras", cameras, "\n"), ("images", images, "\n\n"),
        ("points3D", [(i + 1, *p, 9, 9, 9, 0.5) for i, p in enumerate(points)], "\n"),
    ):
        lines = [" ".join(map(str, row)) + between for row in rows]
        (folder / "sparse" / "0" / f"{file}.txt").write_text("".join(lines))
    for name, image in zip(names, random_images(num_views, size, 3), strict=True):
        file = folder / (f"images_{factor}" if factor > 1 else "images") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        imwrite(file, image)


NERFSTUDIO_LENS = {"camera_model": "OPENCV", "fl_x": 14.0, "fl_y": 15.0, "cx": 6.3, "cy": 3.8,
                   "k1": -0.05, "k2": 0.01, "p1": 0.002, "p2": -0.001}


def write_nerfstudio(folder, num_views=9, size=(12, 8), lens=None, channels=3, **meta):
    """`transforms.json` and `images/`; `lens` replaces the intrinsics, `meta` adds entries."""
    (folder / "images").mkdir(parents=True)
    frames = []
    for i, (pose, image) in enumerate(zip(
        walk_poses(num_views), random_images(num_views, size, channels), strict=True
    )):
        imwrite(folder / "images" / f"{i:03d}.png", image)
        frames.append({"file_path": f"images/{i:03d}.png", "transform_matrix": pose.tolist()})
    lens = lens or NERFSTUDIO_LENS | {"w": size[0], "h": size[1]}
    (folder / "transforms.json").write_text(json.dumps(lens | meta | {"frames": frames}))


def write_multicam(folder, num_views=2, size=(12, 8)):
    """Views at three scales with random images."""
    meta = {}
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        lists = {key: [] for key in ("file_path", "cam2world", "pix2cam", "width", "height",
                                     "near", "far", "lossmult", "label")}
        for i, pose in enumerate(round_poses(num_views)):
            for j in range(3):
                width, height = size[0] // 2**j, size[1] // 2**j
                name = f"{split}/{i}_{j}.png"
                imwrite(folder / name, random_images(1, (width, height), 4, seed=i + j)[0])
                focal = 0.5 * width / np.tan(0.5 * ANGLE)
                pix2cam = [[1 / focal, 0, -0.5 * width / focal],
                           [0, -1 / focal, 0.5 * height / focal], [0, 0, -1]]
                for key, value in (
                    ("file_path", name), ("cam2world", pose.tolist()), ("pix2cam", pix2cam),
                    ("width", width), ("height", height), ("near", 2.0), ("far", 6.0),
                    ("lossmult", 4.0**j), ("label", j),
                ):
                    lists[key].append(value)
        meta[split] = lists
    (folder / "metadata.json").write_text(json.dumps(meta))


def write_nerv(folder, num_views=3, size=(12, 8)):
    """Views of random radiance in 16-bit PNGs, each under its own point light."""
    rng = np.random.default_rng(0)
    for split, inside in (("train", "train_point"), ("test", ".")):
        (folder / inside / split).mkdir(parents=True)
        frames = []
        for i, pose in enumerate(round_poses(num_views)):
            image = rng.integers(0, 65536, (size[1], size[0], 4), dtype=np.uint16)
            cv2.imwrite(str(folder / inside / split / f"r_{i}.png"), image)
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": pose.tolist(),
                           "light_loc": rng.normal(size=3).tolist()})
        (folder / inside / f"transforms_{split}.json").write_text(
            json.dumps({"camera_angle_x": ANGLE, "frames": frames}))


def write_official(kind, folder):
    """Write the inputs of the official code's golden arrays; returns all arrays."""
    with np.load(GOLDEN_DATASETS) as file:
        arrays = {k.split(".")[1]: file[k] for k in file.files if k.startswith(f"{kind}.")}
    folder.mkdir(parents=True)
    if kind == "blender":
        frames = []
        for i, image in enumerate(arrays["rgba"]):
            imwrite(folder / f"r_{i}.png", image)
            frames.append({"file_path": f"r_{i}",
                           "transform_matrix": arrays["camtoworlds"][i].tolist()})
        meta = {"camera_angle_x": float(arrays["camera_angle_x"]), "frames": frames}
        (folder / "transforms_test.json").write_text(json.dumps(meta))
    elif kind == "llff":
        np.save(folder / "poses_bounds.npy", arrays["poses_bounds"].astype(np.float64))
        (folder / "images_4").mkdir()
        for i, image in enumerate(arrays["images_uint8"]):
            imwrite(folder / "images_4" / f"{i:03d}.png", image)
    else:
        count = len(arrays["meta_width"])
        meta = {key[5:]: arrays[key].tolist() for key in arrays if key.startswith("meta_")}
        meta |= {"file_path": [f"{i}.png" for i in range(count)], "label": list(range(count)),
                 "near": [float(arrays["near"][0, 0])] * count,
                 "far": [float(arrays["far"][0, 0])] * count}
        (folder / "metadata.json").write_text(json.dumps({"train": meta}))
        for i in range(count):
            imwrite(folder / f"{i}.png", arrays[f"rgba_{i}"])
    return arrays


WRITERS = {"blender": write_blender, "colmap": write_colmap, "llff": write_llff,
           "multicam": write_multicam, "nerfstudio": write_nerfstudio, "nerv": write_nerv}


def open_scene(folder, dataset, split="train", *flags, read_pixels=True):
    """The `NeRFDataset` of a scene folder."""
    config = get_config(["--dataset_name", dataset, "--scene", str(folder), *flags])
    return load_dataset(config, split, read_pixels=read_pixels)


def change_json(path, change):
    """Apply the function `change` to the content of a JSON file."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
