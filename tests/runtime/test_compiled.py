"""Kernels: their parts on threads, their cache, and the notice that they are compiled."""

import sys

import numpy as np
import pytest
import torch

from runtime import team
from runtime.compiled import ANNOUNCEMENT, compiled, run_on_threads


@compiled()
def visit(first, last, amount, visits):
    for i in range(first, last):
        visits[i] += amount[0] * amount[1]


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=["team", "python"])
def way(request, monkeypatch):
    """The team of PyTorch's OpenMP library, and Python's threads in its absence."""
    if request.param == "python":
        monkeypatch.setattr(team, "parallel_address", lambda: 0)
    elif not team.parallel_address():
        pytest.skip("This platform's OpenMP library has no GOMP_parallel")


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP library is that of Linux")
def test_pytorch_s_threads_are_found():
    assert team.parallel_address()


@pytest.mark.parametrize("count", [0, 1, 4, 11, 1000])
def test_parts_cover_the_range_once(threads, way, count):
    visits = np.zeros(count + 1)
    for _ in range(20):
        run_on_threads(visit, count, (3, 0.5), visits)
    assert (visits == [30.0] * count + [0.0]).all()


@pytest.mark.parametrize("dtype,amount", [(np.float32, (2, 3)), (np.int64, (2, 3)),
                                          (np.float64, (0.25, 24.0))])
def test_kernels_are_compiled_for_each_kind_of_arguments(threads, way, dtype, amount):
    visits = np.zeros((7, 2), dtype)[:, 0]
    run_on_threads(visit, len(visits), amount, visits)
    assert visits.tolist() == [6] * 7


def test_an_error_in_any_part_is_raised_on_python_threads(monkeypatch):
    def fail(first, last):
        if last == 4:
            raise ZeroDivisionError

    monkeypatch.setattr(team, "parallel_address", lambda: 0)
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
