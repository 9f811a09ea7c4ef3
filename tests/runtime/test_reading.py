"""Reading files: what is no file is refused at once, and JSON is checked before it is parsed."""

import json
import math
import os
import socket
import time

import pytest

from runtime import reading
from runtime.errors import UserError
from runtime.reading import check_file, depth_of, read_bytes, read_json, short, text


def make_socket(path, monkeypatch):
    monkeypatch.chdir(path.parent)  # A socket's address must be short.
    socket.socket(socket.AF_UNIX).bind(path.name)


KINDS = {
    "a folder": lambda path, _: path.mkdir(),
    "a named pipe": lambda path, _: os.mkfifo(path),
    "a socket": make_socket,
    "a device": lambda path, _: path.symlink_to("/dev/zero"),
    "is missing": lambda path, _: None,
    "cannot be read": lambda path, _: path.symlink_to(path.name),
}


@pytest.mark.parametrize("message", KINDS)
@pytest.mark.parametrize("read", [check_file, read_bytes, read_json])
def test_what_is_no_file_is_refused_without_waiting(read, message, tmp_path, monkeypatch, alarm):
    path = tmp_path / "file"
    KINDS[message](path, monkeypatch)
    with pytest.raises(UserError, match=f"{path} .*{message}|{path} {message}"):
        read(path)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "a" * 5000])
def test_impossible_names_are_one_short_sentence(name):
    with pytest.raises(UserError, match="cannot be read") as error:
        check_file(name)
    assert len(str(error.value)) < 300 and str(error.value).isprintable()


def test_files_above_the_limit_are_not_read(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"12345")
    assert check_file(tmp_path / "a") == 5 and read_bytes(tmp_path / "a") == b"12345"
    monkeypatch.setattr(reading, "MAX_BYTES", 4)
    with pytest.raises(UserError, match="has 5 bytes; at most 4 are expected"):
        read_bytes(tmp_path / "a")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_is_read_in_any_unicode_encoding(encoding, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('{"name": "é[", "n": [1, -2.5]}'.encode(encoding))
    assert read_json(path) == {"name": "é[", "n": [1, -2.5]}


@pytest.mark.parametrize("content,message", [
    (b"", "is not valid JSON"), (b"[1]", "holds a list"), (b'{"a": "\xe9"}', "is not valid JSON"),
    (b"[" * 200_000, "nested more than 64 deep"), (b'{"a":' * 200_000, "nested more than 64 deep"),
    (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", "nested more than 64 deep"),
    (b'{"a": 1} x', "is not valid JSON"), (b"\x89PNG\r\n\x1a\n", "is not valid JSON"),
])
def test_wrong_json_is_one_sentence(content, message, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "a.json")


def test_whole_numbers_are_exact_or_become_floats(tmp_path):
    path = tmp_path / "a.json"
    numbers = {"a": str(2**63 - 1), "b": "1" + 29 * "0", "c": "1" + 400 * "0", "d": "1e999",
               "e": "-1" + 5000 * "0"}
    path.write_text("{" + ", ".join(f'"{name}": {text}' for name, text in numbers.items()) + "}")
    values = read_json(path)
    assert values == {"a": 2**63 - 1, "b": 1e29, "c": math.inf, "d": math.inf, "e": -math.inf}
    assert type(values["a"]) is int


@pytest.mark.parametrize("content,depth", [
    ("3", 0), ("[]", 1), ('{"a": [[1], [2]]}', 3), ('["[[["]', 1), (r'["\"[[", [1]]', 2),
    ('["[[[', 1), ("]]][", 0),
])
def test_depth_counts_brackets_outside_strings(content, depth):
    assert depth_of(content) == depth


def test_depth_takes_linear_time():
    content = '["' + r"\"" * 500_000
    start = time.perf_counter()
    assert depth_of(content) == 1
    assert time.perf_counter() - start < 5


def test_values_in_messages_are_short():
    assert short(3.5) == "3.5" and short("x") == "'x'" and short(None) == "None"
    nested = json.loads("[" * 60 + "]" * 60)
    for value in ("a" * 9999, list(range(9999)), nested, {"a": nested}, 10**4000, object()):
        assert len(short(value)) < 400


@pytest.mark.parametrize("value", [None, 3, ["a"], "a\0b", "\ud800", "a" * 256, "é" * 128,
                                   "ab/" * 2000])
def test_text_names_a_file(value):
    assert text("é ü/1.png") == "é ü/1.png"
    with pytest.raises(ValueError, match="expected"):
        text(value)
