"""Numbers of files: one check of type, shape and range."""

import math

import numpy as np
import pytest

from runtime.errors import UserError
from runtime.numbers import LARGEST, SMALLEST, check_number, check_numbers

NO_NUMBERS = [None, True, "1", [], {}, {"a": 1}, math.nan, math.inf, -math.inf, 1e300, -1e16,
              10**400, [1], [[1, 2]], [1, 2, 3], [1, None], [1, "2"], [[1], [2, 3]], 1j]


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number_is_one_sentence(value):
    with pytest.raises(UserError, match=r"^a.json has fl_x = .*a finite number below 1e\+15 is"):
        check_number(value, "a.json", "fl_x")


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_pair_of_numbers_is_one_sentence(value):
    message = r"^a.json has size = .*; 2 finite numbers below 1e\+15 are"
    with pytest.raises(UserError, match=message):
        check_numbers(value, (2,), "a.json", "size")


@pytest.mark.parametrize("value,shape", [
    (3, ()), (-2.5, ()), (LARGEST, ()), ([1, 2.5], (2,)), ([[1, 2], [3, 4], [5, 6]], (-1, 2)),
    (np.ones((2, 3)), (2, 3)), ([2**62, 1], (2,)),
])
def test_numbers_are_float64(value, shape):
    if shape == (2,) and value[0] > LARGEST:
        with pytest.raises(UserError):
            check_numbers(value, shape, "a", "b")
        return
    found = check_numbers(value, shape, "a", "b")
    assert found.dtype == np.float64 and np.array_equal(found, value)


def test_ranges_are_in_the_message():
    assert check_number(0.5, "a", "b", low=SMALLEST) == 0.5
    for value in (0, -1, 1e-300):
        with pytest.raises(UserError, match=r"a finite number above 0, below 1e\+15 is expected"):
            check_number(value, "a", "b", low=SMALLEST)
    with pytest.raises(UserError, match="a finite number of radians from 0 to 3 is expected"):
        check_number(4, "a", "angle", low=0, high=3, unit="radians")
    with pytest.raises(UserError, match="N x 3 finite numbers"):
        check_numbers([[1, 2]], (-1, 3), "a", "b")
