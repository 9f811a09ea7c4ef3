"""Photographs under one light at a time: a sphere rendered by another BRDF is fitted and relit."""

import re
import shutil

import numpy as np
import pytest
import torch
from imageio.v3 import imread, imwrite

from procedural import lit_scene
from scripts import relight_olat

SIZE, STRIDE, ROUGHNESS = 72, 3, 0.5
NAMES = ["mean image", "Lambert", "shading.brdf"]


def sphere():
    """Normals `[SIZE, SIZE, 3]` of a sphere viewed by a distant camera, and its mask."""
    across = torch.linspace(-1, 1, SIZE)
    y, x = torch.meshgrid(-across, across, indexing="ij")
    squared = x**2 + y**2
    # The rim is excluded: few lights reach it.
    return torch.stack([x, y, (1 - squared).clamp(min=0).sqrt()], dim=-1), squared < 0.8


def light_directions():
    """Twelve directions `[12, 3]`, up to 50 degrees from the camera, shuffled."""
    index = torch.arange(12)
    angle, azimuth = torch.deg2rad(10 + 40 * index / 11), 2.4 * index
    directions = torch.stack(
        [angle.sin() * azimuth.cos(), angle.sin() * azimuth.sin(), angle.cos()], -1)
    return directions[torch.tensor([7, 2, 9, 0, 11, 4, 6, 1, 8, 3, 10, 5])]


def albedo(normals):
    """Two colours `[..., 3]`, left and right."""
    left, right = torch.tensor([0.7, 0.5, 0.3]), torch.tensor([0.3, 0.4, 0.6])
    return torch.where(normals[..., :1] < 0, left, right)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs of the glossy sphere, and a mirror that is to be skipped."""
    folder = tmp_path_factory.mktemp("olat") / "lit"
    (folder / "ball").mkdir(parents=True)
    (folder / "chrome").mkdir()
    normals, inside = sphere()
    mask = np.where(inside, 255, 0).astype(np.uint8)
    imwrite(folder / "ball" / "ball.mask.png", np.stack([mask] * 3, axis=-1))
    imwrite(folder / "chrome" / "chrome.mask.png", mask)
    for i, light in enumerate(light_directions()):
        imwrite(folder / "ball" / f"ball.{i}.png", photograph(normals, inside, light))
    rows = "\n".join(" ".join(f"{x:.6f}" for x in light) for light in light_directions())
    (folder / "light_directions.txt").write_text(f"# x right, y up, z towards the camera\n{rows}\n")
    return folder


def photograph(normals, inside, light):
    """8-bit values `[SIZE, SIZE, 3]` proportional to radiance; a white surface has 1."""
    reflected = lit_scene.reference_brdf(
        normals, light.expand(normals.shape), torch.tensor([0.0, 0, 1]), albedo(normals),
        torch.full_like(normals[..., :1], ROUGHNESS))
    radiance = torch.pi * (normals @ light).clamp(min=0)[..., None] * reflected
    return (255 * (radiance * inside[..., None]).clamp(0, 1)).round().byte().numpy()


def run(*words):
    return relight_olat.main([str(word) for word in words])


def test_held_out_lights_are_predicted(folder, tmp_path, capsys):
    sheets = tmp_path / "sheets"
    assert run("--folder", folder, "--out", sheets, "--stride", STRIDE, "--steps", 50) == 0
    output = capsys.readouterr().out
    rows = [line.split(" | ") for line in output.splitlines() if line.startswith("| ball")]
    scores = {row[2]: dict(zip(NAMES, (float(re.match(r"[\d.]+", x)[0]) for x in row[3:6]),
                               strict=True)) for row in rows}
    assert scores.keys() == {"as stored", "sRGB"} and "chrome" not in output
    linear = scores["as stored"]
    assert linear["shading.brdf"] > linear["mean image"] + 20
    # It models highlights, and the images are linear.
    assert linear["shading.brdf"] > max(linear["Lambert"], scores["sRGB"]["shading.brdf"]) + 8
    sheets = sorted(sheets.iterdir())
    assert [path.name for path in sheets] == ["ball_as_stored.png", "ball_sRGB.png"]
    assert imread(sheets[0]).std() > 10


def test_the_surface_is_recovered(folder):
    photographs = relight_olat.read_object(folder, "ball", STRIDE, "cpu")
    normals, inside = (x[::STRIDE, ::STRIDE] for x in sphere())
    assert torch.equal(photographs.mask, inside)
    found = relight_olat.fit(relight_olat.shading.brdf, photographs, "as stored", steps=100)
    true_normals = normals[inside]
    angle = torch.rad2deg(torch.acos((found.normals * true_normals).sum(dim=-1).clamp(-1, 1)))
    assert angle.median() < 0.3 and angle.max() < 2
    assert (found.albedo - albedo(true_normals)).abs().median() < 0.005
    assert found.roughness.median() == pytest.approx(ROUGHNESS, abs=0.02)
    again = relight_olat.shade(relight_olat.shading.brdf, found, photographs.directions)
    # The remaining error is the rounding to 8 bits.
    assert (again - photographs.values).abs().max() < 1 / 255


def test_decoding_inverts_encoding():
    values = torch.linspace(0, 1, 256)
    for encode, decode in relight_olat.ENCODINGS.values():
        torch.testing.assert_close(encode(decode(values)), values)


def drop(folder, name):
    (folder / name).unlink()


def write(folder, name, text):
    (folder / name).write_text(text)


@pytest.mark.parametrize(("spoil", "words"), [
    (shutil.rmtree, "holds no <object>/<object>.mask.png"),
    (lambda f: drop(f, "light_directions.txt"), "light_directions.txt cannot be read"),
    (lambda f: write(f, "light_directions.txt", "0 0\n0 0 1\n"), "needs three numbers per light"),
    (lambda f: write(f, "light_directions.txt", "0 0 1\n"), "6 lights or more"),
    (lambda f: write(f, "light_directions.txt", "0 0 2\n" * 12), "not of length 1"),
    (lambda f: drop(f, "ball/ball.7.png"), "ball.7.png is missing"),
    (lambda f: write(f, "ball/ball.7.png", "no image"), "ball.7.png cannot be read"),
    (lambda f: imwrite(f / "ball/ball.7.png", np.ones((9, 9, 3), np.uint8)), "differ in size"),
    (lambda f: imwrite(f / "ball/ball.mask.png", np.zeros((SIZE, SIZE), np.uint8)), "is black"),
])
def test_bad_input_is_a_one_sentence_error(folder, tmp_path, capsys, spoil, words):
    copy = shutil.copytree(folder, tmp_path / "copy")
    spoil(copy)
    with pytest.raises(SystemExit) as stopped:
        relight_olat.run_script(lambda: run("--folder", copy))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words in error
    assert error.startswith("error: ") and error.count("\n") == 1


def test_wrong_flags_are_rejected(folder):
    with pytest.raises(SystemExit) as stopped:
        run("--folder", folder, "--stride", 0)
    assert stopped.value.code == 2
