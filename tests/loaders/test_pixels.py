"""Pixels in memory and memory-mapped: equal batches, caches that are reused, bad caches."""

import os
import shutil

import numpy as np
import pytest
import torch
from imageio.v3 import imread, imwrite

from loaders.pixels import composite, map_bytes
from runtime import distributed
from runtime.errors import UserError
from runtime.files import try_lock
from tests.scenes import WRITERS, change_json, open_scene, write_blender, write_nerfstudio

FORMATS = sorted(WRITERS)


def test_composite_is_alpha_blending_in_float():
    pixel = torch.tensor([[255, 0, 51, 51]], dtype=torch.uint8)
    expected = torch.tensor([[0.2 + 0.8, 0.8, 0.04 + 0.8]])
    torch.testing.assert_close(composite(pixel, 1.0), expected)


def cache_files(folder):
    return sorted(folder.glob(".pixels/*/pixels.bin"))


@pytest.mark.parametrize("dataset_name", FORMATS)
def test_memory_mapped_images_give_the_batches_of_those_in_memory(dataset_name, tmp_path, caplog):
    caplog.set_level("INFO")
    WRITERS[dataset_name](tmp_path / "scene")
    mapped = open_scene(tmp_path / "scene", dataset_name, "train", "--pixel_memory", "0")
    [file] = cache_files(tmp_path / "scene")
    assert "GB of pixels" in caplog.text
    caplog.clear()
    kept = open_scene(tmp_path / "scene", dataset_name, "train")
    assert file.stat().st_size == kept.scene.pixels.nbytes
    for a, b in ((mapped.image(1), kept.image(1)),
                 *((d.batch(30, torch.Generator().manual_seed(2)) for d in (mapped, kept)),)):
        assert torch.equal(a.rgb, b.rgb) and torch.equal(a.rays.origins, b.rays.origins)
    written = file.stat().st_mtime_ns
    open_scene(tmp_path / "scene", dataset_name, "train", "--pixel_memory", "0")
    assert cache_files(tmp_path / "scene") == [file] and file.stat().st_mtime_ns == written
    assert caplog.text == ""


def test_a_changed_image_gets_a_new_cache_and_a_truncated_cache_is_an_error(tmp_path):
    write_blender(tmp_path / "scene")
    before = open_scene(tmp_path / "scene", "blender", "train", "--pixel_memory", "0").scene.pixels
    path = tmp_path / "scene" / "train" / "r_1.png"
    imwrite(path, 255 - imread(path))
    os.utime(path, ns=(1, 1))
    after = open_scene(tmp_path / "scene", "blender", "train", "--pixel_memory", "0").scene.pixels
    assert not torch.equal(before, after) and len(cache_files(tmp_path / "scene")) == 2
    for file in cache_files(tmp_path / "scene"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="pixels.bin has 1,151 bytes and should have 1,152; remove"):
        open_scene(tmp_path / "scene", "blender", "train", "--pixel_memory", "0")


def test_partial_caches_of_killed_processes_are_removed(tmp_path):
    write_blender(tmp_path / "scene")
    open_scene(tmp_path / "scene", "blender", "train", "--pixel_memory", "0")
    folder, = (tmp_path / "scene" / ".pixels").iterdir()
    shutil.rmtree(folder)
    dead, alive = (folder.parent / f".{folder.name}-{word}" for word in ("dead", "alive"))
    for outer in (dead, alive):
        (outer / folder.name).mkdir(parents=True)
        (outer / folder.name / "pixels.bin").write_bytes(b"half")
    with open(alive / folder.name / "pixels.bin", "rb") as file:
        assert try_lock(file)
        open_scene(tmp_path / "scene", "blender", "train", "--pixel_memory", "0")
    assert folder.is_dir() and alive.is_dir() and not dead.exists()


def test_the_pixel_memory_is_divided_among_the_ranks_of_a_machine(tmp_path, monkeypatch):
    write_blender(tmp_path / "scene")
    size = open_scene(tmp_path / "scene", "blender", "train").scene.pixels.numel()
    budget = ["--pixel_memory", str(1.5 * size / 1e9)]
    open_scene(tmp_path / "scene", "blender", "train", *budget)
    assert not (tmp_path / "scene" / ".pixels").exists()
    monkeypatch.setattr(distributed, "ranks_of_machine", lambda: 2)
    open_scene(tmp_path / "scene", "blender", "train", *budget)
    assert (tmp_path / "scene" / ".pixels").exists()


def test_a_file_larger_than_memory_is_mapped(tmp_path):
    with open(tmp_path / "holes.bin", "wb") as file:
        file.truncate(1 << 41)
    values = map_bytes(tmp_path / "holes.bin")
    assert values.shape == (1 << 41,) and values[torch.tensor([0, (1 << 41) - 1])].sum() == 0


def test_an_existing_cache_serves_a_read_only_scene(tmp_path, monkeypatch):
    write_blender(tmp_path / "scene")
    open_scene(tmp_path / "scene", "blender", "train", "--pixel_memory", "0")
    monkeypatch.setattr("loaders.pixels.writable_folder", lambda *_: pytest.fail("tried to write"))
    open_scene(tmp_path / "scene", "blender", "train", "--pixel_memory", "0")


def test_masks_are_memory_mapped_too(tmp_path):
    write_nerfstudio(tmp_path / "scene")
    mask = np.zeros((8, 12), np.uint8)
    mask[:, :5] = 255
    imwrite(tmp_path / "scene" / "mask.png", mask)
    change_json(tmp_path / "scene" / "transforms.json",
                lambda v: [frame.update(mask_path="mask.png") for frame in v["frames"][:6]])
    mapped, kept = (open_scene(tmp_path / "scene", "nerfstudio", "train", *flags)
                    for flags in (["--pixel_memory", "0"], []))
    assert len(cache_files(tmp_path / "scene")) == 2
    masks = [d.batch(40, torch.Generator().manual_seed(1)).mask for d in (mapped, kept)]
    assert torch.equal(*masks) and 0 < masks[0].mean() < 1
