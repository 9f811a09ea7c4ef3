"""Command-line flags: declared once, parsed once, resolved into an immutable `Config`.

This module is independent of NeRF. A `Flag` describes one flag completely. A condition is a `dict`
of names and allowed values, such as `{"model": "nerv", "dataset_name": ("llff", "colmap")}`. It
states when a default applies, or when a flag is read.
"""

import argparse
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from runtime import reading
from runtime.errors import UserError
from runtime.reading import short, text

Condition = Mapping[str, Any]
ConfigType = TypeVar("ConfigType", bound="Config")

# Scopes: what may change a flag after a run has started.
FIXED = "fixed"  # Nothing: it determines what was trained.
START = "start"  # Nothing: it only chose defaults, and tools that render a run ignore it.
RESUME = "resume"  # Resumed training.
RENDER = "render"  # Resumed training, and tools that render the run.
SHADE = "shade"  # Only tools that render the run, because training depends on it.
PLACE = "place"  # Anything: it locates the run, and is not saved with it.

# Flags whose range is not stated are below these: counts of steps, and what float32 can square.
LARGEST_INTEGER, LARGEST = 10**9, 1e15

RESUMABLE = frozenset({RESUME, RENDER, PLACE})
RENDERABLE = frozenset({RENDER, SHADE, PLACE, START})


@dataclass(frozen=True)
class Flag:
    """One flag. Its help names what it sets in a few words; help pages add choices and defaults.

    kind: `bool`, `str`, a parser of one value (`integer`, `number`), or the tuple of choices.
    nargs: None, a count, or "+" for several values, which become a tuple.
    only: the condition under which the flag has an effect, and that condition in words.
    scope: what may change it after a run has started.
    before: the value of runs that are older than the flag, if not what their defaults imply.
    unset: the meaning of None, for help pages.
    shown: whether the short help lists it: True, False (for experts), or a condition.
    """

    name: str
    kind: Any
    default: Any
    help: str
    nargs: int | str | None = None
    metavar: str | tuple[str, ...] | None = None
    only: tuple[Condition, str] | None = None
    scope: str = FIXED
    before: Any = ...
    unset: str = ""
    shown: bool | Condition = True

    def is_read(self, config: "Config") -> bool:
        """Whether the flag has an effect under `config`."""
        return self.only is None or holds(self.only[0], config)

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add the flag to a parser, without a default, so that only typed flags are returned."""
        options: dict[str, Any] = {"default": argparse.SUPPRESS}
        if self.kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif isinstance(self.kind, tuple):
            options |= {"choices": self.kind, "type": type(self.kind[0]), "nargs": self.nargs}
        else:
            kind = _text if self.kind is str else self.kind
            options |= {"type": kind, "nargs": self.nargs, "metavar": self.metavar}
        parser.add_argument(f"--{self.name}", **options)

    def from_json(self, value: Any) -> Any:
        """A value from a JSON file, checked as on the command line; may raise ValueError."""
        if value is None and self.default is None:
            return None
        if self.nargs is None:
            return self._item_from_json(value)
        count = len(value) if isinstance(value, list | tuple) else 0
        if count != self.nargs and not (self.nargs == "+" and count):
            expected = "several" if self.nargs == "+" else self.nargs
            raise ValueError(f"expected a list of {expected} numbers")
        return tuple(self._item_from_json(item) for item in value)

    def _item_from_json(self, value: Any) -> Any:
        if isinstance(value, bool) != (self.kind is bool):
            raise ValueError("on/off flags take true or false, other flags do not")
        if self.kind is bool:
            return value
        if self.kind is str:
            return text(value)
        if self.nargs and not isinstance(value, int | float):
            raise ValueError(f"{short(value)} is not a number")
        if not isinstance(self.kind, tuple):
            return self.kind(str(value))
        choice = type(self.kind[0])(value)
        if choice not in self.kind:
            raise ValueError(f"expected one of {', '.join(map(str, self.kind))}")
        return choice


class Config:
    """Resolved flags, one read-only attribute each.

    given: the values from a file or the command line; all others are defaults.
    typed: the names of those among them that were given on the command line.
    """

    __slots__ = ("__dict__", "given", "typed")

    def __init__(self, values: Mapping[str, Any], given: Mapping[str, Any] = {},
                 typed: Iterable[str] = ()):
        self.__dict__.update(values)
        object.__setattr__(self, "given", dict(given))
        object.__setattr__(self, "typed", frozenset(typed))

    if TYPE_CHECKING:
        def __getattr__(self, name: str) -> Any: ...

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"config.{name} cannot be set; use config.replace({name}=...)")

    def __reduce__(self) -> tuple:
        return type(self), (vars(self), self.given, self.typed)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def replace(self: "ConfigType", **changes: Any) -> "ConfigType":
        """A copy with some values changed, and the others as they are.

        Raises UserError for a name that is no flag.
        """
        changes = {name: freeze(value) for name, value in changes.items()}
        check_names(changes, vars(self))
        return type(self)(vars(self) | changes, self.given | changes, self.typed)


def freeze(value: Any) -> Any:
    """A value of a flag, with a tuple in place of a list."""
    return tuple(value) if isinstance(value, list) else value


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise UserError if one of `names` is no flag."""
    for name in sorted(set(names) - set(known)):
        raise UserError(f"there is no flag --{name}{suggestion(name, known)}; "
                        "`python train.py --help all` lists them.")


def suggestion(name: str, known: Iterable[str]) -> str:
    """A hint at the known flag most similar to `name`, or an empty string."""
    import difflib  # Slow to import, and needed only for errors.

    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean --{found[0]}?)" if found else ""


def holds(condition: Condition, config: Config) -> bool:
    """Whether each flag of a condition has the value given there, or one of a tuple of values."""
    return all(getattr(config, name) in (allowed if isinstance(allowed, tuple) else (allowed,))
               for name, allowed in condition.items())


def resolve(flags: Mapping[str, Flag], rows: Iterable[tuple[Condition, dict[str, Any]]],
            given: dict[str, Any], config_type: type[Config] = Config) -> dict[str, Any]:
    """The values of all flags: the default, then the rows whose condition holds, then `given`.

    Rows apply in order: later ones override earlier ones, and a row's condition sees the values
    that the rows before it left.
    """
    values = {name: flag.default for name, flag in flags.items()} | given
    for condition, row in rows:
        if holds(condition, config_type(values)):
            values |= row | given
    return values


def parse(flags: Mapping[str, Flag], argv: Sequence[str] | None
          ) -> tuple[argparse.ArgumentParser, dict[str, Any], str | None]:
    """Parse `argv` (`sys.argv[1:]` if None); returns parser, typed flags and the requested help.

    The help is None, "short" or "all". Exits with status 2 for a wrong command line.
    """
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--flag value ...]; --help lists the flags", add_help=False,
        allow_abbrev=False)
    # argparse takes -1. and -1e3 for flags, not for numbers.
    parser._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
    parser.add_argument("-h", "--help", nargs="?", const="short", choices=("short", "all"))
    for flag in flags.values():
        flag.add_to(parser)
    typed, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].partition("=")[0].lstrip("-")
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{suggestion(name, flags)}")
    values = {name: freeze(value) for name, value in vars(typed).items()}
    return parser, values, values.pop("help")


def read_json(path: str, flags: Mapping[str, Flag]) -> dict[str, Any]:
    """Flags from a JSON file, such as a run's config.json.

    Raises UserError for a file that cannot be read, an unknown flag and an impossible value.
    """
    try:
        values = reading.read_json(path, "give a JSON file of flags")
    except UserError as error:
        raise UserError(f"--config {error}") from None
    unknown = sorted(values.keys() - flags.keys())
    if unknown:
        raise UserError(f"--config {path} holds {', '.join(unknown)}, which is not a flag"
                        f"{suggestion(unknown[0], flags)}; `python train.py --help all` lists "
                        "them.")
    return checked(values, flags, f"--config {path}")


def checked(values: Mapping[str, Any], flags: Mapping[str, Flag], source: str) -> dict[str, Any]:
    """The values of flags from a file. Raises UserError naming `source` for an impossible one."""
    return {name: _value_of(source, flags[name], value) for name, value in values.items()}


def _value_of(source: str, flag: Flag, value: Any) -> Any:
    try:
        return flag.from_json(value)
    except (ValueError, TypeError, OverflowError, argparse.ArgumentTypeError) as error:
        raise UserError(f"{source} has {flag.name} = {short(value)}: {error}.") from None


def _text(value: str) -> str:
    try:
        return text(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{short(value)}: {error}") from None


@dataclass(frozen=True)
class Number:
    """A parser of numbers in [low, high], greater than `above`; argparse calls it."""

    kind: type
    low: float
    high: float
    above: float = -math.inf

    @property
    def metavar(self) -> str:
        """The placeholder of such a number in help."""
        return "N" if self.kind is int else "X"

    def __call__(self, text: str) -> Any:
        try:
            value = self.kind(text)
        except (ValueError, OverflowError):
            value = math.nan
        in_range = self.low <= value <= self.high and value > self.above
        if not (in_range and abs(value) < math.inf):
            found = text if len(text) < 60 else short(text)
            raise argparse.ArgumentTypeError(f"expected {self}, not {found}")
        return value

    def __str__(self) -> str:
        noun = "a whole number" if self.kind is int else "a number"
        if self.above > -math.inf:
            return f"{noun} above {self.above:g}, up to {self.high:g}"
        form = "{:,}" if self.kind is int else "{:g}"
        return f"{noun} from {form.format(self.low)} to {form.format(self.high)}"


@dataclass(frozen=True)
class OneOf:
    """A parser of one of some words, or of a text in another form; argparse calls it.

    pattern: regular expression of that form; form: its description.
    """

    words: tuple[str, ...]
    pattern: str
    form: str

    @property
    def metavar(self) -> str:
        """The placeholder in help."""
        return "|".join(self.words)

    def __call__(self, text: str) -> str:
        if text in self.words or re.fullmatch(self.pattern, text):
            return text
        raise argparse.ArgumentTypeError(
            f"expected {', '.join(self.words)}, {self.form}, not {text}")


def integer(low: float, high: float = LARGEST_INTEGER) -> Number:
    """A parser of whole numbers in [low, high]."""
    return Number(int, low, high)


def number(low: float = -LARGEST, high: float = LARGEST, *, above: float = -math.inf) -> Number:
    """A parser of numbers in [low, high], greater than `above`."""
    return Number(float, low, high, above)
