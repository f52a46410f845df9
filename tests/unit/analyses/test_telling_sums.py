"""Sums that show few rows: a look at some of them decides as a look at all does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_queue.analyses import telling_sums
from fl_queue.analyses.base import Limits


def _plainly_dominated(values: np.ndarray, dominance: float) -> bool:
    """The rule as it is written down, over all rows."""
    if values.min() < 0 or not values.max():
        return False
    first = np.partition(values, max(len(values) - 2, 0))[:-2]
    return bool(first.sum() < dominance / 100 * values.max())


@given(
    st.lists(st.floats(-2, 9), min_size=1, max_size=30), st.floats(0.1, 100), st.integers(0, 2000)
)
def test_a_look_at_some_rows_decides_as_all_do(
    values: list[float], dominance: float, more: int
) -> None:
    """Also where the largest are not among those, and where the sum is next to the rule's limit."""
    found = np.array([*values, *[0.01] * more, 5.0])
    limits = Limits(dominance=dominance)
    for order in (found, found[::-1], np.sort(found)):
        assert telling_sums._is_dominated(order, limits) == _plainly_dominated(order, dominance)
        squares = telling_sums._is_dominated(order, limits, of_squares=True)
        assert squares == _plainly_dominated(order * order, dominance)


@pytest.mark.parametrize("least", [2, 10, 100])
def test_a_glance_is_no_decision_where_numbers_are_few(least: int) -> None:
    """64 rows of many numbers are not all rows; what is nearly constant is found behind them."""
    limits = Limits(min_cell=least)
    assert not telling_sums.is_telling(np.arange(10_000.0), limits)
    assert telling_sums.is_telling(np.array([*[1.0] * 10_000, 2.0]), limits)
    assert telling_sums.is_telling(np.array([2.0, *[1.0] * 10_000]), limits)
