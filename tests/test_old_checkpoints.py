"""Checkpoints of older versions are rendered as they were, or refused with a sentence."""

from pathlib import Path

import pytest
import torch

from checkpoint import load_checkpoint
from ray_utils import image_rays
from rendering import render_image
from runtime.errors import UserError

# Two steps of tiny models, and what the version that trained them rendered of the first view.
GOLDEN = Path(__file__).parent / "golden"


def old_checkpoint(tmp_path, name, **flags):
    """A checkpoint file of format 1 and its content, with some flags changed."""
    content = torch.load(GOLDEN / f"format_1_{name}.pt", weights_only=True)
    content["config"] |= flags
    torch.save(content, tmp_path / "checkpoint_00000002.pt")
    return tmp_path / "checkpoint_00000002.pt", content


@pytest.mark.parametrize("model,background", [("mipnerf", 0.0), ("mipnerf360", 1.0)])
def test_mlps_of_format_1_are_rendered_as_they_were(tmp_path, model, background):
    path, content = old_checkpoint(tmp_path, model)
    run = load_checkpoint(path)
    assert run.config.bg_range == (background, background) and run.step == 2
    output = render_image(run.model, image_rays(run.scene["train"].cameras, 0))
    for name, values in content["rendered"].items():
        torch.testing.assert_close(getattr(output, name), values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("flags,fault", [
    ({"model": "zipnerf"}, "hash grids with features at the corners of cells"),
    ({"basis": "icosahedron"}, "another order of the directions of --basis icosahedron"),
    ({"random_bkgd": True}, "--random_bkgd, whose images have the background 1"),
])
def test_other_models_of_format_1_are_refused(tmp_path, flags, fault):
    path, _ = old_checkpoint(tmp_path, "mipnerf360", **flags)
    with pytest.raises(UserError, match=f"{fault}.*Train it again"):
        load_checkpoint(path)


def test_newer_formats_are_refused(tmp_path):
    path, content = old_checkpoint(tmp_path, "mipnerf")
    torch.save(content | {"format": 3}, path)
    with pytest.raises(UserError, match="has format 3; this version reads 2"):
        load_checkpoint(path)
