"""Kernels compiled by numba: caching on disk, and several threads."""

import functools
import logging
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import torch
from numba.core import event

logger = logging.getLogger(__name__)

# Calls of a kernel whose times are compared, on several threads and on one, and seconds from which
# on several are always worth waking.
TRIALS, LONG = 16, 0.02


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that compiles by numba, and caches the result on disk for later processes.

    Compiled functions release Python's lock, for `run_on_threads`. numba's own parallel loops are
    not used: they take several times as long to compile, and their threads compete with PyTorch's.
    """
    def compile_one(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # Neither this folder nor the user's cache is writable.
            return numba.njit(nogil=True, **options)(function)

    return compile_one


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
    """Call `kernel(first, last, *arguments)` for parts of range(count), as many as threads.

    A kernel's results must not depend on the parts: a short kernel runs as one part where waking
    threads takes longer than they save, as on virtual machines, which its first calls measure.
    """
    num_threads = min(torch.get_num_threads(), count)
    if num_threads <= 1:
        kernel(0, count, *arguments)
        return
    timing = _timing(kernel, num_threads)
    use_threads = timing.prefers_threads()
    begin = time.perf_counter()
    if use_threads:
        _run_parts(kernel, count, num_threads, arguments)
    else:
        kernel(0, count, *arguments)
    timing.add(use_threads, time.perf_counter() - begin)


def _run_parts(kernel, count, num_threads, arguments):
    ends = [count * i // num_threads for i in range(num_threads + 1)]
    others = [_pool(num_threads - 1).submit(kernel, *ends[i : i + 2], *arguments)
              for i in range(1, num_threads)]
    kernel(*ends[:2], *arguments)
    for other in others:
        other.result()


class _Timing:
    """Times of a kernel's first calls on several threads, then on one."""

    def __init__(self) -> None:
        self.seconds: dict[bool, list[float]] = {True: [], False: []}

    def prefers_threads(self) -> bool:
        """Whether the next call uses several threads."""
        several, one = self.seconds[True], self.seconds[False]
        if len(several) < TRIALS or statistics.median(several) > LONG:
            return True
        return len(one) == TRIALS and statistics.median(several) <= statistics.median(one)

    def add(self, used_threads: bool, seconds: float) -> None:
        """Add a call's time, if it is one of the first."""
        if len(self.seconds[used_threads]) < TRIALS:
            self.seconds[used_threads].append(seconds)


@functools.cache
def _timing(kernel: Callable[..., Any], num_threads: int) -> _Timing:
    return _Timing()


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, "kernel")
