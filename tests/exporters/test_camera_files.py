"""Exported cameras, read back by pycolmap and by the loader of nerfstudio's format."""

import json

import numpy as np
import pycolmap
import pytest
import torch
from imageio.v3 import imwrite

from exporters.camera_files import colmap_files, transforms_json
from ray_utils import points_to_pixels
from runtime.errors import UserError
from tests.scenes import open_scene, write_blender, write_colmap, write_nerfstudio

LENS = {"fl_x": 11.0, "fl_y": 12.0, "cx": 6.2, "cy": 3.9, "k1": 0.05, "k2": -0.01, "p1": 0.002,
        "p2": -0.001, "w": 12, "h": 8}


def scenes_of(folder, dataset_name):
    return open_scene(folder, dataset_name, "train", read_pixels=False).scenes()


def in_files(scene, points):
    """Points of the scene in the coordinates of its files."""
    return points @ np.linalg.inv(scene.world_to_scene.double().numpy())[:3, :3].T + np.linalg.inv(
        scene.world_to_scene.double().numpy())[:3, 3]


def points_before(scene, index, count=20):
    """Points in the scene before one camera, and their pixels by our own projection."""
    rng = np.random.default_rng(index)
    pose = scene.cameras.camtoworlds[index].double().numpy()
    local = np.stack([rng.uniform(-0.3, 0.3, count), rng.uniform(-0.2, 0.2, count),
                      -np.ones(count)], axis=-1) * rng.uniform(0.5, 3, (count, 1))
    points = local @ pose[:, :3].T + pose[:, 3]
    pixels, _ = points_to_pixels(scene.cameras, torch.full((count,), index),
                                 torch.as_tensor(points, dtype=torch.float32))
    return points, pixels.numpy()


@pytest.mark.parametrize("dataset_name", ["nerfstudio", "blender"])
def test_colmap_projects_points_to_the_same_pixels(dataset_name, tmp_path):
    if dataset_name == "nerfstudio":
        write_nerfstudio(tmp_path / "scene", lens=LENS)
    else:
        write_blender(tmp_path / "scene", num_views=3)
    scenes = scenes_of(tmp_path / "scene", dataset_name)
    scenes = {"train": scenes["train"], "test": scenes["test"]}
    (tmp_path / "model").mkdir()
    for name, text in colmap_files(scenes).items():
        (tmp_path / "model" / name).write_text(text)
    model = pycolmap.Reconstruction(str(tmp_path / "model"))
    images = {image.name: image for image in model.images.values()}
    names = {name for scene in scenes.values() for name in scene.names}
    assert set(images) == names
    scene = scenes["train"]
    for index, name in enumerate(scene.names):
        points, expected = points_before(scene, index)
        found = [images[name].project_point(p) for p in in_files(scene, points)]
        np.testing.assert_allclose(np.array(found), expected, atol=2e-3)


def test_transforms_of_a_distorted_capture_are_read_back_alike(tmp_path):
    write_nerfstudio(tmp_path / "scene", lens=LENS)
    scenes = scenes_of(tmp_path / "scene", "nerfstudio")
    scenes = {"train": scenes["train"], "test": scenes["test"]}
    copy = tmp_path / "copy"
    (copy / "images").mkdir(parents=True)
    for file in (tmp_path / "scene" / "images").iterdir():
        (copy / "images" / file.name).write_bytes(file.read_bytes())
    (copy / "transforms.json").write_text(transforms_json(scenes))
    again = scenes_of(copy, "nerfstudio")
    for split, scene in scenes.items():
        assert again[split].names == scene.names
        for field in ("camtoworlds", "pixtocams", "distortion", "sizes"):
            torch.testing.assert_close(getattr(again[split].cameras, field),
                                       getattr(scene.cameras, field), atol=2e-5, rtol=1e-5)


def test_a_colmap_model_survives_the_round_trip(tmp_path):
    write_colmap(tmp_path / "scene", factor=1, size=(24, 16))
    scenes = scenes_of(tmp_path / "scene", "colmap")
    (tmp_path / "model").mkdir()
    for name, text in colmap_files({"train": scenes["train"]}).items():
        (tmp_path / "model" / name).write_text(text)
    ours = pycolmap.Reconstruction(str(tmp_path / "model"))
    theirs = pycolmap.Reconstruction(str(tmp_path / "scene" / "sparse" / "0"))
    originals = {image.name: image for image in theirs.images.values()}
    for image in ours.images.values():
        np.testing.assert_allclose(image.cam_from_world().matrix(),
                                   originals[image.name].cam_from_world().matrix(), atol=1e-5)


def test_lenses_that_colmap_lacks_are_refused(tmp_path):
    write_nerfstudio(tmp_path / "scene", lens=LENS | {"k4": 0.01})
    imwrite(tmp_path / "unused.png", np.zeros((2, 2, 3), np.uint8))
    scenes = scenes_of(tmp_path / "scene", "nerfstudio")
    assert json.loads(transforms_json(scenes))["frames"][0]["k4"] == pytest.approx(0.01)
    with pytest.raises(UserError, match="k4 = 0.01, which no model of COLMAP"):
        colmap_files(scenes)
