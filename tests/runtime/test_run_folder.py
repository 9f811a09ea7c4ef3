"""Scenes are names or paths; a run folder follows from dataset, scene and model."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.run_folder import as_name, run_folder, scene_of


def config(**flags):
    return SimpleNamespace(**{"run": None, "exp_name": None, "log_dir": "log", "scene": None,
                              "data_dir": "data", "dataset_name": "blender",
                              "model": "mipnerf"} | flags)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_default_scene_is_lego_if_downloaded_else_the_demo():
    assert scene_of(config()) == "demo"
    Path("data/nerf_synthetic/lego").mkdir(parents=True)
    assert scene_of(config()) == "lego"
    assert scene_of(config(dataset_name="llff")) == "demo"
    assert scene_of(config(data_dir="elsewhere")) == "demo"


def test_only_what_has_a_separator_is_a_path(tmp_path):
    Path("fox").mkdir()
    assert scene_of(config(scene="fox")) == "fox"
    assert scene_of(config(scene="./fox")) == str(tmp_path / "fox")
    assert scene_of(config(scene="fox/")) == str(tmp_path / "fox")
    assert scene_of(config(scene="a/b/../c")) == str(tmp_path / "a" / "c")
    assert scene_of(config(scene=".")) == str(tmp_path)
    assert scene_of(config(scene="..")) == str(tmp_path.parent)
    assert scene_of(config(scene=str(tmp_path / "x"))) == str(tmp_path / "x")


def test_the_run_folder_follows_from_the_flags():
    assert run_folder(config()) == Path("log/blender_demo_mipnerf")
    assert run_folder(config(scene="a/b/fox", log_dir="x")) == Path("x/blender_fox_mipnerf")
    assert run_folder(config(dataset_name="llff", model="zipnerf")) == Path("log/llff_demo_zipnerf")
    assert run_folder(config(exp_name="y")) == Path("log/y")
    assert run_folder(config(exp_name="y", run="z/run")) == Path("z/run")


def test_equal_numbers_have_equal_names_and_others_do_not():
    assert as_name(2) == as_name(2.0) == "2"
    assert as_name(0.1) == "0.1" and as_name(0.1) != as_name(0.1000001)
