"""The learning rate against closed forms, official numbers, and PyTorch's own stepping."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch

from scheduler import learning_rate, make_scheduler

PAPER = dict(lr_init=5e-4, lr_final=5e-6, max_steps=1_000_000, lr_delay_steps=2500,
             lr_delay_mult=0.01)
SHORT = dict(lr_init=1e-2, lr_final=1e-4, max_steps=60, lr_delay_steps=10, lr_delay_mult=0.1)


def make_optimizer():
    return torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def run_scheduler(step, steps_after):
    """The rates that the optimizer holds at `step` and after each of `steps_after` more steps."""
    optimizer = make_optimizer()
    schedule = make_scheduler(optimizer, SimpleNamespace(**SHORT), step=step)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps_after):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("step, rate", [(0, 1e-2), (50, 1e-3), (100, 1e-4)])
def test_decay_is_log_linear(step, rate):
    assert learning_rate(step, 1e-2, 1e-4, 100) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("step", [1_000_001, 1_200_000, 10**9])
def test_rate_stays_final_after_the_last_step(step):
    assert learning_rate(step, **PAPER) == pytest.approx(5e-6, rel=1e-12)


def test_warm_up_starts_at_its_multiple_and_ends_without_effect():
    without = PAPER | {"lr_delay_steps": 0}
    assert learning_rate(0, **PAPER) == pytest.approx(0.01 * 5e-4, rel=1e-12)
    assert learning_rate(2500, **PAPER) == pytest.approx(learning_rate(2500, **without), rel=1e-12)


def test_warm_up_is_a_quarter_period_of_a_sine():
    # A third of a quarter period is 30 degrees, whose sine is 1/2: half way from 0.01 to 1.
    plain = learning_rate(2500 / 3, **PAPER | {"lr_delay_steps": 0})
    assert learning_rate(2500 / 3, **PAPER) == pytest.approx(0.505 * plain, rel=1e-12)


def test_rate_rises_in_the_warm_up_and_falls_after_it():
    rates = [learning_rate(step, **PAPER) for step in range(0, 1_000_001, 250)]
    warm_up, decay = rates[:10], rates[10:]
    assert all(a < b for a, b in zip(warm_up, warm_up[1:], strict=False))
    assert all(a > b for a, b in zip(decay, decay[1:], strict=False))


@pytest.mark.parametrize("name", ["paper", "bebeal", "nodelay"])
def test_rate_equals_the_official_code(golden, name):
    lr_init, lr_final, max_steps, delay_steps, delay_mult = golden(f"lr.settings_{name}").tolist()
    for step, expected in zip(golden("lr.steps").tolist(), golden(f"lr.lr_{name}"), strict=True):
        ours = learning_rate(step, lr_init, lr_final, max_steps, delay_steps, delay_mult)
        # exp(log_lr) in float32: |log_lr| is up to 12, whose rounding 5e-7 is the relative error.
        assert ours == pytest.approx(float(expected), rel=1e-6)


def test_scheduler_sets_the_learning_rate():
    expected = [learning_rate(step, **SHORT) for step in range(71)]
    assert run_scheduler(0, 70) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("step", [1, 7, 59, 65])
def test_scheduler_begun_at_a_step_equals_one_that_stepped_there(step):
    assert run_scheduler(step, 5) == pytest.approx(run_scheduler(0, step + 5)[step:], rel=1e-12)


@pytest.mark.parametrize("step", [0, 7])
def test_making_a_scheduler_does_not_warn(step):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_scheduler(step, 2)


@pytest.mark.parametrize("step", [0, 3, 11])
def test_rate_is_a_finite_plain_float(step):
    rate = learning_rate(step, 1e-3, 1e-5, 10, 3, 0.0)
    assert type(rate) is float and math.isfinite(rate)
