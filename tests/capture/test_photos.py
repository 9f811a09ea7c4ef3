"""Scenes from photographs and videos: cameras against the rendered ones, resuming, bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pycolmap
import pytest
from imageio.v3 import imread, imwrite
from PIL import Image
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from capture import find_cameras, photos
from capture.report import scene_config
from datasets import load_dataset
from image_utils import list_images, resize_area
from procedural import scene as demo_scene
from procedural import tracing
from procedural.still_life import ROOM
from runtime.errors import UserError
from scripts import bench_capture, prepare_capture
from tests.processes import run_script
from tests.scenes import write_colmap

ROOT = Path(__file__).parents[2]
COUNT, SIZE = 16, (320, 240)
ORIENTATION = 0x0112


def walk(count):
    """Poses of a quarter of a walk around the demo scene."""
    angle = np.radians(np.linspace(0, 96, count))
    positions = np.stack(
        [3.4 * np.cos(angle), 3.0 * np.sin(angle), 1.3 + 0.3 * np.sin(3 * angle)], -1)
    return np.stack([demo_scene.look_at(position)[:3] for position in positions])


def photograph(pose):
    pixtocam = demo_scene.pinhole(*SIZE, 300.0)
    return tracing.render(pose, pixtocam, *SIZE, 2, ROOM)[..., :3]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Many good ones, one without texture, one with an EXIF rotation, one that is broken."""
    folder = tmp_path_factory.mktemp("photographs")
    for i, pose in enumerate(walk(COUNT)):
        image = photograph(pose)
        if i == 5:
            exif = Image.Exif()
            exif[ORIENTATION] = 8  # To be rotated by 90 degrees counter-clockwise.
            Image.fromarray(np.rot90(image, -1)).save(folder / "view_05.png", exif=exif)
        else:
            imwrite(folder / f"view_{i:02d}.png", image)
    imwrite(folder / "wall.png", np.full((SIZE[1], SIZE[0], 3), 128, dtype=np.uint8))
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def prepared(photographs, tmp_path_factory):
    """A scene prepared from the photographs by the script, and its output."""
    out = tmp_path_factory.mktemp("prepared") / "scene"
    before = {p: p.read_bytes() for p in photographs.iterdir()}
    result = run("scripts/prepare_capture.py", photographs, out)
    assert result.returncode == 0, result.stderr
    assert {p: p.read_bytes() for p in photographs.iterdir()} == before
    return out, result.stdout


def run(*words):
    return run_script(*words)


def test_the_estimated_cameras_are_those_of_the_renderings(prepared):
    out, _ = prepared
    found = bench_capture.poses_by_name(out)
    names = [f"view_{i:02d}" for i in range(COUNT)]
    assert sorted(found) == names
    position, angle = bench_capture.pose_errors(np.stack([found[n] for n in names]), walk(COUNT))
    # So few small images give half a percent and a degree; a wrong camera is off by tens.
    assert position.max() < 0.01 and angle.max() < 2


def test_images_that_are_left_out_are_named(prepared, photographs):
    out, output = prepared
    assert f"{photographs}: left out 1 image(s) that cannot be read: broken.png" in output
    assert f"{COUNT + 1} images in " in output
    assert f"{COUNT} of {COUNT + 1} images are registered." in output
    assert re.search(r"(\d+) of the \1 most similar pairs of images agree", output)
    assert "Not registered: wall.png. To add them, take more photographs that overlap" in output
    assert not (out / "images" / "broken.png").exists()


def test_the_scene_is_complete_and_smaller_copies_are_area_averages(prepared, photographs):
    out, output = prepared
    assert sorted(p.name for p in out.iterdir() if p.name != ".lock") == [
        "images", "images_2", "prepare.json", "report.json", "report.png", "sparse"]
    full, half = (imread(out / folder / "view_03.png") for folder in ("images", "images_2"))
    np.testing.assert_array_equal(full, photograph(walk(COUNT)[3]))
    means = full.reshape(120, 2, 160, 2, 3).mean(axis=(1, 3))
    assert np.abs(half - means).max() <= 0.5
    np.testing.assert_array_equal(half, resize_area(full, 160, 120))
    # The image with an EXIF rotation was rotated upright.
    upright = imread(out / "images" / "view_05.png")
    np.testing.assert_array_equal(upright, photograph(walk(COUNT)[5]))
    statistics = json.loads((out / "report.json").read_text())
    assert statistics["views"]["train"] == COUNT - 2 and statistics["views"]["test"] == 2
    assert 0 < statistics["reprojection_error"] < 1
    assert f"mean reprojection error {statistics['reprojection_error']:.2f} pixels" in output
    assert imread(out / "report.png").shape[-1] == 3
    assert f"--dataset_name colmap --scene {out} --factor 1" in output


def test_the_suggested_command_trains(prepared, tmp_path):
    out, output = prepared
    command = output[output.index("python train.py"):].split()
    result = run(*command[1:], "--max_steps", "2", "--no-final_eval", "--eval_every", "0",
                 "--log_dir", tmp_path, "--device", "cpu")
    assert result.returncode == 0, result.stderr


def test_an_existing_scene_is_not_overwritten(prepared, photographs):
    out, _ = prepared
    result = run("scripts/prepare_capture.py", photographs, out)
    assert result.returncode == 2
    assert "holds a scene already; choose another folder" in result.stderr


def test_an_interrupted_run_is_resumed(photographs, tmp_path):
    """Stopped after the features: they are kept, and the resumed run completes the scene."""
    few, out = tmp_path / "few", tmp_path / "scene"
    few.mkdir()
    for path in sorted(photographs.glob("view_*"))[:8]:
        shutil.copy(path, few)
    words = [sys.executable, "scripts/prepare_capture.py", few, out]
    process = subprocess.Popen(list(map(str, words)), cwd=ROOT, text=True, bufsize=0,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = ""
    while "Matches" not in output:
        letter = process.stdout.read(1)
        assert letter, output
        output += letter
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in output + rest
    assert not (out / "sparse").exists()
    features = (out / "database.db").stat().st_size
    assert features > 100_000
    other = run("scripts/prepare_capture.py", few, out, "--matching", "sequential")
    assert other.returncode == 2 and "was started with" in other.stderr
    again = run("scripts/prepare_capture.py", few, out)
    assert again.returncode == 0, again.stderr
    assert "was started before; resuming" in again.stdout
    assert "8 of 8 images are registered" in again.stdout
    assert (out / "sparse" / "0" / "points3D.bin").exists()


# Videos.


def write_frames(path, frames):
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()


def test_the_sharpest_frame_of_each_section_of_a_video_is_used(tmp_path):
    rng = np.random.default_rng(0)
    sharp = [2, 5, 10, 12, 19]
    frames = []
    for i in range(20):
        frame = np.kron(rng.integers(0, 256, (12, 16, 3)), np.ones((5, 5, 1))).astype(np.uint8)
        frames.append(frame if i in sharp else cv2.GaussianBlur(frame, (0, 0), 3))
    write_frames(tmp_path / "v.avi", frames)
    (tmp_path / "out").mkdir()
    photos.extract_frames(tmp_path / "v.avi", tmp_path / "out", 5)
    files = list_images(tmp_path / "out")
    assert [f.name for f in files] == [f"frame_{i:06d}.jpg" for i in sharp]
    shown = imread(files[2]).astype(float)
    differences = [np.abs(shown - frame[..., ::-1]).mean() for frame in frames]
    assert np.argmin(differences) == 10


def test_all_frames_of_a_short_video_are_used(tmp_path):
    write_frames(tmp_path / "v.avi", list(np.random.default_rng(0).integers(
        0, 256, (4, 48, 64, 3), dtype=np.uint8)))
    (tmp_path / "out").mkdir()
    photos.extract_frames(tmp_path / "v.avi", tmp_path / "out", 150)
    assert len(list_images(tmp_path / "out")) == 4


@pytest.mark.parametrize("video,count,flag,matching", [
    (True, 20, "auto", "sequential"), (False, 20, "auto", "exhaustive"),
    (False, 201, "auto", "sequential"), (True, 20, "exhaustive", "exhaustive"),
])
def test_the_matching_depends_on_the_kind_and_number_of_images(video, count, flag, matching):
    assert find_cameras.choose_matching(flag, video, count) == matching


def test_sequential_matching_closes_the_loop(tmp_path):
    """The last images are matched with the first; no image with itself, and no pair twice."""
    listed = []

    class Matcher:
        ImportedPairingOptions, Device = SimpleNamespace, SimpleNamespace(cpu="cpu")

        def match_sequential(self, database, device):
            assert not listed

        def match_image_pairs(self, database, pairing_options, device):
            listed.extend(pairing_options.match_list_path.read_text().splitlines())

    names = [f"frame {i}.jpg" if i == 3 else f"{i:03d}.jpg" for i in range(15)]
    find_cameras.match_features(Matcher(), tmp_path / "d.db", "sequential",
                                [tmp_path / n for n in names], tmp_path)
    pairs = [tuple(line.split(" ")) for line in listed]
    assert ("000.jpg", "014.jpg") in pairs and ("005.jpg", "009.jpg") in pairs
    assert all(len(pair) == 2 and pair[0] != pair[1] for pair in pairs)
    assert len(pairs) == len(set(map(frozenset, pairs)))
    assert not any("014.jpg" in pair and "012.jpg" in pair for pair in pairs)


# Bad input.


def error_of(*words):
    with pytest.raises(UserError) as error:
        prepare_capture.main(list(map(str, words)))
    return str(error.value)


def test_unusable_sources_are_errors_and_leave_nothing(tmp_path):
    out = tmp_path / "out"
    assert "does not exist" in error_of(tmp_path / "missing", out)
    (tmp_path / "empty").mkdir()
    assert "holds 0 readable images" in error_of(tmp_path / "empty", out)
    (tmp_path / "text.mp4").write_text("no video")
    assert "is not a readable video with 3 frames or more" in error_of(tmp_path / "text.mp4", out)
    write_frames(tmp_path / "two.avi", [np.zeros((48, 64, 3), np.uint8)] * 2)
    assert "is not a readable video with 3 frames or more" in error_of(tmp_path / "two.avi", out)
    assert not (out / "images").exists() and not (out / "sparse").exists()


def test_folders_with_other_content_are_not_changed(tmp_path, photographs):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert "exists and was not created by this script" in error_of(
        photographs, tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["letter.txt"]
    assert "exists and was not created" in error_of(photographs, tmp_path / "mine" / "letter.txt")


def test_a_scene_inside_its_photographs_is_rejected(photographs):
    assert "is inside the folder of photographs" in error_of(photographs, photographs / "scene")
    assert not (photographs / "scene").exists()


def test_upright_rgb_photographs_are_copied_and_others_converted(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "folder"
    (source / "inside").mkdir(parents=True)
    folder.mkdir()
    colour = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    imwrite(source / "a.png", colour)
    imwrite(source / "inside" / "grey.png", colour[..., 0])
    imwrite(source / "deep.png", colour[..., 0].astype(np.uint16) * 257)
    Image.fromarray(colour).save(source / "b.jpg", quality=90)
    Image.fromarray(colour).save(source / "half.png")
    content = (source / "half.png").read_bytes()
    (source / "half.png").write_bytes(content[: len(content) // 2])
    photos.copy_photographs(source, folder)
    assert [f.relative_to(folder).as_posix() for f in list_images(folder)] == [
        "a.png", "b.jpg", "deep.png", "inside/grey.png"]
    for name in ("a.png", "b.jpg"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    for name in ("deep.png", "inside/grey.png"):
        np.testing.assert_array_equal(imread(folder / name),
                                      np.repeat(colour[..., :1], 3, axis=-1))


def test_images_without_matches_are_an_error(tmp_path):
    folder = tmp_path / "walls"
    folder.mkdir()
    for i in range(4):
        imwrite(folder / f"{i}.png", np.full((60, 80, 3), 60 * i, dtype=np.uint8))
    assert "could not register any of the 4 images" in error_of(folder, tmp_path / "out")


@pytest.mark.parametrize("words", [
    ["one"], ["one", "two", "three"], ["--check"], ["--check", "one", "two"],
    ["one", "two", "--num_frames", "2"], ["--check", "one", "--factor", "0"], ["a", "b", "--chek"],
])
def test_wrong_command_lines_end_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        prepare_capture.main(words)
    assert end.value.code == 2


# Cameras that contradict the matches.


def matches_of(image, other, points):
    """Projections of points `[K, 3]` into two images of a COLMAP model, as in `matched_pairs`."""
    pixels = []
    for view in (image, other):
        inside = points @ view.cam_from_world().rotation.matrix().T
        pixels.append(view.camera.img_from_cam(inside + view.cam_from_world().translation))
    return image.name, other.name, *pixels


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "scene"
    write_colmap(folder)
    return pycolmap.Reconstruction(str(folder / "sparse" / "0"))


def test_the_epipolar_error_is_the_smallest_correction_of_matches(model):
    points = np.random.default_rng(0).uniform(-0.8, 0.8, (60, 3))
    # One camera is nearer than the other, so that its epipolar lines are steeper.
    a, b = model.images[1], model.images[3]
    _, _, in_a, in_b = matches_of(a, b, points)
    assert find_cameras.epipolar_error(a, b, in_a, in_b) < 1e-3
    moved = in_b + [1.0, 2.0]
    errors = [smallest_move(a, b, *pair) for pair in zip(in_a, moved, strict=True)]
    assert find_cameras.epipolar_error(a, b, in_a, moved) == pytest.approx(
        np.median(errors), rel=0.01)


def smallest_move(a, b, in_a, in_b):
    """The smallest joint move of two pixels, on the undistorted planes, to views of one point."""
    expected = [view.camera.mean_focal_length() * view.camera.cam_from_img(pixel[None])[0]
              for view, pixel in ((a, in_a), (b, in_b))]

    def residuals(point):
        seen = [view.cam_from_world() * point for view in (a, b)]
        shown = [view.camera.mean_focal_length() * x[:2] / x[2]
                 for view, x in zip((a, b), seen, strict=True)]
        return np.concatenate(shown) - np.concatenate(expected)

    return np.linalg.norm(least_squares(residuals, np.zeros(3), xtol=1e-12).fun)


def test_pairs_that_contradict_the_cameras_are_named(model, caplog):
    caplog.set_level("INFO")
    points = np.random.default_rng(0).uniform(-0.8, 0.8, (100, 3))
    images = [model.images[i] for i in (2, 3, 4)]
    good = [matches_of(images[0], images[1], points), matches_of(images[1], images[2], points[:80])]
    find_cameras.report_contradictions(model, good)
    assert caplog.messages == [
        "2 of the 2 most similar pairs of images agree with the cameras."]
    # A few wrong matches between images that have many with others do not count.
    first, second, in_first, in_second = matches_of(images[0], images[2], points[:20])
    find_cameras.report_contradictions(
        model, [*good, (first, second, in_first, in_second[::-1].copy())])
    assert len(caplog.messages) == 2 and caplog.messages[0] == caplog.messages[1]
    caplog.clear()
    first, second, in_first, in_second = matches_of(images[0], images[2], points[:70])
    find_cameras.report_contradictions(
        model, [*good, (first, second, in_first, in_second[::-1].copy())])
    assert "2 of the 3 most similar pairs" in caplog.text
    assert f"These do not: {first} and {second}. COLMAP merged different places" in caplog.text


# The comparison of poses.


def test_pose_errors_equal_the_applied_errors():
    known = walk(9)
    rotation = Rotation.from_euler("xyz", [0.4, 1.1, -2.0]).as_matrix()
    moved = known.copy()
    moved[:, :, :3] = rotation @ known[:, :, :3]
    moved[:, :, 3] = 2.5 * known[:, :, 3] @ rotation.T + [1, 2, 3]
    position, angle = bench_capture.pose_errors(moved, known)
    assert position.max() < 1e-6 and angle.max() < 1e-3
    moved[4, :, :3] = moved[4, :, :3] @ Rotation.from_euler("y", 3, degrees=True).as_matrix()
    _, angle = bench_capture.pose_errors(moved, known)
    np.testing.assert_allclose(angle, [0, 0, 0, 0, 3, 0, 0, 0, 0], atol=1e-3)


def test_scenes_are_compared_by_the_names_of_their_images(prepared, tmp_path):
    out, _ = prepared
    shutil.copytree(out, tmp_path / "copy")
    found = bench_capture.poses_by_name(out)
    output = bench_capture.comparison(found, bench_capture.poses_by_name(tmp_path / "copy"))
    assert output.startswith(f"{COUNT} poses compared.") and "positions 0.00 and 0.00 %" in output
    with pytest.raises(UserError, match="have 0 images of the same name"):
        bench_capture.comparison(found, {"other": walk(1)[0]})
    assert len(load_dataset(scene_config(out), "test", read_pixels=False)) == 2


def test_depth_maps_are_no_photographs_and_other_formats_become_jpegs(tmp_path, caplog):
    pytest.importorskip("pillow_heif").register_heif_opener()
    caplog.set_level("INFO")
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    colours = [(200, 30, 60), (20, 150, 90), (10, 60, 220), (90, 90, 90)]
    for colour, name in zip(colours, ("a.heic", "b.webp", "c.tif", "depthcharge.png"),
                            strict=True):
        Image.new("RGB", (64, 48), colour).save(source / name)
    for name in ("a_depth.png", "depth_00001.png", "confidence.png", "confidence_1.png"):
        Image.new("L", (64, 48)).save(source / name)
    (source / "notes.txt").write_text("")
    photos.copy_photographs(source, target)
    assert sorted(file.name for file in target.iterdir()) == [
        "a.heic.jpg", "b.webp.jpg", "c.tif.jpg", "depthcharge.png"]
    for colour, file in zip(colours, sorted(target.iterdir()), strict=True):
        with Image.open(file) as image:
            assert np.abs(np.subtract(image.getpixel((30, 20)), colour)).max() < 8
    assert "left out 4 depth or confidence" in caplog.text and "notes.txt" in caplog.text
