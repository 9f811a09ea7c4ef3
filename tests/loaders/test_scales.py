"""Captures at several scales: cameras, pixels, masks, weights, and a run from start to video."""

import json

import numpy as np
import pytest
import torch
from imageio.v3 import imread, imwrite

import evaluate
import train
from cameras.paths import path_cameras
from checkpoint import load_checkpoint
from config import get_config
from exporters.mesh_views import representative_view
from exporters.survey import survey_cameras
from runtime.errors import UserError
from tests.scenes import change_json, open_scene, write_colmap, write_llff, write_nerfstudio

SCALES = ["--scales", "1", "2", "4"]
PINHOLE = {"fl_x": 14.0, "fl_y": 15.0, "cx": 9.3, "cy": 8.8, "w": 23, "h": 18}


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    """A nerfstudio capture of images of 23x18 pixels; view 0, for tests, has a mask."""
    folder = tmp_path_factory.mktemp("scales") / "scene"
    write_nerfstudio(folder, num_views=4, size=(23, 18), lens=PINHOLE)
    mask = np.full((18, 23), 255, np.uint8)
    mask[5, 2] = mask[12:, 15:] = 0
    imwrite(folder / "mask.png", mask)
    change_json(folder / "transforms.json",
                lambda v: v["frames"][0].update(mask_path="mask.png"))
    return folder


def test_a_set_holds_the_images_of_every_scale(capture):
    scene = open_scene(capture, "nerfstudio", "train", *SCALES).scene
    assert scene.names == tuple(f"images/{i:03d}.png" for i in (1, 2, 3)) * 3
    assert scene.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    # Cropped to 20x16 before they are downsampled, as in the released code.
    assert scene.cameras.sizes[::3].tolist() == [[23, 18], [10, 8], [5, 4]]
    assert scene.cameras.lossmult[::3].tolist() == [1, 2, 4]
    assert len(scene.pixels) == 3 * (23 * 18 + 10 * 8 + 5 * 4)
    plain = open_scene(capture, "nerfstudio", "train").scene
    assert plain.labels is None and torch.equal(plain.pixels, scene.pixels[: len(plain.pixels)])


def test_pixels_are_downsampled_from_the_top_left_part(capture):
    lazily = open_scene(capture, "nerfstudio", "train", *SCALES, read_pixels=False)
    at_once = open_scene(capture, "nerfstudio", "train", *SCALES)
    mapped = open_scene(capture, "nerfstudio", "train", *SCALES, "--pixel_memory", "0")
    for index, factor in ((1, 1), (4, 2), (7, 4)):
        image = imread(capture / "images" / "002.png")
        if factor > 1:
            blocks = image[:16, :20].reshape(16 // factor, factor, 20 // factor, factor, 3)
            image = np.rint(blocks.mean(axis=(1, 3)))
        for dataset in (lazily, at_once, mapped):
            assert (np.rint(255 * dataset.image(index).rgb.numpy()) == image).all()
    batches = [d.batch(50, torch.Generator().manual_seed(1)) for d in (at_once, mapped)]
    assert torch.equal(batches[0].rgb, batches[1].rgb)
    weights = at_once.scene.cameras.lossmult[batches[0].rays.cam_idx]
    assert torch.equal(batches[0].loss_weights(), weights) and len(weights.unique()) == 3


@pytest.mark.parametrize("dataset_name", ["nerfstudio", "llff"])
def test_rays_of_coarse_pixels_are_the_mean_of_their_fine_ones(dataset_name, capture, tmp_path):
    if dataset_name == "llff":
        write_llff(tmp_path / "scene", size=(23, 18))
        capture = tmp_path / "scene"
    dataset = open_scene(capture, dataset_name, "test", *SCALES)
    num_views = len(dataset) // 3
    fine, exact = dataset.image(0).rays, dataset_name == "nerfstudio"
    for level in (1, 2):
        coarse, factor = dataset.image(level * num_views).rays, 2**level
        for name in ("origins", "directions"):
            blocks = getattr(fine, name)[:16, :20].reshape(16 // factor, factor, 20 // factor,
                                                           factor, 3).mean((1, 3))
            # Origins in NDC depend on the pixel, and not linearly.
            torch.testing.assert_close(getattr(coarse, name), blocks, rtol=0,
                                       atol=1e-5 if exact else 0.01)
        radii = fine.radii[:16:factor, :20:factor]
        torch.testing.assert_close(coarse.radii, factor * radii, rtol=1e-5 if exact else 0.1,
                                   atol=0)


@pytest.mark.parametrize("read_pixels", [True, False])
def test_a_coarse_pixel_counts_if_all_its_pixels_do(capture, read_pixels):
    dataset = open_scene(capture, "nerfstudio", "test", *SCALES, read_pixels=read_pixels)
    mask = imread(capture / "mask.png")[:16, :20] > 0
    for index, factor in ((1, 2), (2, 4)):
        blocks = mask.reshape(16 // factor, factor, 20 // factor, factor)
        assert (dataset.image(index).mask[..., 0].numpy() == blocks.all((1, 3))).all()


def test_paths_and_surveys_use_the_full_size(capture):
    cameras = open_scene(capture, "nerfstudio", "train", *SCALES).scene.cameras
    plain = open_scene(capture, "nerfstudio", "train").scene.cameras
    frames, expected = (path_cameras(c, "ellipse", 5) for c in (cameras, plain))
    assert frames.sizes.tolist() == [[23, 18]] * 5
    torch.testing.assert_close(frames.pixtocams, expected.pixtocams)
    torch.testing.assert_close(frames.camtoworlds, expected.camtoworlds, atol=1e-4, rtol=0)
    assert len(survey_cameras(cameras)) == 3 and representative_view(cameras) < 3


def test_a_photograph_has_one_embedding_and_one_refined_camera(capture):
    dataset = open_scene(capture, "nerfstudio", "train", *SCALES, "--model", "zipnerf",
                         "--glo_features", "4", "--refine_cameras")
    rays = dataset.batch(500, torch.Generator().manual_seed(0)).rays
    names = np.array(dataset.scene.names)
    photographs = np.array(["images/001.png", "images/002.png", "images/003.png"])
    assert (photographs[rays.image_idx[:, 0]] == names[rays.cam_idx[:, 0]]).all()
    assert len(rays.cam_idx.unique()) == 9 and dataset.num_photographs == 3
    refinement = train.make_refinement(dataset.config, dataset, None)
    assert len(refinement.latent) == 3 and len(refinement(dataset.cameras)) == 9


def test_unsuitable_scales_are_errors(capture, tmp_path, capsys):
    with pytest.raises(UserError, match="000.png is used at 5x4; --scales 1 8 needs at least 8"):
        open_scene(capture, "nerfstudio", "test", "--scales", "1", "8", "--factor", "4")
    for scales in (["2", "4"], ["1", "4", "2"], ["1", "2", "2"]):
        with pytest.raises(SystemExit) as exit:
            get_config(["--dataset_name", "colmap", "--scales", *scales])
        assert exit.value.code == 2
        assert f"--scales {' '.join(scales)} must begin with 1" in capsys.readouterr().err
    with pytest.raises(UserError, match="--scales is for captures"):
        train.main(["--preset", "debug", "--scales", "1", "2", "--log_dir", str(tmp_path)])


def test_a_run_trains_and_scores_every_scale(tmp_path, capsys):
    write_colmap(tmp_path / "scene", num_views=4)
    train.main(["--preset", "debug", "--device", "cpu", "--dataset_name", "colmap",
                "--scene", str(tmp_path / "scene"), "--log_dir", str(tmp_path),
                "--exp_name", "run", "--scales", "1", "2", "--micro_batch", "50", "--model",
                "zipnerf", "--glo_features", "4", "--refine_cameras", "--camera_test_steps", "1",
                "--max_steps", "2", "--eval_every", "2", "--no-save_images"])
    printed = capsys.readouterr().out
    assert "1/1" in printed and "1/2" in printed
    scores = json.loads((tmp_path / "run" / "eval_test_00000002" / "scores.json").read_text())
    assert [image["scale"] for image in scores["images"]] == [0, 1]
    assert scores["scales"].keys() == {"0", "1"}
    run = load_checkpoint(tmp_path / "run")
    assert run.config.scales == (1, 2) and len(run.scene["train"].names) == 6
    assert len(run.model.embeddings.weight) == len(run.refinement.latent) == 3
    with pytest.raises(UserError, match="--scales .*started with"):
        evaluate.main(["--run", str(tmp_path / "run"), "--scales", "1"])
