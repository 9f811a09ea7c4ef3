"""Compiled kernels on several threads."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import torch


def compiled(**options) -> Callable:
    """A decorator that compiles by numba, and caches the result on disk for later processes.

    The kernels release Python's lock. Those of `run` call other compiled functions in plain loops:
    numba's own parallel loops take several times as long to compile.
    """
    def compile_one(function):
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # Neither this folder nor the user's cache is writable.
            return numba.njit(nogil=True, **options)(function)

    return compile_one


def run(kernel: Callable, count: int, *arguments: Any):
    """Call `kernel(first, last, *arguments)` for parts of range(count), on PyTorch's threads."""
    num_threads = min(torch.get_num_threads(), count)
    if num_threads <= 1:
        kernel(0, count, *arguments)
        return
    ends = [count * i // num_threads for i in range(num_threads + 1)]
    parts = [_pool(num_threads - 1).submit(kernel, *ends[i : i + 2], *arguments)
             for i in range(1, num_threads)]
    kernel(*ends[:2], *arguments)
    for part in parts:
        part.result()


@functools.cache
def _pool(num_threads):
    return ThreadPoolExecutor(num_threads, "kernel")
