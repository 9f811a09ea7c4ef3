"""What all kernels compiled by numba share: caching, and PyTorch's number of threads."""

from collections.abc import Callable
from typing import Any

import numba
import torch

# The largest number of threads that numba can use. Starting numba's threads also sets PyTorch's
# number of threads, even against OMP_NUM_THREADS (which torchrun sets), so read that first.
_PYTORCH_THREADS = torch.get_num_threads()
MAX_THREADS = numba.get_num_threads()
torch.set_num_threads(_PYTORCH_THREADS)


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that compiles by numba, and caches the result on disk for later processes."""
    def compile_one(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # Neither this folder nor the user's cache is writable.
            return numba.njit(**options)(function)

    return compile_one


def use_pytorch_threads() -> None:
    """Use as many threads in numba's kernels as PyTorch does."""
    num_threads = min(torch.get_num_threads(), MAX_THREADS)
    if numba.get_num_threads() != num_threads:
        numba.set_num_threads(num_threads)
