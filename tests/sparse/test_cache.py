"""The cache file of sparse points."""

import logging
import os

import pytest
import torch

from sparse import cache
from sparse.cache import matched_points
from tests.sparse.textured import corner_scene

CAMERAS, IMAGES = corner_scene(4, sizes=((100, 75),))
FILES = [("a.png", 1, 2), ("b.png", 3, 4)]


class Reader:
    """Counts the images that are read."""

    def __init__(self, images=IMAGES):
        self.images, self.count = images, 0

    def __call__(self, index):
        self.count += 1
        return self.images[index], None


def equal(a, b):
    return all(torch.equal(value, vars(b)[name]) for name, value in vars(a).items())


def test_images_are_matched_once(tmp_path, caplog):
    read = Reader()
    with caplog.at_level(logging.INFO):
        first = matched_points(tmp_path, CAMERAS, FILES, read, 1)
    assert read.count == 4 and f"{len(first):,} points, each in " in caplog.text
    again = matched_points(tmp_path, CAMERAS, FILES, read, 1)
    assert read.count == 4 and equal(first, again)
    assert [path.suffix for path in (tmp_path / ".points").iterdir()] == [".npz"]


def test_other_files_cameras_or_splits_are_matched_anew(tmp_path):
    read = Reader()
    matched_points(tmp_path, CAMERAS, FILES, read, 1)
    matched_points(tmp_path, CAMERAS, FILES[:1], read, 1)
    assert read.count == 8
    moved = CAMERAS.map(lambda x: x.clone())
    moved.camtoworlds[0, 0, 3] += 0.01
    matched_points(tmp_path, moved, FILES, read, 1)
    assert read.count == 12
    matched_points(tmp_path, CAMERAS[:3], FILES, read, 1)
    assert read.count == 15


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * len(data),
    lambda data: data[:200] + bytes([data[200] ^ 255]) + data[201:],
], ids=["empty", "truncated", "other", "flipped"])
def test_a_damaged_file_is_made_anew(tmp_path, caplog, damage):
    read = Reader()
    first = matched_points(tmp_path, CAMERAS, FILES, read, 1)
    (path,) = (tmp_path / ".points").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert equal(first, matched_points(tmp_path, CAMERAS, FILES, read, 1))
    assert read.count == 8 and "is damaged" in caplog.text
    matched_points(tmp_path, CAMERAS, FILES, read, 1)
    assert read.count == 8


def test_a_scene_that_cannot_be_written_is_cached_for_the_user(tmp_path, monkeypatch):
    scene, user = tmp_path / "scene", tmp_path / "user"
    scene.mkdir()
    (scene / ".points").write_text("a file in the place of the folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(user))
    read = Reader()
    matched_points(scene, CAMERAS, FILES, read, 1)
    matched_points(scene, CAMERAS, FILES, read, 1)
    assert read.count == 4 and len(list(user.rglob("*.npz"))) == 1


def test_without_any_place_to_write_points_are_still_found(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert len(matched_points(blocked, CAMERAS, FILES, Reader(), 1)) > 20


def test_blank_images_give_a_notice_and_are_matched_once(tmp_path, caplog):
    read = Reader([image * 0 for image in IMAGES])
    assert matched_points(tmp_path, CAMERAS, FILES, read, 1) is None
    assert matched_points(tmp_path, CAMERAS, FILES, read, 1) is None
    assert read.count == 4 and "that is too few" in caplog.text


def test_a_partial_file_is_not_used(tmp_path, monkeypatch):
    def stop(path, write):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "write_atomically", stop)
    with pytest.raises(KeyboardInterrupt):
        matched_points(tmp_path, CAMERAS, FILES, Reader(), 1)
    assert os.listdir(tmp_path / ".points") == []
