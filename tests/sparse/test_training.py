"""Training with points: it resumes to the bit, and distances come right sooner."""

import json
import shutil

import torch

import train
from checkpoint import load_checkpoint
from tests.loaders.test_points import write_capture


def run(scene, log, name, *more):
    words = ["--preset", "debug", "--device", "cpu", "--precision", "fp32", "--model", "mipnerf",
             "--dataset_name", "nerfstudio", "--scene", str(scene), "--llffhold", "7",
             "--log_dir", str(log), "--exp_name", name, "--eval_every", "0", "--no-final_eval",
             "--save_every", "4", "--batch_size", "64", "--factor", "1",
             "--keep_checkpoints", "9", *more]
    assert train.main(words) == 0
    return log / name


def test_a_run_with_points_resumes_to_the_bit_and_logs_their_loss(tmp_path):
    write_capture(tmp_path / "scene", size=(100, 75))
    flags = "--depth_points", "0.1", "--max_steps", "8", "--log_every", "1"
    whole = run(tmp_path / "scene", tmp_path, "whole", *flags)
    shutil.copytree(whole, tmp_path / "broken")
    (tmp_path / "broken" / "checkpoint_00000008.pt").unlink()
    shutil.rmtree(tmp_path / "scene" / ".points")
    broken = run(tmp_path / "scene", tmp_path, "broken", "--continue_training", *flags)
    states = [load_checkpoint(folder).model.state_dict() for folder in (whole, broken)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    # Points count during the first half.
    assert [line["loss/depth_points"] > 0 for line in lines] == [True] * 4 + [False] * 4
    assert all(scene.points is None for scene in load_checkpoint(whole).scene.values())
