"""The loss on distances of known points, against a formula written out for each ray."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import train
from config import default_config
from loss import PASSED, depth_points_loss, weighted_loss
from model import build_model
from structures import Batch, Rays, RenderOutput

NUM_RAYS, SAMPLES = 5, 4


def make_outputs(model, rays, seed):
    """One level of random weights between random fenceposts."""
    rng = torch.Generator().manual_seed(seed)
    sdist = torch.rand(NUM_RAYS, SAMPLES + 1, generator=rng).sort(dim=-1).values
    weights = 0.2 * torch.rand(NUM_RAYS, SAMPLES, generator=rng)
    weights.requires_grad_(True)
    return RenderOutput(rgb=torch.zeros(NUM_RAYS, 3), acc=weights.sum(dim=-1),
                        distance_mean=torch.zeros(NUM_RAYS),
                        distance_median=torch.zeros(NUM_RAYS), sdist=sdist, tdist=sdist,
                        weights=weights)


def make_batch(near=0.5, far=8.0):
    ones = torch.ones(NUM_RAYS, 1)
    directions = torch.randn(NUM_RAYS, 3, generator=torch.Generator().manual_seed(9))
    rays = Rays(origins=torch.zeros(NUM_RAYS, 3), directions=directions, viewdirs=directions,
                radii=0.01 * ones, near=near * ones, far=far * ones, lossmult=ones,
                cam_idx=torch.zeros(NUM_RAYS, 1, dtype=torch.int64))
    return Batch(rays=rays, rgb=torch.zeros(NUM_RAYS, 3),
                 distance=torch.tensor([[0.0], [0.0], [1.0], [2.0], [6.0]]),
                 distance_weight=torch.tensor([[0.0], [0.0], [0.5], [0.3], [0.2]]))


def make_model(model="zipnerf", **flags):
    return build_model(default_config(model=model, preset="debug", device="cpu", **flags))


def formula(s_of, batch, outputs):
    """The loss ray by ray and sample by sample in Python's numbers, and its gradients."""
    total, gradients = 0.0, []
    for output in outputs:
        weights = output.weights.detach()
        gradient = torch.zeros(NUM_RAYS, SAMPLES, dtype=torch.float64)
        for ray in range(NUM_RAYS):
            weight, t = float(batch.distance_weight[ray]), float(batch.distance[ray])
            if weight == 0:
                continue
            passed = 1.0
            for k in range(SAMPLES):
                middle = (float(output.sdist[ray, k]) + float(output.sdist[ray, k + 1])) / 2
                off = abs(middle - s_of(t))
                total += weight * off * float(weights[ray, k])
                passed -= float(weights[ray, k])
                gradient[ray, k] = weight * (off - PASSED)
            total += weight * PASSED * passed
        gradients.append(gradient.float())
    return total, gradients


@pytest.mark.parametrize("warp,s_of", [
    ("linear", lambda t: (t - 0.5) / 7.5),
    ("reciprocal", lambda t: (1 / t - 2) / (0.125 - 2)),
])
def test_values_and_gradients_are_those_of_the_formula(warp, s_of):
    model, batch = make_model(ray_warp=warp), make_batch()
    outputs = [make_outputs(model, batch.rays, seed) for seed in (0, 1)]
    loss = depth_points_loss(model, outputs, batch)
    total, gradients = formula(s_of, batch, outputs)
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    loss.backward()
    for output, gradient in zip(outputs, gradients, strict=True):
        torch.testing.assert_close(output.weights.grad, gradient)


def test_mipnerf_measures_in_its_own_distance():
    model, batch = make_model("mipnerf"), make_batch()
    outputs = [make_outputs(model, batch.rays, 0)]
    total, _ = formula(lambda t: (t - 0.5) / 7.5, batch, outputs)
    loss = depth_points_loss(model, outputs, batch).detach()
    assert float(loss) == pytest.approx(total, rel=1e-5)


def test_weights_at_the_point_have_no_loss_and_elsewhere_are_drawn_to_it():
    model, batch = make_model(), make_batch(near=0.0, far=10.0)
    sdist = torch.linspace(0, 1, SAMPLES + 1).expand(NUM_RAYS, -1)
    weights = torch.zeros(NUM_RAYS, SAMPLES)
    weights[:, 1] = 1.0
    output = replace(make_outputs(model, batch.rays, 0), sdist=sdist, tdist=sdist,
                     weights=weights, acc=weights.sum(dim=-1))
    at_middle = replace(batch, distance=torch.full((NUM_RAYS, 1), 3.75))
    s = model.normalized_distance(at_middle.rays, at_middle.distance)
    off = float((s - 0.375).abs().mean())
    assert float(depth_points_loss(model, [output], at_middle)) == pytest.approx(off, abs=1e-6)


def test_rays_without_points_and_a_weight_of_zero_add_nothing():
    model, batch = make_model(), make_batch()
    outputs = [make_outputs(model, batch.rays, 0)]
    unknown = replace(batch, distance=None, distance_weight=None)
    assert depth_points_loss(model, outputs, unknown) == 0
    none_here = replace(batch, distance_weight=torch.zeros(NUM_RAYS, 1))
    assert depth_points_loss(model, outputs, none_here) == 0
    with_points = default_config(model="zipnerf", preset="debug", depth_points=0.5,
                                 distortion_loss_mult=0.0, grid_decay_loss_mult=0.0,
                                 antialiased_interlevel_loss_mult=0.0)
    total, scalars = weighted_loss(with_points, model, outputs, batch)
    plain, without = weighted_loss(with_points.replace(depth_points=0.0), model, outputs, batch)
    added = 0.5 * float(scalars["loss/depth_points"])
    assert float((total - plain).detach()) == pytest.approx(added, rel=1e-4)
    assert "loss/depth_points" not in without
    # The log averages over steps with points and, later, without.
    _, faded = weighted_loss(with_points, model, outputs, unknown)
    assert float(faded["loss/depth_points"]) == 0


def test_micro_batches_add_up_to_the_loss_of_the_whole():
    model, batch = make_model(), make_batch()
    outputs = [make_outputs(model, batch.rays, seed) for seed in (0, 1)]
    whole = depth_points_loss(model, outputs, batch)
    parts = [depth_points_loss(model, [output[i : i + 2] for output in outputs], part)
             for i, part in zip(range(0, NUM_RAYS, 2), batch.split(2), strict=True)]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("train_frac,weight", [(0.0, 1.0), (0.25, 0.5), (0.45, 0.1)])
def test_the_weight_of_points_falls_to_zero_at_half_of_the_training(train_frac, weight):
    batch = replace(make_batch(), distance_weight=torch.full((NUM_RAYS, 1), 1 / NUM_RAYS))
    dataset = SimpleNamespace(batch=lambda size, generator, rows, num_points: batch)
    config = default_config(depth_points=0.1)
    found = train.training_batch(dataset, config, train_frac, 0, slice(None)).distance_weight
    assert float(found.sum()) == pytest.approx(weight)


@pytest.mark.parametrize("train_frac,depth_points,expected", [
    (0.49, 0.1, 3), (0.5, 0.1, 0), (0.9, 0.1, 0), (0.0, 0.0, 0)])
def test_an_eighth_of_the_pixels_show_points_while_they_count(train_frac, depth_points, expected):
    asked = []

    def draw(size, generator, rows, num_points):
        asked.append(num_points)
        return replace(make_batch(), distance=None, distance_weight=None)

    config = default_config(depth_points=depth_points, batch_size=20)
    train.training_batch(SimpleNamespace(batch=draw), config, train_frac, 0, slice(None))
    assert asked == [expected]
