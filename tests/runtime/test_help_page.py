"""The help page: a line per flag, and only the flags that a script's user needs."""

import pytest

from runtime.flags import FIXED, RENDER, Config, Flag, integer
from runtime.help_page import Script, help_page, print_help

GROUPS = {
    "model": [
        Flag("size", integer(1), 8, "a size"),
        Flag("shape", ("cone", "cylinder"), "cone", "a shape"),
        Flag("widths", integer(1), (4, 5), "widths", nargs="+"),
        Flag("range", integer(1), None, "a range", nargs=2, metavar=("FROM", "TO"), unset="all"),
        Flag("fast", bool, True, "whether it is fast", scope=RENDER),
        Flag("expert", integer(1), 8, "for experts", shown=False),
        Flag("angle", integer(1), 8, "of cones", only=({"shape": "cone"}, "cones")),
        Flag("height", integer(1), 8, "of cylinders", shown={"shape": "cylinder"}),
    ],
    "video": [Flag("fps", integer(1), 30, "a speed"), Flag("zoom", integer(1), 2, "a zoom")],
}
SCRIPT = Script("Train.", ("model",))


def page(script=SCRIPT, everything=False, **values):
    defaults = {flag.name: flag.default for group in GROUPS.values() for flag in group}
    return help_page(script, GROUPS, Config(defaults | values), everything)


def listed(text):
    words = [line.split()[0] for line in text.splitlines() if line.startswith("  -")]
    return [word.removeprefix("--").removeprefix("[no-]") for word in words]


def test_a_flag_is_a_line_with_its_operand_and_the_value_it_would_have():
    lines = page(size=3).splitlines()
    assert "  --size N                      a size (3)" in lines
    assert "  --shape cone|cylinder         a shape (cone)" in lines
    assert "  --widths N ...                widths (4 5)" in lines
    assert "  --range FROM TO               a range (all)" in lines
    assert "  --[no-]fast                   whether it is fast (on)" in lines


def test_a_page_lists_what_the_script_and_the_configuration_read():
    assert listed(page()) == ["size", "shape", "widths", "range", "fast", "angle"]
    assert listed(page(shape="cylinder")) == ["size", "shape", "widths", "range", "fast", "height"]
    assert "lists 4 more" in page()
    assert listed(page(Script("", ("model",), frozenset({RENDER})))) == ["fast"]
    assert listed(page(Script("", ("model",), frozenset({FIXED}), also=("zoom",),
                              hidden=("size", "range")))) == ["shape", "widths", "angle", "zoom"]


def test_everything_is_everything():
    text = page(everything=True)
    assert listed(text) == [flag.name for group in GROUPS.values() for flag in group]
    assert "more" not in text


def test_printing_help_ends_the_script(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["folder/train.py"])
    with pytest.raises(SystemExit) as ended:
        print_help(SCRIPT, {"model": [Flag("size", integer(1), 8, "a size")]}, Config({"size": 1}),
                   False)
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: train.py [--flag value ...]\nTrain.\nmodel:")
