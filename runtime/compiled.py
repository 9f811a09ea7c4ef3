"""Kernels compiled by numba: caching on disk, and several threads."""

import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.core import event

from runtime import team

logger = logging.getLogger(__name__)

# Parts of a kernel's work for each thread, so that a thread that finishes early takes another.
PARTS_PER_THREAD = 4


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that compiles by numba, and caches the result on disk for later processes.

    Compiled functions release Python's lock, for `run_on_threads`. numba's own parallel loops are
    not used: they take several times as long to compile, and their threads compete with PyTorch's.
    """
    return functools.partial(_compile, numba.njit, nogil=True, **options)


def _compile(decorator, function, *signature, **options):
    try:
        return decorator(*signature, cache=True, **options)(function)
    except RuntimeError:  # Neither this folder nor the user's cache is writable.
        return decorator(*signature, **options)(function)


class _Announcement(event.Listener):
    """Logs, before the first kernel that is not on disk, that compiling takes a while."""

    was_made = False

    def on_start(self, event: Any) -> None:
        if not self.was_made:
            logger.info("Compiling kernels for this CPU, which happens once ...")
        self.was_made = True

    def on_end(self, event: Any) -> None:
        """Nothing."""


ANNOUNCEMENT = _Announcement()
event.register("numba:compile", ANNOUNCEMENT)


def run_on_threads(kernel: Callable[..., Any], count: int, *arguments: Any) -> None:
    """Call `kernel(first, last, *arguments)` for parts of range(count), on PyTorch's threads.

    kernel: a `compiled` function that returns and raises nothing, and whose results do not depend
    on the parts. arguments: arrays, numbers, and tuples of them. Where PyTorch's OpenMP library
    cannot be called, threads of Python serve.
    """
    if not count:
        return
    num_threads = min(torch.get_num_threads(), count)
    parallel = team.parallel_address()
    if not parallel:
        _run_on_python_threads(kernel, count, num_threads, arguments)
        return
    num_parts = 1 if num_threads == 1 else min(PARTS_PER_THREAD * num_threads, count)
    _run_on_team(parallel, num_threads, _entry(kernel, arguments).address, count, num_parts,
                 arguments)


@compiled()
def _run_on_team(parallel, num_threads, kernel, count, num_parts, arguments):
    team.run(parallel, num_threads, kernel, count, num_parts, arguments)


def _entry(kernel, arguments):
    """A kernel as a function that other libraries can call."""
    entries, kinds = _entries(kernel), tuple(map(_kind, arguments))
    if kinds not in entries:
        signature = types.void(types.intp, types.intp, *map(numba.typeof, arguments))
        entries[kinds] = _compile(numba.cfunc, kernel.py_func, signature, **kernel.targetoptions)
    return entries[kinds]


@functools.cache
def _entries(kernel):
    """The entries of a kernel by the kinds of their arguments."""
    return {}


def _kind(value):
    """The properties of an argument by which a kernel is compiled for it."""
    if isinstance(value, np.ndarray):
        flags = value.flags
        return value.dtype, value.ndim, flags.c_contiguous, flags.f_contiguous, flags.writeable
    if isinstance(value, tuple):
        return type(value), *map(_kind, value)
    return type(value)


def _run_on_python_threads(kernel, count, num_threads, arguments):
    ends = [count * i // num_threads for i in range(num_threads + 1)]
    others = [_pool(num_threads - 1).submit(kernel, *ends[i : i + 2], *arguments)
              for i in range(1, num_threads)]
    kernel(*ends[:2], *arguments)
    for other in others:
        other.result()


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, "kernel")
