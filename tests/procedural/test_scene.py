"""The demo scene against sphere tracing, brute force, finite differences and hand calculation."""

import itertools
import json
import math

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from procedural import scene as demo_scene
from procedural import tracing
from procedural.solids import Box, Cylinder, Part, Sphere, plain
from procedural.still_life import FORWARD_FACING, STILL_LIFE

SHAPES = {
    "sphere": (Sphere(0.5), lambda x, y, z: x * x + y * y + z * z <= 0.25),
    "box": (
        Box((0.2, 0.5, 0.3)),
        lambda x, y, z: (abs(x) <= 0.2) & (abs(y) <= 0.5) & (abs(z) <= 0.3),
    ),
    "cylinder": (Cylinder(0.2, 0.5), lambda x, y, z: (x * x + y * y <= 0.04) & (abs(z) <= 0.5)),
}
RED_BALL = torch.tensor([-0.50, -0.36, -0.10], dtype=torch.float64)


def vector(*xyz):
    return torch.tensor(xyz, dtype=torch.float64)


def rays_through_scene(count, seed=0):
    """Rays from a sphere of radius 3 towards the still life; directions are not unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    start, goal = torch.randn(2, count, 3, generator=generator, dtype=torch.float64)
    origins = 3 * start / start.norm(dim=-1, keepdim=True)
    speed = 0.5 + torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return origins, (0.45 * goal - origins) / 3 * speed


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with tracing.single_thread():
        yield


@pytest.mark.parametrize("name", SHAPES)
def test_sdf_is_the_distance_to_the_solid(name):
    shape, inside = SHAPES[name]
    step = 1 / 48
    axis = torch.arange(-24, 25, dtype=torch.float64) * step
    grid = torch.cartesian_prod(axis, axis, axis)
    solid = grid[inside(*grid.T)]
    points = torch.rand(400, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points = 2.4 * points - 1.2
    sdf = shape.sdf(points.T)
    assert torch.equal(sdf <= 0, inside(*points.T))
    outside = sdf > 0
    brute = torch.cdist(points[outside], solid).amin(1)
    assert (brute - sdf[outside]).min() > -1e-9  # no solid point is nearer
    assert (brute - sdf[outside]).max() < math.sqrt(3) * step


@pytest.mark.parametrize("name", SHAPES)
def test_span_is_where_rays_enter_and_leave_the_solid(name):
    shape, inside = SHAPES[name]
    origins, directions = (v.T for v in rays_through_scene(500, seed=2))
    enter, leave = shape.span(origins, directions)
    t = torch.linspace(0, 16, 8001, dtype=torch.float64)
    member = inside(*(origins[..., None] + directions[..., None] * t))
    hit = enter < leave
    assert 50 < hit.sum() < 450
    clear = (leave - enter).abs() > 0.01  # a chord shorter than the sampling may be missed
    assert torch.equal(member.any(-1)[clear], hit[clear])
    count = member.double().sum(-1)
    first = t[member.double().argmax(-1)]
    chosen = hit & clear
    assert (first - enter)[chosen].abs().max() < 0.0021
    assert (count * 0.002 - (leave - enter))[chosen].abs().max() < 0.0042


@pytest.mark.parametrize("parts", [STILL_LIFE, FORWARD_FACING], ids=["alone", "backdrop"])
def test_distances_equal_sphere_tracing(parts):
    origins, directions = rays_through_scene(1500)
    origins[:, 2] = origins[:, 2].abs() + 0.1  # above the floor, before the wall
    origins[:, 1] = origins[:, 1].clamp_max(2.3)
    surface = tracing.intersect(origins, directions, parts)
    speed = directions.norm(dim=-1)
    t = torch.zeros_like(speed)
    for _ in range(250):
        gap = tracing.distance_to_surface(origins + t[:, None] * directions, parts)
        t = torch.where(t * speed < 50, t + gap / speed, t)
    arrived, gone = gap.abs() < 1e-9, t * speed >= 50
    assert (arrived | gone).double().mean() > 0.99
    assert torch.equal(surface.part[arrived] >= 0, torch.ones_like(arrived[arrived]))
    assert torch.equal(surface.part[gone] < 0, torch.ones_like(gone[gone]))
    assert (t - surface.distance)[arrived].abs().max() < 1e-5
    assert 0.4 < arrived.double().mean() and (parts is FORWARD_FACING or gone.any())


def test_hits_are_on_the_surface_and_nothing_is_before_them():
    origins, directions = rays_through_scene(600, seed=3)
    surface = tracing.intersect(origins, directions)
    hit = surface.part >= 0
    assert set(surface.part.tolist()) >= set(range(len(STILL_LIFE)))
    assert tracing.distance_to_surface(surface.point[hit]).abs().max() < 1e-9
    end = torch.where(hit, surface.distance, 20.0)
    before = torch.linspace(0, 0.999, 300, dtype=torch.float64)[:, None] * end
    points = origins + before[..., None] * directions
    assert tracing.distance_to_surface(points).min() > 0
    assert torch.equal(hit, surface.distance.isfinite())


def test_normals_equal_finite_differences_of_the_sdf():
    origins, directions = rays_through_scene(4000, seed=4)
    surface = tracing.intersect(origins, directions)
    hit = surface.part >= 0
    points, normals, part = surface.point[hit], surface.normal[hit], surface.part[hit]
    step = 1e-6 * torch.eye(3, dtype=torch.float64)
    sides = [tracing.distance_to_surface(points[:, None] + s * step) for s in (1, -1)]
    gradient = (sides[0] - sides[1]) / 2e-6
    agree = (gradient - normals).norm(dim=-1) < 1e-4
    for i in range(len(STILL_LIFE)):
        assert agree[part == i].double().mean() > 0.98, i  # edges and contacts have no gradient
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones_like(normals[:, 0]))
    assert ((normals * directions[hit]).sum(-1) < 1e-9).all()
    assert not surface.normal[~hit].any()


def test_a_ray_computed_by_hand():
    """Straight down on the red ball, whose top is at z = −0.10 + 0.43; the light is at 45.7°."""
    seen = tracing.trace(vector(-0.50, -0.36, 5.0), vector(0.0, 0.0, -2.0))
    assert seen.hit and math.isclose(seen.distance, (5 - 0.33) / 2, rel_tol=1e-12)
    torch.testing.assert_close(seen.normal, vector(0, 0, 1))
    highlight = 0.9 * ((1 + 0.698) / 2) ** 22.5
    lit = 0.45 + 0.12 + 0.62 * 0.698
    expected = vector(0.72, 0.05, 0.09) * lit + highlight
    torch.testing.assert_close(seen.rgb, expected, atol=1e-4, rtol=0)


def test_axis_parallel_rays_and_misses_are_finite():
    signs = [d for d in itertools.product((-1.0, 0.0, 1.0), repeat=3) if any(d)]
    directions = vector(*signs)
    seen = tracing.trace(-4 * directions, directions)
    assert seen.hit.all() and seen.distance.isfinite().all()
    away = tracing.trace(4 * directions, directions)
    assert not away.hit.any() and away.distance.isinf().all() and not away.rgb.any()
    assert tracing.trace(directions[:0], directions[:0]).rgb.shape == (0, 3)


def test_distance_is_in_units_of_the_direction_in_any_dtype():
    origins, directions = rays_through_scene(2000, seed=5)
    one, three = (tracing.trace(origins, k * directions) for k in (1, 3))
    torch.testing.assert_close(one.distance, 3 * three.distance)
    torch.testing.assert_close(one.rgb, three.rgb)
    single = tracing.trace(origins.float(), directions.float())
    assert single.rgb.dtype == torch.float32
    both = one.hit & single.hit
    assert (one.hit == single.hit).double().mean() > 0.999
    assert ((one.distance - single.distance)[both].abs() < 1e-4).double().mean() > 0.999


def test_highlights_depend_on_the_viewpoint_and_matt_colour_does_not():
    light = vector(*tracing.LIGHT)
    light /= light.norm()
    mirror = RED_BALL + 0.43 * light  # faces the light: reflects it to a viewer in line with it
    matt = vector(-0.725, 0.377, 0.15)  # on top of the upright board
    colours = []
    for point in (mirror, matt):
        eyes = point + 3 * torch.stack([light, vector(0, 0, 1), vector(-0.6, 0, 0.8)])
        seen = tracing.trace(eyes, point - eyes)
        torch.testing.assert_close(seen.distance, torch.ones_like(seen.distance))
        colours.append(seen.rgb)
    change = (colours[0][0] - colours[0][1:]).amax(-1)
    assert change.min() > 0.2
    torch.testing.assert_close(colours[1], colours[1][:1].expand(3, 3))


def test_shadow_of_the_ball_on_the_plate():
    """The centre's shadow along the light is dark; a plain spot of the plate is lit."""
    light = vector(*tracing.LIGHT)
    below = RED_BALL - light * (0.53 - 0.10) / light[2]
    assert tracing.occluded(below + vector(0, 0, 1e-4), light)
    assert not tracing.occluded(RED_BALL + 0.44 * light, light)
    parts = (Part(Cylinder(1.12, 0.09), (0.0, 0.0, -0.62), plain((0.5, 0.5, 0.5))), STILL_LIFE[3])
    above = torch.stack([below, vector(0.5, -0.6, -0.53)]) + vector(0, 0, 0.02)
    seen = tracing.trace(above, vector(0, 0, -1), parts)
    expected = vector(0.5 * 0.57, 0.5 * (0.57 + 0.62 * 0.698))[:, None].expand(2, 3)
    torch.testing.assert_close(seen.rgb, expected, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def views():
    """Cameras and surfaces at the pixel centres of all Blender views, by split."""
    centres = np.meshgrid(np.arange(100) + 0.5, np.arange(100) + 0.5)
    out = {}
    for split in ("train", "test"):
        camtoworlds, pixtocam = demo_scene.blender_cameras(split, 100)
        rays = [tracing.pixel_rays(c, pixtocam, *centres) for c in camtoworlds]
        out[split] = camtoworlds, pixtocam, [tracing.intersect(*r) for r in rays]
    return out


def test_object_covers_a_third_of_the_image_between_near_and_far(views):
    surfaces = views["train"][2] + views["test"][2]
    cover = torch.stack([s.distance.isfinite().double().mean() for s in surfaces])
    assert cover.mean() > 0.37 and cover.min() > 1 / 3
    hits = torch.cat([s.distance[s.part >= 0] for s in surfaces])
    assert 2.0 < hits.min() and hits.max() < 6.0
    for s in surfaces:  # the border never cuts the object
        border = torch.cat([s.part[0], s.part[-1], s.part[:, 0], s.part[:, -1]])
        assert (border < 0).all()
        assert s.point.norm(dim=-1).max() < 1.35
    seen = torch.cat([s.part.unique() for s in surfaces]).unique()
    assert seen.tolist() == list(range(-1, len(STILL_LIFE)))


def test_blender_cameras_are_rigid_and_test_views_lie_between_training_views(views):
    train, test = views["train"][0], views["test"][0]
    assert train.shape == (60, 4, 4) and test.shape == (20, 4, 4)
    for pose in np.concatenate([train, test]):
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(pose[:3, :3]) > 0.999 and pose[3].tolist() == [0, 0, 0, 1]
        np.testing.assert_allclose(pose[:3, 3] - 4 * pose[:3, 2], 0, atol=1e-12)  # looks along −z
        assert pose[2, 1] > 0 and abs(pose[2, 0]) < 1e-12  # upright
    heights = train[:, 2, 3] / 4
    assert heights.min() < math.sin(math.radians(8)) and heights.max() > math.sin(math.radians(75))
    nearest = np.degrees(np.arccos((test[:, :3, 2] @ train[:, :3, 2].T).max(1)))
    assert nearest.min() > 5 and nearest.max() < 20
    assert heights.min() < (test[:, 2, 3] / 4).min() and heights.max() > (test[:, 2, 3] / 4).max()


def test_image_is_upright(views):
    """Projected by hand: image x grows to the camera's right, y downwards."""
    camtoworlds, pixtocam, surfaces = views["train"]
    pose, surface = camtoworlds[30], surfaces[30]
    x, y, z = pose[:3, :3].T @ (RED_BALL.numpy() - pose[:3, 3])
    focal = 50 / math.tan(demo_scene.BLENDER_ANGLE_X / 2)
    column, row = int(50 + focal * x / -z), int(50 - focal * y / -z)
    alone = tracing.intersect(*tracing.pixel_rays(pose, pixtocam, column + 0.5, row + 0.5),
                                 (STILL_LIFE[3],))
    assert alone.part == 0
    assert (alone.normal + torch.from_numpy(pose[:3, :3] @ (x, y, z)) / 4).norm() < 0.2
    depth = -(surface.point.numpy() - pose[:3, 3]) @ pose[:3, 2]
    hit = surface.part.numpy() >= 0
    np.testing.assert_allclose(surface.distance.numpy()[hit], depth[hit])  # t is depth


def test_rendered_normals_of_a_ball_are_those_of_its_formula():
    ball = (Part(Sphere(0.5), (0.1, 0.0, 0.0), plain((0.5, 0.5, 0.5))),)
    camtoworld = demo_scene.look_at((0.1, -3.0, 0.0), (0.1, 0.0, 0.0))
    pixtocam = demo_scene.pinhole(31, 21, 80.0)
    normals, opacity = tracing.render_normals(camtoworld, pixtocam, 31, 21, parts=ball)
    assert normals.shape == (21, 31, 3) and opacity.shape == (21, 31)
    assert set(opacity.unique().tolist()) > {0.0, 1.0} and (normals[opacity == 0] == 0).all()
    # The ray of a pixel x from the centre: 3 - t = 0.5 cos, t x / 80 = 0.5 sin.
    for x in (-8, 0, 5):
        slope = x / 80
        t = (3 - math.sqrt(9 - (1 + slope**2) * 8.75)) / (1 + slope**2)
        wanted = vector(2 * t * slope, 2 * (t - 3), 0.0)
        assert (normals[10, 15 + x] - wanted).abs().max() < 2e-3


def test_render_averages_premultiplied_colour_and_gives_coverage(monkeypatch):
    camtoworlds, pixtocam = demo_scene.blender_cameras("test", 100)
    image = tracing.render(camtoworlds[14], pixtocam, 100, 100)
    alpha = image[..., 3]
    assert image.dtype == np.uint8 and image.shape == (100, 100, 4)
    assert ((alpha > 0) & (alpha < 255)).sum() > 200 and (alpha == 255).any()
    assert not image[alpha == 0].any()
    row, column = np.argwhere((alpha > 60) & (alpha < 200))[0]
    offsets = (np.arange(4) + 0.5) / 4
    x, y = np.meshgrid(column + offsets, row + offsets)
    seen = tracing.trace(*tracing.pixel_rays(camtoworlds[14], pixtocam, x, y))
    assert alpha[row, column] == round(255 * seen.hit.double().mean().item())
    straight = seen.rgb[seen.hit].mean(0).numpy()
    np.testing.assert_allclose(image[row, column, :3], 255 * straight, atol=0.51)
    monkeypatch.setattr(tracing, "RAYS_PER_BAND", 100 * 16 * 7)  # the last band is smaller
    assert np.array_equal(image, tracing.render(camtoworlds[14], pixtocam, 100, 100))
    hard = tracing.render(camtoworlds[14], pixtocam, 50, 40, supersample=1)
    assert hard.shape == (40, 50, 4) and set(np.unique(hard[..., 3])) == {0, 255}


@pytest.fixture
def few_views(monkeypatch):
    monkeypatch.setattr(demo_scene, "NUM_BLENDER_VIEWS", 4)
    monkeypatch.setattr(demo_scene, "LLFF_GRID", (2, 1))


WRITERS = [demo_scene.write_blender, demo_scene.write_llff]


@pytest.mark.parametrize("write", WRITERS)
def test_two_writes_are_byte_identical(write, few_views, tmp_path):
    folders = [tmp_path / "a" / "demo", tmp_path / "b" / "demo"]
    for folder in folders:
        write(folder)
    first, second = (
        {p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders
    )
    assert first == second and len(first) >= 3
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["demo"]


@pytest.mark.parametrize("write", WRITERS)
def test_an_interrupted_write_leaves_nothing(write, few_views, tmp_path, monkeypatch):
    calls = []

    def stopped(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return np.zeros((4, 4, 4), np.uint8)

    monkeypatch.setattr(demo_scene, "render", stopped)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "demo")
    assert len(calls) >= 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", WRITERS)
def test_an_existing_folder_is_not_changed(write, tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    write(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("write", WRITERS)
def test_the_slower_of_two_writers_discards_its_files(write, few_views, tmp_path, monkeypatch):
    def overtaken(*args, **kwargs):
        (tmp_path / "demo").mkdir(exist_ok=True)
        (tmp_path / "demo" / "first.txt").write_text("first")
        return np.zeros((4, 4, 4), np.uint8)

    monkeypatch.setattr(demo_scene, "render", overtaken)
    write(tmp_path / "demo")
    assert [p.name for p in (tmp_path / "demo").iterdir()] == ["first.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


def test_blender_files_agree_with_the_cameras(few_views, tmp_path):
    demo_scene.write_blender(tmp_path / "demo", size=100)
    for split, count in (("train", 3), ("test", 1)):
        meta = json.loads((tmp_path / "demo" / f"transforms_{split}.json").read_text())
        camtoworlds, pixtocam = demo_scene.blender_cameras(split, 100)
        assert len(meta["frames"]) == len(camtoworlds) == count
        focal = 0.5 * 100 / math.tan(0.5 * meta["camera_angle_x"])
        np.testing.assert_allclose(np.linalg.inv(pixtocam)[0, 0], focal)
        for frame, camtoworld in zip(meta["frames"], camtoworlds, strict=True):
            assert frame["transform_matrix"] == camtoworld.tolist()
            image = imageio.imread(tmp_path / "demo" / (frame["file_path"] + ".png"))
            expected = tracing.render(camtoworld, pixtocam, 100, 100, supersample=3)
            assert np.array_equal(image, expected)


def test_llff_poses_bounds_and_images(few_views, tmp_path):
    """Poses converted by hand: LLFF's columns are down, right, backwards."""
    demo_scene.write_llff(tmp_path / "demo")
    rows = np.load(tmp_path / "demo" / "poses_bounds.npy")
    assert rows.shape == (2, 17) and rows.dtype == np.float64
    images = sorted((tmp_path / "demo" / "images_4").iterdir())
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == ["images_4", "poses_bounds.npy"]
    camtoworlds, _ = demo_scene.llff_cameras()
    for row, path, camtoworld in zip(rows, images, camtoworlds, strict=True):
        down, right, back, position, (height, width, focal) = row[:15].reshape(3, 5).T
        np.testing.assert_allclose(np.stack([right, -down, back, position], 1), camtoworld[:3])
        image = imageio.imread(path)
        assert image.shape == (90, 120, 3) and (height, width) == (360, 480)
        x, y = np.meshgrid(np.arange(120) + 0.5, np.arange(90) + 0.5)
        u, v = (4 * x - width / 2) / focal, (4 * y - height / 2) / focal
        directions = u[..., None] * right + v[..., None] * down - back
        seen = tracing.trace(torch.from_numpy(position), torch.from_numpy(directions),
                                FORWARD_FACING)
        assert seen.hit.all()  # content everywhere
        assert row[15] < seen.distance.min() < 1.1 * row[15]
        assert 0.9 * row[16] < seen.distance.max() < row[16]
        assert np.abs(image / 255 - seen.rgb.numpy()).mean() < 0.06


def test_llff_cameras_face_forward_and_surround_the_held_out_views():
    camtoworlds, _ = demo_scene.llff_cameras()
    assert 20 <= len(camtoworlds) <= 30
    np.testing.assert_allclose(np.linalg.det(camtoworlds[:, :3, :3]), 1)
    assert (-camtoworlds[:, 1, 2] > 0.95).all()  # all look along +y
    place = camtoworlds[:, [0, 2], 3]
    held, others = place[::8], np.delete(place, np.s_[::8], axis=0)
    assert (np.abs(held - (0, 0.5)) < (0.35, 0.22)).all()  # the others reach (0.5, 0.3)
    assert np.linalg.norm(held[:, None] - others[None], axis=-1).min() > 0.02
