"""A run folder, hardly trained."""

import pytest

import train
from tests.scenes import write_blender


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    write_blender(folder / "scene")
    train.main(["--preset", "debug", "--device", "cpu", "--scene", str(folder / "scene"),
                "--log_dir", str(folder), "--exp_name", "run", "--max_steps", "2",
                "--eval_every", "0", "--no-final_eval"])
    return folder / "run"
