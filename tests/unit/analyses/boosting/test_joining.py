"""Joined cells of a site's histograms: in no cell does a node have few rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_queue.analyses.boosting import joining
from fl_queue.analyses.boosting.grid import Grid
from fl_queue.analyses.boosting.growth import Growth
from fl_queue.analyses.boosting.nodes import Split
from fl_queue.errors import PolicyRefusal
from fl_queue.protocol.arrays import Float32s, Int64s

LEAST = 5


def _edges(count: int) -> Float32s:
    return np.arange(count, dtype=np.float32)


GRID = Grid((_edges(6), _edges(0)), (3,))


def _bins(rows: int, seed: int) -> np.ndarray:
    """Bins of rows, some of them missing; most rows are in few bins."""
    rng = np.random.default_rng(seed)
    columns = [
        rng.choice(int(most) + 1, rows, p=rng.dirichlet(np.full(int(most) + 1, 0.4)))
        for most in GRID.bins
    ]
    return np.array(columns, np.uint8).T.copy()


SPLITS = st.builds(
    Split,
    column=st.integers(0, 2),
    bin=st.integers(0, 6),
    default_left=st.booleans(),
    categories=st.integers(0, 7),
    gain=st.just(1.0),
).filter(lambda split: split.bin < GRID.bins[split.column])


def _growth(bins: np.ndarray, least: int = LEAST) -> Growth:
    rows = np.arange(len(bins), dtype=np.int32)
    # Powers of two: each sum shows its rows.
    gradients, hessians = rows.astype(np.int64) - 7, np.ones(len(bins), np.int64)
    return Growth(GRID, bins, gradients, hessians, rows, least)


def _by_column(sums: Int64s) -> np.ndarray:
    return np.add.reduceat(sums, GRID.starts[:-1], axis=1)


@settings(max_examples=40)
@given(st.integers(LEAST, 80), st.integers(0, 2**32), st.lists(SPLITS, min_size=7, max_size=7))
def test_no_sum_of_a_tree_is_of_few_rows(rows: int, seed: int, splits: list[Split]) -> None:
    """Nor is a difference of two of them: of a cell of a parent and what is in it of a child."""
    growth, left = _growth(_bins(rows, seed)), list(splits)
    parents = growth.sums()
    for level in range(3):
        growth.split([left.pop() for _ in range(1 << level)])
        children = growth.sums()
        counts = children[..., 1]
        assert not ((counts > 0) & (counts < LEAST)).any()
        # All columns of a node have the same rows, which are those that are in it.
        assert (_by_column(counts) == [[rows] * 3 for rows in growth.rows]).all()
        for place, parent in enumerate(parents):
            both = children[2 * place] + children[2 * place + 1]
            assert (_by_column(both[None]) == _by_column(parent[None])).all()
            _check_nested(parent[:, 1], both[:, 1])
            # The cells of both children are joined together: they have the rows of whole cells of the parent.
            rest = np.abs(np.cumsum(parent[:, 1]) - np.cumsum(both[:, 1]))
            assert not ((rest > 0) & (rest < LEAST)).any()
        parents = children


def _check_nested(parent: Int64s, children: Int64s) -> None:
    """Each cell of the children together has the rows of some cells of the parent."""
    for start, stop in zip(GRID.starts[:-1], GRID.starts[1:], strict=True):
        assert parent[start:stop].sum() == children[start:stop].sum()
        assert np.count_nonzero(children[start:stop]) <= np.count_nonzero(parent[start:stop])


@given(
    st.lists(
        st.lists(st.sampled_from([0, 0, 1, 2, 5, 6, 30]), min_size=8, max_size=8),
        min_size=1,
        max_size=2,
    )
)
def test_joined_cells(counts: list[list[int]]) -> None:
    """Of any nodes of no rows or many."""
    grid = Grid((_edges(6),))
    found = np.array(counts, np.int64)
    totals = found.sum(axis=1)
    if ((totals > 0) & (totals < LEAST)).any():
        return
    cells = joining.joined(found, grid, LEAST)
    for node in found:
        joined = joining.folded(node[:, None], cells)[:, 0]
        assert not ((joined > 0) & (joined < LEAST)).any()
        assert joined.sum() == node.sum()
    # A joined cell is a range of cells, with or without that of missing values.
    assert (np.diff(cells[:-1]) >= 0).all()


def test_cells_stay_without_a_limit() -> None:
    """The exact mode."""
    counts = np.ones((1, GRID.cells), np.int64)
    assert joining.joined(counts, GRID, 1).tolist() == list(range(GRID.cells))


def test_missing_values_alone() -> None:
    """They stay in their cell where they are many, and join the last cell where they are few."""
    grid = Grid((_edges(1),))
    assert joining.joined(np.array([[9, 9, 9]]), grid, LEAST).tolist() == [0, 1, 2]
    assert joining.joined(np.array([[9, 9, 2]]), grid, LEAST).tolist() == [0, 1, 1]
    assert joining.joined(np.array([[9, 2, 9]]), grid, LEAST).tolist() == [0, 0, 2]
    assert joining.joined(np.array([[2, 0, 9]]), grid, LEAST).tolist() == [2, 2, 2]


def test_a_sample_of_few_rows_is_of_none() -> None:
    """A root of fewer rows shows nothing."""
    growth = _growth(np.zeros((LEAST - 1, 3), np.uint8))
    assert not growth.sums().any()


def test_histograms_are_looked_at_before_they_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the joining has an error nothing is shown."""
    monkeypatch.setattr(joining, "joined", lambda counts, grid, least: np.arange(grid.cells))
    bins = np.array([[0, 0, 0]] * 9 + [[1, 0, 0]], np.uint8)
    with pytest.raises(PolicyRefusal, match="too few rows"):
        _growth(bins).sums()
