"""The lit demo scene against closed forms, quadrature and hand calculation."""

import json
import math

import imageio.v3 as imageio
import numpy as np
import OpenEXR
import pytest
import torch

from procedural import lit_scene, tracing
from procedural import scene as demo_scene
from procedural.lit_scene import Patch, SceneLights
from procedural.solids import Box, Part, Sphere, plain

GREY = (0.5, 0.4, 0.3)
PLANE = Part(Box((50.0, 50.0, 1.0)), (0.0, 0.0, -1.0), plain(GREY))  # z = 0 is its top
UP = (0.0, 0.0, 1.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with tracing.single_thread():
        yield


def unit(v):
    return np.asarray(v, np.float64) / np.linalg.norm(v, axis=-1, keepdims=True)


def reflectance(normal, wi, wo, albedo, roughness):
    """The BRDF by its definition in NumPy: [..., 3] for vectors [..., 3]."""
    def dot(a, b):
        return (a * b).sum(-1, keepdims=True)

    h = unit(wi + wo)
    alpha, k = roughness**2, roughness**2 / 2
    nh, ni, no = dot(normal, h), dot(normal, wi), dot(normal, wo)
    d = alpha**2 / (math.pi * (nh**2 * (alpha**2 - 1) + 1) ** 2)
    def mirrored(cosine):
        return 0.04 + 0.96 * (1 - cosine) ** 5

    g = ni / (ni * (1 - k) + k) * no / (no * (1 - k) + k)
    inside = (1 - mirrored(ni)) * (1 - mirrored(no))
    value = (d * mirrored(dot(wi, h)) * g / (4 * ni * no)
             + inside * np.asarray(albedo) / math.pi)
    return np.where((ni > 0) & (no > 0), value, 0)


def brdf(normal, wi, wo, albedo, roughness):
    """The tracer's BRDF for NumPy vectors and a scalar roughness."""
    arguments = (torch.as_tensor(np.asarray(v, np.float64)) for v in (normal, wi, wo, albedo))
    roughness = torch.full((1,), roughness, dtype=torch.float64)
    return lit_scene.reference_brdf(*arguments, roughness).numpy()


def sphere_points(count, seed):
    return unit(np.random.default_rng(seed).normal(size=(count, 3)))


def hemisphere_rule(n_theta=400, n_phi=128):
    """Directions [N, 3] about z and weights [N] that integrate cos θ dω by the midpoint rule."""
    theta = (np.arange(n_theta) + 0.5) / n_theta * math.pi / 2
    phi = (np.arange(n_phi) + 0.5) / n_phi * 2 * math.pi
    theta, phi = (a.ravel() for a in np.meshgrid(theta, phi, indexing="ij"))
    directions = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi),
                           np.cos(theta)], -1)
    weight = np.cos(theta) * np.sin(theta) * (math.pi / 2 / n_theta) * (2 * math.pi / n_phi)
    return directions, weight


def tilted(degrees):
    return np.array([math.sin(math.radians(degrees)), 0.0, math.cos(math.radians(degrees))])


@pytest.mark.parametrize("roughness", (0.4, 0.7, 1.0))
def test_brdf_is_as_defined_reciprocal_and_zero_below(roughness):
    normal, wi, wo = (sphere_points(2000, seed) for seed in range(3))
    value = brdf(normal, wi, wo, GREY, roughness)
    np.testing.assert_allclose(value, reflectance(normal, wi, wo, GREY, roughness), rtol=1e-9)
    np.testing.assert_allclose(value, brdf(normal, wo, wi, GREY, roughness), rtol=1e-9)
    above = ((normal * wi).sum(-1) > 0) & ((normal * wo).sum(-1) > 0)
    assert (value[above] > 0).all() and not value[~above].any() and 300 < above.sum() < 700


@pytest.mark.parametrize("roughness", (0.4, 0.7, 1.0))
def test_the_normal_distribution_is_normalised(roughness):
    """∫ D (n·h) dω = 1, with D from the retroreflection of a black surface."""
    h, weight = hemisphere_rule()
    k = roughness**2 / 2
    value = brdf(np.array(UP), h, h, np.zeros(3), roughness)[:, 0]
    d = value * 4 * (h[:, 2] * (1 - k) + k) ** 2 / 0.04
    assert (d * weight).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("roughness", (0.4, 0.7, 1.0))
def test_white_furnace(roughness):
    """A white surface reflects no more light than it receives."""
    z = np.random.default_rng(0).uniform(size=(2, 200_000))
    across, turn = np.sqrt(1 - z[0]), 2 * math.pi * z[1]
    wi = np.stack([across * np.cos(turn), across * np.sin(turn), np.sqrt(z[0])], -1)
    for degrees in (0, 30, 45, 60, 75, 88, 89.5):
        white, black = (
            math.pi * brdf(np.array(UP), wi, tilted(degrees), np.full(3, albedo), roughness).mean()
            for albedo in (1.0, 0.0)
        )
        assert 0.01 < black < white < 1


def patch_at(points, normal, eye, albedo=GREY, roughness=1.0):
    """A `Patch` of points [N, 3] with equal other properties."""
    points = torch.as_tensor(np.asarray(points), dtype=torch.float64)
    shared = (torch.tensor(np.asarray(v), dtype=torch.float64).expand(len(points), -1)
              for v in (normal, albedo, [roughness], unit(eye)))
    normal, albedo, roughness, eye = shared
    return Patch(points, normal, albedo, roughness, eye)


def lights(positions, colours, distant=False):
    positions, colours = (torch.from_numpy(np.array(v, np.float64)) for v in (positions, colours))
    return SceneLights(positions, colours, distant)


def test_plane_under_a_point_light():
    """Radiance = f · cos θ · I / d² at points of the plane, along camera rays."""
    position, intensity, eye = np.array([0.6, -0.3, 2.0]), np.array([30.0, 20, 10]), (0, -4.0, 3)
    points = np.random.default_rng(0).uniform(-2, 2, (50, 3)) * (1, 1, 0)
    seen = lit_scene.trace_camera_rays(
        torch.tensor(eye, dtype=torch.float64), torch.from_numpy(points - eye)[:, None],
        lights([position], [intensity]), torch.rand(50, 4), (PLANE,),
    )
    to_light, to_eye = position - points, eye - points
    squared = (to_light**2).sum(-1, keepdims=True)
    cosine = position[2] / np.sqrt(squared)
    expected = reflectance(np.array(UP), unit(to_light), unit(to_eye), GREY, 1.0)
    expected = expected * cosine * intensity / squared
    np.testing.assert_allclose(seen.direct[:, 0], expected, rtol=1e-5)
    assert seen.hit.all() and not seen.indirect.any() and (seen.visibility == 1).all()
    torch.testing.assert_close(seen.albedo[0, 0], torch.tensor(GREY, dtype=torch.float64))
    assert (seen.normal == torch.tensor(UP)).all() and (seen.roughness == 1).all()


def test_diffuse_term_at_normal_incidence_and_inverse_square_law():
    """White minus black is (1 − F₀)² / π · I / d²."""
    seen = []
    for height in (2.0, 4.0):
        white, black = (
            lit_scene.direct(patch_at([(0, 0, 0)], UP, UP, (albedo,) * 3),
                               lights([(0, 0, height)], [(90.0, 90, 90)]), (PLANE,))[0]
            for albedo in (1.0, 0.0)
        )
        seen.append((white - black).numpy())
    np.testing.assert_allclose(seen[1], 0.96**2 / math.pi * 90 / 16, rtol=1e-9)
    np.testing.assert_allclose(seen[0], 4 * seen[1], rtol=1e-9)
    assert 1.5 < seen[1].min() < 2  # the intention of LIGHT_INTENSITY


def test_shadow_of_a_sphere_ends_where_the_tangents_meet_the_plane():
    position, centre, radius = np.array([1.5, 0.5, 4.0]), np.array([0.2, -0.1, 1.0]), 0.4
    parts = (PLANE, Part(Sphere(radius), tuple(centre), plain(GREY)))
    axis = unit(centre - position)
    cone = math.asin(radius / np.linalg.norm(centre - position))
    side = unit(np.cross(axis, UP))
    turn = np.linspace(0, 2 * math.pi, 60)[:, None]
    round_ = np.cos(turn) * side + np.sin(turn) * np.cross(axis, side)
    for scale, lit in ((0.5, False), (0.995, False), (1.005, True), (1.5, True)):
        rays = math.cos(scale * cone) * axis + math.sin(scale * cone) * round_
        points = position - position[2] / rays[:, 2:] * rays
        radiance, arrive = lit_scene.direct(
            patch_at(points, UP, UP), lights([position], [(1.0, 1, 1)]), parts
        )
        assert (arrive == lit).all() and ((radiance > 0) == lit).all()


def test_a_convex_body_is_lit_wherever_it_faces_the_light():
    """No point shadows itself, in float32 either."""
    normals = torch.from_numpy(sphere_points(20_000, 0)).float()
    patch = Patch(0.43 * normals, normals, torch.full_like(normals, 0.5), normals[:, :1] * 0 + 1,
                  normals)
    position = torch.tensor([[1.0, -2.0, 3.3]])
    _, arrive = lit_scene.direct(patch, SceneLights(position, torch.ones(1, 3), False),
                                   (Part(Sphere(0.43), (0.0, 0.0, 0.0), plain(GREY)),))
    to_light = position - patch.point
    cosine = (normals * to_light).sum(-1) / to_light.norm(dim=-1)
    assert arrive[cosine > 0.02].all() and not arrive[cosine <= 0].any()


def even(count, dimensions, seed=0):
    return torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=seed).draw(count)


@pytest.mark.parametrize("degrees", (0, 25, 50))
def test_cosine_directions_hit_a_sphere_by_its_form_factor(degrees):
    """(r / d)² cos θ, for a sphere wholly above the horizon."""
    normal = torch.from_numpy(tilted(degrees)).float()
    wi = lit_scene._cosine_directions(normal, even(1 << 15, 2))
    torch.testing.assert_close(wi.norm(dim=-1), torch.ones(len(wi)))
    hit = tracing.occluded(torch.zeros(3), wi, (Part(Sphere(0.5), (0.0, 0, 1.2), plain(GREY)),))
    expected = (0.5 / 1.2) ** 2 * math.cos(math.radians(degrees))
    assert hit.float().mean() == pytest.approx(expected, rel=0.01)


def ball_above(distance, radius, gloss=0.9):
    return Part(Sphere(radius), (0.0, 0.0, distance), plain((0.7, 0.2, 0.1)), gloss)


def lit_by_a_ball_lit_from_below(distance, radius, roughness):
    """Radiance [3] along the normal of a patch at the origin that faces a ball.

    Light comes from −z and passes the patch. By symmetry about z the integral is over γ alone.
    """
    count = 20_000
    gamma = (np.arange(count) + 0.5) / count * math.asin(radius / distance)
    wi = np.stack([np.sin(gamma), 0 * gamma, np.cos(gamma)], -1)
    along = distance * np.cos(gamma) - np.sqrt(radius**2 - (distance * np.sin(gamma)) ** 2)
    normal = (along[:, None] * wi - (0, 0, distance)) / radius
    down = np.array([0, 0, -1.0])
    there = reflectance(normal, down, -wi, (0.7, 0.2, 0.1), 1 - 0.6 * 0.9)
    there = there * -normal[:, 2:]
    here = reflectance(np.array(UP), wi, np.array(UP), GREY, roughness)
    ring = 2 * math.pi * np.sin(gamma) * np.cos(gamma) * (math.asin(radius / distance) / count)
    return (here * there * ring[:, None]).sum(0)


@pytest.mark.parametrize("roughness", (0.46, 1.0))
@pytest.mark.parametrize("kind", ("far", "distant"))
def test_one_bounce_equals_the_integral(roughness, kind):
    """For a very far point light, and for two distant lights in one direction, sampled in turn."""
    if kind == "far":
        lamp = lights([(0, 0, -1e5)], [(1e10, 2e10, 3e10)])
    else:
        lamp = lights([(0, 0, -1.0)] * 2, [(1.0, 0.5, 0), (0, 1.5, 3)], distant=True)
    patch = patch_at([(0.0, 0, 0)], UP, UP, roughness=roughness)
    seen = lit_scene.indirect(patch, lamp, even(1 << 16, 3)[None].double(),
                                (ball_above(1.2, 0.5),))
    expected = lit_by_a_ball_lit_from_below(1.2, 0.5, roughness) * (1, 2, 3)
    np.testing.assert_allclose(seen[0], expected, rtol=0.01)


def test_indirect_light_is_shadowed_and_comes_from_the_lit_side():
    patch, u = patch_at([(0.0, 0, 0)], UP, UP), even(1024, 3)[None].double()
    ball, blocker = ball_above(1.2, 0.5), Part(Box((2.0, 2.0, 0.1)), (0, 0, -1.0), plain(GREY))

    def bounced(height, *parts):
        lamp = lights([(0, 0, height)], [(1.0, 1, 1)], distant=True)
        return lit_scene.indirect(patch, lamp, u, parts)

    assert (bounced(-1.0, ball) > 0).all()
    assert not bounced(-1.0, ball, blocker).any()
    assert not bounced(1.0, ball).any()


SIDES = {"+x": (1, 0, 0), "-x": (-1, 0, 0), "+y": (0, 1, 0), "-y": (0, -1, 0), "+z": (0, 0, 1),
         "-z": (0, 0, -1)}
AZIMUTHS = ("+x", "+y", "-x", "-y")  # counter-clockwise, seen from above


def lit_side(row, column, turn=0.0):
    """The side of a sphere that is brightest under one texel of a 12 × 24 environment."""
    environment = np.zeros((12, 24, 3))
    environment[row, column] = 5.0
    lamp = SceneLights(*lit_scene.environment_texels(environment, turn), distant=True)
    outward = torch.tensor(list(SIDES.values())).float()
    seen = [lit_scene.trace_camera_rays(3 * v, -v[None, None], lamp, torch.rand(1, 4),
                                 (ball_above(0.0, 0.5, 0.0),)).direct.sum() for v in outward]
    return list(SIDES)[int(torch.stack(seen).argmax())]


def test_environment_texels_light_the_matching_side():
    """The centre faces +x, the right quarter −y; rows run from the zenith down."""
    for column, side in ((11, "+x"), (12, "+x"), (18, "-y"), (6, "+y"), (0, "-x"), (23, "-x")):
        assert lit_side(5, column) == side
    assert lit_side(0, 7) == "+z" and lit_side(11, 7) == "-z"
    for quarters, side in enumerate(AZIMUTHS):
        assert lit_side(5, 12, quarters * math.pi / 2) == side


def test_environment_directions_and_solid_angles():
    directions, weighted = lit_scene.environment_texels(np.ones((12, 24, 3)), 0.3)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(288))
    # The midpoint rule for ∫ sin θ dθ in 12 steps is too large by a factor x / sin x.
    x = math.pi / 24
    total = 4 * math.pi * x / math.sin(x)
    np.testing.assert_allclose(weighted.sum(0), total, rtol=1e-5)
    assert total == pytest.approx(4 * math.pi, rel=0.003)
    theta, phi = 2.5 * math.pi / 12, (0.5 - 7.5 / 24) * 2 * math.pi + 0.3
    expected = (math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta))
    np.testing.assert_allclose(directions[2 * 24 + 7], expected, atol=1e-6)


def held_out_lights(turn=0.4):
    environment = lit_scene.paint_environment(*lit_scene.SKIES["test"]["held_out"])
    return SceneLights(*lit_scene.environment_texels(environment, turn), distant=True)


def test_sampled_lights_are_unbiased():
    lamp = held_out_lights()
    chosen = lit_scene.sample_lights(lamp, (torch.arange(1 << 17)[None] + 0.5) / (1 << 17))
    assert chosen.positions.shape == (1, 1 << 17, 3)
    torch.testing.assert_close(chosen.colours.sum(1)[0], lamp.colours.sum(0), rtol=1e-4, atol=0)
    dark = SceneLights(lamp.positions, lamp.colours * (torch.arange(288) < 100)[:, None], True)
    last = lit_scene.sample_lights(dark, torch.ones(1, 1))  # rounded up from just below
    assert last.colours.isfinite().all() and (last.positions[0, 0] == lamp.positions[99]).all()


def test_sampled_environment_agrees_with_the_sum_over_texels():
    """On top of the still life's plate, including shadows."""
    lamp = held_out_lights()
    rng = np.random.default_rng(0)
    radius, turn = 1.1 * np.sqrt(rng.uniform(size=40)), rng.uniform(0, 7, 40)
    points = np.stack([radius * np.cos(turn), radius * np.sin(turn), np.full(40, -0.53)], -1)
    patch = Patch._make(v.float() for v in patch_at(points, UP, (0.3, 0.2, 1)))
    everything, _ = lit_scene.direct(patch, lamp)
    chosen = lit_scene.sample_lights(lamp, (torch.arange(2000) + torch.rand(40, 1)) / 2000)
    sampled, arrive = lit_scene.direct(patch, chosen)
    torch.testing.assert_close(sampled, everything, rtol=0.02, atol=0.002)
    assert 0.2 < arrive.float().mean() < 0.99


def camera(width, height):
    """The arguments of a image, wide enough for the still life."""
    camtoworld = demo_scene.look_at((3.8, 1.2, 1.5))
    return camtoworld, demo_scene.pinhole(width, height, 1.4 * height), width, height


def test_image_is_premultiplied_and_ground_truth_is_not():
    """A ball alone: each pixel against nine rays traced in float64."""
    camtoworld, pixtocam, *size = camera(15, 12)
    parts = (ball_above(0.0, 0.9),)
    lamp = lit_scene.point_light((1.0, -2.0, 3.3), 50.0)
    seen = lit_scene.render_lit(camtoworld, pixtocam, *size, lamp, 0, parts)
    alpha = seen["rgba"][..., 3]
    partly = (alpha > 0) & (alpha < 1)
    assert partly.sum() > 10 and (alpha == 1).any() and not seen["rgba"][alpha == 0].any()
    third = (np.arange(3) + 0.5) / 3
    for row, column in np.argwhere(alpha > 0):
        x, y = np.meshgrid(column + third, row + third)
        rays = tracing.pixel_rays(camtoworld, pixtocam, x, y)
        surface = tracing.intersect(*rays, parts)
        hit = surface.part.ravel().numpy() >= 0
        point, normal = (v.reshape(9, 3).numpy()[hit] for v in (surface.point, surface.normal))
        to_light = lamp.positions.numpy() - point
        squared = (to_light**2).sum(-1, keepdims=True)
        cosine = (normal * unit(to_light)).sum(-1, keepdims=True)
        rgb = 50 / squared * cosine * reflectance(
            normal, unit(to_light), unit(camtoworld[:3, 3] - point), (0.7, 0.2, 0.1), 0.46)
        np.testing.assert_allclose(seen["rgba"][row, column], [*rgb.sum(0) / 9, hit.mean()],
                                   rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(seen["normals"][row, column], unit(normal.mean(0)), atol=1e-5)
        assert abs(seen["visibility"][row, column] - (cosine > 0).mean()) < 1e-6
    np.testing.assert_allclose(seen["albedo"][alpha > 0], [(0.7, 0.2, 0.1)] * (alpha > 0).sum(),
                               rtol=1e-6)
    np.testing.assert_allclose(seen["roughness"][alpha > 0], 0.46, rtol=1e-6)
    for name in ("albedo", "normals", "roughness", "visibility"):
        assert seen[name].dtype == np.float32 and not seen[name][alpha == 0].any()


@pytest.mark.parametrize("kind", ("point", "environment"))
def test_images_depend_on_the_seed_and_have_little_noise(kind, monkeypatch):
    lamp = held_out_lights() if kind == "environment" else lit_scene.point_light((1.0, -2, 3.3))
    first, again, other = (
        lit_scene.render_lit(*camera(26, 24), lamp, seed)["rgba"] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.abs(first - other).sum() / math.sqrt(2) < 0.05 * first[..., :3].sum()
    np.testing.assert_allclose(first.mean((0, 1)), other.mean((0, 1)), rtol=0.01)
    monkeypatch.setattr(lit_scene, "PIXELS_PER_BAND", 100)
    np.testing.assert_allclose(lit_scene.render_lit(*camera(26, 24), lamp, 1)["rgba"], first,
                               atol=1e-6)


def test_lights_are_distributed_evenly_and_surround_the_held_out_ones():
    train, test = (lit_scene.light_positions(split) / 4 for split in ("train", "test"))
    assert train.shape == (60, 3) and test.shape == (20, 3)
    every = np.concatenate([train, test])
    assert len(np.unique(every, axis=0)) == 80
    np.testing.assert_allclose(np.linalg.norm(every, axis=-1), 1)
    heights = np.degrees(np.arcsin(every[:, 2]))
    np.testing.assert_allclose((heights.min(), heights.max()), (20, 80))
    nearest = np.degrees(np.arccos((test @ train.T).max(1)))
    assert nearest.min() > 5 and nearest.max() < 20
    views = demo_scene.blender_cameras("train")[0][:, :3, 2]
    assert abs(np.corrcoef(views[:, 2], train[:, 2])[0, 1]) < 0.3
    assert abs((views[:, :2] * train[:, :2]).sum(-1).mean()) < 0.2


SIZE, LIMIT = 10, 4


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nerv") / "demo"
    lit_scene.write_nerv(folder, SIZE, LIMIT)
    return folder


def read_exr(path, channels):
    with OpenEXR.File(str(path)) as file:
        assert list(file.channels()) == [channels]
        return file.channels()[channels].pixels


SETS = {"train_point": "train", ".": "test", "train_env": "train", "test_env": "test"}


def test_layout_of_the_files(written):
    names = {str(p.relative_to(written)) for p in written.rglob("*") if p.is_file()}
    expected = {"test_env/environments/held_out.exr"}
    expected |= {f"train_env/environments/{name}.exr" for name in ("noon", "evening", "grove")}
    for i in range(LIMIT):
        stems = {name: (written / name / split / f"r_{i:03d}").relative_to(written)
                 for name, split in SETS.items()}
        expected |= {f"{stem}.exr" for stem in stems.values()}
        expected |= {f"{stems[name]}_{kind}.png" for name in (".", "test_env")
                     for kind in ("albedo", "normals", "roughness")}
        expected |= {f"{stems['.']}_visibility.png"}
    expected |= {str((written / name / f"transforms_{split}.json").relative_to(written))
                 for name, split in SETS.items()}
    assert names == expected


def described_lights(folder, meta, frame):
    """The lights that a JSON frame describes."""
    if "environment" not in frame:
        intensity = meta["light_intensity"] * torch.tensor(frame["light_weights"])
        return SceneLights(torch.tensor([frame["light_loc"]]), intensity, False)
    environment = read_exr(folder / frame["environment"], "RGB")
    assert environment.shape == (12, 24, 3) and environment.dtype == np.float16
    return SceneLights(*lit_scene.environment_texels(environment, frame["environment_turn"]), True)


@pytest.mark.parametrize("name", SETS)
def test_images_match_their_json(name, written):
    split, folder = SETS[name], written / name
    meta = json.loads((folder / f"transforms_{split}.json").read_text())
    cameras = demo_scene.blender_cameras(split)[0]
    focal = SIZE / 2 / math.tan(meta["camera_angle_x"] / 2)
    for i, frame in enumerate(meta["frames"]):
        assert frame["file_path"] == f"./{split}/r_{i:03d}"
        assert frame["transform_matrix"] == cameras[i].tolist()
        rendered = lit_scene.render_lit(
            cameras[i], demo_scene.pinhole(SIZE, SIZE, focal), SIZE, SIZE,
            described_lights(folder, meta, frame), seed=i)
        image = read_exr(folder / (frame["file_path"] + ".exr"), "RGBA")
        assert np.array_equal(image, rendered["rgba"].astype(np.float16))
        if split == "test":
            def stored(of, i=i):
                return imageio.imread(folder / split / f"r_{i:03d}_{of}.png") / 255

            np.testing.assert_allclose(stored("albedo")[..., :3], rendered["albedo"], atol=0.002)
            np.testing.assert_allclose(stored("albedo")[..., 3], image[..., 3], atol=0.003)
            np.testing.assert_allclose(2 * stored("normals") - 1, rendered["normals"], atol=0.004)
            np.testing.assert_allclose(stored("roughness"), rendered["roughness"], atol=0.002)
            if name == ".":
                visible = stored("visibility")
                np.testing.assert_allclose(visible, rendered["visibility"], atol=0.002)
    assert len(meta["frames"]) == LIMIT
    if name == "train_env":
        assert len({frame["environment"] for frame in meta["frames"]}) == 3
    if name.endswith("env"):
        assert len({frame["environment_turn"] for frame in meta["frames"]}) == LIMIT


def test_the_complete_set_has_60_and_20_views(tmp_path, monkeypatch):
    def blank(camtoworld, pixtocam, width, height, lamp, seed):
        grey = np.zeros((1, 1), np.float32)
        return {"rgba": np.zeros((1, 1, 4)), "albedo": np.zeros((1, 1, 3)),
                "normals": np.zeros((1, 1, 3)), "roughness": grey, "visibility": grey}

    monkeypatch.setattr(lit_scene, "render_lit", blank)
    lit_scene.write_nerv(tmp_path / "demo")
    counts = {name: len(list((tmp_path / "demo" / name / split).glob("*.exr")))
              for name, split in SETS.items()}
    assert counts == {"train_point": 60, ".": 20, "train_env": 60, "test_env": 20}


def test_existing_folder_is_not_changed_and_an_interrupted_write_leaves_nothing(
    tmp_path, monkeypatch
):
    (tmp_path / "mine").mkdir()
    lit_scene.write_nerv(tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(lit_scene, "render_lit", stopped)
    with pytest.raises(KeyboardInterrupt):
        lit_scene.write_nerv(tmp_path / "demo")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
