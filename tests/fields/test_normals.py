"""Normals of the density, against analytic solids and finite differences."""

import pytest
import torch

from coord import Gaussians, IsotropicGaussians
from fields import hash_grid
from fields.base import FieldOutput, Head, Trunk, normals_from_gradients
from fields.hash import HashField
from fields.mlp import MLPField
from fields.normals import query_with_normals

HEAD = Head(bottleneck=5, view_hidden=6, view_depth=1, view_skip=4, view_deg=2, use_viewdirs=True,
            rgb_padding=0.001, predicts_normals=True)


class SoftBall(torch.nn.Module):
    """A ball whose raw density falls with the distance from its centre, far below the bias too."""

    def forward(self, gaussians, viewdirs=None, density_noise=None, with_rgb=True):
        raw_density = -300 * (gaussians.means - torch.tensor([0.2, -0.1, 0.4])).norm(dim=-1)
        if isinstance(gaussians, IsotropicGaussians):
            raw_density = raw_density.mean(dim=-1)
        return FieldOutput(torch.nn.functional.softplus(raw_density), None, raw_density)


def mlp_field(**options):
    torch.manual_seed(0)
    return MLPField(Trunk(16, 3, 1), HEAD, min_deg=0, max_deg=3, density_bias=-1.0, **options)


def make_gaussians(count=40, spread=1.5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    means = spread * torch.randn(count, 2, 3, generator=generator, dtype=torch.float64)
    roots = 0.1 * torch.randn(count, 2, 3, 3, generator=generator, dtype=torch.float64)
    return Gaussians(means.to(dtype), (roots @ roots.mT).to(dtype))


def finite_differences(density, means, step=1e-6):
    """Unit vectors against the central differences of a function of `[..., 3]`."""
    slopes = [density(means + step * axis) - density(means - step * axis)
              for axis in torch.eye(3, dtype=means.dtype)]
    return -torch.nn.functional.normalize(torch.stack(slopes, dim=-1), dim=-1)


def degrees_between(a, b):
    return torch.rad2deg(torch.acos((a * b).sum(-1).clamp(-1, 1)))


@pytest.mark.parametrize("num_multisamples", [0, 6])
def test_normals_of_a_ball_point_outward(num_multisamples):
    """Also where softplus underflows to density 0."""
    outward = torch.nn.functional.normalize(torch.randn(50, 2, 3), dim=-1)
    means = torch.tensor([0.2, -0.1, 0.4]) + (0.5 + torch.rand(50, 2, 1)) * outward
    gaussians = Gaussians(means, torch.full_like(means, 0.01))
    if num_multisamples:
        offset = 1e-3 * torch.randn(50, 2, 6, 3)
        offset = offset - offset.mean(dim=-2, keepdim=True)
        gaussians = IsotropicGaussians(means[..., None, :] + offset, torch.full((50, 2, 6), 0.01))
    output = query_with_normals(SoftBall(), gaussians)
    assert (output.density == 0).any()
    assert degrees_between(output.density_normals, outward).max() < 1


@pytest.mark.parametrize("options", [
    {}, {"contraction": True}, {"contraction": True, "basis": "icosahedron"}])
def test_normals_of_an_mlp_equal_finite_differences(options):
    """The truth differentiates density, not raw density, by means before contraction."""
    field, (means, covs) = mlp_field(**options).double(), make_gaussians()
    assert (means.norm(dim=-1) > 1).any() and (means.norm(dim=-1) < 1).any()
    directions = torch.nn.functional.normalize(torch.randn(40, 3, dtype=torch.float64), dim=-1)
    output = query_with_normals(field, Gaussians(means, covs), directions)
    with torch.no_grad():
        plain = field(Gaussians(means, covs), directions)
        wanted = finite_differences(
            lambda x: field(Gaussians(x, covs), with_rgb=False).density, means)
    torch.testing.assert_close(output.density_normals, wanted, rtol=0, atol=1e-6)
    for name in ("density", "rgb", "raw_density", "predicted_normals"):
        assert torch.equal(getattr(output, name), getattr(plain, name))


@pytest.mark.parametrize("contraction", [False, True])
def test_normals_of_hash_grids_equal_finite_differences(contraction):
    """Without down-weighting: its weights depend on the contracted width, without gradient."""
    torch.manual_seed(0)
    field = HashField(Trunk(8, 1), None, levels=hash_grid.make_levels(4, 16, 9), features=2,
                      num_multisamples=6, downweight=not contraction,
                      append_scale=False, density_bias=0.0, contraction=contraction)
    torch.nn.init.normal_(field.table)
    means = make_gaussians(spread=0.7).means
    means = means[..., None, :] + 0.02 * torch.randn(40, 2, 6, 3, dtype=torch.float64)
    stds = torch.full(means.shape[:-1], 0.02, dtype=torch.float64)
    normals = query_with_normals(
        field, IsotropicGaussians(means.float(), stds.float())).density_normals
    double = field.double()
    with torch.no_grad():
        wanted = finite_differences(
            lambda shift: double(IsotropicGaussians(means + shift[..., None, :], stds)).density,
            torch.zeros(40, 2, 3, dtype=torch.float64))
    # Float32 puts a few points into the neighbouring cell.
    assert degrees_between(normals, wanted).quantile(0.9) < 0.1


def test_normals_have_gradients_only_if_these_are_enabled():
    field, gaussians = mlp_field(), make_gaussians(dtype=torch.float32)
    assert query_with_normals(field, gaussians, None, None, False).density_normals.requires_grad
    with torch.no_grad():
        output = query_with_normals(field, gaussians, torch.ones(40, 3))
    assert not any(value.requires_grad for value in output)
    torch.testing.assert_close(output.density_normals.norm(dim=-1), torch.ones(40, 2))


def test_predicted_normals_are_unit_vectors_of_a_linear_layer_after_the_trunk():
    field, gaussians = mlp_field(), make_gaussians(dtype=torch.float32)
    found = field(gaussians, torch.ones(40, 3)).predicted_normals
    features = field.trunk_features(field._encode(gaussians).flatten(0, -2))
    wanted = -torch.nn.functional.normalize(
        features @ field.normal.weight.T + field.normal.bias, dim=-1).reshape(40, 2, 3)
    torch.testing.assert_close(found, wanted)
    assert field(gaussians, with_rgb=False).predicted_normals is None


def test_normals_of_no_gradient_are_zero_and_can_be_differentiated():
    gradients = torch.zeros(2, 3, requires_grad=True)
    normals = normals_from_gradients(gradients)
    normals.sum().backward()
    assert (normals == 0).all() and torch.isfinite(gradients.grad).all()
