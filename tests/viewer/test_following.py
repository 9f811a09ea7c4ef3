"""Following a run: newer checkpoints and curves, without writing."""

import json
import shutil

import numpy as np

from config import get_config
from viewer.following import CURVE_POINTS, Curves, Follower
from viewer.loaded_run import load_run

NEWEST = "checkpoint_00000040.pt"


def lines(count):
    found = [{"step": 10 * i, "seconds": i, "psnr/level_0": 20 + i, "psnr/level_1": 0.01 * i}
             for i in range(count)]
    return [*found, {"step": 30, "seconds": 3, "validation/psnr": 25.5}]


def test_the_curve_is_that_of_the_finest_level():
    curves = Curves.of(lines(4))
    assert curves.training.tolist() == [[0, 10, 20, 30], [0, 0.01, 0.02, 0.03]]
    assert curves.validation.tolist() == [[30], [25.5]] and curves.latest() == (30, 0.03)
    long = Curves.of(lines(5000)).training
    assert long.shape == (2, CURVE_POINTS) and long[0, -1] == 49_990
    assert Curves.of([]).latest() is None and Curves.of([]).training.shape == (2, 0)


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size)
            for path in sorted(folder.rglob("*"))}


def follow(folder):
    config = get_config(["--run", str(folder), "--device", "cpu"], "view")
    runs, curves = [], []
    return Follower(config, load_run(config), runs.append, curves.append), runs, curves


def test_a_newer_checkpoint_is_taken_once_and_nothing_is_written(run_folder, trained):
    follower, runs, curves = follow(run_folder)
    before = contents(run_folder)
    follower.look()
    follower.look()
    assert not runs and len(curves) == 1 and contents(run_folder) == before
    shutil.copy(trained / NEWEST, run_folder)
    before = contents(run_folder)
    for _ in range(3):
        follower.look()
    assert [loaded.run.step for loaded in runs] == [40] and contents(run_folder) == before
    with open(run_folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 41, "seconds": 9, "psnr/level_2": 30.0}) + "\n")
    follower.look()
    assert len(curves) == 2 and curves[-1].latest() == (41, 30.0)


def test_a_damaged_checkpoint_is_skipped_and_the_one_after_it_is_taken(run_folder, trained):
    follower, runs, _ = follow(run_folder)
    (run_folder / "checkpoint_00000030.pt").write_bytes(b"no checkpoint")
    follower.look()
    assert not runs and follower.tried == 30
    shutil.copy(trained / NEWEST, run_folder)
    follower.look()
    assert [loaded.run.step for loaded in runs] == [40]


def test_a_newer_checkpoint_renders_other_pictures(run_folder, trained, loaded):
    from tests.viewer.test_refining import final_picture, shot

    old = load_run(get_config(["--run", str(run_folder), "--device", "cpu"], "view"))
    assert (old.run.step, loaded.run.step) == (20, 40)
    pictures = [final_picture(run, shot(width=30, height=20)).image for run in (old, loaded)]
    assert np.abs(pictures[0].astype(int) - pictures[1]).mean() > 1
