"""Disturbed copies of scenes: by how much, which cameras, and what is left alone."""

import json

import numpy as np
import pytest
import torch

from runtime.errors import UserError
from scripts import disturb_cameras
from tests.scenes import WRITERS, open_scene


@pytest.mark.parametrize("dataset", ["blender", "colmap", "llff", "nerfstudio"])
def test_training_cameras_are_turned_and_moved_and_test_cameras_stay(dataset, tmp_path):
    WRITERS[dataset](tmp_path / "scene")
    disturb_cameras.main([str(tmp_path / "scene"), str(tmp_path / "copy"), "--degrees", "2",
                          "--percent", "3", "--seed", "5"])
    # Captures are aligned by all of their cameras, so the files themselves are compared.
    before, after = (poses_on_disk(dataset, tmp_path / name) for name in ("scene", "copy"))
    train = np.array([dataset == "blender" or i % 8 > 0 for i in range(len(before))])
    np.testing.assert_allclose(before[~train], after[~train], atol=1e-12)
    relative = np.swapaxes(before[train, :, :3], 1, 2) @ after[train, :, :3]
    angles = np.degrees(np.arccos((np.trace(relative, axis1=1, axis2=2) - 1) / 2))
    np.testing.assert_allclose(angles, 2, atol=1e-5)
    moved = np.linalg.norm(after[train, :, 3] - before[train, :, 3], axis=1)
    if dataset in ("blender", "colmap", "nerfstudio"):  # All cameras look at the origin.
        distances = np.linalg.norm(before[train, :, 3], axis=1)
        np.testing.assert_allclose(moved, 0.03 * distances, rtol=1e-6)
    assert (moved > 0).all()
    names = open_scene(tmp_path / "copy", dataset, read_pixels=False).scene.names
    assert names == open_scene(tmp_path / "scene", dataset, read_pixels=False).scene.names


def poses_on_disk(dataset, folder):
    """Camera-to-world matrices `[N, 3, 4]` of a scene's files, up to the axes of the format."""
    if dataset in ("blender", "nerfstudio"):
        path = folder / ("transforms_train.json" if dataset == "blender" else "transforms.json")
        frames = json.loads(path.read_text())["frames"]
        return np.array([frame["transform_matrix"] for frame in frames])[:, :3]
    if dataset == "llff":
        return np.load(folder / "poses_bounds.npy")[:, :15].reshape(-1, 3, 5)[:, :, :4]
    import pycolmap

    images = pycolmap.Reconstruction(str(folder / "sparse" / "0")).images.values()
    matrices = [image.cam_from_world().inverse().matrix()
                for image in sorted(images, key=lambda image: image.name)]
    return np.array(matrices)


def test_test_cameras_of_blender_scenes_and_images_are_copied(tmp_path):
    WRITERS["blender"](tmp_path / "scene")
    disturb_cameras.main([str(tmp_path / "scene"), str(tmp_path / "copy")])
    for split in ("train", "test"):
        old, new = (open_scene(tmp_path / name, "blender", split) for name in ("scene", "copy"))
        assert torch.equal(old.scene.pixels, new.scene.pixels)
        same = torch.equal(old.cameras.camtoworlds, new.cameras.camtoworlds)
        assert same == (split == "test")


def test_views_that_a_file_lists_for_training_are_disturbed(tmp_path):
    WRITERS["nerfstudio"](tmp_path / "scene", num_views=4,
                          train_filenames=["images/000.png", "images/003.png"])
    disturb_cameras.main([str(tmp_path / "scene"), str(tmp_path / "copy")])
    before, after = (poses_on_disk("nerfstudio", tmp_path / name) for name in ("scene", "copy"))
    assert (before != after).any(axis=(1, 2)).tolist() == [True, False, False, True]


def test_nothing_is_overwritten_and_a_folder_without_a_scene_is_refused(tmp_path):
    WRITERS["blender"](tmp_path / "scene")
    with pytest.raises(UserError, match="exists and is not changed"):
        disturb_cameras.main([str(tmp_path / "scene"), str(tmp_path)])
    with pytest.raises(UserError, match="holds none of transforms_train.json"):
        disturb_cameras.main([str(tmp_path / "nowhere"), str(tmp_path / "copy")])
    assert not (tmp_path / "copy").exists()


def test_a_copy_lies_outside_and_leaves_the_caches_behind(tmp_path):
    WRITERS["blender"](tmp_path / "scene")
    for name in (".points", ".pixels"):
        (tmp_path / "scene" / name).mkdir()
    with pytest.raises(UserError, match="lies inside"):
        disturb_cameras.main([str(tmp_path / "scene"), str(tmp_path / "scene" / "copy")])
    disturb_cameras.main([str(tmp_path / "scene"), str(tmp_path / "copy")])
    hidden = {path.name for path in (tmp_path / "copy").iterdir() if path.name.startswith(".")}
    assert not hidden & {".points", ".pixels"}
