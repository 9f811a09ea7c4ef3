"""Lights: environments, incident light, importance sampling, mean light, the tone map."""

import math
from dataclasses import replace

import pytest
import torch

from procedural import lit_scene
from relighting.lights import (
    Lights,
    environment_lights,
    importance_sample_lights,
    incident,
    luminance,
    mean_light,
    point_lights,
    rotate_about_z,
    tone_map,
)
from tests.test_model import make_rays


def random_lights(count, rows=()):
    return point_lights(3 * torch.randn(*rows, count, 3), 9 * torch.rand(*rows, count, 3))


def brightest(environment, turn=0.0):
    """The direction of the brightest light of an environment."""
    lights = environment_lights(environment, turn)
    return lights.places[luminance(lights.colours).argmax()]


def one_bright_texel(height, width, row, column):
    environment = torch.full((height, width, 3), 0.01)
    environment[row, column] = 1e6
    return environment


# Environments.


@pytest.mark.parametrize("size,texel,direction", [
    ((3, 3), (1, 1), [1.0, 0, 0]),
    ((3, 6), (1, 4), [0.0, -1, 0]),
    ((3, 6), (1, 1), [0.0, 1, 0]),
    ((999, 3), (0, 0), [0.0, 0, 1]),
    ((999, 3), (998, 2), [0.0, 0, -1]),
])
def test_texels_have_the_directions_of_a_panorama(size, texel, direction):
    found = brightest(one_bright_texel(*size, *texel))
    torch.testing.assert_close(found, torch.tensor(direction), atol=2e-3, rtol=0)


def test_right_and_up_in_the_map_are_minus_y_and_z():
    x, y, z = brightest(one_bright_texel(9, 31, 3, 17))
    assert x > 0.5 and y < -0.1 and z > 0.1


def test_a_quarter_turn_brings_x_to_y():
    found = brightest(one_bright_texel(3, 3, 1, 1), math.pi / 2)
    torch.testing.assert_close(found, torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("turn", [0.0, 1.3, -2.9])
def test_environments_equal_the_demo_tracers(turn):
    environment = torch.rand(5, 8, 3)
    lights = environment_lights(environment, turn)
    directions, colours = lit_scene.environment_texels(environment, turn)
    torch.testing.assert_close(lights.places, directions, atol=1e-6, rtol=0)
    torch.testing.assert_close(lights.colours, colours)
    assert lights.distant.shape == (40, 1) and lights.distant.all()


def test_solid_angles_sum_to_a_sphere():
    solid_angles = environment_lights(torch.ones(64, 16, 3)).colours
    wanted = torch.full((3,), 4 * math.pi)
    torch.testing.assert_close(solid_angles.sum(dim=0), wanted, rtol=2e-4, atol=0)


def test_irradiance_of_a_uniform_environment_is_pi_times_its_radiance():
    radiance = torch.tensor([1.0, 0.2, 5.0])
    light = incident(environment_lights(radiance.expand(64, 32, 3)), torch.tensor([0.3, -2.0, 1.0]))
    irradiance = (light.radiance * light.directions[:, 2:].clamp(min=0)).sum(dim=0)
    torch.testing.assert_close(irradiance, math.pi * radiance, rtol=1e-3, atol=0)


# Incident light.


def test_point_lights_fall_off_with_squared_distance():
    lights = point_lights(torch.tensor([[2.0, 2, 3], [1.0, 0, 1]]),
                          torch.tensor([[9.0, 18, 36], [1.0, 2, 3]]))
    light = incident(lights, torch.tensor([1.0, 0, 1]) * torch.ones(4, 1))
    torch.testing.assert_close(light.distance[:, 0], torch.full((4,), 3.0))
    torch.testing.assert_close(light.directions[2, 0], torch.tensor([1.0, 2, 2]) / 3)
    torch.testing.assert_close(light.radiance[3, 0], torch.tensor([1.0, 2, 4]))
    assert torch.isfinite(light.radiance).all()  # Also at the light itself.


def test_distant_lights_are_equal_at_all_points():
    lights = environment_lights(torch.rand(3, 4, 3), 0.5)
    light = incident(lights, 5 * torch.randn(6, 3))
    for row in range(6):
        torch.testing.assert_close(light.directions[row], lights.places)
        torch.testing.assert_close(light.radiance[row], lights.colours)
    assert (light.distance == torch.inf).all() and light.distance.shape == (6, 12)


def test_near_and_distant_lights_mix():
    mixed = Lights(places=torch.tensor([[0.0, 0, 2], [0.0, 0, 1]]), colours=4 * torch.ones(2, 3),
                   distant=torch.tensor([[False], [True]]))
    light = incident(mixed, torch.tensor([0.0, 0, -2]))
    torch.testing.assert_close(light.radiance[:, 0], torch.tensor([0.25, 4.0]))
    torch.testing.assert_close(light.distance, torch.tensor([4.0, torch.inf]))


def test_lights_rotate_about_z():
    one = rotate_about_z(point_lights(torch.tensor([[1.0, 2, 3]]), torch.ones(1, 3)), math.pi / 2)
    torch.testing.assert_close(one.places, torch.tensor([[-2.0, 1, 3]]))
    environment = torch.rand(4, 7, 3)
    found = rotate_about_z(environment_lights(environment), 0.8)
    wanted = environment_lights(environment, 0.8)
    torch.testing.assert_close(found.places, wanted.places)
    assert torch.equal(found.colours, wanted.colours) and found.distant.all()


# Importance sampling.


def test_sampled_lights_are_unbiased():
    lights = random_lights(7).map(lambda x: x.expand(40_000, *x.shape))
    point, normal = torch.tensor([0.2, 0.1, -0.3]), torch.tensor([0.6, 0.0, 0.8])

    def irradiance(lights):
        light = incident(lights, point.expand(len(lights.places), 3))
        cosine = (light.directions * normal).sum(dim=-1, keepdim=True).clamp(min=0)
        return (light.radiance * cosine).sum(dim=1)

    found = irradiance(importance_sample_lights(lights, torch.rand(40_000, 3)))
    error = (found.mean(dim=0) - irradiance(lights[:1])[0]).abs()
    deviation = found.std(dim=0) / 200
    assert (error < 4 * deviation).all() and (deviation > 0).all()


def test_sampled_lights_keep_the_total_luminance():
    lights = random_lights(9, rows=(50,))
    found = importance_sample_lights(lights, torch.rand(50, 4))
    assert found.places.shape == (50, 4, 3)
    torch.testing.assert_close(luminance(found.colours).sum(dim=-1),
                               luminance(lights.colours).sum(dim=-1))


def test_equal_lights_are_each_sampled_once_with_one_sample_per_light():
    lights = random_lights(6, rows=(3,))
    lights = replace(lights, colours=torch.full_like(lights.colours, 2.5))
    found = importance_sample_lights(lights, ((torch.arange(6) + 0.5) / 6).expand(3, -1))
    torch.testing.assert_close(found.places, lights.places)
    torch.testing.assert_close(found.colours, lights.colours)


def test_dark_lights_are_not_sampled():
    lights = random_lights(5, rows=(2,))
    lights.colours[0, [0, 2, 4]] = 0
    lights.colours[1] = 0
    found = importance_sample_lights(lights, torch.linspace(1e-6, 1 - 1e-6, 300).expand(2, -1))
    assert (luminance(found.colours[0]) > 0).all()
    assert (found.colours[1] == 0).all()


def test_sampled_lights_stay_distant():
    distant = torch.tensor([[True], [False], [True]])
    lights = replace(random_lights(3), colours=torch.ones(3, 3), distant=distant)
    found = importance_sample_lights(
        lights.map(lambda x: x[None]), torch.tensor([[0.1, 0.5, 0.4, 0.9]]))
    assert found.distant[0, :, 0].tolist() == [True, False, False, True]


# Mean light and tone mapping.


def test_the_mean_of_one_light_is_its_direction_and_radiance():
    lights = point_lights(torch.tensor([[0.0, 3, 4]]), torch.tensor([[25.0, 50, 5]]))
    direction, radiance = mean_light(lights)
    torch.testing.assert_close(direction, torch.tensor([0.0, 0.6, 0.8]))
    torch.testing.assert_close(radiance, torch.tensor([1.0, 2, 0.2]))


def test_lights_from_more_sides_have_a_shorter_mean_direction():
    places = torch.tensor([[[1.0, 0, 0], [-1.0, 0, 0]], [[1.0, 0, 0], [0.0, 1, 0]]])
    direction, radiance = mean_light(point_lights(places, torch.ones(2, 2, 3)))
    torch.testing.assert_close(direction, torch.tensor([[0.0, 0, 0], [0.5, 0.5, 0]]))
    torch.testing.assert_close(radiance, torch.full((2, 3), 2.0))
    direction, radiance = mean_light(environment_lights(torch.ones(32, 16, 3)))
    assert direction.norm() < 1e-5
    torch.testing.assert_close(radiance, torch.full((3,), 4 * math.pi), rtol=1e-3, atol=0)


def test_the_mean_direction_is_weighted_by_luminance():
    colours = torch.tensor([[3.0, 0, 0], [0.0, 1, 0]])  # Luminance 0.6378 and 0.7152.
    direction, _ = mean_light(point_lights(torch.eye(3)[:2], colours))
    torch.testing.assert_close(direction[:2] / direction[0], torch.tensor([1, 0.7152 / 0.6378]))


def test_dark_lights_have_no_mean_direction():
    direction, radiance = mean_light(point_lights(torch.zeros(2, 3), torch.zeros(2, 3)))
    assert (direction == 0).all() and (radiance == 0).all()


def test_the_tone_map_is_monotonic_and_below_one():
    radiance = torch.logspace(-4, 4, 50, dtype=torch.float64)
    mapped = tone_map(radiance)
    assert (mapped < 1).all() and (mapped.diff() > 0).all()
    torch.testing.assert_close(mapped / (1 - mapped), radiance)
    assert tone_map(torch.tensor([-3.0, 0.0])).tolist() == [0, 0]


# Lights of rays.


def test_every_ray_has_all_lights():
    lights = random_lights(4)
    rays = make_rays(3, 5).with_lights(lights)
    assert rays.lights.places.shape == (3, 5, 4, 3) and rays.lights.distant.shape == (3, 5, 4, 1)
    flat = rays.flatten()
    assert flat.lights.colours.shape == (15, 4, 3) and flat.radii.shape == (15, 1)
    assert flat[2:9].lights.distant.shape == (7, 4, 1)
    torch.testing.assert_close(flat.lights.places[11], lights.places)


def test_rays_keep_their_lights_when_flattened_and_indexed():
    lights = random_lights(4, rows=(3, 5))
    flat = replace(make_rays(3, 5), lights=lights).flatten()
    torch.testing.assert_close(flat.lights.places[7], lights.places[1, 2])
    chosen = flat[torch.tensor([14, 0])]
    torch.testing.assert_close(chosen.lights.colours, lights.colours[[2, 0], [4, 0]])
    torch.testing.assert_close(chosen.origins, flat.origins[[14, 0]])
