"""Images under known lights: radiance, lights, ground truth, and invalid files."""

import json
import math

import cv2
import numpy as np
import OpenEXR
import pytest
import torch
from imageio.v3 import imwrite

from config import get_config
from datasets import load_dataset
from evaluate import summarize
from procedural import lit_scene
from relighting.components import component_images, score_components
from runtime.errors import UserError
from structures import RenderOutput
from tests.scenes import ANGLE, round_poses

SIZE = (6, 4)
WHITE = [[1.0, 1.0, 1.0]]


def write_exr(path, pixels, separate=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    names = "RGBA"[: pixels.shape[-1]]
    channels = {names: np.ascontiguousarray(pixels)}
    if separate:
        channels = {name: pixels[..., i].copy() for i, name in enumerate(names)}
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, channels) as file:
        file.write(str(path))


def write_layer(path, name):
    """An image with the channels of a layer, as in multi-layer files."""
    pixels = np.ones((4, 6, 4) if name.endswith("RGBA") else (4, 6), np.float32)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {name: pixels}) as file:
        file.write(str(path))


def write_png(path, pixels):
    """Write colours in [0, 1] with straight alpha as a 16-bit PNG."""
    values = np.rint(65535 * pixels).astype(np.uint16)
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[-1]]
    assert cv2.imwrite(str(path), values[..., order])


def write_frames(folder, frames, split="train", lights="point", **top):
    """Write the JSON of a split, adding default poses and names to frames."""
    place = {"point": {"train": "train_point", "test": "."},
             "env": {"train": "train_env", "test": "test_env"}}[lights][split]
    (folder / place).mkdir(parents=True, exist_ok=True)
    known = [{"file_path": f"./{split}/r_{i}", "transform_matrix": pose.tolist()}
             for i, pose in enumerate(round_poses(len(frames)))]
    frames = [a | b for a, b in zip(known, frames, strict=True)]
    path = folder / place / f"transforms_{split}.json"
    path.write_text(json.dumps({"camera_angle_x": ANGLE} | top | {"frames": frames}))
    return path


def write_scene(folder, frames, pixels=None, **others):
    """Write a split with an EXR image per frame; returns its JSON file."""
    path = write_frames(folder, frames, **others)
    if pixels is None:
        pixels = np.full((*SIZE[::-1], 4), 0.5, np.float32)
    for i in range(len(frames)):
        write_exr(path.parent / others.get("split", "train") / f"r_{i}.exr", pixels)
    return path


def load(folder, split="train", *words):
    config = get_config(["--dataset_name", "nerv", "--scene", str(folder), *words])
    return load_dataset(config, split)


def one_light(position=(0, 0, 4.0), **others):
    return {"light_loc": list(position)} | others


def radiance(dataset, index=0):
    """The stored pixels `[h, w, 4]` of one image."""
    width, height = dataset.cameras.sizes[index].tolist()
    return dataset._pixels_of(index).float().reshape(height, width, 4)


def straight_colours(seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(0, 1, (*size[::-1], 4))
    pixels[0, 0, 3], pixels[0, 1, 3] = 0, 1
    return pixels


def premultiplied(pixels):
    return np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], axis=-1)


# Radiance.


def test_exr_and_16_bit_png_give_equal_premultiplied_radiance(tmp_path):
    pixels = straight_colours()
    wanted = torch.from_numpy(premultiplied(pixels)).float()
    folder = write_frames(tmp_path, [one_light()] * 3).parent
    write_exr(folder / "train" / "r_0.exr", wanted.numpy())
    write_exr(folder / "train" / "r_1.exr", wanted.half().numpy(), separate=True)
    write_png(folder / "train" / "r_2.png", pixels)
    dataset = load(tmp_path)
    for index in range(3):  # Half floats have 11 bits.
        torch.testing.assert_close(radiance(dataset, index), wanted, rtol=1e-3, atol=2e-5)


def test_frames_name_files_with_or_without_suffix(tmp_path):
    names = ["train/a.exr", "train/b.png", "train/c", "train/d.1"]
    folder = write_frames(tmp_path, [one_light(file_path=f"./{n}") for n in names]).parent
    (folder / "train").mkdir()
    for i, name in enumerate(("a.exr", "c.exr", "d.1.exr")):
        write_exr(folder / "train" / name, np.full((4, 6, 4), 0.1 + 0.1 * i, np.float32))
    write_png(folder / "train" / "b.png", np.full((4, 6, 4), 1.0))
    dataset = load(tmp_path)
    found = [float(radiance(dataset, i)[2, 3, 0]) for i in range(4)]
    np.testing.assert_allclose(found, [0.1, 1, 0.2, 0.3], rtol=1e-3)


def test_radiance_is_tone_mapped_and_composited(tmp_path):
    pixels = np.zeros((4, 6, 4), np.float32)
    pixels[1, 2], pixels[3, 5] = [3.0, 1.0, 0.25, 1.0], [1.0, 0.0, 3.0, 0.5]
    write_scene(tmp_path, [one_light()], pixels)
    rgb = load(tmp_path).image(0).rgb
    torch.testing.assert_close(rgb[1, 2], torch.tensor([0.75, 0.5, 0.2]))
    torch.testing.assert_close(rgb[3, 5], torch.tensor([1.0, 0.5, 1.25]))
    torch.testing.assert_close(rgb[0, 0], torch.ones(3))
    black = load(tmp_path, "train", "--bg_range", "0", "0").image(0).rgb
    torch.testing.assert_close(black[3, 5], torch.tensor([0.5, 0.0, 0.75]))


def test_downsampling_averages_radiance(tmp_path):
    wanted = premultiplied(straight_colours()).astype(np.float32)
    wanted[2, 4] *= 1000
    write_scene(tmp_path, [one_light()], wanted)
    dataset = load(tmp_path, "train", "--factor", "2")
    assert dataset.cameras.sizes[0].tolist() == [3, 2]
    means = wanted.reshape(2, 2, 3, 2, 4).mean((1, 3))
    torch.testing.assert_close(radiance(dataset), torch.from_numpy(means), rtol=1e-3, atol=2e-5)


def test_radiance_beyond_half_floats_stays_finite(tmp_path):
    write_scene(tmp_path, [one_light()], np.full((4, 6, 4), 1e6, np.float32))
    assert torch.isfinite(radiance(load(tmp_path))).all()


def test_images_are_read_lazily(tmp_path):
    wanted = premultiplied(straight_colours()).astype(np.float32)
    write_scene(tmp_path, [one_light()], wanted)
    config = get_config(["--dataset_name", "nerv", "--scene", str(tmp_path)])
    later = load_dataset(config, "train", read_pixels=False)
    assert later.scene.pixels is None
    torch.testing.assert_close(later.image(0).rgb, load(tmp_path).image(0).rgb)


def test_large_scenes_are_memory_mapped(tmp_path):
    write_scene(tmp_path, [one_light()] * 2, premultiplied(straight_colours()).astype(np.float32))
    mapped = load(tmp_path, "train", "--pixel_memory", "0")
    assert (tmp_path / ".pixels").is_dir()
    torch.testing.assert_close(mapped.image(1).rgb, load(tmp_path).image(1).rgb)


# Lights.


def test_intensities_of_the_released_scenes(tmp_path):
    several = {"light_loc": [[1, 2, 3], [4, 5, 6.0]], "light_weights": [[1, 1, 1], [0.5, 0, 2]]}
    write_scene(tmp_path, [one_light((1, 2, 3)), several])
    lights = load(tmp_path).lights
    assert lights.places[1].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert lights.colours[0, 0].tolist() == [100, 100, 100]
    torch.testing.assert_close(lights.colours[1], torch.tensor([[55.0, 55, 55], [27.5, 0, 110]]))
    assert not lights.distant.any()


@pytest.mark.parametrize("top,words,wanted", [
    ({}, [], 100.0),
    ({"light_intensity": None}, [], 100.0),
    ({"light_intensity": 7.5}, [], 7.5),
    ({}, ["--light_intensity", "3"], 3.0),
    ({"light_intensity": 7.5}, ["--light_intensity", "3"], 3.0),
])
def test_the_intensity_flag_overrides_the_file(
    tmp_path, top, words, wanted
):
    write_scene(tmp_path, [one_light(light_weights=[[1.0, 2.0, 0.0]])], **top)
    found = load(tmp_path, "train", *words).lights.colours[0, 0]
    torch.testing.assert_close(found, wanted * torch.tensor([1.0, 2.0, 0.0]))


def test_frames_are_padded_with_dark_lights(tmp_path):
    write_scene(tmp_path, [one_light((1, 1, 1)), {
        "light_loc": [[1, 0, 0], [0, 2, 0], [0, 0, 3.0]], "light_weights": 3 * WHITE}])
    lights = load(tmp_path).lights
    assert lights.places.shape == (2, 3, 3) and lights.distant.shape == (2, 3, 1)
    assert (lights.colours[0, 0] == 100).all() and (lights.colours[0, 1:] == 0).all()
    assert (lights.colours[1] == 55).all()


def test_frames_may_name_environments(tmp_path):
    environment = np.random.default_rng(0).uniform(0, 2, (3, 4, 3)).astype(np.float32)
    write_exr(tmp_path / "train_env" / "environments" / "sky.exr", environment)
    frames = [{"environment": "./environments/sky.exr"},
              {"environment": "environments/sky.exr", "environment_turn": 1.25},
              one_light((0, 1, 2))]
    write_scene(tmp_path, frames, lights="env")
    lights = load(tmp_path, "train", "--lights", "env").lights
    for index, turn in ((0, 0.0), (1, 1.25)):
        places, colours = lit_scene.environment_texels(environment, turn)
        torch.testing.assert_close(lights.places[index], places, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(lights.colours[index], colours)
    assert lights.distant[:2].all() and not lights.distant[2].any()
    assert (lights.colours[2, 1:] == 0).all()


def test_each_ray_has_the_lights_of_its_image(tmp_path):
    write_scene(tmp_path, [one_light((i, 0, 4)) for i in range(3)])
    dataset = load(tmp_path)
    batch = dataset.batch(50, torch.Generator().manual_seed(0))
    cameras = batch.rays.cam_idx[:, 0]
    assert len(cameras.unique()) == 3
    torch.testing.assert_close(batch.rays.lights.places[:, 0, 0], cameras.float())
    image = dataset.image(2).rays
    assert image.lights.places.shape == (4, 6, 1, 3)
    assert (image.lights.places[..., 0, 0] == 2).all()


def test_folders_of_the_released_scenes(tmp_path):
    write_scene(tmp_path, [one_light((1, 0, 0))])
    write_scene(tmp_path, [one_light((2, 0, 0))], split="test")
    write_exr(tmp_path / "test_env" / "sky.exr", np.ones((2, 2, 3), np.float32))
    write_scene(tmp_path, [{"environment": "sky.exr"}], split="test", lights="env")
    assert load(tmp_path).lights.places[0, 0, 0] == 1
    assert load(tmp_path, "test").lights.places[0, 0, 0] == 2
    assert load(tmp_path, "test", "--lights", "env").lights.distant.all()


# Invalid files.


def refused(folder, *words, split="train"):
    """The one-sentence error for a scene."""
    with pytest.raises(UserError) as error:
        load(folder, split, *words)
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def image_of(scene):
    return scene.parent / "train" / "r_0.exr"


@pytest.mark.parametrize("spoil,message", [
    (lambda path: path.unlink(), "is missing"),
    (lambda path: path.write_bytes(b"no image at all"), "is not an OpenEXR file"),
    (lambda path: path.write_bytes(b""), "is not an OpenEXR file"),
    (lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot be read as OpenEXR"),
    (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot be read as OpenEXR"),
    (lambda path: path.write_bytes(path.read_bytes()[:400]), "cannot be read as OpenEXR"),
    (lambda path: write_exr(path, np.ones((4, 6, 3), np.float32)), "has the channels RGB; RGBA"),
    (lambda path: write_layer(path, "ViewLayer.Combined.RGBA"), "ViewLayer.Combined.RGBA; RGBA"),
    (lambda path: write_exr(path, np.full((4, 6, 4), np.nan, np.float32)), "infinite or NaN"),
    (lambda path: write_exr(path, np.full((4, 6, 4), np.inf, np.float16)), "infinite or NaN"),
    (lambda path: write_exr(path, np.full((4, 6, 4), -1, np.float32)), "infinite or NaN"),
])
def test_errors_name_an_invalid_exr_file(tmp_path, spoil, message):
    noise = np.random.default_rng(0).random((40, 6, 4), np.float32)  # Three compressed blocks.
    image = image_of(write_scene(tmp_path, [one_light()], noise))
    spoil(image)
    sentence = refused(tmp_path)
    assert str(image) in sentence and message in sentence


@pytest.mark.parametrize("write,message", [
    (lambda path: imwrite(path, np.full((4, 6, 4), 200, np.uint8)), "has uint8 channels; 16 bits"),
    (lambda path: write_png(path, np.full((4, 6, 3), 0.5)), "has 3 channel(s); RGBA"),
    (lambda path: write_png(path, np.full((4, 6, 1), 0.5)), "has 1 channel(s); RGBA"),
    (lambda path: path.write_bytes(b"no image"), "cannot be read as an image"),
])
def test_errors_name_an_invalid_png_file(tmp_path, write, message):
    scene = write_scene(tmp_path, [one_light()])
    image_of(scene).unlink()
    image = image_of(scene).with_suffix(".png")
    write(image)
    sentence = refused(tmp_path)
    assert str(image) in sentence and message in sentence


@pytest.mark.parametrize("frame,message", [
    ({}, "without light_loc or environment"),
    ({"light_loc": None}, "light_loc = None"),
    ({"light_loc": [1.0, 2.0]}, "N x 3 finite numbers"),
    ({"light_loc": [[1.0, 2.0, 3.0], [1.0, 2.0]]}, "N x 3 finite numbers"),
    ({"light_loc": []}, "light_loc = []"),
    ({"light_loc": [1, 2, math.nan]}, "finite numbers below"),
    ({"light_loc": "above"}, "light_loc = 'above'"),
    (one_light(light_weights=2 * WHITE), "for each light is expected"),
    (one_light(light_weights=[[1.0, 1.0]]), "for each light is expected"),
    (one_light(light_weights=[[1.0, -0.1, 1.0]]), "at least 0"),
    (one_light(light_weights="bright"), "light_weights = 'bright'"),
    ({"light_loc": [[1, 2, 3], [4, 5, 6]]}, "for each light is expected"),
    ({"environment": "environments/none.exr"}, "is missing"),
    ({"environment": None}, "environment = None; the name of a map"),
    ({"environment": "."}, "environment = '.'; the name of a map"),
    ({"light_loc": [1, 2, 1e300]}, "finite numbers below"),
    (one_light(light_weights=[[1e39] * 3]), "finite numbers below"),
])
def test_errors_name_the_file_of_invalid_lights(tmp_path, frame, message):
    scene = write_scene(tmp_path, [frame])
    sentence = refused(tmp_path)
    assert message in sentence
    assert str(scene.parent / "environments" if "missing" in message else scene) in sentence


def test_errors_name_the_file_of_an_invalid_intensity_or_turn(tmp_path):
    scene = write_scene(tmp_path, [one_light()], light_intensity="strong")
    sentence = refused(tmp_path)
    assert str(scene) in sentence and "light_intensity = 'strong'" in sentence
    write_exr(tmp_path / "train_point" / "sky.exr", np.ones((2, 2, 3), np.float32))
    write_scene(tmp_path, [{"environment": "sky.exr", "environment_turn": [1, 2]}])
    sentence = refused(tmp_path)
    assert str(scene) in sentence and "environment_turn = [1, 2]" in sentence


@pytest.mark.parametrize("spoil", [
    lambda path: write_exr(path, np.ones((2, 2, 1), np.float32)),
    lambda path: write_layer(path, "Depth"),
    lambda path: write_layer(path, "sky.RGBA"),
    lambda path: write_exr(path, np.full((2, 2, 3), np.nan, np.float32)),
    lambda path: path.write_bytes(b"dark"),
])
def test_errors_name_an_invalid_environment(tmp_path, spoil):
    write_scene(tmp_path, [{"environment": "sky.exr"}], lights="env")
    spoil(tmp_path / "train_env" / "sky.exr")
    assert str(tmp_path / "train_env" / "sky.exr") in refused(tmp_path, "--lights", "env")


def test_a_factor_that_leaves_no_pixel_raises(tmp_path):
    image = image_of(write_scene(tmp_path, [one_light()]))
    sentence = refused(tmp_path, "--factor", "5")
    assert str(image) in sentence and "is 6x4" in sentence


def test_16_bit_environments_are_scaled_to_one(tmp_path):
    write_scene(tmp_path, [{"environment": "sky.png"}], lights="env")
    colour = np.array([0.8, 0.4, 0.2])
    write_png(tmp_path / "train_env" / "sky.png", np.broadcast_to(colour, (2, 2, 3)))
    found = load(tmp_path, "train", "--lights", "env").lights.colours.sum(dim=1)[0]
    ratio = torch.from_numpy(colour / colour.sum()).float()
    torch.testing.assert_close(found / found.sum(), ratio, rtol=1e-3, atol=0)
    assert found.sum() < 1.4 * 4 * math.pi * 1.2


@pytest.mark.parametrize("intensity", [-5.0, 0, 1e16])
def test_invalid_intensities_raise(tmp_path, intensity):
    scene = write_scene(tmp_path, [one_light()], light_intensity=intensity)
    assert str(scene) in refused(tmp_path)


def test_fine_environments_of_scenes_are_averaged(tmp_path):
    write_scene(tmp_path, [{"environment": "sky.exr"}], lights="env")
    sky = np.zeros((64, 128, 3), np.float32)
    sky[:4] = 3.0
    write_exr(tmp_path / "train_env" / "sky.exr", sky)
    lights = load(tmp_path, "train", "--lights", "env").lights
    assert lights.places.shape == (1, 16 * 32, 3)
    assert (lights.colours[0, :32] > 0).all() and (lights.colours[0, 32:] == 0).all()
    # A cap of an angle t about the zenith is 2 pi (1 - cos t) of the sphere.
    cap = 2 * math.pi * (1 - math.cos(math.pi / 16))
    torch.testing.assert_close(lights.colours[0].sum(0), torch.full((3,), 3 * cap), rtol=0.01,
                               atol=0)


# Ground truth.


def random_ground_truths(seed=0):
    rng = np.random.default_rng(seed)
    shape = SIZE[::-1]
    normals = rng.normal(size=(*shape, 3))
    coverage = np.ones((*shape, 1))
    coverage[0] = 0.4
    return {
        "albedo": np.concatenate([rng.uniform(0.2, 0.9, (*shape, 3)), coverage], -1),
        "roughness": rng.uniform(0, 1, shape), "visibility": rng.uniform(0, 1, shape),
        "normals": 0.5 + 0.5 * normals / np.linalg.norm(normals, axis=-1, keepdims=True),
    }


def write_ground_truths(folder, ground_truths):
    for name, ground_truth in ground_truths.items():
        imwrite(folder / f"r_0_{name}.png", np.rint(255 * ground_truth).astype(np.uint8))


def test_ground_truth_beside_an_image_is_read(tmp_path):
    scene = write_scene(tmp_path, [one_light()], split="test")
    ground_truths = random_ground_truths()
    write_ground_truths(scene.parent / "test", ground_truths)
    found = load(tmp_path, "test").ground_truth(0)
    albedo = ground_truths["albedo"]
    wanted = ground_truths | {"albedo": albedo[..., :3], "coverage": albedo[..., 3:]}
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        true = wanted[name] if wanted[name].ndim == 3 else wanted[name][..., None]
        np.testing.assert_allclose(value, true, atol=0.501 / 255)


def test_downsampled_images_and_missing_files_have_no_ground_truth(tmp_path):
    scene = write_scene(tmp_path, [one_light()] * 2, split="test")
    write_ground_truths(scene.parent / "test", random_ground_truths())
    assert load(tmp_path, "test", "--factor", "2").ground_truth(0) == {}
    assert load(tmp_path, "test").ground_truth(1) == {}


def perfect_images(ground_truth):
    """Component images equal to the ground truth."""
    return {"albedo": ground_truth["albedo"], "shading_normals": ground_truth["normals"],
            "visibility": ground_truth["visibility"].repeat(3, -1),
            "roughness": ground_truth["roughness"].repeat(3, -1)}


@pytest.fixture
def ground_truth(tmp_path):
    scene = write_scene(tmp_path / "ground_truth", [one_light()], split="test")
    write_ground_truths(scene.parent / "test", random_ground_truths())
    return load(tmp_path / "ground_truth", "test").ground_truth(0)


def test_perfect_components_have_no_error(ground_truth):
    scores = score_components(perfect_images(ground_truth), ground_truth)
    assert scores.keys() == {"albedo_rmse", "normals_degrees", "visibility_mae", "roughness_mae"}
    assert scores.pop("normals_degrees") < 0.05  # An arccosine near 1, in single precision.
    np.testing.assert_allclose(list(scores.values()), 0, atol=1e-6)


def test_albedo_errors_ignore_a_scale_per_channel(ground_truth):
    images = perfect_images(ground_truth)
    images["albedo"] = ground_truth["albedo"] * np.array([0.3, 1.7, 1.0])
    assert score_components(images, ground_truth)["albedo_rmse"] < 1e-6
    solid = ground_truth["coverage"][..., 0] == 1
    images["albedo"] = np.ones_like(ground_truth["albedo"])
    wanted = np.sqrt(ground_truth["albedo"][solid].var(axis=0).mean())
    assert score_components(images, ground_truth)["albedo_rmse"] == pytest.approx(wanted, rel=1e-5)


def test_orthogonal_normals_are_90_degrees_wrong(ground_truth):
    normals = 2 * ground_truth["normals"] - 1
    images = perfect_images(ground_truth)
    images["shading_normals"] = 0.5 + 0.5 * np.cross(normals, [0.3, 0.5, -0.9])
    degrees = score_components(images, ground_truth)["normals_degrees"]
    assert degrees == pytest.approx(90, abs=1e-3)
    images["shading_normals"] = 0.5 - 0.2 * normals
    degrees = score_components(images, ground_truth)["normals_degrees"]
    assert degrees == pytest.approx(180, abs=0.05)


def test_errors_cover_fully_covered_pixels_only(ground_truth):
    images = {name: value.copy() for name, value in perfect_images(ground_truth).items()}
    for value in images.values():
        value[0] = 7.0
    clean = score_components(perfect_images(ground_truth), ground_truth)
    spoilt = score_components(images, ground_truth)
    assert clean == spoilt
    images["visibility"][1] += 0.3
    assert score_components(images, ground_truth)["visibility_mae"] == pytest.approx(0.1, rel=1e-5)


def test_components_without_ground_truth_are_not_scored(ground_truth):
    images = perfect_images(ground_truth)
    assert score_components({"rgb": 0}, ground_truth) == score_components(images, {}) == {}
    del ground_truth["visibility"]
    assert "visibility_mae" not in score_components(images, ground_truth)


def test_component_images_match_ground_truth_units(ground_truth):
    """Component images and ground truth have the same units."""
    ones = torch.ones(SIZE[::-1])
    predicted = {name: torch.from_numpy(ground_truth[name])
                 for name in ("albedo", "roughness", "visibility")}
    predicted["shading_normals"] = torch.from_numpy(2 * ground_truth["normals"] - 1)
    predicted["direct"] = torch.full((*ones.shape, 3), 3.0)
    output = RenderOutput(rgb=torch.ones(*ones.shape, 3), acc=ones, distance_mean=ones,
                          distance_median=ones, extras=predicted)
    images = component_images(output)
    np.testing.assert_allclose(images["direct"], 0.75)
    scores = score_components(images, ground_truth)
    assert scores["albedo_rmse"] < 1e-6 and scores["normals_degrees"] < 0.05
    assert scores["visibility_mae"] < 1e-6 and scores["roughness_mae"] < 1e-6


@pytest.mark.parametrize("missing", ["albedo", "normals"])
def test_partial_ground_truth_is_scored(ground_truth, missing):
    images = perfect_images(ground_truth)
    for name in ("albedo", "coverage") if missing == "albedo" else ("normals",):
        del ground_truth[name]
    scores = score_components(images, ground_truth)
    assert not any(name.startswith(missing) for name in scores)


def test_partial_scores_are_means_over_their_images():
    images = [{"name": "a", "psnr": 20.0, "albedo_rmse": 0.1}, {"name": "b", "psnr": 30.0}]
    scores = summarize(images)
    assert scores["psnr"] == 25 and scores["albedo_rmse"] == 0.1
