"""The log of a run: what it writes, and what it keeps when a run continues."""

import json
import math

import pytest
import torch

from image_utils import mse_to_psnr
from runtime.errors import UserError
from runtime.run_log import NullLog, open_log, read_metrics, truncate_metrics


def scalars(loss):
    return {"loss/total": torch.tensor(loss), "gradient_norm": torch.tensor(2.0),
            "errors": torch.tensor([0.1, loss])}


def write_lines(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_means_of_the_steps_since_the_last_write_are_written(tmp_path):
    with open_log(tmp_path, 0, 4, torch.device("cpu")) as log:
        for step, loss in enumerate((0.02, 0.01, 0.003, 0.001)):
            log.step(scalars(loss))
            if step % 2:
                log.write_means(step + 1, 64, 5e-4, mse_to_psnr)
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert (first["step"], second["step"]) == (2, 4)
    assert first["loss/total"] == pytest.approx(0.015)
    # PSNR of the mean error, not the mean of PSNRs.
    assert second["psnr/level_1"] == pytest.approx(-10 * math.log10(0.002))
    assert second["psnr/level_0"] == pytest.approx(10)
    assert first["learning_rate"] == 5e-4 and first["rays_per_second"] > 0


def test_a_loss_that_is_not_finite_is_reported_with_its_step(tmp_path):
    with open_log(tmp_path, 10, 20, torch.device("cpu")) as log:
        log.step(scalars(0.1))
        log.step(scalars(math.nan))
        with pytest.raises(UserError, match="not finite at step 12 .loss nan"):
            log.check_finite()


def test_a_continued_run_drops_later_lines_and_adds_to_the_time(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, {"step": 1, "seconds": 50.0}, {"step": 2, "seconds": 100.0},
                {"step": 3, "seconds": 150.0})
    with open_log(tmp_path, 2, 4, torch.device("cpu")) as log:
        log.write_scalars(3, {"loss": 1.0})
    lines = read_metrics(path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert 100 <= lines[-1]["seconds"] < 149 and lines[-1]["loss"] == 1


def test_time_of_validation_is_not_time_of_training(tmp_path):
    with open_log(tmp_path, 0, 1, torch.device("cpu")) as log:
        start = log.start
        with log.paused():
            pass
        assert log.start > start


@pytest.mark.parametrize("text", ['{"step": 2, "sec', "[]", '{"step": "x", "seconds": 1}', "\x00"])
def test_damaged_lines_are_skipped(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "seconds": 2.0}\n' + text + "\n")
    assert read_metrics(path) == [{"step": 1, "seconds": 2.0}]
    assert truncate_metrics(path, 5) == 2.0


def test_other_ranks_write_nothing(tmp_path):
    with NullLog() as log, log.paused():
        log.step(scalars(math.nan))
        log.write_means(1, 64, 5e-4, mse_to_psnr)
        log.write_scalars(1, {"loss": 1.0})
        log.image(1, "validation", None)
        log.check_finite()
    assert not list(tmp_path.iterdir())
