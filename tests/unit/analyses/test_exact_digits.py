"""Exact sums of float64 and of products."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_queue.analyses import exact_digits
from fl_queue.analyses.exact_digits import PRODUCTS, VALUES

_MAGNITUDE = st.floats(2.0**-64, 2.0**64, exclude_max=True)
VALUE = st.one_of(st.just(0.0), _MAGNITUDE, _MAGNITUDE.map(lambda value: -value))


def _of(values: list[float], window: exact_digits.Window) -> np.ndarray:
    array, places = np.array(values, np.float64), np.zeros(len(values), np.intp)
    if window is VALUES:
        return exact_digits.sums(array, places, 1)[0]
    return exact_digits.product_sums(array, array, places, 1)[0]


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (VALUES, [0, 0, 1234803200, 1194000908, -1410053062, -2, 0, 0]),
        (
            PRODUCTS,
            [
                *(0, 0, 0, 0, -171704320, -74490839, 1326225751, 1802529042),
                *(1814408725, 1808227885, 5, 0, 0, 0),
            ],
        ),
    ],
)
def test_words_of_five_numbers(window: exact_digits.Window, words: list[int]) -> None:
    """The words are a format that two machines agree on."""
    assert _of([0.1, 0.2, 0.3, -1e10, 12345.678], window).tolist() == words


@given(st.lists(VALUE, max_size=40))
def test_sums_are_those_of_fractions(values: list[float]) -> None:
    """No rounding: neither of values nor of squares."""
    assert exact_digits.value_of(_of(values, VALUES), VALUES) == sum(map(Fraction, values))
    squares = sum(Fraction(value) ** 2 for value in values)
    assert exact_digits.value_of(_of(values, PRODUCTS), PRODUCTS) == squares


@given(st.lists(st.tuples(VALUE, VALUE, st.integers(0, 2)), max_size=30))
def test_products_by_group(rows: list[tuple[float, float, int]]) -> None:
    """Each group has the sum of its own rows."""
    left, right = (np.array([row[i] for row in rows], np.float64) for i in (0, 1))
    places = np.array([row[2] for row in rows], np.intp)
    found = exact_digits.product_sums(left, right, places, 3)
    for group in range(3):
        wanted = sum((Fraction(x) * Fraction(y) for x, y, g in rows if g == group), Fraction(0))
        assert exact_digits.value_of(found[group], PRODUCTS) == wanted


@given(st.lists(VALUE, max_size=30), st.integers(0, 30))
def test_words_of_parts_add_up(values: list[float], cut: int) -> None:
    """The number behind added words is that of all values, in any order."""
    whole = exact_digits.value_of(_of(values[::-1], VALUES), VALUES)
    parts = _of(values[:cut], VALUES) + _of(values[cut:], VALUES)
    assert exact_digits.value_of(parts, VALUES) == whole


def test_many_values_carry() -> None:
    """Words stay small, however many values there are."""
    words = _of([2.0**63] * 100_000, VALUES)
    assert abs(words[:-1]).max() <= 2**31
    assert exact_digits.value_of(words, VALUES) == 100_000 * 2**63


@pytest.mark.parametrize("value", [2.0**64, -(2.0**64), 2.0**-65, 5e-324, float("inf"), np.nan])
def test_values_outside_of_the_window(value: float) -> None:
    """They are found before anything is added."""
    assert not exact_digits.are_summable(np.array([1.0, value]))


def test_values_at_the_ends_of_the_window() -> None:
    """The smallest and the largest can be summed."""
    assert exact_digits.are_summable(np.array([0.0, 2.0**-64, -np.nextafter(2.0**64, 0)]))
