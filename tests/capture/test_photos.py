"""Photographs and videos become scenes: cameras against those that drew the pictures, bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pycolmap
import pytest
from imageio.v3 import imread, imwrite
from PIL import Image
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from capture.report import scene_config
from datasets import load_dataset
from image_utils import list_images, resize_area
from procedural import scene as demo_scene
from procedural import tracing
from procedural.still_life import ROOM
from runtime.errors import UserError
from scripts import bench_capture, prepare_capture
from tests.scenes import write_colmap
from tests.test_training import ROOT

COUNT, SIZE = 16, (320, 240)
ORIENTATION = 0x0112


def walk(count):
    """Poses of a quarter of a walk round the demo scene."""
    turn = np.radians(np.linspace(0, 96, count))
    places = np.stack([3.4 * np.cos(turn), 3.0 * np.sin(turn), 1.3 + 0.3 * np.sin(3 * turn)], -1)
    return np.stack([demo_scene.look_at(place)[:3] for place in places])


def photograph(pose):
    pixtocam = demo_scene.pinhole(*SIZE, 300.0)
    return tracing.render(pose, pixtocam, *SIZE, 2, ROOM)[..., :3]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Many good ones, one of nothing, one that was noted to be turned, one that is broken."""
    folder = tmp_path_factory.mktemp("photographs")
    for i, pose in enumerate(walk(COUNT)):
        image = photograph(pose)
        if i == 5:
            exif = Image.Exif()
            exif[ORIENTATION] = 8  # To be turned by 90 degrees against the clock.
            Image.fromarray(np.rot90(image, -1)).save(folder / "view_05.png", exif=exif)
        else:
            imwrite(folder / f"view_{i:02d}.png", image)
    imwrite(folder / "wall.png", np.full((SIZE[1], SIZE[0], 3), 128, dtype=np.uint8))
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def prepared(photographs, tmp_path_factory):
    """A scene made of the photographs as a user makes it, and what was printed."""
    out = tmp_path_factory.mktemp("prepared") / "scene"
    before = {p: p.read_bytes() for p in photographs.iterdir()}
    result = run("scripts/prepare_capture.py", photographs, out)
    assert result.returncode == 0, result.stderr
    assert {p: p.read_bytes() for p in photographs.iterdir()} == before
    return out, result.stdout


def run(*words):
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, text=True,
                          capture_output=True)


def test_cameras_are_found_where_the_pictures_were_drawn(prepared):
    out, _ = prepared
    found = bench_capture.poses_by_name(out)
    names = [f"view_{i:02d}" for i in range(COUNT)]
    assert sorted(found) == names
    position, angle = bench_capture.pose_errors(np.stack([found[n] for n in names]), walk(COUNT))
    # So few small pictures tell half a percent and a degree; a wrong camera is off by tens.
    assert position.max() < 0.01 and angle.max() < 2


def test_what_was_left_out_is_said_by_name(prepared, photographs):
    out, said = prepared
    assert f"{photographs}: left out 1 image(s) that cannot be read: broken.png" in said
    assert f"{COUNT + 1} images in " in said
    assert f"{COUNT} of {COUNT + 1} images are placed." in said
    assert re.search(r"(\d+) of the \1 pairs of images that are most alike agree", said)
    assert "Not placed: wall.png. To have them, take more photographs that overlap" in said
    assert not (out / "images" / "broken.png").exists()


def test_the_scene_is_complete_and_smaller_copies_are_area_averages(prepared, photographs):
    out, said = prepared
    assert sorted(p.name for p in out.iterdir() if p.name != ".lock") == [
        "images", "images_2", "prepare.json", "report.json", "report.png", "sparse"]
    full, half = (imread(out / folder / "view_03.png") for folder in ("images", "images_2"))
    np.testing.assert_array_equal(full, photograph(walk(COUNT)[3]))
    means = full.reshape(120, 2, 160, 2, 3).mean(axis=(1, 3))
    assert np.abs(half - means).max() <= 0.5
    np.testing.assert_array_equal(half, resize_area(full, 160, 120))
    # The picture that was noted as turned is upright, and no note says otherwise.
    turned = imread(out / "images" / "view_05.png")
    np.testing.assert_array_equal(turned, photograph(walk(COUNT)[5]))
    facts = json.loads((out / "report.json").read_text())
    assert facts["views"]["train"] == COUNT - 2 and facts["views"]["test"] == 2
    assert 0 < facts["reprojection_error"] < 1
    assert f"mean reprojection error {facts['reprojection_error']:.2f} pixels" in said
    assert imread(out / "report.png").shape[-1] == 3
    assert f"--dataset_name colmap --scene {out} --factor 1" in said


def test_the_command_that_is_named_trains(prepared, tmp_path):
    out, said = prepared
    command = said[said.index("python train.py"):].split()
    result = run(*command[1:], "--max_steps", "2", "--no-final_eval", "--eval_every", "0",
                 "--log_dir", tmp_path, "--device", "cpu")
    assert result.returncode == 0, result.stderr


def test_a_scene_that_is_there_is_not_made_again(prepared, photographs):
    out, _ = prepared
    result = run("scripts/prepare_capture.py", photographs, out)
    assert result.returncode == 2
    assert "holds a scene already; choose another folder" in result.stderr


def test_what_was_interrupted_goes_on(photographs, tmp_path):
    """Stopped after the features: they are kept, and what comes out is whole."""
    out = tmp_path / "scene"
    words = [sys.executable, "scripts/prepare_capture.py", photographs, out]
    process = subprocess.Popen(list(map(str, words)), cwd=ROOT, text=True, bufsize=0,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = ""
    while "Matches" not in said:
        letter = process.stdout.read(1)
        assert letter, said
        said += letter
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said + rest
    assert not (out / "sparse").exists()
    features = (out / "database.db").stat().st_size
    assert features > 100_000
    other = run("scripts/prepare_capture.py", photographs, out, "--matching", "sequential")
    assert other.returncode == 2 and "was begun with" in other.stderr
    again = run("scripts/prepare_capture.py", photographs, out)
    assert again.returncode == 0, again.stderr
    assert "was begun before: going on" in again.stdout
    assert f"{COUNT} of {COUNT + 1} images are placed" in again.stdout
    assert (out / "sparse" / "0" / "points3D.bin").exists()


# Videos.


def write_frames(path, frames):
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()


def test_the_sharpest_frame_of_each_part_of_a_video_is_taken(tmp_path):
    rng = np.random.default_rng(0)
    sharp = [2, 5, 10, 12, 19]
    frames = []
    for i in range(20):
        frame = np.kron(rng.integers(0, 256, (12, 16, 3)), np.ones((5, 5, 1))).astype(np.uint8)
        frames.append(frame if i in sharp else cv2.GaussianBlur(frame, (0, 0), 3))
    write_frames(tmp_path / "v.avi", frames)
    (tmp_path / "out").mkdir()
    prepare_capture.take_frames(tmp_path / "v.avi", tmp_path / "out", 5)
    files = list_images(tmp_path / "out")
    assert [f.name for f in files] == [f"frame_{i:06d}.jpg" for i in sharp]
    shown = imread(files[2]).astype(float)
    differences = [np.abs(shown - frame[..., ::-1]).mean() for frame in frames]
    assert np.argmin(differences) == 10


def test_a_short_video_is_taken_whole(tmp_path):
    write_frames(tmp_path / "v.avi", list(np.random.default_rng(0).integers(
        0, 256, (4, 48, 64, 3), dtype=np.uint8)))
    (tmp_path / "out").mkdir()
    prepare_capture.take_frames(tmp_path / "v.avi", tmp_path / "out", 150)
    assert len(list_images(tmp_path / "out")) == 4


@pytest.mark.parametrize("video,count,flag,matching", [
    (True, 20, "auto", "sequential"), (False, 20, "auto", "exhaustive"),
    (False, 201, "auto", "sequential"), (True, 20, "exhaustive", "exhaustive"),
])
def test_pairs_are_chosen_by_what_the_images_are(tmp_path, video, count, flag, matching):
    source = tmp_path / "source"
    source.touch() if video else source.mkdir()
    args = prepare_capture.parse([str(source), "out", "--matching", flag])
    assert prepare_capture.choose_matching(args, count) == matching


def test_a_walk_is_closed(tmp_path):
    """The last images are matched with the first, no image with itself, none twice."""
    listed = []

    class Matcher:
        ImportedPairingOptions, Device = SimpleNamespace, SimpleNamespace(cpu="cpu")

        def match_sequential(self, database, device):
            assert not listed

        def match_image_pairs(self, database, pairing_options, device):
            listed.extend(pairing_options.match_list_path.read_text().splitlines())

    names = [f"frame {i}.jpg" if i == 3 else f"{i:03d}.jpg" for i in range(15)]
    prepare_capture.match(Matcher(), tmp_path / "d.db", "sequential",
                          [tmp_path / n for n in names], tmp_path)
    pairs = [tuple(line.split(" ")) for line in listed]
    assert ("000.jpg", "014.jpg") in pairs and ("005.jpg", "009.jpg") in pairs
    assert all(len(pair) == 2 and pair[0] != pair[1] for pair in pairs)
    assert len(pairs) == len(set(map(frozenset, pairs)))
    assert not any("014.jpg" in pair and "012.jpg" in pair for pair in pairs)


# Bad input.


def refused(*words):
    with pytest.raises(UserError) as error:
        prepare_capture.main(list(map(str, words)))
    return str(error.value)


def test_sources_that_cannot_be_used_are_said_and_leave_nothing(tmp_path):
    out = tmp_path / "out"
    assert "does not exist" in refused(tmp_path / "missing", out)
    (tmp_path / "empty").mkdir()
    assert "holds 0 readable images" in refused(tmp_path / "empty", out)
    (tmp_path / "text.mp4").write_text("no video")
    assert "is no video with 3 frames or more" in refused(tmp_path / "text.mp4", out)
    write_frames(tmp_path / "two.avi", [np.zeros((48, 64, 3), np.uint8)] * 2)
    assert "is no video with 3 frames or more" in refused(tmp_path / "two.avi", out)
    assert not (out / "images").exists() and not (out / "sparse").exists()


def test_folders_that_hold_other_things_are_left_alone(tmp_path, photographs):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert "is there and is no capture that was begun here" in refused(
        photographs, tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["letter.txt"]
    assert "is there and is no capture" in refused(photographs, tmp_path / "mine" / "letter.txt")


def test_a_scene_inside_its_photographs_is_refused(photographs):
    assert "lies in the folder of photographs" in refused(photographs, photographs / "scene")
    assert not (photographs / "scene").exists()


def test_photographs_become_upright_rgb_and_others_are_copied_as_they_are(tmp_path):
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
    prepare_capture.copy_photographs(source, folder)
    assert [f.relative_to(folder).as_posix() for f in list_images(folder)] == [
        "a.png", "b.jpg", "inside/grey.png"]
    for name in ("a.png", "b.jpg"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    np.testing.assert_array_equal(imread(folder / "inside" / "grey.png"),
                                  np.repeat(colour[..., :1], 3, axis=-1))


def test_images_that_do_not_fit_together_are_said(tmp_path):
    folder = tmp_path / "walls"
    folder.mkdir()
    for i in range(4):
        imwrite(folder / f"{i}.png", np.full((60, 80, 3), 60 * i, dtype=np.uint8))
    assert "could not place any of the 4 images" in refused(folder, tmp_path / "out")


@pytest.mark.parametrize("words", [
    ["one"], ["one", "two", "three"], ["--check"], ["--check", "one", "two"],
    ["one", "two", "--num_frames", "2"], ["--check", "one", "--factor", "0"], ["a", "b", "--chek"],
])
def test_wrong_command_lines_end_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        prepare_capture.main(words)
    assert end.value.code == 2


# Cameras that contradict what images share.


def shared(image, other, points):
    """Where two images of a COLMAP model see points `[K, 3]`: an entry of `matched_pairs`."""
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


def test_the_epipolar_error_is_how_far_features_miss(model):
    points = np.random.default_rng(0).uniform(-0.8, 0.8, (60, 3))
    # One is nearer than the other, so that its lines are steeper.
    a, b = model.images[1], model.images[3]
    _, _, in_a, in_b = shared(a, b, points)
    assert prepare_capture.epipolar_error(a, b, in_a, in_b) < 1e-3
    moved = in_b + [1.0, 2.0]
    errors = [smallest_move(a, b, *pair) for pair in zip(in_a, moved, strict=True)]
    assert prepare_capture.epipolar_error(a, b, in_a, moved) == pytest.approx(
        np.median(errors), rel=0.01)


def smallest_move(a, b, in_a, in_b):
    """How far two pixels must move in all, on the undistorted planes, to show one point."""
    wanted = [view.camera.mean_focal_length() * view.camera.cam_from_img(pixel[None])[0]
              for view, pixel in ((a, in_a), (b, in_b))]

    def misses(point):
        seen = [view.cam_from_world() * point for view in (a, b)]
        shown = [view.camera.mean_focal_length() * x[:2] / x[2]
                 for view, x in zip((a, b), seen, strict=True)]
        return np.concatenate(shown) - np.concatenate(wanted)

    return np.linalg.norm(least_squares(misses, np.zeros(3), xtol=1e-12).fun)


def test_pairs_that_the_cameras_contradict_are_named(model, capsys):
    points = np.random.default_rng(0).uniform(-0.8, 0.8, (100, 3))
    images = [model.images[i] for i in (2, 3, 4)]
    good = [shared(images[0], images[1], points), shared(images[1], images[2], points[:80])]
    prepare_capture.report_contradictions(model, good)
    said = capsys.readouterr().out
    assert said == "2 of the 2 pairs of images that are most alike agree with the cameras.\n"
    # Few wrong features between images that share many with others are no sign of anything.
    first, second, in_first, in_second = shared(images[0], images[2], points[:20])
    prepare_capture.report_contradictions(
        model, [*good, (first, second, in_first, in_second[::-1].copy())])
    assert capsys.readouterr().out == said
    first, second, in_first, in_second = shared(images[0], images[2], points[:70])
    prepare_capture.report_contradictions(
        model, [*good, (first, second, in_first, in_second[::-1].copy())])
    said = capsys.readouterr().out
    assert "2 of the 3 pairs" in said
    assert f"These do not: {first} and {second}. The capture is folded there" in said


# The comparison of poses.


def test_pose_errors_are_what_was_done_to_the_poses():
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
    said = bench_capture.comparison(found, bench_capture.poses_by_name(tmp_path / "copy"))
    assert said.startswith(f"{COUNT} poses compared.") and "off by 0.00 and 0.00 %" in said
    with pytest.raises(UserError, match="have 0 images of the same name"):
        bench_capture.comparison(found, {"other": walk(1)[0]})
    assert len(load_dataset(scene_config(out), "test", read_pixels=False)) == 2
