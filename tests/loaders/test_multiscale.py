"""The multiscale conversion against the official arithmetic, and on bad input."""

import json

import numpy as np
import pytest
from imageio.v3 import imread

from loaders.multiscale import convert_to_multiscale
from runtime.errors import UserError
from tests.scenes import write_blender


def test_conversion_reproduces_the_official_arithmetic(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (16, 24, 4), dtype=np.uint8) for _ in range(2)]
    write_blender(tmp_path / "scene", images=images, splits=("train", "val", "test"))
    convert_to_multiscale(tmp_path / "scene", tmp_path / "multi")
    meta = json.loads((tmp_path / "multi" / "metadata.json").read_text())
    assert sorted(meta) == ["test", "train", "val"]
    for split in meta:
        assert meta[split]["file_path"][:5] == [
            f"images_{split}/{name}.png" for name in
            ("000_d0", "000_d1", "000_d2", "000_d3", "001_d0")
        ]
        assert meta[split]["lossmult"] == [1.0, 4.0, 16.0, 64.0] * 2
        assert meta[split]["label"] == [0, 1, 2, 3] * 2
    focal = 0.5 * 24 / np.tan(0.5 * 0.7)
    assert meta["train"]["focal"][3] == pytest.approx(focal / 8)
    for i, image in enumerate(images):
        level = image.astype(np.float32) / 255
        for j in range(4):
            if j:
                h, w = level.shape[:2]
                level = np.mean(np.reshape(level, (h // 2, 2, w // 2, 2, 4)), (1, 3))
            found = imread(tmp_path / "multi" / f"images_train/{i:03d}_d{j}.png")
            np.testing.assert_array_equal(found, (level * 255).astype(np.uint8))


def test_conversion_rejects_odd_sizes_and_existing_folders_and_leaves_nothing(tmp_path):
    write_blender(tmp_path / "scene", size=(20, 20))
    with pytest.raises(UserError, match="5x5"):
        convert_to_multiscale(tmp_path / "scene", tmp_path / "multi", num_scales=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scene"]
    convert_to_multiscale(tmp_path / "scene", tmp_path / "multi", num_scales=3)
    with pytest.raises(UserError, match="exists already"):
        convert_to_multiscale(tmp_path / "scene", tmp_path / "multi", num_scales=3)
