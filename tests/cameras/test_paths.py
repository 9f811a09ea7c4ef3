"""Video paths: every camera sees the scene, and all rays can be represented."""

import math

import numpy as np
import pytest
import torch

import coord
import pose_utils
from cameras.paths import choose_path, path_cameras
from config import get_config
from datasets import load_dataset
from loaders.lenses import pixtocam
from procedural import scene as demo_scene
from procedural import tracing
from ray_utils import pixels_to_rays
from runtime.errors import UserError
from structures import Cameras
from tests.scenes import look_at, round_poses, write_llff

ALL_PATHS = [("ellipse", {}), ("spherical", {}), ("spiral", {}), ("zoom", {}),
             ("zoom", {"dolly": True})]


def cameras_of(poses, width=12, height=8, focal=15.0, near=2.0, far=6.0, **fields):
    poses = torch.tensor(np.asarray(poses)[:, :3], dtype=torch.float32)
    inverse = torch.tensor(pixtocam(focal, focal, width, height), dtype=torch.float32)
    return Cameras(
        camtoworlds=poses, pixtocams=inverse.expand(len(poses), 3, 3), near=near, far=far,
        sizes=torch.tensor([[width, height]]).expand(len(poses), 2), **fields,
    )


def blender_demo():
    poses, inverse = demo_scene.blender_cameras("train", 100)
    return cameras_of(poses, 100, 100, -1 / inverse[1, 1], near=2.6, far=5.4)


def multicam_demo():
    """The same views at three scales, as a Multicam scene has them."""
    poses, inverse = demo_scene.blender_cameras("train", 100)
    scales = [100, 50, 25]
    return Cameras(
        camtoworlds=torch.tensor(np.repeat(poses, 3, axis=0)[:, :3], dtype=torch.float32),
        pixtocams=torch.tensor(np.tile(np.stack(
            [pixtocam(s / 100 / inverse[0, 0], s / 100 / inverse[0, 0], s, s) for s in scales]
        ), (len(poses), 1, 1)), dtype=torch.float32),
        sizes=torch.tensor([[s, s] for s in scales] * len(poses)), near=2.6, far=5.4,
    )


def llff_scene(tmp_path, poses, *flags, size=(12, 9)):
    write_llff(tmp_path / "s", poses=poses, size=size)
    config = get_config(["--dataset_name", "llff", "--scene", str(tmp_path / "s"), *flags])
    return load_dataset(config, "train").scene


def llff_demo(tmp_path, *flags):
    scene = llff_scene(tmp_path, demo_scene.llff_cameras()[0], *flags)
    return scene.cameras, scene.world_to_scene.float()


def rays_of(cameras, every=1):
    """Rays `[F, h, w]` of all frames, of every n-th pixel."""
    width, height = cameras.sizes[0].tolist()
    index, y, x = torch.meshgrid(
        torch.arange(len(cameras)), torch.arange(0, height, every),
        torch.arange(0, width, every), indexing="ij",
    )
    return pixels_to_rays(cameras, index, x, y)


@pytest.mark.parametrize("make", [blender_demo, multicam_demo])
@pytest.mark.parametrize("path,flags", ALL_PATHS)
def test_every_camera_around_the_scene_sees_it_between_near_and_far(make, path, flags):
    frames = path_cameras(make(), path, 24, **flags)
    rays = rays_of(frames, every=5)
    seen = tracing.intersect(rays.origins, rays.directions)
    hit = seen.part >= 0
    assert (hit.float().mean(dim=(1, 2)) > 0.08).all()
    # The image centre shows the still life.
    assert hit[:, 9:11, 9:11].any(dim=2).any(dim=1).all()
    assert (seen.distance[hit] > rays.near[..., 0][hit]).all()
    assert (seen.distance[hit] < rays.far[..., 0][hit]).all()


@pytest.mark.parametrize("path,flags", [*ALL_PATHS[:4], ("zoom", {"dolly": True, "zoom": 1.2})])
@pytest.mark.parametrize("ndc", ["--ndc", "--no-ndc"])
def test_every_forward_facing_camera_sees_the_scene(tmp_path, ndc, path, flags):
    cameras, world_to_scene = llff_demo(tmp_path, ndc)
    frames = path_cameras(cameras, path, 24, **flags)
    rays = rays_of(frames)
    assert all(torch.isfinite(getattr(rays, name)).all() for name in ("origins", "directions"))
    scene_to_world = torch.linalg.inv(world_to_scene)
    if ndc == "--ndc":  # Two points of each ray, back in the world.
        starts, ends = (coord.from_ndc(rays.origins + t * rays.directions, *frames.ndc)
                        for t in (0.0, 0.5))
        assert (ends[..., 2] < starts[..., 2]).all() and (starts[..., 2] < -0.999).all()
    else:
        starts, ends = rays.origins, rays.origins + rays.directions
    starts, ends = (p @ scene_to_world[:3, :3].T + scene_to_world[:3, 3] for p in (starts, ends))
    seen = tracing.intersect(starts, ends - starts)
    assert ((seen.part >= 0).float().mean(dim=(1, 2)) > 0.08).all()


@pytest.mark.parametrize("path,flags", ALL_PATHS)
def test_paths_of_a_spherified_capture_look_at_the_origin(tmp_path, path, flags):
    scene = llff_scene(tmp_path, np.stack(round_poses(12)), "--spherify")
    frames = path_cameras(scene.cameras, path, 16, **flags)
    positions, forward = frames.camtoworlds[:, :, 3], -frames.camtoworlds[:, :, 2]
    # The capture's focus is the origin.
    toward = torch.nn.functional.normalize(-positions, dim=-1)
    torch.testing.assert_close(toward, forward, atol=1e-4, rtol=0)
    if path == "spherical":
        assert torch.linalg.matrix_rank(positions - positions.mean(0), atol=1e-3) == 2
        torch.testing.assert_close(positions.mean(0)[:2], torch.zeros(2), atol=1e-4, rtol=0)


def test_the_circle_is_full_and_at_the_cameras_median_elevation():
    frames = path_cameras(blender_demo(), "spherical", 12)
    x, y, z = frames.camtoworlds[:, :, 3].double().T
    training_heights = demo_scene.blender_cameras("train")[0][:, 2, 3]
    expected = torch.tensor(4 * np.sin(np.median(np.arcsin(training_heights / 4))))
    torch.testing.assert_close(z, expected.expand(12), atol=1e-5, rtol=0)
    turns = torch.diff(torch.atan2(y, x), append=torch.atan2(y, x)[:1]) % (2 * math.pi)
    torch.testing.assert_close(turns, torch.full_like(turns, 2 * math.pi / 12))
    # Upright: the camera's x axis is horizontal, its y axis points up.
    assert frames.camtoworlds[:, 2, 0].abs().max() < 1e-6
    assert (frames.camtoworlds[:, 2, 1] > 0).all()


def on_an_ellipse(angles):
    """Positions on a tilted ellipse at azimuths about the origin."""
    x, y = 3 * np.cos(angles), 3 * np.sin(angles)
    return np.stack([x, y, 1.5 + 0.2 * x - 0.1 * y], axis=-1)


def azimuths_of(frames):
    """The azimuths of cameras, after checking that they lie on that ellipse and face the origin."""
    positions = frames.camtoworlds[:, :, 3].double()
    angles = torch.atan2(positions[:, 1], positions[:, 0]).numpy()
    np.testing.assert_allclose(positions, on_an_ellipse(angles), atol=1e-5)
    toward = torch.nn.functional.normalize(-positions, dim=-1)
    torch.testing.assert_close(-frames.camtoworlds[:, :, 2].double(), toward, atol=1e-5, rtol=0)
    return angles


def test_the_ellipse_goes_through_the_cameras():
    cameras = cameras_of([look_at(p) for p in on_an_ellipse(2 * np.pi * np.arange(24) / 24)])
    assert choose_path(cameras) == (
        "ellipse", "the cameras cover 345 of 360 degrees around what they look at")
    angles = azimuths_of(path_cameras(cameras, "ellipse", 36))
    turns = np.diff(angles, append=angles[0]) % (2 * np.pi)
    np.testing.assert_allclose(turns, 2 * np.pi / 36, atol=1e-5)


@pytest.mark.parametrize("middle", [0.0, 1.0, 3.0])
def test_the_ellipse_stays_within_the_cameras_arc(middle):
    """For cameras on an arc the path runs back and forth, from end to end."""
    cameras = cameras_of([look_at(p) for p in on_an_ellipse(middle + np.linspace(-1.4, 1.4, 15))])
    frames = path_cameras(cameras, "ellipse", 24)
    angles = (azimuths_of(frames) - middle + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_allclose(angles[[0, 12]], [-1.4, 1.4], atol=1e-5)
    np.testing.assert_allclose(angles[1:], angles[:0:-1], atol=1e-5)
    assert (np.diff(angles[:13]) > 0).all()


def test_the_ellipse_looks_where_its_cameras_look():
    """Handheld cameras do not all face one point: at one end they face up, at the other down."""
    angles = np.linspace(-1.1, 1.1, 15)
    positions = on_an_ellipse(angles)
    aims = np.stack([0 * angles, 0 * angles, np.sin(angles)], axis=-1)
    poses = [demo_scene.look_at(place, aim)[:3] for place, aim in zip(positions, aims, strict=True)]
    frames = path_cameras(cameras_of(poses), "ellipse", 28).camtoworlds.double().numpy()
    distances = np.linalg.norm(frames[:, None, :, 3] - positions, axis=-1)
    forward = -np.stack(poses)[distances.argmin(axis=1), :3, 2]
    apart = np.degrees(np.arccos((forward * -frames[:, :, 2]).sum(axis=-1)))
    assert apart.max() < 4
    to_middle = -frames[[0, 14], :, 3] / np.linalg.norm(frames[[0, 14], :, 3], axis=1)[:, None]
    assert np.degrees(np.arccos((to_middle * -frames[[0, 14], :, 2]).sum(axis=1))).min() > 10


def test_the_path_depends_on_the_layout_of_the_cameras(tmp_path):
    path, reason = choose_path(llff_demo(tmp_path)[0])
    assert (path, reason) == ("spiral", "the cameras face forward")
    assert choose_path(blender_demo())[0] == "ellipse"
    outward = np.stack(round_poses(8))
    outward[:, :3, :3] = outward[:, :3, :3] @ np.diag([-1.0, 1, -1])
    assert choose_path(cameras_of(outward)) == (
        "ellipse", "the cameras look away from one another")


def test_the_helix_climbs_from_the_equator_to_the_pole():
    frames = path_cameras(blender_demo(), "spiral", 30)
    height = frames.camtoworlds[:, 2, 3] / frames.camtoworlds[:, :, 3].norm(dim=-1)
    torch.testing.assert_close(height[[0, -1]], torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)
    assert (height.diff() > 0).all()
    rotations = frames.camtoworlds[:, :, :3]
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).expand(30, 3, 3))


@pytest.mark.parametrize("turn", [np.eye(3), np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])])
def test_paths_rotate_with_the_world(turn):
    """Up is derived from the cameras; it is not an axis of the world."""
    poses = np.stack(round_poses(9))
    turned = poses.copy()
    turned[:, :3] = turn @ poses[:, :3]
    for path in ("ellipse", "spherical", "spiral"):
        a, b = (path_cameras(cameras_of(p), path, 7).camtoworlds for p in (poses, turned))
        moved = torch.tensor(turn, dtype=torch.float32) @ a
        torch.testing.assert_close(moved, b, atol=1e-5, rtol=1e-5)


def test_the_spiral_equals_llffs(tmp_path):
    """Against the official construction, frame by frame."""
    cameras, _ = llff_demo(tmp_path)
    frames = path_cameras(cameras, "spiral", 8).camtoworlds.double().numpy()
    poses = cameras.camtoworlds.double().numpy()
    backward = poses[:, :, 2].sum(0) / np.linalg.norm(poses[:, :, 2].sum(0))
    right = np.cross(poses[:, :, 1].sum(0), backward)
    right /= np.linalg.norm(right)
    mean = np.stack([right, np.cross(backward, right), backward, poses[:, :, 3].mean(0)], axis=1)
    reach = np.percentile(np.abs((poses[:, :, 3] - mean[:, 3]) @ mean[:, :3]), 90, axis=0)
    # Its focus: a quarter of the disparity at 1.2 near planes, the rest at infinity.
    focus = mean @ [0, 0, -4.8, 1]
    for i, pose in enumerate(frames):
        theta = 4 * np.pi * i / 8
        place = [np.cos(theta), -np.sin(theta), -np.sin(theta / 2)]
        np.testing.assert_allclose(pose[:, 3], mean @ np.append(reach * place, 1), atol=1e-5)
        away = pose[:, 3] - focus
        np.testing.assert_allclose(pose[:, 2], away / np.linalg.norm(away), atol=1e-5)


def test_the_arc_stays_within_the_cameras_extent(tmp_path):
    cameras, _ = llff_demo(tmp_path)
    frames = path_cameras(cameras, "spherical", 16)
    x, y, z = frames.camtoworlds[:, :, 3].T
    x_cameras = cameras.camtoworlds[:, 0, 3]
    assert x_cameras.min() <= x.min() and x.max() <= x_cameras.max()
    assert x.max() - x.min() > 0.5 * (x_cameras.max() - x_cameras.min())
    # All frames look at one point, from one distance.
    forward = frames.camtoworlds[:, :, 2]
    points = frames.camtoworlds[:, :, 3] - 4.8 * forward
    torch.testing.assert_close(points, points[:1].expand(16, 3), atol=0.02, rtol=0)


def test_a_zoom_narrows_the_cones_and_a_dolly_does_not():
    frames = path_cameras(blender_demo(), "zoom", 4, zoom=3.0)
    radii = rays_of(frames)[:, 50, 50].radii[:, 0]
    # To three times the focal length and back.
    half = math.sqrt(3)
    torch.testing.assert_close(radii[0] / radii, torch.tensor([1, half, 3, half]), rtol=1e-3,
                               atol=0)
    assert torch.equal(frames.camtoworlds, frames.camtoworlds[:1].expand(4, 3, 4))
    moved = path_cameras(blender_demo(), "zoom", 4, zoom=2.0, dolly=True)
    radii = rays_of(moved)[:, 50, 50].radii[:, 0]
    torch.testing.assert_close(radii, radii[:1].expand(4))
    distance = moved.camtoworlds[:, :, 3].norm(dim=-1)
    half = 4 / math.sqrt(2)
    torch.testing.assert_close(distance, torch.tensor([4.0, half, 2, half]), rtol=1e-3, atol=0)
    torch.testing.assert_close(moved.far - moved.near, torch.full((4,), 2.8), rtol=1e-3, atol=0)


def test_a_dolly_shot_through_the_near_plane_of_ndc_is_rejected(tmp_path):
    cameras, _ = llff_demo(tmp_path)
    with pytest.raises(UserError, match=r"zoom path moves a camera to z = -\d.*--zoom"):
        path_cameras(cameras, "zoom", 12, zoom=2.0, dolly=True)


def test_rays_that_ndc_cannot_represent_are_rejected():
    aside = np.eye(4)
    aside[0, [0, 2]], aside[2, [0, 2]] = (0.1, 0.995), (-0.995, 0.1)
    with pytest.raises(UserError, match="do not go towards -z"):
        path_cameras(cameras_of([aside], near=0.0, far=1.0, ndc=(15.0, 12, 8)), "spherical", 3)


@pytest.mark.parametrize("poses", [
    [np.eye(4)],                                                  # one camera at the origin
    [look_at([0, 0.1, 4.0])],                                     # one camera that looks at it
    [np.eye(4), np.diag([-1.0, 1, -1, 1])],                       # back to back
])
@pytest.mark.parametrize("path,flags", ALL_PATHS)
def test_few_or_degenerate_cameras_still_give_a_path(poses, path, flags):
    for near in (2.0, 0.0):
        frames = path_cameras(cameras_of(poses, near=near), path, 5, **flags)
        for name in ("camtoworlds", "near", "far"):
            assert torch.isfinite(getattr(frames, name)).all()
        assert (frames.near < frames.far).all() and (frames.near >= 0).all()


def test_the_path_of_outward_facing_cameras_turns_on_the_spot():
    poses = np.stack(round_poses(8))
    poses[:, :3, :3] = poses[:, :3, :3] @ np.diag([-1.0, 1, -1])
    frames = path_cameras(cameras_of(poses), "spherical", 8)
    positions = frames.camtoworlds[:, :, 3]
    torch.testing.assert_close(positions, positions[:1].expand(8, 3))
    azimuths = torch.atan2(frames.camtoworlds[:, 1, 2], frames.camtoworlds[:, 0, 2])
    turns = torch.diff(azimuths) % (2 * math.pi)
    torch.testing.assert_close(turns, torch.full_like(turns, math.pi / 4))


def test_up_is_towards_cameras_that_look_straight_down_with_any_roll():
    poses = []
    for roll in np.arange(8) * np.pi / 4:
        pose = np.eye(4)
        pose[:2, :2] = [[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]]
        pose[:3, 3] = [np.cos(roll), np.sin(roll), 4]
        poses.append(pose)
    up = pose_utils.up_direction(np.stack(poses)[:, :3])
    np.testing.assert_allclose(up, [0, 0, 1], atol=1e-9)


@pytest.mark.parametrize("given,size", [
    ({}, (12, 8)), ({"width": 24}, (24, 16)), ({"height": 5}, (8, 5)),
    ({"width": 31, "height": 7}, (31, 7)),
])
def test_frames_show_at_least_what_the_images_show(given, size):
    cameras = cameras_of(round_poses(5))
    frames = path_cameras(cameras, "spherical", 2, **given)
    assert frames.sizes.tolist() == [list(size)] * 2

    def half_angles(c):
        inverse = c.pixtocams[0]
        return np.array([c.sizes[0, i] * abs(inverse[i, i]) / 2 for i in (0, 1)])

    ratio = half_angles(frames) / half_angles(cameras)
    assert ratio.min() == pytest.approx(1, abs=0.05) and (ratio > 0.95).all()
    # Pixels stay square.
    assert abs(frames.pixtocams[0, 0, 0]) == pytest.approx(abs(frames.pixtocams[0, 1, 1]))


def test_frames_are_as_large_as_the_largest_image():
    assert path_cameras(multicam_demo(), "zoom", 2).sizes.tolist() == [[100, 100]] * 2
