"""Cells of numbers, for quantiles."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fl_queue.analyses import cells

NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32)


@given(st.lists(NUMBERS, min_size=2, max_size=20))
def test_keys_are_in_the_order_of_the_numbers(values: list[float]) -> None:
    """Equal numbers have one key, and 0.0 that of -0.0."""
    array = np.array(values)
    order = np.argsort(cells.keys(array), kind="stable")
    assert (np.diff(array[order]) >= 0).all()
    assert cells.keys(np.array([0.0]))[0] == cells.keys(np.array([-0.0]))[0]


@given(st.lists(NUMBERS, min_size=1, max_size=60))
def test_each_number_lies_within_the_bounds_of_its_cell(values: list[float]) -> None:
    """And every number is counted once."""
    array = np.array(values)
    found = cells.keys(array)
    fine = cells.FineCells.of_counts(cells.coarse_counts(found))
    counted = fine.counts(found)
    assert counted.sum() == len(values)
    assert len(fine) <= cells.MAX_CELLS
    for value, key in zip(values, found, strict=True):
        cell = int(np.searchsorted(fine.starts, int(key), side="right")) - 1
        low, high = fine.bounds(cell)
        assert low <= value <= high


def test_no_cell_holds_many_rows_of_different_numbers() -> None:
    """About a thousandth each, for numbers that are all different."""
    values = np.random.default_rng(0).normal(50, 12, 200_000)
    found = cells.keys(values)
    fine = cells.FineCells.of_counts(cells.coarse_counts(found))
    assert fine.counts(found).max() <= 2 * len(values) / 1024
    assert len(fine) < 4096


def test_cells_of_no_rows() -> None:
    """One cell, of all numbers."""
    fine = cells.FineCells.of_counts(np.zeros(cells.COARSE, np.int64))
    assert len(fine) == 1
    assert math.isinf(fine.bounds(0)[1]) or fine.bounds(0)[1] > 3e38


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.data())
def test_the_bracket_of_a_rank_holds_its_row(counts: list[int], data: st.DataObject) -> None:
    """Without rows that were moved it is one cell."""
    rows = sum(counts)
    if not rows:
        return
    rank = data.draw(st.integers(0, rows - 1))
    where = [cell for cell, count in enumerate(counts) for _ in range(count)]
    assert cells.rank_bracket(np.array(counts), rank, 0) == (where[rank], where[rank])
    first, last = cells.rank_bracket(np.array(counts), rank, 2)
    assert (first, last) == (where[max(rank - 2, 0)], where[min(rank + 2, rows - 1)])
