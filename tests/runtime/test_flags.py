"""Flags by themselves: parsing, JSON, conditional defaults, the immutable config."""

import argparse
import copy
import json
import math
import pickle

import pytest

from runtime.errors import UserError
from runtime.flags import Config, Flag, holds, integer, number, parse, read_json, resolve

FLAGS = {flag.name: flag for flag in [
    Flag("size", integer(1, 64), 8, "a size"),
    Flag("rate", number(above=0), 0.5, "a rate"),
    Flag("shape", ("cone", "cylinder"), "cone", "a shape"),
    Flag("count", (1, 6), 6, "a count"),
    Flag("widths", integer(1), (4, 5), "widths", nargs="+"),
    Flag("range", number(), None, "a range", nargs=2, metavar=("FROM", "TO")),
    Flag("fast", bool, False, "whether it is fast"),
    Flag("name", str, None, "a name"),
    Flag("folder", str, "log", "a folder"),
]}


def typed(*words):
    return parse(FLAGS, words)[1]


def test_only_what_was_typed_is_returned():
    assert typed() == {}
    assert typed("--size", "8", "--no-fast") == {"size": 8, "fast": False}
    assert typed("--widths", "1", "2", "--range", "-1", "2.5", "--count", "1") == {
        "widths": (1, 2), "range": (-1.0, 2.5), "count": 1}


@pytest.mark.parametrize("text", ["-1", "-1.", "-.5", "-1e-1", "-2.5E+0"])
def test_negative_numbers_may_be_written_in_any_way(text):
    assert typed("--range", text, "1") == {"range": (float(text), 1.0)}


@pytest.mark.parametrize("words,message", [
    (["--size", "0"], "expected a whole number from 1 to 64, not 0"),
    (["--size", "2.5"], "expected a whole number from 1 to 64, not 2.5"),
    (["--rate", "0"], "expected a number above 0, up to 1e+15, not 0"),
    (["--rate", "inf"], "expected a number above 0"), (["--rate", "nan"], "--rate"),
    (["--widths", "0"], "expected a whole number from 1 to 1,000,000,000, not 0"),
    (["--widths"], "--widths"), (["--range", "1"], "--range"),
    (["--range", "0", "inf"], "expected a number from -1e+15 to 1e+15"),
    (["--shape", "cube"], "cylinder"), (["--count", "3"], "--count"),
    (["--range", "0", "1e300"], "expected a number from -1e+15 to 1e+15, not 1e300"),
    (["--widths", "1" * 5000], "not '1111"), (["--widths", "1" * 30], "1,000,000,000"),
    (["--name", "a\0b"], "--name"), (["--folder", "\udcff"], "--folder"),
    (["--siz", "3"], "did you mean --size?"), (["--no-size"], "--no-size"),
    (["--nothing_like_it=3"], "--nothing_like_it"), (["stray"], "stray"), (["--help", "no"], "all"),
])
def test_a_wrong_command_line_says_what_is_expected_and_exits_with_status_2(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        typed(*words)
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_help_may_stand_anywhere():
    for words, kind in (([], None), (["--help"], "short"), (["-h", "--size", "2"], "short"),
                        (["--size", "2", "--help", "all"], "all")):
        assert parse(FLAGS, words)[2] == kind


def test_whole_numbers_may_be_larger_than_any_float():
    assert integer(0, math.inf)("9" * 400) == int("9" * 400)
    with pytest.raises(argparse.ArgumentTypeError):
        integer(0, 2**63 - 1)(str(2**63))


@pytest.mark.parametrize("values", [
    {"size": 3, "rate": 2, "shape": "cylinder", "fast": True, "name": None},
    {"widths": [1, 2, 3], "range": [-1, 2.5], "count": 1, "name": "x"}, {"range": None}, {},
])
def test_a_file_gives_what_the_command_line_would(values, tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(values))
    lists = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    assert read_json(path, FLAGS) == lists


@pytest.mark.parametrize("text,message", [
    ('{"size": 0}', "size = 0: expected a whole number"), ('{"size": true}', "true or false"),
    ('{"size": null}', "size = None"), ('{"size": [1]}', "size ="), ('{"size": 2.5}', "size ="),
    ('{"fast": "no"}', "true or false"), ('{"fast": 1}', "true or false"),
    ('{"name": 5}', "a string is expected"), ('{"folder": null}', "a string is expected"),
    ('{"shape": "cube"}', "expected one of cone, cylinder"),
    ('{"count": 3}', "expected one of 1, 6"), ('{"range": [1]}', "a list of 2 numbers"),
    ('{"range": 3}', "a list of 2 numbers"), ('{"range": ["a", 1]}', "is not a number"),
    ('{"range": [1, Infinity]}', "1e+15"), ('{"widths": []}', "a list of several numbers"),
    ('{"widths": 7}', "a list"), ('{"widths": ["512"]}', "is not a number"),
    ('{"widths": [null, 5]}', "is not a number"), ('{"widths": [true]}', "true or false"),
    ('{"widths": [0]}', "from 1 to"), ('{"siz": 3}', "did you mean --size?"),
    ('{"name": "a\\u0000b"}', "null characters"), ('{"name": "\\ud800"}', "Unicode"),
    ('{"size": 1%s}' % ("0" * 400), "size = inf"), ('{"rate": 1e300}', "rate = 1e+300"),
    ("[1]", "holds a list"), ("{", "not valid JSON"), ("[" * 100_000, "nested"),
])
def test_wrong_files_are_one_sentence(text, message, tmp_path):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_json(path, FLAGS)
    assert message in str(error.value) and str(path) in str(error.value)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="none.json is missing; give a JSON file"):
        read_json(tmp_path / "none.json", FLAGS)


def test_later_rows_win_and_given_values_win_over_all():
    rows = [({"shape": "cone"}, {"size": 1, "rate": 1.0}), ({}, {"size": 2}),
            ({"shape": ("cube", "cylinder")}, {"size": 3})]
    assert resolve(FLAGS, rows, {})["size"] == 2
    assert resolve(FLAGS, rows, {"shape": "cylinder"})["size"] == 3
    assert resolve(FLAGS, rows, {"size": 7}) | {"rate": 0.5} == resolve(FLAGS, [], {"size": 7})


def test_a_condition_sees_the_rows_above_it_but_not_what_a_given_value_replaced():
    rows = [({"fast": True}, {"shape": "cylinder"}), ({"shape": "cylinder"}, {"size": 3})]
    assert resolve(FLAGS, rows, {"fast": True})["size"] == 3
    assert resolve(FLAGS, rows, {"fast": True, "shape": "cone"})["size"] == 8
    assert resolve(FLAGS, rows[::-1], {"fast": True})["size"] == 8


def test_a_config_cannot_be_changed():
    config = Config({"size": 1}, {"size": 1}, ["size"])
    with pytest.raises(AttributeError, match="config.replace"):
        config.size = 2
    with pytest.raises(AttributeError):
        config.new = 2
    assert config.size == 1 and config.typed == {"size"}


def test_replace_gives_another_config_and_knows_the_names():
    config = Config({"size": 1, "widths": (1,)}, {"size": 1}, ["size"])
    other = config.replace(widths=[2, 3])
    assert (config.widths, other.widths, other.given) == ((1,), (2, 3),
                                                          {"size": 1, "widths": (2, 3)})
    assert other.typed == {"size"} and config.given == {"size": 1}
    with pytest.raises(UserError, match="no flag --widt.*did you mean --widths"):
        config.replace(widt=3)


def test_configs_can_be_compared_copied_and_sent_to_another_process():
    config = Config({"size": 1}, {"size": 1}, ["size"])
    for twin in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config and (twin.given, twin.typed) == (config.given, config.typed)
    assert config != config.replace(size=2)


def test_conditions_hold_for_a_value_or_one_of_several():
    config = Config({"shape": "cone", "size": 1})
    assert holds({}, config) and holds({"shape": "cone"}, config)
    assert holds({"shape": ("cube", "cone"), "size": 1}, config)
    assert not holds({"shape": ("cube", "cone"), "size": 2}, config)


def test_ranges_hold_at_their_ends():
    assert number(0, 1)("1") == 1 and number(0, 1)("0") == 0 and math.isclose(number()("-3"), -3)
    for parser, text in ((number(0, 1), "1.0001"), (number(above=0), "0"), (integer(2), "1")):
        with pytest.raises(argparse.ArgumentTypeError):
            parser(text)
