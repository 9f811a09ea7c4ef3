"""NeRV: reflectance, normals, direct and one-bounce light, and the model's three stages."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

import loss
import train
from config import get_config
from fields.base import Field, FieldOutput
from fields.hash import HashField
from fields.mlp import MLPField
from model import build_model
from procedural import lit_scene, tracing
from procedural.solids import Box, Part, Sphere, plain
from relighting import shading
from relighting.components import COMPONENTS
from relighting.lights import environment_lights, incident, luminance, point_lights, tone_map
from relighting.nerv import NORMAL_STEP
from rendering import build_occupancy, render_image
from runtime.randomness import BatchRandom
from structures import Batch, Rays, Shading
from tests.analytic import ball, brick, union

DOUBLE = torch.float64
UP = torch.tensor([0.0, 0.0, 1.0])
FIELDS, SHADE_AT = ("hash", "mlp"), ("samples", "surface")
both_fields = pytest.mark.parametrize("field", FIELDS)
both_shade_at = pytest.mark.parametrize("shade_at", SHADE_AT)

GREY = plain((0.7, 0.7, 0.7))
BALL = Part(Sphere(0.5), (0.0, 0.0, 0.6), GREY, gloss=0.5)
FLOOR = Part(Box((1.8, 1.8, 0.1)), (0.0, 0.0, -0.1), GREY, gloss=0.5)
ROUGHNESS = 0.7  # The demo scene's of such a gloss.


def random_directions(count, dtype=torch.float32, above=True):
    found = normalize(torch.randn(count, 3, dtype=dtype), dim=-1)
    return torch.cat([found[:, :2], found[:, 2:].abs()], dim=-1) if above else found


# Reflectance.


def ndf(roughness, cosine):
    """The normal distribution function, from specular reflection straight back."""
    back = torch.stack([(1 - cosine**2).sqrt(), 0 * cosine, cosine], dim=-1)
    found = shading.brdf(UP.double(), back, back, torch.zeros(3, dtype=DOUBLE),
                      torch.tensor([roughness], dtype=DOUBLE))[:, 0]
    k = roughness**2 / 2
    return found * 4 * (cosine * (1 - k) + k) ** 2 / shading.F0


@pytest.mark.parametrize("roughness", [shading.MIN_ROUGHNESS, 0.3, 0.6, 1.0])
def test_the_ndf_is_normalised(roughness):
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(300))
    u = (nodes + 1) / 2
    angle, width = math.pi / 2 * u**3, 3 * math.pi / 4 * u**2 * weights  # Dense near 0.
    covered = ndf(roughness, angle.cos()) * angle.cos() * angle.sin()
    assert float(2 * math.pi * (covered * width).sum()) == pytest.approx(1, abs=1e-6)


def test_the_brdf_is_reciprocal():
    light_dirs, view_dirs = random_directions(500), random_directions(500)
    albedo, roughness = torch.rand(500, 3), 0.1 + 0.9 * torch.rand(500, 1)
    there = shading.brdf(UP, light_dirs, view_dirs, albedo, roughness)
    back = shading.brdf(UP, view_dirs, light_dirs, albedo, roughness)
    torch.testing.assert_close(there, back, rtol=1e-4, atol=1e-6)
    assert (there > 0).all()


def directional_albedo(roughness, degrees, albedo):
    """The integral of f cos over light directions."""
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(300))
    cosine, width = (nodes + 1) / 2, weights / 2
    azimuth = math.pi * (1 + nodes**3)  # Dense where highlights are.
    sine = (1 - cosine**2).sqrt()[:, None]
    light_dirs = torch.stack([sine * azimuth.cos(), sine * azimuth.sin(),
                            cosine[:, None].expand(-1, 300)], dim=-1)
    angle = math.radians(degrees)
    view_dirs = torch.tensor([math.sin(angle), 0, math.cos(angle)], dtype=DOUBLE)
    value = shading.brdf(UP.double(), light_dirs, view_dirs, torch.full((1,), albedo, dtype=DOUBLE),
                      torch.tensor([roughness], dtype=DOUBLE))[..., 0]
    return float(((value * cosine[:, None] * width[:, None]) @ (3 * math.pi * nodes**2 * weights))
                 .sum())


@pytest.mark.parametrize("roughness", [shading.MIN_ROUGHNESS, 0.2, 0.4, 0.7, 1.0])
@pytest.mark.parametrize("albedo", [0.0, 1.0])
def test_the_brdf_conserves_energy(roughness, albedo):
    albedos = [directional_albedo(roughness, degrees, albedo)
              for degrees in (0, 30, 50, 70, 80, 85, 87, 89)]
    assert all(0 < value < 1 for value in albedos)


def test_albedo_of_a_smooth_white_surface_at_normal_incidence():
    """F0 is specular. The diffuse part is transmitted twice: at normal incidence, and averaged over
    the hemisphere, where the mean Fresnel reflectance is 1 / 21 of the way from F0 to 1."""
    found = directional_albedo(shading.MIN_ROUGHNESS, 0, 1.0)
    assert found == pytest.approx(0.04 + 0.96**2 * (1 - 1 / 21), rel=1e-3)


@pytest.mark.parametrize("roughness", [0.1, 0.45, 1.0])
def test_the_brdf_equals_the_demo_tracers(roughness):
    normals = random_directions(3000, DOUBLE, above=False)
    light_dirs, view_dirs = (
        normalize(normals + 0.99 * random_directions(3000, DOUBLE, False), dim=-1)
        for _ in range(2))
    arguments = (normals, light_dirs, view_dirs, torch.rand(3000, 3, dtype=DOUBLE),
                 torch.full((3000, 1), roughness, dtype=DOUBLE))
    torch.testing.assert_close(shading.brdf(*arguments), lit_scene.reference_brdf(*arguments))


def test_highlights_are_accurate_in_float32():
    alpha = shading.MIN_ROUGHNESS**2
    light_dirs = random_directions(2000, DOUBLE)
    light_dirs = light_dirs[light_dirs[:, 2] > 0.2]
    near = normalize(UP.double() + alpha * torch.randn_like(light_dirs), dim=-1)
    view_dirs = 2 * (near * light_dirs).sum(-1, keepdim=True) * near - light_dirs
    arguments = (UP, light_dirs, view_dirs, torch.zeros(3), torch.tensor([shading.MIN_ROUGHNESS]))
    exact = shading.brdf(*(v.double() for v in arguments))
    single = shading.brdf(*(v.float() for v in arguments))
    torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=0)


def grazing():
    angle = torch.tensor([math.pi / 2, math.pi / 2 - 1e-4, 2.0])
    return torch.stack([angle.sin(), 0 * angle, angle.cos()], dim=-1)


@pytest.mark.parametrize("normals,light_dirs,view_dirs", [
    (UP, grazing(), -grazing() * torch.tensor([1.0, 1, -1])),
    (UP, grazing(), grazing()),
    (UP, random_directions(9), UP),
    (UP, UP, UP),
    (UP, random_directions(9, above=False), None),
    (0 * UP, random_directions(9), random_directions(9)),
], ids=["mirrored", "grazing", "upright", "straight back", "opposite", "zero normals"])
@pytest.mark.parametrize("roughness", [shading.MIN_ROUGHNESS, 1.0])
def test_the_brdf_and_its_gradients_are_finite_at_worst_directions(
    normals, light_dirs, view_dirs, roughness
):
    view_dirs = -light_dirs if view_dirs is None else view_dirs
    arguments = [v.clone().requires_grad_() for v in (
        normals, light_dirs, view_dirs, torch.rand(3), torch.tensor([roughness]))]
    value = shading.brdf(*arguments)
    value.sum().backward()
    assert torch.isfinite(value).all() and (value >= 0).all()
    assert all(torch.isfinite(v.grad).all() for v in arguments)


@pytest.mark.parametrize("roughness", [shading.MIN_ROUGHNESS, 1.0])
def test_the_brdf_is_bounded_for_opposite_directions(roughness):
    light_dirs = random_directions(50)
    k = roughness**2 / 2
    highest = 1 / (math.pi * roughness**4) / (4 * k**2) + 1 / math.pi
    value = shading.brdf(UP, light_dirs, -light_dirs, torch.ones(3), torch.tensor([roughness]))
    assert value.max() <= highest


@pytest.mark.parametrize("roughness", [shading.MIN_ROUGHNESS, 0.7])
def test_the_brdf_ignores_the_length_of_normals(roughness):
    light_dirs, view_dirs = random_directions(200), random_directions(200)
    wanted, found = (shading.brdf(length * UP, light_dirs, view_dirs, torch.ones(3),
                               torch.tensor([roughness])) for length in (1.0, 0.01))
    torch.testing.assert_close(found, wanted)


# Directions.


@pytest.mark.parametrize("moved", [False, True])
def test_hemisphere_directions_are_cosine_distributed(moved):
    normals = random_directions(7, above=False)
    shift = torch.rand(7, 2) if moved else None
    found = shading.cosine_hemisphere(normals, 2000, shift)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(7, 2000))
    cosine = (found * normals[:, None]).sum(dim=-1)
    assert (cosine > 0).all()
    torch.testing.assert_close(cosine.mean(dim=1), torch.full((7,), 2 / 3), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.mean(dim=1), 2 / 3 * normals, rtol=0, atol=3e-3)
    square = normals[:, :, None] * normals[:, None]
    torch.testing.assert_close(found.mT @ found / 2000, 0.25 * (torch.eye(3) + square),
                               rtol=0, atol=3e-3)


def test_shifts_rotate_directions_about_their_normals():
    normals, turn = random_directions(5, above=False), torch.tensor([0.1, 0.25, 0.5, 0.8, 0.0])
    turn = turn[:, None]
    shift = torch.cat([turn, torch.full_like(turn, 0.5)], dim=-1)
    still = shading.cosine_hemisphere(normals, 9)
    found = shading.cosine_hemisphere(normals, 9, shift)
    along = (still * normals[:, None]).sum(-1, keepdim=True)
    torch.testing.assert_close((found * normals[:, None]).sum(-1, keepdim=True), along)
    flat, flat_found = (v - along * normals[:, None] for v in (still, found))
    length = (flat**2).sum(-1)
    cosine, sine = (flat * flat_found).sum(-1), torch.linalg.cross(flat, flat_found)
    sine = (sine * normals[:, None]).sum(-1)
    angle = (2 * math.pi * turn).expand(5, 9)
    torch.testing.assert_close(cosine, angle.cos() * length, rtol=0, atol=1e-5)
    torch.testing.assert_close(sine.abs(), (angle.sin() * length).abs(), rtol=0, atol=1e-5)
    assert len((sine * angle.sin())[:2].sign().unique()) == 1


# Normals.


AXES = torch.tensor([1.0, 0.7, 1.4])


def on_an_ellipsoid(axes, count=60):
    """Random points on an ellipsoid and their normals."""
    points = axes * random_directions(count, above=False)
    return points, normalize(points / axes**2, dim=-1)


def log_density(axes, sharpness=20.0):
    return lambda means: -sharpness * ((means / axes).norm(dim=-1) - 1)


def normals_by(way, log_density, points):
    if way == "difference":
        return shading.finite_difference_normals(log_density, points, 1e-2)
    return shading.gradient_normals(log_density, points)


both_methods = pytest.mark.parametrize("way", ["difference", "gradient"])


@both_methods
@pytest.mark.parametrize("axes", [torch.full((3,), 0.8), AXES], ids=["sphere", "ellipsoid"])
def test_normals_of_a_solid(way, axes):
    points, normals = on_an_ellipsoid(axes)
    found = normals_by(way, log_density(axes), points)
    torch.testing.assert_close(found, normals, rtol=0, atol=1e-3)


@both_methods
def test_constant_density_has_short_normals(way):
    points = torch.randn(4, 3)
    slope = torch.zeros(3, requires_grad=True)
    found = normals_by(way, lambda means: means @ slope + 5, points)
    assert (found.norm(dim=-1) < 1e-2).all()
    found.sum().backward()
    assert torch.isfinite(slope.grad).all()


@both_methods
def test_gradients_flow_through_normals_to_the_density(way):
    points = on_an_ellipsoid(AXES)[0].double()
    towards, found = random_directions(60, DOUBLE, above=False), []
    for normals in (lambda axes: normals_by(way, log_density(axes), points),
                    lambda axes: normalize(points / axes**2, dim=-1)):
        axes = AXES.double().requires_grad_()
        (normals(axes) * towards).sum().backward()
        found.append(axes.grad)
    torch.testing.assert_close(*found, rtol=3e-3, atol=1e-3)


def test_gradient_normals_work_without_grad_mode():
    points, normals = on_an_ellipsoid(AXES)
    with torch.no_grad():
        found = shading.gradient_normals(log_density(AXES), points)
    torch.testing.assert_close(found, normals, rtol=0, atol=1e-5)
    assert not found.requires_grad


# Incident and reflected light.


def test_blockers_behind_a_light_do_not_hide_it():
    # No blocker, an opaque one at 2, and a half-transparent one at 3.
    visibility = shading.Visibility(
        torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([[0.0, 2.0, 3.0]]))
    for distance, wanted in ((1.0, [1, 1, 1]), (2.5, [1, 0, 1]), (4.0, [1, 0, 0.5]),
                             (math.inf, [1, 0, 0.5])):
        assert visibility.of_light_at(torch.tensor(distance))[0].tolist() == wanted


class Constant(nn.Module):
    """A constant reflectance field."""

    make_gaussians = staticmethod(MLPField.make_gaussians)

    def __init__(self, albedo, roughness):
        super().__init__()
        channel = (roughness - shading.MIN_ROUGHNESS) / (1 - shading.MIN_ROUGHNESS)
        self.register_buffer("channels", torch.tensor([*albedo, channel]))

    def forward(self, gaussians, viewdirs=None):
        return FieldOutput(None, self.channels.expand(*gaussians.means.shape[:2], 4))


class Exact(nn.Module):
    """Exact visibility of the demo scene's parts, by its own ray tracer."""

    make_gaussians = staticmethod(MLPField.make_gaussians)

    def __init__(self, *parts, reach=1.0):
        super().__init__()
        self.parts, self.reach = parts, reach

    def forward(self, gaussians, directions):
        depth, normals = signed_distance(gaussians.means, self.parts)
        # From the surface itself, where a point is near it.
        lifted = gaussians.means + (1e-4 - depth) * normals
        start = torch.where(depth.abs() < 0.1, lifted, gaussians.means).expand_as(directions)
        distance = tracing.intersect(start, directions, self.parts).distance
        transmittance = (distance.isinf() & (depth[..., 0] > -0.1)).float()
        distance = torch.where(distance.isfinite() & (depth[..., 0] > -0.1), distance, 0.0)
        return FieldOutput(None, torch.stack([transmittance, distance / self.reach], dim=-1))


def signed_distance(points, parts):
    """Signed distance `[..., 1]` of points to parts, and normals `[..., 3]` there."""
    steps = 1e-3 * torch.eye(3)
    after, before = (tracing.distance_to_surface(points[..., None, :] + s * steps, parts)
                     for s in (1, -1))
    depth = tracing.distance_to_surface(points, parts)[..., None]
    return depth, normalize(after - before, dim=-1)


def exact_shading(*parts, albedo=(0.7, 0.7, 0.7), roughness=ROUGHNESS):
    return shading.SurfaceShading(Constant(albedo, roughness), Exact(*parts))


def patches(points, normals):
    """The same surface points as records of the model and of the tracer."""
    count = len(points)
    eye = normalize(normals + 0.7 * random_directions(count, above=False), dim=-1)
    albedo, roughness = torch.full((count, 3), 0.7), torch.full((count, 1), ROUGHNESS)
    return (shading.SurfacePoints(points, torch.zeros(count), normals, eye, albedo, roughness),
            lit_scene.Patch(points, normals, albedo, roughness, eye))


def on_the_floor(count):
    points = torch.cat([3 * torch.rand(count, 2) - 1.5, torch.zeros(count, 1)], dim=-1)
    return points, UP.expand(count, 3)


def on_the_ball(count):
    normals = random_directions(count, above=False)
    return torch.tensor(BALL.centre) + BALL.shape.radius * normals, normals


def assert_mostly_close(found, wanted):
    """At least 95 % of rows are close: rounding decides at the edges of shadows."""
    close = torch.isclose(found, wanted, rtol=1e-4, atol=1e-5).all(dim=-1)
    assert close.float().mean() >= 0.95


def for_all(lights, count):
    return lights.map(lambda x: x.expand(count, *x.shape))


PLACE, COLOUR = torch.tensor([[1.0, -0.5, 3.0]]), torch.tensor([[40.0, 60, 20]])
ANOTHER_PLACE, ANOTHER_COLOUR = torch.tensor([[-1.5, 1.0, 2.0]]), torch.tensor([[20.0, 5, 30]])


@pytest.mark.parametrize("where", [on_the_floor, on_the_ball])
def test_direct_light_equals_the_demo_tracers(where):
    points, patch = patches(*where(400))
    places, colours = torch.cat([PLACE, ANOTHER_PLACE]), torch.cat([COLOUR, ANOTHER_COLOUR])
    lights = for_all(point_lights(places, colours), 400)
    found, visibility = exact_shading(BALL, FLOOR).direct_light(points, lights)
    wanted, arrives = lit_scene.direct(patch, lit_scene.SceneLights(places, colours, False),
                                         (BALL, FLOOR))
    assert_mostly_close(found, wanted)
    offset = places - points.positions[:, None]
    bright = (offset * points.normals[:, None]).sum(-1).clamp(min=0) / offset.norm(dim=-1) ** 3
    bright = bright * (colours @ torch.tensor([0.2126, 0.7152, 0.0722]))
    there = bright.sum(-1) > 0
    wanted = (bright * arrives).sum(-1)[there] / bright.sum(-1)[there]
    assert_mostly_close(visibility[there], wanted[:, None])
    assert 0.2 < arrives.float().mean() < 0.95


def test_direct_light_is_additive():
    points, _ = patches(*on_the_floor(100))
    one, other = point_lights(PLACE, COLOUR), point_lights(ANOTHER_PLACE, ANOTHER_COLOUR)
    together = point_lights(torch.cat([PLACE, ANOTHER_PLACE]),
                            torch.cat([COLOUR, ANOTHER_COLOUR]))
    shader = exact_shading(BALL, FLOOR)
    parts = [shader.direct_light(points, for_all(lights, 100))[0] for lights in (one, other)]
    torch.testing.assert_close(shader.direct_light(points, for_all(together, 100))[0], sum(parts))
    dark = replace(other, colours=torch.zeros(1, 3))
    found, visibility = shader.direct_light(points, for_all(dark, 100))
    assert (found == 0).all() and torch.isfinite(visibility).all()


def test_direct_light_of_an_environment_equals_the_demo_tracers():
    environment = torch.rand(6, 12, 3)
    points, patch = patches(*on_the_floor(60))
    lights = for_all(environment_lights(environment, 0.7), 60)
    found, visibility = exact_shading(BALL).direct_light(points, lights)
    theirs = lit_scene.SceneLights(*lit_scene.environment_texels(environment, 0.7), distant=True)
    assert_mostly_close(found, lit_scene.direct(patch, theirs, (BALL,))[0])
    assert (visibility > 0).all() and visibility.min() < 0.99


def test_a_light_before_the_blocker_is_visible():
    shader = exact_shading(BALL)
    lights = point_lights(torch.tensor([[0.0, 0, 0.05]]), torch.ones(1, 3))
    points, _ = patches(torch.zeros(1, 3), UP[None])
    wanted = 400 * lit_scene.reference_brdf(
        UP, UP, points.view_dirs, points.albedo, points.roughness)
    torch.testing.assert_close(shader.direct_light(points, for_all(lights, 1))[0], wanted)
    far = replace(lights, places=torch.tensor([[0.0, 0, 3]]))
    assert (shader.direct_light(points, for_all(far, 1))[0] == 0).all()


def surface_of(shader, *parts, near=1e-3):
    """A function to the nearest `SurfacePoints` of exact surfaces."""
    def surface_at(positions, variances, view_dirs):
        depth, normals = signed_distance(positions, parts)
        assert depth.abs().max() < near
        return shader.surface_points(positions - depth * normals, variances, normals, view_dirs)

    return surface_at


@pytest.mark.parametrize("distant", [False, True])
def test_indirect_light_equals_the_demo_tracers(distant):
    """At least a hundredth of our 10,000 directions and of the tracer's 200,000 random ones hit lit
    surfaces, so both are accurate to a percent or two."""
    points, patch = patches(*towards_the_ball())
    if distant:
        environment = 0.2 + torch.rand(2, 4, 3)
        ours = environment_lights(environment)
        theirs = lit_scene.SceneLights(*lit_scene.environment_texels(environment), distant=True)
    else:
        ours = point_lights(PLACE, COLOUR)
        theirs = lit_scene.SceneLights(PLACE, COLOUR, False)
    shader = exact_shading(BALL, FLOOR)
    surface_at = surface_of(shader, BALL, FLOOR)
    found = shader.indirect_light(points, for_all(ours, 4), surface_at, 10_000)
    wanted = lit_scene.indirect(patch, theirs, torch.rand(4, 200_000, 3), (BALL, FLOOR))
    assert (wanted > 0.001).all()
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0)


def towards_the_ball():
    """Points and normals: two on the floor at the ball's lit side, two under the ball."""
    below = normalize(torch.tensor([[0.3, -0.2, -0.6], [-0.5, 0.5, -0.4]]), dim=-1)
    points = torch.cat([torch.tensor([[1.0, -0.5, 0.0], [0.8, 0.3, 0.0]]),
                        torch.tensor(BALL.centre) + 0.5 * below])
    return points, torch.cat([UP.expand(2, 3), below])


class Glowing(shading.SurfaceShading):
    """Surfaces that emit the same light everywhere."""

    def direct_light(self, points, lights):
        radiance = torch.tensor([1.0, 2.0, 0.5]).expand(len(points.positions), 3)
        return shading.DirectLight(radiance, None)


@pytest.mark.parametrize("place", [(0.0, 0.0), (0.6, 0.0), (0.3, -0.7)])
def test_a_glowing_ball_lights_a_floor_by_its_form_factor(place):
    """(r / d)^2 cos for a ball fully above the horizon, times the Fresnel transmission of the light
    and view directions."""
    position = torch.tensor([[*place, 0.0]])
    small = Part(Sphere(0.2), BALL.centre, GREY)
    offset = torch.tensor(BALL.centre) - position
    factor = float(0.04 / (offset**2).sum() * offset[0, 2] / offset.norm())
    sent = []
    for albedo in (1.0, 0.0):
        shader = Glowing(Constant((0.5,) * 3, ROUGHNESS), Exact(small))
        points = shading.SurfacePoints(position, torch.zeros(1), UP[None], UP[None],
                             torch.full((1, 3), albedo), torch.ones(1, 1))
        lights = for_all(point_lights(PLACE, COLOUR), 1)
        sent.append(shader.indirect_light(points, lights, surface_of(shader, small), 40_000)[0])
    let_in = (1 - shading.F0) * (1 - (1 - float(offset[0, 2] / offset.norm())) ** 5)
    wanted = (1 - shading.F0) * let_in * factor * torch.tensor([1.0, 2.0, 0.5])
    torch.testing.assert_close(sent[0] - sent[1], wanted, rtol=0.02, atol=0)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bounces", [1, 8, 64])
def test_randomly_shifted_directions_are_unbiased(bounces, place):
    count = 32_000 // bounces
    position, normal = (v[place].expand(count, 3) for v in towards_the_ball())
    points, _ = patches(position, normal)
    points = points._replace(view_dirs=points.view_dirs[:1].expand(count, 3))
    lights = for_all(point_lights(PLACE, COLOUR), count)
    shader = exact_shading(BALL, FLOOR)
    surface_at = surface_of(shader, BALL, FLOOR)
    found = shader.indirect_light(points, lights, surface_at, bounces, torch.rand(count, 2))
    wanted = shader.indirect_light(shading.SurfacePoints(*(v[:1] for v in points)), lights[:1],
                                 surface_at, 20_000)[0]
    deviation = found.std(dim=0) / math.sqrt(count)
    assert (0 < deviation).all() and (deviation < 0.1 * wanted).all()
    assert ((found.mean(dim=0) - wanted).abs() < 4 * deviation + 0.005 * wanted).all()


def test_indirect_light_trains_only_the_receiver_and_visibility():
    """The reflecting surfaces get no gradient; visibility and the receiver's albedo do."""
    points, _ = patches(*on_the_floor(20))
    transmittance = torch.full((), 0.4, requires_grad=True)
    there = torch.full((3,), 0.5, requires_grad=True)
    here = points.albedo.clone().requires_grad_()

    class Half(nn.Module):
        make_gaussians = staticmethod(MLPField.make_gaussians)

        def forward(self, gaussians, directions):
            values = transmittance.expand(directions.shape[:-1])
            return FieldOutput(None, torch.stack([values, torch.full_like(values, 0.3)], dim=-1))

    shader = shading.SurfaceShading(Constant((0.5,) * 3, ROUGHNESS), Half())

    def surface_at(positions, variances, view_dirs):
        one = torch.ones(len(positions), 1)
        return shading.SurfacePoints(
            positions, variances, UP * one, view_dirs, there * one, ROUGHNESS * one)

    shader.indirect_light(points._replace(albedo=here), for_all(point_lights(PLACE, COLOUR), 20),
                        surface_at, 8).sum().backward()
    assert there.grad is None
    assert transmittance.grad < 0 and (here.grad > 0).all()


# The model.


BOX = torch.tensor([[-2.0] * 3, [2.0] * 3])


def make_config(field="hash", shade_at="samples", *words):
    return get_config(["--preset", "debug", "--model", "nerv", "--dataset_name", "nerv",
                       "--precision", "fp32", "--nerv_field", field, "--shade_at", shade_at,
                       *words])


def make_model(*words, box=BOX):
    return build_model(make_config(*words), "cpu", box)


def rays_towards(origins, targets):
    directions = normalize(targets - origins, dim=-1)
    one = torch.ones(len(origins), 1)
    return Rays(origins=origins, directions=directions, viewdirs=directions, radii=0.002 * one,
                near=2 * one, far=6 * one, lossmult=one, cam_idx=torch.zeros(len(one), 1).long())


def some_rays(count, lights=None):
    origins = 4 * random_directions(count)
    rays = rays_towards(origins, 0.8 * torch.rand(count, 3) - 0.4)
    return rays.with_lights(point_lights(PLACE, COLOUR) if lights is None else lights)


def some_batch(count, lights=None):
    return Batch(rays=some_rays(count, lights), rgb=torch.rand(count, 3),
                 batch_index=torch.arange(count))


def test_mlp_normals_ignore_ripples_finer_than_samples():
    """A slab whose encoding ripples: sin(kx) of a Gaussian is damped by exp(-k^2 variance / 2)."""
    model, k = make_model("mlp"), 200.0

    def density(means, covs):
        ripple = 0.5 * torch.sin(k * means[..., 0]) * torch.exp(-0.5 * k**2 * covs[..., 0])
        return torch.exp(ripple - 30 * means[..., 2])

    model.density = density
    points = 0.1 * torch.randn(50, 3)
    normals = normalize(model.normals(points, torch.full((50,), 1e-8)), dim=-1)
    assert float(normals[:, 2].min()) > math.cos(math.radians(1))


class Solid(nn.Module):
    """A white solid of a signed distance; field: "hash" or "mlp", the field that it replaces."""

    needs_full_covariance = False

    def __init__(self, signed_distance, field, density=1000.0, softness=0.004):
        super().__init__()
        self.signed_distance, self.dense, self.softness = signed_distance, density, softness
        self.num_multisamples = int(field == "hash")
        self.make_gaussians = (HashField if field == "hash" else MLPField).make_gaussians
        self.size = nn.Linear(9, 9)

    def layers(self):
        return [self.size]

    def forward(self, gaussians, viewdirs=None, density_noise=None, with_rgb=True, appearance=None):
        means = gaussians.means[..., 0, :] if self.num_multisamples else gaussians.means
        density = self.dense * torch.sigmoid(-self.signed_distance(means) / self.softness)
        return FieldOutput(density, torch.ones_like(means) if with_rgb else None)


def solid_model(shape, field="mlp", shade_at="samples", *words, parts=(), **others):
    """A model with known geometry and the reflectance and visibility of the demo scene's parts."""
    model = make_model(field, shade_at, "--num_samples", "48", "--prop_samples", "64",
                       "--grid_finest", "2048", *words)
    model.field = Solid(shape, field, **others)
    model.proposals = nn.ModuleList([model.field])
    model.appearance.reflectance = Constant((0.7,) * 3, ROUGHNESS)
    model.appearance.visibility = Exact(*parts, reach=float(model.appearance.reach))
    model.progress.fill_(1)
    return model.eval()


SCENE = union(ball(BALL.centre, 0.5), brick([-1.8, -1.8, -0.2], [1.8, 1.8, 0.0]))


@both_fields
def test_marched_rays_end_at_the_first_surface(field):
    model = solid_model(ball([0.3, 0.0, 0.2], 0.8), field)
    origins = 1.7 * random_directions(300, above=False)
    origins = origins[(origins - torch.tensor([0.3, 0, 0.2])).norm(dim=-1) > 1]
    directions = random_directions(len(origins), above=False)
    directions[:80] = normalize(0.5 * directions[:80] - origins[:80], dim=-1)
    rays = rays_towards(origins, origins + directions).with_lights(point_lights(PLACE, COLOUR))
    marched = model.march(rays, origins, directions, None)
    part = Part(Sphere(0.8), (0.3, 0.0, 0.2), GREY)
    distance = tracing.intersect(origins, directions, (part,)).distance
    middle = torch.tensor([0.3, 0, 0.2]) - origins
    aside = (middle - (middle * directions).sum(-1, keepdim=True) * directions).norm(dim=-1)
    hit, missed = distance.isfinite() & (aside < 0.7), distance.isinf() & (
        (aside > 0.9) | ((middle * directions).sum(-1) < 0))
    assert hit.sum() > 50 and missed.sum() > 50
    assert marched.transmittance[hit].max() < 0.01
    torch.testing.assert_close(marched.distance[hit], distance[hit], rtol=0, atol=0.06)
    assert (marched.distance[hit] - distance[hit]).mean().abs() < 0.02
    assert marched.transmittance[missed].min() > 0.99


def test_secondary_rays_end_at_the_box():
    model = make_model("mlp", "samples", box=torch.tensor([[-1.0, -2.0, 0.0], [1.0, 3.0, 1.5]]))
    low, high = model.box
    origins = low + (high - low) * (0.01 + 0.98 * torch.rand(200, 3))
    directions = random_directions(200, above=False)
    directions[:3] = torch.eye(3)
    ends = origins + model.distance_to_box(origins, directions) * directions
    assert (torch.stack([(ends - low).abs(), (ends - high).abs()]).amin(0).amin(-1) < 1e-5).all()
    assert (ends > low - 1e-5).all() and (ends < high + 1e-5).all()
    assert float(model.appearance.reach) == pytest.approx(math.sqrt(4 + 25 + 2.25))


@both_fields
@both_shade_at
def test_a_lit_ball_over_a_floor_equals_the_demo_tracers(field, shade_at):
    model = solid_model(SCENE, field, shade_at, "--bounce_directions", "200", parts=(BALL, FLOOR))
    targets = torch.cat([0.7 * (torch.rand(24, 3) - 0.5) + torch.tensor(BALL.centre),
                         2 * torch.rand(24, 3) - 1])
    rays = rays_towards(3.5 * normalize(random_directions(48) + 0.5 * UP, dim=-1), targets)
    lights = torch.cat([PLACE, ANOTHER_PLACE]), torch.cat([COLOUR, ANOTHER_COLOUR])
    hit = tracing.intersect(rays.origins, rays.directions, (BALL, FLOOR))
    # Exclude pixels near edges of objects and shadows, where the density is too soft.
    facing = -(hit.normal * rays.directions).sum(-1)
    beside = rays.directions[:, None] + 0.03 * random_directions(40, above=False)
    beside = tracing.intersect(rays.origins[:, None].expand_as(beside), beside, (BALL, FLOOR))
    in_the_middle = (facing > 0.3) & (beside.part == hit.part[:, None]).all(-1) & (
        (beside.normal * hit.normal[:, None]).sum(-1) > 0.8).all(-1)
    theirs = lit_scene.Patch(hit.point, hit.normal, torch.full((48, 3), 0.7),
                               torch.full((48, 1), ROUGHNESS), -rays.directions)
    towards = lights[0] - hit.point[:, None]
    around = 0.06 * random_directions(40, above=False)
    start = hit.point[:, None] + 1e-3 * hit.normal[:, None]
    shadows = tracing.occluded(start[:, :, None], towards[:, :, None] + around, (BALL, FLOOR))
    flat = (hit.normal[:, None] * normalize(towards, dim=-1)).sum(-1).abs() < 0.15
    clear = in_the_middle & ~(flat | (shadows.any(-1) & ~shadows.all(-1))).any(-1)
    assert clear.sum() > 15
    output = model(rays.with_lights(point_lights(*lights)))[-1]
    found, few = output.extras, lit_scene.SceneLights(*lights, False)
    direct, arrives = lit_scene.direct(theirs, few, (BALL, FLOOR))
    indirect = lit_scene.indirect(theirs, few, torch.rand(48, 4000, 3), (BALL, FLOOR))
    assert 0 < arrives[clear].float().mean() < 1
    assert output.acc[clear].min() > 0.99
    torch.testing.assert_close(found["shading_normals"][clear], hit.normal[clear], rtol=0, atol=0.1)
    torch.testing.assert_close(found["direct"][clear], direct[clear], rtol=0.1, atol=0.03)
    torch.testing.assert_close(found["indirect"][clear], indirect[clear], rtol=0.15, atol=0.02)
    torch.testing.assert_close(output.rgb[clear], tone_map(direct + indirect)[clear],
                               rtol=0, atol=0.03)
    torch.testing.assert_close(found["albedo"][clear], torch.full((clear.sum(), 3), 0.7),
                               rtol=0, atol=0.01)


@both_fields
@both_shade_at
def test_marched_shadows_equal_exact_visibility(field, shade_at):
    """For most pixels, whatever the visibility field predicts."""
    model = solid_model(SCENE, field, shade_at, parts=(BALL, FLOOR))
    targets = torch.cat([1.6 * torch.rand(80, 2) - 0.8, torch.zeros(80, 1)], dim=-1)
    rays = rays_towards(targets + torch.tensor([0.5, -2.5, 3.0]), targets)
    rays = rays.with_lights(point_lights(torch.cat([PLACE, ANOTHER_PLACE]),
                                   torch.cat([COLOUR, ANOTHER_COLOUR])))
    exact = model(rays)[-1].extras
    model.appearance.visibility = Exact(Part(Sphere(0.01), (9.0, 0.0, 0.0), GREY),
                                        reach=float(model.appearance.reach))
    unshaded = model(rays)[-1].extras
    how = Shading.from_config(make_config(field, shade_at, "--march_shadows"))
    marched = model(rays, shading=how)[-1].extras
    alike = ((marched["direct"] - exact["direct"]).abs() < 0.03 + 0.05 * exact["direct"]).all(-1)
    shaded = exact["visibility"][:, 0] < 0.9
    assert shaded.sum() > 10 and alike.float().mean() > 0.9 and alike[shaded].float().mean() > 0.8
    assert unshaded["direct"][shaded].mean() > 1.3 * marched["direct"][shaded].mean()


def test_marched_blockers_behind_a_light_do_not_hide_it():
    model = solid_model(SCENE, "mlp", "surface", "--march_shadows", parts=(BALL, FLOOR))
    rays = rays_towards(torch.tensor([[2.0, 2.5, 1.5]]), torch.tensor([[0.0, 0.3, 0.0]]))
    for height, arrives in ((0.08, 1.0), (3.0, 0.0), (-3.0, 0.0)):
        light = point_lights(torch.tensor([[0.0, 0.3, height]]), torch.ones(1, 3))
        found = model(rays.with_lights(light))[-1].extras["visibility"].detach()
        assert float(found) == pytest.approx(arrives, abs=0.02)


@both_fields
def test_exact_visibility_has_no_error(field):
    shape, part = ball([0.0, 0.0, 0.0], 1.0), Part(Sphere(1.0), (0.0, 0.0, 0.0), GREY)
    model = solid_model(shape, field, parts=(part,)).train()
    output = model(some_rays(150), 0.5)[-1]
    assert output.visibility_error.median() < 0.01
    model.appearance.visibility = Exact(Part(Sphere(0.01), (9.0, 0.0, 0.0), GREY))
    output = model(some_rays(150), 0.5)[-1]
    assert output.visibility_error.mean() > 0.1


class Recording(Exact):
    """Records its queries, and returns distances multiplied by `stretch`."""

    def __init__(self, *parts, stretch=1.0, **others):
        super().__init__(*parts, **others)
        self.stretch, self.queries = stretch, []

    def forward(self, gaussians, directions):
        self.queries.append((gaussians.means, directions))
        transmittance, distance = super().forward(gaussians, directions).rgb.unbind(-1)
        return FieldOutput(None, torch.stack([transmittance, self.stretch * distance], dim=-1))


@both_fields
def test_visibility_is_supervised_from_surfaces_and_everywhere(field):
    part = Part(Sphere(1.0), (0.0, 0.0, 0.0), GREY)
    model = solid_model(ball([0.0, 0.0, 0.0], 1.0), field).train()
    model.appearance.visibility = Recording(part)
    model(some_rays(150), 0.5)
    (surface, outward), (anywhere, around) = model.appearance.visibility.queries
    height = surface.norm(dim=-1) - 1
    assert (height.abs() < 0.1).float().mean() > 0.9
    assert ((surface * outward).sum(-1)[height.abs() < 0.1] > -0.05).all()
    assert ((anywhere * around).sum(-1) < 0).float().mean() > 0.3
    assert (anywhere.amin(0) < -1.7).all() and (anywhere.amax(0) > 1.7).all()


@both_fields
def test_wrong_distances_add_to_the_visibility_error(field):
    parts = (Part(Sphere(1.0), (0.0, 0.0, 0.0), GREY),)
    model = solid_model(ball([0.0, 0.0, 0.0], 1.0), field).train()
    rays, found = some_rays(600), []
    reach = float(model.appearance.reach)
    for stretch in (1.0, 2.0):
        model.appearance.visibility = Recording(*parts, stretch=stretch, reach=reach)
        rng = BatchRandom(0, 600).for_rows(torch.arange(600))
        found.append(model(rays, 0.5, rng)[-1].visibility_error)
    starts, directions = (v[:, 0] for v in model.appearance.visibility.queries[1])
    hit = tracing.intersect(starts, directions, parts).distance
    hit = torch.where(hit.isfinite() & (starts.norm(dim=-1) > 1.1), hit, 0.0)
    # Distances of rays without a hit, or that start inside, have no weight.
    added = found[1] - found[0]
    assert (hit > 0).sum() > 5
    torch.testing.assert_close(added.median(), torch.zeros(()), rtol=0, atol=1e-4)
    torch.testing.assert_close(added[hit > 0].median(), ((hit / reach) ** 2)[hit > 0].median(),
                               rtol=0.2, atol=0)


@both_shade_at
def test_components_scale_with_opacity(shade_at):
    """Divided by opacity, components of thin and thick layers are equal."""
    found = []
    for density in (8.0, 40.0):
        shape = brick([-1.9, -1.9, -0.02], [1.9, 1.9, 0.02])
        model = solid_model(shape, "mlp", shade_at, "--bounce_directions", "64", density=density,
                            parts=(Part(Box((1.9, 1.9, 0.1)), (0.0, 0.0, 1.4), GREY),))
        light = point_lights(torch.tensor([[0.0, 0.0, 1.0]]), torch.full((1, 3), 5.0))
        rays = rays_towards(torch.tensor([[1.5, 0.4, 3.0]]), torch.tensor([[0.3, 0.2, 0.0]]))
        model.surface_points = surface_of(model.appearance, *model.appearance.visibility.parts,
                                    Part(Box((1.9, 1.9, 0.1)), (0.0, 0.0, -0.08), GREY), near=0.1)
        with torch.no_grad():
            found.append(model(rays.with_lights(light))[-1])
    thin, thick = found
    assert thin.acc < 0.6 and thick.acc > 0.8
    for name in set(COMPONENTS) - {"visibility"}:
        torch.testing.assert_close(thin.extras[name] / thin.acc, thick.extras[name] / thick.acc,
                                   rtol=0.05, atol=0.01)
        assert thick.extras[name].abs().max() > 0.05


STAGES = ((0.1, False, set()), (0.45, True, set()), (0.8, True, set(COMPONENTS)))


@both_fields
@both_shade_at
def test_outputs_of_each_stage(field, shade_at):
    model = make_model(field, shade_at).train()
    for train_frac, has_error, extras in STAGES:
        output = model(some_rays(9), train_frac)[-1]
        assert output.extras.keys() == extras
        assert (output.visibility_error is not None) == has_error
        assert all(torch.isfinite(v).all() for v in (output.rgb, *output.extras.values()))


@pytest.mark.parametrize("fractions", [
    (0.55, 0.15), (0.1, 0.2), (0.4, 0.15), (0.0, 0.3), (0.0, 0.0)])
def test_stages_begin_at_their_steps(fractions):
    """Also for fractions whose sum is rounded up."""
    words = ["--geometry_share", str(fractions[0]), "--visibility_share", str(fractions[1])]
    model, steps = make_model("hash", "samples", *words).train(), 9000
    for number, (begin, _) in enumerate(model.stages):
        first = round(steps * (0.0, fractions[0], sum(fractions))[number])
        model.progress.fill_(first / steps)
        assert model.stage() >= number
        model.progress.fill_(begin)
        assert model.stage() >= number
        if first > 0:
            model.progress.fill_((first - 1) / steps)
            assert model.stage() < number


def test_grid_normals_are_differences_over_the_finest_cells():
    model = make_model("hash", "samples", "--grid_coarsest", "8", "--grid_finest", "31")
    queries = []
    density = model.density
    model.density = lambda means, covs: queries.append(means) or density(means, covs)
    model.normals(torch.zeros(1, 3), torch.full((1,), 1e-6))
    assert float(queries[0].abs().max()) == pytest.approx(NORMAL_STEP * 4 / 16)


@both_fields
@pytest.mark.parametrize("train_frac", [0.1, 0.45, 0.8])
def test_rays_without_lights_render_only_shape(field, train_frac):
    model, rays = make_model(field), some_rays(9)
    model.progress.fill_(train_frac)
    lit, dark = (model.eval()(r)[-1] for r in (rays, replace(rays, lights=None)))
    assert dark.extras == {} and torch.equal(dark.acc, lit.acc)
    assert torch.equal(dark.distance_median, lit.distance_median)
    torch.testing.assert_close(dark.rgb, (1 - dark.acc[:, None]).expand(-1, 3))


def test_fields_differentiated_for_normals_are_not_compiled():
    """Training through normals needs second derivatives, which compiled code lacks."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    networks, grids = make_model("mlp"), make_model("hash")
    all_of = {model: [p for p in model.modules() if isinstance(p, Field)]
              for model in (networks, grids)}
    for device in (cpu, gpu):
        assert set(networks.compilable_fields(device)) == set(all_of[networks]) - {networks.field}
    assert grids.compilable_fields(cpu) == []
    assert grids.compilable_fields(gpu) == all_of[grids]


def trained_parts(model, name, train_frac):
    """The parts of a model that get gradients from a loss."""
    model.zero_grad(set_to_none=True)
    batch = some_batch(30)
    loss.LOSSES[name](model, model(batch.rays, train_frac), batch).backward()

    def has_gradient(*parts):
        return any(p.grad is not None and p.grad.abs().max() > 0
                   for n, p in model.named_parameters() if n.startswith(parts))

    return {part for part, names in {
        "density": ("field.density",), "proposals": ("proposals",),
        "colour": ("field.rgb", "field.view", "field.bottleneck"),
        "reflectance": ("appearance.reflectance",), "visibility": ("appearance.visibility",),
    }.items() if has_gradient(*names)}


@both_fields
@both_shade_at
def test_each_stage_trains_its_own_parts(field, shade_at):
    model = make_model(field, shade_at).train()
    for train_frac in (0.1, 0.45):
        assert trained_parts(model, "fine", train_frac) == {"density", "colour"}
    found = trained_parts(model, "fine", 0.8)
    assert found == {"density", "reflectance", "visibility"}


@both_fields
@pytest.mark.parametrize("train_frac", [0.45, 0.8])
def test_the_visibility_loss_trains_only_visibility(field, train_frac):
    assert trained_parts(make_model(field).train(), "visibility", train_frac) == {"visibility"}


def test_the_visibility_loss_is_zero_in_stage_one():
    model, batch = make_model().train(), some_batch(5)
    assert float(loss.visibility_loss(model, model(batch.rays, 0.1), batch)) == 0


@both_fields
@pytest.mark.parametrize("train_frac,extras", [(0.1, set()), (0.45, set()), (0.8, set(COMPONENTS))])
def test_images_show_the_stage_reached(field, train_frac, extras):
    model, rays = make_model(field), some_rays(9)
    model.set_train_frac(train_frac)
    image = model.eval()(rays)[-1]
    assert image.extras.keys() == extras
    other = make_model(field, "samples", "--seed", "5").eval()
    other.load_state_dict(model.state_dict())
    again = other(rays)[-1]
    assert again.extras.keys() == extras and torch.equal(again.rgb, image.rgb)


@both_fields
@both_shade_at
def test_images_depend_on_the_light(field, shade_at):
    model, rays = make_model(field, shade_at).eval(), some_rays(20)
    model.progress.fill_(1)
    near, far, strong = (
        model(rays.with_lights(point_lights(places, colours)))[-1] for places, colours in
        ((PLACE, COLOUR), (-PLACE, COLOUR), (PLACE, 3 * COLOUR)))
    assert (near.rgb - far.rgb).abs().max() > 0.01
    for name in ("direct", "indirect"):
        torch.testing.assert_close(strong.extras[name], 3 * near.extras[name])
    assert torch.equal(near.extras["albedo"], far.extras["albedo"])


@both_fields
def test_early_colours_scale_with_the_incident_light(field):
    model, rays = make_model(field).eval(), some_rays(20)
    found = [model(rays.with_lights(point_lights(PLACE, s * COLOUR)))[-1] for s in (1, 3)]
    background = (1 - found[0].acc)[:, None]  # White.
    once, thrice = ((v / (1 - v)) for v in (output.rgb - background for output in found))
    torch.testing.assert_close(thrice, 3 * once, rtol=1e-3, atol=1e-4)
    moved = model(rays.with_lights(point_lights(-PLACE, COLOUR)))[-1]
    assert (moved.rgb - found[0].rgb).abs().max() > 1e-4


@both_shade_at
def test_lights_are_sampled_in_training_and_complete_in_images(shade_at):
    environment = torch.rand(4, 8, 3)
    lights = environment_lights(environment)
    model = solid_model(ball([0.0, 0, 0], 1.0), "mlp", shade_at, "--light_samples", "8",
                        parts=(Part(Sphere(1.0), (0.0, 0.0, 0.0), GREY),))
    rays = rays_towards(torch.tensor([[3.0, 1.0, 2.0]]), torch.zeros(1, 3)).with_lights(lights)
    with torch.no_grad():
        image = model(rays)[-1].extras["direct"][0]
        many = rays.map(lambda x: x.expand(600, *x.shape[1:]))
        sampled = model.train()(many)[-1].extras["direct"]
    deviation = sampled.std(dim=0) / math.sqrt(600)
    assert (deviation > 0).all()
    # Plus two percent, as jitter moves the shaded points in a soft density.
    assert ((sampled.mean(dim=0) - image).abs() < 4 * deviation + 0.02 * image).all()


@both_fields
@both_shade_at
@pytest.mark.parametrize("train_frac", [0.45, 0.9])
def test_empty_rays_show_the_background_with_finite_gradients(field, shade_at, train_frac):
    model = make_model(field, shade_at, "--density_bias", "-60").train()
    batch = some_batch(5)
    outputs = model(batch.rays, train_frac)
    torch.testing.assert_close(outputs[-1].rgb, torch.ones(5, 3))
    total, _ = loss.weighted_loss(make_config(field, shade_at), model, outputs, batch)
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@both_fields
@both_shade_at
def test_chunks_do_not_change_the_image(field, shade_at):
    model = make_model(field, shade_at).eval()
    model.progress.fill_(1)
    flat = some_rays(12)
    grid = replace(flat, lights=None).map(lambda x: x.reshape(3, 4, *x.shape[1:])).with_lights(
        point_lights(PLACE, COLOUR))
    with torch.no_grad():
        whole = model(flat)[-1]
    image = render_image(model, grid, chunk=5)
    # Matrix multiplications of other sizes round differently, which can change whether a sample is
    # shaded.
    near = dict(rtol=0.02, atol=0.02)
    torch.testing.assert_close(image.rgb.reshape(12, 3), whole.rgb, **near)
    assert image.extras.keys() == set(COMPONENTS)
    for name in COMPONENTS:
        torch.testing.assert_close(image.extras[name].reshape(12, -1), whole.extras[name], **near)


@both_fields
def test_skipping_empty_space_changes_no_component(field):
    part = Part(Sphere(1.0), (0.0, 0.0, 0.0), GREY)
    model, rays = solid_model(ball([0.0, 0, 0], 1.0), field, parts=(part,)), some_rays(40)
    rays.directions[:10] = rays.viewdirs[:10] = normalize(
        rays.directions[:10] + torch.tensor([0.0, 0, 1.5]), dim=-1)
    everywhere = render_image(model, rays)
    occupancy = build_occupancy(model, BOX, 10**9)
    assert occupancy is not None
    found = render_image(model, rays, occupancy=occupancy)
    torch.testing.assert_close(found.rgb, everywhere.rgb, rtol=0, atol=0.02)
    assert (found.acc == 0).any() and found.extras.keys() == set(COMPONENTS)
    for name in COMPONENTS:
        torch.testing.assert_close(found.extras[name], everywhere.extras[name], rtol=0.05,
                                   atol=0.05)


# Training randomness.


@both_fields
@both_shade_at
@pytest.mark.parametrize("lights", [
    point_lights(PLACE, COLOUR), environment_lights(torch.full((3, 4, 3), 0.7))],
    ids=["one light", "more than sampled"])
def test_micro_batches_do_not_change_the_gradient(field, shade_at, lights):
    """In float64: normals of MLPs have jumps, where float32 rounding changes them."""
    config = make_config(field, shade_at, "--light_samples", "5")
    model, found = build_model(config, "cpu", BOX).double().train(), []
    batch = some_batch(13, lights).map(lambda x: x.double() if x.is_floating_point() else x)
    for size in (13, 4):
        scalars, _ = train.compute_gradients(
            model, batch, config, 0.9, size, BatchRandom(3, 13))
        found.append((scalars, {n: p.grad.clone() for n, p in model.named_parameters()
                                if p.grad is not None}))
    (whole, gradients), (parts, others) = found
    assert {"loss/fine", "loss/visibility"} <= whole.keys()
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-7, atol=1e-9)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-6,
                                   atol=1e-8 * float(gradient.abs().max()), msg=name)


# Nearly constant density.


def brightest_possible(rays, parts_roughness=ROUGHNESS):
    """An upper bound of reflected light from lights at distances of at least 1."""
    k = parts_roughness**2 / 2
    highest = 1 / (math.pi * parts_roughness**4) / (4 * k) + 1 / math.pi
    light = incident(rays.lights, torch.zeros_like(rays.origins))
    return highest * luminance(light.radiance).sum(-1).max()


@both_fields
@both_shade_at
def test_nearly_constant_density_has_no_bright_artefacts(field, shade_at):
    model = solid_model(lambda points: -1 - 1e-4 * points[..., 0], field, shade_at, density=2.0,
                        softness=1.0, parts=(Part(Sphere(0.01), (9.0, 0.0, 0.0), GREY),))
    rays = some_rays(20, point_lights(torch.tensor([[0.0, 0, 40]]), torch.ones(1, 3)))
    with torch.no_grad():
        direct = model(rays)[-1].extras["direct"]
    assert luminance(direct).max() <= 2 * brightest_possible(rays)
