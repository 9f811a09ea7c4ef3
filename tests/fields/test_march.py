"""Marching hash grids: the kernel against its plain twin, and both against a sphere by formula."""

import math
from dataclasses import replace

import pytest
import torch

from fields import hash_grid, march, march_numba
from fields.base import Head, Trunk
from fields.hash import HashField
from fields.march import Footprints, Marcher, MarchOptions, march_torch
from fields.occupancy import MarchGrid, find_occupied, halved
from structures import Rays

LEVELS = hash_grid.make_levels(4, 32, 10)


def make_field(contraction=False, density_bias=3.0, **changes):
    """A field of random features, of the shape of the laptop preset."""
    options = {"downweight": True, "append_scale": True, "depth": 1, "view_depth": 2,
               "view_skip": 2, "use_viewdirs": True, "glo_features": 0, "features": 4,
               "levels": LEVELS} | changes
    head = Head(bottleneck=6, view_hidden=10, view_depth=options["view_depth"],
                view_skip=options["view_skip"], view_deg=2, use_viewdirs=options["use_viewdirs"],
                rgb_padding=0.001, glo_features=options["glo_features"], glo_affine=True)
    field = HashField(
        Trunk(10, options["depth"]), head, levels=options["levels"], features=options["features"],
        num_multisamples=1, downweight=options["downweight"],
        append_scale=options["append_scale"], density_bias=density_bias, contraction=contraction)
    with torch.no_grad():
        field.table.uniform_(-0.2, 0.2)
        for layer in field.layers():
            layer.bias.uniform_(-0.5, 0.5)
    if not contraction:
        field.box.copy_(torch.tensor([[-1.0, -0.8, -1.0], [1.2, 1.0, 0.9]]))
    return field.eval()


def random_grid(field, resolution=16):
    side = float((field.box[1] - field.box[0]).max())
    cells = torch.rand(3 * (resolution,)) < 0.2
    return MarchGrid.from_cells(cells, field.box.mean(dim=0), side, field.contraction)


def random_rays(count, near=0.5, far=6.0):
    origins = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1) * 2.5
    directions = 1.3 * torch.nn.functional.normalize(torch.randn(count, 3) * 0.5 - origins, dim=-1)
    one = torch.ones(count, 1)
    return Rays(origins=origins, directions=directions, radii=0.02 * one, near=near * one,
                viewdirs=torch.nn.functional.normalize(directions, dim=-1), far=far * one,
                lossmult=one, cam_idx=torch.zeros(count, 1, dtype=torch.long))


def options_for(grid, **changes):
    defaults = {"step": 0.5 / grid.skip.shape[0], "longest": 1 / 16, "min_transmittance": 0.02,
                "min_weight": 0.003, "is_cone": True, "is_opaque": False, "padding": 0.001,
                "background": 0.7}
    return MarchOptions(**(defaults | changes))


def compare_with_twin(field, grid, options, rays):
    twin = march_torch(field, grid, options, rays, rays.viewdirs)
    result = march.march(*march.pack_field(field), grid, options, rays, rays.viewdirs)
    for name, expected in twin._asdict().items():
        error = (getattr(result, name) - expected).abs() / (1 + expected.abs())
        # Rounding moves a few samples over the edge of a cell or of a threshold.
        assert error.quantile(0.85) < 2e-5, (name, error.sort().values[-20:])
    return result


@pytest.mark.parametrize("changes", [
    {}, {"downweight": False}, {"append_scale": False}, {"use_viewdirs": False},
    {"depth": 2, "view_depth": 3}, {"view_depth": 1}, {"view_depth": 4, "view_skip": 3},
    {"glo_features": 3}])
def test_kernel_equals_the_plain_twin_for_all_shapes_of_fields(changes):
    field = make_field(**changes)
    grid = random_grid(field)
    result = compare_with_twin(field, grid, options_for(grid), random_rays(60))
    assert 0.2 < result.acc.mean() < 0.999


@pytest.mark.parametrize("options", [
    {}, {"is_opaque": True}, {"is_cone": False}, {"min_transmittance": 1e-4, "min_weight": 0.0}])
@pytest.mark.parametrize("contraction", [False, True])
def test_kernel_equals_the_plain_twin_for_all_options(contraction, options):
    field = make_field(contraction, density_bias=0.0)
    grid = random_grid(field)
    rays = random_rays(60, near=0.0 if contraction else 0.5, far=1e6 if contraction else 6.0)
    result = compare_with_twin(field, grid, options_for(grid, **options), rays)
    if options.get("is_opaque"):
        assert (result.acc == 1).all()


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_results_do_not_depend_on_threads_or_company(num_threads, monkeypatch):
    field = make_field()
    grid, rays = random_grid(field), random_rays(400)
    arguments = (*march.pack_field(field), grid, options_for(grid))
    alone = march.march(*arguments, rays[200:201], rays.viewdirs[200:201])
    expected = march.march(*arguments, rays, rays.viewdirs)
    monkeypatch.setattr(march_numba.torch, "get_num_threads", lambda: num_threads)
    result = march.march(*arguments, rays, rays.viewdirs)
    for a, b, c in zip(result, expected, alone, strict=True):
        assert torch.equal(a, b) and torch.equal(a[200:201], c)


# A sphere by formula.

RADIUS, DENSITY = 0.6, 4.0


@pytest.fixture
def sphere(monkeypatch):
    """A grid around a sphere of constant density and colour, and a field that the kernel takes.

    All features are 0, so density and colour are those of the biases.
    """
    field = make_field(density_bias=math.log(DENSITY), use_viewdirs=False)
    with torch.no_grad():
        field.box.copy_(torch.tensor([[-1.0] * 3, [1.0] * 3]))
        for parameter in field.parameters():
            parameter.zero_()
        field.rgb.bias.copy_(torch.tensor([1.0, 0.0, -2.0]))
    axis = (torch.arange(128) + 0.5) / 64 - 1
    cells = sum(x**2 for x in torch.meshgrid(axis, axis, axis, indexing="ij")) < RADIUS**2
    return field, MarchGrid.from_cells(cells, torch.zeros(3), 2.0, False)


def test_a_sphere_has_the_opacity_colour_and_distances_of_its_formula(sphere):
    field, grid = sphere
    rays = random_rays(300)
    options = options_for(grid, min_transmittance=1e-4, min_weight=0.0)
    output = march.march(*march.pack_field(field), grid, options, rays, rays.viewdirs)
    speed = rays.directions.norm(dim=-1)
    middle = -(rays.origins * rays.viewdirs).sum(dim=-1)
    offset = (rays.origins + middle[:, None] * rays.viewdirs).norm(dim=-1)
    half = (RADIUS**2 - offset**2).clamp(min=0).sqrt()
    acc = 1 - torch.exp(-2 * half * DENSITY)
    hit = half > 0.1
    assert (output.acc - acc).abs()[hit].mean() < 0.01
    colour = torch.sigmoid(torch.tensor([1.0, 0.0, -2.0])) * 1.002 - 0.001
    expected = output.acc[:, None] * colour + (1 - output.acc[:, None]) * 0.7
    torch.testing.assert_close(output.rgb, expected, atol=1e-5, rtol=0)
    median = (middle - half + math.log(2) / DENSITY) / speed
    assert (output.median - median).abs()[acc > 0.6].max() < 0.02
    assert (output.median[acc < 0.4] == -1).all()
    # The mean depth below the surface, of an exponential distribution cut off at 2 half.
    depth = 1 / DENSITY - 2 * half * (1 - acc) / acc
    error = output.log_mean.exp() - (middle - half + depth) / speed
    assert error.abs()[hit].mean() < 0.01


def test_empty_rays_show_the_background(sphere):
    field, grid = sphere
    rays = random_rays(5)
    away = replace(rays, directions=-rays.directions)
    output = march.march(*march.pack_field(field), grid, options_for(grid), away, rays.viewdirs)
    assert (output.acc == 0).all() and (output.median == -1).all()
    torch.testing.assert_close(output.rgb, torch.full((5, 3), 0.7))


@pytest.mark.parametrize("contraction", [False, True])
def test_odd_rays_do_no_harm(contraction):
    field = make_field(contraction)
    grid = random_grid(field)
    rays = random_rays(6)
    origins, directions, far = rays.origins.clone(), rays.directions.clone(), rays.far.clone()
    origins[0], origins[1], directions[2], directions[3, 0] = torch.nan, 1e30, 0.0, torch.inf
    far[4] = 0.0
    odd = replace(rays, origins=origins, directions=directions, far=far)
    arguments = (*march.pack_field(field), grid, options_for(grid))
    output = march.march(*arguments, odd, rays.viewdirs)
    expected = march.march(*arguments, rays, rays.viewdirs)
    assert torch.equal(output.rgb[5], expected.rgb[5])
    assert output.acc[4] == 0
    assert len(march.march(*arguments, rays[:0], rays.viewdirs[:0]).rgb) == 0


# The grid.


def test_thin_surfaces_are_found_and_jumps_never_enter_occupied_cells():
    def opacity(points):
        """A wire along x, as thin as a cell's eighth, whose density falls off within a cell."""
        distance = (points[:, 1:] - 0.4876).norm(dim=-1) * 32
        return torch.exp(-20 * distance)

    occupied = find_occupied(opacity, 32)
    assert occupied[:, 15, 15].all() and occupied.float().mean() < 0.01
    skip = MarchGrid.from_cells(occupied, torch.zeros(3), 1.0, False).skip
    x, y, z = torch.meshgrid(*3 * [torch.arange(32)], indexing="ij")
    places = occupied.nonzero()
    for cell in torch.randint(32, (50, 3)):
        nearest = (places - cell).abs().amax(dim=-1).min()
        assert skip[tuple(cell)] == nearest


def test_not_a_number_counts_as_occupied_and_nothing_is_all_empty():
    assert find_occupied(lambda points: torch.full((len(points),), torch.nan), 4).all()
    empty = find_occupied(lambda points: torch.zeros(len(points)), 4)
    assert (MarchGrid.from_cells(empty, torch.zeros(3), 1.0, False).skip == 255).all()


def test_cells_are_looked_for_among_some_cells_alone():
    queried = []

    def opacity(points):
        queried.append(points)
        return (points[:, 0] > 0.5).float()

    among = torch.zeros(8, 8, 8, dtype=torch.bool)
    among[2:6, 1:3, 4] = True
    occupied = find_occupied(opacity, 8, among)
    expected = among.clone()
    expected[:4] = False
    assert torch.equal(occupied, expected)
    assert among[tuple((8 * torch.cat(queried)).long().T)].all()


def test_halved_cells_cover_the_same_space():
    cells = torch.rand(4, 4, 4) < 0.5
    points = torch.rand(500, 3)
    fine = halved(cells)
    assert fine.shape == (8, 8, 8)
    assert torch.equal(cells[tuple((4 * points).long().T)], fine[tuple((8 * points).long().T)])


@pytest.mark.parametrize("finest,resolution", [(256, 8), (512, 16)])
def test_grids_of_fine_fields_have_cells_half_as_wide(monkeypatch, finest, resolution):
    monkeypatch.setattr(march, "RESOLUTION", 8)
    field = make_field(levels=hash_grid.make_levels(4, finest, 10))
    marcher = march.Marcher(field, march.Footprints(0.02, None), 0.0, False)
    assert marcher.grid.skip.shape == 3 * (resolution,)
    assert marcher.options.step == pytest.approx(
        1 / (march.STEPS_PER_CELL[False] * resolution))


@pytest.mark.parametrize("contraction", [False, True])
def test_densities_of_the_grid_are_those_of_the_field(contraction):
    field = make_field(contraction)
    packed, _ = march.pack_field(field)
    points, stds = torch.rand(700, 3), 0.05 * torch.rand(700)
    result = march_numba.density_at(points.numpy(), stds.numpy(), packed)
    side = float((field.box[1] - field.box[0]).max())
    means = ((points - 0.5) * side + field.box.mean(dim=0))[:, None, None]
    means, stds = (means, (stds * side)[:, None, None])
    if contraction:  # Inside the unit ball, nothing changes.
        inside = means[:, 0, 0].norm(dim=-1) < 0.99
        assert inside.sum() > 30
    else:
        inside = ((means[:, 0, 0] > field.box[0]) & (means[:, 0, 0] < field.box[1])).all(dim=-1)
    with torch.no_grad():
        expected = field(march.coord.IsotropicGaussians(means, stds), with_rgb=False).density[:, 0]
    torch.testing.assert_close(torch.from_numpy(result)[inside], expected[inside], rtol=1e-4,
                               atol=1e-6)


def test_a_marcher_of_a_field_of_fog_sees_it_everywhere():
    field = make_field(True, density_bias=0.0)
    marcher = Marcher(field, Footprints(0.01, torch.tensor([[0.0, 0.0, 3.0]])), 1.0, False)
    assert 0.4 < marcher.grid.occupied_fraction < 0.6  # Of the cube, the ball of radius 2.
    rays = random_rays(3, near=0.0, far=1e6)
    assert (marcher(rays, rays.viewdirs).acc == 1).all()
