"""The multiscale conversion against the official arithmetic, and on bad input."""

import json

import numpy as np
import pytest
from imageio.v3 import imread
from PIL import Image

from loaders.multiscale import convert_to_multiscale
from procedural.scene import write_blender as write_demo
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


def official_metadata(frames, angle, split, size):
    """The lists of a split as the official script computes them: for all images at once."""
    levels = np.tile(np.arange(3), len(frames))
    sides = size // 2**levels
    focals = 0.5 * size / np.tan(0.5 * angle) / 2.0**levels
    matrices = np.zeros((len(levels), 3, 3))
    matrices[:, 0, 0], matrices[:, 1, 1], matrices[:, 2, 2] = 1 / focals, -1 / focals, -1
    matrices[:, 0, 2], matrices[:, 1, 2] = -(sides * 0.5) / focals, sides * 0.5 / focals
    return {
        "file_path": [f"images_{split}/{i // 3:03d}_d{i % 3}.png" for i in range(len(levels))],
        "cam2world": np.repeat([f["transform_matrix"] for f in frames], 3, axis=0).tolist(),
        "width": sides.tolist(), "height": sides.tolist(), "focal": focals.tolist(),
        "label": levels.tolist(), "near": [2.0] * len(levels), "far": [6.0] * len(levels),
        "lossmult": (4.0**levels).tolist(), "pix2cam": matrices.tolist(),
    }


def test_the_converted_demo_scene_is_that_of_the_official_script_to_the_byte(tmp_path):
    write_demo(tmp_path / "demo", size=24)
    # Integers, as other programs write them, become floats.
    path = tmp_path / "demo" / "transforms_test.json"
    transforms = json.loads(path.read_text())
    transforms["frames"][0]["transform_matrix"][3] = [0, 0, 0, 1]
    path.write_text(json.dumps(transforms))
    convert_to_multiscale(tmp_path / "demo", tmp_path / "multi", num_scales=3)
    expected = {}
    for split in ("train", "test"):
        meta = json.loads((tmp_path / "demo" / f"transforms_{split}.json").read_text())
        expected[split] = official_metadata(meta["frames"], meta["camera_angle_x"], split, 24)
        for i, frame in enumerate(meta["frames"]):
            image = Image.open(tmp_path / "demo" / f"{frame['file_path']}.png")
            level = np.array(image, dtype=np.float32) / 255
            for j in range(3):
                file = tmp_path / f"multi/images_{split}/{i:03d}_d{j}.png"
                Image.fromarray(np.uint8(level * 255)).save(tmp_path / "expected.png")
                assert file.read_bytes() == (tmp_path / "expected.png").read_bytes(), file
                half = len(level) // 2
                level = np.mean(np.reshape(level, (half, 2, half, 2, 4)), (1, 3))
    with open(tmp_path / "expected.json", "w") as file:
        json.dump(expected, file, ensure_ascii=False, indent=4)
    found = (tmp_path / "multi" / "metadata.json").read_bytes()
    assert found == (tmp_path / "expected.json").read_bytes()


def test_conversion_rejects_odd_sizes_and_existing_folders_and_leaves_nothing(tmp_path):
    write_blender(tmp_path / "scene", size=(20, 20))
    with pytest.raises(UserError, match="5x5"):
        convert_to_multiscale(tmp_path / "scene", tmp_path / "multi", num_scales=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scene"]
    convert_to_multiscale(tmp_path / "scene", tmp_path / "multi", num_scales=3)
    with pytest.raises(UserError, match="exists already"):
        convert_to_multiscale(tmp_path / "scene", tmp_path / "multi", num_scales=3)
