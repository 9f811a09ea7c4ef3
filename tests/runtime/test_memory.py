"""Running out of memory: rendering and training retry with less at once."""

import logging
import os
import sys

import pytest
import torch

import train
from config import default_config, get_config
from datasets import load_dataset
from model import build_model
from rendering import default_chunk, render_image
from runtime.memory import free_memory, smaller_until_it_fits
from runtime.randomness import BatchRandom
from tests.scenes import write_multicam
from tests.test_model import make_rays


def limit_memory(model, max_rays):
    """Make a model fail as PyTorch does if it gets more than `max_rays` rays.

    Returns a list to which each call appends its number of rays.
    """
    forward, counts = model.forward, []

    def limited(rays, *args, **kwargs):
        counts.append(len(rays))
        if len(rays) > max_rays:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(rays, *args, **kwargs)

    model.forward = limited
    return counts


def small_model():
    return build_model(default_config(num_samples=6, hidden=8, depth=2, view_hidden=4,
                                      precision="fp32"))


def widest_layer(model):
    return max(layer.in_features + layer.out_features for layer in model.field.layers())


# Rendering.


def test_an_image_is_rendered_in_smaller_chunks_if_memory_runs_out(caplog):
    caplog.set_level(logging.INFO)
    model, rays = small_model().eval(), make_rays(50)
    expected = render_image(model, rays)
    counts = limit_memory(model, 7)
    output = render_image(model, rays, chunk=40)
    torch.testing.assert_close(output.rgb, expected.rgb)
    assert counts == [40, 20, 10, 5] + 9 * [5]
    assert "Not enough memory for 40 rays at once; retrying with 20." in caplog.messages


@pytest.mark.parametrize("free,num_rays", [(0, 1), (8_000, 10)])
def test_the_default_chunk_fits_the_free_memory(free, num_rays, monkeypatch):
    model = small_model()
    monkeypatch.setattr("models.base.free_memory", lambda device: free * widest_layer(model) / 8)
    chunk = default_chunk(model, torch.device("cpu"))
    assert chunk == pytest.approx(num_rays, abs=0.2 * num_rays)


def test_the_default_chunk_is_larger_for_narrow_networks():
    """8,192 samples, 6 per ray; more in proportion if the widest layer has fewer than 256 features.
    """
    model = small_model()
    assert default_chunk(model, torch.device("cpu")) == 8192 * 256 // widest_layer(model) // 6
    model.field.trunk.append(torch.nn.Linear(200, 200))
    assert default_chunk(model, torch.device("cpu")) == 8192 // 6


def test_free_memory_of_the_cpu_is_plausible():
    free = free_memory(torch.device("cpu"))
    assert 1e7 < free
    if sys.platform == "linux":
        assert free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# Training.


def test_a_step_takes_smaller_micro_batches_if_memory_runs_out(tmp_path):
    write_multicam(tmp_path / "scene")
    config = get_config(["--preset", "debug", "--precision", "fp32", "--dataset_name", "multicam",
                         "--scene", str(tmp_path / "scene"), "--batch_size", "37"])
    batch = load_dataset(config, "train").batch(37, torch.Generator().manual_seed(0))
    gradients = []
    for max_rays in (37, 10):
        model = build_model(config).train()
        limit_memory(model, max_rays)
        _, micro_batch = train.compute_gradients(
            model, batch, config, 0.0, 37, BatchRandom(0, 37))
        gradients.append([p.grad for p in model.parameters()])
    assert micro_batch == 9
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


# The retry itself.


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("sizes do not match")])
def test_other_errors_and_those_of_size_1_are_raised(error):
    sizes = []

    def fail(size):
        sizes.append(size)
        raise error

    with pytest.raises(type(error)):
        smaller_until_it_fits(4, fail)
    assert sizes == ([4, 2, 1] if isinstance(error, MemoryError) else [4])
