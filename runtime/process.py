"""Settings of the whole process that must be made before PyTorch is imported: see `prepare`.

Nothing here is needed for correct results, and the user's own environment variables win.
"""

import ctypes
import os
import platform
import statistics
import time
from pathlib import Path

# Iterations that an idle OpenMP thread spins before it sleeps, on a busy machine. GNU's default,
# 300,000, keeps a core for milliseconds after every operation, although other programs need it.
# Where nobody does, spinning is faster: waking a thread on an idle core can double a step's time.
SPIN_COUNT = "1000"
SPIN_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

# Readings of the number of running processes, of which the median counts, and seconds between them.
READINGS, PAUSE = 5, 0.01

# glibc's mallopt: parameters, and their values in bytes. Old versions refuse more than the second.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
THRESHOLDS = (1 << 30, 1 << 25)


def prepare() -> None:
    """Share the cores with other programs, and keep freed memory. Call before importing PyTorch."""
    share_cores()
    keep_freed_memory()


def share_cores() -> None:
    """On a busy machine let idle threads of PyTorch and numba sleep soon (with GNU's OpenMP)."""
    if not any(name in os.environ for name in SPIN_VARIABLES) and other_processes():
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


def other_processes() -> int:
    """The number of other processes that are computing now; 0 where Linux does not report it."""
    counts = []
    for _ in range(READINGS):
        try:
            lines = Path("/proc/stat").read_text().splitlines()
        except OSError:
            return 0
        [running] = [int(line.split()[1]) for line in lines if line.startswith("procs_running")]
        counts.append(running - 1)
        time.sleep(PAUSE)
    return max(0, int(statistics.median(counts)))


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to 1 GiB for the next allocation; returns whether it does.

    By default it returns large blocks to the system, which has to clear their pages again for the
    next tensor: thousands of page faults per training step. Up to 1 GiB of freed memory, and the
    gaps between blocks, then stay with the process, until it exits. Does nothing elsewhere.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    for value in THRESHOLDS:
        if mallopt(M_MMAP_THRESHOLD, value):
            return bool(mallopt(M_TRIM_THRESHOLD, value))
    return False
