"""Appearance embeddings: their two forms against slow twins, zeros at test, what they explain."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import coord
import train
from checkpoint import load_checkpoint
from config import default_config, get_config
from coord import Gaussians
from datasets import load_dataset
from fields.appearance import AffineAppearance, ImageEmbeddings
from fields.base import Head, Trunk
from fields.mlp import MLPField
from fields.occupancy import RayOccupancy
from model import build_model
from rendering import render_view
from runtime.errors import UserError
from runtime.randomness import BatchRandom
from structures import Batch, concatenate
from tests.scenes import write_blender
from tests.test_model import make_rays

# Sizes differ, and the view branch has a skip connection after its second layer.
HEAD = Head(bottleneck=7, view_hidden=11, view_depth=3, view_skip=1, view_deg=2,
            use_viewdirs=True, rgb_padding=0.001)
SMALL = dict(num_samples=6, prop_samples=9, hidden=18, depth=3, skip=2, bottleneck=7,
             view_hidden=11, prop_hidden=10, prop_depth=2, max_deg=5, view_deg=2,
             grid_coarsest=4, grid_finest=32, grid_log2_size=9, prop_finest=[8, 16],
             precision="fp32")
MODELS = ["mipnerf360", "zipnerf"]


def make_field(seed=0, **head):
    torch.manual_seed(seed)
    field = MLPField(Trunk(18, 1), replace(HEAD, **head), min_deg=0, max_deg=3, density_bias=-1.0)
    for name, parameter in field.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return field


def make_model(name, glo_features=5, num_images=3, **flags):
    config = default_config(**(SMALL | dict(model=name, glo_features=glo_features) | flags))
    return build_model(config, num_images=num_images)


def make_samples(num_rays=4):
    means, covs = torch.randn(num_rays, 3, 3), torch.rand(num_rays, 3, 3) * 0.01
    return Gaussians(means, covs), torch.nn.functional.normalize(torch.randn(num_rays, 3), dim=-1)


def with_images(rays, image_idx):
    return replace(rays, image_idx=torch.as_tensor(image_idx).long().reshape(*rays.shape, 1))


# The two forms.


def slow_colour(field, encoding, view_encoding, embedding):
    """The colour of one sample in float64 NumPy, in the order of the released code."""
    def dense(layer, x):
        return layer.weight.detach().double().numpy() @ x + layer.bias.detach().double().numpy()

    def relu(x):
        return np.maximum(x, 0)

    bottleneck, inputs = dense(field.bottleneck, relu(dense(field.trunk[0], encoding))), []
    if field.head.glo_affine:
        y = embedding
        for layer in field.appearance.layers[:-1]:
            y = dense(layer, y)
            y = y / (1 + np.exp(-y))
        pairs = dense(field.appearance.layers[-1], y).reshape(-1, 2)
        bottleneck = np.exp(pairs[:, 0]) * bottleneck + pairs[:, 1]
        inputs = np.concatenate([bottleneck, view_encoding])
    else:
        inputs = np.concatenate([bottleneck, view_encoding, embedding])
    x = inputs
    for i, layer in enumerate(field.view):
        x = relu(dense(layer, x))
        if i in (1, 2):
            x = np.concatenate([x, inputs])
    return 1.002 / (1 + np.exp(-dense(field.rgb, x))) - 0.001


@pytest.mark.parametrize("affine", [False, True])
def test_colours_equal_a_slow_twin(affine):
    field = make_field(glo_features=5, glo_affine=affine)
    gaussians, viewdirs = make_samples()
    embeddings = torch.randn(4, 5)
    found = field(gaussians, viewdirs, appearance=embeddings).rgb.detach().numpy()
    encodings = coord.integrated_pos_enc(*gaussians, 0, 3).double().numpy()
    view_encodings = coord.pos_enc(viewdirs, 0, 2).double().numpy()
    for i in range(4):
        for j in range(3):
            wanted = slow_colour(field, encodings[i, j], view_encodings[i],
                                 embeddings[i].double().numpy())
            np.testing.assert_allclose(found[i, j], wanted, rtol=2e-5, atol=1e-6)


def test_an_appended_zero_equals_the_same_weights_without_its_columns():
    field, plain = make_field(glo_features=5), make_field()
    first, last = 11 + 7 + 15, 7 + 15  # Columns before the embedding's, with and without a skip.
    weights = field.state_dict()
    for name, width in (("view.0.weight", last), ("view.2.weight", first), ("rgb.weight", first)):
        weights[name] = weights[name][:, :width]
    plain.load_state_dict(weights)
    gaussians, viewdirs = make_samples()
    wanted = plain(gaussians, viewdirs)
    for zero in (None, torch.zeros(4, 5)):
        found = field(gaussians, viewdirs, appearance=zero)
        torch.testing.assert_close(found.rgb, wanted.rgb, atol=1e-6, rtol=1e-6)
        assert torch.equal(found.density, wanted.density)


def test_an_affine_map_of_zero_changes_nothing_before_training():
    field = make_field(glo_features=5, glo_affine=True)
    plain = make_field()
    plain.load_state_dict({k: v for k, v in field.state_dict().items() if k[:4] != "appe"})
    for layer in field.appearance.layers:
        torch.nn.init.zeros_(layer.bias)
    gaussians, viewdirs = make_samples()
    assert torch.equal(field(gaussians, viewdirs).rgb, plain(gaussians, viewdirs).rgb)


def test_initial_values_are_those_of_flax():
    """`nn.Embed` is normal with variance 1 / N; `nn.Dense` LeCun normal, cut at two deviations."""
    table = ImageEmbeddings(2000, 16).weight.detach()
    assert table.var().item() == pytest.approx(1 / 16, rel=5 * math.sqrt(2 / table.numel()))
    assert (table**4).mean().item() == pytest.approx(3 / 16**2, rel=0.1)  # Uniform: 1.8.
    for layer in AffineAppearance(128, 256).layers:
        weight = layer.weight.detach() * math.sqrt(layer.in_features)
        assert weight.var().item() == pytest.approx(1, rel=0.05)
        assert 2 < weight.abs().max() <= 2 / 0.8796 and not layer.bias.any()


def test_a_huge_scale_stays_finite():
    affine = AffineAppearance(3, 4)
    torch.nn.init.constant_(affine.layers[-1].bias, 1000.0)
    scale, _ = affine.scale_and_shift(torch.zeros(2, 3))
    assert torch.isfinite(scale).all() and (scale > 1e38).all()


# Rays and models.


def test_rays_keep_the_index_of_their_image():
    rays = make_rays(2, 3)
    indexed = with_images(rays, torch.arange(6))
    assert indexed.flatten().image_idx[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert indexed[1].image_idx[:, 0].tolist() == [3, 4, 5]
    assert concatenate([indexed, indexed]).image_idx.shape == (4, 3, 1)
    for part in (rays.flatten(), rays[1], concatenate([rays, rays]), rays.to("meta")):
        assert part.image_idx is None


@pytest.mark.parametrize("name", MODELS)
def test_colours_depend_on_the_image_and_are_those_of_zero_without_one(name):
    model = make_model(name).eval()
    rays = make_rays(4)
    colours = [model(with_images(rays, [i] * 4))[-1].rgb for i in range(3)]
    assert not torch.allclose(colours[0], colours[1])
    mixed = model(with_images(rays, [2, 0, 1, 1]))[-1]
    torch.testing.assert_close(mixed.rgb, torch.stack([colours[2][0], colours[0][1],
                                                       colours[1][2], colours[1][3]]))
    without = model(rays)[-1]
    torch.nn.init.zeros_(model.embeddings.weight)
    torch.testing.assert_close(model(with_images(rays, [1] * 4))[-1].rgb, without.rgb)
    assert torch.equal(mixed.weights, without.weights)  # Density has no embedding.
    assert model(with_images(make_rays(0), [])).pop().rgb.shape == (0, 3)


def test_occupied_intervals_have_the_colours_of_all():
    model = make_model("mipnerf360").eval()
    rays = with_images(make_rays(4), [2, 0, 1, 1])
    everywhere = RayOccupancy.from_density(torch.ones(4, 8), rays.near, rays.far, 5)
    found = model(rays, ray_occupancy=everywhere)[-1].rgb
    torch.testing.assert_close(found, model(rays)[-1].rgb, atol=1e-6, rtol=1e-5)


def test_parameters_exist_only_with_the_option():
    plain = make_model("zipnerf", glo_features=0, num_images=None)
    assert not [k for k in plain.state_dict() if "appearance" in k or "embeddings" in k]
    added = make_model("zipnerf").state_dict().keys() - plain.state_dict().keys()
    assert "embeddings.weight" in added and len(added) == 1 + 2 * 3
    assert make_model("mipnerf360").state_dict()["embeddings.weight"].shape == (3, 5)
    with pytest.raises(ValueError, match="num_images"):
        make_model("mipnerf360", num_images=None)


# Training.


@pytest.mark.parametrize("name", MODELS)
def test_two_exposures_of_one_colour_are_fitted_only_with_embeddings(name):
    """The same rays are 0.2 in one image and 0.8 in the other: one colour for both errs by 0.09.

    That holds without embeddings whatever the weights, so one step shows it.
    """
    rays, errors = concatenate([with_images(make_rays(4), [i] * 4) for i in (0, 1)]), {}
    colours = torch.tensor([0.2, 0.8]).repeat_interleave(4)[:, None].expand(-1, 3)
    for features, steps in ((0, 1), (4, 40)):
        model = make_model(name, features, num_images=2, opaque_background=True, prop_rounds=1,
                           prop_finest=[8]).eval()  # Without jitter, which differs by ray.
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = ((model(rays)[-1].rgb - colours) ** 2).mean()
            loss.backward()
            optimizer.step()
        errors[features] = loss.item()
    assert errors[0] > 0.0899 and errors[4] < 0.02, errors


@pytest.mark.parametrize("name", MODELS)
def test_micro_batches_give_the_gradient_of_the_whole(name):
    config = default_config(**(SMALL | dict(model=name, glo_features=5)))
    batch = Batch(rays=with_images(make_rays(7), [0, 2, 2, 0, 0, 2, 0]), rgb=torch.rand(7, 3),
                  batch_index=torch.arange(7))
    model, found = build_model(config, num_images=3).train(), []
    for size in (7, 3):
        train.compute_gradients(model, batch, config, 0.5, size, BatchRandom(3, 7))
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for key, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][key], rtol=1e-4, atol=1e-7)
    rows = found[0]["embeddings.weight"].abs().sum(dim=-1)
    assert rows[0] > 0 and rows[1] == 0 and rows[2] > 0


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "random"
    write_blender(folder, num_views=3, size=(6, 4))
    return folder


def flags(scene, log_dir, *more):
    return ["--preset", "debug", "--device", "cpu", "--precision", "fp32", "--scene", str(scene),
            "--log_dir", str(log_dir), "--exp_name", "run", "--eval_every", "0",
            "--no-final_eval", *more]


@pytest.mark.parametrize("split,features,known", [
    ("train", 4, True), ("train", 0, False), ("test", 4, False)])
def test_batches_of_the_training_split_alone_name_their_images(split, features, known, scene):
    config = get_config(["--scene", str(scene), "--model", "zipnerf", "--glo_features",
                         str(features)])
    dataset = load_dataset(config, split)
    rays = dataset.batch(20, torch.Generator().manual_seed(0)).rays
    assert (rays.image_idx is not None) == known
    if known:
        assert torch.equal(rays.image_idx, rays.cam_idx) and len(rays.cam_idx.unique()) == 3
    assert dataset.image(0).rays.image_idx is None


def test_images_of_the_training_split_are_rendered_with_zeros(scene):
    config = get_config(["--scene", str(scene), "--preset", "debug", "--model", "mipnerf360",
                         "--glo_features", "4"])
    model, dataset = build_model(config, num_images=3).eval(), load_dataset(config, "train")
    before = render_view(model, dataset, 1, None)["rgb"]
    torch.nn.init.normal_(model.embeddings.weight, std=100.0)
    assert np.array_equal(before, render_view(model, dataset, 1, None)["rgb"])


@pytest.mark.parametrize("name", MODELS)
def test_a_resumed_run_equals_an_uninterrupted_one(name, tmp_path, scene):
    more = ["--model", name, "--glo_features", "4", "--save_every", "2", "--max_steps", "4"]
    train.main(flags(scene, tmp_path / "whole", *more, "--keep_checkpoints", "9"))
    train.main(flags(scene, tmp_path / "halves", *more))
    folders = [tmp_path / part / "run" for part in ("whole", "halves")]
    (folders[1] / "checkpoint_00000004.pt").unlink()
    train.main(flags(scene, tmp_path / "halves", *more, "--continue_training"))
    whole, resumed = (load_checkpoint(folder).model.state_dict() for folder in folders)
    assert whole["embeddings.weight"].shape == (3, 4)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    first = load_checkpoint(folders[0] / "checkpoint_00000000.pt").model.state_dict()
    assert (first["embeddings.weight"] != whole["embeddings.weight"]).all()


def test_checkpoints_older_than_the_flag_load(tmp_path, scene):
    train.main(flags(scene, tmp_path, "--model", "mipnerf360", "--max_steps", "1"))
    path = tmp_path / "run" / "checkpoint_00000001.pt"
    content = torch.load(path)
    del content["config"]["glo_features"]
    torch.save(content, path)
    run = load_checkpoint(path)
    assert run.config.glo_features == 0 and run.model.embeddings is None


def test_flags_that_exclude_embeddings_are_one_sentence(tmp_path, scene, capsys):
    with pytest.raises(UserError, match="--glo_features is for --model mipnerf360 or zipnerf"):
        train.main(flags(scene, tmp_path, "--model", "mipnerf", "--glo_features", "4"))
    with pytest.raises(SystemExit):
        get_config(["--model", "zipnerf", "--glo_features", "4", "--no-use_viewdirs"])
    assert "--glo_features 4" in capsys.readouterr().err
