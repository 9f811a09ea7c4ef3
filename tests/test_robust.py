"""--robust: which pixels are outliers, and trainings that ignore them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import train
from checkpoint import load_checkpoint
from config import default_config, get_config
from datasets import load_dataset
from loss import follow_quantile, inlier_weights, weighted_loss
from model import build_model
from runtime import distributed
from runtime.errors import UserError
from runtime.randomness import BatchRandom
from structures import Batch, Rays, RenderOutput
from tests.runtime.test_distributed import first_gradients, run_ranks
from tests.scenes import write_blender

TINY = ["--preset", "debug", "--device", "cpu", "--precision", "fp32", "--eval_every", "0",
        "--no-final_eval", "--robust"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "random"
    write_blender(folder, num_views=2, size=(22, 17))
    return folder


def inliers(is_low, is_valid=None):
    """The inliers of one patch, `[16, 16]`."""
    is_valid = torch.ones(256, 1) if is_valid is None else is_valid.reshape(256, 1)
    return inlier_weights(is_low.reshape(256, 1), is_valid.bool()).reshape(16, 16)


# Weights.


def test_half_a_patch_of_large_errors_is_left_out():
    """Beside the border, three of nine pixels are low."""
    is_low = torch.arange(16).expand(16, 16) < 8
    assert torch.equal(inliers(is_low), is_low)


def test_single_pixels_and_the_middle_of_a_good_patch_are_inliers():
    """62 % of the patch are low, so its middle 8x8 count; (1, 1) and a corner are surrounded."""
    is_low = torch.arange(16).expand(16, 16) < 10
    is_low = is_low.clone()
    is_low[1, 1] = is_low[15, 0] = False
    expected = torch.arange(16).expand(16, 16) < 10
    expected = expected.clone()
    expected[4:12, 10:12] = True
    assert torch.equal(inliers(is_low), expected)


def test_only_the_nearest_neighbours_of_a_pixel_count():
    """A ring of low pixels, outside the middle of a patch of which 53 % are low."""
    is_low = torch.arange(16).expand(16, 16) < 8
    is_low = is_low.clone()
    is_low[12:15, 12:15] = True
    expected = is_low.clone()
    is_low[13, 13] = False
    assert torch.equal(inliers(is_low), expected)


def test_masked_pixels_are_no_evidence():
    """Of the 8 valid columns, 6 are low."""
    columns = torch.arange(16).expand(16, 16)
    found = inliers(columns < 6, columns < 8)
    assert found[:, :6].all() and found[4:12, 6:8].all() and not found[:4, 6:8].any()


def test_patches_do_not_touch_each_other():
    low, high = torch.ones(256, 1, dtype=torch.bool), torch.zeros(256, 1, dtype=torch.bool)
    found = inlier_weights(torch.cat([high, low, high]), torch.ones(768, 1) > 0)
    assert torch.equal(found, torch.cat([high, low, high]))
    assert inlier_weights(low[:0], low[:0]).shape == (0, 1)


@pytest.mark.parametrize("kind", ["fine", "charbonnier"])
def test_gradients_are_those_of_the_inliers_alone(kind):
    config = default_config(robust=True, fine_loss_mult=float(kind == "fine"), coarse_loss_mult=0.0,
                            charbonnier_loss_mult=float(kind == "charbonnier"))
    model = torch.nn.Module()
    model.inlier_threshold = torch.tensor(0.01)
    truth = torch.rand(256, 3, generator=torch.Generator().manual_seed(0)) / 2
    rgb = truth + 0.05
    bad = (torch.arange(256) % 16 >= 8)[:, None]
    rgb = (rgb + 0.3 * bad).requires_grad_()
    ones = torch.ones(256, 1)
    rays = Rays(origins=truth, directions=truth, viewdirs=truth, radii=ones, near=ones, far=ones,
                lossmult=ones, cam_idx=ones)
    output = RenderOutput(rgb=rgb, acc=ones[:, 0], distance_mean=ones[:, 0],
                          distance_median=ones[:, 0])
    loss, scalars = weighted_loss(config, model, [output], Batch(rays=rays, rgb=truth))
    loss.backward()
    assert float(scalars["inliers"]) == 0.5
    per_channel = 0.05**2 if kind == "fine" else (0.05**2 + 1e-6) ** 0.5
    slope = 2 * 0.05 if kind == "fine" else 0.05 / per_channel
    torch.testing.assert_close(float(loss.detach()), per_channel / 2, rtol=1e-4, atol=0)
    expected = torch.where(bad, 0.0, slope / (256 * 3)).expand(256, 3)
    torch.testing.assert_close(rgb.grad, expected, rtol=1e-3, atol=1e-9)


def test_the_threshold_finds_the_quantile_and_follows_it():
    rng = torch.Generator().manual_seed(0)
    threshold = torch.ones(())
    for scale in (1e-3, 4e-3):
        found = []
        for step in range(600):
            errors = scale * torch.rand(64, generator=rng)
            follow_quantile(threshold, (errors <= threshold).float().mean(), 1000)
            found += [float(threshold)] * (step >= 400)
        assert np.exp(np.mean(np.log(found))) == pytest.approx(0.8 * scale, rel=0.05)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_the_threshold_stays_a_number_whatever_the_batches(fraction):
    threshold = torch.tensor(0.1)
    for _ in range(3000):
        follow_quantile(threshold, torch.tensor(fraction), 100)
    assert 0 < float(threshold) <= 1


# Batches.


def test_a_batch_is_patches_of_neighbouring_pixels_of_one_image(scene):
    config = default_config(scene=str(scene), robust=True)
    dataset = load_dataset(config, "train")
    batch = dataset.batch(256 * 20, torch.Generator().manual_seed(0))
    image = batch.rays.cam_idx.reshape(20, 256)
    x, y = (batch.pixels[:, i].reshape(20, 16, 16) for i in (0, 1))
    assert (image == image[:, :1]).all() and len(image.unique()) == 2
    assert (x == x[:, :1, :1] + torch.arange(16)).all()
    assert (y == y[:, :1, :1] + torch.arange(16)[:, None]).all()
    assert x.min() == y.min() == 0 and x.max() == 21 and y.max() == 16
    assert len(x[:, 0, 0].unique()) > 4
    pixels = dataset.image(int(image[3, 0])).rgb
    torch.testing.assert_close(batch.rgb.reshape(20, 16, 16, 3)[3], pixels[y[3], x[3]])
    part = dataset.batch(256 * 20, torch.Generator().manual_seed(0), slice(256, 768))
    assert torch.equal(part.rgb, batch.rgb[256:768])


def test_bad_flags_and_images_are_one_sentence(scene, tmp_path, capsys):
    for words, message in [
        (["--batch_size", "300"], "--batch_size 300 must be a multiple of 256"),
        (["--micro_batch", "64"], "--micro_batch 64 must be a multiple of 256"),
    ]:
        with pytest.raises(SystemExit):
            get_config(["--robust", *words])
        assert message in capsys.readouterr().err
    write_blender(tmp_path / "small", size=(30, 15))
    with pytest.raises(UserError, match="patches of 16x16"):
        load_dataset(default_config(scene=str(tmp_path / "small"), robust=True), "train")


@pytest.mark.parametrize("preset", ["paper", "gpu", "laptop", "debug"])
@pytest.mark.parametrize("model", ["mipnerf", "mipnerf360", "zipnerf"])
def test_every_preset_has_whole_patches(preset, model):
    config = get_config(["--preset", preset, "--model", model, "--robust"])
    micro_batch = config.micro_batch or train.default_micro_batch(config, torch.device("cpu"))
    assert config.batch_size % 256 == micro_batch % 256 == 0


# Training.


@pytest.mark.parametrize("model", ["mipnerf", "mipnerf360", "zipnerf"])
def test_micro_batches_give_the_gradient_of_the_whole(model, scene):
    config = get_config([*TINY, "--scene", str(scene), "--model", model])
    batch = load_dataset(config, "train").batch(512, torch.Generator().manual_seed(0))
    network = build_model(config).train()
    found = []
    for size in (512, 256):
        for threshold in (1.0, 0.1):
            network.inlier_threshold.fill_(threshold)
            scalars, micro_batch = train.compute_gradients(
                network, batch, config, 0.0, size, BatchRandom(3, 512))
            assert micro_batch == size
            found.append((scalars, [p.grad.clone() for p in network.parameters()
                                    if p.grad is not None]))
    assert float(found[0][0]["inliers"]) == 1 > float(found[1][0]["inliers"]) > 0
    for (whole, gradients), (parts, others) in zip(found[:2], found[2:], strict=True):
        for name in whole:
            torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-6)
        for a, b in zip(gradients, others, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_masked_pixels_change_nothing(scene):
    """Whatever colour they have."""
    config = get_config([*TINY, "--scene", str(scene)])
    batch = load_dataset(config, "train").batch(256, torch.Generator().manual_seed(0))
    mask = (torch.arange(256) % 16 < 12).float()[:, None]
    model = build_model(config).eval()
    model.inlier_threshold.fill_(0.1)
    totals = [train.compute_gradients(model, replace(batch, mask=mask, rgb=rgb), config, 0.0, 256)
              for rgb in (batch.rgb, torch.where(mask > 0, batch.rgb, 1 - batch.rgb))]
    for name in ("loss/total", "inliers"):
        torch.testing.assert_close(totals[0][0][name], totals[1][0][name])


def test_a_resumed_run_equals_an_unbroken_one_and_two_ranks_one(scene, tmp_path):
    words = [*TINY, "--scene", str(scene), "--log_dir", str(tmp_path), "--max_steps", "4",
             "--save_every", "1", "--keep_checkpoints", "9", "--exp_name"]
    assert train.main([*words, "run"]) == 0
    folder = tmp_path / "run"
    whole = load_checkpoint(folder).model.state_dict()
    assert 0.8 < float(whole["inlier_threshold"]) < 0.9
    for step in (3, 4):
        (folder / f"checkpoint_{step:08d}.pt").unlink()
    assert train.main([*words, "run", "--continue_training"]) == 0
    resumed = load_checkpoint(folder).model.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    printed = run_ranks(2, "train.py", *words, "ranks", "--micro_batch", "256")
    assert "512 rays on 2 ranks" in printed
    for a, b in zip(*map(first_gradients, (folder, tmp_path / "ranks")), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6 * float(a.abs().max()) + 1e-9)
    ranks = load_checkpoint(tmp_path / "ranks").model.inlier_threshold
    torch.testing.assert_close(ranks, resumed["inlier_threshold"], rtol=1e-3, atol=0)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_ranks_take_whole_patches(num_ranks, monkeypatch):
    config = default_config(robust=True, batch_size=768)
    monkeypatch.setattr(distributed, "num_ranks", lambda: num_ranks)
    rows = []
    for rank in range(num_ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        rows.append(list(range(768))[train.rank_slice(config)])
    assert sum(rows, []) == list(range(768))
    assert all(len(part) % 256 == 0 for part in rows)
    monkeypatch.setattr(distributed, "num_ranks", lambda: 4)
    with pytest.raises(UserError, match="without a patch"):
        train.rank_slice(config)


def test_only_robust_models_keep_a_threshold():
    assert "inlier_threshold" not in build_model(default_config(preset="debug")).state_dict()
    robust = build_model(default_config(preset="debug", robust=True)).state_dict()
    assert float(robust["inlier_threshold"]) == 1
