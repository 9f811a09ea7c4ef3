"""mip-NeRF 360: its samples, the weights that each loss trains, and its defaults."""

import json

import numpy as np
import pytest
import torch

import extract_mesh
import loss
import stepfun
import train
import visualize
from checkpoint import load_checkpoint
from config import default_config, get_config
from model import MODELS, build_model
from ray_utils import compute_weights
from structures import Batch
from tests.scenes import write_blender
from tests.test_model import make_rays

SMALL = dict(model="mipnerf360", prop_rounds=2, num_samples=6, prop_samples=9, hidden=18,
             depth=3, skip=2,
             bottleneck=7, view_hidden=11, prop_hidden=10, prop_depth=2, max_deg=5, view_deg=2,
             precision="fp32")


def make_model(**flags):
    return build_model(default_config(**(SMALL | flags)))


def make_batch(*shape):
    return Batch(rays=make_rays(*shape), rgb=torch.rand(*shape, 3))


class Wall(torch.nn.Module):
    """A field with a thin wall of density at z = 4."""

    needs_full_covariance, num_multisamples = False, 0

    def forward(self, gaussians, viewdirs=None, density_noise=None, with_rgb=True, appearance=None):
        from fields.base import FieldOutput

        distance = gaussians.means[..., 2] - 4.0
        return FieldOutput(200 * torch.exp(-((distance / 0.05) ** 2)), None)


def straight_rays(count=3):
    rays = make_rays(count)
    forward = torch.tensor([0.0, 0.0, 1.0]).expand(count, 3)
    return type(rays)(**(rays.__dict__ | {
        "origins": torch.zeros(count, 3), "directions": forward, "viewdirs": forward}))


def test_levels_have_their_numbers_of_samples_and_span_near_to_far():
    outputs = make_model().eval()(make_rays(4))
    assert [o.weights.shape[-1] for o in outputs] == [9, 9, 6]
    first = outputs[0]
    torch.testing.assert_close(first.tdist[:, [0, -1]], torch.tensor([[2.0, 6.0]]).expand(4, 2))
    torch.testing.assert_close(first.sdist.diff(dim=-1), torch.full((4, 9), 1 / 9))


def test_samples_concentrate_at_the_proposals_surface():
    model = make_model(num_samples=16, prop_samples=32).eval()
    model.proposal = Wall()
    outputs = model(straight_rays())
    near_wall = ((outputs[-1].tdist > 3.6) & (outputs[-1].tdist < 4.2)).float().mean()
    assert near_wall > 0.8
    # At the start of training annealing makes all weights equal, so samples spread out.
    spread = model(straight_rays(), train_frac=0.0)[-1].tdist
    assert spread.std() > 2 * outputs[-1].tdist.std()


@pytest.mark.parametrize("train_frac", [0.0, 0.3, 1.0])
def test_empty_proposals_give_finite_outputs(train_frac):
    model = make_model(density_bias=-300.0).train()
    outputs = model(make_rays(5), train_frac)
    for output in outputs:
        assert all(torch.isfinite(x).all() for x in (output.tdist, output.weights, output.rgb))


def test_one_jitter_shifts_all_samples_of_a_ray():
    model = make_model().train()
    first = model(make_rays(20), 0.5)[0].sdist
    inner = first[:, 1:-1].diff(dim=-1)
    torch.testing.assert_close(inner, torch.full_like(inner, 1 / 9), atol=2e-3, rtol=0)
    assert first[:, 1].std() > 0.01


def test_an_opaque_background_takes_the_remaining_weight():
    density, tdist = torch.rand(4, 7), torch.linspace(1, 3, 8).expand(4, 8)
    directions = torch.randn(4, 3)
    plain = compute_weights(density, tdist, directions)
    opaque = compute_weights(density, tdist, directions, opaque_background=True)
    torch.testing.assert_close(opaque.sum(-1), torch.ones(4))
    assert torch.equal(opaque[:, :-1], plain[:, :-1]) and (plain.sum(-1) < 1).all()
    model = make_model(opaque_background=True).eval()
    torch.testing.assert_close(model(make_rays(4))[-1].acc, torch.ones(4))


def test_random_backgrounds_are_for_training_only():
    model = make_model(bg_range=(0.2, 1.0), density_bias=-300.0)
    rays = make_rays(6)
    rgb = model.train()(rays, 1.0)[-1].rgb
    assert rgb.std() > 0.1 and rgb.min() >= 0.2 and rgb.max() <= 1
    torch.testing.assert_close(model.eval()(rays)[-1].rgb, torch.full((6, 3), 0.6))


# Losses.


def gradients(model, terms, batch):
    model.zero_grad()
    outputs = model(batch.rays, 0.5)
    sum(loss.LOSSES[name](model, outputs, batch) for name in terms).backward()
    return {part: any(p.grad is not None and p.grad.abs().max() > 0 for n, p in
                      model.named_parameters() if n.startswith(part)) for part in
            ("field", "proposal")}


def test_each_loss_trains_its_own_network():
    model, batch = make_model().train(), make_batch(30)
    assert gradients(model, ["charbonnier"], batch) == {"field": True, "proposal": False}
    assert gradients(model, ["distortion"], batch) == {"field": True, "proposal": False}
    assert gradients(model, ["interlevel"], batch) == {"field": False, "proposal": True}
    assert float(loss.LOSSES["coarse"](model, model(batch.rays), batch)) == 0


def test_the_interlevel_loss_is_a_mean_over_intervals_and_a_sum_over_rounds():
    model, batch = make_model().eval(), make_batch(5)
    outputs = model(batch.rays)
    last = outputs[-1]
    wanted = sum(stepfun.interlevel_loss(last.sdist, last.weights, o.sdist, o.weights).mean() / 6
                 for o in outputs[:2])
    torch.testing.assert_close(loss.interlevel_loss(model, outputs, batch), wanted)


def test_the_charbonnier_loss_by_hand():
    batch = make_batch(2)
    outputs = make_model().eval()(batch.rays)
    error = (outputs[-1].rgb - batch.rgb).double()
    wanted = (error**2 + 1e-6).sqrt().mean()
    torch.testing.assert_close(loss.charbonnier_loss(None, outputs, batch).double(), wanted)


GRID_LOSSES = {"antialiased_interlevel", "grid_decay"}


@pytest.mark.parametrize("model,name", [
    (model, name) for model in sorted(MODELS) for name in sorted(loss.LOSSES)
    if model in ("zipnerf", "nerv") or name not in GRID_LOSSES])
def test_losses_of_micro_batches_add_up(model, name):
    model, batch = make_model(model=model, grid_log2_size=9).eval(), make_batch(11)
    whole = loss.LOSSES[name](model, model(batch.rays), batch)
    parts = sum(loss.LOSSES[name](model, model(p.rays), p) for p in batch.split(4))
    torch.testing.assert_close(parts, whole)


# Flags.


def test_defaults_depend_on_the_model_and_dataset():
    bounded = get_config(["--model", "mipnerf360"])
    assert (bounded.hidden, bounded.num_samples, bounded.contraction) == (256, 32, False)
    unbounded = get_config(["--model", "mipnerf360", "--dataset_name", "colmap"])
    assert unbounded.charbonnier_loss_mult == 1 and unbounded.fine_loss_mult == 0
    assert bounded.charbonnier_loss_mult == 0 and bounded.fine_loss_mult == 1
    forward = [get_config(["--dataset_name", "llff", "--model", model]).opaque_background
               for model in ("mipnerf", "mipnerf360", "zipnerf")]
    assert forward == [False, True, True] and not bounded.opaque_background
    assert get_config([]).charbonnier_loss_mult == 0
    paper = get_config(["--model", "mipnerf360", "--preset", "paper"])
    assert (paper.batch_size, paper.max_steps, paper.lr_init) == (16384, 250_000, 2e-3)
    typed = get_config(["--model", "mipnerf360", "--hidden", "64", "--contraction"])
    assert typed.hidden == 64 and typed.contraction


def test_mipnerf_supports_contraction_and_the_distortion_loss():
    plain, contracted = (make_model(model="mipnerf", contraction=c).eval() for c in (False, True))
    rays = make_rays(5)
    assert not torch.equal(plain(rays)[-1].rgb, contracted(rays)[-1].rgb)
    outputs = plain(rays)
    assert loss.distortion_loss(plain, outputs, make_batch(5)) > 0


def test_gradients_are_clipped_to_the_maximum_norm():
    config = default_config(**(SMALL | dict(grad_max_norm=1e-3)))
    model = build_model(config).train()
    scalars, _ = train.compute_gradients(model, make_batch(16), config, 0.5, 8)
    for network in (model.field, model.proposal):  # Each by itself.
        found = torch.nn.utils.get_total_norm([p.grad for p in network.parameters()])
        assert found <= 1.001e-3 and (network is model.proposal or found > 0.999e-3)
    assert scalars["gradient_norm"] > 1e-3


def test_training_finds_an_object_on_a_white_background(tmp_path):
    """With absolute errors training would stay at a white image."""
    y, x = np.mgrid[:16, :16] - 7.5
    ball = np.zeros((16, 16, 4), np.uint8)
    ball[x**2 + y**2 < 4.5**2] = [160, 40, 90, 255]
    write_blender(tmp_path / "scene", images=8 * [ball])
    train.main(["--preset", "laptop", "--model", "mipnerf360", "--device", "cpu",
                "--scene", str(tmp_path / "scene"), "--log_dir", str(tmp_path),
                "--exp_name", "run", "--max_steps", "100", "--eval_every", "0", "--no-save_images"])
    scores = json.loads((tmp_path / "run" / "eval_test_00000100" / "scores.json").read_text())
    assert scores["psnr"] > scores["blank_psnr"] + 3, scores


def test_scripts_run_from_training_to_mesh(tmp_path, capsys):
    write_blender(tmp_path / "scene", num_views=4, size=(16, 12))
    train.main(["--preset", "debug", "--device", "cpu", "--model", "mipnerf360", "--scene",
                str(tmp_path / "scene"), "--log_dir", str(tmp_path), "--exp_name", "run",
                "--max_steps", "3", "--eval_every", "2"])
    run = str(tmp_path / "run")
    assert visualize.main(["--run", run, "--frames", "2", "--visualize_normals"]) == 0
    loaded = load_checkpoint(run)
    points = torch.rand(500, 1, 3) * 2 - 1
    with torch.no_grad():
        typical = loaded.model.density(points, torch.full_like(points, 0.01)).median()
    assert extract_mesh.main(["--run", run, "--grid_size", "12", "--keep_unseen",
                              "--sigma_threshold", f"{typical:.4f}"]) == 0
    assert "Mesh: " in capsys.readouterr().out
