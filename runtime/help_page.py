"""The page that `--help` prints: one line per flag, only flags that matter to one script."""

import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from runtime.flags import FIXED, PLACE, RENDER, RESUME, SHADE, START, Config, Flag, holds

# Columns of the page, and of its left part.
WIDTH = 100
LEFT = 30


@dataclass(frozen=True)
class Script:
    """A command's help page.

    purpose: what it does, in a sentence; groups, scopes: it lists flags of these groups that have
    one of these scopes; also, hidden: names of flags that it lists besides, or does not list.
    """

    purpose: str
    groups: tuple[str, ...]
    scopes: frozenset[str] = frozenset({FIXED, START, RESUME, RENDER, SHADE, PLACE})
    also: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()


def print_help(script: Script, groups: Mapping[str, Iterable[Flag]], config: Config,
               everything: bool) -> NoReturn:
    """Print a script's help page, with the values of `config` as defaults, and exit."""
    program = sys.argv[0].rpartition("/")[2]
    print(f"usage: {program} [--flag value ...]\n{help_page(script, groups, config, everything)}")
    sys.exit(0)


def help_page(script: Script, groups: Mapping[str, Iterable[Flag]], config: Config,
              everything: bool) -> str:
    """The text of a help page; `everything` lists all flags, not only the script's common ones."""
    sections, hidden = [], 0
    for title, group in groups.items():
        group = list(group)
        listed = [flag for flag in group if everything or _is_listed(flag, title, script, config)]
        hidden += len(group) - len(listed)
        if listed:
            lines = [_entry(flag, getattr(config, flag.name)) for flag in listed]
            sections.append("\n".join([f"{title}:", *lines]))
    more = [f"`--help all` lists {hidden} more: for experts, other models, formats and scripts."]
    return "\n".join([textwrap.fill(script.purpose, WIDTH), *sections, *more[:hidden]])


def _is_listed(flag: Flag, title: str, script: Script, config: Config) -> bool:
    belongs = title in script.groups and flag.scope in script.scopes or flag.name in script.also
    shown = flag.shown if isinstance(flag.shown, bool) else holds(flag.shown, config)
    return belongs and flag.name not in script.hidden and shown and flag.is_read(config)


def _entry(flag: Flag, value: Any) -> str:
    """The line of one flag: name, operand, what it sets, and the value it would have."""
    name = f"  --{'[no-]' if flag.kind is bool else ''}{flag.name}{_operand(flag)}"
    value = flag.unset if value is None else _in_words(value)
    text = f"{flag.help} ({value})" if value else flag.help
    return textwrap.fill(text, WIDTH, initial_indent=f"{name:{LEFT}}  ",
                         subsequent_indent=" " * (LEFT + 2), break_long_words=False)


def _operand(flag: Flag) -> str:
    """The text after the flag's name: a placeholder or the choices."""
    if flag.kind is bool:
        return ""
    if isinstance(flag.kind, tuple):
        word = "|".join(map(str, flag.kind))
    elif isinstance(flag.metavar, tuple):
        word = " ".join(flag.metavar)
    else:
        word = flag.metavar or getattr(flag.kind, "metavar", "TEXT")
    return f" {word} ..." if flag.nargs == "+" else f" {word}"


def _in_words(value: Any) -> str:
    """A value as it would be typed; on or off for booleans."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(_in_words, value))
    return str(value).removesuffix(".0")
