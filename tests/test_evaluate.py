"""Scores and images: the protocol, the files, and their provenance."""

import csv
import json
import math
import sys

import numpy as np
import pytest
import torch
from imageio.v3 import imread

import evaluate
import train
from checkpoint import load_checkpoint
from config import get_config
from datasets import load_dataset
from runtime.errors import UserError
from structures import RenderOutput
from tests.scenes import write_blender, write_multicam


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_multicam(folder / "scene", num_views=2)
    train.main(["--preset", "debug", "--device", "cpu", "--precision", "fp32",
                "--dataset_name", "multicam",
                "--scene", str(folder / "scene"), "--log_dir", str(folder), "--exp_name", "run",
                "--max_steps", "3", "--eval_every", "0", "--no-final_eval"])
    return folder / "run"


def scored(run, tmp_path, **changes):
    loaded = load_checkpoint(run)
    config = loaded.config.replace(**changes)
    dataset = load_dataset(config, "test")
    return evaluate.evaluate(loaded.model, dataset, config, loaded.step, tmp_path)


def test_scores_do_not_depend_on_the_chunk(run, tmp_path):
    scores = [scored(run, tmp_path, chunk=chunk, save_images=False) for chunk in (7, 64, 5000)]
    for other in scores[1:]:
        for a, b in zip(scores[0]["images"], other["images"], strict=True):
            assert abs(a["psnr"] - b["psnr"]) < 0.001


def test_scores_do_not_depend_on_the_chunk_in_bf16(run, tmp_path):
    loaded = load_checkpoint(run)
    loaded.model.field.compute_dtype = torch.bfloat16
    # Weights as large as those of a trained network give images with contrast.
    with torch.no_grad():
        for layer in loaded.model.field.layers():
            layer.weight.mul_(2)
    dataset = load_dataset(loaded.config, "test")
    psnrs = []
    for chunk in (7, 64):
        config = loaded.config.replace(chunk=chunk, save_images=False)
        psnrs.append(evaluate.evaluate(loaded.model, dataset, config, 3, tmp_path)["psnr"])
    assert abs(psnrs[0] - psnrs[1]) < 0.01


def test_psnr_is_averaged_over_images_and_by_scale(run, tmp_path):
    scores = scored(run, tmp_path, save_images=False)
    psnrs = [image["psnr"] for image in scores["images"]]
    assert scores["psnr"] == pytest.approx(sum(psnrs) / len(psnrs))
    assert sorted(scores["scales"]) == [0, 1, 2]
    for scale in (0, 1, 2):
        assert scores["scales"][scale]["psnr"] == pytest.approx(np.mean(psnrs[scale::3]))
    table = evaluate.format_table(scores)
    assert all(word in table for word in ("1/1", "1/2", "1/4", "mean", "psnr", "ssim"))
    corrected = scores["scales"][0]["psnr_corrected"]
    assert corrected == pytest.approx(
        np.mean([image["psnr_corrected"] for image in scores["images"][::3]]))
    assert f"{corrected:.3f}" in table.splitlines()[1].split()


def test_corrected_scores_are_those_of_fitted_colours(run):
    dataset = load_dataset(load_checkpoint(run).config, "test")
    ground_truth = np.random.default_rng(0).integers(20, 200, (12, 16, 3)) / 255
    darker = np.rint(255 * (0.8 * ground_truth + 0.02)) / 255
    scores = evaluate.score_image({"ground_truth": ground_truth, "rgb": darker}, dataset, 0)
    assert scores["psnr"] < 23 and scores["psnr_corrected"] > 50
    assert scores["ssim"] < 0.995 and scores["ssim_corrected"] > 0.999


def test_files_hold_scores_and_their_provenance(run, tmp_path):
    scored(run, tmp_path)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert {"config", "step", "commit", "device", "torch", "split"} <= set(written)
    with open(tmp_path / "scores.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert float(rows[2]["psnr"]) == written["images"][2]["psnr"]
    for name in ("rgb", "depth", "normals"):
        assert imread(tmp_path / f"000_{name}.png").shape == (8, 12, 3)
    assert (tmp_path / "sheet.png").exists()


def test_scores_are_those_of_the_images_on_disk(run, tmp_path):
    scores = scored(run, tmp_path)
    dataset = load_dataset(load_checkpoint(run).config, "test")
    rgb = imread(tmp_path / "000_rgb.png").astype(float)
    ground_truth = np.rint(dataset.image(0).rgb.numpy() * 255)
    mse = np.mean((rgb - ground_truth) ** 2) / 255**2
    assert scores["images"][0]["psnr"] == pytest.approx(-10 * math.log10(mse), abs=1e-4)


class ExactModel:
    """Renders the ground-truth colour of each ray."""

    compute_dtype = torch.float32
    ray_shape, bg_rgb = "cone", 1.0

    def __init__(self, dataset):
        self.colours = [dataset.image(i).rgb.reshape(-1, 3) for i in range(len(dataset))]

    def __call__(self, rays, shading=None, density_normals=False):
        rgb = self.colours[int(rays.cam_idx[0])] + 0.0009  # Rounding to 8 bits removes it.
        shape = rgb.shape[:-1]
        fenceposts = torch.linspace(2, 6, 3).expand(*shape, 3)
        return [RenderOutput(rgb=rgb, acc=torch.ones(shape), distance_mean=torch.ones(shape),
                             distance_median=torch.ones(shape), sdist=fenceposts,
                             tdist=fenceposts, weights=torch.full((*shape, 2), 0.5))]

    def extra_images(self, output):
        return {}

    def max_samples_per_chunk(self, device):
        return 8192

    def density(self, means, covs):
        return means.sum(-1)


def test_images_are_compared_after_rounding_to_8_bits(tmp_path):
    image = np.full((12, 12, 4), 255, np.uint8)
    image[..., 0] = 30
    write_blender(tmp_path / "scene", images=[image])
    config = load_config(tmp_path / "scene")
    dataset = load_dataset(config, "test")
    scores = evaluate.evaluate(ExactModel(dataset), dataset, config, 0, tmp_path)
    assert scores["psnr"] == math.inf
    assert scores["ssim"] == pytest.approx(1)


def load_config(scene, *flags):
    return get_config(["--scene", str(scene), "--chunk", "100000", *flags])


def test_the_script_scores_a_run_folder(run, capsys):
    evaluate.main(["--run", str(run), "--split", "test"])
    out = capsys.readouterr().out
    assert "mean" in out and (run / "eval_test_00000003" / "scores.json").exists()
    evaluate.main(["--run", str(run), "--split", "train", "--no-save_images"])
    assert (run / "eval_train_00000003" / "scores.csv").exists()
    assert not (run / "eval_train_00000003" / "sheet.png").exists()


def test_the_script_refuses_flags_that_differ_from_the_runs(run, capsys):
    with pytest.raises(UserError, match="--hidden 99 .*started with"):
        evaluate.main(["--run", str(run), "--hidden", "99"])
    evaluate.main(["--run", str(run), "--chunk", "50", "--no-save_images"])


def test_the_script_refuses_another_scene_than_the_runs(run, tmp_path):
    write_multicam(tmp_path / "other", num_views=3)
    with pytest.raises(UserError, match="not those of the run"):
        evaluate.main(["--run", str(run), "--scene", str(tmp_path / "other")])


def test_images_read_lazily_equal_those_read_at_once(run):
    config = load_checkpoint(run).config
    at_once = load_dataset(config, "test")
    lazily = load_dataset(config, "test", read_pixels=False)
    assert lazily.scene.pixels is None
    for i in range(len(at_once)):
        assert torch.equal(at_once.image(i).rgb, lazily.image(i).rgb)


def test_a_missing_lpips_package_is_an_error_that_names_it(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError, match="pip install lpips"):
        scored(run, tmp_path, lpips="vgg")
