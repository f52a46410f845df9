"""Cells of numbers, for quantiles."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_queue.analyses import cells
from fl_queue.errors import MessageError

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


LEAST = 5
#: Edges of cells, which an operator may have chosen.
EDGES = st.lists(st.integers(1, 31), unique=True, max_size=12).map(sorted)


def _counts(found: np.ndarray, edges: list[int]) -> np.ndarray:
    return cells.FineCells(np.array([0, *edges], np.uint64)).counts(found)


@given(st.lists(st.integers(0, 31), min_size=LEAST, max_size=60), EDGES)
def test_counts_of_placed_rows(rows: list[int], edges: list[int]) -> None:
    """Each has no rows or many; no row is lost, and few are on the other side of any edge."""
    found = np.array(rows, np.uint32)
    counted = _counts(cells.placed(found, LEAST), edges)
    assert counted.sum() == len(rows)
    assert not ((counted > 0) & (counted < LEAST)).any()
    assert (abs(np.cumsum(counted) - np.cumsum(_counts(found, edges))) < LEAST).all()


@given(st.lists(st.integers(0, 31), min_size=LEAST, max_size=60), EDGES, EDGES)
def test_two_ways_to_cut_differ_by_many_rows(
    rows: list[int], one: list[int], other: list[int]
) -> None:
    """Also where an operator has made up the sum that the cells are cut by."""
    placed = cells.placed(np.array(rows, np.uint32), LEAST)
    for end in np.cumsum(_counts(placed, one)):
        differences = abs(np.cumsum(_counts(placed, other)) - end)
        assert not ((differences > 0) & (differences < LEAST)).any()


@given(st.lists(st.integers(0, 1 << 31), min_size=LEAST, max_size=60, unique=True))
def test_the_first_and_the_last_row_decide_nothing(rows: list[int]) -> None:
    """A minimum and a maximum are one row's."""
    found = np.array(rows, np.uint32)
    moved = np.sort(found)
    moved[0], moved[-1] = 0, 1 << 31
    assert np.array_equal(cells.placed(found, LEAST), cells.placed(moved, LEAST))


def test_rows_stay_without_a_limit() -> None:
    """A site without a smallest count shows each cell; few rows are in none."""
    found = np.array([3, 1, 2], np.uint32)
    for least in (0, 1):
        assert cells.placed(found, least).tolist() == [1, 2, 3]
    assert not len(cells.placed(found, LEAST))
    assert not len(cells.placed(found[:0], LEAST))


@pytest.mark.parametrize("count", [1 << 40, 1 << 52, (1 << 63) - 1])
def test_counts_whose_sum_is_no_int64(count: int) -> None:
    """As a site that lies may send them: the cells are as many as ever."""
    fine = cells.FineCells.of_counts(np.full(cells.COARSE, count, np.int64))
    assert len(fine) == cells.COARSE


def test_a_negative_count_is_refused() -> None:
    """No sum of counts is one."""
    counts = np.zeros(cells.COARSE, np.int64)
    counts[7] = -1
    with pytest.raises(MessageError, match="negative"):
        cells.FineCells.of_counts(counts)
