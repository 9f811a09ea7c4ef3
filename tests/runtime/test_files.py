"""Locks on folders under contention, and atomic writing of files and folders."""

import subprocess
import sys
from pathlib import Path

import pytest

from runtime import files
from runtime.errors import UserError
from runtime.files import atomic_file, new_folder, sole_writer, try_lock, write_atomically

ROOT = Path(__file__).parents[2]


# Locks.


def test_a_refused_process_leaves_the_lock_to_its_holder(tmp_path):
    folder = tmp_path / "run"
    with sole_writer(folder, "training"):
        for _ in range(2):
            with pytest.raises(UserError, match="another process is training in .*run; wait"):
                with sole_writer(folder, "training"):
                    pytest.fail("two processes hold the lock")
            assert (folder / ".lock").exists()
    assert not folder.exists()


def test_a_folder_is_removed_only_if_nothing_was_written(tmp_path):
    with pytest.raises(KeyboardInterrupt), sole_writer(tmp_path / "a" / "empty", "testing"):
        raise KeyboardInterrupt
    with sole_writer(tmp_path / "full", "testing"):
        (tmp_path / "full" / "result").touch()
    assert not (tmp_path / "a" / "empty").exists()
    assert {path.name for path in (tmp_path / "full").iterdir()} == {".lock", "result"}
    with sole_writer(tmp_path / "full", "testing"):
        pass
    assert (tmp_path / "full" / "result").exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_file_that_its_holder_removed_does_not_lock_the_folder(tmp_path, monkeypatch,
                                                                      replaced):
    """The holder leaves after another process has opened the lock file and before it locks it."""
    folder, opened = tmp_path / "run", []

    def remove_then_lock(file):
        opened.append(file)
        if len(opened) == 1:
            (folder / ".lock").unlink()
            folder.rmdir()
            if replaced:
                folder.mkdir()
                (folder / ".lock").touch()
        return try_lock(file)

    monkeypatch.setattr(files, "try_lock", remove_then_lock)
    with sole_writer(folder, "testing"):
        assert len(opened) == 2
        with open(folder / ".lock") as file:
            assert not try_lock(file)


def test_a_folder_that_its_holder_removes_is_created_again(tmp_path, monkeypatch):
    """The holder leaves after another process has found the folder and before it opens the lock."""
    folder, calls = tmp_path / "run", []
    make_folder = files._make_folder

    def make_then_remove(path):
        make_folder(path)
        calls.append(path)
        if len(calls) == 1:
            path.rmdir()

    monkeypatch.setattr(files, "_make_folder", make_then_remove)
    with sole_writer(folder, "testing"):
        assert len(calls) == 2 and (folder / ".lock").exists()


@pytest.mark.parametrize("make", [
    lambda path: path.write_text("a file"), lambda path: path.symlink_to("nowhere"),
])
def test_a_path_that_cannot_be_a_folder_is_an_error(tmp_path, make):
    make(tmp_path / "run")
    with pytest.raises(FileExistsError), sole_writer(tmp_path / "run", "testing"):
        pytest.fail("there is no folder")


# Each process enters the lock many times. Inside, it creates a file that must not exist yet.
CONTENDER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from runtime.errors import UserError
from runtime.files import sole_writer
folder, marker = sys.argv[2:4]
entered = 0
while entered < 100:
    try:
        with sole_writer(folder, "testing"):
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            assert os.listdir(folder) == [".lock"]
            open(os.path.join(folder, "result"), "w").close()
            os.unlink(os.path.join(folder, "result"))
            entered += 1
            os.unlink(marker)
    except UserError:
        pass
"""


def test_one_of_many_processes_at_a_time_is_inside(tmp_path):
    command = [sys.executable, "-c", CONTENDER, ROOT, tmp_path / "run", tmp_path / "inside"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    for process in processes:
        _, printed = process.communicate(timeout=120)
        assert process.returncode == 0, printed
    assert not list(tmp_path.iterdir())


# Atomic writing.


def test_a_file_is_replaced_at_once_or_stays_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="a.json could not be written .No space left on device"):
        write_atomically(path, fail)
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
        temporary.write_bytes(b"ne")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "scene") as folder:
        (folder / "part").touch()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "scene") as folder:
        (folder / "part").touch()
        assert not (tmp_path / "scene").exists()
    assert (tmp_path / "scene" / "part").exists() and len(list(tmp_path.iterdir())) == 1


def test_of_two_processes_that_make_a_folder_the_first_one_wins(tmp_path):
    with new_folder(tmp_path / "scene") as slow:
        (slow / "slow").touch()
        with new_folder(tmp_path / "scene") as fast:
            (fast / "fast").touch()
    assert [path.name for path in (tmp_path / "scene").iterdir()] == ["fast"]
