"""Batches and images of all formats; loaders against the official code's arrays; bad data."""

import numpy as np
import pytest
import torch
from imageio.v3 import imwrite

from datasets import DATASETS
from ray_utils import ray_box
from runtime.errors import UserError
from tests.scenes import (
    GOLDEN_DATASETS,
    WRITERS,
    change_json,
    look_at,
    open_scene,
    write_blender,
    write_llff,
    write_multicam,
    write_official,
)

FORMATS = sorted(DATASETS)


def whole(dataset, name):
    """One field of all rays of a dataset, image by image: `[P, C]`."""
    rays = [dataset.image(i).rays.flatten() for i in range(len(dataset))]
    return torch.cat([getattr(r, name) for r in rays])


def assert_rays(dataset, name, expected, tolerance):
    expected = torch.from_numpy(np.asarray(expected)).reshape(-1, expected.shape[-1])
    torch.testing.assert_close(whole(dataset, name), expected, atol=tolerance, rtol=tolerance)


# Against the official code.


def test_blender_equals_the_official_loader(tmp_path):
    arrays = write_official("blender", tmp_path / "scene")
    dataset = open_scene(tmp_path / "scene", "blender", "test")
    for name in ("origins", "directions", "viewdirs", "radii"):
        assert_rays(dataset, name, arrays[f"factor0_{name}"], 1e-6)
    pixels = torch.cat([dataset.image(i).rgb.reshape(-1, 3) for i in range(3)])
    torch.testing.assert_close(pixels, torch.from_numpy(arrays["factor0_pixels"]).reshape(-1, 3))


def test_blender_at_factor_2_has_the_official_rays(tmp_path):
    arrays = write_official("blender", tmp_path / "scene")
    dataset = open_scene(tmp_path / "scene", "blender", "test", "--factor", "2")
    for name in ("directions", "radii"):
        assert_rays(dataset, name, arrays[f"factor2_{name}"], 1e-6)


def test_llff_equals_the_official_loader(tmp_path):
    arrays = write_official("llff", tmp_path / "scene")
    dataset = open_scene(tmp_path / "scene", "llff", "test")
    torch.testing.assert_close(
        dataset.cameras.camtoworlds, torch.from_numpy(arrays["test_camtoworlds"]),
        atol=2e-6, rtol=2e-6,
    )
    for name in ("origins", "directions"):
        assert_rays(dataset, name, arrays[f"test_{name}"], 5e-6)
    # The official code's viewdirs are not unit, and its radii at the last row and column repeat
    # an earlier one.
    expected = torch.from_numpy(arrays["test_viewdirs"]).reshape(-1, 3)
    torch.testing.assert_close(
        whole(dataset, "viewdirs"), torch.nn.functional.normalize(expected, dim=-1),
        atol=1e-6, rtol=1e-6,
    )
    inner = torch.stack([dataset.image(i).rays.radii for i in range(2)])[:, :-1, :-1]
    expected = torch.from_numpy(arrays["test_radii"])[:, :-1, :-1]
    torch.testing.assert_close(inner, expected, atol=1e-6, rtol=1e-4)
    pixels = torch.stack([dataset.image(i).rgb for i in range(2)])
    torch.testing.assert_close(pixels, torch.from_numpy(arrays["test_pixels"]))
    train = open_scene(tmp_path / "scene", "llff", "train")
    torch.testing.assert_close(
        train.cameras.camtoworlds, torch.from_numpy(arrays["train_camtoworlds"]),
        atol=2e-6, rtol=2e-6,
    )


def test_spherified_llff_equals_the_official_loader(tmp_path):
    arrays = write_official("llff", tmp_path / "scene")
    dataset = open_scene(tmp_path / "scene", "llff", "test", "--spherify")
    assert dataset.cameras.ndc is None
    torch.testing.assert_close(
        dataset.cameras.camtoworlds, torch.from_numpy(arrays["spherify_test_camtoworlds"]),
        atol=5e-6, rtol=5e-6,
    )
    assert_rays(dataset, "directions", arrays["spherify_test_directions"], 5e-6)


def test_multicam_equals_the_official_loader(tmp_path):
    arrays = write_official("multicam", tmp_path / "scene")
    dataset = open_scene(tmp_path / "scene", "multicam", "train")
    for name in ("origins", "directions", "viewdirs", "lossmult", "near", "far"):
        assert_rays(dataset, name, arrays[name], 1e-6)
    pixels = torch.cat([dataset.image(i).rgb.reshape(-1, 3) for i in range(3)])
    torch.testing.assert_close(pixels, torch.from_numpy(arrays["pixels"]))


def test_world_to_scene_maps_the_files_camera_positions_to_the_cameras(tmp_path):
    write_official("llff", tmp_path / "scene")
    table = np.load(tmp_path / "scene" / "poses_bounds.npy")
    positions = table[:, :15].reshape(-1, 3, 5)[::8, :, 3]
    for flags in ([], ["--spherify"]):
        dataset = open_scene(tmp_path / "scene", "llff", "test", *flags)
        moved = np.c_[positions, np.ones(len(positions))] @ dataset.scene.world_to_scene.numpy().T
        np.testing.assert_allclose(
            moved[:, :3], dataset.cameras.camtoworlds[:, :, 3].numpy(), atol=1e-5
        )


def test_endless_rays_of_spherified_llff_keep_the_range_of_its_bounds(tmp_path):
    """The bounds of all views are 2 and 9, in units of the files."""
    write_llff(tmp_path / "scene")
    dataset = open_scene(tmp_path / "scene", "llff", "train", "--spherify", "--model", "zipnerf")
    near, far = dataset.cameras.visible_range
    scale = np.cbrt(np.linalg.det(dataset.scene.world_to_scene[:3, :3].double().numpy()))
    assert (near, far) == pytest.approx((0.9 * 2 * scale, 9 * scale), rel=1e-4)
    assert float(dataset.cameras.near.max()) == 0 and float(dataset.cameras.far.min()) == 1e6


# Every format.


@pytest.mark.parametrize("dataset_name", FORMATS)
def test_every_format_provides_scenes_batches_and_images(dataset_name, tmp_path):
    WRITERS[dataset_name](tmp_path / "scene")
    for split in ("train", "val", "test"):
        dataset = open_scene(tmp_path / "scene", dataset_name, split)
        scene = dataset.scene
        assert len(dataset) == len(scene.names) > 0
        assert scene.pixels.dtype == (torch.float16 if dataset_name == "nerv" else torch.uint8)
        assert scene.box.shape == (2, 3) and (scene.box[0] < scene.box[1]).all()
        assert int(scene.offsets[-1]) == int(scene.cameras.sizes.prod(-1).sum())
        image = dataset.image(len(dataset) - 1)
        width, height = scene.cameras.sizes[-1].tolist()
        assert image.rgb.shape == (height, width, 3) and image.rays.shape == (height, width)
        assert 0 <= image.rgb.min() and image.rgb.max() <= 1
        batch = dataset.batch(7, torch.Generator().manual_seed(1))
        assert batch.rgb.shape == (7, 3) and len(batch.rays) == 7
        scenes = dataset.scenes()
        assert set(scenes) <= {"train", "val", "test"}
        assert scenes[split if split in scenes else "test"]
        assert all(s.pixels is None for s in scenes.values())


@pytest.mark.parametrize("dataset_name", FORMATS)
@pytest.mark.parametrize("batching", ["all_images", "single_image"])
def test_batches_hold_the_colours_and_rays_of_their_pixels(dataset_name, batching, tmp_path):
    WRITERS[dataset_name](tmp_path / "scene")
    dataset = open_scene(tmp_path / "scene", dataset_name, "train", "--batching", batching)
    batch = dataset.batch(50, torch.Generator().manual_seed(0))
    images = [dataset.image(i) for i in range(len(dataset))]
    used = batch.rays.cam_idx[:, 0]
    assert len(used.unique()) == 1 if batching == "single_image" else len(used.unique()) > 1
    for k in range(50):
        image = images[used[k]]
        same = (image.rays.directions - batch.rays.directions[k]).abs().amax(-1) < 1e-6
        same &= (image.rays.origins - batch.rays.origins[k]).abs().amax(-1) < 1e-6
        assert same.sum() == 1
        torch.testing.assert_close(image.rgb[same][0], batch.rgb[k])


@pytest.mark.parametrize("batching", ["all_images", "single_image"])
def test_batches_depend_only_on_the_generator(batching, tmp_path):
    write_multicam(tmp_path / "scene")
    dataset = open_scene(tmp_path / "scene", "multicam", "train", "--batching", batching)
    first = dataset.batch(20, torch.Generator().manual_seed(5))
    torch.rand(3)
    again = dataset.batch(20, torch.Generator().manual_seed(5))
    other = dataset.batch(20, torch.Generator().manual_seed(6))
    assert torch.equal(first.rgb, again.rgb)
    assert not torch.equal(first.rays.directions, other.rays.directions)


def test_all_images_samples_uniformly_over_pixels_not_over_images(tmp_path):
    write_multicam(tmp_path / "scene", num_views=1)
    dataset = open_scene(tmp_path / "scene", "multicam")
    count = 20_000
    cam_idx = dataset.batch(count, torch.Generator().manual_seed(0)).rays.cam_idx[:, 0]
    fraction = torch.bincount(cam_idx, minlength=len(dataset)) / count
    areas = dataset.scene.cameras.sizes.prod(-1).float()
    expected = areas / areas.sum()
    # Five standard deviations of a binomial fraction.
    assert ((fraction - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt()).all()


def test_blender_factor_averages_premultiplied_colour(tmp_path):
    image = np.zeros((2, 2, 4), np.uint8)
    image[0, 0] = [200, 100, 50, 255]
    image[0, 1] = [7, 7, 255, 0]  # Transparent, so its colour is ignored.
    image[1, 0] = [100, 100, 100, 128]
    write_blender(tmp_path / "scene", images=[image])
    dataset = open_scene(tmp_path / "scene", "blender", "train", "--factor", "2")
    alpha = np.array([1, 0, 128 / 255, 0])
    colour = np.array([[200, 100, 50], [7, 7, 255], [100, 100, 100], [0, 0, 0]]) / 255
    expected = (alpha[:, None] * colour + (1 - alpha[:, None])).mean(0)
    # Straight colour and alpha are each rounded to 8 bits.
    np.testing.assert_allclose(dataset.image(0).rgb[0, 0], expected, atol=1.5 / 255)


@pytest.mark.parametrize("factor,size", [(1, (13, 9)), (2, (6, 4)), (3, (4, 3)), (4, (3, 2))])
def test_blender_takes_any_factor_and_odd_sizes(factor, size, tmp_path):
    write_blender(tmp_path / "scene", size=(13, 9))
    dataset = open_scene(tmp_path / "scene", "blender", "train", "--factor", str(factor))
    assert tuple(dataset.scene.cameras.sizes[0].tolist()) == size
    focal = 1 / dataset.cameras.pixtocams[0, 0, 0]
    assert float(focal) == pytest.approx(0.5 * size[0] / np.tan(0.5 * 0.7), rel=1e-5)


@pytest.mark.parametrize("background", [1.0, 0.0])
def test_backgrounds(background, tmp_path):
    write_blender(tmp_path / "scene", images=[np.zeros((4, 4, 4), np.uint8)])
    dataset = open_scene(tmp_path / "scene", "blender", "train", "--bg_range", f"{background}",
                         f"{background}")
    assert dataset.scene.background == background
    assert (dataset.image(0).rgb == background).all()


def test_blender_frame_names_may_have_a_suffix(tmp_path):
    write_blender(tmp_path / "scene")
    before = open_scene(tmp_path / "scene", "blender").scene.pixels
    change_json(tmp_path / "scene" / "transforms_train.json", lambda v: [
        frame.update(file_path=frame["file_path"] + ".png") for frame in v["frames"]])
    assert torch.equal(open_scene(tmp_path / "scene", "blender").scene.pixels, before)


def test_blender_keeps_the_vertical_field_of_view_at_uneven_factors(tmp_path):
    write_blender(tmp_path / "scene", size=(13, 9))
    whole, small = (open_scene(tmp_path / "scene", "blender", "train", "--factor", factor)
                    for factor in ("1", "4"))
    # The upper border of the image is the same ray at both sizes.
    top = [d.cameras.pixtocams[0] @ torch.tensor([0.0, 0.0, 1.0]) for d in (whole, small)]
    torch.testing.assert_close(top[0], top[1])


def test_one_image_scenes_load(tmp_path):
    write_blender(tmp_path / "blender", num_views=1)
    assert len(open_scene(tmp_path / "blender", "blender")) == 1
    write_llff(tmp_path / "llff", num_views=1)
    assert len(open_scene(tmp_path / "llff", "llff", "test")) == 1
    with pytest.raises(UserError, match="train split is empty"):
        open_scene(tmp_path / "llff", "llff", "train")


def test_ray_box_holds_all_rays(tmp_path):
    write_llff(tmp_path / "scene")
    dataset = open_scene(tmp_path / "scene", "llff", "train")
    low, high = ray_box(dataset.cameras)
    for t in (0.0, 0.3, 1.0):
        points = whole(dataset, "origins") + t * whole(dataset, "directions")
        assert (points >= low - 1e-4).all() and (points <= high + 1e-4).all()


# LLFF's cameras.


def test_ndc_rejects_cameras_that_look_sideways(tmp_path):
    angles = np.linspace(0, 2 * np.pi, 9)[:-1]
    poses = np.stack([look_at([4 * np.cos(a), 4 * np.sin(a), 0.3]) for a in angles])
    write_llff(tmp_path / "round", poses=poses)
    with pytest.raises(UserError, match="--spherify"):
        open_scene(tmp_path / "round", "llff", "train")
    assert len(open_scene(tmp_path / "round", "llff", "train", "--spherify")) == 7


# Bad data: a one-sentence error that names the file.


def damage_blender(folder, kind):
    transforms, image = folder / "transforms_train.json", folder / "train" / "r_0.png"
    if kind == "no json":
        transforms.unlink()
    elif kind == "wrong json":
        transforms.write_text('{"frames": [')
    elif kind == "json list":
        transforms.write_text("[]")
    elif kind == "missing image":
        image.unlink()
    elif kind == "truncated image":
        image.write_bytes(image.read_bytes()[:60])
    else:
        change_json(transforms, {
            "no frames": lambda v: v.update(frames=[]),
            "no angle": lambda v: v.pop("camera_angle_x"),
            "angle of 0": lambda v: v.update(camera_angle_x=0),
            "angle in degrees": lambda v: v.update(camera_angle_x=40.0),
            "no file_path": lambda v: v["frames"][0].pop("file_path"),
            "nan pose": lambda v: v["frames"][0]["transform_matrix"][0].__setitem__(3, np.nan),
            "skewed pose": lambda v: v["frames"][0]["transform_matrix"][0].__setitem__(0, 3.0),
            "short pose": lambda v: v["frames"][0]["transform_matrix"].pop(),
            "3x3 pose": lambda v: v["frames"][0].update(transform_matrix=np.eye(3).tolist()),
        }[kind])


@pytest.mark.parametrize("kind,names", [
    ("no json", "transforms_train.json is missing"),
    ("wrong json", "transforms_train.json is not valid JSON"),
    ("json list", "transforms_train.json holds a list"),
    ("no frames", "transforms_train.json lists no frames"),
    ("missing image", "r_0.png is missing"),
    ("truncated image", "r_0.png cannot be read"),
    ("no angle", "camera_angle_x"),
    ("angle in degrees", "camera_angle_x = 40"),
    ("angle of 0", "camera_angle_x"),
    ("no file_path", "file_path"),
    ("nan pose", "r_0 .*not finite"),
    ("skewed pose", "r_0 .*not a rotation"),
    ("short pose", "4x4"),
    ("3x3 pose", "4x4"),
])
def test_bad_blender_data_is_a_one_sentence_error(kind, names, tmp_path):
    write_blender(tmp_path / "scene", size=(8, 6))
    damage_blender(tmp_path / "scene", kind)
    with pytest.raises(UserError, match=names) as error:
        open_scene(tmp_path / "scene", "blender")
    assert "\n" not in str(error.value)


def damage_llff(folder, kind):
    path = folder / "poses_bounds.npy"
    if path.exists():
        table = np.load(path)
    if kind == "no poses":
        path.unlink()
    elif kind == "no array":
        path.write_bytes(b"nonsense")
    elif kind == "no cameras":
        np.save(path, table[:0])
    elif kind == "archive":
        np.savez(path.with_suffix(""), table)
        path.with_suffix(".npz").rename(path)
    elif kind == "opposite directions":
        table[:, 3] = np.linspace(-3, 3, len(table))
        table[1::2, [0, 5, 10]] *= -1  # down
        table[1::2, [2, 7, 12]] *= -1  # backwards
        np.save(path, table[: len(table) // 2 * 2])
        sorted((folder / "images_4").iterdir())[-1].unlink()
    elif kind == "cmyk":
        from PIL import Image

        image = sorted((folder / "images_4").iterdir())[1]
        Image.new("CMYK", (12, 8)).save(image.with_suffix(".jpg"))
        image.unlink()
    elif kind == "too few poses":
        np.save(path, table[:-1])
    elif kind == "wrong shape":
        np.save(path, table[:, :15])
    elif kind == "pickled":
        np.save(path, np.array([{}]), allow_pickle=True)
    elif kind == "truncated image":
        image = sorted((folder / "images_4").iterdir())[1]
        image.write_bytes(image.read_bytes()[:100])
    elif kind == "other size":
        imwrite(sorted((folder / "images_4").iterdir())[1], np.zeros((5, 5, 3), np.uint8))
    else:
        column, value = {"nan pose": (3, np.nan), "mirrored": (None, None), "zero bound": (15, 0.0),
                         "no focal": (14, 0.0), "infinite bound": (16, np.inf)}[kind]
        if kind == "mirrored":
            table[2, [0, 5, 10]] *= -1
        else:
            table[2, column] = value
        np.save(path, table)


@pytest.mark.parametrize("kind,names", [
    ("no poses", "poses_bounds.npy is missing"),
    ("no array", "poses_bounds.npy is not a NumPy array"),
    ("pickled", "poses_bounds.npy is not a NumPy array"),
    ("archive", "poses_bounds.npy is not a NumPy array"),
    ("no cameras", r"\(0, 17\)"),
    ("opposite directions", "no mean direction"),
    ("cmyk", "CMYK"),
    ("too few poses", "8 poses but .*images_4 has 9 images"),
    ("wrong shape", r"\(9, 15\)"),
    ("truncated image", "cannot be read"),
    ("other size", "is 5x5"),
    ("nan pose", "row 2 .*not finite"),
    ("mirrored", "row 2 .*mirrored"),
    ("zero bound", "bounds = .*above 0"),
    ("infinite bound", "poses_bounds.npy"),
    ("no focal", "focal length"),
])
def test_bad_llff_data_is_a_one_sentence_error(kind, names, tmp_path):
    write_llff(tmp_path / "scene")
    damage_llff(tmp_path / "scene", kind)
    with pytest.raises(UserError, match=names) as error:
        open_scene(tmp_path / "scene", "llff")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change,names", [
    (lambda v: v["train"].pop("lossmult"), "no list lossmult"),
    (lambda v: v["train"]["label"].pop(), "equal counts"),
    (lambda v: v["train"]["width"].__setitem__(0, 99), "gives 99x"),
    (lambda v: v.pop("train"), "no split 'train'"),
    (lambda v: v["train"]["far"].__setitem__(slice(None), [1.0] * 6), "near 2 and far 1"),
    (lambda v: v["train"].update({k: [] for k in v["train"]}), "at least 1"),
    (lambda v: v["train"]["lossmult"].__setitem__(0, -1), "lossmult"),
    (lambda v: v["train"]["pix2cam"].__setitem__(0, [1, 2]), "pix2cam"),
    (lambda v: v["train"]["label"].__setitem__(0, "big"), "label"),
])
def test_bad_multicam_data_is_a_one_sentence_error(change, names, tmp_path):
    write_multicam(tmp_path / "scene", num_views=2)
    change_json(tmp_path / "scene" / "metadata.json", change)
    with pytest.raises(UserError, match=names) as error:
        open_scene(tmp_path / "scene", "multicam")
    assert "\n" not in str(error.value)


def test_golden_file_is_small():
    assert GOLDEN_DATASETS.stat().st_size < 100_000


@pytest.mark.parametrize("flag", ["--no-ndc", "--spherify"])
def test_llff_without_ndc_samples_from_0_9_near_bounds_to_the_far_bound(flag, tmp_path):
    """The bounds in the file are 2 and 9; the world is scaled with the cameras."""
    write_llff(tmp_path / "scene", poses=np.stack(
        [look_at([4 + 0.1 * i, 0.3 * np.sin(i), 1 + 0.2 * np.cos(i)]) for i in range(9)]))
    scene = open_scene(tmp_path / "scene", "llff", "train", flag).scene
    scale = float(torch.linalg.det(scene.world_to_scene[:3, :3].double())) ** (1 / 3)
    assert float(scene.cameras.near[0]) == pytest.approx(0.9 * 2 * scale, rel=1e-4)
    assert float(scene.cameras.far[0]) == pytest.approx(9 * scale, rel=1e-4)


def test_lindisp_rejects_a_near_of_zero(tmp_path):
    write_llff(tmp_path / "scene")
    with pytest.raises(UserError, match="--lindisp"):
        open_scene(tmp_path / "scene", "llff", "train", "--lindisp")
    assert len(open_scene(tmp_path / "scene", "llff", "train", "--lindisp", "--no-ndc")) == 7
