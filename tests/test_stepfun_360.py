"""mip-NeRF 360's histograms: slow twins, closed forms, invariances, worst inputs."""

import math

import numpy as np
import pytest
import torch

import stepfun
from tests.test_stepfun import exact_cdf, random_histogram

EPS = torch.finfo(torch.float32).eps


# Intervals sampled from a histogram.


@pytest.mark.parametrize("kind", ["none", "single", "each"])
def test_intervals_equal_a_slow_twin(kind):
    t, w = random_histogram(3, bins=6)
    count = 5
    jitter = {"none": None, "single": torch.rand(3, 1, dtype=t.dtype),
              "each": torch.rand(3, count, dtype=t.dtype)}[kind]
    got = stepfun.sample_intervals(t, w.log() + 7, count, jitter, kind != "each", (2.1, 5.9))
    eps = np.finfo(np.float64).eps
    for ray in range(3):
        if jitter is None:
            u = np.linspace(1 / (2 * count), 1 - 1 / (2 * count) - eps, count)
        else:
            top = eps + (1 - eps) / count
            max_jitter = (1 - top) / (count - 1) - eps
            u = np.linspace(0, 1 - top, count) + jitter[ray].numpy() * max_jitter
        fenceposts = t[ray].numpy()
        cdf = exact_cdf(fenceposts, w[ray])(fenceposts)
        points = np.interp(u, cdf, fenceposts)
        middle = (points[1:] + points[:-1]) / 2
        wanted = [max(2.1, 2 * points[0] - middle[0]), *middle,
                  min(5.9, 2 * points[-1] - middle[-1])]
        np.testing.assert_allclose(got[ray], wanted, atol=1e-9)


def test_single_jitter_shifts_all_samples_of_a_ray():
    t = torch.tensor([[0.0, 1.0]]).expand(2, 2)
    jitter = torch.tensor([[0.0, 0.9, 0.2, 0.7], [0.5, 0.1, 0.3, 0.8]])
    fenceposts = stepfun.sample_intervals(t, torch.zeros(2, 1), 4, jitter, True, (0.0, 1.0))
    inner = fenceposts[:, 1:-1].diff(dim=-1)
    torch.testing.assert_close(inner, torch.full_like(inner, 0.25), atol=1e-6, rtol=0)
    separate = stepfun.sample_intervals(t, torch.zeros(2, 1), 4, jitter, False, (0.0, 1.0))
    assert (separate[:, 1:-1].diff(dim=-1) - 0.25).abs().max() > 0.02


@pytest.mark.parametrize("count", [2, 7, 64])
def test_intervals_are_sorted_and_inside_the_domain_in_float32(count):
    t, w = random_histogram(200, bins=33, dtype=torch.float32)
    w = torch.where(torch.rand_like(w) < 0.5, 0.0, w)
    w[:, 3] = 1.0
    fenceposts = stepfun.sample_intervals(t, w.log(), count, torch.rand(200, 1), True, (2.0, 6.0))
    assert fenceposts.shape == (200, count + 1) and torch.isfinite(fenceposts).all()
    assert (fenceposts.diff(dim=-1) >= 0).all()
    assert (fenceposts >= 2).all() and (fenceposts <= 6).all()


def test_random_points_follow_the_histogram():
    t, w = random_histogram(1, bins=5)
    many = 4000
    jitter = torch.rand(many, 16, dtype=t.dtype)
    fenceposts = stepfun.sample_intervals(t.expand(many, -1), w.log().expand(many, -1), 16, jitter,
                                     False)
    # Fenceposts are midpoints of neighbouring samples, so they follow the CDF too.
    cdf = exact_cdf(t[0], w[0])
    for place in t[0, 1:-1].tolist():
        fraction = float((fenceposts[:, 1:-1] < place).double().mean())
        assert fraction == pytest.approx(float(cdf(place)), abs=0.04)


def test_one_sample_raises():
    with pytest.raises(ValueError, match="at least 2"):
        stepfun.sample_intervals(torch.tensor([0.0, 1.0]), torch.zeros(1), 1)


# Dilation.


def test_dilation_takes_the_maximum_density():
    t, w = random_histogram(4, bins=7)
    dilation = 0.3
    fenceposts, weights = stepfun.max_dilate_weights(t, w, dilation, (2.0, 6.0))
    assert fenceposts.shape == (4, 22) and weights.shape == (4, 21)
    density = (w / t.diff(dim=-1)).numpy()
    for ray in range(4):
        for i in range(21):
            left, right = fenceposts[ray, i].item(), fenceposts[ray, i + 1].item()
            if right - left < 1e-9:
                continue
            middle = (left + right) / 2
            near = [density[ray, j] for j in range(7)
                    if t[ray, j] - dilation <= middle < t[ray, j + 1] + dilation]
            assert weights[ray, i].item() / (right - left) == pytest.approx(max(near, default=0))


def test_zero_dilation_keeps_the_histogram():
    t, w = random_histogram(5, bins=6)
    fenceposts, weights = stepfun.max_dilate_weights(t, w, 0.0)
    a = stepfun.weighted_percentile(t, w, [10, 50, 90])
    torch.testing.assert_close(stepfun.weighted_percentile(fenceposts, weights, [10, 50, 90]), a)
    torch.testing.assert_close(weights.sum(-1), w.sum(-1))


@pytest.mark.parametrize("level", [0.0, 1e-30, 1.0])
def test_dilated_weights_are_normalised_and_finite(level):
    t, w = random_histogram(5, bins=6, dtype=torch.float32)
    t[:, 3] = t[:, 2]  # An interval without width.
    w = level * w
    _, weights = stepfun.max_dilate_weights(t, w, 0.05, (2.0, 6.0), renormalize=True)
    assert torch.isfinite(weights).all()
    if level == 1.0:
        torch.testing.assert_close(weights.sum(-1), torch.ones(5))


# The distortion loss.


def slow_distortion(s, w):
    """All pairs, O(S^2), in float64."""
    middle, width = (s[1:] + s[:-1]) / 2, np.diff(s)
    pairs = np.abs(middle[:, None] - middle)
    return (w[:, None] * w * pairs).sum() + (w**2 * width).sum() / 3


@pytest.mark.parametrize("bins", [1, 2, 32])
def test_distortion_equals_the_sum_over_pairs(bins):
    t, w = random_histogram(20, bins=bins)
    w = w * torch.rand(20, 1, dtype=w.dtype)
    found = stepfun.distortion_loss(t, w)
    wanted = [slow_distortion(a.numpy(), b.numpy()) for a, b in zip(t, w, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    found = stepfun.distortion_loss(t.float(), w.float())
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_distortion_is_the_expected_distance_of_two_points_of_the_ray():
    """The paper's definition: E|x - y| for x, y sampled from the histogram."""
    t, w = random_histogram(1, bins=6)
    fine = torch.linspace(1 / 20000, 1 - 1 / 20000, 10000, dtype=t.dtype)[None]
    x = stepfun.invert_cdf(fine, t, stepfun.integrate_weights(w))[0]
    wanted = (x[:, None] - x).abs().mean()
    torch.testing.assert_close(stepfun.distortion_loss(t, w)[0], wanted, rtol=1e-3, atol=0)


def test_distortion_of_one_bin_and_its_scaling():
    one = stepfun.distortion_loss(torch.tensor([0.2, 0.5]), torch.tensor([0.8]))
    assert one == pytest.approx(0.8**2 * 0.3 / 3)
    t, w = random_histogram(4)
    base = stepfun.distortion_loss(t, w)
    torch.testing.assert_close(stepfun.distortion_loss(3 * t + 5, w), 3 * base)
    torch.testing.assert_close(stepfun.distortion_loss(t, 2 * w), 4 * base)


def test_splitting_an_interval_keeps_the_distortion():
    t, w = random_histogram(6, bins=5)
    middle = 0.3 * t[:, 2:3] + 0.7 * t[:, 3:4]
    split_t = torch.cat([t[:, :3], middle, t[:, 3:]], dim=-1)
    split_w = torch.cat([w[:, :2], 0.7 * w[:, 2:3], 0.3 * w[:, 2:3], w[:, 3:]], dim=-1)
    torch.testing.assert_close(stepfun.distortion_loss(split_t, split_w),
                               stepfun.distortion_loss(t, w))


# The interlevel loss.


def slow_bound(t, t_env, w_env):
    """The mass of all envelope intervals that an interval overlaps, by plain loops."""
    bounds = []
    for left, right in zip(t[:-1], t[1:], strict=True):
        touched = [m for a, b, m in zip(t_env[:-1], t_env[1:], w_env, strict=True)
                   if b > left and a <= right]
        bounds.append(sum(touched))
    return np.array(bounds)


def test_interlevel_loss_equals_a_slow_twin():
    t, w = random_histogram(30, bins=8)
    t_env, w_env = random_histogram(30, bins=11)
    found = stepfun.interlevel_loss(t, w, t_env, w_env)
    eps = torch.finfo(torch.float64).eps
    for i in range(30):
        bound = slow_bound(*(x[i].numpy() for x in (t, t_env, w_env)))
        own = w[i].numpy()
        wanted = (np.maximum(0, own - bound) ** 2 / (own + eps)).sum()
        assert found[i].item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_a_covering_envelope_costs_nothing():
    t, w = random_histogram(10, bins=6)
    assert stepfun.interlevel_loss(t, w, t, w).max() < 1e-25
    finer = torch.cat([t[:, :1], 0.5 * (t[:, 1:] + t[:, :-1]), t[:, -1:]], dim=-1)
    assert (stepfun.interlevel_loss(t, w, finer, 10 * torch.ones(10, 7, dtype=w.dtype)) == 0).all()
    # Mass elsewhere does not cover.
    elsewhere = torch.tensor([[7.0, 8.0]], dtype=t.dtype).expand(10, 2)
    lost = stepfun.interlevel_loss(t, w, elsewhere, torch.ones(10, 1, dtype=t.dtype))
    assert (lost > 0).all()


def test_the_interlevel_gradient_raises_only_the_proposal():
    t, w = random_histogram(10, bins=6)
    t_env, w_env = random_histogram(10, bins=5)
    leaves = [x.requires_grad_() for x in (t, w, t_env, w_env)]
    loss = stepfun.interlevel_loss(*leaves).sum()
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    assert gradients[0] is None and gradients[1] is None
    assert (gradients[3] <= 0).all() and (gradients[3] < 0).any()


@pytest.mark.parametrize("weights", [0.0, 1e-38])
def test_losses_of_empty_rays_are_finite_with_finite_gradients(weights):
    t = torch.linspace(0, 1, 9)[None]
    w = torch.full((1, 8), weights, requires_grad=True)
    env = torch.full((1, 8), weights, requires_grad=True)
    loss = stepfun.interlevel_loss(t, w, t, env).sum() + stepfun.distortion_loss(t, w).sum()
    gradients = torch.autograd.grad(loss, (w, env))
    assert math.isfinite(loss.item()) and all(torch.isfinite(g).all() for g in gradients)
