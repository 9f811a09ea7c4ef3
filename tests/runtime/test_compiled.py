"""Kernels: their parts on threads, their cache, and the notice that they are compiled."""

import time

import numpy as np
import pytest
import torch

from runtime.compiled import ANNOUNCEMENT, TRIALS, compiled, run_on_threads


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 11])
def test_parts_cover_the_range_once(threads, count):
    visits, before = np.zeros(count, int), torch.get_num_threads()

    def visit(first, last, amount):
        visits[first:last] += amount

    torch.set_num_threads(threads)
    run_on_threads(visit, count, 3)
    torch.set_num_threads(before)
    assert (visits == 3).all()


@pytest.mark.parametrize("seconds,is_split", [((0.0, 0.004), True), ((0.004, 0.0), False),
                                              ((0.03, 0.0), True)])
def test_short_kernels_take_the_faster_way(seconds, is_split):
    """seconds: of a part on two threads, and of the whole on one."""
    parts = []

    def sleep(first, last):
        parts.append((first, last))
        time.sleep(seconds[last - first == 4])

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    for _ in range(2 * TRIALS + 3):
        run_on_threads(sleep, 4)
    torch.set_num_threads(before)
    assert ((0, 4) != parts[-1]) == is_split


def test_an_error_in_any_part_is_raised():
    def fail(first, last):
        if last == 4:
            raise ZeroDivisionError

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError):
        run_on_threads(fail, 4)
    torch.set_num_threads(before)


def test_compiling_is_announced_once_and_needs_no_cache(caplog, monkeypatch):
    """Functions without a source file have no cache."""
    names = {}
    exec("def twice(x): return 2 * x\ndef thrice(x): return 3 * x", names)
    monkeypatch.setattr(ANNOUNCEMENT, "was_made", False)
    with caplog.at_level("INFO"):
        assert compiled()(names["twice"])(3) == 6 and compiled()(names["thrice"])(3) == 9
    assert caplog.text.count("Compiling kernels") == 1
