"""The download scripts against a local server that misbehaves in many ways.

The expected files of a scene are those that the test itself zipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts import archives, download

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
BLENDER_SCENES = ["chair", "drums", "ficus", "hotdog", "lego", "materials", "mic", "ship"]
LLFF_SCENES = ["fern", "flower", "fortress", "horns", "leaves", "orchids", "room", "trex"]


class Handler(BaseHTTPRequestHandler):
    """Serves the server's `files`; `cut`, `stall`, `ranges` and `status` make it misbehave."""

    def do_GET(self):
        server, span = self.server, self.headers.get("Range")
        server.log.append((self.path, span))
        if server.status.get(self.path):
            return self.send_error(server.status[self.path].pop(0))
        if self.path not in server.files:
            return self.send_error(404)
        whole = server.files[self.path]
        start = int(re.fullmatch(r"bytes=(\d+)-", span)[1]) if span and server.ranges else 0
        if start >= len(whole) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(whole)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        body = whole[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = server.cut.pop(self.path, len(body))
        self.wfile.write(body[:cut])
        self.wfile.flush()
        if cut < len(body):
            server.stall.wait(10)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A file server on this machine, with a log of (path, Range header)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.cut, server.status, server.log = {}, {}, {}, []
    server.ranges, server.stall = True, threading.Event()
    server.stall.set()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stall.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def dead():
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"http://127.0.0.1:{port}/nothing.zip"


def scene_files(seed: str, marker: str = "transforms_train.json") -> dict[str, bytes]:
    """The files of a small scene, incompressible, so that their zip is not tiny."""
    noise = hashlib.shake_256(seed.encode())
    return {
        marker: b'{"camera_angle_x": 0.69}' + seed.encode(),
        "transforms_test.json": b"{}",
        "train/r_0.png": noise.digest(30_000),
        "test/r_0.png": noise.digest(20_000),
    }


def make_zip(files: dict[str, bytes], folder: str = "") -> bytes:
    """A zip of `files` under `folder`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in files.items():
            zipped.writestr(folder + name, data)
    return buffer.getvalue()


def big_zip(scenes: list[str], marker: str = "transforms_train.json") -> bytes:
    """One zip of a whole set, as the authors' are: set/scene/..., with extra files of macOS."""
    files = {"README.txt": b"renders", "__MACOSX/nerf_synthetic/lego/._train": b"extra"}
    for scene in scenes:
        for name, data in scene_files(scene, marker).items():
            files[f"{scene}/{name}"] = data
        files[f"{scene}/.DS_Store"] = b"extra"
    return make_zip(files, "nerf_synthetic/")


def files_under(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """Remove environment variables that change the mirrors or the connection to them."""
    for name in list(os.environ):
        if re.search("proxy|MIRRORS$|^HF_", name, re.IGNORECASE):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHON", sys.executable)


def command(dataset: str, *arguments) -> list[str]:
    return ["sh", str(SCRIPTS / f"download_{dataset}.sh"), *map(str, arguments)]


def run(dataset: str, *arguments, **variables: str) -> subprocess.CompletedProcess:
    """Run a download script as a user does."""
    return subprocess.run(
        command(dataset, *arguments),
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Attempts follow one another at once, in this process."""
    monkeypatch.setattr(archives, "WAIT_SECONDS", 0.0)


def lego_arguments(data_dir: Path, *mirrors: str) -> list[str]:
    options = [word for mirror in mirrors for word in ("--mirror", mirror)]
    return ["blender", "lego", "--data_dir", str(data_dir), *options]


def get_lego(data_dir: Path, *mirrors: str) -> subprocess.CompletedProcess:
    """As run("blender", "lego", ...), in this process."""
    arguments, out, err = lego_arguments(data_dir, *mirrors), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = download.main(arguments)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def assert_lego(data_dir: Path) -> None:
    """Lego is complete, byte by byte, and there is no archive or temporary folder."""
    assert files_under(data_dir) == {
        f"nerf_synthetic/lego/{name}": data for name, data in scene_files("lego").items()
    }
    assert os.listdir(data_dir / "nerf_synthetic") == ["lego"]


def assert_error(result: subprocess.CompletedProcess, *words: str) -> None:
    """Status 2 and a one-line message with every word; no traceback."""
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


# Mirrors


def test_dead_and_missing_mirrors_then_a_good_one(server, dead, tmp_path):
    server.files["/lego.zip"] = make_zip(scene_files("lego"), "lego/")
    mirrors = (dead, f"{server.url}/gone/{{scene}}.zip", f"{server.url}/lego.zip")
    result = run(*lego_arguments(tmp_path, *mirrors))
    assert result.returncode == 0, result.stderr
    assert_lego(tmp_path)
    assert [path for path, _ in server.log] == ["/gone/lego.zip", "/lego.zip"]
    assert "Connection refused" in result.stdout and "HTTP 404" in result.stdout
    assert "\r" not in result.stdout + result.stderr


def test_no_mirror_works(server, dead, tmp_path):
    missing = f"{server.url}/missing.zip"
    result = run(*lego_arguments(tmp_path, dead, missing))
    assert_error(result, dead, missing, "HTTP 404", "nerf_synthetic/lego", "_MIRRORS")
    assert os.listdir(tmp_path / "nerf_synthetic") == []


def test_environment_names_the_mirrors(server, tmp_path):
    scene = scene_files("fern", "poses_bounds.npy")
    server.files["/fern.zip"] = make_zip(scene, "fern/")
    mirrors = f"{server.url}/nothing.zip {server.url}/{{scene}}.zip"
    result = run("llff", "fern", "--data_dir", tmp_path, NERF_LLFF_DATA_MIRRORS=mirrors)
    assert result.returncode == 0, result.stderr
    assert files_under(tmp_path / "nerf_llff_data" / "fern") == scene


def test_transient_http_errors_are_retried(server, tmp_path):
    server.files["/lego.zip"] = make_zip(scene_files("lego"))
    server.status["/lego.zip"] = [503, 429]
    result = get_lego(tmp_path, f"{server.url}/lego.zip")
    assert result.returncode == 0, result.stderr
    assert_lego(tmp_path)


def test_a_local_zip(tmp_path):
    archive = tmp_path / "downloaded.zip"
    archive.write_bytes(big_zip(BLENDER_SCENES))
    result = get_lego(tmp_path / "data", str(archive))
    assert result.returncode == 0, result.stderr
    assert_lego(tmp_path / "data")
    assert archive.exists()


@pytest.mark.parametrize("mirror", ["no/such/file.zip", "https://x.invalid/a.zip#md5=00"])
def test_invalid_mirrors(mirror, tmp_path):
    assert_error(get_lego(tmp_path, mirror), mirror)


# Resuming


def wait_until(condition, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def only_part(data_dir: Path) -> Path | None:
    """The partial download under `data_dir`, of which there is at most one."""
    parts = list((data_dir / "nerf_synthetic" / ".download").glob("*.part"))
    assert len(parts) <= 1
    return parts[0] if parts else None


def kill_download(server, data_dir: Path, path: str) -> None:
    """Start a download that stalls before its end, and kill it there."""
    server.cut[path] = 400_000
    server.stall.clear()
    words = command(*lego_arguments(data_dir, server.url + path))
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    wait_until(lambda: (part := only_part(data_dir)) and part.stat().st_size)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.stall.set()
    server.log.clear()


def long_scene() -> dict[str, bytes]:
    """Lego with an image large enough to interrupt its download."""
    return {**scene_files("lego"), "train/r_1.png": hashlib.shake_256(b"1").digest(600_000)}


def test_killed_download_leaves_no_scene_and_is_resumed(server, tmp_path):
    archive = make_zip(long_scene(), "lego/")
    server.files["/lego.zip"] = archive
    kill_download(server, tmp_path, "/lego.zip")
    assert os.listdir(tmp_path / "nerf_synthetic") == [".download"]
    left = only_part(tmp_path).read_bytes()
    assert 0 < len(left) <= 400_000 and archive.startswith(left)
    result = run(*lego_arguments(tmp_path, f"{server.url}/lego.zip"))
    assert result.returncode == 0, result.stderr
    assert server.log == [("/lego.zip", f"bytes={len(left)}-")]
    assert os.listdir(tmp_path / "nerf_synthetic") == ["lego"]
    assert files_under(tmp_path / "nerf_synthetic" / "lego") == long_scene()


def test_a_broken_connection_is_resumed_in_the_same_run(server, tmp_path):
    archive = make_zip(scene_files("lego"), "lego/")
    server.files["/lego.zip"] = archive
    server.cut["/lego.zip"] = 20_000
    digest = hashlib.sha256(archive).hexdigest()
    result = get_lego(tmp_path, f"{server.url}/lego.zip#sha256={digest}")
    assert result.returncode == 0, result.stderr
    assert server.log == [("/lego.zip", None), ("/lego.zip", "bytes=20000-")]
    assert_lego(tmp_path)


@pytest.mark.parametrize(
    "left, ranges, requests",
    [("prefix", False, 1), ("all", True, 1), ("too much", True, 2), ("other bytes", True, 2)],
)
def test_leftovers_of_an_earlier_run(left, ranges, requests, server, tmp_path):
    """No ranges; a complete file; a file that shrank; a file that changed."""
    archive = make_zip(long_scene(), "lego/")
    server.files["/lego.zip"] = archive
    kill_download(server, tmp_path, "/lego.zip")
    bytes_left = {
        "prefix": archive[:9_000],
        "all": archive,
        "too much": archive + bytes(1000),
        "other bytes": bytes(9_000),
    }
    only_part(tmp_path).write_bytes(bytes_left[left])
    server.ranges = ranges
    digest = hashlib.sha256(archive).hexdigest()
    result = get_lego(tmp_path, f"{server.url}/lego.zip#sha256={digest}")
    assert result.returncode == 0, result.stderr
    assert files_under(tmp_path / "nerf_synthetic") == {
        f"lego/{name}": data for name, data in long_scene().items()
    }
    assert server.log[0] == ("/lego.zip", f"bytes={len(bytes_left[left])}-")
    assert len(server.log) == requests


# Archives that must be rejected


def test_wrong_checksum_is_rejected_and_the_next_mirror_tried(server, tmp_path):
    good = make_zip(scene_files("lego"), "lego/")
    server.files["/forged.zip"] = make_zip(scene_files("forged lego"), "lego/")
    server.files["/lego.zip"] = good
    digest = hashlib.sha256(good).hexdigest()
    forged = f"{server.url}/forged.zip#sha256={digest}"
    result = get_lego(tmp_path, forged, f"{server.url}/lego.zip#sha256={digest.upper()}")
    assert result.returncode == 0, result.stderr
    assert "checksum" in result.stdout
    assert_lego(tmp_path)
    assert_error(get_lego(tmp_path / "again", forged), "checksum")


def with_symlink() -> bytes:
    buffer = io.BytesIO(make_zip(scene_files("lego"), "lego/"))
    with zipfile.ZipFile(buffer, "a") as zipped:
        link = zipfile.ZipInfo("lego/train/r_1.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(link, "/etc/passwd")
    return buffer.getvalue()


def with_bad_byte() -> bytes:
    """One wrong byte in an image: the zip opens, and only the image's CRC is wrong."""
    data = bytearray(make_zip(scene_files("lego"), "lego/"))
    data[len(data) // 3] ^= 1
    return bytes(data)


def with_member(name: str) -> bytes:
    return make_zip({**{f"lego/{k}": v for k, v in scene_files("lego").items()}, name: b"evil"})


BAD_ARCHIVES = {
    "truncated": make_zip(scene_files("lego"), "lego/")[:-200],
    "not a zip": b"<html>quota exceeded</html>",
    "empty": b"",
    "bad byte": with_bad_byte(),
    "symlink": with_symlink(),
    "parent": with_member("lego/../../../evil.txt"),
    "absolute": with_member("/evil.txt"),
    "drive": with_member("C:/evil.txt"),
    "backslash": with_member("lego\\..\\..\\evil.txt"),
    "no scene": make_zip(scene_files("ship"), "ship/"),
}


@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_bad_archive_is_rejected_and_the_next_mirror_tried(kind, server, tmp_path):
    server.files["/bad.zip"] = BAD_ARCHIVES[kind]
    server.files["/lego.zip"] = make_zip(scene_files("lego"), "lego/")
    data_dir = tmp_path / "deep" / "data"
    result = get_lego(data_dir, f"{server.url}/bad.zip")
    assert_error(result, "lego", "/bad.zip")
    assert not (data_dir / "nerf_synthetic" / "lego").exists()
    result = get_lego(data_dir, f"{server.url}/bad.zip", f"{server.url}/lego.zip")
    assert result.returncode == 0, result.stderr
    assert files_under(data_dir / "nerf_synthetic" / "lego") == scene_files("lego")
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name or path.is_symlink()]


# Layouts of archives, and existing scenes


@pytest.mark.parametrize("folder", ["", "lego/", "lego_v2/", "data/nerf_synthetic/lego/"])
def test_scene_is_found_anywhere_in_the_zip(folder, server, tmp_path):
    server.files["/lego.zip"] = make_zip(scene_files("lego"), folder)
    result = get_lego(tmp_path, f"{server.url}/{{scene}}.zip")
    assert result.returncode == 0, result.stderr
    assert_lego(tmp_path)


def test_one_scene_of_a_big_archive_then_the_others(server, tmp_path):
    server.files["/all.zip"] = big_zip(BLENDER_SCENES)
    mirror = f"{server.url}/all.zip"
    assert get_lego(tmp_path, mirror).returncode == 0
    folder = tmp_path / "nerf_synthetic"
    assert sorted(os.listdir(folder)) == [".download", "lego"]
    assert files_under(folder / "lego") == scene_files("lego")
    result = run("blender", "--data_dir", tmp_path, "--mirror", mirror)
    assert result.returncode == 0, result.stderr
    assert sorted(os.listdir(folder)) == BLENDER_SCENES
    assert all(files_under(folder / scene) == scene_files(scene) for scene in BLENDER_SCENES)
    assert server.log == [("/all.zip", None)]


def test_existing_scene_is_not_touched(server, tmp_path):
    lego = tmp_path / "nerf_synthetic" / "lego"
    lego.mkdir(parents=True)
    (lego / "transforms_train.json").write_text("mine")
    server.files["/lego.zip"] = make_zip(scene_files("lego"), "lego/")
    result = get_lego(tmp_path, f"{server.url}/lego.zip")
    assert result.returncode == 0 and str(lego) in result.stdout
    assert files_under(tmp_path) == {"nerf_synthetic/lego/transforms_train.json": b"mine"}
    (lego / "transforms_train.json").rename(lego / "notes.txt")
    assert_error(get_lego(tmp_path, f"{server.url}/lego.zip"), str(lego), "move it away")
    assert files_under(tmp_path) == {"nerf_synthetic/lego/notes.txt": b"mine"}
    assert server.log == []


def test_killed_while_unpacking_leaves_no_scene(server, tmp_path):
    """SIGKILL after the second file: no lego folder, and the next run completes it."""
    server.files["/lego.zip"] = make_zip(scene_files("lego"), "lego/")
    arguments = lego_arguments(tmp_path, f"{server.url}/lego.zip")
    program = f"""
import os, shutil, sys
sys.path.insert(0, {str(SCRIPTS)!r})
import download
copy, copied = shutil.copyfileobj, []
def copy_then_die(source, file):
    if len(copied) == 2:
        os.kill(os.getpid(), 9)
    copied.append(copy(source, file))
shutil.copyfileobj = copy_then_die
download.main({arguments!r})
"""
    result = subprocess.run([sys.executable, "-c", program], timeout=30)
    assert result.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path / "nerf_synthetic") == [".download"]
    assert len(files_under(tmp_path / "nerf_synthetic" / ".download" / "lego")) >= 2
    result = get_lego(tmp_path, f"{server.url}/lego.zip")
    assert result.returncode == 0, result.stderr
    assert server.log == [("/lego.zip", None)]
    assert_lego(tmp_path)


# Wrong flags, disks, and the multiscale set


@pytest.mark.parametrize(
    "dataset, known",
    [
        ("blender", BLENDER_SCENES),
        ("llff", LLFF_SCENES),
        ("multicam", BLENDER_SCENES),
        ("data", BLENDER_SCENES + LLFF_SCENES),
    ],
)
def test_unknown_scene(dataset, known, tmp_path):
    data_dir = tmp_path / "data"
    assert_error(run(dataset, "legoo", "--data_dir", data_dir), "legoo", *known)
    assert not data_dir.exists()
    usage = download.build_parser(dataset).format_help()
    assert f"usage: scripts/download_{dataset}.sh" in usage
    assert "_MIRRORS" in usage and "--data_dir" in usage


def test_full_disk_stops_before_writing(server, tmp_path, monkeypatch, capsys):
    files = {**scene_files("lego"), "train/r_1.png": bytes(50_000)}
    archive = make_zip(files, "lego/")
    server.files["/lego.zip"] = archive
    arguments = lego_arguments(tmp_path, f"{server.url}/lego.zip")
    usage = type("Usage", (), {"free": len(archive) - 1})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    assert download.main(arguments) == 2
    assert "--data_dir" in capsys.readouterr().err
    assert files_under(tmp_path) == {}
    usage.free = len(archive)
    assert download.main(arguments) == 2, "the unpacked files are longer than the archive"
    assert not (tmp_path / "nerf_synthetic" / "lego").exists()
    usage.free = sum(map(len, files.values()))
    assert download.main(arguments) == 0
    assert files_under(tmp_path / "nerf_synthetic" / "lego") == files


def test_unwritable_place_is_a_one_line_error(tmp_path):
    (tmp_path / "file").write_text("")
    result = get_lego(tmp_path / "file", "http://127.0.0.1:9/lego.zip")
    assert_error(result, str(tmp_path / "file"))


def test_multicam_is_converted_from_blender(server, tmp_path, monkeypatch, capfd):
    """The converter gets the documented options; a failing one leaves no scene."""
    server.files["/lego.zip"] = make_zip(scene_files("lego"), "lego/")
    converter = tmp_path / "converter.py"
    write = "import os, sys; os.makedirs(sys.argv[4]); open(sys.argv[4] + '/{}', 'w').write({})"
    arguments = ["multicam", *lego_arguments(tmp_path, f"{server.url}/lego.zip")[1:]]
    monkeypatch.setattr(download, "CONVERTER", converter)

    failing = write.format("metadata.json", "'half'") + "; sys.exit(3)"
    for program in (failing, write.format("half.png", "'x'")):
        converter.write_text(program)
        assert download.main(arguments) == 2
        assert str(converter) in capfd.readouterr().err
        assert files_under(tmp_path / "nerf_synthetic" / "lego") == scene_files("lego")
        assert not (tmp_path / "nerf_multiscale" / "lego").exists()

    converter.write_text(write.format("metadata.json", "' '.join(sys.argv[1:4])"))
    assert download.main(arguments) == 0
    options = f"--blender_dir {tmp_path}/nerf_synthetic/lego --out_dir"
    multiscale = tmp_path / "nerf_multiscale"
    assert files_under(multiscale) == {"lego/metadata.json": options.encode()}
    assert os.listdir(multiscale) == ["lego"]
    assert len(server.log) == 1

    converter.unlink()
    assert download.main(arguments) == 0, "an existing scene is not made again"


def test_data_gets_every_set(server, tmp_path, monkeypatch):
    converter = tmp_path / "converter.py"
    converter.write_text("import os, sys; os.makedirs(sys.argv[4]);"
                         "open(sys.argv[4] + '/metadata.json', 'w')")
    monkeypatch.setattr(download, "CONVERTER", converter)
    server.files["/blender.zip"] = big_zip(BLENDER_SCENES)
    server.files["/llff.zip"] = big_zip(LLFF_SCENES, "poses_bounds.npy")
    monkeypatch.setenv("NERF_SYNTHETIC_MIRRORS", f"{server.url}/blender.zip")
    monkeypatch.setenv("NERF_LLFF_DATA_MIRRORS", f"{server.url}/llff.zip")
    data_dir = tmp_path / "data"
    assert download.main(["data", "lego", "fern", "--data_dir", str(data_dir)]) == 0
    found = {str(path.relative_to(data_dir)) for path in data_dir.glob("*/[a-z]*")}
    assert found == {"nerf_synthetic/lego", "nerf_llff_data/fern", "nerf_multiscale/lego"}
    assert download.main(["data", "--data_dir", str(data_dir)]) == 0
    assert sorted(os.listdir(data_dir / "nerf_llff_data")) == LLFF_SCENES
    assert sorted(os.listdir(data_dir / "nerf_multiscale")) == BLENDER_SCENES
    assert len(server.log) == 2


def test_built_in_mirrors(monkeypatch):
    """Every scene has several well-formed mirrors; none is a deleted Google Drive file."""
    monkeypatch.setenv("HF_ENDPOINT", "https://hf.example/")
    for scene_set, scenes in ((download.BLENDER, BLENDER_SCENES), (download.LLFF, LLFF_SCENES)):
        monkeypatch.delenv(scene_set.variable, raising=False)
        for scene in scenes:
            mirrors = download.mirrors_of(scene_set, scene, [])
            hosts = {re.match(r"https?://([^/]+)/", mirror.url)[1] for mirror in mirrors}
            assert len(mirrors) >= 3 and len(hosts) >= 2
            assert "hf.example" in hosts and "huggingface.co" not in hosts
            assert all(re.search(r"/[\w.]+\.zip$", mirror.url) for mirror in mirrors)
            assert any(mirror.sha256 for mirror in mirrors)
            for mirror in mirrors:
                assert mirror.sha256 is None or re.fullmatch("[0-9a-f]{64}", mirror.sha256)
                assert "drive.google" not in mirror.url
