"""Loops over rows: the bits of numpy and of Python without a compiler."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_queue.analyses import cells, exact_digits, loops

_MAGNITUDE = st.floats(2.0**-64, 2.0**64, exclude_max=True)
VALUE = st.one_of(st.just(0.0), st.just(-0.0), _MAGNITUDE, _MAGNITUDE.map(lambda value: -value))
ROWS = st.lists(st.tuples(VALUE, VALUE, st.integers(0, 2)), max_size=40)


def _words(left: np.ndarray, right: np.ndarray, places: np.ndarray) -> list[np.ndarray]:
    return [
        exact_digits.sums(left, places, 3),
        exact_digits.product_sums(left, right, places, 3),
        exact_digits.product_sums(left, left, places, 3),
    ]


@given(ROWS)
def test_words_are_those_of_numpy(rows: list[tuple[float, float, int]]) -> None:
    """Of values, products and squares, by group; a site without numba sends the same."""
    left, right = (np.array([row[i] for row in rows], np.float64) for i in (0, 1))
    places = np.array([row[2] for row in rows], np.intp)
    compiled = _words(left, right, places)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "compiled", lambda: None)
        plain = _words(left, right, places)
    for ours, numpys in zip(compiled, plain, strict=True):
        assert np.array_equal(ours, numpys)


def test_extremes_of_the_window() -> None:
    """The smallest and the largest products, whose errors are smaller still."""
    small, large = np.nextafter(2.0**-64, 1), np.nextafter(2.0**64, 0)
    left = np.array([small, large, small, -large, large])
    right = np.array([small, large, large, small, -large])
    places = np.array([0, 0, 1, 1, 2], np.intp)
    compiled = _words(left, right, places)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "compiled", lambda: None)
        for ours, numpys in zip(compiled, _words(left, right, places), strict=True):
            assert np.array_equal(ours, numpys)


@given(st.lists(st.integers(0, 12), max_size=60), st.integers(1, 9))
def test_edges_are_those_without_a_compiler(found: list[int], least: int) -> None:
    """Groups of equal keys are not cut, and none has fewer rows than it must."""
    keys = np.array(found, np.uint32)
    if len(keys) < least:
        return
    placed = cells.placed(keys, least)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "compiled", lambda: None)
        assert np.array_equal(cells.placed(keys, least), placed)
    assert np.unique(placed, return_counts=True)[1].min() >= least


def test_columns_that_are_not_contiguous() -> None:
    """A row of a table that was read by columns, or every second value."""
    table = np.arange(40.0).reshape(20, 2)
    places = np.zeros(20, np.intp)
    found = exact_digits.product_sums(table[:, 0], table[:, 1], places, 1)
    assert exact_digits.value_of(found[0], exact_digits.PRODUCTS) == int(
        (table[:, 0] * table[:, 1]).sum()
    )
