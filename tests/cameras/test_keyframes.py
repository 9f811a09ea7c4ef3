"""Films through key frames: known curves, files, and bad input in one sentence."""

import json
import math

import numpy as np
import pytest
import torch

import visualize
from cameras.keyframes import (
    KeyFrames,
    film_cameras,
    find_key_frames,
    in_order,
    interpolate,
    parse_path,
    path_text,
    read_path,
    with_key_frame,
    write_path,
)
from ray_utils import image_rays
from runtime.errors import UserError
from tests.scenes import look_at, open_scene, write_blender, write_llff

FOV = 0.8


def film(poses, **options):
    poses = np.stack(poses)[:, :3]
    fovs = options.pop("fovs", np.full(len(poses), FOV))
    return KeyFrames(camtoworlds=poses, fovs=np.asarray(fovs), **options)


def on_circle(count, radius=3.0):
    angles = 2 * np.pi * np.arange(count) / count
    return [look_at([radius * np.cos(a), radius * np.sin(a), 1.0]) for a in angles]


def shifted(*positions):
    poses = np.tile(np.eye(4), (len(positions), 1, 1))
    poses[:, :3, 3] = positions
    return poses


@pytest.mark.parametrize("constant_speed", [True, False])
@pytest.mark.parametrize("closed", [True, False])
def test_a_film_passes_its_key_frames_at_rotations_and_without_jumps(constant_speed, closed):
    frames = film(on_circle(5), closed=closed, constant_speed=constant_speed,
                  fovs=np.linspace(0.5, 0.9, 5))
    poses, fovs = interpolate(frames, 2000)
    assert np.allclose(poses[0], frames.camtoworlds[0]) and math.isclose(fovs[0], 0.5)
    for pose, fov in zip(frames.camtoworlds, frames.fovs, strict=True):
        nearest = np.abs(poses - pose).max(axis=(1, 2)).argmin()
        assert np.abs(poses[nearest] - pose).max() < 0.02 and abs(fovs[nearest] - fov) < 1e-2
    identity = np.swapaxes(poses[:, :, :3], 1, 2) @ poses[:, :, :3]
    assert np.allclose(identity, np.eye(3), atol=1e-9)
    steps = np.linalg.norm(np.diff(poses[:, :, 3], axis=0), axis=1)
    assert steps.max() < 0.05
    seam = np.linalg.norm(poses[-1, :, 3] - poses[0, :, 3])
    assert (seam < 2 * steps.max()) == closed


def test_a_closed_film_of_a_full_turn_goes_on_smoothly_over_its_end():
    poses, _ = interpolate(film(on_circle(6), closed=True), 360)
    # The curve of six views is nearly the circle, on which the camera looks at the origin.
    assert np.allclose(np.linalg.norm(poses[:, :2, 3], axis=1), 3, atol=0.03)
    directions = -poses[:, :, 2]
    towards = -poses[:, :, 3] / np.linalg.norm(poses[:, :, 3], axis=1, keepdims=True)
    assert np.degrees(np.arccos((directions * towards).sum(axis=1).clip(-1, 1))).max() < 1.5
    assert np.abs(poses[:, 2, 0]).max() < 1e-6  # Level: no camera's x axis leaves the ground.
    wrapped = np.concatenate([poses, poses[:3]])
    steps = np.diff(wrapped[:, :, 3], axis=0)
    assert np.abs(np.diff(steps, axis=0)).max() < 0.002


def test_constant_speed_is_constant_and_the_other_takes_equal_times():
    uneven = shifted([0, 0, 0], [1, 0, 0], [9, 0, 0])
    poses, _ = interpolate(film(uneven), 181)
    steps = np.diff(poses[:, 0, 3])
    assert np.allclose(steps, 9 / 180, rtol=0.02)
    poses, _ = interpolate(film(uneven, constant_speed=False), 181)
    assert poses[90, 0, 3] == pytest.approx(1) and np.diff(poses[:, 0, 3]).max() > 2 * 9 / 180


def test_a_camera_that_only_turns_turns_evenly():
    poses = np.tile(np.eye(4), (3, 1, 1))
    for pose, angle in zip(poses, (0, 0.2, 1.4), strict=True):
        pose[:3, :3] = [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0],
                        [-math.sin(angle), 0, math.cos(angle)]]
    turned, _ = interpolate(film(poses), 15)
    angles = np.arctan2(turned[:, 0, 2], turned[:, 0, 0])
    assert np.allclose(angles, np.linspace(0, 1.4, 15), atol=0.01)


def test_equal_key_frames_are_a_still_and_focal_lengths_are_interpolated_in_their_logarithm():
    still = shifted([1, 2, 3], [1, 2, 3])
    poses, fovs = interpolate(film(still), 5)
    assert np.allclose(poses, still[0, :3]) and np.allclose(fovs, FOV)
    zoomed = film(still, fovs=2 * np.arctan([1.0, 0.25]))
    _, fovs = interpolate(zoomed, 3)
    assert math.tan(0.5 * fovs[1]) == pytest.approx(0.5)


def test_frames_have_square_pixels_and_the_given_angle_of_view(tmp_path):
    write_blender(tmp_path / "s", num_views=8, size=(12, 8))
    cameras = open_scene(tmp_path / "s", "blender", read_pixels=False).cameras
    frames = film_cameras(cameras, film(on_circle(4)), 7, width=30, height=20)
    assert frames.sizes.tolist() == [[30, 20]] * 7
    directions = image_rays(frames, 0).directions.double()
    right, up, backward = frames.camtoworlds[0, :, :3].double().T
    first, last = directions[0, 0], directions[-1, -1]
    half = math.tan(FOV / 2)
    assert float(first @ up) == pytest.approx(half * 19 / 20, rel=1e-5)
    assert float(last @ right) == pytest.approx(half * 1.5 * 29 / 30, rel=1e-5)
    assert float(first @ backward) == pytest.approx(-1)
    assert film_cameras(cameras, film(on_circle(4)), 2).sizes.tolist() == [[12, 8]] * 2


# Files.


def test_a_file_is_in_the_coordinates_of_the_scenes_files(tmp_path):
    frames = film(on_circle(3), closed=True, constant_speed=False)
    to_scene = torch.eye(4)
    to_scene[:3, :3] *= 2.0
    to_scene[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    write_path(tmp_path / "path.json", frames, to_scene)
    content = json.loads((tmp_path / "path.json").read_text())
    position = np.array(content["key_frames"][1]["camera_to_world"])[:, 3]
    assert np.allclose(2 * position + [1, 2, 3], frames.camtoworlds[1, :, 3])
    assert content["key_frames"][0]["vertical_fov"] == pytest.approx(math.degrees(FOV))
    back = read_path(tmp_path / "path.json", to_scene)
    assert np.allclose(back.camtoworlds, frames.camtoworlds) and np.allclose(back.fovs, FOV)
    assert (back.closed, back.constant_speed) == (True, False)


def changed(change):
    content = json.loads(path_text(film(on_circle(3)), torch.eye(4)))
    change(content)
    return json.dumps(content)


MIRRORED = [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize("text,message", [
    ("{", "not valid JSON"), ("[1]", "holds a list; a JSON object"),
    (changed(lambda c: c.pop("key_frames")), "has no list key_frames"),
    (changed(lambda c: c["key_frames"].__delitem__(slice(1, 3))), r"1 key frame\(s\)"),
    (changed(lambda c: c.update(loop=True)), "loop, which no path has"),
    (changed(lambda c: c.update(closed=1)), "closed = 1; true or false"),
    (changed(lambda c: c["key_frames"][1].pop("camera_to_world")), "key frame 2 has no camera_to"),
    (changed(lambda c: c["key_frames"][2].update(camera_to_world=MIRRORED)), "key frame 3.*mirror"),
    (changed(lambda c: c["key_frames"][0].update(vertical_fov="wide")), "vertical_fov = 'wide'"),
    (changed(lambda c: c["key_frames"][0].update(vertical_fov=180)), "between 0 and 180"),
    (changed(lambda c: c["key_frames"].append(3)), "key frame 4 has no camera_to_world"),
])
def test_an_unusable_file_is_a_sentence_about_its_fault(text, message):
    with pytest.raises(UserError, match=f"--path p.json.*{message}"):
        parse_path(text.encode(), "--path p.json", torch.eye(4))


def test_training_images_are_key_frames_by_their_names(tmp_path):
    write_blender(tmp_path / "s", num_views=4)
    scene = open_scene(tmp_path / "s", "blender", read_pixels=False).scene
    frames = find_key_frames("r_2.png,r_0", scene)
    assert np.allclose(frames.camtoworlds, scene.cameras.camtoworlds[[2, 0]]) and not frames.closed
    # The files give the horizontal angle of view.
    focal = 0.5 * 12 / math.tan(0.5 * 0.7)
    assert frames.fovs[0] == pytest.approx(2 * math.atan(4 / focal))
    closed = find_key_frames("r_2,r_0,r_1,r_2", scene)
    assert closed.closed and len(closed) == 3
    with pytest.raises(UserError, match="'r_9', which is no training image.*4 images"):
        find_key_frames("r_0,r_9", scene)
    with pytest.raises(UserError, match="is missing; give a path.json"):
        find_key_frames(str(tmp_path / "none.json"), scene)


def test_key_frames_are_inserted_and_ordered():
    frames = None
    for i in range(3):
        frames = with_key_frame(frames, i, shifted([i, 0, 0])[0, :3], FOV + i)
    assert frames.fovs.tolist() == [FOV, FOV + 1, FOV + 2]
    assert in_order(frames, [2, 0]).camtoworlds[:, 0, 3].tolist() == [2, 0]


# The command.


def test_visualize_renders_the_film_of_a_file_and_of_training_images(trained, tmp_path, capsys):
    scene = tmp_path / "path.json"
    write_path(scene, film(on_circle(3)), torch.eye(4))
    for path in (str(scene), "r_0,r_1"):
        assert visualize.main(["--run", str(trained), "--path", path, "--frames", "2", "--width",
                               "12"]) == 0
        assert f"through {path}" in capsys.readouterr().out
    assert len(list(trained.glob("video_keyframes_*"))) == 2


def test_a_film_that_ndc_cannot_express_is_an_error(tmp_path):
    write_llff(tmp_path / "s", num_views=5)
    cameras = open_scene(tmp_path / "s", "llff", read_pixels=False).cameras
    with pytest.raises(UserError, match="which NDC cannot represent"):
        film_cameras(cameras, film(shifted([0, 0, 0], [0, 0, -3])), 4)
