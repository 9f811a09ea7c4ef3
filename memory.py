"""How much memory there is, how much was held, and going on with less at once where it ends."""

import sys
from pathlib import Path

import torch

from config import is_out_of_memory


def free_memory(device):
    """Bytes that can still be had on a device; infinite where the system does not tell."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        [available] = [line for line in lines if line.startswith("MemAvailable:")]
        return 1024 * int(available.split()[1])
    except (OSError, ValueError):
        return float("inf")


def peak_memory(device):
    """Bytes: the most that CUDA has allocated, else the most that the process has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no such counter in the standard library.
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def smaller_until_it_fits(size, call):
    """`call(size)`, with half the size whenever memory does not suffice, down to 1.

    Returns its result and the size that it was had with.
    """
    while True:
        try:
            return call(size), size
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        # Here the error is gone, and with it what its frames held.
        torch.cuda.empty_cache()
        print(f"There is not enough memory for {size:,} rays at once; going on with {size // 2:,}.",
              flush=True)
        size //= 2
