"""Predicted normals: their losses, flags, and rendering of every kind of normals."""

import itertools
from dataclasses import replace

import pytest
import torch

import evaluate
import loss
import train
import visualize
from checkpoint import load_checkpoint
from config import check_all_read, default_config, get_config, loaded_config, saved_flags
from coord import from_ndc, points_to_ndc
from fields.occupancy import RayOccupancy
from image_utils import read_image
from model import MODELS, build_model
from rendering import render_image, world_normals
from runtime.errors import UserError
from scripts import score_normals
from structures import Batch, Cameras, RenderOutput
from tests.scenes import write_blender
from tests.test_model import make_rays

NEW_FLAGS = {"predicted_normals", "orientation_loss_mult", "predicted_normal_loss_mult",
             "normals_from"}
TERMS = ("orientation", "predicted_normal")
SMALL = dict(model="mipnerf360", num_samples=6, prop_samples=9, hidden=18, depth=3, skip=2,
             bottleneck=7, view_hidden=11, prop_hidden=10, prop_depth=2, max_deg=4, view_deg=2,
             grid_finest=32, grid_log2_size=9, prop_finest=(16, 16), precision="fp32")


def small_config(**flags):
    return default_config(**(SMALL | {"predicted_normals": True} | flags))


def make_batch(count):
    torch.manual_seed(2)
    mask = (torch.rand(count, 1) > 0.3).float()
    return Batch(rays=make_rays(count), rgb=torch.rand(count, 3), mask=mask,
                 batch_index=torch.arange(count))


def total_loss(model, batch):
    torch.manual_seed(0)
    outputs = model(batch.rays, 0.5)
    return sum(loss.LOSSES[name](model, outputs, batch) for name in TERMS)


# Losses.


@pytest.mark.parametrize("degrees,orientation,difference", [
    (0, 0.0, 0.0), (60, 0.0, 0.5), (90, 0.0, 1.0), (120, 0.25, 1.5), (180, 1.0, 2.0)])
def test_losses_of_a_flat_wall_by_hand(degrees, orientation, difference):
    """A wall that faces the camera, with predicted normals turned by some degrees."""
    angle = torch.deg2rad(torch.tensor(float(degrees), dtype=torch.float64))
    batch, wall = make_batch(4).map(lambda x: x.double()), torch.tensor([0.0, 0.0, -1.0])
    forward = torch.tensor([0.0, 0.0, 3.0]).double().expand(4, 3)
    batch = replace(batch, rays=replace(batch.rays, directions=forward))
    predicted = torch.stack([angle.sin(), torch.zeros_like(angle), -angle.cos()])
    one, weights = torch.ones(4), torch.tensor([0.1, 0.6, 0.2], dtype=torch.float64).expand(4, 3)
    output = RenderOutput(
        rgb=batch.rgb, acc=one, distance_mean=one, distance_median=one,
        sdist=torch.rand(4, 4), tdist=torch.rand(4, 4), weights=weights,
        density_normals=wall.double().expand(4, 3, 3), predicted_normals=predicted.expand(4, 3, 3))
    found = [float(loss.LOSSES[name](None, [output], batch)) for name in TERMS]
    assert found == pytest.approx([0.9 * orientation, 0.9 * difference], abs=1e-12)


def test_gradients_of_the_losses_equal_finite_differences():
    """The loss of predicted normals differentiates the density twice."""
    model = build_model(small_config(contraction=True, basis="icosahedron")).double().train()
    batch = make_batch(5).map(lambda x: x.double() if x.is_floating_point() else x)
    model.zero_grad()
    total_loss(model, batch).backward()
    step, layers = 1e-6, model.field.layers()
    for layer in (*layers[:3], model.field.density, model.field.normal):
        weight = layer.weight.data
        index = tuple(int(i) for i in (layer.weight.grad.abs() == layer.weight.grad.abs().max()
                                       ).nonzero()[0])
        value, ends = float(weight[index]), []
        for sign in (1, -1):
            weight[index] = value + sign * step
            ends.append(float(total_loss(model, batch).detach()))
        weight[index] = value
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float(layer.weight.grad[index]) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_losses_train_the_trunk_and_not_the_proposals(precision):
    model, batch = build_model(small_config(precision=precision)).train(), make_batch(20)
    total_loss(model, batch).backward()
    trained = {name for name, p in model.named_parameters()
               if p.grad is not None and p.grad.abs().max() > 0}
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert {f"field.{n}.weight" for n in ("trunk.0", "trunk.2", "density", "normal")} <= trained
    assert not any(name.startswith(("proposal", "field.rgb")) for name in trained)


@pytest.mark.parametrize("name", TERMS)
def test_losses_of_micro_batches_add_up(name):
    model, batch = build_model(small_config()).eval(), make_batch(11)

    def value(part):
        return loss.LOSSES[name](model, model(part.rays, density_normals=True), part)

    assert float(value(batch).detach()) > 0
    torch.testing.assert_close(sum(value(p) for p in batch.split(4)), value(batch))


def test_normals_of_the_density_are_computed_only_for_a_loss_or_on_request():
    rays = make_rays(3)
    for weight, wanted in ((1e-3, True), (0.0, False)):
        model = build_model(small_config(predicted_normal_loss_mult=weight))
        *proposals, last = model.train()(rays, 0.5)
        assert (last.density_normals is not None) == wanted == model.trains_normals
        assert all(p.density_normals is None and p.predicted_normals is None for p in proposals)
        assert model.eval()(rays)[-1].density_normals is None
        # Compiled code cannot be differentiated twice.
        assert (model.field in model.compilable_fields(torch.device("cuda"))) != wanted


def test_a_batch_of_masked_pixels_has_no_gradient():
    config = small_config()
    model, batch = build_model(config).train(), make_batch(6)
    masked = replace(batch, mask=torch.zeros(6, 1))
    scalars, _ = train.compute_gradients(model, masked, config, 0.5, 4)
    assert scalars["loss/orientation"] == scalars["loss/predicted_normal"] == 0
    assert scalars["gradient_norm"] == 0


# Flags and checkpoints.


def test_the_option_adds_one_layer_and_older_runs_lack_it():
    with_normals, without = (build_model(small_config(predicted_normals=p)) for p in (True, False))
    added = with_normals.state_dict().keys() - without.state_dict().keys()
    assert added == {"field.normal.weight", "field.normal.bias"}
    config = small_config(predicted_normals=False)
    old = {name: v for name, v in saved_flags(config).items() if name not in NEW_FLAGS}
    assert loaded_config(old) == config
    build_model(loaded_config(old)).load_state_dict(without.state_dict())


def test_predicted_normals_have_the_released_weights_by_default():
    weights = [(c.orientation_loss_mult, c.predicted_normal_loss_mult) for c in (
        get_config(["--model", "mipnerf360", *more]) for more in ([], ["--predicted_normals"]))]
    assert weights == [(0, 0), (0.1, 3e-4)]


@pytest.mark.parametrize("words,sentence", [
    (["--model", "mipnerf360", "--orientation_loss_mult", "0.1"],
     "--orientation_loss_mult 0.1 is for --model mipnerf360 with --predicted_normals"),
    (["--model", "zipnerf", "--predicted_normal_loss_mult", "0.1"], "is for --model mipnerf360"),
    (["--model", "mipnerf360", "--predicted_normals", "--orientation_loss_mult", "0",
      "--predicted_normal_loss_mult", "0"], "--predicted_normals learns nothing")])
def test_flags_that_contradict_each_other_are_named(words, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        get_config(words)
    assert ended.value.code == 2 and sentence in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--predicted_normals"], ["--normals_from", "predicted"]])
def test_flags_without_effect_are_errors(words):
    with pytest.raises(UserError, match="predicted_normals"):
        check_all_read(get_config(["--model", "zipnerf", *words]))


# Rendering.


@pytest.mark.parametrize("name,kind", [
    *itertools.product(sorted(MODELS), ["depth", "density"]), ("mipnerf360", "predicted")])
def test_every_model_renders_every_kind_of_normals(name, kind):
    model = build_model(small_config(model=name, prop_rounds=2)).eval()
    rays = make_rays(2, 3)
    plain = render_image(model, rays)
    image = render_image(model, rays, chunk=4, normals_from=kind)
    torch.testing.assert_close(image.rgb, plain.rgb)
    assert plain.normals is None and image.density_normals is image.predicted_normals is None
    if kind == "depth":
        assert image.normals is None
        return
    output = model(rays, density_normals=True)[-1]
    wanted = torch.einsum("...s,...sc->...c", output.weights, getattr(output, f"{kind}_normals"))
    torch.testing.assert_close(image.normals, wanted.detach(), rtol=1e-3, atol=1e-5)
    assert not image.normals.requires_grad and image.normals.abs().max() > 0
    assert render_image(model, rays[:0], normals_from=kind).normals.shape == (0, 3, 3)


@pytest.mark.parametrize("name", ["mipnerf", "mipnerf360", "zipnerf", "nerv"])
def test_normals_are_the_same_with_empty_space_skipping(name):
    model, rays = build_model(small_config(model=name)).eval(), make_rays(9)
    with torch.no_grad():
        whole = model(rays, density_normals=True)[-1]
        for occupied in (torch.ones(9, 50), torch.zeros(9, 50)):
            skipping = RayOccupancy.from_density(occupied, rays.near, rays.far, max_queries=7)
            found = model(rays, ray_occupancy=skipping, density_normals=True)[-1]
            for kind in ("density_normals", "predicted_normals"):
                wanted = getattr(whole, kind)
                if wanted is not None:
                    wanted = wanted * occupied[:, :1, None]
                    torch.testing.assert_close(
                        getattr(found, kind), wanted, atol=1e-4, rtol=1e-3)
    assert (name == "mipnerf360") == (found.predicted_normals is not None)


def test_normals_in_ndc_become_normals_in_the_world():
    ndc, normal = (40.0, 30.0, 20.0), torch.tensor([0.48, -0.6, 0.64])
    cameras = Cameras(camtoworlds=torch.eye(4)[None, :3], pixtocams=torch.eye(3)[None],
                      sizes=torch.tensor([[30, 20]]), near=0.0, far=1.0, ndc=ndc)
    world = torch.randn(5, 3) * 0.3 + torch.tensor([0.0, 0.0, -4.0])
    points = points_to_ndc(world, *ndc).requires_grad_()
    # A density that falls along the normal of the world.
    slopes, = torch.autograd.grad((from_ndc(points, *ndc) @ normal).sum(), points)
    rays = make_rays(5)
    rays = replace(rays, origins=points.detach() - 2 * rays.directions)
    one = torch.ones(5)
    output = RenderOutput(rgb=torch.rand(5, 3), acc=torch.tensor([1, 1, 1, 0.9, 0.0]),
                          distance_mean=one, distance_median=2 * one, normals=0.3 * slopes)
    found = world_normals(cameras, rays, output)
    torch.testing.assert_close(found[:4], normal.expand(4, 3), rtol=0, atol=1e-4)
    assert (found[4] == 0).all()


# Scripts.


def test_scripts_run_from_training_to_scores_of_normals(tmp_path, capsys):
    write_blender(tmp_path / "demo", num_views=3, size=(12, 8))
    flags = ["--preset", "debug", "--device", "cpu", "--model", "mipnerf360", "--scene",
             str(tmp_path / "demo"), "--log_dir", str(tmp_path), "--exp_name", "run",
             "--max_steps", "2", "--save_every", "1", "--eval_every", "0", "--no-final_eval"]
    train.main([*flags, "--predicted_normals"])
    run, images = tmp_path / "run", {}
    assert "loss/predicted_normal" in (run / "metrics.jsonl").read_text()
    assert load_checkpoint(run).config.predicted_normals
    for kind in ("depth", "density", "predicted"):
        evaluate.main(["--run", str(run), "--normals_from", kind])
        images[kind] = read_image(run / "eval_test_00000002" / "000_normals.png", 3)
    assert all((images[a] != images[b]).any() for a, b in itertools.combinations(images, 2))
    visualize.main(["--run", str(run), "--frames", "2", "--visualize_normals", "--normals_from",
                    "predicted"])
    assert list(run.glob("video_*_predicted_normals_*/*.gif"))
    (run / "checkpoint_00000002.pt").unlink()
    train.main(["--run", str(run), "--continue_training", "--log_dir", str(tmp_path)])
    capsys.readouterr()
    score_normals.main([str(run), "--views", "1", "--device", "cpu"])
    title, _, head, _, *rows = capsys.readouterr().out.splitlines()
    assert "commit" in title and head.count("|") == rows[0].count("|")
    assert [row.split("|")[7].strip() for row in rows] == ["depth", "density", "predicted"]
    assert all(0 < float(row.split("|")[8]) < 180 for row in rows)
