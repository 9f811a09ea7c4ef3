"""A small trained run, loaded as the viewer loads it."""

import shutil

import pytest

import train
from config import get_config
from tests.scenes import write_blender
from viewer.loaded_run import load_run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run folder with checkpoints of two steps, and its scene beside it."""
    folder = tmp_path_factory.mktemp("viewer")
    write_blender(folder / "scene", num_views=5, size=(24, 16))
    train.main(["--preset", "debug", "--device", "cpu", "--model", "zipnerf", "--scene",
                str(folder / "scene"), "--log_dir", str(folder), "--exp_name", "run",
                "--max_steps", "40", "--save_every", "20", "--eval_every", "20", "--log_every",
                "10", "--keep_checkpoints", "3", "--no-final_eval"])
    return folder / "run"


@pytest.fixture
def run_folder(trained, tmp_path):
    """A copy of the run without its last checkpoint, which `trained` has."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoint_00000040.pt"))
    return folder


@pytest.fixture(scope="session")
def loaded(trained):
    return load_run(get_config(["--run", str(trained), "--device", "cpu"], "view"))
