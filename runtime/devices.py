"""The device and the precision of a run."""

import torch

from runtime import distributed
from runtime.errors import UserError


def select_device(config):
    """The device of `--device`; 'auto' takes CUDA, then MPS, then the CPU.

    Of several processes on one machine each has a GPU of its own.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind = config.device
    if kind == "auto":
        kind = next((name for name, found in there.items() if found), "cpu")
    if not there.get(kind, True):
        raise UserError(f"--device {kind} was given, but PyTorch finds none here; use "
                        "--device auto or cpu.")
    if kind == "cuda" and distributed.local_rank() >= torch.cuda.device_count():
        raise UserError(f"there are {torch.cuda.device_count()} GPUs here and more ranks; start "
                        "as many by --nproc_per_node, or use --device cpu.")
    return torch.device(kind, distributed.local_rank()) if kind == "cuda" else torch.device(kind)


def select_precision(config, device):
    """The dtype of the linear layers; 'auto' is bf16 where the device multiplies it in hardware."""
    if config.precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[config.precision]
    return torch.bfloat16 if has_fast_bf16(device) else torch.float32


def has_fast_bf16(device):
    """Whether the device has instructions for bf16 products; without, they are far slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def synchronize(device):
    """Wait until the device has finished what was queued; CPUs queue nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
