"""Settings of the process before PyTorch is imported, and what a start does not import."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import process

ROOT = Path(__file__).parents[2]
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


def output_of(code):
    environment = {name: value for name, value in os.environ.items()
                   if name not in process.SPIN_VARIABLES}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("variable", process.SPIN_VARIABLES)
def test_a_users_own_setting_of_waiting_threads_wins(variable, monkeypatch):
    for name in process.SPIN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(process, "other_processes", lambda: 1)
    monkeypatch.setenv(variable, "7")
    process.share_cores()
    assert [os.environ.get(name) for name in process.SPIN_VARIABLES if name != variable] == [None]
    assert os.environ[variable] == "7"
    monkeypatch.delenv(variable)
    process.share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == process.SPIN_COUNT
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setattr(process, "other_processes", lambda: 0)
    process.share_cores()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_running_processes_are_those_of_linux_but_this_one(monkeypatch):
    monkeypatch.setattr(process, "PAUSE", 0)
    counts = iter([3, 9, 1, 3, 4])
    monkeypatch.setattr(process.Path, "read_text",
                        lambda path: f"cpu 1 2\nprocs_running {next(counts)}\nprocs_blocked 0\n")
    assert process.other_processes() == 2
    monkeypatch.undo()
    monkeypatch.setattr(process.Path, "read_text", lambda path: open("/no/such/file"))
    assert process.other_processes() == 0


def test_a_script_makes_the_settings_before_it_imports_pytorch():
    assert output_of(
        "import sys, os, config; sys.argv = ['x']; config.process.other_processes = lambda: 1;"
        "config.early_config('train');"
        "print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
    ).splitlines()[-1] == f"False {process.SPIN_COUNT}"


@glibc
def test_freed_memory_causes_no_further_page_faults():
    """A block of 16 MB that is freed and allocated again: 4,096 pages each time, or none."""
    faults = output_of("""
import ctypes, resource, sys
from runtime import process
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def touch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(1 << 24)
    ctypes.memset(block, 1, 1 << 24)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
libc.mallopt(process.M_MMAP_THRESHOLD, 1 << 17)  # The default, but never raised by itself.
print(touch(), touch(), process.keep_freed_memory(), touch(), touch())
""").split()
    assert int(faults[0]) > 1000 and int(faults[1]) > 1000
    assert faults[2] == "True" and int(faults[4]) < 100


@glibc
def test_old_versions_of_glibc_get_the_largest_value_that_they_accept(monkeypatch):
    calls = []

    class Libc:
        @staticmethod
        def mallopt(parameter, value):
            calls.append((parameter, value))
            return int(value <= 1 << 25)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Libc)
    assert process.keep_freed_memory()
    assert calls[-2:] == [(-3, 1 << 25), (-1, 1 << 25)]


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert not process.keep_freed_memory()


def test_a_training_does_not_import_what_it_needs_later():
    late = ("tensorboard", "skimage", "scipy", "numba", "lpips", "imageio_ffmpeg", "mcubes")
    assert output_of(f"import sys, train; print([name for name in {late} if name in sys.modules])"
                     ).strip() == "[]"
