"""Scenes of other exposures: what changes by how much, and what stays as it is."""

import json
import shutil

import numpy as np
import pytest
from imageio.v3 import imread
from PIL import Image

from runtime.errors import UserError
from scripts import change_exposures
from tests.scenes import WRITERS, open_scene, write_blender, write_llff, write_nerfstudio


def change(source, *words):
    """The scene of other exposures and its multiples."""
    out = source.with_name(f"{source.name}_exposed")
    change_exposures.main([str(source), str(out), *words])
    return out, json.loads((out / "exposures.json").read_text())


def exposed(pixels, multiple):
    """8-bit sRGB values whose linear light is multiplied, by the definition of sRGB."""
    values = pixels / 255
    light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    light = np.clip(multiple * light, 0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return 255 * encoded


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["blender", "colmap", "llff", "nerfstudio"])
def test_photographs_change_by_their_multiples_and_the_scene_opens(kind, tmp_path):
    WRITERS[kind](tmp_path / "scene")
    (tmp_path / "scene" / "depth.png").write_bytes(b"no photograph")
    out, multiples = change(tmp_path / "scene", "--stops", "1.5", "--seed", "3")
    images = {name for name in files_of(tmp_path / "scene") if name.endswith(".png")}
    assert multiples.keys() == images - {"depth.png"}
    assert files_of(out) == files_of(tmp_path / "scene") | {"exposures.json"}
    stops = np.log2(list(multiples.values()))
    assert len(set(stops)) == len(stops) and np.abs(stops).max() <= 1.5 and stops.std() > 0.3
    for name in files_of(tmp_path / "scene"):
        if name not in multiples:
            assert (out / name).read_bytes() == (tmp_path / "scene" / name).read_bytes()
            continue
        before, after = (imread(folder / name) for folder in (tmp_path / "scene", out))
        wanted = exposed(before[..., :3], multiples[name])
        assert np.abs(after[..., :3] - wanted).max() <= 0.5 + 1e-6
        assert np.array_equal(after[..., 3:], before[..., 3:])
    factor = ["--factor", "4"] if kind in ("colmap", "llff") else []
    assert len(open_scene(out, kind, "train", *factor)) > 0


def test_all_sizes_of_a_photograph_have_one_multiple(tmp_path):
    """LLFF's smaller images have other names, in the same order."""
    scene = tmp_path / "scene"
    write_llff(scene, factor=4)
    (scene / "images").mkdir()
    for path in (scene / "images_4").iterdir():
        image = Image.open(path)
        image.resize((48, 32)).save(scene / "images" / f"IMG_{path.stem}.jpg")
    _, multiples = change(scene)
    for i in range(9):
        assert multiples[f"images/IMG_{i:03d}.jpg"] == multiples[f"images_4/{i:03d}.png"]
    assert len(set(multiples.values())) == 9


def test_jpegs_keep_their_orientation_and_nearly_their_values(tmp_path):
    scene = tmp_path / "scene"
    write_nerfstudio(scene)
    transforms = json.loads((scene / "transforms.json").read_text())
    for frame in transforms["frames"]:
        path = scene / frame["file_path"]
        image, exif = Image.new("RGB", (12, 8), (90, 120, 60)), Image.Exif()
        exif[0x0112] = 3
        image.save(path.with_suffix(".jpg"), quality=95, exif=exif)
        path.unlink()
        frame["file_path"] = f"images/{path.stem}.jpg"
    (scene / "transforms.json").write_text(json.dumps(transforms))
    out, multiples = change(scene)
    for name, multiple in multiples.items():
        with Image.open(out / name) as image:
            assert image.getexif()[0x0112] == 3
            values = np.asarray(image)
        assert np.abs(values - exposed(np.array([90, 120, 60]), multiple)).max() <= 4


def test_the_same_seed_gives_the_same_exposures(tmp_path):
    write_blender(tmp_path / "scene")
    found = []
    for seed in ("1", "1", "2"):
        out, multiples = change(tmp_path / "scene", "--seed", seed)
        shutil.rmtree(out)
        found.append(multiples)
    assert found[0] == found[1] != found[2]


def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path):
    scene = tmp_path / "scene"
    write_blender(scene)
    before = files_of(tmp_path)
    for source, destination, message in [
        (scene, scene, "exists and is not changed"), (scene, scene / "copy", "lies inside"),
        (tmp_path / "none", tmp_path / "a", "is not a folder"),
        (tmp_path, tmp_path.with_name("a"), "holds none of"),
    ]:
        with pytest.raises(UserError, match=message):
            change_exposures.main([str(source), str(destination)])
    for words in (["--stops", "-1"], ["--stops", "nan"], ["--seed", "-1"]):
        with pytest.raises(SystemExit):
            change_exposures.main([str(scene), str(tmp_path / "a"), *words])
    WRITERS["multicam"](tmp_path / "multicam")
    with pytest.raises(UserError, match="holds a multicam scene"):
        change_exposures.main([str(tmp_path / "multicam"), str(tmp_path / "a")])
    shutil.rmtree(tmp_path / "multicam")
    (scene / "test" / "r_2.png").write_bytes(b"broken")
    with pytest.raises(UserError, match="r_2.png"):
        change_exposures.main([str(scene), str(tmp_path / "a")])
    assert files_of(tmp_path) == before
