"""Positional encodings and normalized device coordinates."""

import math

import numpy as np
import pytest
import torch

import coord
import ray_utils

EPS = torch.finfo(torch.float32).eps
LENS = dict(focal=407.0, width=504, height=378)


def slow_pos_enc(x, min_deg, max_deg):
    """All sines, then all cosines; in each, scale after scale, and in a scale x, y, z."""
    angles = [2.0**degree * value for degree in range(min_deg, max_deg) for value in x]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def random_gaussian(spread=0.3):
    """A mean and a full covariance in float64."""
    root = spread * torch.randn(3, 3, dtype=torch.float64)
    return torch.randn(3, dtype=torch.float64), root @ root.T


def realistic_gaussians(dtype):
    """Frustums of an 800-pixel camera 4 units away, 128 per ray."""
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 3), dim=-1)
    tdist = torch.linspace(2, 6, 129).expand(64, -1)
    origins, radii = -4 * directions, torch.full((64, 1), 5.2e-4)
    return ray_utils.cast_rays(
        *(x.to(dtype) for x in (tdist, origins, directions, radii)), "cone"
    )


def random_lines(count=20):
    """Rays of a forward-facing capture in float64: they look along -z from near z = 0."""
    origins = 0.5 * torch.randn(count, 3, dtype=torch.float64).clamp(-1, 1)
    directions = 0.4 * torch.randn(count, 3, dtype=torch.float64)
    directions[:, 2] = -0.5 - torch.rand(count, dtype=torch.float64)
    return origins, directions


# Encodings.


@pytest.mark.parametrize("min_deg, max_deg", [(0, 1), (0, 4), (2, 5), (-2, 1)])
@pytest.mark.parametrize("append_identity", [False, True])
def test_pos_enc_equals_a_slow_loop_in_value_and_order(min_deg, max_deg, append_identity):
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = [(row if append_identity else []) + slow_pos_enc(row, min_deg, max_deg)
                for row in x.tolist()]
    got = coord.pos_enc(x, min_deg, max_deg, append_identity)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=x.dtype), atol=1e-14, rtol=0)


def test_pos_enc_appends_the_identity_by_default():
    assert coord.pos_enc(torch.zeros(2, 3), 0, 4).shape == (2, 27)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("spread", [0.05, 0.5])
def test_ipe_is_the_expectation_of_the_encoding(spread, full):
    mean, cov = random_gaussian(spread)
    count = 100_000
    samples = mean + torch.randn(count, 3, dtype=mean.dtype) @ torch.linalg.cholesky(cov).T
    angles = (samples[:, None, :] * torch.tensor([[1.0], [2], [4], [8]])).flatten(1)
    features = torch.cat([angles.sin(), angles.cos()], dim=-1)
    tolerance = 5 * features.std(dim=0) / math.sqrt(count)
    got = coord.integrated_pos_enc(mean, cov if full else cov.diagonal(), 0, 4)
    assert ((got - features.mean(dim=0)).abs() <= tolerance).all()


@pytest.mark.parametrize("min_deg, max_deg", [(0, 16), (3, 5)])
def test_ipe_without_variance_is_the_plain_encoding(min_deg, max_deg):
    means = torch.randn(4, 7, 3)
    got = coord.integrated_pos_enc(means, torch.zeros_like(means), min_deg, max_deg)
    plain = coord.pos_enc(means, min_deg, max_deg, append_identity=False)
    torch.testing.assert_close(got, plain, atol=0, rtol=0)


def test_ipe_of_diagonal_and_full_covariances_agree_exactly():
    means, root = torch.randn(4, 7, 3), torch.randn(4, 7, 3, 3)
    covs = root @ root.mT * 1e-3
    diagonal = coord.integrated_pos_enc(means, covs.diagonal(dim1=-2, dim2=-1), 0, 10)
    torch.testing.assert_close(coord.integrated_pos_enc(means, covs, 0, 10), diagonal,
                               atol=0, rtol=0)


def test_ipe_reads_the_diagonal_of_full_covariances():
    # With as many samples as axes, only the rank distinguishes a diagonal from a matrix.
    means, covs = torch.zeros(3, 3), torch.diag_embed(torch.rand(3, 3))
    cosines = coord.integrated_pos_enc(means, covs, 0, 1)[..., 3:]
    torch.testing.assert_close(cosines, (-0.5 * covs.diagonal(dim1=-2, dim2=-1)).exp())


def test_ipe_damps_each_scale():
    mean, variances = torch.zeros(3, dtype=torch.float64), torch.tensor([1e-4, 1e-2, 0.5]).double()
    sines, cosines = coord.integrated_pos_enc(mean, variances, 0, 16).reshape(2, 16, 3)
    expected = np.exp(-0.5 * 4.0 ** np.arange(16)[:, None] * variances.numpy())
    np.testing.assert_allclose(cosines, expected, rtol=1e-12, atol=0)
    assert (sines == 0).all() and (cosines[12:] == 0).all()


def test_ipe_in_float32_is_exact_at_realistic_cones():
    means, covs = realistic_gaussians(torch.float32)
    got = coord.integrated_pos_enc(means, covs, 0, 16)
    exact = coord.integrated_pos_enc(means.double(), covs.double(), 0, 16)
    # Scaling by 2^l is exact, so only sin, cos and exp round (exponents to 1 / e times eps).
    torch.testing.assert_close(got.double(), exact, atol=4 * EPS, rtol=0)


def test_rays_to_features_are_accurate_in_float32():
    got = coord.integrated_pos_enc(*realistic_gaussians(torch.float32), 0, 16)
    exact = coord.integrated_pos_enc(*realistic_gaussians(torch.float64), 0, 16)
    # Means are off by 4 eps. A feature's slope is x exp(-x^2 v / 2) < 1 / sqrt(e v), and v is at
    # least (2 * 5.2e-4)^2 / 4.
    torch.testing.assert_close(got.double(), exact, atol=1170 * 4 * EPS, rtol=0)


@pytest.mark.parametrize("variance", [0.0, 1e-30, 1e30, math.inf])
def test_ipe_and_its_gradient_are_finite_at_extreme_variances(variance):
    means = torch.randn(5, 3).requires_grad_()
    covs = torch.full((5, 3), variance)
    features = coord.integrated_pos_enc(means, covs, 0, 16)
    features.sum().backward()
    assert features.isfinite().all() and means.grad.isfinite().all()


def test_ipe_gradient_equals_finite_differences():
    mean, cov = random_gaussian()
    inputs = mean.requires_grad_(), cov.requires_grad_()
    assert torch.autograd.gradcheck(lambda m, c: coord.integrated_pos_enc(m, c, 0, 4), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_encodings_keep_batch_axes_and_dtype(batch, dtype):
    x = torch.randn(*batch, 3, dtype=dtype)
    covs = torch.diag_embed(x.abs())
    for got in (coord.pos_enc(x, 0, 4, append_identity=False),
                coord.integrated_pos_enc(x, x.abs(), 0, 4),
                coord.integrated_pos_enc(x, covs, 0, 4)):
        assert got.shape == (*batch, 24) and got.dtype == dtype


@pytest.mark.parametrize("covs, features, degrees", [
    ("cov_diag", "ipe_diag_0_16", 16),
    ("cov_full", "ipe_diag_0_16", 16),
    ("cov_diag_wide", "ipe_diag_wide_0_8", 8),
    (None, "ipe_zero_cov_0_6", 6),
])
def test_ipe_equals_the_official_code(golden, covs, features, degrees):
    means = golden("encoding.mean")
    covs = torch.zeros_like(means) if covs is None else golden(f"encoding.{covs}")
    got = coord.integrated_pos_enc(means, covs, 0, degrees)
    # The official cosine is sin(x + pi / 2), whose argument rounds by x eps / 2 where x is the
    # largest that is not damped: 2^degree < 1 / width = 700, means below 2.
    torch.testing.assert_close(got, golden(f"encoding.{features}"), atol=700 * 2 * EPS / 2, rtol=0)


def test_pos_enc_equals_the_official_code(golden):
    got = coord.pos_enc(golden("encoding.viewdirs"), 0, 4)
    # The official cosine is sin(x + pi / 2) with x up to 8, rounded to 16 * eps / 2.
    torch.testing.assert_close(got, golden("encoding.pos_enc_0_4_identity"), atol=8 * EPS, rtol=0)


# NDC.


def test_ndc_of_rays_worked_out_by_hand():
    # Half a width is 2 and half a height 1 at focal 2: at z = -1 the frustum ends at 1 and 0.5.
    origins = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    directions = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, -2.0], [0.5, 0.25, -1.0]])
    line = coord.to_ndc(origins, directions, focal=2.0, width=4, height=2)
    assert line.origins.tolist() == [[1, 4, -1], [1, 0, -1], [1, 1, -1]]
    assert line.directions.tolist() == [[0, 0, 2], [-1, 0, 2], [-0.5, -0.5, 2]]


def test_ndc_of_frustum_corners():
    # The corners of the near plane and of a plane ten times as far are those of the cube.
    corners = torch.tensor([[2.0, 1.0, -2.0], [-20.0, 10.0, -20.0], [0.0, 0.0, -2e7]])
    got = coord.points_to_ndc(corners, focal=2.0, width=4, height=2, near=2.0)
    expected = torch.tensor([[1.0, 1.0, -1.0], [-1.0, 1.0, 0.8], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("near", [1.0, 0.3])
def test_ndc_rays_begin_on_the_near_plane_and_end_at_infinity(near):
    origins, directions = random_lines()
    line = coord.to_ndc(origins, directions, **LENS, near=near)
    start = coord.from_ndc(line.origins, **LENS, near=near)
    torch.testing.assert_close(start[:, 2], torch.full_like(start[:, 2], -near))
    torch.testing.assert_close((line.origins + line.directions)[:, 2], torch.ones(20).double())
    almost = coord.from_ndc(line.origins + (1 - 1e-5) * line.directions, **LENS, near=near)
    assert (almost[:, 2] < -0.9e5 * near).all()


@pytest.mark.parametrize("near", [1.0, 0.3])
def test_points_of_a_world_ray_lie_on_its_ndc_ray_in_order(near):
    origins, directions = random_lines()
    line = coord.to_ndc(origins, directions, **LENS, near=near)
    # t where each ray meets the near plane, and beyond.
    t_near = (-near - origins[:, 2:]) / directions[:, 2:]
    t = t_near + torch.tensor([0.0, 0.1, 1.0, 30.0], dtype=torch.float64)
    world = origins[:, None] + t[..., None] * directions[:, None]
    points = coord.points_to_ndc(world, **LENS, near=near)
    t_ndc = (points[..., 2] - line.origins[:, None, 2]) / line.directions[:, None, 2]
    on_ray = line.origins[:, None] + t_ndc[..., None] * line.directions[:, None]
    torch.testing.assert_close(points, on_ray, atol=1e-11, rtol=0)
    assert (t_ndc.diff(dim=-1) > 0).all() and (t_ndc > -1e-12).all() and (t_ndc < 1).all()


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-4), (torch.float64, 1e-12)])
@pytest.mark.parametrize("near", [1.0, 0.3])
def test_ndc_of_points_inverts(near, dtype, rtol):
    points = torch.randn(2, 30, 3, dtype=dtype)
    points[..., 2] = -near - 20 * torch.rand(2, 30, dtype=dtype)
    ndc = coord.points_to_ndc(points, **LENS, near=near)
    # 1 + 2 near / z amplifies rounding by |z| / near, about 70 at z = -20 and near = 0.3.
    torch.testing.assert_close(coord.from_ndc(ndc, **LENS, near=near), points, rtol=rtol, atol=0)


@pytest.mark.parametrize("z", [1.0, 1.0 - EPS, 5.0])
def test_from_ndc_is_finite_at_and_beyond_the_far_plane(z):
    points = torch.tensor([0.3, -0.2, z]).requires_grad_()
    world = coord.from_ndc(points, **LENS)
    world.sum().backward()
    assert world.isfinite().all() and world[2] < -1e6 and points.grad.isfinite().all()


def test_ndc_equals_the_official_code(golden):
    line = coord.to_ndc(golden("ndc.origins"), golden("ndc.directions"), **LENS)
    # Theirs ran in float64; ours rounds a few times at numbers up to 3.
    torch.testing.assert_close(line.origins, golden("ndc.ndc_origins"), atol=16 * EPS, rtol=0)
    torch.testing.assert_close(line.directions, golden("ndc.ndc_directions"), atol=16 * EPS, rtol=0)


# Eigenvectors of symmetric matrices.


def eigenvector_cases():
    generator = torch.Generator().manual_seed(0)
    turns = torch.linalg.qr(torch.randn(400, 3, 3, generator=generator, dtype=torch.float64))[0]
    spectra = torch.rand(400, 3, generator=generator, dtype=torch.float64)
    spectra[:4] = torch.tensor([[1.0, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]])
    spectra[4:100, 0] *= 1e-6  # Almost planes.
    spectra[100:200] *= 10.0 ** torch.linspace(-18, 18, 100, dtype=torch.float64)[:, None]
    spectra[200:210] = torch.tensor([-3.0, 1.0, 2.0])
    matrices = turns @ torch.diag_embed(spectra) @ turns.mT
    diagonal = torch.tensor([[1.0, 2, 3], [3, 2, 1], [2, 1, 3], [0, 1, 1]], dtype=torch.float64)
    return torch.cat([0.5 * (matrices + matrices.mT), torch.diag_embed(diagonal)])


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_the_smallest_eigenvector_minimises_the_quadratic_form(dtype, tolerance):
    """Its Rayleigh quotient is the smallest eigenvalue, also where eigenvalues repeat."""
    matrices = eigenvector_cases().to(dtype)
    vectors = coord.smallest_eigenvector(matrices).double()
    assert vectors.isfinite().all()
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)).double(),
                               atol=1e-6, rtol=0)
    exact = torch.linalg.eigvalsh(matrices.double())
    quotient = ((matrices.double() @ vectors[..., None])[..., 0] * vectors).sum(dim=-1)
    scale = exact.abs().amax(dim=-1).clamp(min=1e-300)
    assert ((quotient - exact[:, 0]).abs() / scale).max() < tolerance


def test_smallest_eigenvectors_of_no_matrices_and_of_nan():
    assert coord.smallest_eigenvector(torch.zeros(0, 3, 3)).shape == (0, 3)
    assert coord.smallest_eigenvector(torch.full((1, 3, 3), float("nan"))).shape == (1, 3)
