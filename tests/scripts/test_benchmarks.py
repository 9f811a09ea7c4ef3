"""The scripts that measure run, on the smallest things, and their rows say what they should."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from checkpoint import Checkpoint
from config import default_config
from datasets import load_dataset
from procedural import tracing
from runtime.errors import UserError
from scripts import bench_loading, bench_outputs, bench_throughput, bench_training
from tests.analytic import AnalyticModel
from tests.scenes import write_blender

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """By its name the still life."""
    folder = tmp_path_factory.mktemp("bench") / "demo"
    write_blender(folder, num_views=6, size=(16, 12))
    return folder


@pytest.fixture(scope="module")
def run(scene):
    train.main(["--preset", "debug", "--device", "cpu", "--scene", str(scene), "--log_dir",
                str(scene.parent), "--exp_name", "run", "--max_steps", "4", "--save_every", "2",
                "--keep_checkpoints", "9", "--eval_every", "0", "--no-save_images"])
    return scene.parent / "run"


def columns(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_training_is_scored_at_every_checkpoint(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", str(run), "--device", "cpu"])
    bench_training.main()
    title, _, _, _, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("demo (blender, factor 1): mipnerf, network 3 x 24, 2 x 12 samples")
    assert [columns(row)[0] for row in rows] == ["2", "4"]
    scores = json.loads((run / "eval_test_00000004" / "scores.json").read_text())
    assert columns(rows[-1])[2:] == [f"{scores['psnr']:.2f}", f"{scores['ssim']:.4f}"]


def test_frames_and_normals_of_a_run_are_measured(run):
    name, frame, seconds, memory = columns(bench_outputs.time_frame(run, "cpu", 12))
    assert (name, frame) == ("run", "12x12") and float(seconds) >= 0 and float(memory) > 0.1
    assert "run: normals on 6 test views are off by" in bench_outputs.compare_normals(run, "cpu")


def test_a_mesh_of_the_true_surface_lies_on_it(scene, run, monkeypatch):
    config = default_config(scene=str(scene), near=2.0, far=6.0, device="cpu")
    true = Checkpoint(
        model=AnalyticModel(tracing.distance_to_surface, torch.ones_like), config=config,
        own=config, step=1, scene=load_dataset(config, "train").scenes(), optimizer={},
        path=run / "x.pt")
    monkeypatch.setattr(bench_outputs, "load_checkpoint", lambda *_: true)
    row = columns(bench_outputs.time_mesh(run, "cpu", 32))
    assert row[:2] == ["run", "32"] and int(row[6].replace(",", "")) > 500
    # A density that jumps places its surface to half a step.
    assert float(row[7]) < 0.5 and float(row[8]) < 1


@pytest.mark.parametrize("model", ["mipnerf", "zipnerf"])
def test_rays_per_second_of_a_model_and_its_bound(model, monkeypatch, capsys):
    monkeypatch.setattr(bench_throughput, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(bench_throughput, "get_config", lambda words: default_config(
        model=model, num_samples=4, hidden=8, depth=2, view_hidden=4, prop_samples=4,
        grid_log2_size=8, grid_finest=32, prop_finest=[16, 32], precision="fp32"))
    monkeypatch.setattr("sys.argv", ["x", "--case", "model", model, "--batch_sizes", "16",
                                     "--device", "cpu"])
    bench_throughput.main()
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"train", "render", "memory", "train_bound", "render_bound"}
    assert all(value > 0 for value in found.values())


def bench(*words):
    return subprocess.run([sys.executable, "scripts/bench_throughput.py", *words], cwd=ROOT,
                          capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="wants a device that is not there")
def test_a_device_that_is_not_there_is_one_sentence():
    result = bench("--device", "cuda")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: --device cuda was given")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [("--rounds", "0"), ("--batch_sizes", "16", "0")])
def test_what_cannot_be_measured_is_refused_in_a_sentence(words):
    result = bench(*words)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "a whole number above 0 is wanted" in result.stderr


def test_a_case_that_fails_says_why_and_which(monkeypatch):
    """Of a process that ran out of memory, say."""
    failing = [sys.executable, "-c", "import sys; sys.exit('no memory')"]
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **flags: run(failing, **flags))
    with pytest.raises(UserError, match="model mipnerf in fp32 with 16 rays could not"):
        bench_throughput.run_case(argparse.Namespace(device="cpu"), ("model", "mipnerf"), "fp32",
                                  16)


def test_what_a_case_prints_besides_its_figures_is_passed_over(monkeypatch):
    printing = [sys.executable, "-c", "print('There is not enough memory'); print('{\"a\": 1}')"]
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **flags: run(printing, **flags))
    args = argparse.Namespace(device="cpu")
    assert bench_throughput.run_case(args, ("model", "mipnerf"), "fp32", 16) == {"a": 1}


@pytest.mark.parametrize("size", [16, 13])
def test_opening_a_scene_is_measured(tmp_path, size):
    bench_loading.write_scene(tmp_path, 2, size)
    for pixel_memory in bench_loading.WAYS.values():
        found = bench_loading.open_scene(str(tmp_path), pixel_memory)
        assert set(found) == {"seconds", "own", "peak", "batch"} and found["batch"] > 0
