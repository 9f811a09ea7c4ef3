"""LPIPS: the package with a user's backbone against the paper's formula, without a network."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

import evaluate
from checkpoint import load_checkpoint
from config import check_all_read, get_config
from datasets import load_dataset
from evaluate import LPIPS_MIN_SIDE, make_lpips
from runtime.errors import UserError
from tests.scenes import write_blender

# The mean and deviation of the images on which the backbones were trained.
MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def vgg16():
    """The convolutions of VGG-16, numbered as in torchvision."""
    layers, before = [], 3
    for width in (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool",
                  512, 512, 512, "pool", 512, 512, 512, "pool"):
        if width == "pool":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
            before = width
    return nn.Sequential(*layers)


def alexnet():
    """The convolutions of AlexNet, numbered as in torchvision."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2))


NETWORKS = {"vgg": (vgg16, (3, 8, 15, 22, 29)), "alex": (alexnet, (1, 4, 7, 9, 11))}


def network(features):
    """A network of which only `features` is used, as torchvision's are."""
    model = nn.Module()
    model.features = features()
    model.classifier = nn.Linear(4, 2)
    return model


@pytest.fixture(autouse=True)
def without_torchvision(monkeypatch):
    """The package's import of torchvision gives the networks above.

    So the tests need no build of torchvision that fits this PyTorch, and no network.
    """
    models = ModuleType("torchvision.models")
    models.vgg16 = lambda pretrained: downloaded(pretrained) or network(vgg16)
    models.alexnet = lambda pretrained: downloaded(pretrained) or network(alexnet)
    torchvision = ModuleType("torchvision")
    torchvision.models = models
    for name in [name for name in sys.modules if name.split(".")[0] in ("lpips", "torchvision")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    pytest.importorskip("lpips")
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "lpips"]:
        del sys.modules[name]


def downloaded(pretrained):
    if pretrained:
        raise OSError("no connection")


@pytest.fixture(params=NETWORKS)
def backbone(request, tmp_path):
    """The name of a network, one with random weights, and the file of its weights."""
    model = network(NETWORKS[request.param][0])
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    return request.param, model.features, tmp_path / "weights.pth"


def images(height=40, width=48):
    rng = np.random.default_rng(0)
    return rng.random((2, height, width, 3), dtype=np.float32)


def channel_weights(net):
    """The learned weights of the channels at each of five layers, from the package's file."""
    folder = Path(sys.modules["lpips"].__file__).parent / "weights" / "v0.1"
    content = torch.load(folder / f"{net}.pth", weights_only=True, map_location="cpu")
    return [content[f"lin{layer}.model.1.weight"].reshape(-1) for layer in range(5)]


def by_formula(net, features, a, b):
    """Equation 1 of Zhang et al.: weighted squared differences of unit features, averaged."""
    total = 0.0
    pair = (torch.stack([torch.from_numpy(a), torch.from_numpy(b)]) - MEAN) / DEVIATION
    values = pair.permute(0, 3, 1, 2)
    weights = iter(channel_weights(net))
    for number, layer in enumerate(features[:NETWORKS[net][1][-1] + 1]):
        values = layer(values)
        if number in NETWORKS[net][1]:
            unit = normalize(values.clone(), dim=1)
            squared = (unit[0] - unit[1]) ** 2
            total += torch.einsum("c,chw->hw", next(weights), squared).mean()
    return float(total)


def test_lpips_with_given_weights_is_the_papers_formula(backbone):
    net, features, path = backbone
    a, b = images()
    with torch.no_grad():
        expected = by_formula(net, features, a, b)
    metric = make_lpips(net, path)
    assert expected > 1e-4
    assert metric(a, b) == pytest.approx(expected, rel=1e-4)
    assert metric(a, a) == 0 and metric(a, 0.9 * a + 0.1 * b) < metric(a, b)


def test_a_training_draws_the_same_random_numbers_with_lpips(backbone):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    make_lpips(backbone[0], backbone[2])
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("net", NETWORKS)
def test_the_smallest_image_is_the_networks(net, tmp_path):
    torch.save(network(NETWORKS[net][0]).state_dict(), tmp_path / "weights.pth")
    metric, side = make_lpips(net, tmp_path / "weights.pth"), LPIPS_MIN_SIDE[net]
    assert np.isfinite(metric(*images(side, 40)))
    with pytest.raises(UserError, match=f"{side - 1} x 40 .*{side} pixels a side"):
        metric(*images(40, side - 1))


def test_without_a_file_the_weights_are_downloaded():
    with pytest.raises(UserError, match="no connection.*--lpips_weights FILE"):
        make_lpips("vgg")


@pytest.mark.parametrize("content", [
    {"features.0.weight": torch.zeros(64, 3, 3, 3)},
    {f"features.{name}": torch.zeros(1) for name in vgg16().state_dict()},
    network(alexnet).state_dict(), [1, 2], b"no archive"])
def test_weights_of_something_else_are_one_sentence(tmp_path, content):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match="not hold the weights of --lpips vgg.*vgg16-397923af"):
        make_lpips("vgg", path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.pth is missing; correct --lpips_weights"):
        make_lpips("alex", tmp_path / "nowhere.pth")


def test_a_file_without_a_network_is_refused():
    with pytest.raises(UserError, match="--lpips_weights is for --lpips vgg or alex"):
        check_all_read(get_config(["--lpips_weights", "weights.pth"]))


def test_scores_hold_lpips_and_its_network(tmp_path):
    import train

    write_blender(tmp_path / "scene", size=(20, 16))
    torch.save(network(vgg16).state_dict(), tmp_path / "weights.pth")
    train.main(["--preset", "debug", "--device", "cpu", "--precision", "fp32", "--scene",
                str(tmp_path / "scene"), "--log_dir", str(tmp_path), "--exp_name", "run",
                "--max_steps", "2", "--eval_every", "0", "--no-final_eval"])
    run = load_checkpoint(tmp_path / "run")
    config = run.config.replace(lpips="vgg", lpips_weights=str(tmp_path / "weights.pth"))
    evaluate.evaluate(run.model, load_dataset(config, "test"), config, 2, tmp_path / "scores")
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["lpips_network"] == "vgg" and scores["lpips"] > 0
    assert scores["lpips"] == pytest.approx(np.mean([v["lpips"] for v in scores["images"]]))
