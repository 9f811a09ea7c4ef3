"""Cameras of the browser (OpenCV's axes) and the project's poses, against hand-made ones."""

import math

import numpy as np
import pytest
import torch

from structures import Cameras
from tests.scenes import look_at, open_scene, write_llff
from viewer.poses import fitted_fov, from_viser, stage_of, to_viser

HALF = math.sqrt(0.5)


@pytest.mark.parametrize("wxyz,right,up,forward", [
    # No rotation: OpenCV's camera looks along +z, and y points down.
    ((1, 0, 0, 0), (1, 0, 0), (0, -1, 0), (0, 0, 1)),
    # A quarter turn about x moves z to -y and y to z.
    ((HALF, HALF, 0, 0), (1, 0, 0), (0, 0, -1), (0, -1, 0)),
    # A quarter turn about z moves x to y.
    ((HALF, 0, 0, HALF), (0, 1, 0), (1, 0, 0), (0, 0, 1)),
])
def test_axes_of_the_browsers_camera(wxyz, right, up, forward):
    pose = from_viser(np.array(wxyz), np.array([1.0, 2.0, 3.0]))
    assert np.allclose(pose[:, 0], right) and np.allclose(pose[:, 1], up)
    assert np.allclose(-pose[:, 2], forward) and pose[:, 3].tolist() == [1, 2, 3]


def test_poses_survive_the_way_to_the_browser_and_back():
    pose = look_at([3, 1, 2])[:3]
    wxyz, position = to_viser(pose)
    assert np.allclose(from_viser(wxyz, position), pose)
    # The browser's y axis points down in the image: upright cameras have it below the horizon.
    w, x, y, z = wxyz
    down = np.array([2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)])
    assert down[2] < -0.5


def test_a_narrow_window_shows_the_whole_width_of_an_image():
    assert fitted_fov(0.8, 1.5, 2.0) == pytest.approx(0.8)
    fov = fitted_fov(0.8, 1.5, 0.75)
    assert math.tan(fov / 2) * 0.75 == pytest.approx(math.tan(0.4) * 1.5)


def round_cameras(offset, scale):
    poses = np.stack([look_at([4 * math.cos(a), 4 * math.sin(a), 2]) for a in range(6)])[:, :3]
    poses[:, :, 3] = scale * poses[:, :, 3] + offset
    pixel = 2 * math.tan(0.3) / 8
    pixtocams = torch.tensor([[pixel, 0, -6 * pixel], [0, -pixel, 4 * pixel], [0, 0, -1]])
    return Cameras(camtoworlds=torch.tensor(poses, dtype=torch.float32),
                   pixtocams=pixtocams.expand(6, 3, 3), sizes=torch.tensor([[12, 8]] * 6),
                   near=0.1 * scale, far=10.0 * scale)


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_a_viewer_begins_on_the_circle_of_the_cameras_and_in_their_units(scale):
    offset = np.array([5.0, 6.0, 7.0]) * scale
    stage = stage_of(round_cameras(offset, scale))
    assert np.allclose(stage.focus, offset, atol=1e-3 * scale)
    assert np.allclose(stage.up, [0, 0, 1], atol=1e-4)
    assert stage.distance == pytest.approx(math.sqrt(20) * scale, rel=1e-3)
    assert np.linalg.norm(stage.camtoworld[:, 3] - offset) == pytest.approx(stage.distance)
    assert stage.fov == pytest.approx(0.6, rel=1e-5) and stage.aspect == 1.5


def test_cameras_that_look_outwards_have_a_point_to_turn_about():
    cameras = round_cameras(np.zeros(3), 1.0)
    cameras.camtoworlds[:, :, [0, 2]] *= -1
    stage = stage_of(cameras)
    assert stage.distance > 0 and np.isfinite(stage.focus).all()
    ahead = (stage.focus - stage.camtoworld[:, 3]) / stage.distance
    assert np.allclose(ahead, -stage.camtoworld[:, 2])


def test_forward_facing_scenes_begin_amid_their_cameras(tmp_path):
    write_llff(tmp_path / "s")
    stage = stage_of(open_scene(tmp_path / "s", "llff", read_pixels=False).cameras)
    assert np.abs(stage.camtoworld[:, 3]).max() < 0.1
    assert stage.focus[2] < -1 and stage.up[1] > 0.99
