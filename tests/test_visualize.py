"""Videos of analytic scenes, and the script as users run, interrupt and misuse it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from imageio.v3 import imread, imwrite

import checkpoint
import train
import visualize
from checkpoint import Checkpoint
from config import default_config
from datasets import load_dataset
from exporters import video
from rendering import Renderer
from runtime import distributed
from runtime.errors import UserError
from runtime.files import sole_writer
from tests.analytic import AnalyticModel, ball
from tests.processes import Script, run_script
from tests.scenes import write_blender, write_llff, write_multicam

ROOT = Path(__file__).parents[1]
WRITERS = {"blender": write_blender, "multicam": write_multicam,
           "llff": lambda folder: write_llff(folder, num_views=5)}


def grey(points):
    return torch.full_like(points, 0.5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run folder per format, hardly trained."""
    folder = tmp_path_factory.mktemp("runs")
    for name, write in WRITERS.items():
        write(folder / f"scene_{name}")
        train.main(["--preset", "debug", "--device", "cpu", "--dataset_name", name, "--scene",
                    str(folder / f"scene_{name}"), "--log_dir", str(folder), "--exp_name", name,
                    "--max_steps", "2", "--eval_every", "0", "--no-final_eval"])
    return folder


def copied(runs, tmp_path, name="blender"):
    """A copy of a run folder for one test; its scene is not there."""
    folder = tmp_path / name
    folder.mkdir()
    for path in (runs / name).glob("checkpoint_*.pt"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def count_frames(path):
    return imageio_ffmpeg.count_frames_and_secs(str(path))[0]


@pytest.mark.parametrize("name,flags,path", [
    ("llff", [], "spiral"), ("blender", [], "spherical"),
    ("blender", ["--path", "auto"], "ellipse"),
])
def test_the_default_path_suits_the_cameras(runs, tmp_path, capsys, name, flags, path):
    folder = copied(runs, tmp_path, name)
    assert visualize.main(["--run", str(folder), "--frames", "1", *flags]) == 0
    out = capsys.readouterr().out
    rendered, = folder.glob("video_*")
    assert rendered.name.startswith(f"video_{path}_") and f"on the {path} path" in out
    assert (f"--path {path}: the cameras" in out) == (path != "spherical")


@pytest.mark.parametrize("path", ["spherical", "spiral", "zoom"])
@pytest.mark.parametrize("name", sorted(WRITERS))
def test_every_path_of_every_format_needs_only_the_run_folder(runs, tmp_path, capsys, name, path):
    folder = copied(runs, tmp_path, name)
    assert visualize.main(["--run", str(folder), "--path", path, "--frames", "3", "--fps", "5",
                           "--visualize_depth", "--visualize_normals"]) == 0
    out = capsys.readouterr().out
    rendered, = folder.glob("video_*")
    assert str(rendered) in out
    for kind in ("rgb", "depth", "normals", "rgb_depth_normals"):
        assert count_frames(rendered / f"{kind}_5fps.mp4") == 3
    assert (rendered / "rgb_depth_normals_5fps.gif").exists()
    assert len(list((rendered / "frames").iterdir())) == 9
    scale = json.loads((rendered / "depth_scale.json").read_text())
    assert 0 < scale["near"] < scale["far"]


def test_the_default_is_only_rgb_and_sizes_may_be_odd(runs, tmp_path):
    folder = copied(runs, tmp_path)
    visualize.main(["--run", str(folder), "--frames", "2", "--width", "13", "--height", "9"])
    rendered, = folder.glob("video_*")
    assert sorted(p.name for p in rendered.iterdir()) == [
        ".lock", "frames", "rgb_30fps.gif", "rgb_30fps.mp4", "video.json"]
    assert imread(rendered / "frames" / "rgb_00000.png").shape == (9, 13, 3)


def test_the_flags_of_the_training_name_the_run(runs, tmp_path, capsys):
    folder = copied(runs, tmp_path)
    assert visualize.main(["--preset", "debug", "--log_dir", str(tmp_path), "--exp_name", "blender",
                           "--frames", "1"]) == 0
    assert str(folder) in capsys.readouterr().out
    with pytest.raises(UserError, match="--hidden 99 was given"):
        visualize.main(["--run", str(folder), "--hidden", "99"])


def test_only_rank_0_records_the_source_of_the_frames(runs, tmp_path, monkeypatch):
    run = checkpoint.load_checkpoint(copied(runs, tmp_path))
    folder = tmp_path / "video"
    folder.mkdir()
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    (folder / "frames").mkdir()
    video.check_same_frames(folder, run)
    assert not (folder / "video.json").exists()
    monkeypatch.undo()
    video.check_same_frames(folder, run)
    assert (folder / "video.json").exists()


def test_a_path_that_ndc_cannot_express_is_an_error_before_anything_is_written(runs, tmp_path):
    folder = copied(runs, tmp_path, "llff")
    with pytest.raises(UserError, match="which NDC cannot represent"):
        visualize.main(["--run", str(folder), "--path", "zoom", "--dolly", "--zoom", "5"])
    assert not list(folder.glob("video_*"))


# Frames.


def first_frame(model, tmp_path, dataset_name="blender", **flags):
    """The `Frame` of the first training camera, and the scene."""
    config = default_config(dataset_name=dataset_name, scene=str(tmp_path / "s"), **flags)
    scene = load_dataset(config, "train").scene
    cameras = video.VideoCameras(cameras=scene.cameras, lights=None, scene_scale=scene.scale)
    return video.render_frame(Renderer(model), cameras, 0, chunk=4096), scene


def test_distances_and_normals_are_those_of_the_scene(tmp_path):
    write_blender(tmp_path / "s", num_views=2, size=(40, 30))
    model = AnalyticModel(ball([0, 0, 0], 0.8), grey)
    frame, scene = first_frame(model, tmp_path, near=2.0, far=6.0)
    position = scene.cameras.camtoworlds[0, :, 3]
    middle = frame.distance[15, 20]
    assert middle == pytest.approx(float(position.norm()) - 0.8, abs=0.02)
    normals = torch.tensor(video.frame_image(frame, "normals", None)) * 2 - 1
    torch.testing.assert_close(normals[15, 20], position / position.norm(), atol=0.05, rtol=0)
    depth = video.frame_image(frame, "depth", (float(middle), float(middle) + 1))
    assert depth[15, 20].argmax() == 0  # Near is red.
    assert (depth[0, 0] == 1).all()


def test_distances_of_ndc_scenes_are_in_the_units_of_their_files(tmp_path):
    write_llff(tmp_path / "s", size=(40, 30))
    flags = dict(factor=4, ndc=True, ray_shape="cylinder", bg_range=(0.0, 0.0), near=None, far=None)
    scene = load_dataset(default_config(dataset_name="llff", scene=str(tmp_path / "s"), **flags),
                         "train").scene
    to_scene = scene.world_to_scene.float()
    centre = to_scene[:3, :3] @ torch.tensor([0.0, 0.0, -5.0]) + to_scene[:3, 3]
    model = AnalyticModel(ball(centre.tolist(), 2 * scene.scale), grey, ndc=scene.cameras.ndc,
                          peak=700.0, bg_rgb=0.0)
    frame, _ = first_frame(model, tmp_path, "llff", **flags)
    position = torch.linalg.inv(to_scene)[:3] @ torch.cat(
        [scene.cameras.camtoworlds[0, :, 3], torch.ones(1)])
    expected = float((position - torch.tensor([0.0, 0.0, -5.0])).norm()) - 2
    assert float(frame.distance.min()) == pytest.approx(expected, abs=0.05)


def test_the_colour_scale_of_a_video_is_kept(runs, tmp_path, monkeypatch):
    folder = copied(runs, tmp_path)
    words = ["--run", str(folder), "--frames", "4", "--visualize_depth"]
    visualize.main(words)
    rendered, = folder.glob("video_*")
    scale = (rendered / "depth_scale.json").read_text()
    last = (rendered / "frames" / "depth_00003.png").read_bytes()
    (rendered / "frames" / "depth_00003.png").unlink()
    monkeypatch.setattr(video, "SCALE_FRAMES", 1)
    visualize.main(words)
    assert (rendered / "depth_scale.json").read_text() == scale
    assert (rendered / "frames" / "depth_00003.png").read_bytes() == last


# Interrupted and damaged videos.


def words_for(folder, *more):
    return ["visualize.py", "--run", folder, "--device", "cpu", "--frames", "24", "--width", "48",
            "--visualize_depth", "--visualize_normals", *more]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_video_continues_and_keeps_its_frames(runs, tmp_path, stop):
    folder = copied(runs, tmp_path)
    process = Script(*words_for(folder))
    deadline = time.monotonic() + 60
    while len(list(folder.glob("video_*/frames/normals_*.png"))) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(stop)
    out = "".join(process.communicate(timeout=60))
    assert process.returncode != 0 and "Traceback" not in out
    rendered, = folder.glob("video_*")
    kept = {p.name: p.stat().st_mtime_ns for p in (rendered / "frames").glob("rgb_*.png")}
    assert 5 <= len(kept) < 24 and not (rendered / "rgb_30fps.mp4").exists()
    result = run_script(*words_for(folder))
    assert result.returncode == 0 and "frames exist already" in result.stdout
    assert all((rendered / "frames" / name).stat().st_mtime_ns == t for name, t in kept.items()
               if name != max(kept))
    assert count_frames(rendered / "rgb_depth_normals_30fps.mp4") == 24
    assert not list(rendered.rglob("*.partial"))


def test_a_full_disk_is_an_error_and_frames_are_kept(runs, tmp_path):
    folder = copied(runs, tmp_path)
    result = run_script(*words_for(folder, "--height", "160", "--width", "160", "--frames", "2"),
                        limit=9000)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "could not be written" in result.stderr and "Free some space" in result.stderr
    assert not list(folder.rglob("*.partial"))
    assert run_script(*words_for(folder, "--height", "160", "--width", "160", "--frames", "2")
                      ).returncode == 0


def test_frames_of_another_model_are_an_error(runs, tmp_path):
    folder = copied(runs, tmp_path)
    words = ["--run", str(folder), "--frames", "1"]
    visualize.main(words)
    checkpoint = torch.load(folder / "checkpoint_00000002.pt", weights_only=True)
    checkpoint["model"]["field.rgb.bias"] += 1
    torch.save(checkpoint, folder / "checkpoint_00000002.pt")
    with pytest.raises(UserError, match="holds frames of another model"):
        visualize.main(words)


@pytest.mark.parametrize("damage", [
    lambda frame: frame.write_bytes(b""), lambda frame: frame.write_bytes(frame.read_bytes()[:60]),
    lambda frame: imwrite(frame, np.zeros((3, 4, 3), dtype=np.uint8)),
    lambda frame: (frame.parent / "rgb_00099.png").write_bytes(b"not ours"),
    lambda frame: (frame.parents[1] / "depth_scale.json").write_text('{"near": 3'),
    lambda frame: (frame.parents[1] / "depth_scale.json").write_text('{"near": 3, "far": "x"}'),
])
def test_damaged_frames_and_scales_are_replaced(runs, tmp_path, damage):
    folder = copied(runs, tmp_path)
    words = ["--run", str(folder), "--frames", "3", "--visualize_depth"]
    visualize.main(words)
    frame, = folder.glob("video_*/frames/depth_00001.png")
    before = {p: imread(p) for p in folder.glob("video_*/frames/*.png")}
    damage(frame)
    assert visualize.main(words) == 0
    assert all(np.array_equal(imread(p), image) for p, image in before.items())
    rendered, = folder.glob("video_*")
    assert count_frames(rendered / "rgb_depth_30fps.mp4") == 3


def test_a_damaged_record_is_an_error_and_videos_differ_by_speed_and_kinds(runs, tmp_path):
    folder = copied(runs, tmp_path)
    words = ["--run", str(folder), "--frames", "1"]
    visualize.main([*words, "--visualize_depth"])
    rendered, = folder.glob("video_*")
    before = {p: p.read_bytes() for p in rendered.glob("*.mp4")}
    visualize.main([*words, "--fps", "7", "--visualize_normals"])
    for path, content in before.items():
        assert path.read_bytes() == content
    (rendered / "video.json").write_text("{")
    with pytest.raises(UserError, match="video.json"):
        visualize.main(words)


def test_a_video_that_another_process_renders_is_an_error(runs, tmp_path):
    folder = copied(runs, tmp_path)
    visualize.main(["--run", str(folder), "--frames", "1"])
    rendered, = folder.glob("video_*")
    with sole_writer(rendered, "testing"), pytest.raises(UserError, match="rendering a video"):
        visualize.main(["--run", str(folder), "--frames", "1"])


def test_a_video_too_wide_for_the_encoders_has_a_note(runs, tmp_path, capsys):
    folder = copied(runs, tmp_path)
    visualize.main(["--run", str(folder), "--frames", "1", "--width", "6000", "--height", "2",
                    "--visualize_depth", "--visualize_normals"])
    assert "No video encoder is available (libx264:" in capsys.readouterr().out


def test_without_ffmpeg_an_animated_png_is_written(runs, tmp_path):
    folder = copied(runs, tmp_path)
    words = ["--run", str(folder), "--frames", "2", "--fps", "4"]
    result = subprocess.run([sys.executable, "visualize.py", *words], cwd=ROOT, text=True,
                            capture_output=True, env=os.environ | {"IMAGEIO_FFMPEG_EXE": "/none"})
    assert result.returncode == 0, result.stderr
    assert "writing animated PNGs" in result.stdout
    rendered, = folder.glob("video_*")
    assert imread(rendered / "rgb_4fps.png").shape[0] == 2


def test_the_focus_of_the_cameras_is_in_the_middle_of_every_frame(tmp_path, monkeypatch):
    """On every path, with a ball at the focus."""
    write_blender(tmp_path / "s", num_views=6, size=(24, 24))
    config = default_config(scene=str(tmp_path / "s"), near=2.0, far=6.0, device="cpu", frames=5)
    scenes = load_dataset(config, "train").scenes()
    run = Checkpoint(model=AnalyticModel(ball([0, 0, 0], 0.5), grey), config=config,
                     saved_config=config, step=1, scene=scenes, optimizer={},
                     path=tmp_path / "log" / "checkpoint_00000001.pt")
    run.path.parent.mkdir()
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path, device: run)
    for path in ("spherical", "spiral", "zoom"):
        visualize.main(["--run", "unused", "--path", path])
    frames = [imread(p) / 255.0 for p in sorted(tmp_path.glob("log/video_*/frames/rgb_*.png"))]
    assert len(frames) == 15
    for frame in frames:
        assert np.abs(frame[11:13, 11:13] - 0.5).max() < 0.02
        assert (frame[[0, 0, -1, -1], [0, -1, 0, -1]] == 1).all()
        rows, columns = np.nonzero(frame[..., 0] < 0.75)
        assert abs(rows.mean() - 11.5) < 0.3 and abs(columns.mean() - 11.5) < 0.3
