"""Download and unpack zip archives: resumable, checked, and safe.

A broken transfer is resumed, a file gets its own name only when it is complete, and an archive's
members cannot leave the folder into which they are unpacked. Standard library only.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import posixpath
import shutil
import ssl
import stat
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

# Attempts without progress before a mirror is given up, and the wait after the first.
ATTEMPTS = 4
WAIT_SECONDS = 1.0

TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 18

# Transient HTTP errors, after which the transfer is retried; others end it at once.
TRANSIENT_ERRORS = (408, 425, 429, 500, 502, 503, 504)

# Exceptions of the zip reader for damaged, encrypted or unsupported archives.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)


class DownloadError(Exception):
    """An error for the user; its text is one sentence."""


class MirrorError(Exception):
    """This mirror failed; the next one may work."""


class BadArchive(MirrorError):
    """The mirror's file is damaged or unsafe."""


class Interrupted(Exception):
    """The connection ended early; resuming may work."""


# Space and progress.


def gigabytes(count: int) -> str:
    """A number of bytes as text."""
    return f"{count / 1e9:.2f} GB"


def check_space(folder: Path, count: int) -> None:
    """Raise DownloadError if `count` bytes would fill the disk: no mirror would fit."""
    free = shutil.disk_usage(folder).free
    if count > free:
        raise DownloadError(
            f"{folder} needs {gigabytes(count)} more but its disk has {gigabytes(free)} free: "
            "make room or choose another place with --data_dir."
        )


def show_progress(name: str, done: int, total: int | None) -> None:
    """Update a line on a terminal; print nothing to logs and pipes."""
    if sys.stderr.isatty():
        part = f"{100 * done / total:5.1f} % of {gigabytes(total)}" if total else gigabytes(done)
        end = "\n" if done == total else ""
        print(f"\r  {name}: {part} ", end=end, file=sys.stderr, flush=True)


# Transfer.


def trusted_certificates() -> ssl.SSLContext:
    """The system's certificates and certifi's, as Python on macOS may have none of its own."""
    context = ssl.create_default_context()
    try:
        import certifi
    except ImportError:
        return context
    context.load_verify_locations(certifi.where())
    return context


def part_of(archive: Path) -> Path:
    """The partial file of an archive."""
    return archive.with_name(archive.name + ".part")


def size_of(path: Path) -> int:
    """The size of a file in bytes, 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def open_from(url: str, start: int) -> http.client.HTTPResponse:
    """Request `url` from byte `start` on."""
    headers = {"User-Agent": "dataset-download"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        request = urllib.request.Request(url, headers=headers)
        context = trusted_certificates()
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=context)
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        raise MirrorError(getattr(error.reason, "strerror", None) or error.reason) from error
    except ValueError as error:
        raise MirrorError("neither a URL nor a local file") from error
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(f"no response, {error or type(error).__name__}") from error


def read_chunk(response: http.client.HTTPResponse) -> bytes:
    """The next bytes, b"" at the end. Network errors become Interrupted, unlike disk errors."""
    try:
        return response.read(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(f"the connection broke, {error or type(error).__name__}") from error


def copy_body(response: http.client.HTTPResponse, part: Path, start: int) -> None:
    """Write a response's body to `part`, from byte `start` on."""
    length = response.headers.get("Content-Length")
    check_space(part.parent, int(length or 0))
    total = start + int(length) if length else None
    done = start
    with open(part, "ab" if start else "wb") as file:
        while chunk := read_chunk(response):
            file.write(chunk)
            done += len(chunk)
            show_progress(part.name, done, total)
    if total is not None and done != total:
        raise Interrupted(f"the connection ended at byte {done} of {total}")


def fetch_rest(url: str, part: Path) -> None:
    """Append the missing rest of `url` to `part`. Raises Interrupted if it ends early."""
    start = size_of(part)
    try:
        response = open_from(url, start)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # The file is complete; the checksum is verified later.
        return
    with response:
        # A server without range support responds with 200 and the whole file.
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise MirrorError("it does not send the requested range")
        copy_body(response, part, start if resumed else 0)


def fetch_all(url: str, part: Path) -> None:
    """Download `url` to the partial file `part`, resuming where the last transfer stopped.

    Raises MirrorError after `ATTEMPTS` failures in a row without progress.
    """
    failures = 0
    while True:
        before = size_of(part)
        try:
            return fetch_rest(url, part)
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code}"
            if error.code not in TRANSIENT_ERRORS:
                raise MirrorError(reason) from error
        except Interrupted as error:
            reason = str(error)
        failures = 1 if size_of(part) > before else failures + 1
        if failures == ATTEMPTS:
            raise MirrorError(reason)
        time.sleep(WAIT_SECONDS * failures)


def check_sha256(path: Path, expected: str | None) -> None:
    """Raise BadArchive if a checksum is expected and `path` has another."""
    if expected is None:
        return
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise BadArchive(f"checksum {digest.hexdigest()[:12]}… instead of {expected[:12]}…")


def fetch(url: str, sha256: str | None, archive: Path) -> None:
    """Download `url` to `archive`, which exists only once it is complete and verified."""
    part = part_of(archive)
    fetch_all(url, part)
    try:
        check_sha256(part, sha256)
    except BadArchive:
        part.unlink()
        raise
    os.replace(part, archive)


# Unpacking.


def check_safe(info: zipfile.ZipInfo) -> None:
    """Raise BadArchive for a member that is a link or would be written outside the folder."""
    parts = info.filename.replace("\\", "/").split("/")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise BadArchive(f"it holds a link, {info.filename}")
    if ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise BadArchive(f"it holds a path outside its own folder, {info.filename}")


def is_junk(name: str) -> bool:
    """Whether `name` is a file that macOS adds to zips."""
    base = posixpath.basename(name)
    return "__MACOSX" in name.split("/") or base.startswith("._") or base == ".DS_Store"


def extract(zipped: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], folder: Path) -> None:
    """Write members to their paths in `folder`; reading a member to its end verifies its CRC."""
    check_space(folder, sum(info.file_size for info in members.values()))
    for name, info in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipped.open(info) as source, open(path, "wb") as file:
            shutil.copyfileobj(source, file)
