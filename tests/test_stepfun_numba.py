"""The kernels of step functions against PyTorch in float64, at odd inputs and on one thread."""

import sys

import pytest
import torch

import stepfun


def histograms(rays, bins, seed=0):
    rng = torch.Generator().manual_seed(seed)
    t = torch.rand(rays, bins + 1, generator=rng).sort(dim=-1).values
    w = torch.softmax(4 * torch.randn(rays, bins, generator=rng), dim=-1)
    return t, w


@pytest.fixture
def calls(monkeypatch):
    """The names of the kernels that are called."""
    names, by_kernel = [], stepfun._by_kernel
    monkeypatch.setattr(stepfun, "_by_kernel",
                        lambda name, *a: names.append(name) or by_kernel(name, *a))
    return names


@pytest.mark.parametrize("batch,bins", [((0,), 4), ((1,), 1), ((), 5), ((5, 13), 7), ((65,), 48)])
def test_sampled_points_equal_pytorchs(batch, bins, calls):
    count = int(torch.Size(batch).numel())
    t, w = histograms(count, bins)
    t, logits = t.reshape(*batch, bins + 1), w.log().reshape(*batch, bins)
    u = torch.rand(*batch, 9, generator=torch.Generator().manual_seed(1))  # Not sorted.
    got = stepfun.sampled_points(u, t, logits)
    assert calls == ["sampled_points"] and got.dtype == torch.float32
    wanted = stepfun.sampled_points(u.double(), t.double(), logits.double())
    assert calls == ["sampled_points"]
    torch.testing.assert_close(got.double(), wanted, atol=2e-5, rtol=0)


def test_sampled_points_skip_intervals_without_mass():
    t = torch.tensor([[0.0, 1, 2, 3, 4]])
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf, 0.0]])
    got = stepfun.sampled_points(torch.tensor([[0.25, 0.5, 0.75, 1.0]]), t, logits)
    torch.testing.assert_close(got, torch.tensor([[0.5, 3.0, 3.5, 4.0]]))


@pytest.mark.parametrize("batch,bins,others", [((0,), 4, 3), ((1,), 1, 1), ((), 5, 2),
                                               ((5, 13), 7, 9), ((70,), 32, 48)])
@pytest.mark.parametrize("half_width", [0.003, 0.2])
def test_blurred_weights_equal_pytorchs(batch, bins, others, half_width, calls):
    count = int(torch.Size(batch).numel())
    t, w = histograms(count, bins)
    t_env, _ = histograms(count, others, seed=1)
    t, w, t_env = (x.reshape(*batch, x.shape[-1]) for x in (t, w, t_env))
    got = stepfun.blurred_weights(t, w, t_env, half_width)
    assert calls == ["blurred_weights"]
    wanted = stepfun.blurred_weights(t.double(), w.double(), t_env.double(), half_width)
    torch.testing.assert_close(got.double(), wanted, atol=1e-6, rtol=0)


def test_the_interlevel_losss_gradient_is_that_of_pytorch(calls):
    """Only the proposal's weights have one. The loss by its formula, in float64."""
    (t, w), (t_env, w_env) = histograms(40, 16), histograms(40, 24, seed=1)
    mine, wanted = w_env.clone().requires_grad_(), w_env.double().requires_grad_()
    stepfun.antialiased_interlevel_loss(t, w, t_env, mine, 0.03).sum().backward()
    assert calls == ["blurred_weights"]
    blurred = stepfun.blurred_weights(t.double(), w.double(), t_env.double(), 0.03)
    excess = (blurred - wanted).clamp(min=0)
    (excess**2 / (wanted + torch.finfo(torch.float32).eps)).sum().backward()
    assert (mine.grad - wanted.grad).norm() < 1e-5 * wanted.grad.norm() and wanted.grad.norm() > 1


def test_whole_mass_of_a_blurred_histogram_is_kept():
    t, w = histograms(20, 8)
    ends = torch.tensor([[-1.0, 0.5, 2.0]]).expand(20, 3)
    torch.testing.assert_close(stepfun.blurred_weights(t, w, ends, 0.1).sum(-1), torch.ones(20),
                               atol=1e-5, rtol=0)


def test_tensors_with_gradients_take_the_plain_path(calls):
    t, w = histograms(3, 4)
    w.requires_grad_()
    stepfun.sampled_points(torch.full((3, 1), 0.3), t, w.log()).sum().backward()
    assert not calls and torch.isfinite(w.grad).all()


def test_numbers_that_are_not_finite_stay_inside_the_arrays():
    t, w = histograms(4, 6)
    for bad in (torch.nan, torch.inf, -torch.inf):
        assert stepfun.sampled_points(torch.full((4, 3), bad), t, w.log()).shape == (4, 3)
        assert stepfun.sampled_points(torch.rand(4, 3), t, w * bad).shape == (4, 3)
        assert stepfun.blurred_weights(t * bad, w, t, 0.1).shape == (4, 6)
        assert stepfun.blurred_weights(t, w * bad, t * bad, 0.1).shape == (4, 6)


def test_kernels_do_not_depend_on_the_number_of_threads():
    (t, w), (t_env, _) = histograms(300, 16), histograms(300, 24, seed=1)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append((stepfun.blurred_weights(t, w, t_env, 0.03),
                            stepfun.sampled_points(t_env, t, w.log())))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_without_numba_pytorch_computes_them(monkeypatch):
    t, w = histograms(7, 5)
    u = torch.rand(7, 4)
    wanted = stepfun.sampled_points(u, t, w.log())
    monkeypatch.setitem(sys.modules, "stepfun_numba", None)
    monkeypatch.setattr(stepfun, "_kernels", stepfun._kernels.__wrapped__)
    monkeypatch.delattr(stepfun, "_by_kernel")
    torch.testing.assert_close(stepfun.sampled_points(u, t, w.log()), wanted, atol=1e-5, rtol=0)
    assert stepfun.blurred_weights(t, w, t, 0.1).shape == (7, 5)
