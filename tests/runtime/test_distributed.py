"""Several ranks against one process: gradients, scores, videos, signals, errors, resumed runs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch

import train
import visualize
from checkpoint import load_checkpoint
from procedural.lit_scene import write_nerv
from runtime import distributed
from tests.processes import run_ranks
from tests.scenes import write_blender, write_multicam

ROOT = Path(__file__).parents[2]


def torchrun(count, script, *words):
    """The command that runs a script on `count` CPU ranks of this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
            str(count), "--", script, "--device", "cpu", *words]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Rays differ in loss weight, images in size."""
    folder = tmp_path_factory.mktemp("multicam") / "scene"
    write_multicam(folder)
    return folder


@pytest.fixture(scope="module")
def lit_scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lit") / "scene"
    write_nerv(folder, size=12, limit=2)
    return folder


def flags(scene, log_dir, name, *more):
    return ["--preset", "debug", "--precision", "fp32", "--dataset_name", "multicam", "--scene",
            str(scene), "--log_dir", str(log_dir), "--exp_name", name, "--eval_every", "0",
            "--batch_size", "37", *more]


def first_gradients(folder):
    """Gradients of step 1: ten times the first moments that Adam has after it."""
    states = load_checkpoint(folder / "checkpoint_00000001.pt").optimizer["state"]
    return [10 * state["exp_avg"] for state in states.values()]


def weights(folder):
    return load_checkpoint(folder).model.state_dict()


# NeRV trains all of its fields from the first step.
NERV_FLAGS = ["--dataset_name", "nerv", "--geometry_share", "0", "--visibility_share", "0"]


@pytest.mark.parametrize("model,fixture,model_flags", [
    ("mipnerf", "scene", []), ("nerv", "lit_scene", NERV_FLAGS),
])
def test_two_ranks_have_the_gradients_and_scores_of_one_process(model, fixture, model_flags,
                                                                tmp_path, request):
    scene = request.getfixturevalue(fixture)
    more = ["--model", model, *model_flags, "--max_steps", "6", "--save_every", "1",
            "--keep_checkpoints", "9"]
    train.main(["--device", "cpu", *flags(scene, tmp_path, "one", *more)])
    printed = run_ranks(2, "train.py", *flags(scene, tmp_path, "two", *more, "--micro_batch", "5"))
    assert printed.count("6 steps of 37 rays on 2 ranks (cpu)") == 1
    one, two = tmp_path / "one", tmp_path / "two"
    pairs = zip(*map(first_gradients, (one, two)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6 * float(a.abs().max()) + 1e-9)
    lines = [[json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()]
             for p in (one, two)]
    for name in ("loss/total", "gradient_norm", "psnr/level_0"):
        assert [x[name] for x in lines[0]] == pytest.approx([x[name] for x in lines[1]], rel=1e-3)
    results = [p / "eval_test_00000006" for p in (one, two)]
    scores = [json.loads((folder / "scores.json").read_text()) for folder in results]
    assert [i["name"] for i in scores[0]["images"]] == [i["name"] for i in scores[1]["images"]]
    for a, b in zip(scores[0]["images"], scores[1]["images"], strict=True):
        assert a["psnr"] == pytest.approx(b["psnr"], abs=0.05)
    files = [sorted(f.name for f in folder.iterdir()) for folder in results]
    assert files[0] == files[1] and "sheet.png" in files[0]


def test_a_run_continues_with_another_number_of_ranks(scene, tmp_path):
    more = ["--max_steps", "8", "--save_every", "4", "--no-final_eval"]
    train.main(["--device", "cpu", *flags(scene, tmp_path, "one", *more)])
    words = flags(scene, tmp_path, "run", *more)
    run_ranks(2, "train.py", *words)
    (tmp_path / "run" / "checkpoint_00000008.pt").unlink()
    run_ranks(3, "train.py", *words, "--continue_training")
    one, several = weights(tmp_path / "one"), weights(tmp_path / "run")
    for name, value in one.items():
        # Adam's first steps follow the sign of a gradient, even if it is nearly zero.
        close = torch.isclose(value, several[name], atol=1e-4)
        assert close.float().mean() > 0.98, (name, (value - several[name]).abs().max())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [8]


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_threads_of_the_process_group_end_with_it(tmp_path):
    """A thread that survives until the interpreter exits may abort the process."""
    script = tmp_path / "step.py"
    script.write_text(f"""if True:
        import os, sys
        sys.path.insert(0, {str(ROOT)!r})
        import torch
        from runtime import distributed
        weight = torch.ones(3, requires_grad=True)
        alone = len(os.listdir("/proc/self/task"))
        with distributed.joined_ranks(torch.device("cpu")):
            distributed.wait_for_all()
            assert len(os.listdir("/proc/self/task")) > alone
            (2 * weight).sum().backward()
            torch.optim.Adam([weight]).step()
        assert len(os.listdir("/proc/self/task")) == alone, os.listdir("/proc/self/task")
    """)
    subprocess.run(torchrun(2, str(script)), check=True, timeout=300)


def test_ranks_divide_the_frames_of_a_video(tmp_path):
    write_blender(tmp_path / "scene", num_views=4, size=(16, 12))
    train.main(["--preset", "debug", "--device", "cpu", "--scene", str(tmp_path / "scene"),
                "--log_dir", str(tmp_path), "--exp_name", "run", "--max_steps", "3",
                "--eval_every", "0", "--no-final_eval"])
    words = ["--run", str(tmp_path / "run"), "--frames", "5", "--visualize_depth",
             "--no-skip_empty"]
    printed = run_ranks(3, "visualize.py", *words)
    assert printed.count("5 frames of 16x12") == 1
    video = tmp_path / "run" / "video_spherical_00000003_5x16x12_whole"
    frames = {f.name: iio.imread(f) for f in sorted((video / "frames").iterdir())}
    assert len(frames) == 10 and (video / "rgb_depth_30fps.gif").exists()
    video.rename(tmp_path / "of_three_ranks")
    visualize.main([*words, "--device", "cpu"])
    for name, frame in frames.items():
        assert (iio.imread(video / "frames" / name) == frame).all(), name


@pytest.mark.parametrize("to_all", [False, True])
def test_a_signal_stops_all_ranks_after_the_same_step(scene, tmp_path, to_all):
    """to_all: the system signals each rank, and torchrun then passes on its own signal, too."""
    words = flags(scene, tmp_path, "run", "--max_steps", "100000", "--save_every", "100000")
    process = subprocess.Popen(torchrun(2, "train.py", *words), cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "metrics.jsonl"
    while not log.exists() or not log.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    for child in children if to_all else []:
        os.kill(int(child), signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    saved = int(re.search(r"after step (\d+); saved", printed).group(1))
    assert load_checkpoint(tmp_path / "run").step == saved > 0


@pytest.mark.parametrize("count,num_ranks", [(37, 1), (37, 2), (8, 3), (3, 5)])
def test_every_item_belongs_to_one_rank(count, num_ranks, monkeypatch):
    monkeypatch.setattr(distributed, "num_ranks", lambda: num_ranks)
    rows, items = [], []
    for rank in range(num_ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        rows.append(list(range(count))[distributed.rank_rows(count)])
        items.append(list(distributed.rank_items(range(count))))
    assert sum(rows, []) == list(range(count)) == sorted(sum(items, []))
    for lists in (rows, items):
        assert max(map(len, lists)) - min(map(len, lists)) <= 1


def test_an_error_is_reported_by_one_rank_and_ends_the_others(tmp_path):
    words = flags(tmp_path / "nowhere", tmp_path, "run")
    result = subprocess.run(torchrun(2, "train.py", *words), cwd=ROOT, capture_output=True,
                            text=True, timeout=120)
    assert result.returncode != 0
    assert result.stderr.count("error: the scene") == 1
    assert "Connection" not in result.stderr


def test_more_ranks_than_rays_are_an_error(scene, tmp_path):
    words = flags(scene, tmp_path, "run")
    words[words.index("--batch_size") + 1] = "1"
    result = subprocess.run(torchrun(2, "train.py", *words), cwd=ROOT, capture_output=True,
                            text=True, timeout=120)
    assert result.returncode != 0
    assert "error: --batch_size 1 leaves some of 2 ranks without a ray" in result.stderr
    assert not list((tmp_path / "run").glob("*.pt"))
