"""Groups whose sums differ by a few rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_queue.analyses.differencing import ALL, Grouping, isolates_few

LEAST = 4
CODES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=25)


@given(CODES)
def test_by_comparing_all_pairs_of_groups(rows: list[tuple[int, int]]) -> None:
    """One within the other, and a few rows between them."""
    left, right = (np.array([row[side] for row in rows], np.int64) for side in (0, 1))
    found = False
    for one in range(4):
        for other in range(4):
            a = {place for place, row in enumerate(rows) if row[0] == one}
            b = {place for place, row in enumerate(rows) if row[1] == other}
            if a and b and (a <= b or b <= a):
                found |= 0 < len(a ^ b) < LEAST
    assert isolates_few(left, right, LEAST) is found


def test_nothing_is_isolated_without_a_limit() -> None:
    """Nor in a table without rows."""
    codes = np.array([0, 0, 1], np.int64)
    assert not isolates_few(codes, np.array([0, 0, 0], np.int64), 1)
    assert not isolates_few(codes[:0], codes[:0], LEAST)


@pytest.mark.parametrize(
    ("other", "is_compared"),
    [
        (Grouping("age", "sex", ("F",)), False),
        (Grouping("age", "sex", ("M",)), True),
        (Grouping("age", "ward", ("F",)), True),
        (Grouping("bmi", "sex", ("M",)), False),
        (Grouping("", "sex", ("M",)), False),
    ],
)
def test_sums_of_one_number_are_compared(other: Grouping, is_compared: bool) -> None:
    """However its rows are grouped."""
    assert Grouping("age", "sex", ("F",)).is_compared(other) is is_compared


def test_counts_are_compared_with_those_of_the_same_category() -> None:
    """With other levels; counts of two categories are what a table of them shows."""
    counted = Grouping("", "sex", ("F",))
    assert counted.is_compared(Grouping("", "sex", ("F", "M")))
    assert not counted.is_compared(Grouping("", "ward", ("F",)))


@pytest.mark.parametrize(
    ("other", "is_compared"),
    [
        (Grouping("age", "", (ALL, "age", "bmi")), True),
        (Grouping("age", "", ("age", "bmi")), False),
        (Grouping("age", "sex", ("F",)), False),
        (Grouping("bmi", "", (ALL, "age", "bmi")), False),
    ],
)
def test_sums_over_all_rows_are_compared_with_those_of_rows_without_a_gap(
    other: Grouping, is_compared: bool
) -> None:
    """Unless those are withheld where they differ by few, as a correlation is."""
    assert Grouping("age", "", ()).is_compared(other) is is_compared
    assert other.is_compared(Grouping("age", "", ())) is is_compared
    assert Grouping("", "", (ALL, "age")).columns == ("age",)
