"""Numbers from the files that people bring: type, shape and range, checked in one place."""

from typing import Any

import numpy as np

from runtime.errors import UserError
from runtime.reading import short

# Larger numbers, or smaller ones that are divided by, overflow float32 in products and squares.
LARGEST = 1e15
SMALLEST = 1 / LARGEST


def check_numbers(value: Any, shape: tuple[int, ...], source: Any, key: str, *,
                  low: float = -LARGEST, high: float = LARGEST, unit: str = "") -> np.ndarray:
    """`value`, a number or nested lists of numbers, as float64 of a `shape`; -1 is any length.

    source, key, unit: the file, the entry in it and its unit, for messages. Raises UserError for
    anything else: strings, null, truth values, ragged lists, NaN, and numbers outside [low, high].
    """
    try:
        array = np.asarray(value)
        array = array.astype(np.float64) if array.dtype.kind in "iuf" else np.empty(0)
    except (ValueError, TypeError, OverflowError):
        array = np.empty(0)
    fits = len(array.shape) == len(shape) and all(
        side in (-1, found) for side, found in zip(shape, array.shape, strict=True))
    if not (fits and array.size and ((array >= low) & (array <= high)).all()):
        raise UserError(f"{source} has {key} = {short(value)}; "
                        f"{_expected(shape, low, high, unit)}.")
    return array


def check_number(value: Any, source: Any, key: str, *, low: float = -LARGEST,
                 high: float = LARGEST, unit: str = "") -> float:
    """A number as a float; raises UserError as `check_numbers`. unit: for the message."""
    return float(check_numbers(value, (), source, key, low=low, high=high, unit=unit))


def _expected(shape, low, high, unit):
    """The sentence about what a value should be."""
    span = f"from {low:g} to {high:g}"
    if high == LARGEST:
        span = {-LARGEST: f"below {LARGEST:g}", SMALLEST: f"above 0, below {LARGEST:g}"}.get(
            low, span)
    noun = f"finite number{'s' if shape else ''}{unit and ' of ' + unit} {span}"
    if not shape:
        return f"a {noun} is expected"
    sides = " x ".join("N" if side == -1 else str(side) for side in shape)
    return f"{sides} {noun} are expected"
