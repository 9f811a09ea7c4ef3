"""The kernels of a grid field's networks and samples beside their layers in PyTorch."""

import pytest
import torch

import coord
from config import default_config
from fields.fused_mlp import FusedMLP, Shape, evaluate_layers
from model import build_model

# Samples, features, hidden, view width, channels, samples per ray, trunk layers, view layers.
CASES = [(1000, 20, 32, 32, 3, 32, 1, 2), (77, 8, 32, 0, 0, 48, 2, 0), (301, 20, 16, 9, 3, 7, 1, 3),
         (10, 12, 24, 0, 3, 1, 1, 0), (0, 20, 32, 32, 3, 32, 1, 2), (1, 20, 32, 32, 3, 300, 1, 2),
         (900, 5, 17, 11, 3, 400, 2, 1)]


def make_case(samples, features, hidden, view, channels, per_ray, depth, view_depth):
    """Features, inputs per ray, shape and parameters with random values."""
    sizes, size = [], features
    for width in depth * [hidden]:
        sizes.append((width, size))
        size = width
    density_row = view or channels
    sizes.append((density_row + 1, size))
    for width in [*(view_depth - 1) * [view], channels] if view else []:
        sizes.append((width, view))
    weights = [torch.randn(*pair) / pair[1] ** 0.5 for pair in sizes]
    biases = [0.1 * torch.randn(len(weight)) for weight in weights]
    rays = torch.randn(-(-samples // per_ray), view) if view else None
    leaves = [None if x is None else x.requires_grad_()
              for x in (torch.randn(samples, features), rays, *weights, *biases)]
    return leaves, Shape(depth, density_row, per_ray)


@pytest.mark.parametrize("case", CASES)
def test_fused_networks_equal_their_layers(case):
    """Values and gradients, of which half of the samples' are 0."""
    (features, rays, *parameters), shape = make_case(*case)
    found = FusedMLP.apply(features, rays, shape, *parameters)
    wanted = evaluate_layers(features, rays, shape, *parameters)
    assert found.shape == (case[0], 1 + case[4])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    gradient = torch.randn_like(found) * (torch.rand(len(found), 1) < 0.5)
    leaves = [x for x in (features, rays, *parameters) if x is not None]
    pairs = zip(torch.autograd.grad(found, leaves, gradient),
                torch.autograd.grad(wanted, leaves, gradient), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_fused_networks_keep_nan():
    (features, rays, *parameters), shape = make_case(*CASES[0])
    with torch.no_grad():
        features[5] = torch.nan
        found = FusedMLP.apply(features, rays, shape, *parameters)
    assert found[5].isnan().all() and found[:5].isfinite().all() and found[6:].isfinite().all()


def test_an_infinite_density_leaves_colours_as_they_are():
    (features, rays, *parameters), shape = make_case(*CASES[2])  # Padded rows after density's.
    biases = parameters[len(parameters) // 2 :]
    with torch.no_grad():
        wanted = FusedMLP.apply(features, rays, shape, *parameters)
        biases[shape.density_layer][shape.density_row] = torch.inf
        found = FusedMLP.apply(features, rays, shape, *parameters)
    assert found[:, 0].isinf().all() and torch.equal(found[:, 1:], wanted[:, 1:])


def test_fused_networks_do_not_depend_on_the_number_of_threads():
    (features, rays, *parameters), shape = make_case(*CASES[0])
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found = FusedMLP.apply(features, rays, shape, *parameters)
        results.append([found, *torch.autograd.grad(found.square().sum(), parameters)])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for one in results[1:] for a, b in
               zip(one, results[0], strict=True))


@pytest.mark.parametrize("flags", [{}, {"use_viewdirs": False}, {"append_scale": True},
                                   {"contraction": True}, {"num_multisamples": 6}])
def test_a_field_equals_its_layers(flags, monkeypatch):
    """The whole field, whose kernels are switched off for comparison."""
    config = default_config(model="zipnerf", preset="debug", precision="fp32", **flags)
    field = build_model(config, box=torch.tensor([[-1.0] * 3, [1.0] * 3])).field
    with torch.no_grad():
        field.table.normal_()
    members = config.num_multisamples
    gaussians = coord.IsotropicGaussians(
        2 * torch.rand(6, 5, members, 3) - 1, 0.3 * torch.rand(6, 5, members))
    viewdirs = torch.nn.functional.normalize(torch.randn(6, 3), dim=-1)
    results = []
    for is_on in (True, False):
        if not is_on:
            monkeypatch.setattr("fields.hash_grid.has_numba", lambda: False)
        output = field(gaussians, viewdirs)
        loss = output.density.log1p().sum() + output.rgb.square().sum()
        results.append([output.density, output.rgb,
                        *torch.autograd.grad(loss, list(field.parameters()))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("contraction", [False, True])
def test_kernels_of_samples_equal_pytorch(contraction):
    config = default_config(model="zipnerf", preset="debug", contraction=contraction)
    field = build_model(config, box=torch.tensor([[-1.0, -2.0, 0.0], [1.0, 3.0, 4.0]])).field
    means, stds = 8 * torch.rand(50, 3, 2, 3) - 4, torch.rand(50, 3, 2) ** 4
    means[0], means[1, 0, 0], stds[2] = 0.0, 1e6, 0.0
    ours = field.cube_samples(coord.IsotropicGaussians(means, stds))
    theirs = field.cube_samples_torch(coord.IsotropicGaussians(means, stds))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)
    assert theirs.inside.any() and (contraction or not theirs.inside.all())
