"""Device and precision of a run."""

import statistics
import time
from typing import Any

import torch

from runtime import distributed
from runtime.errors import UserError

# Calls that are timed: at most this many, and no more after this many seconds.
MAX_CALLS, MAX_SECONDS = 7, 2.0


def select_device(config: Any) -> torch.device:
    """The device of `--device`; 'auto' takes CUDA, then MPS, then the CPU.

    Under torchrun each rank of a machine gets its own GPU. Raises UserError if the device is
    missing, or if there are fewer GPUs than ranks.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind = config.device
    if kind == "auto":
        kind = next((name for name, found in available.items() if found), "cpu")
    if not available.get(kind, True):
        raise UserError(f"--device {kind} was given, but PyTorch finds no such device; use "
                        "--device auto or cpu.")
    if kind == "cuda" and distributed.local_rank() >= torch.cuda.device_count():
        raise UserError(f"this machine has {torch.cuda.device_count()} GPUs, fewer than ranks; "
                        "set --nproc_per_node to that number, or use --device cpu.")
    return torch.device(kind, distributed.local_rank()) if kind == "cuda" else torch.device(kind)


def select_precision(config: Any, device: torch.device) -> torch.dtype:
    """The dtype of the linear layers; 'auto' is bf16 if the hardware supports it.

    The small networks of hash grids have a kernel on CPUs, which computes in float32.
    """
    if config.precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[config.precision]
    if device.type == "cpu" and config.model == "zipnerf":
        return torch.float32
    return torch.bfloat16 if has_fast_bf16(device) else torch.float32


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16 matrix multiplications.

    Without them bf16 is emulated, and far slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def synchronize(device):
    """Wait until the device has finished what was queued; CPUs queue nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def time_calls(device, call):
    """The median seconds of a few calls, fewer if they are long, and as many on all ranks.

    The first call is not counted: it also allocates the memory that all use.
    """
    call()
    times = [time_call(device, call)]
    affordable = int(MAX_SECONDS / max(distributed.max_over_ranks(times[0]), 1e-9))
    for _ in range(min(affordable, MAX_CALLS) - 1):
        times.append(time_call(device, call))
    return statistics.median(times)


def time_call(device, call):
    """The seconds of a call."""
    synchronize(device)
    begin = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - begin
