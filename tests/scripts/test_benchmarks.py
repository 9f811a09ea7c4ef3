"""The measuring scripts run on very small inputs, and their rows are correct."""

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
from scripts import bench_loading, bench_outputs, bench_throughput, bench_training, benchmark
from tests.analytic import AnalyticModel
from tests.scenes import write_blender

ROOT = Path(__file__).parents[2]
ARGS = argparse.Namespace(device="cpu", preset="gpu")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A scene that its name makes pass for the demo scene."""
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


def test_training_is_scored_at_every_checkpoint(run, capsys):
    bench_training.main([str(run), "--device", "cpu"])
    title, _, _, _, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("demo (blender, factor 1): mipnerf, network 3 x 24, 2 x 12 samples")
    assert [columns(row)[0] for row in rows] == ["2", "4"]
    scores = json.loads((run / "eval_test_00000004" / "scores.json").read_text())
    assert columns(rows[-1])[2:] == [f"{scores['psnr']:.2f}", f"{scores['ssim']:.4f}"]


def test_frames_and_normals_of_a_run_are_measured(run):
    name, frame, seconds, memory = columns(bench_outputs.time_frame(run, "cpu", 12))
    assert (name, frame) == ("run", "12x12") and float(seconds) >= 0 and float(memory) > 0.1
    sentence = bench_outputs.compare_normals(run, "cpu")
    assert "run: the normals on 6 test views have a mean error of" in sentence


def test_a_mesh_of_the_true_surface_lies_on_it(scene, run, monkeypatch):
    config = default_config(scene=str(scene), near=2.0, far=6.0, device="cpu")
    true = Checkpoint(
        model=AnalyticModel(tracing.distance_to_surface, torch.ones_like), config=config,
        saved_config=config, step=1, scene=load_dataset(config, "train").scenes(), optimizer={},
        path=run / "x.pt")
    monkeypatch.setattr(bench_outputs, "load_checkpoint", lambda *_: true)
    row = columns(bench_outputs.time_mesh(run, "cpu", 32))
    assert row[:2] == ["run", "32"] and int(row[6].replace(",", "")) > 500
    # A density with a jump locates its surface to half a step.
    assert float(row[7]) < 0.5 and float(row[8]) < 1


@pytest.mark.parametrize("model", ["mipnerf", "zipnerf"])
def test_rays_per_second_of_a_model_and_its_bound(model, monkeypatch, capsys):
    monkeypatch.setattr(bench_throughput, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(bench_throughput, "get_config", lambda words: default_config(
        model=model, num_samples=4, hidden=8, depth=2, view_hidden=4, prop_samples=4,
        grid_log2_size=8, grid_finest=32, prop_finest=(16, 32), precision="fp32"))
    bench_throughput.main(["--case", model, "--batch_sizes", "16", "--device", "cpu"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"train", "render", "memory", "train_bound", "render_bound"}
    assert all(value > 0 for value in found.values())


def bench(*words):
    return subprocess.run([sys.executable, "scripts/bench_throughput.py", *words], cwd=ROOT,
                          capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a missing device")
def test_a_missing_device_is_a_one_sentence_error():
    result = bench("--device", "cuda")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: --device cuda was given")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [("--rounds", "0"), ("--batch_sizes", "16", "0")])
def test_values_that_cannot_be_measured_are_rejected(words):
    result = bench(*words)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "expected a whole number from 1 to" in result.stderr


def test_a_failing_case_is_named(monkeypatch):
    """For example a process that ran out of memory."""
    failing = [sys.executable, "-c", "import sys; sys.exit('no memory')"]
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **flags: run(failing, **flags))
    with pytest.raises(UserError, match="model mipnerf in fp32 with 16 rays could not"):
        bench_throughput.measure_in_process(ARGS, "mipnerf", "fp32", 16)


def test_messages_before_the_result_of_a_case_are_ignored(monkeypatch):
    printing = [sys.executable, "-c", "print('There is not enough memory'); print('{\"a\": 1}')"]
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **flags: run(printing, **flags))
    assert benchmark.run_case(printing, "could not be measured") == {"a": 1}


@pytest.mark.parametrize("size", [16, 13])
def test_opening_a_scene_is_measured(tmp_path, size):
    bench_loading.write_scene(tmp_path, 2, size)
    for pixel_memory in bench_loading.MODES.values():
        found = bench_loading.open_scene(str(tmp_path), pixel_memory)
        assert set(found) == {"seconds", "own", "peak", "batch"} and found["batch"] > 0
