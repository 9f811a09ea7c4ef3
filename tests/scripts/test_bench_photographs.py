"""The table of trained photographs: commands, resuming, rows, points, sheets."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from imageio.v3 import imread

import evaluate
import train
from checkpoint import load_checkpoint
from datasets import load_dataset
from ray_utils import points_to_pixels
from runtime.errors import UserError
from scripts import bench_photographs, benchmark
from scripts.bench_photographs import Bench
from structures import RenderOutput, SparsePoints
from tests.scenes import open_scene, write_colmap, write_llff

TRAIN, CONTINUE, SCORE = "train", "continue", "evaluate"


class FakeCheckout:
    """Stands in for `run_command`: records the kind and flags of commands and writes run folders.

    speed: the rays per second of later log lines; status: the exit status of the next commands.
    """

    def __init__(self):
        self.kinds, self.flags, self.speed, self.status = [], [], 2048.0, 0

    def __call__(self, words, output):
        assert output is sys.stderr
        script, flags = Path(words[1]).name, words[2:]
        is_new = script == "train.py" and "--continue_training" not in flags
        kind = SCORE if script == "evaluate.py" else TRAIN if is_new else CONTINUE
        self.kinds.append(kind)
        self.flags.append(flags)
        if self.status:
            return self.status
        typed = dict(zip(flags, flags[1:], strict=False))
        run = Path(typed["--run"] if kind == SCORE else
                   f"{typed['--log_dir']}/{typed['--exp_name']}")
        run.mkdir(parents=True, exist_ok=True)
        if kind == TRAIN:
            steps = int(typed.get("--max_steps", 100))
            (run / "config.json").write_text(json.dumps({"max_steps": steps, "batch_size": 1024}))
            lines = [{"step": i, "seconds": i, "rays_per_second": 10.0 if i == 1 else self.speed}
                     for i in (1, 2, 3)]
            (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        if kind == SCORE:
            folder = bench_photographs.scores_folder(run)
            folder.mkdir()
            (folder / "scores.json").touch()
        else:
            steps = bench_photographs.run_flags(run)["max_steps"]
            (run / f"checkpoint_{steps:08d}.pt").touch()
        return 0


def make_bench(tmp_path, monkeypatch, has_minutes=True, **changes):
    fake = FakeCheckout()
    monkeypatch.setattr(benchmark, "run_command", fake)
    args = bench_photographs.parse(["--log_dir", str(tmp_path / "runs"), "--lpips", "none"])
    bench = Bench(argparse.Namespace(**vars(args) | changes))
    bench.has_minutes = has_minutes
    return bench, fake


def finish(bench, minutes=5.0, seed=3):
    folder = bench.folder("flower", minutes, seed)
    bench.finish(folder, "flower", minutes, seed)
    return folder


def test_a_row_is_trained_and_scored_once_and_resumed_where_it_stopped(tmp_path, monkeypatch):
    bench, fake = make_bench(tmp_path, monkeypatch, flags="--hidden 64 --no-append_scale")
    folder = finish(bench)
    assert folder == tmp_path / "runs" / "flower_5min_seed3"
    assert fake.kinds == [TRAIN, SCORE]
    flags = " ".join(fake.flags[0])
    assert flags.startswith("--dataset_name llff --scene flower --factor 8 --preset laptop "
                            "--model zipnerf --data_dir data")
    assert "--seed 3 " in flags and " --hidden 64 --no-append_scale --minutes 5 " in flags
    finish(bench)
    assert len(fake.kinds) == 2, "finished scores are reused"
    (bench_photographs.scores_folder(folder) / "scores.json").unlink()
    bench_photographs.scores_folder(folder).rmdir()
    (folder / "checkpoint_00000100.pt").rename(folder / "checkpoint_00000050.pt")
    finish(bench)
    assert fake.kinds[2:] == [CONTINUE, SCORE] and "--minutes" not in fake.flags[2]


def test_a_checkout_without_minutes_gets_steps_at_the_speed_of_one_trial(tmp_path, monkeypatch):
    bench, fake = make_bench(tmp_path, monkeypatch, has_minutes=False)
    finish(bench, minutes=0.5)
    finish(bench, minutes=2.0)
    assert fake.kinds == [TRAIN, TRAIN, SCORE, TRAIN, SCORE]
    steps = [flags[flags.index("--max_steps") + 1]
             for kind, flags in zip(fake.kinds, fake.flags, strict=True) if kind == TRAIN]
    # 2,048 rays per second are two steps.
    assert steps == [str(bench_photographs.TRIAL_STEPS), "60", "240"]
    assert sorted(path.name for path in bench.log_dir.iterdir()) == [
        "flower_0.5min_seed3", "flower_2min_seed3"]


def test_a_failing_command_is_named(tmp_path, monkeypatch):
    bench, fake = make_bench(tmp_path, monkeypatch)
    fake.status = 2
    with pytest.raises(UserError, match="train.py .*--scene flower.* failed; its own message"):
        finish(bench)
    assert fake.kinds == [TRAIN]


def test_missing_weights_of_lpips_are_said_and_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lpips", None)
    bench, _ = make_bench(tmp_path, monkeypatch, lpips="vgg")
    assert bench.lpips == "none" and "Without LPIPS" in capsys.readouterr().err


@pytest.mark.parametrize("words", [
    ["--minutes", "0"], ["--minutes", "inf"], ["--scenes", "attic"], ["--crop", "1", "2"],
    ["--crop", "1", "2", "0"], ["--checkout", "tests"],
])
def test_wrong_command_lines_end_with_status_2(words):
    with pytest.raises(SystemExit) as end:
        bench_photographs.parse(words)
    assert end.value.code == 2


# One real run.


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Output and folder of a table of one tiny scene, trained in this process."""
    folder = tmp_path_factory.mktemp("photographs")
    write_llff(folder / "shelf", size=(24, 16))
    scripts = {"train.py": train.main, "evaluate.py": evaluate.main}

    def run_here(words, output):
        return scripts[Path(words[1]).name](words[2:])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_photographs, "SCENES", {
            "shelf": f"--dataset_name llff --scene {folder / 'shelf'}"})
        patch.setattr(bench_photographs, "MODEL", "--preset debug --model zipnerf")
        patch.setattr(benchmark, "run_command", run_here)
        patch.setattr(bench_photographs, "TRAINING_PIXELS", 4000)
        patch.setattr(Bench, "has_minutes", False)
        patch.setattr(Bench, "steps_per_second", lambda *_: 0.5)
        bench_photographs.main(["--log_dir", str(folder / "runs"), "--minutes", "0.1", "0.2",
                                "--scenes", "shelf", "--crop", "2", "3", "8", "--lpips", "none",
                                "--device", "cpu"])
    return folder / "runs"


def test_rows_hold_scores_rays_and_steps(table):
    run = table / "shelf_0.2min_seed0"
    cells = bench_photographs.result_cells(run, "cpu")
    scores = json.loads((run / "eval_test_00000006" / "scores.json").read_text())
    assert cells[:3] == [f"{scores['psnr']:.2f}", f"{scores['ssim']:.3f}", "-"]
    # Six steps of 128 rays for 7 training views of 24x16 pixels.
    assert cells[4:6] == ["-", f"{6 * 128 / (7 * 24 * 16):.2f}"] and cells[7] == "6"


def test_the_training_psnr_is_that_of_the_training_views(table, monkeypatch):
    run = load_checkpoint(table / "shelf_0.2min_seed0", "cpu")
    dataset = load_dataset(run.config, "train")
    scores = evaluate.evaluate(run.model, dataset, run.config.replace(save_images=False), run.step,
                               table / "all_pixels")
    # More random pixels of a view than it has.
    monkeypatch.setattr(bench_photographs, "TRAINING_PIXELS", 4000)
    found = bench_photographs.training_psnr(run)
    assert found == pytest.approx(scores["psnr"], abs=0.2)


def test_sheets_show_photograph_rendering_difference_and_distance(table):
    sheet = imread(table / "shelf.png").astype(int)
    assert sheet.shape == (16 + 2 + 16, 4 * 24 + 3 * 2, 3)
    photograph, rendering, difference, distance = (sheet[:16, i * 26 : i * 26 + 24]
                                                   for i in range(4))
    run = table / "shelf_0.1min_seed0"
    files = run / "eval_test_00000003"
    np.testing.assert_array_equal(rendering, imread(files / "000_rgb.png"))
    np.testing.assert_array_equal(distance, imread(files / "000_depth.png"))
    np.testing.assert_array_equal(difference, np.abs(photograph - rendering))
    np.testing.assert_array_equal(photograph, imread(table.parent / "shelf/images_4/000.png"))
    crop = imread(table / "shelf_crop.png")
    assert crop.shape == (2 * 16 + 2, 2 * 16 + 2, 3)
    np.testing.assert_array_equal(crop[:16:2, 1:17:2][:, :8], photograph[3:11, 2:10])


def test_a_crop_beyond_the_view_is_an_error():
    image = np.zeros((16, 24, 3))
    assert bench_photographs.enlarged_crop(image, 8, 0, 16).shape == (32, 32, 3)
    with pytest.raises(UserError, match="--crop 9 0 16 reaches beyond the view of 24x16 pixels"):
        bench_photographs.enlarged_crop(image, 9, 0, 16)


# Points.


class FarBy:
    """Stands in for `render_image`: every ray ends at a multiple of its true distance."""

    def __init__(self, points, factor):
        self.points, self.factor = points, factor

    def __call__(self, model, rays, chunk):
        t = (self.points - rays.origins).norm(dim=-1) / rays.directions.norm(dim=-1)
        return RenderOutput(rgb=rays.origins, acc=t, distance_mean=t,
                            distance_median=self.factor * t)


def matched(index, points):
    """Stands in for `points_of_scene`: each of `points [K, 3]` matched in one view of `index`."""
    return SparsePoints(positions=points, errors=torch.zeros(len(points)), image_idx=index,
                        pixels=torch.zeros(len(points), 2), point_idx=torch.arange(len(points)))


def test_the_depth_error_is_relative_to_points_matched_in_the_test_views(tmp_path, monkeypatch):
    write_colmap(tmp_path / "scene", factor=1, size=(96, 64))
    dataset = open_scene(tmp_path / "scene", "colmap", "test", "--factor", "1")
    run = argparse.Namespace(config=dataset.config, refinement=None, model=torch.nn.Linear(1, 1),
                             original_scene=dataset.scenes())
    poses = dataset.scene.cameras.camtoworlds
    # The third point lies behind its camera.
    index, depths = torch.tensor([0, 1, 1]), torch.tensor([[0.9], [0.4], [-0.5]])
    points = poses[index, :, 3] - depths * poses[index, :, 2]
    monkeypatch.setattr(bench_photographs, "points_of_scene",
                        lambda loader, scene, split: matched(index, points))
    views, found = bench_photographs.reference_points(dataset)
    assert views.tolist() == [0, 1] and torch.equal(found, points[:2])
    monkeypatch.setattr(bench_photographs, "render_image", FarBy(found, 1.25))
    assert bench_photographs.depth_error(run) == pytest.approx(0.25, abs=1e-4)
    monkeypatch.setattr(bench_photographs, "points_of_scene", lambda *_: None)
    assert bench_photographs.depth_error(run) is None


def test_tracks_of_a_colmap_model_name_the_points_of_a_view(tmp_path):
    write_colmap(tmp_path / "scene", factor=1, size=(96, 64))
    sparse = tmp_path / "scene" / "sparse" / "0"
    model = pycolmap.Reconstruction(str(sparse))
    # The first view shows points 7 and 3, in whatever pixel; other views show none.
    text = (sparse / "images.txt").read_text()
    observed = text.replace("000.png\n\n", "000.png\n5 5 7 6 6 -1 9 9 3\n")
    (sparse / "images.txt").write_text(observed)
    dataset = open_scene(tmp_path / "scene", "colmap", "test", "--factor", "1", read_pixels=False)
    views, points = bench_photographs.reference_points(dataset)
    moved = dataset.scene.world_to_scene.float()
    expected = [torch.tensor(model.points3D[i].xyz).float() for i in (7, 3)]
    expected = torch.stack(expected) @ moved[:3, :3].T + moved[:3, 3]
    pixels, _ = points_to_pixels(dataset.scene.cameras, torch.zeros(2, dtype=torch.long), expected)
    shown = ((pixels >= 0) & (pixels < torch.tensor([96, 64]))).all(dim=-1)
    torch.testing.assert_close(points, expected[shown])
    assert len(points) > 0 and (views == 0).all()


def test_views_without_matches_have_no_points(tmp_path):
    write_llff(tmp_path / "scene")
    dataset = open_scene(tmp_path / "scene", "llff", "test")
    views, points = bench_photographs.reference_points(dataset)
    assert views.shape == (0,) and points.shape == (0, 3)
