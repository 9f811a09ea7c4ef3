"""mip-NeRF 360 and Zip-NeRF with the weights of the released models, against their numbers.

The arrays in tests/golden come from small models of google-research/multinerf and
jonbarron/camp_zipnerf with random weights, run without randomness in float32 at a training fraction
of 0.3. Gradients are those of every fourth row. Resampling amplifies rounding, so that each level
is compared at the fenceposts of the released one.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from config import get_config
from loss import weighted_loss
from model import build_model
from structures import Batch, Rays

GOLDEN = Path(__file__).parents[1] / "golden"
TRAIN_FRAC = 0.3
SMALL_ZIPNERF = [
    "--model", "zipnerf", "--prop_samples", "24", "--num_samples", "16", "--grid_log2_size", "12",
    "--prop_finest", "32", "64", "--grid_finest", "128", "--bottleneck", "32", "--view_hidden",
    "40", "--bg_range", "0", "0"]
CAPTURE = ["--dataset_name", "colmap", "--scene", "any", "--preset", "paper", "--precision", "fp32"]
MODELS = {
    "mipnerf360": ("multinerf_mipnerf360.npz", (2e-3, 0.2, 1e6), [
        "--model", "mipnerf360", "--prop_hidden", "32", "--hidden", "64", "--bottleneck", "48"]),
    "zipnerf": ("camp_zipnerf.npz", (5e-3, 0.0, 1e3), SMALL_ZIPNERF),
    # Cones so wide that fine levels are attenuated.
    "zipnerf of wide cones": (
        "camp_zipnerf_wide.npz", (8e-2, 0.0, 1e3), [*SMALL_ZIPNERF, "--no-append_scale"]),
}


class Released:
    """A model with released weights, its rays, and the arrays of the released program."""

    def __init__(self, name):
        file, (radius, near, far), flags = MODELS[name]
        self.arrays = dict(np.load(GOLDEN / file))
        self.weights = {key[2:]: value for key, value in self.arrays.items() if key[:2] == "p/"}
        self.config = get_config([*CAPTURE, *flags])
        self.model = build_model(self.config).eval()
        self.model.load_reference_params(self.weights)
        one = torch.ones(len(self.arrays["o"]), 1)
        self.rays = Rays(
            origins=self["o"], directions=self["d"], viewdirs=self["v"], radii=radius * one,
            near=near * one, far=far * one, lossmult=one, cam_idx=torch.zeros_like(one).long())

    def __getitem__(self, name):
        return torch.from_numpy(self.arrays[name])

    def render_at_released_fenceposts(self):
        self.model.sample_level = lambda rays, outputs, *_: self[f"{len(outputs)}_s"]
        return self.model(self.rays, TRAIN_FRAC)


@pytest.fixture(params=MODELS)
def released(request):
    return Released(request.param)


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_fenceposts_are_those_of_the_released_code(released):
    outputs = released.model(released.rays, TRAIN_FRAC)
    for level, output in enumerate(outputs):
        torch.testing.assert_close(output.sdist, released[f"{level}_s"], atol=1e-4, rtol=0)


def test_weights_and_colours_are_those_of_the_released_code(released):
    outputs = released.render_at_released_fenceposts()
    for level, output in enumerate(outputs):
        assert relative_error(output.weights, released[f"{level}_w"]) < 1e-4
    rgb = released["rgb_final"] if "rgb_final" in released.arrays else released["2_rgb"]
    torch.testing.assert_close(outputs[-1].rgb, rgb, atol=1e-4, rtol=0)


def test_losses_are_those_of_the_released_code(released):
    outputs = released.render_at_released_fenceposts()
    batch = Batch(rays=released.rays, rgb=released["rgb"])
    _, scalars = weighted_loss(released.config, released.model, outputs, batch)
    weighted = released.config.model == "zipnerf"  # Only Zip-NeRF's include their weights.
    names = ["total", "charbonnier"] + (
        ["antialiased_interlevel", "distortion", "grid_decay"] if weighted
        else ["interlevel", "distortion"])
    found = [float(scalars[f"loss/{name}"]) * (
        getattr(released.config, f"{name}_loss_mult") if weighted and name != "total" else 1)
        for name in names]
    assert found == pytest.approx(released.arrays["loss"].tolist(), rel=1e-4)


def test_gradients_are_those_of_the_released_code(released):
    outputs = released.render_at_released_fenceposts()
    batch = Batch(rays=released.rays, rgb=released["rgb"])
    weighted_loss(released.config, released.model, outputs, batch)[0].backward()
    with torch.no_grad():
        for parameter in released.model.parameters():
            parameter.copy_(parameter.grad)
        gradients = released.model.reference_params()
    compared = [key for key in released.arrays if key[:2] == "g/"]
    assert len(compared) == sum("bias" not in name for name in gradients)
    for key in compared:
        name = key[2:] if "grid" in key else f"{key[2:]}/kernel"
        found = gradients[name].flatten(0, -2)[::4]
        # Units of the first layers that are near zero switch with the rounding of the encoding.
        assert relative_error(found, released[key]) < 5e-3, name


@pytest.mark.parametrize("change,message", [
    (lambda arrays, name: arrays.pop(name), "missing or extra arrays"),
    (lambda arrays, name: arrays.update({"other": arrays[name]}), "missing or extra arrays"),
    (lambda arrays, name: arrays.update({name: arrays[name][1:]}), "is expected"),
])
def test_weights_of_another_model_are_refused(released, change, message):
    before = {name: value.clone() for name, value in released.model.state_dict().items()}
    name = next(iter(released.weights))
    change(released.weights, name)
    with pytest.raises(ValueError, match=message):
        released.model.load_reference_params(released.weights)
    for name, value in released.model.state_dict().items():
        assert torch.equal(value, before[name])
