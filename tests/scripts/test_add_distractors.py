"""Painted distractors: in which views, the same in all sizes, and the same for a seed."""

import json
import shutil

import numpy as np
import pytest
from imageio.v3 import imread
from PIL import Image

from runtime.errors import UserError
from scripts import add_distractors
from tests.scenes import WRITERS, open_scene, write_blender, write_llff


def add(source, *words):
    """The scene with distractors, and the painted fraction of each file."""
    out = source.with_name(f"{source.name}_distractors")
    add_distractors.main([str(source), str(out), *words])
    return out, json.loads((out / "distractors.json").read_text())


@pytest.mark.parametrize("kind", ["blender", "colmap", "llff", "nerfstudio"])
def test_a_fraction_of_the_training_views_is_painted_and_nothing_else(kind, tmp_path):
    WRITERS[kind](tmp_path / "scene")
    factor = ["--factor", "4"] if kind in ("colmap", "llff") else []
    names = [str(f) for f in open_scene(tmp_path / "scene", kind, "train", *factor).scene.files]
    out, painted = add(tmp_path / "scene", "--fraction", "0.5")
    assert len(painted) == round(len(names) / 2)
    assert all(any(file.endswith(name) for file in names) for name in painted)
    for path in (tmp_path / "scene").rglob("*.*"):
        name = path.relative_to(tmp_path / "scene").as_posix()
        if path.is_file() and name not in painted:
            assert (out / name).read_bytes() == path.read_bytes()
    for name, fraction in painted.items():
        before, after = (imread(folder / name) for folder in (tmp_path / "scene", out))
        changed = (before[..., :3] != after[..., :3]).any(axis=-1)
        assert changed.mean() == pytest.approx(fraction, abs=0.02) and 0.03 < fraction < 0.7
        if before.shape[-1] == 4:
            assert np.array_equal(after[..., 3], np.where(changed, 255, before[..., 3]))
    assert len(open_scene(out, kind, "train", *factor)) == len(names)


def test_all_sizes_of_a_photograph_have_the_same_shapes(tmp_path):
    scene = tmp_path / "scene"
    write_llff(scene, factor=4, size=(60, 40))
    (scene / "images").mkdir()
    for path in (scene / "images_4").iterdir():
        Image.new("RGB", (240, 160), (9, 9, 9)).save(scene / "images" / path.name)
    _, painted = add(scene)
    small = {name: value for name, value in painted.items() if "_4" in name}
    assert len(small) == len(painted) - len(small) == 2
    for name, fraction in small.items():
        assert painted[name.replace("_4", "")] == pytest.approx(fraction, abs=0.01)


def test_the_same_seed_paints_the_same(tmp_path):
    write_blender(tmp_path / "scene")
    found = []
    for seed in ("1", "1", "2"):
        out, painted = add(tmp_path / "scene", "--seed", seed)
        [name] = painted
        found.append((name, (out / name).read_bytes()))
        shutil.rmtree(out)
    assert found[0] == found[1] != found[2]


def test_bad_input_is_one_sentence(tmp_path):
    write_blender(tmp_path / "scene")
    with pytest.raises(UserError, match="is not a folder"):
        add_distractors.main([str(tmp_path / "none"), str(tmp_path / "a")])
    with pytest.raises(UserError, match="exists and is not changed"):
        add_distractors.main([str(tmp_path / "scene"), str(tmp_path / "scene")])
    for words in (["--fraction", "1.5"], ["--fraction", "nan"], ["--llffhold", "0"]):
        with pytest.raises(SystemExit):
            add_distractors.main([str(tmp_path / "scene"), str(tmp_path / "a"), *words])
    assert not (tmp_path / "a").exists()
