"""Plans: sizes from the photographs, steps from the minutes, and longer plans of resumed runs."""

import json
from types import SimpleNamespace

import pytest
import torch

import train
from checkpoint import list_checkpoints, step_of
from config import get_config
from planning import timing
from planning.sizes import pixels_per_side, plan_sizes
from planning.steps import longer_plan, plan_steps
from ray_utils import pixels_to_rays
from runtime.errors import UserError
from structures import Batch, Cameras
from tests.scenes import write_blender

LAPTOP = ["--preset", "laptop", "--model", "zipnerf"]


def a_dataset(num_pixels, focal, ndc=None):
    """100 x 100 pixels of one camera with a focal length in pixels, as a dataset gives them."""
    pixtocam = torch.tensor([[1 / focal, 0, -50 / focal], [0, -1 / focal, 50 / focal], [0, 0, -1]])
    pose = torch.eye(4)[:3]
    cameras = Cameras(camtoworlds=pose[None], pixtocams=pixtocam[None],
                      sizes=torch.tensor([[100, 100]]), near=2.0, far=6.0, ndc=ndc)

    def batch(count, generator):
        x, y = torch.randint(100, (2, count), generator=generator)
        rays = pixels_to_rays(cameras, torch.zeros(count, dtype=torch.long), x, y)
        return Batch(rays=rays, rgb=torch.zeros(count, 3))

    scene = SimpleNamespace(box=torch.tensor([[-1.0] * 3, [1.0] * 3]),
                            pixels=range(num_pixels))
    return SimpleNamespace(batch=batch, scene=scene)


@pytest.mark.parametrize("words,expected", [
    # A pixel is t / 200 wide at distance t; the middle of near and far is 4.
    (["--dataset_name", "multicam"], 2 / (4 / 200)),
    # The ball of contracted space is 4 wide; the middle is at 1.
    (["--dataset_name", "colmap"], 4 * 200),
    # NDC's x goes from -1 to 1 over the 100 pixels.
    (["--dataset_name", "llff"], 100),
])
def test_the_side_of_the_grids_in_pixels(words, expected):
    config = get_config([*LAPTOP, *words])
    ndc = (200.0, 100, 100) if config.ndc else None
    found = pixels_per_side(config, a_dataset(1, 200.0, ndc=ndc))
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("num_pixels,focal,finest,log2_size", [
    (10_000, 200.0, 128, 17), (5_000_000, 200.0, 128, 19), (10**9, 1000.0, 1024, 21),
])
def test_sizes_follow_pixels(num_pixels, focal, finest, log2_size):
    config = plan_sizes(get_config([*LAPTOP, "--dataset_name", "multicam"]),
                        a_dataset(num_pixels, focal))
    assert (config.grid_finest, config.prop_finest) == (finest, (finest // 4,))
    assert config.grid_log2_size == log2_size


def test_no_grid_is_coarser_than_its_coarsest_level():
    words = ["--dataset_name", "multicam", "--grid_coarsest", "64"]
    config = plan_sizes(get_config([*LAPTOP, *words]), a_dataset(100, 20.0))
    assert (config.grid_finest, config.prop_finest) == (256, (64,))


def test_typed_sizes_and_other_presets_stay():
    dataset = a_dataset(10**9, 1000.0)
    words = ["--dataset_name", "multicam", "--grid_finest", "64"]
    config = plan_sizes(get_config([*LAPTOP, *words]), dataset)
    assert (config.grid_finest, config.prop_finest) == (64, (256,))
    for words in (["--preset", "gpu", "--model", "zipnerf"], ["--preset", "laptop"]):
        config = get_config(words)
        assert plan_sizes(config, dataset) == config


@pytest.mark.parametrize("words,steps,minutes", [
    ([], 600, 5.0), (["--minutes", "2"], 240, 2.0), (["--minutes", "0.001"], 1, 0.001),
    (["--minutes", "2", "--max_steps", "7"], 7, None), (["--max_steps", "7"], 7, None),
])
def test_steps_follow_minutes_unless_typed(words, steps, minutes):
    config = plan_steps(get_config([*LAPTOP, *words]), seconds_per_step=0.5)
    assert (config.max_steps, config.minutes) == (steps, minutes)
    if minutes is not None:
        assert (config.eval_every, config.save_every) == (-(-steps // 2), -(-steps // 4))
        assert config.log_every <= steps


def test_other_trainings_are_planned_if_minutes_are_typed():
    assert plan_steps(get_config(["--model", "mipnerf360"]), 0.5).max_steps == 200_000
    assert plan_steps(get_config(["--minutes", "3"]), 0.5).max_steps == 360


@pytest.mark.parametrize("words,changes", [
    ([], {}), (["--minutes", "15"], {"max_steps": 1800}),
    (["--minutes", "15", "--max_steps", "900"], {"minutes": None}),
    (["--minutes", "5"], {"max_steps": 600}),
])
def test_a_longer_plan_has_as_many_steps_a_minute(words, changes):
    run = get_config(LAPTOP).replace(max_steps=600)
    assert longer_plan(run, get_config(words)) == changes


def test_plans_that_cannot_be_longer_are_refused():
    run = get_config(LAPTOP).replace(max_steps=600)
    with pytest.raises(UserError, match="--minutes 2 was given, but .* planned for 5"):
        longer_plan(run, get_config(["--minutes", "2"]))
    with pytest.raises(UserError, match="started with --max_steps 600; give a larger"):
        longer_plan(run.replace(minutes=None), get_config(["--minutes", "9"]))


def test_a_planned_run_is_saved_as_planned_and_goes_on_for_longer(tmp_path):
    write_blender(tmp_path / "scene", num_views=2, size=(12, 8))
    words = ["--preset", "debug", "--device", "cpu", "--no-final_eval", "--eval_every", "0",
             "--scene", str(tmp_path / "scene"), "--log_dir", str(tmp_path), "--exp_name", "run",
             "--batch_size", "16"]
    train.main([*words, "--minutes", "0.02"])
    planned = json.loads((tmp_path / "run" / "config.json").read_text())
    steps = planned["max_steps"]
    assert planned["minutes"] == 0.02 and steps > 1
    assert step_of(list_checkpoints(tmp_path / "run")[0]) == steps
    train.main([*words, "--minutes", "0.06", "--continue_training"])
    assert step_of(list_checkpoints(tmp_path / "run")[0]) == 3 * steps


def test_a_step_takes_the_time_of_the_optimizer_too(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "time_optimizer", lambda training: 25.0)
    write_blender(tmp_path / "scene", num_views=2, size=(12, 8))
    train.main(["--preset", "debug", "--device", "cpu", "--no-final_eval", "--eval_every", "0",
                "--scene", str(tmp_path / "scene"), "--log_dir", str(tmp_path), "--exp_name", "run",
                "--batch_size", "16", "--minutes", "1.5"])
    assert step_of(list_checkpoints(tmp_path / "run")[0]) == 3
