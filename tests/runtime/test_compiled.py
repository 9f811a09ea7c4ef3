"""Kernels: their parts on threads, their cache, and the notice that they are compiled."""

import numpy as np
import pytest
import torch

from runtime.compiled import ANNOUNCEMENT, compiled, run_on_threads


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
