"""--robust: which pixels are outliers, and trainings that ignore them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import train
from checkpoint import load_checkpoint
from config import default_config, get_config
from datasets import load_dataset
from loss import weighted_loss
from model import build_model
from models.outliers import CELLS, OutlierMap
from runtime.randomness import BatchRandom
from structures import Batch, Rays, RenderOutput
from tests.runtime.test_distributed import first_gradients, run_ranks
from tests.scenes import WRITERS, open_scene, write_blender

TINY = ["--preset", "debug", "--device", "cpu", "--precision", "fp32", "--eval_every", "0",
        "--no-final_eval", "--robust"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "random"
    write_blender(folder, num_views=2, size=(22, 17))
    return folder


# The map.


def test_a_neighbourhood_is_twice_as_wide_as_its_cell():
    """By hand: beside a half of large errors a quarter of the neighbourhood is in the other half,
    at its corner a sixteenth; at the border of an image the cells there count twice."""
    outliers = OutlierMap(2)
    outliers.low[0, :, 8:] = 0
    outliers.low[1, 1:, 1:] = 0
    around = outliers.fraction_around()
    assert around[0, 5, 5:11].tolist() == [1, 1, 0.75, 0.25, 0, 0]
    assert around[1, :3, :3].tolist() == [
        [0.9375, 0.8125, 0.75], [0.8125, 0.4375, 0.25], [0.75, 0.25, 0]]


def test_inliers_have_a_low_error_or_lie_where_errors_are_low():
    outliers = OutlierMap(1)
    outliers.low.zero_()
    outliers.low[0, :4] = 0.61
    cells = torch.tensor([0, 0, CELLS * 20, CELLS * 20])
    is_low = torch.tensor([True, False, True, False])
    assert outliers.inliers(is_low, cells).tolist() == [True, True, True, False]
    outliers.low[0, :4] = 0.6
    assert outliers.inliers(is_low, cells).tolist() == [True, False, True, False]
    assert outliers.inliers(is_low[:0], cells[:0]).shape == (0,)


def test_cells_remember_the_fraction_of_low_errors():
    """Three pixels of cell 7, two of them low, a masked one, and one low pixel of cell 8."""
    outliers = OutlierMap(1)
    outliers.low.fill_(0.5)
    cells = torch.tensor([7, 7, 7, 7, 8])
    is_low = torch.tensor([True, True, False, False, True])
    is_valid = torch.tensor([True, True, True, False, True])
    counts = sum(outliers.count(is_low[i], is_valid[i], cells[i])
                 for i in (slice(0, 2), slice(2, 5)))
    assert counts[:, 7:9].tolist() == [[2, 1], [3, 1]] and counts.sum() == 7
    assert float(outliers.follow(counts, 1000)) == 0.75
    low = outliers.low.flatten()
    assert float(low[7]) == pytest.approx(0.9**3 * 0.5 + (1 - 0.9**3) * 2 / 3)
    assert float(low[8]) == pytest.approx(0.9 * 0.5 + 0.1)
    assert (low[9:] == 0.5).all() and (low[:7] == 0.5).all()


def test_the_threshold_finds_the_quantile_and_follows_it():
    rng = torch.Generator().manual_seed(0)
    outliers = OutlierMap(1)
    for scale in (1e-3, 4e-3):
        found = []
        for step in range(600):
            is_low = scale * torch.rand(64, generator=rng) <= outliers.threshold
            cells = torch.zeros(64, dtype=torch.long)
            outliers.follow(outliers.count(is_low, cells == 0, cells), 1000)
            found += [float(outliers.threshold)] * (step >= 400)
        assert np.exp(np.mean(np.log(found))) == pytest.approx(0.8 * scale, rel=0.05)


@pytest.mark.parametrize("low,seen", [(0.0, 5.0), (5.0, 5.0), (0.0, 0.0)])
def test_the_map_stays_numbers_whatever_the_batches(low, seen):
    outliers = OutlierMap(1)
    outliers.threshold.fill_(0.1)
    counts = torch.zeros(2, CELLS**2)
    counts[:, 3] = torch.tensor([low, seen])
    for _ in range(3000):
        outliers.follow(counts, 100)
    assert 0 < float(outliers.threshold) <= 1
    assert ((outliers.low >= 0) & (outliers.low <= 1)).all()
    assert seen or float(outliers.threshold) == pytest.approx(0.1) and (outliers.low == 1).all()


# Losses and batches.


@pytest.mark.parametrize("kind", ["fine", "charbonnier"])
def test_gradients_are_those_of_the_inliers_alone(kind):
    config = default_config(robust=True, fine_loss_mult=float(kind == "fine"), coarse_loss_mult=0.0,
                            charbonnier_loss_mult=float(kind == "charbonnier"))
    model = torch.nn.Module()
    model.outliers = OutlierMap(1)
    model.outliers.threshold.fill_(0.01)
    model.outliers.low.zero_()
    truth = torch.rand(256, 3, generator=torch.Generator().manual_seed(0)) / 2
    bad = (torch.arange(256) % 16 >= 8)[:, None]
    rgb = (truth + 0.05 + 0.3 * bad).requires_grad_()
    ones = torch.ones(256, 1)
    rays = Rays(origins=truth, directions=truth, viewdirs=truth, radii=ones, near=ones, far=ones,
                lossmult=ones, cam_idx=ones)
    output = RenderOutput(rgb=rgb, acc=ones[:, 0], distance_mean=ones[:, 0],
                          distance_median=ones[:, 0])
    batch = Batch(rays=rays, rgb=truth, cells=torch.arange(256))
    loss, scalars = weighted_loss(config, model, [output], batch)
    loss.backward()
    assert scalars["cells"].sum(dim=1).tolist() == [128, 256]
    per_channel = 0.05**2 if kind == "fine" else (0.05**2 + 1e-6) ** 0.5
    slope = 2 * 0.05 if kind == "fine" else 0.05 / per_channel
    assert float(loss.detach()) == pytest.approx(per_channel / 2, rel=1e-4)
    expected = torch.where(bad, 0.0, slope / (256 * 3)).expand(256, 3)
    torch.testing.assert_close(rgb.grad, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("words", [[], ["--scales", "1", "2"]])
def test_a_pixel_lies_in_the_cell_of_its_photograph_at_all_scales(words, tmp_path):
    WRITERS["nerfstudio"](tmp_path / "scene", size=(70, 44))
    dataset = open_scene(tmp_path / "scene", "nerfstudio", "train", "--robust", *words)
    batch = dataset.batch(500, torch.Generator().manual_seed(0))
    sizes = dataset.scene.cameras.sizes
    for k in range(500):
        image = int(batch.rays.cam_idx[k])
        width, height = sizes[image].tolist()
        x, y = batch.pixels[k].tolist()
        column, row = int(x / width * CELLS), int(y / height * CELLS)
        photograph = image % dataset.num_photographs
        assert int(batch.cells[k]) == (photograph * CELLS + row) * CELLS + column
    assert len(batch.cells.unique()) > 400


def test_batches_are_those_without_the_flag(scene):
    batches = [load_dataset(default_config(scene=str(scene), robust=robust), "train").batch(
        64, torch.Generator().manual_seed(0)) for robust in (False, True)]
    assert torch.equal(batches[0].pixels, batches[1].pixels)
    assert batches[0].cells is None


# Training.


@pytest.mark.parametrize("model", ["mipnerf", "mipnerf360", "zipnerf"])
def test_micro_batches_give_the_gradient_of_the_whole(model, scene):
    config = get_config([*TINY, "--scene", str(scene), "--model", model])
    batch = load_dataset(config, "train").batch(50, torch.Generator().manual_seed(0))
    network = build_model(config, num_images=2).train()
    network.outliers.threshold.fill_(0.1)
    network.outliers.low.fill_(0.2)
    found = []
    for size in (50, 7):
        scalars, _ = train.compute_gradients(network, batch, config, 0.0, size, BatchRandom(3, 50))
        found.append((scalars, [p.grad.clone() for p in network.parameters()
                                if p.grad is not None]))
    (whole, gradients), (parts, others) = found
    low, seen = whole["cells"].sum(dim=1)
    assert 0 < float(low) < float(seen) == 50
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-6)
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_masked_pixels_change_nothing(scene):
    """Whatever colour they have."""
    config = get_config([*TINY, "--scene", str(scene)])
    batch = load_dataset(config, "train").batch(64, torch.Generator().manual_seed(0))
    mask = (torch.arange(64) % 4 > 0).float()[:, None]
    model = build_model(config, num_images=2).eval()
    model.outliers.threshold.fill_(0.1)
    totals = [train.compute_gradients(model, replace(batch, mask=mask, rgb=rgb), config, 0.0, 64)
              for rgb in (batch.rgb, torch.where(mask > 0, batch.rgb, 1 - batch.rgb))]
    for name in ("loss/total", "cells"):
        torch.testing.assert_close(totals[0][0][name], totals[1][0][name])


def test_a_resumed_run_equals_an_unbroken_one_and_two_ranks_one(scene, tmp_path):
    words = [*TINY, "--scene", str(scene), "--log_dir", str(tmp_path), "--max_steps", "4",
             "--batch_size", "37", "--save_every", "1", "--keep_checkpoints", "9", "--exp_name"]
    assert train.main([*words, "run"]) == 0
    folder = tmp_path / "run"
    whole = load_checkpoint(folder).model.state_dict()
    assert 0.8 < float(whole["outliers.threshold"]) < 0.9
    for step in (3, 4):
        (folder / f"checkpoint_{step:08d}.pt").unlink()
    assert train.main([*words, "run", "--continue_training"]) == 0
    resumed = load_checkpoint(folder).model.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    run_ranks(2, "train.py", *words, "ranks", "--micro_batch", "5")
    for a, b in zip(*map(first_gradients, (folder, tmp_path / "ranks")), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6 * float(a.abs().max()) + 1e-9)
    ranks = load_checkpoint(tmp_path / "ranks").model.outliers
    for name in ("threshold", "low"):
        torch.testing.assert_close(getattr(ranks, name), resumed[f"outliers.{name}"], rtol=1e-3,
                                   atol=1e-3)


def test_only_robust_models_keep_a_map():
    config = default_config(preset="debug")
    assert not any("outliers" in name for name in build_model(config).state_dict())
    with pytest.raises(ValueError, match="--robust"):
        build_model(config.replace(robust=True))
