"""Training and rendering mix no devices, and a step never makes the host wait.

PyTorch's meta device shows it. Tensors there have no values: an operation that mixes them with
tensors of the CPU raises, and so does one that reads a value, for which the host would wait.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import rendering
from config import get_config
from exporters.survey import density_at
from fields.hash_grid import encode_torch, make_levels
from model import build_model
from models.base import RayModel
from relighting.components import COMPONENTS
from relighting.lights import point_lights
from runtime import devices
from runtime.devices import MAX_CALLS, time_calls
from scripts.bench_throughput import BOX, make_batch
from structures import Cameras, Rays
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


@pytest.fixture
def without_values(monkeypatch):
    """Replaces what reads values: autocast, a NeRV's stage (its last), the indices of a mask (all)
    and those that differ (all), and the window that normals are fitted in.
    """
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())
    monkeypatch.setattr(RayModel, "stage_at", lambda self, train_frac: len(self.stages) - 1)
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda self: torch.zeros(
        self.numel(), self.dim(), dtype=torch.long, device=self.device))
    monkeypatch.setattr(torch.Tensor, "unique", lambda self: self)
    monkeypatch.setattr(rendering, "_noise", lambda *maps: 0.0)


def rendering_model(model_name):
    """A model on the meta device, and rays `[2, 3]` there; those of a NeRV see two lights."""
    config = get_config(["--model", model_name, "--preset", "debug", "--precision", "fp32"])
    model = build_model(config, "cpu", BOX).to(META).eval()
    rays = make_batch(6, torch.device("cpu")).rays.map(lambda x: x.reshape(2, 3, -1))
    if model_name == "nerv":
        rays = rays.with_lights(point_lights(torch.rand(2, 3), torch.ones(2, 3)))
    return model, rays.to(META)


MODELS = ["mipnerf", "mipnerf360", "zipnerf", "nerv"]


@pytest.mark.parametrize("model_name", MODELS)
def test_rendering_an_image_mixes_no_devices(model_name, without_values):
    """As for scores, a video's frames and the colours of a mesh."""
    model, rays = rendering_model(model_name)
    output = rendering.render_image(model, rays, chunk=6, normals_from="density")
    tensors = [output.rgb, output.acc, output.distance_mean, output.distance_median,
               output.normals, *output.extras.values()]
    assert all(tensor.is_meta and tensor.shape[:2] == (2, 3) for tensor in tensors)
    assert set(output.extras) == (set(COMPONENTS) if model_name == "nerv" else set())


def test_distances_and_normals_mix_no_devices(without_values):
    model, rays = rendering_model("mipnerf")
    cameras = Cameras(camtoworlds=torch.eye(4, device=META)[None, :3],
                      pixtocams=torch.eye(3, device=META)[None],
                      sizes=torch.tensor([[3, 2]], device=META), near=2.0, far=6.0)
    output = rendering.render_image(model, rays, chunk=9, normals_from="density")
    distance = rendering.world_distance(cameras, rays, output.distance_median)
    assert distance.is_meta and rendering.world_normals(cameras, rays, output).is_meta
    assert rendering.surface_normals(distance, rays.viewdirs, output.acc).is_meta


@pytest.mark.parametrize("model_name", MODELS[:3])
def test_densities_of_a_mesh_mix_no_devices(model_name, without_values, monkeypatch):
    """A NeRV's densities are those of its Zip-NeRF or mip-NeRF 360."""
    model, _ = rendering_model(model_name)
    survey = SimpleNamespace(points=torch.zeros(1, 3, device=META), radius=0.01)
    fetched = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: fetched.append(self) or torch.zeros(
        self.shape))
    assert density_at(model, survey, 0.1, chunk=1)(np.zeros((70, 3))).shape == (70,)
    assert fetched and all(tensor.is_meta for tensor in fetched)


@pytest.mark.parametrize("slowest,calls", [(0.01, 1 + MAX_CALLS), (0.7, 1 + 2), (50.0, 1 + 1)])
def test_all_ranks_time_as_many_calls_as_the_slowest_affords(monkeypatch, slowest, calls):
    """Otherwise they would wait for each other in different calls."""
    monkeypatch.setattr(devices.distributed, "max_over_ranks", lambda seconds: slowest)
    made = []
    assert time_calls(torch.device("cpu"), lambda: made.append(1)) >= 0
    assert len(made) == calls
