"""Zip-NeRF: multisamples, down-weighting, the anti-aliased loss, and the model's wiring."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

import coord
import extract_mesh
import loss
import stepfun
import train
import visualize
from checkpoint import load_checkpoint
from config import default_config, get_config
from fields.hash import PRECONDITIONING, downweights
from model import build_model
from ray_utils import conical_frustum_to_gaussian, cylinder_to_gaussian, multisample_rays
from structures import Batch
from tests.scenes import write_blender
from tests.test_model import make_rays

DOUBLE = torch.float64
SMALL = dict(model="zipnerf", num_samples=6, prop_samples=9, hidden=18, depth=1, bottleneck=7,
             view_hidden=11, view_depth=2, view_skip=1, view_deg=2, prop_hidden=10, prop_depth=1,
             grid_coarsest=4, grid_finest=32, grid_log2_size=9, grid_features=3,
             prop_finest=[8, 16], precision="fp32")


def make_model(**flags):
    return build_model(default_config(**(SMALL | flags)))


# Multisamples.


def random_intervals(count=40):
    directions = torch.randn(count, 3, dtype=DOUBLE)
    origins = torch.randn(count, 3, dtype=DOUBLE)
    radii = 0.3 * torch.rand(count, 1, dtype=DOUBLE) + 0.01
    tdist = torch.sort(torch.rand(count, 5, dtype=DOUBLE) * 4 + 0.1, dim=-1).values
    return tdist, origins, directions, radii


@pytest.mark.parametrize("shape,gaussian", [("cone", conical_frustum_to_gaussian),
                                            ("cylinder", cylinder_to_gaussian)])
def test_six_multisamples_have_the_moments_of_their_frustum(shape, gaussian):
    """The mean for every rotation; the covariance averaged over rotations."""
    tdist, origins, directions, radii = random_intervals()
    mean, wanted = gaussian(directions, tdist[:, :-1], tdist[:, 1:], radii, diag=False)
    phases = torch.arange(16, dtype=DOUBLE) / 16
    covariances = []
    for rotations in [None, *phases]:
        if rotations is not None:
            rotations = rotations.expand(40, 4)
        points, _ = multisample_rays(tdist, origins, directions, radii, shape, 6, rotations)
        torch.testing.assert_close(points.mean(dim=-2), origins[:, None] + mean)
        centred = points - points.mean(dim=-2, keepdim=True)
        covariances.append(centred.mT @ centred / 6)
    torch.testing.assert_close(sum(covariances[1:]) / 16, wanted, rtol=1e-6, atol=1e-9)
    size = wanted.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    for covariance in covariances:
        torch.testing.assert_close(covariance.diagonal(dim1=-2, dim2=-1).sum(dim=-1), size)


def test_multisample_stds_are_half_the_distance_from_the_axis():
    tdist, origins, directions, radii = random_intervals()
    points, stds = multisample_rays(tdist, origins, directions, radii, "cone", 6)
    offset = points - origins[:, None, None]
    axis = torch.nn.functional.normalize(directions, dim=-1)[:, None, None]
    along = (offset * axis).sum(-1, keepdim=True) * axis
    torch.testing.assert_close(stds, 0.5 * (offset - along).norm(dim=-1))


def test_rotations_beyond_a_half_are_mirrored():
    _, origins, _, radii = random_intervals(1)
    tdist = torch.tensor([[2.0, 2.1, 2.2]], dtype=DOUBLE)

    def angles(rotations):
        points, _ = multisample_rays(tdist, 0 * origins, torch.tensor([[0.0, 0, 1]], dtype=DOUBLE),
                                     radii, "cone", 6, rotations)
        x, y, _ = points[0].numpy().transpose(2, 0, 1)
        return np.degrees(np.unwrap(np.arctan2(y, x), axis=-1))

    unrotated = angles(None)
    np.testing.assert_allclose(unrotated[0], unrotated[1], atol=1e-6)
    rotated = angles(torch.tensor([[0.125, 0.625]], dtype=DOUBLE))
    np.testing.assert_allclose((rotated[0] - unrotated[0]) % 180, 90, atol=1e-6)
    turns = (np.diff(rotated[1]) + np.diff(rotated[0])) / 360
    np.testing.assert_allclose(turns, turns.round(), atol=1e-6)


def test_alternate_intervals_are_rotated_at_test_time():
    model, rays = make_model(num_multisamples=6).eval(), make_rays(1)
    tdist = torch.linspace(2, 3, 4)[None]
    means = model.cast_gaussians(model.field, tdist, rays, None).means
    axis = torch.nn.functional.normalize(rays.directions, dim=-1)
    offsets = means - rays.origins
    offsets = torch.nn.functional.normalize(
        offsets - (offsets * axis).sum(-1, keepdim=True) * axis, dim=-1)
    apart = torch.rad2deg(torch.arccos((offsets[0, 0, 0] * offsets[0, 1]).sum(-1).clamp(-1, 1)))
    np.testing.assert_allclose(sorted(apart), [30, 30, 90, 90, 150, 150], atol=0.1)
    torch.testing.assert_close(offsets[0, 0], offsets[0, 2], atol=1e-3, rtol=0)


def test_one_multisample_lies_at_the_mean_with_the_ray_width():
    tdist, origins, directions, radii = random_intervals()
    points, stds = multisample_rays(tdist, origins, directions, radii, "cone", 1)
    mean, _ = conical_frustum_to_gaussian(directions, tdist[:, :-1], tdist[:, 1:], radii)
    torch.testing.assert_close(points[..., 0, :], origins[:, None] + mean)
    middle = 0.5 * (tdist[:, 1:] + tdist[:, :-1])
    torch.testing.assert_close(stds[..., 0], 0.5 * radii * middle)


@pytest.mark.parametrize("number", [0, 2, 7])
def test_other_numbers_of_multisamples_raise(number):
    with pytest.raises(ValueError, match="1 or 6 is expected"):
        multisample_rays(*random_intervals(), "cone", number)


@pytest.mark.parametrize("number", [1, 6])
def test_empty_intervals_at_the_camera_are_finite(number):
    ray = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]), torch.full((1, 1), 0.01)
    points, stds = multisample_rays(torch.zeros(1, 4), *ray, "cone", number)
    assert torch.isfinite(points).all() and (stds == 0).all()


# Down-weighting and contraction.


@pytest.mark.parametrize("cells", [0.1, 0.5, 3.0, 100.0])
def test_downweights_approximate_the_fraction_within_half_a_cell(cells):
    wanted = norm.cdf(0.5 / cells) - norm.cdf(-0.5 / cells)
    assert float(downweights(torch.tensor(cells))) == pytest.approx(wanted, abs=0.007)


def test_a_point_is_not_downweighted():
    assert float(downweights(torch.tensor(0.0))) == 1


def test_contracted_stds_scale_with_the_cube_root_of_the_volume():
    points = 4 * torch.randn(50, 3, dtype=DOUBLE)
    stds = torch.rand(50, dtype=DOUBLE)
    jacobian = torch.stack([torch.autograd.functional.jacobian(coord.contract, p) for p in points])
    means, found = coord.contract_isotropic(points, stds)
    torch.testing.assert_close(means, coord.contract(points))
    torch.testing.assert_close(found, stds * torch.linalg.det(jacobian).abs() ** (1 / 3))


# The anti-aliased loss.


def random_histogram(count, bins):
    t = torch.sort(torch.rand(count, bins + 1, dtype=DOUBLE), dim=-1).values
    w = torch.rand(count, bins, dtype=DOUBLE)
    return t, w / w.sum(dim=-1, keepdim=True)


@pytest.mark.parametrize("half_width", [0.003, 0.2])
def test_blurring_is_convolution_with_a_box(half_width):
    t, w = random_histogram(1, 5)
    fenceposts, values = stepfun.blur_stepfun(t, w, half_width)
    cdf = np.r_[0, w[0].cumsum(0)]
    for x in np.linspace(-0.3, 1.3, 37):
        ends = np.interp([x - half_width, x + half_width], t[0], cdf)
        wanted = (ends[1] - ends[0]) / (2 * half_width)
        found = np.interp(x, fenceposts[0], values[0], left=0, right=0)
        assert found == pytest.approx(wanted, abs=1e-9)


def test_integral_of_a_blurred_histogram():
    t, w = random_histogram(3, 6)
    fenceposts, values = stepfun.blur_stepfun(t, w, 0.07)
    x = torch.sort(1.6 * torch.rand(3, 9, dtype=DOUBLE) - 0.3, dim=-1).values
    found = stepfun.integral_at(x, fenceposts, values)
    for ray in range(3):
        for k in range(9):
            wanted, _ = quad(np.interp, -0.5, x[ray, k], args=(fenceposts[ray], values[ray], 0, 0),
                             limit=400)
            assert float(found[ray, k]) == pytest.approx(wanted, abs=1e-5)
    whole = stepfun.integral_at(torch.full((3, 1), 9.0, dtype=DOUBLE), fenceposts, values)
    torch.testing.assert_close(whole, torch.ones_like(whole))


def test_blurred_interlevel_loss_equals_a_slow_twin():
    t, w = random_histogram(4, 6)
    t_env, w_env = random_histogram(4, 5)
    w_env = (0.6 * w_env).requires_grad_()
    t.requires_grad_(), w.requires_grad_()
    found = stepfun.antialiased_interlevel_loss(t, w, t_env, w_env, 0.05)
    for ray in range(4):
        cdf = np.r_[0, w[ray].detach().cumsum(0)]

        def blurred(x, ray=ray, cdf=cdf):
            ends = np.interp([x - 0.05, x + 0.05], t[ray].detach(), cdf)
            return (ends[1] - ends[0]) / 0.1

        missed = [max(quad(blurred, *t_env[ray, k : k + 2], limit=200)[0]
                      - float(w_env[ray, k].detach()), 0) for k in range(5)]
        wanted = sum(m**2 / (float(v.detach()) + 2.0**-52)
                     for m, v in zip(missed, w_env[ray], strict=True))
        assert float(found[ray].detach()) == pytest.approx(wanted, rel=1e-4)
    found.sum().backward()
    assert t.grad is None and w.grad is None and (w_env.grad != 0).any()


def test_proposals_that_cover_the_blurred_weights_cost_nothing():
    t, w = random_histogram(5, 6)
    t_env = torch.linspace(-0.2, 1.2, 20, dtype=DOUBLE).expand(5, -1)
    fenceposts, values = stepfun.blur_stepfun(t, w, 0.05)
    w_env = stepfun.integral_at(t_env, fenceposts, values).diff(dim=-1)
    found = stepfun.antialiased_interlevel_loss(t, w, t_env, w_env + 1e-9, 0.05)
    torch.testing.assert_close(found, torch.zeros_like(found))


@pytest.mark.parametrize("level", [0.0, 1e-30, 1.0])
def test_blurred_interlevel_loss_is_finite_at_worst_inputs(level):
    t, w = (x.float() for x in random_histogram(6, 8))
    t[:, 4] = t[:, 3]
    t[3:] = 0.5
    t_env, w_env = (x.float() for x in random_histogram(6, 4))
    t_env[:2] = 0.5
    w_env = (level * w_env).requires_grad_()
    found = stepfun.antialiased_interlevel_loss(t, level * w, t_env, w_env, 0.003)
    found.sum().backward()
    assert torch.isfinite(found).all() and torch.isfinite(w_env.grad).all()


# The model.


def gradients(model, name, batch):
    model.zero_grad()
    outputs = model(batch.rays, 0.5)
    loss.LOSSES[name](model, outputs, batch).backward()
    return {part: any(p.grad is not None and p.grad.abs().max() > 0 for n, p in
                      model.named_parameters() if n.startswith(part))
            for part in ("field", "proposals.0", "proposals.1")}


def make_batch(count):
    return Batch(rays=make_rays(count), rgb=torch.rand(count, 3))


def test_each_loss_trains_its_own_grids():
    model, batch = make_model().train(), make_batch(30)
    fine, first, second = "field", "proposals.0", "proposals.1"
    assert gradients(model, "charbonnier", batch) == {fine: True, first: False, second: False}
    found = gradients(model, "antialiased_interlevel", batch)
    assert found == {fine: False, first: True, second: True}
    assert gradients(model, "grid_decay", batch) == {fine: True, first: True, second: True}


@pytest.mark.parametrize("contraction", [True, False])
def test_distortion_of_contracted_rays_is_measured_in_warped_distance(contraction):
    model = make_model(contraction=contraction).eval()
    batch = make_batch(3)
    output = model(batch.rays)[-1]
    t, w = output.tdist.double().numpy(), output.weights.detach().double().numpy()
    fenceposts = 5 * (1 - (1 + 8000 * t) ** -0.25) if contraction else (t - 2) / 4
    middle = 0.5 * (fenceposts[:, 1:] + fenceposts[:, :-1])
    between = np.abs(middle[:, :, None] - middle[:, None])
    wanted = ((w[:, :, None] * w[:, None] * between).sum((1, 2))
              + (w**2 * np.diff(fenceposts)).sum(1) / 3).mean()
    found = loss.distortion_loss(model, [output], batch).detach()
    assert float(found) == pytest.approx(wanted, rel=1e-3) and wanted > 1e-5


def test_grid_decay_is_a_mean_per_level():
    model, batch = make_model(), make_batch(3)
    wanted = 0
    for field in (model.field, *model.proposals):
        for first, size in zip(field.levels.offsets, field.levels.num_entries, strict=True):
            wanted += 0.5 * float((field.table[first : first + size].double() ** 2).mean())
    found = loss.grid_decay_loss(model, None, batch)
    assert float(found) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("size", [1, 4, 7, 8, 20])
def test_grid_decay_is_differentiated_once_per_batch(size):
    """And its parts add up to that of the whole batch, also on two ranks of unequal weight."""
    model, batch = make_model(), make_batch(8)
    with torch.no_grad():
        for field in model.grids():
            field.table.normal_(std=100)
    batch = replace(batch, mask=torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0])[:, None])
    whole = loss.grid_decay_loss(model, None, batch)
    wanted, = torch.autograd.grad(whole, model.field.table)
    batch = replace(batch, lossmult_sum=batch.loss_weights().sum())
    for ranks in ([batch], [batch[:3], batch[3:]]):
        parts = [loss.grid_decay_loss(model, None, part)
                 for rank in ranks for part in rank.split(size)]
        assert sum(part.requires_grad for part in parts) == len(ranks)
        found, = torch.autograd.grad(sum(parts), model.field.table)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(sum(parts), whole)


def test_each_round_has_a_finer_grid():
    model = make_model()
    assert [f.levels.resolutions[-1] for f in (*model.proposals, model.field)] == [8, 16, 32]
    assert model.field.table.shape[1] == 3 and model.proposals[0].table.shape[1] == 1


@pytest.mark.parametrize("contraction", [False, True])
def test_the_grid_covers_the_box_or_contracted_space(contraction):
    box = torch.tensor([[1.0, -2.0, 0.0], [2.0, 4.0, 1.0]])
    config = default_config(**(SMALL | {"contraction": contraction, "append_scale": False}))
    field = build_model(config, box=box).field
    with torch.no_grad():  # The coarsest level's first feature is x + 100 y + 10000 z, in cells.
        x, y, z = torch.meshgrid(*[torch.arange(4.0) + 0.5] * 3, indexing="ij")
        field.table.zero_()
        field.table[:64, 0] = (x + 100 * y + 10000 * z).flatten() / PRECONDITIONING
    points = torch.tensor([[1.4, -1.0, 0.1], [1.5, 1.0, 0.5], [2.0, 2.9, 1.0], [-30.0, 0.0, 0.0]])
    samples = field.cube_samples(coord.IsotropicGaussians(points[:, None], torch.zeros(4, 1)))
    found = PRECONDITIONING * field._encode(samples)[:, 0]
    if contraction:
        cells = coord.contract(points) + 2
    else:  # The cube about the box, 6 wide, begins at (-1.5, -2, -2.5).
        cells = (points - torch.tensor([-1.5, -2.0, -2.5])) / 6 * 4
    inner = ((cells >= 0.5) & (cells <= 3.5)).all(dim=-1)  # Between cell centres.
    torch.testing.assert_close(found[inner], cells[inner] @ torch.tensor([1.0, 100.0, 10000.0]),
                               rtol=1e-4, atol=1e-2)
    assert inner[:3].all()


def test_nothing_lies_outside_a_bounded_grid():
    box = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    model = build_model(default_config(**(SMALL | {"contraction": False})), box=box)
    points = torch.tensor([[0.9, 0.9, 0.9], [1.1, 0.0, 0.0], [0.0, -1.01, 0.0], [9.0, 9.0, 9.0]])
    density = model.density(points[:, None], torch.full((4, 1, 3), 1e-4))
    assert density[0] > 0 and (density[1:] == 0).all()


def test_images_after_a_training_step_have_the_scale_of_the_new_entries():
    model, rays = make_model(append_scale=True), make_rays(4)
    optimizer = train.make_optimizer(model, default_config(**SMALL))
    model.eval()(rays)
    model.train()(rays)[-1].rgb.sum().backward()
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    optimizer.step()
    after = model.eval()(rays)[-1].rgb
    fresh = make_model(append_scale=True).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(after, fresh(rays)[-1].rgb) and after.std() > 0


def test_a_clamped_density_still_has_a_gradient():
    field = make_model().field
    raw = torch.tensor([-3.0, 0.5, 300.0], requires_grad=True)
    density = field.activate_density(raw)
    density.sum().backward()
    assert torch.isfinite(density).all() and torch.equal(raw.grad, density.detach())
    torch.testing.assert_close(density[:2], raw[:2].exp())


def test_each_level_has_a_feature_of_its_attenuation():
    """With a rms of entries r, (2 w - 1) r follows the features of the level."""
    field = make_model(append_scale=True, contraction=False).field
    with torch.no_grad():
        field.table.fill_(0.3)
    samples = field.cube_samples(
        coord.IsotropicGaussians(torch.zeros(1, 1, 3), torch.full((1, 1), 0.02)))
    levels = field._encode(samples).reshape(4, 4)
    w = downweights(0.02 / 4 * field.resolutions)
    torch.testing.assert_close(levels[:, 3], (2 * w - 1) * 0.3)
    torch.testing.assert_close(levels[:, 0], w * 0.3)
    with torch.no_grad():
        field.eval().table.mul_(2)  # Also between images, whose mean squares are kept.
    torch.testing.assert_close(field._encode(samples).reshape(4, 4), 2 * levels)
    plain = make_model(append_scale=False).field
    assert field.trunk[0].in_features == 16 and plain.trunk[0].in_features == 12


def test_density_uses_an_isotropic_gaussian_of_equal_variance():
    model = make_model().eval()
    means = torch.rand(7, 2, 3)
    wide = model.density(means, torch.full((7, 2, 3), 0.04))
    full = model.density(means, 0.04 * torch.eye(3).expand(7, 2, 3, 3))
    torch.testing.assert_close(wide, full)
    assert not torch.equal(wide, model.density(means, torch.full((7, 2, 3), 1e-6)))


def test_grids_have_their_own_learning_rate():
    config = default_config(**(SMALL | dict(grid_lr_mult=3.0, lr_init=1e-2, lr_delay_steps=0)))
    optimizer = train.make_optimizer(make_model(), config)
    train.make_scheduler(optimizer, config)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-2, 3e-2])
    names = [{p.dim() for p in group["params"]} for group in optimizer.param_groups]
    assert len(optimizer.param_groups[1]["params"]) == 3 and names[1] == {2}


def test_blur_and_grid_flags_need_one_value_per_round(capsys):
    for words, message in ([["--prop_rounds", "1"], "--prop_finest has 2 numbers"],
                        [["--pulse_width", "0.1"], "--pulse_width has 1 numbers"],
                        [["--grid_coarsest", "1024"], "must not be above --prop_finest"]):
        with pytest.raises(SystemExit) as error:
            get_config(["--model", "zipnerf", *words])
        assert error.value.code == 2 and message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        get_config(["--grid_decay_loss_mult", "1"])


def test_defaults_follow_the_paper():
    config = get_config(["--model", "zipnerf", "--dataset_name", "colmap"])
    assert (config.prop_finest, config.pulse_width) == ((512, 2048), (0.03, 0.003))
    assert (config.grid_finest, config.grid_log2_size, config.num_multisamples) == (8192, 21, 6)
    assert config.contraction and config.ray_warp == "power" and config.grid_decay_loss_mult == 0.1
    bounded = get_config(["--model", "zipnerf"])
    assert bounded.contraction and bounded.grid_decay_loss_mult == 10
    assert math.isclose(bounded.adam_beta2, 0.99)


@pytest.mark.parametrize("multisamples", ["1", "6"])
def test_scripts_run_from_training_to_mesh(tmp_path, capsys, multisamples):
    write_blender(tmp_path / "scene", num_views=4, size=(16, 12))
    train.main(["--preset", "debug", "--device", "cpu", "--model", "zipnerf", "--scene",
                str(tmp_path / "scene"), "--log_dir", str(tmp_path), "--exp_name", "run",
                "--num_multisamples", multisamples, "--max_steps", "3", "--eval_every", "2"])
    run = str(tmp_path / "run")
    assert visualize.main(["--run", run, "--frames", "2", "--visualize_normals"]) == 0
    loaded = load_checkpoint(run)
    torch.testing.assert_close(loaded.model.field.box, loaded.scene["train"].box)
    points = torch.rand(500, 1, 3) * 2 - 1
    with torch.no_grad():
        typical = loaded.model.density(points, torch.full_like(points, 0.01)).median()
    assert extract_mesh.main(["--run", run, "--grid_size", "12", "--keep_unseen",
                              "--sigma_threshold", f"{typical:.4f}"]) == 0
    assert "Mesh: " in capsys.readouterr().out


def test_a_resumed_run_is_bit_identical(tmp_path):
    """Also with the grids' own learning rate."""
    write_blender(tmp_path / "scene", num_views=3, size=(12, 10))
    train.main(["--preset", "debug", "--device", "cpu", "--model", "zipnerf", "--scene",
                str(tmp_path / "scene"), "--log_dir", str(tmp_path), "--exp_name", "whole",
                "--grid_lr_mult", "3", "--num_multisamples", "6", "--max_steps", "6",
                "--save_every", "3", "--eval_every", "0", "--no-final_eval",
                "--keep_checkpoints", "9"])
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    (tmp_path / "stopped" / "checkpoint_00000006.pt").unlink()
    train.main(["--run", str(tmp_path / "stopped"), "--continue_training"])
    whole, continued = (load_checkpoint(tmp_path / name) for name in ("whole", "stopped"))
    assert whole.step == continued.step == 6
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(weights, continued.model.state_dict()[name]), name
