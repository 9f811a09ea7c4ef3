"""Scenes as other programs write them: read right, or refused by check and training alike."""

import json
import logging
import shutil
import struct

import cv2
import numpy as np
import PIL.features
import PIL.Image
import pytest
from imageio.v3 import imwrite

import image_utils
from capture.report import examine_scene, scene_config
from ray_utils import image_rays
from runtime.errors import UserError
from runtime.reading import is_heif
from tests.scenes import (
    ANGLE,
    change_json,
    open_scene,
    random_images,
    round_poses,
    walk_poses,
    write_blender,
    write_colmap,
    write_llff,
    write_nerfstudio,
)


def check(folder):
    """The report's lines, as of `prepare_capture.py --check`."""
    return "\n".join(examine_scene(scene_config(folder)).lines)


def expect_refusal(words, folder, dataset_name):
    """Check and training both refuse a scene, in the same sentence."""
    for read in (lambda: check(folder), lambda: open_scene(folder, dataset_name)):
        with pytest.raises(UserError, match=words):
            read()


# Images.


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif", "bmp", "avif", "heic"])
def test_images_of_any_format_are_read(suffix, tmp_path):
    if suffix == "avif" and not PIL.features.check("avif"):
        pytest.skip("Pillow without AVIF")
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    image = np.zeros((16, 24, 3), np.uint8)
    image[:, :12] = [200, 100, 50]
    path = tmp_path / f"a.{suffix}"
    PIL.Image.fromarray(image).save(path, quality=95)
    assert image_utils.list_images(tmp_path) == [path] and not image_utils.has_alpha(path)
    assert np.abs(image_utils.read_image(path, 3)[:, [4, 20]] - image[:, [4, 20]].astype(int)
                  ).max() < 8
    assert (image_utils.read_image(path, 4)[..., 3] == 255).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_scaled_to_8(suffix, channels, tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), values)  # BGR
    expected = np.rint(values / 257).astype(np.uint8)
    expected = expected[..., [0, 0, 0] if channels == 1 else [2, 1, 0, 3][:channels]]
    found = image_utils.read_image(tmp_path / f"a.{suffix}", max(channels, 3))
    np.testing.assert_array_equal(found, expected)


def test_grey_and_palettes_become_rgb(tmp_path):
    grey = random_images(1, (7, 5), 1)[0]
    PIL.Image.fromarray(grey[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(image_utils.read_image(tmp_path / "grey.png", 3),
                                  np.repeat(grey, 3, axis=-1))
    rgb = np.zeros((5, 7, 3), np.uint8)
    rgb[:, 3:] = [255, 10, 20]
    PIL.Image.fromarray(rgb).quantize(4).save(tmp_path / "palette.png", transparency=0)
    found = image_utils.read_image(tmp_path / "palette.png", 4)
    np.testing.assert_array_equal(found[..., :3], rgb)
    assert image_utils.has_alpha(tmp_path / "palette.png") and set(np.unique(found[..., 3])) == {
        0, 255}


def test_colours_that_are_not_read_and_damaged_images_are_refused_by_check_too(tmp_path):
    write_nerfstudio(tmp_path / "a")
    PIL.Image.new("CMYK", (12, 8)).save(tmp_path / "a" / "images" / "001.jpg")
    (tmp_path / "a" / "images" / "001.png").unlink()
    expect_refusal("CMYK", tmp_path / "a", "nerfstudio")
    write_nerfstudio(tmp_path / "b")
    image = tmp_path / "b" / "images" / "001.png"
    image.write_bytes(image.read_bytes()[:100])
    expect_refusal("001.png cannot be read", tmp_path / "b", "nerfstudio")


@pytest.mark.parametrize("dataset_name", ["colmap", "nerfstudio", "llff"])
def test_alpha_is_composited_or_a_mask_in_every_capture(dataset_name, tmp_path, caplog):
    folder = tmp_path / "scene"
    write = {"colmap": write_colmap, "nerfstudio": write_nerfstudio, "llff": write_llff}
    write[dataset_name](folder, **({} if dataset_name == "nerfstudio" else {"factor": 1}))
    if dataset_name == "llff":
        (folder / "images_1").rename(folder / "images")
    rgba = random_images(9, (12, 8), 4, seed=3)
    for i, image in enumerate(rgba):
        image[:, :6, 3], image[:, 6:, 3] = 0, 255
        imwrite(folder / "images" / f"{i:03d}.png", image)
    caplog.set_level(logging.INFO)
    flags = ["--factor", "1", "--bg_range", "1", "1"] + (
        ["--no-ndc"] if dataset_name == "llff" else [])
    white = open_scene(folder, dataset_name, "train", *flags).image(0)
    assert (white.rgb[:, :6] == 1).all() and white.mask is None
    np.testing.assert_allclose(white.rgb[:, 6:], rgba[1][:, 6:, :3] / 255, atol=1e-6)
    masked = open_scene(folder, dataset_name, "train", *flags, "--alpha", "mask")
    for mask in (masked.image(0).mask, masked.scene.masks[:96].reshape(8, 12, 1)):
        assert (mask[:, :6] == 0).all() and (mask[:, 6:] == 1).all()
    assert "composited" in caplog.text and "transparent pixels do not count" in caplog.text


@pytest.mark.parametrize("name", ["masks/001.png.png", "masks/001.png",
                                  "images/dynamic_mask_001.png"])
@pytest.mark.parametrize("dataset_name", ["colmap", "nerfstudio"])
def test_masks_are_found_beside_the_images(dataset_name, name, tmp_path):
    folder = tmp_path / "scene"
    if dataset_name == "colmap":
        write_colmap(folder, factor=1)
    else:
        write_nerfstudio(folder)
    mask = np.full((8, 12), 255, np.uint8)
    mask[:, :6] = 0
    (folder / "masks").mkdir()
    imwrite(folder / name, mask)
    found = open_scene(folder, dataset_name, "train", "--factor", "1").image(0).mask
    expected = mask == 0 if "dynamic" in name else mask > 0
    np.testing.assert_array_equal(found[..., 0], expected)
    assert "with masks" in check(folder)


def write_tiff(path, values, **tags):
    """An uncompressed TIFF of uint16 `[h, w, C]`; `tags` are its further ones, such as t338=1."""
    height, width, channels = values.shape
    pixels, end = values.astype("<u2").tobytes(), 8 + 8 * channels
    entries = {256: width, 257: height, 259: 1, 262: 2 if channels > 1 else 1, 273: end,
               277: channels, 278: height, 279: len(pixels)}
    entries |= {int(tag[1:]): value for tag, value in tags.items()}
    rows = [(tag, 3, 1, value) for tag, value in entries.items()]
    rows.append((258, 3, channels, 8 if channels > 2 else 16))
    table = b"".join(struct.pack("<HHII", *row) for row in sorted(rows))
    path.write_bytes(b"II*\0" + struct.pack("<I", end + len(pixels))
                     + struct.pack(f"<{channels}H", *[16] * channels).ljust(end - 8, b"\0")
                     + pixels + struct.pack("<H", len(rows)) + table + bytes(4))


@pytest.mark.parametrize("associated", [True, False])
def test_straight_alpha_is_read_from_16_bits(associated, tmp_path):
    """TIFF's tag 338 says whether colours were multiplied by alpha."""
    values = np.full((4, 6, 4), [20000, 10000, 5000, 32896])
    write_tiff(tmp_path / "a.tif", values, t338=1 if associated else 2)
    factor = 65535 / 32896 if associated else 1
    expected = [*np.rint(values[0, 0, :3] * factor / 257), 128]
    assert image_utils.read_image(tmp_path / "a.tif", 4)[1, 1].tolist() == expected


@pytest.mark.parametrize("tags,channels", [({"t262": 0}, 1), ({"t284": 2}, 3)])
def test_tiff_that_opencv_misreads_is_refused(tags, channels, tmp_path):
    """White as 0 would become a negative, and separate channels noise."""
    values = np.full((4, 6, channels), 5000)
    write_tiff(tmp_path / "usual.tif", values)
    assert (image_utils.read_image(tmp_path / "usual.tif", 3) == round(5000 / 257)).all()
    write_tiff(tmp_path / "a.tif", values, **tags)
    with pytest.raises(UserError, match="a.tif cannot be read"):
        image_utils.read_image(tmp_path / "a.tif", 3)


def test_a_heic_image_may_be_called_jpg(tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    PIL.Image.new("RGB", (24, 16), (200, 100, 50)).save(tmp_path / "a.heic", quality=95)
    (tmp_path / "a.heic").rename(tmp_path / "a.jpg")
    assert is_heif(tmp_path / "a.jpg")
    assert np.abs(image_utils.read_image(tmp_path / "a.jpg", 3) - [200, 100, 50]).max() < 8


def save_turned(path, size, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.new("RGB", size).save(path, exif=exif)


def test_the_orientation_of_exif_is_named(tmp_path, caplog):
    write_nerfstudio(tmp_path)
    caplog.set_level(logging.INFO)
    for file in sorted((tmp_path / "images").iterdir()):
        save_turned(file, (12, 8), 3)
    open_scene(tmp_path, "nerfstudio")
    assert caplog.text.count("EXIF orientation of images is not applied") == 1
    save_turned(tmp_path / "images" / "001.png", (8, 12), 6)
    expect_refusal("EXIF orientation is not applied, so rotate", tmp_path, "nerfstudio")


def half_mask(folder, name, **options):
    """A mask of the small scenes, black at the left, as a file of the scene."""
    mask = np.full((8, 12), 255, np.uint8)
    mask[:, :6] = 0
    (folder / name).parent.mkdir(exist_ok=True)
    PIL.Image.fromarray(mask).save(folder / name, **options)
    return mask > 0


@pytest.mark.parametrize("file_path,name", [
    ("images/001.png", "masks/001.jpg"), ("images/001.png", "masks/001.PNG"),
    ("images/001", "masks/001.png.png"), ("images/001.jpg", "masks/001.png.png"),
    ("{root}/images/001.png", "masks/001.png"), ("001.png", "masks/001.png"),
])
def test_masks_are_found_however_images_are_named(file_path, name, tmp_path, caplog):
    folder = tmp_path / "scene"
    write_nerfstudio(folder)
    if "/" not in file_path:
        (folder / "images" / "001.png").rename(folder / "001.png")
    change_json(folder / "transforms.json",
                lambda v: v["frames"][1].update(file_path=file_path.format(root=folder)))
    # JPEG leaves no pixel exactly black.
    expected = half_mask(folder, name, **({"quality": 60} if name.endswith("jpg") else {}))
    caplog.set_level(logging.INFO)
    dataset = open_scene(folder, "nerfstudio", "train", "--llffhold", "0")
    index = dataset.scene.names.index(file_path.format(root=folder))
    found = dataset.image(index).mask[..., 0]
    np.testing.assert_array_equal(found, expected)
    assert "has no mask of 8 of 9 images" in caplog.text


@pytest.mark.parametrize("size", [(8, 12), (7, 8)])
def test_masks_of_another_shape_are_refused(size, tmp_path):
    write_nerfstudio(tmp_path)
    (tmp_path / "masks").mkdir()
    PIL.Image.new("L", size, 255).save(tmp_path / "masks" / "001.png")
    expect_refusal("has another shape than its image of 12x8", tmp_path, "nerfstudio")


# Names.


@pytest.mark.parametrize("on_disk,named", [
    ("cafe\u0301 1.png", "caf\xe9 1.png"), ("IMG_1.JPG", "img_1.jpg"), ("a.Png", "a.png"),
    ("a.gif", "a.gif"),
])
def test_names_may_differ_in_case_and_normal_form(on_disk, named, tmp_path):
    write_nerfstudio(tmp_path)
    image = PIL.Image.open(tmp_path / "images" / "001.png").convert("RGB")
    (tmp_path / "images" / "001.png").unlink()
    image.save(tmp_path / "images" / on_disk)
    change_json(tmp_path / "transforms.json",
                lambda v: v["frames"][1].update(file_path=f"images/{named}"))
    dataset = open_scene(tmp_path, "nerfstudio", "train", "--llffhold", "0")
    assert f"images/{named}" in dataset.scene.names and len(dataset) == 9


@pytest.mark.parametrize("start", ["/home/me/scene/", "C:\\Users\\me\\", "{root}/"])
@pytest.mark.parametrize("write,name", [(write_nerfstudio, "nerfstudio"),
                                        (write_blender, "blender")])
def test_absolute_paths_of_other_machines_end_in_the_scene(write, name, start, tmp_path):
    for scene in "ab":
        write(tmp_path / scene)
    start = start.format(root=tmp_path / "b")
    for path in (tmp_path / "b").glob("*.json"):
        change_json(path, lambda v: [f.update(file_path=start + f["file_path"].removeprefix("./"))
                                     for f in v["frames"]])
    a, b = (open_scene(tmp_path / scene, name).scene for scene in "ab")
    assert a.pixels.equal(b.pixels) and a.cameras.camtoworlds.equal(b.cameras.camtoworlds)


def test_two_frames_never_share_an_image(tmp_path):
    write_nerfstudio(tmp_path / "a")
    change_json(tmp_path / "a" / "transforms.json",
                lambda v: v["frames"][1].update(file_path="/left/images/000.png"))
    expect_refusal("are both the image", tmp_path / "a", "nerfstudio")
    write_colmap(tmp_path / "b", factor=1)
    images = tmp_path / "b" / "sparse" / "0" / "images.txt"
    images.write_text(images.read_text().replace("001.png", "002.png"))
    expect_refusal("two images named 002.png", tmp_path / "b", "colmap")


# Blender.


def write_addon(folder, suffix, **frame):
    """As Blender's add-ons do: numbered images with a suffix, a test file without images."""
    (folder / "images_train").mkdir(parents=True)
    frames = []
    for i, (pose, image) in enumerate(zip(round_poses(3), random_images(3, (12, 8), 3),
                                          strict=True)):
        imwrite(folder / "images_train" / f"{i + 1:04d}.{suffix}", image)
        frames.append({"file_path": f"images_train/{i + 1:04d}.{suffix}",
                       "transform_matrix": pose.tolist()} | frame)
    meta = {"camera_angle_x": ANGLE, "aabb_scale": 4, "scale": 0.5, "offset": [0.5, 0.5, 0.5]}
    (folder / "transforms_train.json").write_text(json.dumps(meta | {"frames": frames}))
    missing = [f | {"file_path": f["file_path"].replace("train", "test")} for f in frames]
    (folder / "transforms_test.json").write_text(json.dumps(meta | {"frames": missing}))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_blender_addon_scene_is_read_without_its_missing_test_views(suffix, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_addon(tmp_path / "scene", suffix)
    dataset = open_scene(tmp_path / "scene", "blender", "test")
    assert dataset.split == "train" and len(dataset) == 3
    assert (dataset.scene.pixels[:, 3] == 255).all()
    assert "3 training and no test views" in check(tmp_path / "scene")
    assert "keys that are not used: aabb_scale, offset, scale" in caplog.text
    assert "none of which exists" in caplog.text


def test_frames_of_a_blender_scene_may_have_their_own_cameras(tmp_path):
    write_addon(tmp_path / "scene", "png")
    change_json(tmp_path / "scene" / "transforms_train.json", lambda v: v["frames"][1].update(
        fl_x=30.0, fl_y=20.0, cx=5.0, cy=3.0, w=12, h=8))
    cameras = open_scene(tmp_path / "scene", "blender").cameras
    focal = 6 / np.tan(ANGLE / 2)
    np.testing.assert_allclose(cameras.pixtocams[0, 0], [1 / focal, 0, -6 / focal], rtol=1e-6)
    np.testing.assert_allclose(cameras.pixtocams[1, :2],
                               [[1 / 30, 0, -5 / 30], [0, -1 / 20, 3 / 20]], rtol=1e-6)


def test_a_blender_scene_of_another_size_is_scaled_to_its_range(tmp_path):
    write_blender(tmp_path / "scene")
    shift = np.array([50.0, -20.0, 10.0])

    def enlarge(value):
        for frame in value["frames"]:
            pose = np.array(frame["transform_matrix"])
            pose[:3, 3] = 6 * pose[:3, 3] + shift
            frame["transform_matrix"] = pose.tolist()

    for split in ("train", "test"):
        change_json(tmp_path / "scene" / f"transforms_{split}.json", enlarge)
    for split in ("train", "test"):
        scene = open_scene(tmp_path / "scene", "blender", split).scene
        np.testing.assert_allclose(scene.cameras.camtoworlds[:, :, 3].norm(dim=-1), 4, rtol=1e-5)
        centre = scene.world_to_scene.numpy() @ [*shift, 1]
        np.testing.assert_allclose(centre[:3], 0, atol=1e-9)
    kept = open_scene(tmp_path / "scene", "blender", "train", "--near", "12", "--far", "36").scene
    assert np.array_equal(kept.world_to_scene, np.eye(4))


@pytest.mark.parametrize("write,name", [(write_colmap, "colmap"), (write_nerfstudio, "nerfstudio"),
                                        (write_llff, "llff")])
def test_captures_may_have_no_test_views(write, name, tmp_path):
    write(tmp_path / "scene")
    flags = ["--llffhold", "0", "--factor", "1" if name == "nerfstudio" else "4"]
    for split in ("train", "test"):
        dataset = open_scene(tmp_path / "scene", name, split, *flags)
        assert (dataset.split, len(dataset)) == ("train", 9)
        assert set(dataset.scenes()) == {"train"}


# JSON files.


def test_backslashes_a_byte_order_mark_and_repeated_frames_are_read(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_nerfstudio(tmp_path / "scene")
    path = tmp_path / "scene" / "transforms.json"
    change_json(path, lambda v: v["frames"].append(dict(v["frames"][2])))
    change_json(path, lambda v: [f.update(file_path=f["file_path"].replace("/", "\\"))
                                 for f in v["frames"]])
    path.write_text(path.read_text(), encoding="utf-8-sig")
    dataset = open_scene(tmp_path / "scene", "nerfstudio")
    assert dataset.scene.names == tuple(f"images/{i:03d}.png" for i in range(1, 8))
    assert "repeated frame(s): images/002.png" in caplog.text
    value = json.loads(path.read_text(encoding="utf-8-sig"))
    value["frames"][-1]["transform_matrix"][0][3] += 1
    path.write_text(json.dumps(value))
    expect_refusal("two frames of images/002.png", tmp_path / "scene", "nerfstudio")


@pytest.mark.parametrize("change", [lambda pose: np.round(pose, 3),
                                    lambda pose: pose * [[2.5, 2.5, 2.5, 1]]])
def test_rounded_and_scaled_poses_are_made_rotations(change, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_nerfstudio(tmp_path / "a")
    write_nerfstudio(tmp_path / "b")
    change_json(tmp_path / "b" / "transforms.json", lambda v: [
        f.update(transform_matrix=change(np.array(f["transform_matrix"])).tolist())
        for f in v["frames"]])
    a, b = (open_scene(tmp_path / name, "nerfstudio").cameras.camtoworlds for name in "ab")
    rotations = b[:, :, :3]
    np.testing.assert_allclose(rotations.mT @ rotations, np.tile(np.eye(3), (7, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(a, b, atol=3e-3)
    assert "nearest rotations are used" in caplog.text


@pytest.mark.parametrize("key,value,words", [
    ("camera_model", "EQUIRECTANGULAR", "cut each panorama"),
    ("latlong", True, "cut each panorama"),
    ("camera_model", "ORTHOPHOTO", "parallel rays"), ("ftheta_p0", 0.1, "undistort"),
    ("rolling_shutter", [0, 0, 1, 0], "global shutter"), ("k5", 0.1, "undistort"),
])
def test_other_cameras_are_refused_with_what_to_do(key, value, words, tmp_path):
    write_nerfstudio(tmp_path / "scene", **{key: value})
    change_json(tmp_path / "scene" / "transforms.json", lambda v: v.update({key: value}))
    expect_refusal(words, tmp_path / "scene", "nerfstudio")


def test_the_name_of_a_lens_model_may_be_spelled_as_elsewhere(tmp_path):
    write_nerfstudio(tmp_path / "a")
    write_nerfstudio(tmp_path / "b")
    change_json(tmp_path / "b" / "transforms.json", lambda v: v.update(camera_model="perspective"))
    a, b = (image_rays(open_scene(tmp_path / name, "nerfstudio").cameras, 2) for name in "ab")
    assert a.is_close(b)


def test_nulls_in_json_are_absent(tmp_path):
    write_nerfstudio(tmp_path / "a", lens={"fl_x": 14.0, "w": 12, "h": 8})
    write_nerfstudio(tmp_path / "b", lens={"fl_x": 14.0, "w": 12, "h": 8}, fl_y=None, cx=None,
                     k1=None, camera_model=None, ply_file_path=None, train_filenames=None)
    a, b = (image_rays(open_scene(tmp_path / name, "nerfstudio").cameras, 2) for name in "ab")
    assert a.is_close(b)


def test_lists_of_distortion_are_read(tmp_path):
    lens = {"fl_x": 14.0, "w": 12, "h": 8}
    write_nerfstudio(tmp_path / "a", lens=lens | {"k1": -0.05, "k2": 0.01, "p1": 0.002, "p2": 0.1})
    write_nerfstudio(tmp_path / "b", lens=lens,
                     distortion_params=[-0.05, 0.01, 0, 0, 0.002, 0.1])
    a, b = (image_rays(open_scene(tmp_path / name, "nerfstudio").cameras, 2) for name in "ab")
    assert a.is_close(b)


def test_an_angle_of_a_frame_replaces_the_focal_length_of_the_file(tmp_path):
    write_nerfstudio(tmp_path, lens={"fl_x": 14.0, "fl_y": 15.0, "w": 12, "h": 8})
    change_json(tmp_path / "transforms.json",
                lambda v: v["frames"][1].update(camera_angle_x=2 * np.arctan(6 / 20)))
    pixtocams = open_scene(tmp_path, "nerfstudio").cameras.pixtocams
    np.testing.assert_allclose(pixtocams[:2, 0, 0], [1 / 20, 1 / 14], rtol=1e-6)
    np.testing.assert_allclose(pixtocams[:2, 1, 1], [-1 / 20, -1 / 15], rtol=1e-6)


def test_focal_lengths_in_other_units_or_for_another_size_are_refused(tmp_path):
    write_nerfstudio(tmp_path / "a", size=(60, 40), lens={"fl_x": 1.1, "fl_y": 1.6})
    expect_refusal("multiply fractions", tmp_path / "a", "nerfstudio")
    write_nerfstudio(tmp_path / "b")
    imwrite(tmp_path / "b" / "images" / "001.png", np.zeros((16, 24, 3), np.uint8))
    change_json(tmp_path / "b" / "transforms.json", lambda v: v["frames"][1].update(fl_x=28.0))
    expect_refusal("give the w and h", tmp_path / "b", "nerfstudio")
    write_nerfstudio(tmp_path / "c")
    change_json(tmp_path / "c" / "transforms.json",
                lambda v: v["frames"][1]["transform_matrix"][3].__setitem__(3, 2.0))
    expect_refusal("last row", tmp_path / "c", "nerfstudio")


# COLMAP.


def test_blank_lines_and_other_models_of_colmap(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_colmap(tmp_path, factor=1, names=[f"a {i}.png" for i in range(9)])
    images = tmp_path / "sparse" / "0" / "images.txt"
    images.write_text("# Image list\n\n" + images.read_text())
    shutil.copytree(tmp_path / "sparse" / "0", tmp_path / "sparse" / "1")
    assert open_scene(tmp_path, "colmap", "train", "--factor", "1").scene.names[0] == "a 1.png"
    assert "1 model(s) besides the one in 0: 1" in caplog.text


@pytest.mark.parametrize("binary", [False, True])
def test_colmap_names_with_spaces_brackets_and_folders(binary, tmp_path):
    names = [f"{folder}/{name}" for folder in ("left [1]", "right (2)")
             for name in ("a b.png", "a[0].png", "c.png", "d e f.png")]
    write_colmap(tmp_path / "scene", num_views=8, factor=1, names=names)
    if binary:
        import pycolmap

        from loaders.colmap import read_model

        model, sparse = read_model(tmp_path / "scene" / "sparse" / "0"), tmp_path / "scene/sparse/0"
        assert isinstance(model, pycolmap.Reconstruction)
        model.write_binary(str(sparse))
        for file in sparse.glob("*.txt"):
            file.unlink()
    dataset = open_scene(tmp_path / "scene", "colmap", "train", "--factor", "1", "--llffhold", "0")
    assert dataset.scene.names == tuple(sorted(names))
    poses = np.array(walk_poses(8))[np.argsort(names)][:, :3, 3]
    moved = poses @ dataset.scene.world_to_scene[:3, :3].numpy().T + (
        dataset.scene.world_to_scene[:3, 3].numpy())
    np.testing.assert_allclose(dataset.cameras.camtoworlds[:, :, 3], moved, atol=1e-5)
