"""Frames with alpha and measured distances, of a ball whose outline is known."""

import subprocess

import imageio_ffmpeg
import numpy as np
import OpenEXR
import pytest
from imageio.v3 import imread

import checkpoint
import visualize
from runtime.errors import UserError
from tests.analytic import AnalyticModel, ball
from tests.scenes import write_blender
from tests.test_extract_mesh import RED, analytic_run

RADIUS = 0.8


def red(points):
    return points.new_tensor(RED).expand(points.shape)


@pytest.fixture
def render(tmp_path, monkeypatch):
    """A function from flags to the folder of a video of a red ball before white."""
    def render(*flags, softness=0.004, **config):
        write_blender(tmp_path / "scene", num_views=4, size=(40, 30))
        model = AnalyticModel(ball([0, 0, 0], RADIUS), red, softness=softness)
        run = analytic_run(tmp_path / "scene", model, **config)
        run.path.parent.mkdir()
        monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path, device: run)
        visualize.main(["--run", "unused", "--frames", "2", *flags])
        return next(run.path.parent.glob("video_*")), run

    return render


def read_exr(path):
    with OpenEXR.File(str(path), separate_channels=True) as file:
        return {name: channel.pixels for name, channel in file.channels().items()}


def test_distances_and_depths_are_those_of_the_ball(render):
    folder, run = render("--save_depth")
    found = read_exr(folder / "frames" / "distances_00001.exr")
    assert {name: x.dtype for name, x in found.items()} == dict.fromkeys(
        ("distance", "Z", "A"), np.float32)
    # Pixel centres, through a pinhole at the cameras' median distance from the origin.
    camera = run.scene["train"].cameras
    focal = 1 / float(camera.pixtocams[0, 0, 0])
    x, y = np.meshgrid(np.arange(40) - 19.5, np.arange(30) - 14.5)
    cosine = focal / np.sqrt(x**2 + y**2 + focal**2)
    away = float(camera.camtoworlds[0, :, 3].norm())
    beside = away**2 * (1 - cosine**2)
    inside = beside < 0.9 * RADIUS**2
    expected = away * cosine - np.sqrt(np.maximum(RADIUS**2 - beside, 0))
    assert inside.sum() > 50
    np.testing.assert_allclose(found["distance"][inside], expected[inside], atol=0.03)
    np.testing.assert_allclose(found["Z"][inside], (expected * cosine)[inside], atol=0.03)
    assert np.abs(found["distance"] - found["Z"])[inside].max() > 0.03
    assert (found["A"][inside] > 0.99).all() and found["A"][0, 0] == 0


def test_frames_with_alpha_hold_no_background(render):
    folder, _ = render("--transparent", softness=0.05)
    image = imread(folder / "frames" / "rgba_00000.png") / 255
    alpha = image[..., 3]
    assert alpha[15, 20] == 1 and alpha[0, 0] == 0
    rim = (alpha > 0.2) & (alpha < 0.9)
    assert rim.sum() > 5
    np.testing.assert_allclose(image[rim][:, :3], np.tile(RED, (rim.sum(), 1)), atol=0.02)
    # The image without alpha shows white there.
    composited = imread(folder / "frames" / "rgb_00000.png") / 255
    over_white = image[..., :3] * alpha[..., None] + 1 - alpha[..., None]
    np.testing.assert_allclose(over_white, composited, atol=0.01)


def test_the_video_with_alpha_is_transparent(render, tmp_path):
    folder, _ = render("--transparent")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-c:v", "libvpx-vp9", "-i",
               folder / "rgba_30fps.webm", "-frames:v", "1", tmp_path / "first.png"]
    subprocess.run(command, check=True)
    image = imread(tmp_path / "first.png")
    assert image.shape == (30, 40, 4) and image[0, 0, 3] < 10 and image[15, 20, 3] > 245
    np.testing.assert_allclose(image[15, 20, :3] / 255, RED, atol=0.05)


def test_an_opaque_background_has_no_alpha(render):
    with pytest.raises(UserError, match="--transparent is for scenes without an opaque background"):
        render("--transparent", opaque_background=True)
