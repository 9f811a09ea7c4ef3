"""Several processes that work as one, started by `torchrun`; alone, nothing here does anything.

The ranks hold the same model and the same data. Each takes its share of what is to be done (rays
of a batch, images, frames), sums go over all of them, and what there is one of the main one
writes, rank 0.
"""

import os
import sys
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch.distributed as dist
import torch.distributed.nn

from runtime.errors import UserError

# Ranks wait so long for one that draws validation pictures or writes a checkpoint.
TIMEOUT = timedelta(hours=1)


@contextmanager
def joined_ranks(device):
    """While entered, the processes that torchrun started know one another.

    Tensors of GPUs travel by NCCL, those of CPUs by gloo. Only the main rank prints.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    if device.type == "mps":
        raise UserError("several ranks work on CUDA GPUs or on CPUs; add --device cpu.")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        with nullcontext() if is_main() else _silence():
            yield
    except RuntimeError as error:
        if "Connection" not in str(error):
            raise
        print(f"rank {rank()} ends, as another one has.", file=sys.stderr)
        sys.exit(1)
    finally:
        dist.destroy_process_group()


@contextmanager
def _silence():
    printed, sys.stdout = sys.stdout, open(os.devnull, "w")
    try:
        yield
    finally:
        sys.stdout.close()
        sys.stdout = printed


def rank():
    """This process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks():
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank():
    """This process's number on its machine, which is that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_torchelastic_launched() else 0


def ranks_of_machine():
    """How many processes work together on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def is_main():
    """Whether this process prints, and writes what there is one of."""
    return rank() == 0


def hide_bar():
    """What `tqdm` takes as `disable`: a bar for the main rank, where there is a terminal."""
    return None if is_main() else True


def my_share(items):
    """Every so many-th item of a sequence, from this process's number on."""
    return items[rank() :: num_ranks()]


def my_rows(count):
    """Of `count` rows those of this process, in one piece, as a `slice`."""
    return slice(count * rank() // num_ranks(), count * (rank() + 1) // num_ranks())


def sum_over_ranks(tensor):
    """The sum of the ranks' tensors of one shape, on all of them."""
    if dist.is_initialized():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def sum_gradients(parameters):
    """Give each parameter that has a gradient the sum of the ranks' gradients."""
    if not dist.is_initialized():
        return
    trained = [p for p in parameters if p.grad is not None]
    total = sum_over_ranks(torch.cat([p.grad.flatten() for p in trained]))
    for p, grad in zip(trained, total.split([p.numel() for p in trained]), strict=True):
        p.grad = grad.view_as(p)


def copy_from_main(tensors):
    """Give the tensors the main rank's values."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def largest(number):
    """The largest of the ranks' whole numbers. The device is not waited for."""
    if not dist.is_initialized():
        return number
    number = torch.tensor(number)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def wait_for_all():
    """Go on when all ranks are here."""
    largest(0)


def collect(items):
    """The ranks' lists, one after another, on all of them."""
    if not dist.is_initialized():
        return items
    lists = [None] * num_ranks()
    dist.all_gather_object(lists, items)
    return sum(lists, [])


def collect_on_main(items):
    """The ranks' lists, one after another, on the main rank; elsewhere nothing."""
    if not dist.is_initialized():
        return items
    lists = [None] * num_ranks() if is_main() else None
    dist.gather_object(items, lists)
    return sum(lists, []) if is_main() else []


@contextmanager
def first_on_each_machine():
    """One rank of a machine does the block before its others, which find what it left on disk."""
    with _in_turn(local_rank() == 0):
        yield


@contextmanager
def main_first():
    """The main rank does the block before the others, which find what it left on disk."""
    with _in_turn(is_main()):
        yield


@contextmanager
def _in_turn(goes_first):
    if not goes_first:
        wait_for_all()
    yield
    if goes_first:
        wait_for_all()


def on_main(context):
    """The context that `context()` makes, on the main rank; elsewhere none."""
    return context() if is_main() else nullcontext()
