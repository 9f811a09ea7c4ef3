"""Data-parallel helpers for ranks started by `torchrun`; no-ops in a single process.

All ranks hold the same model and data. Each processes its slice of every batch and its fraction of
images and frames, results are summed or gathered over ranks, and rank 0 (the main rank) writes
files.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# Import now: a later import (optimizers do it) captures the process group, whose threads may abort
# the exit.
import torch.distributed.nn  # noqa: F401
from torch import Tensor

from runtime.errors import UserError

Number = TypeVar("Number", int, float)

# Longest wait for a rank that renders validation images or writes a checkpoint.
TIMEOUT = timedelta(hours=1)


# The group of ranks.


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[None]:
    """Context in which the ranks that torchrun started communicate, and only rank 0 prints.

    GPU tensors are sent by NCCL, CPU tensors by gloo. Raises UserError on an MPS device. A rank
    that loses the connection, because another one has failed, exits with status 1.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    if device.type == "mps":
        raise UserError("several ranks need CUDA GPUs or CPUs; add --device cpu.")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        # A rank that fails early must not exit while others still connect to it.
        wait_for_all()
        with nullcontext() if is_main() else _silence():
            yield
    except RuntimeError as error:
        if "Connection" not in str(error):
            raise
        print(f"rank {rank()} stops, because another rank has stopped.", file=sys.stderr)
        sys.exit(1)
    finally:
        dist.destroy_process_group()


@contextmanager
def _silence() -> Iterator[None]:
    """Discard what is printed or logged at level INFO."""
    stdout, sys.stdout = sys.stdout, open(os.devnull, "w")
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        sys.stdout.close()
        sys.stdout = stdout


def rank() -> int:
    """Index of this process among all ranks."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    """Number of ranks on all machines."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Index of this process among the ranks of its machine, which is also that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_torchelastic_launched() else 0


def ranks_of_machine() -> int:
    """Number of ranks on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def is_main() -> bool:
    """Whether this is rank 0, which prints and writes files."""
    return rank() == 0


def hide_bar() -> bool | None:
    """The argument `disable` of `tqdm`: only rank 0 shows a bar, and only on a terminal."""
    return None if is_main() else True


# Division of work among ranks.


def rank_items(items: Sequence) -> Sequence:
    """This rank's items: `items[rank::num_ranks()]`."""
    return items[rank() :: num_ranks()]


def rank_rows(count: int) -> slice:
    """This rank's contiguous slice of `count` rows; slices differ in length by at most 1."""
    return slice(count * rank() // num_ranks(), count * (rank() + 1) // num_ranks())


# Communication. All ranks must call these functions in the same order.


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of the ranks' tensors of equal shape, on every rank."""
    if dist.is_initialized():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its sum over ranks; parameters without gradient are skipped."""
    if not dist.is_initialized():
        return
    trained = [p for p in parameters if p.grad is not None]
    total = sum_over_ranks(torch.cat([p.grad.flatten() for p in trained]))
    for p, grad in zip(trained, total.split([p.numel() for p in trained]), strict=True):
        p.grad = grad.view_as(p)


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors of all ranks with those of rank 0."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def max_over_ranks(number: Number) -> Number:
    """The largest of the ranks' numbers. Uses CPU tensors, so it does not wait for a GPU."""
    if not dist.is_initialized():
        return number
    largest = torch.tensor(number, dtype=torch.float64)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return type(number)(largest.item())


def wait_for_all() -> None:
    """Barrier: return once all ranks have called this function."""
    max_over_ranks(0)


def collect(items: list) -> list:
    """The concatenated lists of all ranks, on every rank."""
    if not dist.is_initialized():
        return items
    lists: list[list] = [[]] * num_ranks()
    dist.all_gather_object(lists, items)
    return sum(lists, [])


def collect_on_main(items: list) -> list:
    """The concatenated lists of all ranks, on rank 0; an empty list on the others."""
    if not dist.is_initialized():
        return items
    lists: list[list] | None = [[]] * num_ranks() if is_main() else None
    dist.gather_object(items, lists)
    return sum(lists, []) if lists else []


# Order among ranks.


@contextmanager
def first_on_each_machine() -> Iterator[None]:
    """One rank per machine runs the block first; the others then find its files on disk."""
    with _in_turn(local_rank() == 0):
        yield


@contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 runs the block first; the others then find its files on disk."""
    with _in_turn(is_main()):
        yield


@contextmanager
def _in_turn(goes_first: bool) -> Iterator[None]:
    if not goes_first:
        wait_for_all()
    yield
    if goes_first:
        wait_for_all()


def on_main(context: Callable[[], AbstractContextManager[Any]]) -> AbstractContextManager[Any]:
    """The context manager `context()` on rank 0, and one without effect on the others."""
    return context() if is_main() else nullcontext()
