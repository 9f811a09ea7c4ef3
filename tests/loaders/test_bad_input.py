"""Bad files and numbers in scenes of every format end with one sentence, in reading and checking.

A number that could be right is read; then all rays are finite.
"""

import json
import os
import socket
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from imageio.v3 import imread, imwrite
from PIL import Image

import image_utils
from capture.report import examine_scene
from config import get_config
from image_utils import image_size, read_image
from runtime.errors import UserError
from tests.scenes import WRITERS, change_json, open_scene

METADATA = {"blender": "transforms_train.json", "llff": "poses_bounds.npy",
            "colmap": "sparse/0/images.txt", "nerfstudio": "transforms.json",
            "multicam": "metadata.json", "nerv": "train_point/transforms_train.json"}
IMAGES = {"blender": "train/r_0.png", "llff": "images_4/001.png", "colmap": "images_4/001.png",
          "nerfstudio": "images/001.png", "multicam": "train/0_0.png",
          "nerv": "train_point/train/r_0.png"}

# JSON text of values that people and programs write by mistake.
VALUES = ["1" + "0" * 400, "1e300", "-1e300", "1e-300", "NaN", "Infinity", "-1e999", "1" * 30,
          "7" * 5000, "null", "[1]", "[[[]]]", '{"a": 1}', '"x"', "true", "0", "-1", '"a\\u0000b"',
          '"\\ud800"', '"' + "a" * 5000 + '"']
ENTRIES = {
    "blender": ["camera_angle_x", "frames", "frames.0", "frames.0.file_path",
                "frames.0.transform_matrix", "frames.0.transform_matrix.0.3"],
    "nerfstudio": ["fl_x", "fl_y", "cx", "cy", "k1", "p1", "w", "h", "camera_model",
                   "camera_angle_x", "ply_file_path", "train_filenames", "frames.1.file_path",
                   "frames.1.mask_path", "frames.1.fl_x", "frames.1.transform_matrix.0.3"],
    "multicam": ["train", "train.near", "train.near.0", "train.far.0", "train.width.0",
                 "train.lossmult.0", "train.label.0", "train.file_path.0", "train.pix2cam.0",
                 "train.cam2world.0"],
    "nerv": ["frames.0.light_loc", "frames.0.light_loc.0", "frames.0.light_weights",
             "frames.0.environment", "frames.0.environment_turn", "light_intensity"],
}


def fault_of(folder, dataset):
    """The message of a training set that cannot be read; None if its rays are finite."""
    factor = ["--factor", "4"] if dataset in ("llff", "colmap") else []
    try:
        scene = open_scene(folder, dataset, "train", *factor)
        scene.scenes()
        rays = scene.batch(64).rays
    except UserError as error:
        return str(error)
    assert all(torch.isfinite(getattr(rays, name)).all() for name in
               ("origins", "directions", "viewdirs", "radii", "near", "far"))
    return None


def put(value, entry, text):
    """The JSON text of `value` with `text` at an `entry` such as frames.0.file_path."""
    *path, last = [int(word) if word.isdigit() else word for word in entry.split(".")]
    place = value
    for word in path:
        place = place[word]
    place[last] = "PLACE"
    return json.dumps(value).replace('"PLACE"', text)


@pytest.mark.parametrize("dataset,entry", [
    (dataset, entry) for dataset, entries in ENTRIES.items() for entry in entries])
def test_any_value_in_a_json_file_is_read_or_is_one_sentence(dataset, entry, tmp_path):
    WRITERS[dataset](tmp_path)
    path = tmp_path / METADATA[dataset]
    original = path.read_text()
    for text in VALUES:
        path.write_text(put(json.loads(original), entry, text))
        fault = fault_of(tmp_path, dataset)
        assert fault is None or (len(fault) < 900 and "\n" not in fault
                                 and (str(tmp_path) in fault or "a range" in fault)), (text, fault)


@pytest.mark.parametrize("column", [0, 3, 4, 14, 15, 16])
@pytest.mark.parametrize("rows", [0, slice(None)])
def test_any_value_in_poses_bounds_is_read_or_is_one_sentence(column, rows, tmp_path):
    WRITERS["llff"](tmp_path)
    original = np.load(tmp_path / "poses_bounds.npy")
    for value in (1e-300, 1e300, 1e38, 1e20, 1e-20, -1, 0, np.nan, np.inf):
        table = original.copy()
        table[rows, column] = value
        np.save(tmp_path / "poses_bounds.npy", table)
        fault = fault_of(tmp_path, "llff")
        assert fault is None or str(tmp_path) in fault, (value, fault)


@pytest.mark.parametrize("words", ["0 0 0 0", "1e300 0 0 1e300"])
def test_a_quaternion_of_no_rotation_is_refused(words, tmp_path):
    WRITERS["colmap"](tmp_path)
    path = tmp_path / "sparse/0/images.txt"
    first, *rest = path.read_text().splitlines()
    numbers = first.split()
    path.write_text("\n".join([" ".join([numbers[0], words, *numbers[5:]]), *rest]))
    assert "the pose of 000.png" in fault_of(tmp_path, "colmap")


@pytest.mark.parametrize("name", ["points3D", "images", "cameras"])
def test_binary_colmap_files_of_wrong_length_are_refused(name, tmp_path, alarm):
    pycolmap = pytest.importorskip("pycolmap")
    WRITERS["colmap"](tmp_path)
    folder = tmp_path / "sparse" / "0"
    model = pycolmap.Reconstruction(str(folder))
    for path in folder.glob("*.txt"):
        path.unlink()
    model.write_binary(str(folder))
    path = folder / f"{name}.bin"
    content = path.read_bytes()
    for wrong in (b"\xff" * len(content), b"\xff" * 8 + content[8:], content[: len(content) // 2]):
        path.write_bytes(wrong)
        assert str(folder) in fault_of(tmp_path, "colmap")


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "device", "empty", "noise", "cut"])
@pytest.mark.parametrize("files", [METADATA, IMAGES])
@pytest.mark.parametrize("dataset", WRITERS)
def test_what_is_no_file_or_a_damaged_one_is_one_sentence(dataset, files, kind, tmp_path,
                                                          monkeypatch, alarm, caplog):
    WRITERS[dataset](tmp_path)
    path = tmp_path / files[dataset]
    content = path.read_bytes()
    path.unlink()
    monkeypatch.chdir(path.parent)
    {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir,
     "socket": lambda: socket.socket(socket.AF_UNIX).bind(path.name),
     "device": lambda: path.symlink_to("/dev/zero"), "empty": path.touch,
     "noise": lambda: path.write_bytes(np.random.default_rng(0).bytes(3000)),
     "cut": lambda: path.write_bytes(content[: len(content) // 2])}[kind]()
    caplog.set_level("INFO")
    fault = fault_of(tmp_path, dataset)
    # Captures leave out views without an image, and say so.
    assert str(tmp_path) in (fault or caplog.text) and "\n" not in (fault or "")


def test_other_masks(tmp_path):
    """Null is no mask; masks that leave nothing to learn from are refused."""
    WRITERS["nerfstudio"](tmp_path)
    imwrite(tmp_path / "black.png", np.zeros((8, 12), np.uint8))

    def name_masks(name):
        change_json(tmp_path / "transforms.json",
                    lambda meta: [frame.update(mask_path=name) for frame in meta["frames"]])

    name_masks(None)
    assert fault_of(tmp_path, "nerfstudio") is None
    name_masks("black.png")
    assert "leave out every pixel" in fault_of(tmp_path, "nerfstudio")
    name_masks("none.png")
    assert "none.png is missing" in fault_of(tmp_path, "nerfstudio")


@pytest.mark.parametrize("name", ["images_0", "images_²", "images_" + "9" * 200, "images_04"])
def test_folders_of_no_factor_are_not_images(name, tmp_path):
    WRITERS["llff"](tmp_path)
    (tmp_path / "images_4").rename(tmp_path / name)
    assert "has no images at --factor 4" in fault_of(tmp_path, "llff")


# Images.


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(
        ">I", zlib.crc32(kind + content))


def write_large_png(path, width, height):
    """A transparent RGBA PNG, which zlib packs to a thousandth."""
    compress = zlib.compressobj()
    rows = b"".join(compress.compress(bytes(1 + 4 * width)) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
                     + chunk(b"IDAT", rows + compress.flush()) + chunk(b"IEND", b""))


@pytest.mark.parametrize("width,height,rows", [
    (2_000, 1_000, 1_000), (30_000, 20_000, 1), (2_000_000_000, 2_000_000_000, 0), (0, 0, 0)])
def test_images_that_no_camera_takes_are_not_unpacked(width, height, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(image_utils, "MANY_PIXELS", 1 << 20)
    path = tmp_path / "a.png"
    write_large_png(path, min(width, 2_000), rows)
    content = path.read_bytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    path.write_bytes(content[:8] + chunk(b"IHDR", header) + content[33:])
    for read in (image_size, lambda path: read_image(path, 4)):
        with pytest.raises(UserError, match="which is no photograph|pixels; 1 to|cannot be read"):
            read(path)


def test_large_photographs_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(image_utils, "MANY_PIXELS", 99)
    imwrite(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8))
    assert image_size(tmp_path / "a.png") == (10, 10)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_are_rounded_to_8(channels, tmp_path):
    """Truth by hand: of 65535, the value 257 k is k of 255, and 128 above it is nearer to k."""
    levels = np.random.default_rng(0).integers(1, 255, (6, 5, channels))
    deep = (257 * levels + np.random.default_rng(1).integers(-128, 129, levels.shape))
    write_png_16(tmp_path / "a.png", deep.astype(">u2"))
    grey = channels < 3
    expected = np.repeat(levels[..., :1], 3, axis=-1) if grey else levels[..., :3]
    assert np.array_equal(read_image(tmp_path / "a.png", 3), expected)
    if channels in (2, 4):
        assert np.array_equal(read_image(tmp_path / "a.png", 4)[..., 3], levels[..., -1])


def write_png_16(path, pixels):
    """A PNG of big-endian 16-bit `pixels [h, w, C]`, by the format's definition."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
                     + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def test_grey_palette_and_animated_images_are_read(tmp_path):
    path = tmp_path / "a.png"
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(grey).save(path)
    assert np.array_equal(read_image(path, 3), np.repeat(grey[..., None], 3, axis=-1))
    assert np.array_equal(read_image(path, 1)[..., 0], grey)
    colours = np.array([[[255, 0, 0], [0, 128, 9]], [[7, 7, 7], [255, 0, 0]]], np.uint8)
    Image.fromarray(colours).quantize(8).save(path)
    assert Image.open(path).mode == "P" and np.array_equal(read_image(path, 3), colours)
    first, second = Image.fromarray(colours), Image.fromarray(255 - colours)
    first.save(path, save_all=True, append_images=[second])
    assert Image.open(path).n_frames == 2 and np.array_equal(read_image(path, 3), colours)


@pytest.mark.parametrize("dataset", ["blender", "llff", "multicam", "colmap", "nerfstudio"])
@pytest.mark.parametrize("kind", ["16 bits", "grey", "palette", "1 bit", "CMYK", "cut", "animated"])
def test_checking_and_training_agree_on_images(dataset, kind, tmp_path):
    WRITERS[dataset](tmp_path)
    path = tmp_path / IMAGES[dataset]
    pixels = imread(path)[..., :3]
    if kind == "16 bits":
        cv2.imwrite(str(path), pixels.astype(np.uint16) * 257)
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        mode = {"palette": "P", "1 bit": "1", "CMYK": "CMYK", "grey": "L"}.get(kind, "RGB")
        image = Image.fromarray(pixels).convert(mode)
        more = {"save_all": True, "append_images": [image]} if kind == "animated" else {}
        image.save(path, format="JPEG" if mode == "CMYK" else "PNG", **more)
    factor = ["--factor", "4"] if dataset in ("llff", "colmap") else []
    config = get_config(["--dataset_name", dataset, "--scene", str(tmp_path), *factor])
    fault = fault_of(tmp_path, dataset)
    if fault is None:
        examine_scene(config)
    else:
        with pytest.raises(UserError) as error:
            examine_scene(config)
        assert str(error.value) == fault
