"""Locating scenes, image folders and image files."""

import numpy as np
import pytest
from imageio.v3 import imread

from config import get_config
from datasets import load_dataset
from loaders.folders import find_image
from runtime.errors import UserError
from tests.scenes import open_scene, write_blender, write_llff


def test_a_missing_scene_is_an_error_that_lists_the_searched_folders(tmp_path):
    config = get_config(["--scene", "nowhere", "--data_dir", str(tmp_path)])
    with pytest.raises(UserError, match="nerf_synthetic/nowhere or .*nowhere"):
        load_dataset(config, "train")


def test_scenes_are_found_by_name_in_both_places_and_by_path(tmp_path):
    write_blender(tmp_path / "nerf_synthetic" / "a")
    write_blender(tmp_path / "b")
    for scene in ("a", "b", str(tmp_path / "b")):
        config = get_config(["--scene", scene, "--data_dir", str(tmp_path)])
        assert len(load_dataset(config, "train")) == 3


def test_llff_makes_missing_factors_from_the_next_finer_and_keeps_them(tmp_path):
    write_llff(tmp_path / "scene", factor=2, size=(24, 16))
    dataset = open_scene(tmp_path / "scene", "llff", "train", "--factor", "4")
    assert dataset.scene.cameras.sizes[0].tolist() == [12, 8]
    made = sorted((tmp_path / "scene" / "images_4").iterdir())
    source = imread(sorted((tmp_path / "scene" / "images_2").iterdir())[0]).astype(float)
    expected = source.reshape(8, 2, 12, 2, 3).mean((1, 3))
    np.testing.assert_allclose(imread(made[0]), expected, atol=0.5)
    stamp = made[0].stat().st_mtime_ns
    open_scene(tmp_path / "scene", "llff", "train", "--factor", "4")
    assert made[0].stat().st_mtime_ns == stamp


def test_llff_uses_the_users_cache_if_the_scene_is_read_only(tmp_path, monkeypatch):
    write_llff(tmp_path / "scene", factor=2, size=(24, 16))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def read_only(*args, dir=None, **kwargs):
        raise PermissionError(13, "Permission denied")

    # Root may write anywhere, so the failure is simulated.
    monkeypatch.setattr("runtime.files.tempfile.TemporaryFile", read_only)
    dataset = open_scene(tmp_path / "scene", "llff", "train", "--factor", "4")
    assert dataset.scene.cameras.sizes[0].tolist() == [12, 8]
    assert not (tmp_path / "scene" / "images_4").exists()
    assert list((tmp_path / "cache").rglob("images_4/*.png"))


def test_llff_rejects_a_factor_finer_than_what_is_shipped(tmp_path):
    write_llff(tmp_path / "scene", factor=8)
    with pytest.raises(UserError, match="it has: 8"):
        open_scene(tmp_path / "scene", "llff", "train", "--factor", "4")


def test_find_image_prefers_the_named_file(tmp_path):
    for name in ("a.png", "a.JPG", "b.jpeg", "c.d.png"):
        (tmp_path / name).touch()
    found = {name: find_image(tmp_path / name) for name in
             ("a.png", "a.JPG", "a", "b.png", "c.d", "e.png", "c")}
    assert {k: v and v.name for k, v in found.items()} == {
        "a.png": "a.png", "a.JPG": "a.JPG", "a": "a.png", "b.png": "b.jpeg", "c.d": "c.d.png",
        "e.png": None, "c": None}
