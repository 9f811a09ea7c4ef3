"""The method for nerfbaselines, on cameras and datasets as its documentation describes them."""

import importlib
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from imageio.v3 import imread

import evaluate
import train
from checkpoint import load_checkpoint
from config import get_config
from ray_utils import image_rays
from runtime.errors import UserError
from scripts.nerfbaselines_adapter import MipNeRF, command_line, scene_flags, to_cameras
from tests.scenes import (
    ANGLE,
    open_scene,
    to_opencv,
    walk_poses,
    write_blender,
    write_colmap,
)

FLAGS = {"preset": "debug", "max_steps": 4, "precision": "fp32", "device": "cpu", "log_every": 1}


def camera(pose, intrinsics, size, model=0, distortion=()):
    """One camera with OpenCV axes: nerfbaselines numbers pinhole, opencv, opencv_fisheye."""
    one = SimpleNamespace(
        poses=np.linalg.inv(to_opencv(np.asarray(pose)))[:3].astype(np.float32),
        intrinsics=np.array(intrinsics, np.float32), image_sizes=np.array(size, np.int32),
        camera_models=np.array(model), distortion_parameters=np.array(distortion, np.float32))
    one.item = lambda: one
    return one


def blender_views(folder, split, size=(12, 8)):
    """The image files of a split and its cameras."""
    frames = json.loads((folder / f"transforms_{split}.json").read_text())["frames"]
    focal = 0.5 * size[0] / np.tan(0.5 * ANGLE)
    cameras = [camera(f["transform_matrix"], [focal, focal, size[0] / 2, size[1] / 2], size)
               for f in frames]
    return [f"{folder}/{f['file_path']}.png" for f in frames], cameras


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A scene, a training of it by train.py, and the same training in nerfbaselines' loop."""
    folder = tmp_path_factory.mktemp("nerfbaselines")
    write_blender(folder / "scene")
    words = command_line(FLAGS | {"scene": folder / "scene", "log_dir": folder, "eval_every": 0,
                                  "exp_name": "ours", "final_eval": False})
    train.main(words)
    method = MipNeRF(train_dataset={"image_paths": blender_views(folder / "scene", "train")[0]},
                     config_overrides=FLAGS)
    for step in range(method.get_info()["num_iterations"]):
        metrics = method.train_iteration(step)
    assert np.isfinite(metrics["loss"]) and metrics["num_rays"] == method.config.batch_size
    method.save(folder / "theirs")
    return folder


def test_training_in_nerfbaselines_is_that_of_train(trained):
    ours, theirs = (load_checkpoint(trained / name) for name in ("ours", "theirs"))
    assert ours.step == theirs.step == 4
    for name, value in ours.model.state_dict().items():
        assert torch.equal(value, theirs.model.state_dict()[name]), name


def test_images_at_nerfbaselines_cameras_are_those_that_evaluate_scores(trained):
    evaluate.main(["--run", str(trained / "ours"), "--device", "cpu"])
    method = MipNeRF(checkpoint=trained / "theirs")
    for index, view in enumerate(blender_views(trained / "scene", "test")[1]):
        output = method.render(view)
        scored = imread(trained / "ours" / "eval_test_00000004" / f"{index:03d}_rgb.png")
        assert output["color"].dtype == np.uint8
        # Single precision of the given cameras.
        assert np.abs(output["color"].astype(int) - scored).max() <= 1
        assert output["depth"].shape == output["accumulation"].shape == (8, 12)
        assert 2 <= output["depth"].min() and output["depth"].max() <= 6.5


def test_training_resumes_from_a_saved_folder(trained, tmp_path):
    dataset = {"image_paths": blender_views(trained / "scene", "train")[0]}
    method = MipNeRF(train_dataset=dataset, config_overrides=FLAGS)
    for step in (0, 1):
        method.train_iteration(step)
    method.save(tmp_path / "half")
    resumed = MipNeRF(checkpoint=tmp_path / "half", train_dataset=dataset)
    assert resumed.get_info()["loaded_step"] == 2
    for step in (2, 3):
        resumed.train_iteration(step)
    ours = load_checkpoint(trained / "ours").model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, ours[name]), name


def test_a_loaded_run_is_saved_as_it_is(trained, tmp_path):
    MipNeRF(checkpoint=trained / "ours").save(tmp_path / "copy")
    name = "checkpoint_00000004.pt"
    assert (tmp_path / "copy" / name).read_bytes() == (trained / "ours" / name).read_bytes()


def test_cameras_with_distortion_cast_the_rays_of_the_loader(tmp_path):
    write_colmap(tmp_path / "scene")
    ours = open_scene(tmp_path / "scene", "colmap", "test", read_pixels=False).scene
    distortion = [-0.05, 0.01, 0.002, -0.001, 0, 0]
    view = camera(walk_poses(9)[8], [1.2 * 12, 1.3 * 12, 0.52 * 12, 0.47 * 8], (12, 8), 1,
                  distortion)
    rays, known = image_rays(to_cameras(view, ours), 0), image_rays(ours.cameras, 1)
    for name in ("origins", "directions", "viewdirs", "radii", "near", "far"):
        torch.testing.assert_close(getattr(rays, name), getattr(known, name), rtol=1e-5, atol=2e-6)


def test_fisheye_cameras_keep_their_lens(tmp_path):
    write_colmap(tmp_path / "scene", model="OPENCV_FISHEYE",
                 params=[57.6, 57.6, 24, 16, 0.01, 0.02, 0.003, 0.004])
    ours = open_scene(tmp_path / "scene", "colmap", "test", read_pixels=False).scene
    view = camera(walk_poses(9)[0], [14.4, 14.4, 6, 4], (12, 8), 2,
                  [0.01, 0.02, 0, 0, 0.003, 0.004])
    rays, known = image_rays(to_cameras(view, ours), 0), image_rays(ours.cameras, 0)
    torch.testing.assert_close(rays.directions, known.directions, rtol=1e-5, atol=2e-6)


def test_the_scene_of_a_dataset_is_found_with_its_format_and_factor(tmp_path):
    write_colmap(tmp_path / "scene")
    np.save(tmp_path / "scene" / "poses_bounds.npy", np.zeros((9, 17)))
    dataset = {"image_paths": [f"{tmp_path}/scene/images_4/001.png"]}
    found = {"dataset_name": "colmap", "scene": f"{tmp_path}/scene", "factor": 4}
    assert scene_flags(dataset, {}) == found
    assert scene_flags(dataset, {"dataset_name": "llff"}) == found | {"dataset_name": "llff"}


def test_other_splits_and_images_outside_of_a_scene_are_refused(trained, tmp_path):
    files = blender_views(trained / "scene", "train")[0]
    with pytest.raises(UserError, match="only this project's loader trains on .*r_2.png"):
        MipNeRF(train_dataset={"image_paths": files[:2]}, config_overrides=FLAGS)
    with pytest.raises(UserError, match="no folder above .*image.png is a scene"):
        MipNeRF(train_dataset={"image_paths": [f"{tmp_path}/image.png"]}, config_overrides=FLAGS)


def test_runs_that_need_more_than_a_camera_are_refused(trained):
    dataset = {"image_paths": blender_views(trained / "scene", "train")[0]}
    with pytest.raises(UserError, match="--refine_cameras, which moves"):
        MipNeRF(train_dataset=dataset, config_overrides=FLAGS | {"refine_cameras": "true"})


def test_all_presets_that_are_registered_are_command_lines(monkeypatch):
    registered = []
    stand_in = ModuleType("nerfbaselines")
    stand_in.register = registered.append
    monkeypatch.setitem(sys.modules, "nerfbaselines", stand_in)
    importlib.import_module("scripts.nerfbaselines_method")
    [spec] = registered
    module, name = spec["method_class"].split(":")
    assert getattr(importlib.import_module(module), name) is MipNeRF
    for preset in spec["presets"].values():
        flags = {key: value for key, value in preset.items() if key != "@apply"}
        config = get_config(command_line(flags), "train")
        assert {key: getattr(config, key) for key in flags} == flags
