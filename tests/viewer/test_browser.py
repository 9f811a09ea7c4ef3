"""The viewer in a browser: draws the model's image, moves with the mouse, follows the training."""

import json
import shutil
import time

import cv2
import numpy as np
import pytest
import torch

import train
from checkpoint import load_checkpoint
from config import get_config
from image_utils import psnr
from loaders.lenses import make_cameras
from procedural.scene import pinhole
from ray_utils import image_rays
from rendering import render_image
from scripts.browser import find_browser, open_browser
from scripts.draw_viewer import HIDE_NOTICES
from tests.analytic import AnalyticModel, ball
from tests.scenes import ANGLE, round_poses, write_blender
from viewer.app import Viewer
from viewer.loaded_run import load_run

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium with its driver: "
                                "the viewer is not shown")

# The control panel covers the right part of the window.
SIZE, LEFT_PART = (800, 500), 440

# Beside the model's image: more than this for the same view, less for other views.
SAME_VIEW = 36

RED, GREEN, BLUE, YELLOW = (0.9, 0.1, 0.1), (0.1, 0.7, 0.2), (0.1, 0.2, 0.9), (0.9, 0.8, 0.1)


def quarters(points):
    """A colour for each quarter about the z axis, which tells views from each other."""
    colours = points.new_tensor([RED, GREEN, BLUE, YELLOW])
    return colours[2 * (points[..., 0] > 0).long() + (points[..., 1] > 0).long()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with checkpoints of two steps of a large ball in four colours."""
    folder, side = tmp_path_factory.mktemp("browser"), 32
    model = AnalyticModel(ball([0, 0, 0], 1.0), quarters, peak=50.0)
    poses = np.stack(round_poses(8))[:, :3]
    cameras = make_cameras(poses, [pinhole(side, side, 0.5 * side / np.tan(0.5 * ANGLE))] * 8,
                           [(side, side)] * 8, near=2.0, far=6.0)
    images = [render_image(model, image_rays(cameras, i), 1024).rgb.numpy() for i in range(8)]
    write_blender(folder / "scene", images=[
        np.pad((255 * image).astype(np.uint8), ((0, 0), (0, 0), (0, 1)), constant_values=255)
        for image in images])
    train.main([
        "--preset", "debug", "--device", "cpu", "--model", "zipnerf", "--num_multisamples", "1",
        "--scene", str(folder / "scene"), "--log_dir", str(folder), "--exp_name", "run",
        "--max_steps", "200", "--save_every", "40", "--eval_every", "0", "--log_every", "40",
        "--keep_checkpoints", "9", "--no-final_eval"])
    for step in (80, 120, 160):
        (folder / "run" / f"checkpoint_{step:08d}.pt").unlink()
    return folder / "run"


@pytest.fixture
def run_folder(trained, tmp_path):
    """A copy of the run without its last checkpoint."""
    ignore = shutil.ignore_patterns("checkpoint_00000200.pt")
    return shutil.copytree(trained, tmp_path / "run", ignore=ignore)


@pytest.fixture
def viewer(run_folder):
    config = get_config(["--run", str(run_folder), "--device", "cpu"], "view")
    viewer = Viewer(config, load_run(config), "127.0.0.1", 18_180)
    viewer.panel.side.value = "320 pixels"
    yield viewer
    viewer.stop()


@pytest.fixture
def page(viewer):
    page = open_browser(*SIZE)
    page.get(f"http://localhost:{viewer.port}")
    yield page
    page.quit()


def wait_for(condition, problem, seconds=90):
    """The first true value of a condition."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    raise AssertionError(problem)


def final_shot(viewer):
    """The shot of the last picture, once that is complete; None before."""
    picture, shot = next(iter(viewer.pictures.values()), (None, None))
    return shot if picture is not None and picture.is_final else None


def seen(page):
    """The left part of the window, float `[h, w, 3]`."""
    page.execute_script(HIDE_NOTICES)
    array = np.frombuffer(page.get_screenshot_as_png(), dtype=np.uint8)
    return cv2.imdecode(array, cv2.IMREAD_COLOR)[:, :LEFT_PART, ::-1] / 255.0


def model_image(path, shot):
    """The left part of the window for a shot, rendered without the viewer."""
    run = load_checkpoint(path)
    focal = 0.5 * shot.height / np.tan(0.5 * shot.fov)
    cameras = make_cameras(shot.camtoworld[None], [pinhole(shot.width, shot.height, focal)],
                           [(shot.width, shot.height)], near=2.0, far=6.0)
    with torch.no_grad():
        image = render_image(run.model, image_rays(cameras, 0), 4096).rgb.clamp(0, 1).numpy()
    return cv2.resize(image, SIZE)[:, :LEFT_PART]


def wait_for_image(viewer, page, path):
    """Wait until the window shows the model of a checkpoint in the viewer's final picture."""
    def is_shown():
        shot = final_shot(viewer)
        return shot and psnr(seen(page), model_image(path, shot)) > SAME_VIEW and shot

    try:
        return wait_for(is_shown, "")
    except AssertionError:
        shot = final_shot(viewer)
        found = shot and psnr(seen(page), model_image(path, shot))
        raise AssertionError(f"{found} dB beside the model's image") from None


def drag(page, dx, dy):
    """Drag the mouse over the scene."""
    for kind, x, y in (("mousePressed", 200, 350), ("mouseMoved", 200 + dx // 2, 350 + dy // 2),
                       ("mouseMoved", 200 + dx, 350 + dy), ("mouseReleased", 200 + dx, 350 + dy)):
        page.execute_cdp_cmd("Input.dispatchMouseEvent", {
            "type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1})
        time.sleep(0.1)


def test_the_scene_is_drawn_moves_with_the_mouse_and_follows_the_training(viewer, page, run_folder,
                                                                           trained):
    early, late = (trained / f"checkpoint_{step:08d}.pt" for step in (40, 200))
    start = wait_for_image(viewer, page, early)
    assert np.allclose(start.camtoworld, viewer.stage.camtoworld, atol=1e-4)

    drag(page, 200, 0)
    wait_for(lambda: final_shot(viewer) and final_shot(viewer).pose != start.pose,
             "the mouse moved nothing")
    moved = wait_for_image(viewer, page, early)
    assert psnr(seen(page), model_image(early, start)) < SAME_VIEW - 10
    # The camera turned about the focus, at the same height.
    before, after = start.camtoworld[:, 3], moved.camtoworld[:, 3]
    assert np.linalg.norm(after - before) > 0.1 and abs(after[2] - before[2]) < 0.02
    assert np.linalg.norm(after - viewer.stage.focus) == pytest.approx(viewer.stage.distance, 1e-2)

    shutil.copy(late, run_folder)
    wait_for(lambda: "step 200" in page.find_element("tag name", "body").text,
             "the newer checkpoint was not loaded")
    shot = wait_for_image(viewer, page, late)
    assert psnr(seen(page), model_image(early, shot)) < SAME_VIEW - 10

    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = [message["params"]["request"]["url"] for message in messages
            if message["method"] == "Network.requestWillBeSent"]
    here = (f"http://localhost:{viewer.port}/", "data:", f"blob:http://localhost:{viewer.port}/")
    assert urls and all(url.startswith(here) for url in urls)
