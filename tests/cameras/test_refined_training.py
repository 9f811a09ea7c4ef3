"""Training, checkpoints and scores with refined cameras."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import evaluate
import train
from checkpoint import load_checkpoint, read_checkpoint
from config import default_config, get_config
from datasets import load_dataset
from model import build_model
from runtime.errors import UserError
from runtime.randomness import BatchRandom
from scheduler import make_scheduler
from tests.scenes import write_blender, write_colmap, write_llff

TINY = ["--preset", "debug", "--device", "cpu", "--precision", "fp32", "--eval_every", "0",
        "--no-save_images"]
REFINED = ["--refine_cameras", "--camera_test_steps", "2"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "random"
    write_blender(folder, num_views=2, size=(12, 8))
    return folder


def flags(scene, log_dir, *more):
    return [*TINY, *REFINED, "--scene", str(scene), "--log_dir", str(log_dir), "--exp_name", "run",
            *more]


@pytest.fixture(scope="module")
def run(tmp_path_factory, scene):
    folder = tmp_path_factory.mktemp("run")
    assert train.main(flags(scene, folder, "--max_steps", "6", "--save_every", "3",
                            "--eval_every", "3", "--camera_lr_delay_steps", "0")) == 0
    return folder / "run"


def test_a_resumed_run_ends_with_the_same_cameras_to_the_bit(run, scene, tmp_path):
    (tmp_path / "run").mkdir()
    half = tmp_path / "run" / "checkpoint_00000003.pt"
    half.write_bytes((run / half.name).read_bytes())
    train.main(["--log_dir", str(tmp_path), "--exp_name", "run", "--continue_training"])
    whole, resumed = (read_checkpoint(path / "checkpoint_00000006.pt")
                      for path in (run, tmp_path / "run"))
    assert whole["refinement"].keys() == {"latent", "preconditioner"}
    for part in ("model", "refinement"):
        assert all(torch.equal(whole[part][name], resumed[part][name]) for name in whole[part])
    states = [content["optimizer"]["state"] for content in (whole, resumed)]
    assert all(torch.equal(states[0][i]["exp_avg_sq"], states[1][i]["exp_avg_sq"])
               for i in states[0])


def test_a_loaded_run_has_refined_training_cameras_and_knows_the_original_ones(run, scene):
    loaded = load_checkpoint(run)
    dataset = load_dataset(loaded.config, "train")
    original, refined = (s["train"].cameras for s in (loaded.original_scene, loaded.scene))
    assert torch.equal(original.camtoworlds, dataset.cameras.camtoworlds)
    assert not torch.equal(refined.camtoworlds, original.camtoworlds)
    assert refined.distortion.abs().max() > 0 and not refined.camtoworlds.requires_grad
    torch.testing.assert_close(refined.camtoworlds, original.camtoworlds, atol=0.1, rtol=0)


def test_scores_say_how_test_cameras_were_found(run, capsys):
    path = run / "eval_test_00000006" / "scores.json"
    after_training = json.loads(path.read_text())
    assert after_training["aligned_cameras"] is True and after_training["camera_test_steps"] == 2
    evaluate.main(["--run", str(run), "--no-save_images"])
    assert "for 2 steps" in capsys.readouterr().out
    again = json.loads(path.read_text())
    assert again["psnr"] == pytest.approx(after_training["psnr"], abs=1e-4)
    evaluate.main(["--run", str(run), "--no-save_images", "--camera_test_steps", "0"])
    aligned = json.loads(path.read_text())
    assert aligned["camera_test_steps"] == 0 and aligned["psnr"] != again["psnr"]
    evaluate.main(["--run", str(run), "--no-save_images", "--split", "train"])
    scores = json.loads((run / "eval_train_00000006" / "scores.json").read_text())
    assert scores["aligned_cameras"] is False and scores["camera_test_steps"] == 0


def test_without_refinement_nothing_of_it_is_saved_or_shown(scene, tmp_path, capsys):
    train.main([*TINY, "--scene", str(scene), "--log_dir", str(tmp_path), "--exp_name", "run",
                "--max_steps", "2"])
    content = read_checkpoint(tmp_path / "run" / "checkpoint_00000002.pt")
    assert "refinement" not in content
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.refinement is None and loaded.scene is loaded.original_scene
    scores = json.loads((tmp_path / "run" / "eval_test_00000002" / "scores.json").read_text())
    assert "aligned_cameras" not in scores and "aligned" not in capsys.readouterr().out


def test_micro_batches_and_slices_of_ranks_add_up_to_the_whole_gradient(scene):
    """The gradient of the cameras and their regulariser, with some pixels masked."""
    config = default_config(preset="debug", scene=str(scene), precision="fp32",
                            refine_cameras=True)
    dataset = load_dataset(config, "train")
    batch = dataset.batch(20, torch.Generator().manual_seed(0))
    batch = replace(batch, mask=(torch.arange(20.0)[:, None] % 3 > 0).float())
    model = build_model(config).train()
    refinement = train.make_refinement(config, dataset, None)
    with torch.no_grad():
        refinement.latent[0] = 1e-3
    gradients = []
    for size in (20, 7):
        scalars, _ = train.compute_gradients(model, batch, config, 0.0, size, BatchRandom(3, 20),
                                             refinement, dataset.cameras)
        gradients.append(refinement.latent.grad.clone())
        assert scalars["loss/cameras"] == pytest.approx(
            refinement.variance_loss(dataset.cameras).item(), rel=1e-4)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
    assert gradients[0].abs().min() > 0


@pytest.mark.parametrize("model", ["mipnerf", "mipnerf360", "zipnerf"])
def test_colours_of_every_model_are_differentiable_in_the_cameras(model, tmp_path):
    """Against a central difference of the loss, in eval mode, for captures with lenses."""
    write_colmap(tmp_path / "scene", num_views=3)
    config = get_config(["--preset", "debug", "--model", model, "--dataset_name", "colmap",
                         "--scene", str(tmp_path / "scene"), "--precision", "fp32",
                         "--refine_cameras"])
    dataset = load_dataset(config, "train")
    batch = dataset.batch(30, torch.Generator().manual_seed(0))
    built = build_model(config, box=dataset.scene.box).eval()
    refinement = train.make_refinement(config, dataset, None)

    def loss():
        output = built(refinement.cast(dataset.cameras, batch).rays)[-1]
        return (output.rgb.double() * torch.arange(90.0).reshape(30, 3)).sum()

    loss().backward()
    gradient, step = refinement.latent.grad.clone(), 1e-3
    assert gradient.isfinite().all() and (gradient.abs().amax(dim=0) > 0).all()
    direction = torch.sign(gradient)
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            refinement.latent.copy_(sign * step * direction)
            ends.append(float(loss()))
    slope = (ends[0] - ends[1]) / (2 * step)
    # No gradient flows through the places of samples along a ray, which move a little.
    assert slope == pytest.approx(float(gradient.abs().sum()), rel=0.25)


def test_forward_facing_captures_in_ndc_are_refined(tmp_path):
    write_llff(tmp_path / "scene")
    words = flags(tmp_path / "scene", tmp_path, "--dataset_name", "llff", "--max_steps", "2",
                  "--camera_lr_delay_steps", "0", "--no-final_eval")
    assert train.main(words) == 0
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.scene["train"].cameras.ndc is not None
    assert loaded.refinement.latent.abs().min() > 0 and loaded.refinement.latent.isfinite().all()


# Flags.


def test_cameras_have_their_own_learning_rate():
    config = default_config(refine_cameras=True, max_steps=100, lr_init=1e-2, lr_final=1e-2,
                            lr_delay_steps=0, camera_lr_init=1e-3, camera_lr_final=1e-5,
                            camera_lr_delay_steps=50)
    cameras, other = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.Adam([{"params": [other], "lr": 1.0},
                                  {"params": [cameras], "lr": 1.0, "cameras": True}])
    rates = []
    for step in (0, 50, 100):
        make_scheduler(optimizer, config, step)
        rates.append([group["lr"] for group in optimizer.param_groups])
    np.testing.assert_allclose(rates, [[1e-2, 1e-11], [1e-2, 1e-4], [1e-2, 1e-5]], rtol=1e-6)


@pytest.mark.parametrize("dataset", ["multicam", "nerv"])
def test_scenes_without_a_camera_per_image_are_refused(dataset, capsys):
    model = ["--model", "nerv"] if dataset == "nerv" else []
    with pytest.raises(SystemExit):
        get_config([*model, "--dataset_name", dataset, "--refine_cameras"])
    assert re.search(f"--refine_cameras needs .* --dataset_name {dataset} does not have",
                     capsys.readouterr().err)


def test_flags_of_refinement_need_it(scene, tmp_path):
    with pytest.raises(UserError, match="--camera_lr_init is for --refine_cameras"):
        train.main([*TINY, "--scene", str(scene), "--log_dir", str(tmp_path),
                    "--camera_lr_init", "0.1"])
