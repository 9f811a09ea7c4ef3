"""Reading the files that people bring: kind, size and encoding are checked before the content.

Nothing here waits for a pipe or a device, and nothing is read that is larger than expected.
"""

import json
import os
import re
import reprlib
import stat
from pathlib import Path
from typing import Any

from runtime.errors import UserError, first_line

# Text and tables of a scene are smaller than this; so are the levels of their nested lists.
MAX_BYTES = 1 << 28
MAX_DEPTH = 64

# The longest names and paths of files.
MAX_NAME, MAX_PATH = 255, 4000

# The first names of a HEIC file's contents.
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"}

# Whole numbers of more digits become floats, perhaps infinite ones, so that none overflows later.
MAX_DIGITS = 19

KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
         stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}

# A string up to its end, or a bracket.
STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{\]}]', re.DOTALL)

_short = reprlib.Repr()
_short.maxlist = _short.maxtuple = _short.maxdict = 4
_short.maxstring = _short.maxother = _short.maxlong = 60


def short(value: Any) -> str:
    """`repr(value)` in one line, with the middle of long values left out, for messages."""
    return _short.repr(value.tolist() if hasattr(value, "tolist") else value)


def text(value: Any) -> str:
    """A string that can name a file. Raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError("a string is expected")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("Unicode text without null characters is expected")
    if max(len(part.encode()) for part in value.split("/")) > MAX_NAME or len(value) > MAX_PATH:
        raise ValueError(f"names of at most {MAX_NAME} bytes are expected")
    return value


def check_file(path: str | Path, if_missing: str = "replace it") -> int:
    """The size in bytes of the regular file at `path`, which can be opened for reading.

    if_missing: what to do then. Raises UserError for a missing or unreadable file, for a folder, a
    pipe and a device, none of which is opened, and for a name that no file can have.
    """
    try:
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode):
            with open(path, "rb"):
                return found.st_size
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {if_missing}.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{shown_path(path)} cannot be read ({reason}); replace it.") from None
    kind = KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
    raise UserError(f"{path} is {kind}, and a file is expected; replace it.")


def shown_path(path: str | Path) -> str:
    """A path for messages, shortened if no file can have such a name."""
    text = str(path)
    return text if len(text) < 1000 and text.isprintable() else short(text)


def is_heif(path: str | Path) -> bool:
    """Whether a file is a HEIC image, by its first bytes: phones may call it .jpg."""
    with open(path, "rb") as file:
        start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS


def read_bytes(path: str | Path, if_missing: str = "replace it") -> bytes:
    """The content of a regular file. Raises UserError as `check_file`, and above `MAX_BYTES`."""
    size = check_file(path, if_missing)
    if size > MAX_BYTES:
        raise UserError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are expected.")
    with open(path, "rb") as file:
        return file.read(MAX_BYTES)


def read_json(path: str | Path, if_missing: str = "replace it") -> dict[str, Any]:
    """The object in a JSON file, in any Unicode encoding, with or without a byte order mark.

    Numbers may be infinite or NaN: `runtime.numbers` checks those that are used. Raises UserError
    as `read_bytes`, for invalid JSON, for deep nesting and for anything but an object.
    """
    return parse_json(read_bytes(path, if_missing), path)


def parse_json(content: bytes, path: str | Path) -> dict[str, Any]:
    """`read_json` of a file's content; path: its name in messages."""
    try:
        decoded = content.decode(json.detect_encoding(content))
        if depth_of(decoded) > MAX_DEPTH:
            raise ValueError(f"lists or objects are nested more than {MAX_DEPTH} deep")
        value = json.loads(decoded.removeprefix("\ufeff"), parse_int=_parse_int)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({first_line(error)}); replace it.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}; a JSON object is expected.")
    return value


def depth_of(content: str) -> int:
    """The deepest nesting of brackets in JSON text; those inside strings do not count."""
    depth = deepest = 0
    for match in STRING_OR_BRACKET.finditer(content):
        if match[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in "]}":
            depth -= 1
    return deepest


def _parse_int(digits):
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)
