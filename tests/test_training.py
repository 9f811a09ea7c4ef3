"""Training from the command line: it learns, and killed runs resume bit-identically."""

import json
import random
import re
import signal
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from imageio.v3 import imread

import train
from checkpoint import list_checkpoints, load_checkpoint
from config import default_config, get_config
from datasets import load_dataset
from model import build_model, compile_fields
from runtime.errors import UserError
from runtime.randomness import BatchRandom, step_seeds
from runtime.run_log import read_metrics
from tests.processes import Script, run_script
from tests.scenes import write_blender, write_multicam

TINY = ["--preset", "debug", "--device", "cpu", "--precision", "fp32", "--eval_every", "0",
        "--no-final_eval"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "random"
    write_blender(folder, num_views=2, size=(12, 8))
    return folder


def flags(scene, log_dir, *more):
    return [*TINY, "--scene", str(scene), "--log_dir", str(log_dir), "--exp_name", "run", *more]


def weights(folder):
    return load_checkpoint(folder).model.state_dict()


def assert_bit_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# Learning.


def test_training_learns_and_leaves_a_complete_run_folder(tmp_path):
    """A single grey-on-white image is learnt within 60 steps."""
    image = torch.full((8, 12, 4), 255, dtype=torch.uint8).numpy().copy()
    image[2:6, 3:9, :3] = 60
    write_blender(tmp_path / "scene", images=[image])
    assert train.main(["--preset", "debug", "--device", "cpu", "--scene", str(tmp_path / "scene"),
                       "--log_dir", str(tmp_path), "--exp_name", "run", "--max_steps", "120",
                       "--eval_every", "60", "--lr_init", "0.01", "--lr_final", "0.003"]) == 0
    folder = tmp_path / "run"
    scores = json.loads((folder / "eval_test_00000120" / "scores.json").read_text())
    assert scores["psnr"] > scores["blank_psnr"] + 3
    lines = metrics(folder)
    scalars = [line for line in lines if "loss/total" in line]
    assert [line["step"] for line in scalars] == list(range(10, 121, 10))
    assert scalars[-1]["psnr/level_1"] > scalars[0]["psnr/level_1"] + 3
    assert {"loss/fine", "loss/coarse", "psnr/level_0", "learning_rate", "rays_per_second",
            "memory_gb", "gradient_norm"} <= set(scalars[0])
    assert [line["step"] for line in lines if "validation/psnr" in line] == [60, 120]
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "checkpoint_00000120.pt", "metrics.jsonl", "validation"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    # ground truth | rgb | depth | normals, with gaps of 2 pixels.
    assert imread(folder / "validation" / "00000120.png").shape == (8, 4 * 12 + 6, 3)


def test_psnr_in_the_log_is_that_of_the_finest_loss(tmp_path, scene):
    train.main(flags(scene, tmp_path, "--log_every", "1", "--max_steps", "3"))
    for line in metrics(tmp_path / "run"):
        assert 10 ** (-line["psnr/level_1"] / 10) == pytest.approx(line["loss/fine"], rel=1e-4)
        assert line["loss/total"] == pytest.approx(line["loss/fine"] + 0.1 * line["loss/coarse"])


def test_a_scene_of_one_image_is_trained_and_scored(tmp_path):
    write_blender(tmp_path / "scene", num_views=1, size=(5, 3))
    train.main(["--preset", "debug", "--device", "cpu", "--scene", str(tmp_path / "scene"),
                "--log_dir", str(tmp_path), "--exp_name", "run", "--max_steps", "2",
                "--eval_every", "1"])
    scores = json.loads((tmp_path / "run" / "eval_test_00000002" / "scores.json").read_text())
    assert len(scores["images"]) == 1 and scores["psnr"] > 0


def test_bf16_learns_as_well_as_fp32(tmp_path):
    """Within 0.5 dB after 150 steps: two seeds of this run differ by about as much."""
    y, x = np.mgrid[:8, :12] / 8
    image = np.stack([255 * x / 1.5, 255 * y, 128 + 0 * x, 255 + 0 * x], -1).astype(np.uint8)
    write_blender(tmp_path / "scene", images=[image])
    psnrs = {}
    for precision in ("fp32", "bf16"):
        train.main(["--preset", "debug", "--device", "cpu", "--precision", precision, "--scene",
                    str(tmp_path / "scene"), "--log_dir", str(tmp_path), "--exp_name", precision,
                    "--max_steps", "150", "--lr_init", "0.01", "--eval_every", "0",
                    "--no-save_images"])
        path = tmp_path / precision / "eval_test_00000150" / "scores.json"
        scores = json.loads(path.read_text())
        assert scores["precision"] == {"fp32": "float32", "bf16": "bfloat16"}[precision]
        psnrs[precision] = scores["psnr"]
    assert psnrs["fp32"] > 20
    assert abs(psnrs["fp32"] - psnrs["bf16"]) < 0.5, psnrs


# Steps.


@pytest.mark.parametrize("model,device,wanted", [
    ("mipnerf", "cpu", 64), ("mipnerf360", "cpu", 64), ("zipnerf", "cpu", 2048),
    ("mipnerf", "cuda", 2048)])
def test_micro_batches_are_small_only_for_mlps_on_a_cpu(model, device, wanted):
    config = default_config(model=model)
    assert train.default_micro_batch(config, torch.device(device)) == wanted


def test_micro_batches_give_the_gradient_of_the_whole(tmp_path):
    """On Multicam, whose loss weights differ by ray."""
    write_multicam(tmp_path / "scene")
    config = get_config(["--preset", "debug", "--dataset_name", "multicam", "--precision", "fp32",
                         "--scene", str(tmp_path / "scene")])
    batch = load_dataset(config, "train").batch(37, torch.Generator().manual_seed(0))
    assert len(batch.rays.lossmult.unique()) == 3
    model = build_model(config).train()
    found = []
    for size in (37, 5):
        scalars, _ = train.compute_gradients(
            model, batch, config, 0.0, size, BatchRandom(3, 37))
        found.append((scalars, [p.grad.clone() for p in model.parameters()]))
    (whole, gradients), (parts, others) = found
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-5, atol=1e-7)
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_compiled_fields_give_the_same_gradients(scene):
    config = default_config(scene=str(scene), hidden=16, depth=2, num_samples=5, precision="fp32")
    batch = load_dataset(config, "train").batch(10, torch.Generator().manual_seed(0))
    found = []
    for compiled in (False, True):
        model = build_model(config).train()
        names = list(model.state_dict())
        if compiled:
            compile_fields(model, torch.device("cpu"))
        assert list(model.state_dict()) == names
        train.compute_gradients(model, batch, config, 0.0, 100, BatchRandom(0, 10))
        found.append([p.grad for p in model.parameters()])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_masked_rays_do_not_count_in_the_loss(scene):
    config = default_config(scene=str(scene), hidden=16, num_samples=5, precision="fp32")
    batch = load_dataset(config, "train").batch(10, torch.Generator().manual_seed(0))
    model = build_model(config).eval()
    mask = torch.zeros(10, 1)
    mask[:4] = 1
    masked, _ = train.compute_gradients(model, replace(batch, mask=mask), config, 0.0, 100)
    alone, _ = train.compute_gradients(model, batch[:4], config, 0.0, 100)
    torch.testing.assert_close(masked["loss/total"], alone["loss/total"])


def test_seeds_differ_between_steps_and_between_runs():
    seeds = {tuple(step_seeds(seed, step)) for seed in range(4) for step in range(500)}
    assert len(seeds) == 2000
    assert step_seeds(1, 2) == step_seeds(1, 2)


# Kill and resume.


def test_killed_at_random_moments_and_resumed_equals_uninterrupted_to_the_bit(tmp_path, scene):
    more = ["--max_steps", "300", "--save_every", "3", "--log_every", "3", "--batch_size", "16",
            "--num_samples", "4"]
    assert train.main(flags(scene, tmp_path / "whole", *more)) == 0
    words = ["train.py", *flags(scene, tmp_path / "killed", *more)]
    folder = tmp_path / "killed" / "run"
    seed = time.time_ns()
    print(f"moments drawn from seed {seed}")
    rng = random.Random(seed)
    steps = [0]
    for attempt in range(4):
        known = list_checkpoints(folder)
        process = Script(*words, *(["--continue_training"] if known else []))
        # Some kills strike while the process still starts, others, the last two at least, later.
        if attempt > 1 or rng.random() < 0.5:
            while process.poll() is None and list_checkpoints(folder)[:1] == known[:1]:
                time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
        steps.append(load_checkpoint(folder).step if list_checkpoints(folder) else 0)
    assert steps == sorted(steps) and 0 < steps[-1] < 300, steps
    end = run_script(*words, "--continue_training")
    assert end.returncode == 0, end.stderr
    assert_bit_equal(weights(tmp_path / "whole" / "run"), weights(folder))
    a, b = (load_checkpoint(p).optimizer["state"] for p in (tmp_path / "whole" / "run", folder))
    assert all(torch.equal(a[i]["exp_avg_sq"], b[i]["exp_avg_sq"]) for i in a)
    losses = [[(line["step"], line["loss/total"]) for line in metrics(path / "run")]
              for path in (tmp_path / "whole", tmp_path / "killed")]
    assert losses[0] == losses[1]
    assert not list(folder.glob("*.partial"))


def test_a_run_killed_before_its_first_checkpoint_can_start_again(tmp_path, scene):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "checkpoint_00000000.partial").write_bytes(b"half")
    assert train.main(flags(scene, tmp_path, "--max_steps", "2")) == 0
    assert not list((tmp_path / "run").glob("*.partial"))


def test_a_broken_checkpoint_never_takes_the_place_of_a_good_one(tmp_path, scene):
    more = ["--save_every", "10", "--keep_checkpoints", "1", "--max_steps", "20"]
    train.main(flags(scene, tmp_path, *more))
    folder = tmp_path / "run"
    (folder / "checkpoint_00000035.pt").write_bytes(b"broken")
    more[-1] = "30"
    train.main(flags(scene, tmp_path, *more, "--continue_training"))
    assert [p.name for p in list_checkpoints(folder)] == ["checkpoint_00000030.pt"]
    assert load_checkpoint(folder).step == 30
    assert (folder / "checkpoint_00000035.broken").exists()


@pytest.mark.parametrize("number,times", [
    (signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_signals_save_first_and_print_how_to_resume(number, times, tmp_path, scene):
    """SIGTERM comes twice where a system stops a job and its launcher passes that on."""
    words = flags(scene, tmp_path, "--max_steps", "100000", "--save_every", "100000")
    process = Script("train.py", *words)
    while not (tmp_path / "run" / "metrics.jsonl").exists() or not metrics(tmp_path / "run"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.001)
    output = "".join(process.communicate(timeout=60))
    assert process.returncode == 128 + number
    saved = int(re.search(r"after step (\d+); saved", output).group(1))
    assert load_checkpoint(tmp_path / "run").step == saved
    assert "Traceback" not in output


def test_a_run_saves_the_flags_as_given_not_as_a_device_resolved_them(tmp_path, scene):
    words = flags(scene, tmp_path, "--max_steps", "4")
    train.main(words)
    folder = tmp_path / "run"
    assert json.loads((folder / "config.json").read_text())["micro_batch"] is None
    assert load_checkpoint(folder).config.micro_batch is None
    train.main([*words[:-1], "6", "--continue_training", "--micro_batch", "32"])
    assert load_checkpoint(folder).step == 6


def test_half_written_lines_of_metrics_are_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "seconds": 2.0}\n{"step": 2}\n3\n{"step": 4, "sec')
    assert read_metrics(path) == [{"step": 1, "seconds": 2.0}]


def test_a_truncated_checkpoint_is_reported_and_the_previous_one_used(tmp_path, scene, caplog):
    more = ["--max_steps", "30", "--save_every", "10", "--keep_checkpoints", "3"]
    train.main(flags(scene, tmp_path / "whole", *more))
    train.main(flags(scene, tmp_path / "broken", *more))
    folder = tmp_path / "broken" / "run"
    newest = list_checkpoints(folder)[0]
    whole = newest.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 64]) + (
        whole[middle + 64 :])
    for damage in (whole[:middle], b"", b"\0" * 999, flipped):
        newest.write_bytes(damage)
        assert load_checkpoint(folder).step == 20
        assert newest.name in caplog.text
    train.main(flags(scene, tmp_path / "broken", *more, "--continue_training"))
    assert_bit_equal(weights(tmp_path / "whole" / "run"), weights(folder))


def test_only_the_newest_checkpoints_are_kept(tmp_path, scene):
    train.main(flags(scene, tmp_path, "--max_steps", "12", "--save_every", "2"))
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == [
        "checkpoint_00000012.pt", "checkpoint_00000010.pt"]


# Flags that a resumed training may change.


def test_a_run_killed_after_its_last_checkpoint_ends_with_the_same_files(tmp_path, scene,
                                                                         monkeypatch):
    """The process dies between writing the last checkpoint and deleting the oldest one."""
    words = ["--max_steps", "4", "--save_every", "2", "--log_every", "2"]
    train.main(flags(scene, tmp_path / "whole", *words))

    def killed(folder, step, keep):
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("checkpoint.drop_old_checkpoints", killed)
    with pytest.raises(KeyboardInterrupt):
        train.main(flags(scene, tmp_path / "killed", *words))
    monkeypatch.undo()
    assert len(list_checkpoints(tmp_path / "killed" / "run")) == 3
    train.main(flags(scene, tmp_path / "killed", *words, "--continue_training"))
    names = [{path.name for path in list_checkpoints(tmp_path / name / "run")}
             for name in ("whole", "killed")]
    assert names[0] == names[1] == {"checkpoint_00000002.pt", "checkpoint_00000004.pt"}


def test_a_run_folder_is_never_overwritten(tmp_path, scene):
    train.main(flags(scene, tmp_path, "--max_steps", "2"))
    before = list_checkpoints(tmp_path / "run")[0].read_bytes()
    with pytest.raises(UserError, match="--continue_training.*--exp_name"):
        train.main(flags(scene, tmp_path, "--max_steps", "2"))
    assert list_checkpoints(tmp_path / "run")[0].read_bytes() == before


def test_continuing_keeps_the_runs_config_and_refuses_what_would_make_it_another(tmp_path, scene):
    train.main(flags(scene, tmp_path, "--max_steps", "4", "--hidden", "20"))
    base = ["--log_dir", str(tmp_path), "--exp_name", "run", "--continue_training"]
    train.main([*base, "--max_steps", "6"])
    run = load_checkpoint(tmp_path / "run")
    assert (run.step, run.config.hidden, run.config.max_steps) == (6, 20, 6)
    with pytest.raises(UserError, match="--hidden 24 .*started with 20"):
        train.main([*base, "--hidden", "24"])
    with pytest.raises(UserError, match="--max_steps 5 .*started with 6"):
        train.main([*base, "--max_steps", "5"])


def test_a_longer_schedule_is_reported(tmp_path, scene, capsys):
    train.main(flags(scene, tmp_path, "--max_steps", "2"))
    train.main(flags(scene, tmp_path, "--max_steps", "3", "--continue_training"))
    assert "--max_steps is now 3 instead of 2" in capsys.readouterr().out


def test_resuming_without_a_run_is_one_sentence(tmp_path, scene):
    with pytest.raises(UserError, match="holds no valid checkpoint|does not exist"):
        train.main(flags(scene, tmp_path, "--continue_training"))


def test_a_finished_run_that_is_continued_is_scored_again(tmp_path, scene):
    train.main(flags(scene, tmp_path, "--max_steps", "2"))
    train.main(["--log_dir", str(tmp_path), "--exp_name", "run", "--continue_training",
                "--final_eval"])
    assert (tmp_path / "run" / "eval_test_00000002" / "scores.json").exists()


def test_a_run_goes_on_from_another_folder(tmp_path, monkeypatch):
    write_blender(tmp_path / "a" / "scene")
    monkeypatch.chdir(tmp_path / "a")
    train.main([*TINY, "--scene", "./scene", "--log_dir", str(tmp_path), "--exp_name", "run",
                "--max_steps", "1"])
    monkeypatch.chdir(tmp_path)
    base = ["--run", str(tmp_path / "run"), "--continue_training"]
    train.main([*base, "--max_steps", "2"])
    (tmp_path / "a" / "scene").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="is not at"):
        train.main([*base, "--max_steps", "3"])
    train.main([*base, "--max_steps", "3", "--scene", str(tmp_path / "moved")])
    assert load_checkpoint(tmp_path / "run").step == 3


def test_a_run_does_not_go_on_with_another_scene(tmp_path, scene):
    train.main(flags(scene, tmp_path, "--max_steps", "1"))
    write_blender(tmp_path / "other", num_views=3)
    with pytest.raises(UserError, match="not those of the run"):
        train.main(["--run", str(tmp_path / "run"), "--continue_training", "--max_steps", "2",
                    "--scene", str(tmp_path / "other")])


def test_a_runs_config_file_starts_the_same_run_under_another_name(tmp_path, scene):
    train.main(flags(scene, tmp_path, "--max_steps", "3"))
    train.main(["--log_dir", str(tmp_path), "--exp_name", "run", "--continue_training"])
    train.main(["--config", str(tmp_path / "run" / "config.json"), "--log_dir", str(tmp_path),
                "--exp_name", "again"])
    assert_bit_equal(weights(tmp_path / "run"), weights(tmp_path / "again"))


def test_two_runs_cannot_share_a_folder(tmp_path, scene):
    """Neither when the first is training already, nor when both start at once."""
    words = ["train.py", *flags(scene, tmp_path, "--max_steps", "100000")]
    both = [Script(*words, "--seed", str(seed)) for seed in (1, 2)]
    while all(process.poll() is None for process in both):
        time.sleep(0.02)
    loser = next(process for process in both if process.poll() is not None)
    winner = next(process for process in both if process is not loser)
    assert loser.returncode == 2
    _, errors = loser.communicate()
    assert re.search("another process is training|already holds a run", errors)
    third = run_script(*words, "--continue_training")
    assert third.returncode == 2 and "another process is training" in third.stderr
    winner.kill()
    winner.communicate()
    assert run_script(*flags_of_continuing(tmp_path)).returncode == 0


def flags_of_continuing(log_dir):
    """Evaluating shows that the folder is whole and free again."""
    return ["evaluate.py", "--run", str(log_dir / "run"), "--no-save_images"]


@pytest.mark.parametrize("line", ["5", "[]", "{}", '{"step": "a"}', '{"step": 1}', "\0\0", "{"])
def test_damaged_metrics_do_not_stop_a_run_that_goes_on(line, tmp_path, scene):
    train.main(flags(scene, tmp_path, "--max_steps", "10"))
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write(line)
    train.main(flags(scene, tmp_path, "--max_steps", "20", "--continue_training"))
    assert [m["step"] for m in metrics(tmp_path / "run")] == [10, 20]


def test_unavailable_lpips_is_an_error_before_training(tmp_path, scene, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError, match="LPIPS"):
        train.main([*flags(scene, tmp_path), "--final_eval", "--lpips", "vgg"])
    assert not (tmp_path / "run").exists()


# Errors.


def test_a_loss_that_is_not_finite_stops_with_its_step_and_keeps_the_good_checkpoint(
    tmp_path, scene, monkeypatch
):
    honest = train.weighted_loss
    steps = []

    def poisoned(*args):
        loss, scalars = honest(*args)
        return (loss * float("nan"), scalars) if len(steps) == 15 else (loss, scalars)

    def next_step(seed, step):
        steps.append(step)
        return step_seeds(seed, step)

    monkeypatch.setattr(train, "weighted_loss", poisoned)
    monkeypatch.setattr(train, "step_seeds", next_step)
    with pytest.raises(UserError, match="not finite at step 15 .*--lr_init"):
        train.main(flags(scene, tmp_path, "--max_steps", "40", "--save_every", "10",
                         "--micro_batch", "128"))
    run = load_checkpoint(tmp_path / "run")
    assert run.step == 10
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_a_full_disk_is_one_sentence_and_older_checkpoints_stay(tmp_path, scene):
    words = flags(scene, tmp_path, "--max_steps", "4")
    assert run_script("train.py", *words).returncode == 0
    before = list_checkpoints(tmp_path / "run")[0]
    content = before.read_bytes()
    full = run_script("train.py", *words, "--max_steps", "8", "--continue_training",
                      limit=len(content) // 2)
    assert full.returncode == 2
    assert re.search(r"error: .*checkpoint_00000008.pt could not be written", full.stderr)
    assert "Traceback" not in full.stderr
    assert before.read_bytes() == content
    assert list_checkpoints(tmp_path / "run")[0] == before
    assert not list((tmp_path / "run").glob("*.partial"))


@pytest.mark.parametrize("words,sentence", [
    (["train.py", "--scene", "/nowhere/at/all"], "is not at"),
    (["train.py", "--run", "/nowhere", "--continue_training"], "does not exist"),
    (["evaluate.py", "--run", "/nowhere"], "does not exist"),
    (["evaluate.py", "--log_dir", "/nowhere"], "does not exist"),
    (["train.py", "--preset", "debug", "--scene", "SCENE", "--log_dir", "/dev/null"],
     "/dev/null"),
    (["scripts/convert_blender_data.py", "--blender_dir", "/nowhere", "--out_dir", "/x"],
     "holds no transforms"),
])
def test_bad_input_is_one_sentence_and_status_2(words, sentence, scene):
    result = run_script(*(scene if word == "SCENE" else word for word in words))
    assert result.returncode == 2
    assert sentence in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    path = tmp_path / "checkpoint_00000001.pt"
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="not a checkpoint of this project"):
        load_checkpoint(path)
    with pytest.raises(UserError, match="holds no valid checkpoint"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_carries_the_scene_without_its_pixels(tmp_path, scene):
    train.main(flags(scene, tmp_path, "--max_steps", "1"))
    run = load_checkpoint(tmp_path / "run")
    for split in ("train", "test"):
        wanted = load_dataset(run.config, split).scene
        saved = run.scene[split]
        assert saved.pixels is None and saved.names == wanted.names
        assert torch.equal(saved.cameras.camtoworlds, wanted.cameras.camtoworlds)
        assert torch.equal(saved.cameras.near, wanted.cameras.near)
        assert saved.cameras.ndc == wanted.cameras.ndc
        assert torch.equal(saved.box, wanted.box) and saved.background == 1.0
    assert not run.model.training
