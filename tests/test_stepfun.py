"""Piecewise-constant functions along a ray, against slow twins, NumPy and statistics."""

import math

import numpy as np
import pytest
import torch

import stepfun

EPS = torch.finfo(torch.float32).eps


def random_histogram(*batch, bins=9, dtype=torch.float64):
    """Sorted fenceposts in (2, 6) and positive weights that sum to 1."""
    t = 2 + 4 * torch.rand(*batch, bins + 1, dtype=dtype).sort(dim=-1).values
    w = torch.rand(*batch, bins, dtype=dtype) + 0.05
    return t, w / w.sum(dim=-1, keepdim=True)


def slow_inverse_cdf(t, w, u):
    """Smallest t at which the integral of the histogram exceeds u, bin by bin in plain Python."""
    total, before = sum(w), 0.0
    for left, right, mass in zip(t[:-1], t[1:], w, strict=True):
        mass /= total
        if u < before + mass:
            return left + (u - before) / mass * (right - left)
        before += mass
    return t[-1]


def exact_cdf(t, w):
    """The CDF of one ray's histogram as a function, by NumPy in float64."""
    t, w = np.asarray(t, np.float64), np.asarray(w, np.float64)
    cdf = np.concatenate([[0.0], np.cumsum(w / w.sum())])
    return lambda x: np.interp(np.asarray(x, np.float64), t, cdf)


# integrate_weights


def test_cdf_is_the_cumulative_sum_and_exact_at_the_ends():
    _, w = random_histogram(50, bins=128, dtype=torch.float32)
    cdf = stepfun.integrate_weights(w)
    assert cdf.shape == (50, 129)
    assert (cdf[:, 0] == 0).all() and (cdf[:, -1] == 1).all()
    assert (cdf.diff(dim=-1) >= 0).all() and (cdf <= 1).all()
    torch.testing.assert_close(cdf.double(), torch.nn.functional.pad(w.double().cumsum(-1), (1, 0)),
                               atol=128 * EPS, rtol=0)


def test_cdf_of_a_single_weight():
    assert stepfun.integrate_weights(torch.ones(3, 1)).tolist() == [[0, 1]] * 3


# sorted_piecewise_constant_pdf


@pytest.mark.parametrize("jittered", [False, True])
def test_samples_equal_a_slow_twin(jittered):
    t, w = random_histogram(6, bins=9)
    jitter = torch.rand(6, 17, dtype=t.dtype) if jittered else None
    samples = stepfun.sorted_piecewise_constant_pdf(t, 3.7 * w, 17, jitter)
    last = 1 - torch.finfo(t.dtype).eps
    for ray in range(6):
        for i in range(17):
            u = (i + jitter[ray, i].item()) / 17 if jittered else last * i / 16
            expected = slow_inverse_cdf(t[ray].tolist(), w[ray].tolist(), u)
            assert samples[ray, i].item() == pytest.approx(expected, abs=1e-12)


def test_random_samples_are_distributed_as_the_weights():
    t, w = random_histogram(bins=6, dtype=torch.float32)
    w = w * torch.tensor([1.0, 0.0, 8.0, 1.0, 0.3, 2.0])
    rays, per_ray = 2000, 33
    samples = stepfun.sorted_piecewise_constant_pdf(
        t.expand(rays, -1), w.expand(rays, -1), per_ray, torch.rand(rays, per_ray)
    )
    flat, count = np.sort(samples.numpy().ravel()), rays * per_ray
    fraction = np.histogram(flat, t.numpy())[0] / count
    p = (w / w.sum()).numpy()
    # Strata only lower the binomial variance; an empty bin may catch rounding at its ends.
    assert (np.abs(fraction - p) <= 5 * np.sqrt(p * (1 - p) / count) + 1e-5).all()
    # Kolmogorov-Smirnov: beyond 1.95 / sqrt(n) with a probability of 0.1 % for free samples.
    distance = np.abs(exact_cdf(t, w)(flat) - (np.arange(count) + 0.5) / count).max()
    assert distance < 1.95 / math.sqrt(count)


def test_each_random_sample_stays_in_its_stratum():
    t, w = random_histogram(40)
    samples = stepfun.sorted_piecewise_constant_pdf(t, w, 16, torch.rand(40, 16, dtype=t.dtype))
    for ray in range(40):
        u = exact_cdf(t[ray], w[ray])(samples[ray])
        assert (np.floor(16 * u) == np.arange(16)).all()


@pytest.mark.parametrize("jitter", [0.0, 0.25, 1 - EPS])
def test_jitter_places_a_sample_within_its_stratum(jitter):
    t = torch.linspace(0, 1, 9)
    samples = stepfun.sorted_piecewise_constant_pdf(t, torch.ones(8), 5, torch.full((5,), jitter))
    torch.testing.assert_close(samples, (torch.arange(5) + jitter) / 5, atol=2 * EPS, rtol=0)


def test_deterministic_samples_span_all_fenceposts():
    t, w = random_histogram(7, dtype=torch.float32)
    samples = stepfun.sorted_piecewise_constant_pdf(t, w, 12)
    torch.testing.assert_close(samples[:, 0], t[:, 0], atol=0, rtol=0)
    assert (samples[:, -1] <= t[:, -1]).all()
    # u stops at 1 - eps, and each bin holds more than a hundredth of the mass.
    torch.testing.assert_close(samples[:, -1], t[:, -1], atol=4 * 100 * 4 * EPS, rtol=0)


@pytest.mark.parametrize("level", [0.0, 1e-12, 1e-7])
def test_empty_histograms_are_sampled_uniformly(level):
    t = torch.linspace(2, 6, 9)
    samples = stepfun.sorted_piecewise_constant_pdf(t, torch.full((8,), level), 33)
    torch.testing.assert_close(samples, torch.linspace(2, 6, 33), atol=4 * 4 * EPS, rtol=0)


@pytest.mark.parametrize("bin_index", [0, 3, 7])
def test_all_samples_of_a_spike_lie_in_its_bin(bin_index):
    t, _ = random_histogram(bins=8, dtype=torch.float32)
    w = torch.zeros(8)
    w[bin_index] = 1
    for jitter in (None, torch.rand(50), torch.zeros(50), torch.full((50,), 1 - EPS)):
        samples = stepfun.sorted_piecewise_constant_pdf(t, w, 50, jitter)
        assert ((samples >= t[bin_index]) & (samples <= t[bin_index + 1])).all()


def test_no_sample_falls_into_an_interval_without_mass():
    t = torch.tensor([0.0, 1, 2, 3])
    samples = stepfun.sorted_piecewise_constant_pdf(t, torch.tensor([1.0, 0, 1]), 999)
    assert not ((samples > 1) & (samples < 2)).any()


def test_equal_fenceposts_have_finite_gradients():
    t = torch.tensor([1.0, 1, 1, 2, 2]).requires_grad_()
    w = torch.tensor([0.2, 0.0, 0.3, 0.5]).requires_grad_()
    samples = stepfun.sorted_piecewise_constant_pdf(t, w, 11)
    assert ((samples >= 1) & (samples <= 2)).all() and (samples.diff() >= 0).all()
    samples.sum().backward()
    assert t.grad.isfinite().all() and w.grad.isfinite().all()


def test_samples_are_sorted_and_inside_in_float32():
    t = (2 + 4 * torch.rand(2000, 33)).sort(dim=-1).values
    w = torch.rand(2000, 32) ** 12
    for jitter in (None, torch.rand(2000, 65)):
        samples = stepfun.sorted_piecewise_constant_pdf(t, w, 65, jitter)
        assert (samples.diff(dim=-1) >= 0).all()
        assert (samples >= t[:, :1]).all() and (samples <= t[:, -1:]).all()


@pytest.mark.parametrize("bins, num_samples", [(1, 1), (1, 5), (4, 1)])
def test_one_bin_and_one_sample(bins, num_samples):
    t, w = random_histogram(2, bins=bins)
    samples = stepfun.sorted_piecewise_constant_pdf(t, w, num_samples)
    assert samples.shape == (2, num_samples)
    torch.testing.assert_close(samples[:, 0], t[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_samples_and_percentiles_keep_batch_axes_and_dtype(batch, dtype):
    t, w = random_histogram(*batch, dtype=dtype)
    jitter = torch.rand(*batch, 7, dtype=dtype)
    for got in (stepfun.sorted_piecewise_constant_pdf(t, w, 7),
                stepfun.sorted_piecewise_constant_pdf(t, w, 7, jitter),
                stepfun.weighted_percentile(t, w, list(range(0, 70, 10)))):
        assert got.shape == (*batch, 7) and got.dtype == dtype


@pytest.mark.parametrize("kind", ["det", "rand"])
def test_samples_equal_the_official_code(golden, kind):
    t, w = golden("sampling.bins"), golden("sampling.weights")
    # The official jitter is in units of the cdf, ours in strata.
    jitter = golden("sampling.pdf_jitter") * 33 if kind == "rand" else None
    samples = stepfun.sorted_piecewise_constant_pdf(t, w, 33, jitter)
    for ray in range(len(t)):
        spare = max(0.0, 1e-5 - w[ray].sum().item()) / w.shape[-1]
        cdf = exact_cdf(t[ray], w[ray].double() + spare)
        expected = golden(f"sampling.pdf_samples_{kind}")[ray]
        # A rounded cdf moves samples far where little mass lies, a rounded t moves the cdf where
        # much does: in one of the two they must agree. Both are sums of 32 roundings at most.
        close_in_t = np.isclose(samples[ray], expected, atol=8 * EPS, rtol=0)
        close_in_cdf = np.isclose(cdf(samples[ray]), cdf(expected), atol=8 * EPS, rtol=0)
        assert (close_in_t | close_in_cdf).all()


# weighted_percentile


def test_percentiles_equal_numpys_of_a_fine_population():
    t, counts = [0.0, 0.5, 2.0, 2.2, 7.0], [3000, 1000, 4000, 2000]
    population = np.concatenate([
        left + (right - left) * (np.arange(n) + 0.5) / n
        for left, right, n in zip(t[:-1], t[1:], counts, strict=True)
    ])
    ps = [3, 17, 35, 50, 66, 92]
    got = stepfun.weighted_percentile(torch.tensor(t), torch.tensor(counts) / 1e4, ps)
    # The widest gap of the population is 4.8 / 2000.
    np.testing.assert_allclose(got, np.percentile(population, ps), atol=4.8 / 2000)


def test_percentiles_equal_interpolation_of_the_cdf():
    t, w = random_histogram(5)
    ps = [0, 1, 25, 50, 75, 99, 100]
    got = stepfun.weighted_percentile(t, w, ps)
    for ray in range(5):
        cdf = np.concatenate([[0], np.cumsum(w[ray].numpy())])
        expected = np.interp(np.array(ps) / 100, cdf, t[ray])
        np.testing.assert_allclose(got[ray].numpy(), expected, atol=1e-12)


def test_the_median_of_a_uniform_histogram_is_its_midpoint():
    for fenceposts in ([2.0, 6.0], [2.0, 3.0, 6.0], [2.0, 2.0, 5.5, 6.0]):
        t = torch.tensor(fenceposts)
        median = stepfun.weighted_percentile(t, t.diff() / 4, [50])
        assert median.item() == pytest.approx(4.0, abs=1e-6)


def test_percentiles_of_a_spike_lie_in_its_bin():
    t = torch.arange(6.0)
    w = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
    got = stepfun.weighted_percentile(t, w, [0, 50, 99.9])
    torch.testing.assert_close(got, torch.tensor([2.0, 2.5, 2.999]), atol=1e-5, rtol=0)


# max_blur


def slow_blur(w):
    last = len(w) - 1
    return [0.5 * (max(w[max(i - 1, 0)], w[i]) + max(w[i], w[min(i + 1, last)]))
            for i in range(len(w))]


@pytest.mark.parametrize("bins", [1, 2, 7])
def test_blur_equals_a_slow_loop(bins):
    w = torch.rand(4, bins, dtype=torch.float64)
    expected = torch.tensor([slow_blur(row) for row in w.tolist()], dtype=torch.float64)
    torch.testing.assert_close(stepfun.max_blur(w), expected, atol=0, rtol=0)


def test_blur_widens_a_spike_by_one_bin():
    w = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    assert stepfun.max_blur(w).tolist() == [0, 0, 0.5, 1, 0.5, 0]
    w = torch.rand(50, 12)
    assert (stepfun.max_blur(w) >= w).all()
