"""Training steps mix no devices and never make the host wait, as PyTorch's meta device shows.

Tensors there have no values: an operation that mixes them with tensors of the CPU raises, and so
does one that reads a value, for which the host would wait for a GPU.
"""

from contextlib import nullcontext

import pytest
import torch

from config import get_config
from fields.hash_grid import encode_torch, make_levels
from model import build_model
from scripts.bench_throughput import BOX, make_batch
from structures import Rays
from train import compute_gradients

META = torch.device("meta")


@pytest.mark.parametrize("model_name", ["mipnerf", "mipnerf360", "zipnerf"])
def test_a_training_step_mixes_no_devices_and_reads_no_value(model_name, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())
    config = get_config(["--model", model_name, "--preset", "debug", "--precision", "fp32"])
    model = build_model(config, "cpu", BOX).to(META)
    batch = make_batch(8, torch.device("cpu")).to(META)
    totals, _ = compute_gradients(model.train(), batch, config, 0.5, 4)
    assert totals["loss/total"].is_meta
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())


def test_the_meta_device_finds_what_it_is_there_for():
    on_meta = torch.ones(3, device=META)
    with pytest.raises(RuntimeError, match="device"):
        on_meta + torch.ones(3)
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(on_meta.sum())
    levels = make_levels(4, 8, 9)
    with pytest.raises(RuntimeError, match="device"):
        encode_torch(torch.rand(2, 1, 3, device=META), torch.ones(2, 1, 2),
                     torch.rand(levels.table_size, 2, device=META), levels)


def test_only_copies_to_cuda_do_not_block(monkeypatch):
    """A copy to the CPU that does not block can be read before it has arrived."""
    seen = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking=False: seen.append(
        (str(device), non_blocking)) or self)
    rays = Rays(**dict.fromkeys(("origins", "directions", "viewdirs"), torch.ones(1, 3)),
                **dict.fromkeys(("radii", "near", "far", "lossmult"), torch.ones(1, 1)),
                cam_idx=torch.zeros(1, 1).long())
    for device in ("cpu", "cuda:0"):
        rays.to(device)
    assert set(seen) == {("cpu", False), ("cuda:0", True)}
