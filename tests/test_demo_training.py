"""The demo scene through every loader, by the scripts as a new user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from imageio.v3 import imread

from datasets import DATASETS
from procedural import lit_scene, scene
from tests.processes import run_script
from tests.scenes import open_scene

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data folder for all formats.

    Its lit scene and its images are smaller than a user's, so is what the LLFF loader writes.
    """
    folder = tmp_path_factory.mktemp("data")
    lit_scene.write_nerv(folder / "nerv" / "demo", size=30, limit=6)
    scene.write_blender(folder / "nerf_synthetic" / "demo", size=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene, "LLFF_SIZE", (60, 45))
        patch.setattr(scene, "LLFF_FOCAL", scene.LLFF_FOCAL / 2)
        open_scene("demo", "llff", "train", "--data_dir", str(folder), read_pixels=False)
    return folder


def run(*words):
    """The output of a script in a process that imports all it needs, as a shell starts it."""
    result = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_quickly(*words):
    result = run_script(*words)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("dataset_name", sorted(DATASETS))
def test_scripts_train_and_score_the_demo_scene(dataset_name, data_dir, tmp_path):
    flags = ["--dataset_name", dataset_name, "--scene", "demo", "--data_dir", str(data_dir),
             "--log_dir", str(tmp_path)]
    train = run if dataset_name == "blender" else run_quickly
    out = train("train.py", *flags, "--preset", "debug", "--max_steps", "60")
    folder = tmp_path / f"{dataset_name}_demo_mipnerf"
    assert "background-only baseline" in out and str(folder) in out
    scores = json.loads((folder / "eval_test_00000060" / "scores.json").read_text())
    assert scores["psnr"] > scores["blank_psnr"] + 2
    assert len(scores["scales"]) == (3 if dataset_name == "multicam" else 0)
    sheet = imread(folder / "eval_test_00000060" / "sheet.png")
    assert sheet.std() > 20
    if dataset_name == "blender":
        assert "mean" in run("evaluate.py", *flags, "--no-save_images", "--split", "val")


def test_without_arguments_the_demo_scene_is_trained(data_dir, tmp_path):
    out = run_quickly("train.py", "--preset", "debug", "--max_steps", "1", "--no-final_eval",
                      "--eval_every", "0", "--data_dir", str(data_dir), "--log_dir", str(tmp_path))
    assert out.splitlines()[1].startswith("--preset debug: about ") and "on blender demo:" in out


def test_converter_takes_a_scene_or_a_folder_of_scenes(data_dir, tmp_path):
    source = data_dir / "nerf_synthetic"
    run_quickly("scripts/convert_blender_data.py", "--blender_dir", str(source / "demo"),
                "--out_dir", str(tmp_path / "one"), "--num_scales", "2")
    run_quickly("scripts/convert_blender_data.py", "--blender_dir", str(source), "--out_dir",
                str(tmp_path / "many"), "--num_scales", "2")
    one, many = (json.loads((tmp_path / p / "metadata.json").read_text())
                 for p in ("one", "many/demo"))
    assert one == many and max(one["train"]["label"]) == 1
