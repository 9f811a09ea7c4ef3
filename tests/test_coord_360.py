"""Contraction, warps of distance and off-axis directions: closed forms, Monte Carlo, inverses."""

import math

import pytest
import torch

import coord

DOUBLE = torch.float64


def random_points(count=200, largest=100.0):
    """Random directions, lengths from near 0 to `largest`, inside and outside the unit ball."""
    directions = torch.nn.functional.normalize(torch.randn(count, 3, dtype=DOUBLE), dim=-1)
    return directions * torch.logspace(-2, math.log10(largest), count, dtype=DOUBLE)[:, None]


def random_covariances(count, spread, dtype=DOUBLE):
    root = spread * torch.randn(count, 3, 3, dtype=dtype)
    return root @ root.mT


# Contraction.


def test_contraction_keeps_the_unit_ball_and_ends_at_radius_two():
    x = random_points()
    z = coord.contract(x)
    length = x.norm(dim=-1)
    inside = length <= 1
    assert torch.equal(z[inside], x[inside])
    torch.testing.assert_close(z[~inside].norm(dim=-1), 2 - 1 / length[~inside])
    torch.testing.assert_close(torch.nn.functional.normalize(z, dim=-1),
                               torch.nn.functional.normalize(x, dim=-1))


@pytest.mark.parametrize("dtype,rtol", [(DOUBLE, 1e-9), (torch.float32, 2e-3)])
def test_contraction_inverts(dtype, rtol):
    x = random_points().to(dtype)
    torch.testing.assert_close(coord.inv_contract(coord.contract(x)), x, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("x", [[0.0, 0, 0], [1.0, 0, 0], [0, 0, 1e15], [1e-30, 0, 0]])
def test_contraction_and_its_gradients_are_finite(x):
    x = torch.tensor(x, requires_grad=True)
    for fn in (coord.contract, lambda p: coord.inv_contract(coord.contract(p))):
        value = fn(x)
        assert torch.isfinite(value).all() and value.norm() <= max(2, x.norm() * 1.01 + 1)
        if x.norm() < 1e10:
            assert torch.isfinite(torch.autograd.grad(value.sum(), x)[0]).all()


def test_contracted_covariances_use_the_jacobian():
    x = random_points(40)
    covs = random_covariances(40, 0.1)
    jacobian = torch.stack([torch.autograd.functional.jacobian(coord.contract, p) for p in x])
    means, contracted = coord.contract_gaussians(x, covs)
    torch.testing.assert_close(means, coord.contract(x))
    torch.testing.assert_close(contracted, jacobian @ covs @ jacobian.mT)


@pytest.mark.parametrize("length", [0.3, 1.7, 20.0])
def test_contracted_gaussians_equal_monte_carlo(length):
    """Monte Carlo: means and covariances of small Gaussians, within four standard errors."""
    count = 200_000
    mean = length * torch.nn.functional.normalize(torch.tensor([[1.0, -2.0, 0.5]], dtype=DOUBLE))
    covs = (0.01 * length) ** 2 * random_covariances(1, 0.5)
    noise = torch.linalg.cholesky(covs[0]) @ torch.randn(3, count, dtype=DOUBLE)
    samples = coord.contract(mean + noise.T)
    found = coord.contract_gaussians(mean, covs)
    deviation = samples.std(dim=0)
    # Linearization ignores the curvature, an error of order spread / length.
    assert ((samples.mean(dim=0) - found.means[0]).abs() < 0.03 * deviation).all()
    scale = deviation[:, None] * deviation
    assert ((torch.cov(samples.T) - found.covs[0]).abs() < 0.05 * scale).all()


def test_contraction_accepts_diagonal_covariances():
    x, variances = random_points(30), torch.rand(30, 3, dtype=DOUBLE)
    a = coord.contract_gaussians(x, variances)
    b = coord.contract_gaussians(x, torch.diag_embed(variances))
    torch.testing.assert_close(a.covs, b.covs)


def test_contraction_commutes_with_rotation():
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=DOUBLE)).Q
    x, covs = random_points(50), random_covariances(50, 0.2)
    a = coord.contract_gaussians(x @ rotation.T, rotation @ covs @ rotation.T)
    b = coord.contract_gaussians(x, covs)
    torch.testing.assert_close(a.means, b.means @ rotation.T)
    torch.testing.assert_close(a.covs, rotation @ b.covs @ rotation.T)


# Warps of distance.

RANGES = {"linear": (0.0, 8.0), "reciprocal": (0.2, 1e6), "piecewise": (0.0, 1e6),
          "power": (0.0, 1e6)}


@pytest.mark.parametrize("fn", sorted(coord.CURVES))
def test_warps_are_monotonic_and_invert(fn):
    near, far = RANGES[fn]
    warps = coord.construct_ray_warps(fn, torch.tensor([near], dtype=DOUBLE),
                                      torch.tensor([far], dtype=DOUBLE))
    s = torch.linspace(0, 1, 101, dtype=DOUBLE)
    t = warps.s_to_t(s)
    torch.testing.assert_close(t[[0, -1]], torch.tensor([near, far], dtype=DOUBLE), rtol=1e-6,
                               atol=1e-9)
    assert (t.diff() > 0).all()
    torch.testing.assert_close(warps.t_to_s(t), s, atol=1e-9, rtol=0)


@pytest.mark.parametrize("fn,near", [("power", 0.0), ("power", 0.2), ("reciprocal", 0.2),
                                     ("piecewise", 0.0), ("linear", 0.0)])
def test_warps_end_at_far(fn, near):
    """In float32 a curve that is flat at large t must not give infinity."""
    far = torch.tensor([[1e3], [1e6]])
    warps = coord.construct_ray_warps(fn, torch.full_like(far, near), far)
    t = warps.s_to_t(torch.linspace(0, 1, 50).expand(2, 50))
    assert torch.isfinite(t).all() and (t <= far).all() and (t.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(t[:, -1:], far, rtol=0.1, atol=0)


def test_warps_worked_out_by_hand():
    reciprocal = coord.construct_ray_warps("reciprocal", 1.0, 4.0)
    # Half way in 1 / t between 1 and 1/4 is 5/8.
    assert reciprocal.s_to_t(torch.tensor(0.5)) == pytest.approx(8 / 5)
    piecewise = coord.construct_ray_warps("piecewise", 0.0, 2.0)
    # g(0) = 0, g(1) = 1/2, g(2) = 3/4: s = 2/3 is t = 1, and s = 1/3 is t = 1/2.
    assert piecewise.s_to_t(torch.tensor(2 / 3)) == pytest.approx(1)
    assert piecewise.t_to_s(torch.tensor(0.5)) == pytest.approx(1 / 3)
    power = coord.construct_ray_warps("power", 0.0, 10.0)
    # P(x, -1.5) = -(5/3) ((x / 2.5 + 1)^-1.5 - 1), at x = 2 t.
    g = lambda t: -(5 / 3) * ((2 * t / 2.5 + 1) ** -1.5 - 1)  # noqa: E731
    assert power.t_to_s(torch.tensor(3.0)) == pytest.approx(g(3) / g(10), rel=1e-5)


def test_warps_accept_a_range_per_ray():
    near, far = torch.tensor([[1.0], [2.0]]), torch.tensor([[4.0], [8.0]])
    warps = coord.construct_ray_warps("linear", near, far)
    assert warps.s_to_t(torch.tensor([[0.0, 0.5, 1.0]])).tolist() == [[1, 2.5, 4], [2, 5, 8]]


# Off-axis directions.


def test_the_icosahedron_basis_has_21_even_directions():
    basis = coord.icosahedron_basis().double()
    assert basis.shape == (3, 21)
    torch.testing.assert_close(basis.norm(dim=0), torch.ones(21, dtype=DOUBLE), atol=1e-6, rtol=0)
    # With their opposites they are a design: the mean of d d^T is a third of the identity.
    torch.testing.assert_close(basis @ basis.T / 21, torch.eye(3, dtype=DOUBLE) / 3, atol=1e-6,
                               rtol=0)
    cosine = (basis.T @ basis).abs() - torch.eye(21, dtype=DOUBLE)
    # No two are the same or opposite; the nearest are half an edge apart, 31.7 degrees.
    nearest = torch.rad2deg(torch.acos(cosine.max(dim=0).values))
    torch.testing.assert_close(nearest, torch.full((21,), 31.717, dtype=DOUBLE), atol=0.01, rtol=0)


def test_projected_gaussians():
    basis = coord.icosahedron_basis().double()
    mean, covs = torch.randn(1, 3, dtype=DOUBLE), random_covariances(1, 0.4)
    found = coord.project_gaussians(coord.Gaussians(mean, covs), basis)
    torch.testing.assert_close(found.means, mean @ basis)
    torch.testing.assert_close(found.covs, torch.diagonal(basis.T @ covs[0] @ basis)[None])


def test_plain_axes_are_a_special_case():
    covs = random_covariances(5, 0.4)
    gaussians = coord.Gaussians(torch.randn(5, 3, dtype=DOUBLE), covs)
    found = coord.project_gaussians(gaussians, torch.eye(3, dtype=DOUBLE))
    torch.testing.assert_close(coord.integrated_pos_enc(*found, 0, 4),
                               coord.integrated_pos_enc(*gaussians, 0, 4))
