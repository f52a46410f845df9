"""Counts that a site withholds or joins."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fl_queue.analyses import suppression

LEAST = 10
COUNTS = st.integers(0, 40)


@given(arrays(np.int64, st.integers(1, 8), elements=COUNTS))
def test_a_list_shows_no_small_count(counts: np.ndarray) -> None:
    """Each shown count is 0 or large, and the withheld ones stand for enough rows together."""
    mask = suppression.withheld(counts, LEAST)
    shown = counts[~mask]
    assert not ((shown > 0) & (shown < LEAST)).any()
    if mask.any() and (counts[~mask] > 0).any():
        assert mask.sum() >= 2
        assert counts[mask].sum() >= LEAST


@given(arrays(np.int64, (3, 3), elements=st.integers(0, 6)))
def test_no_withheld_cell_of_a_table_follows_from_its_totals(counts: np.ndarray) -> None:
    """A cell that is alone in its line would follow, and none is."""
    mask = suppression.withheld(counts, 3)
    for axis in (0, 1):
        hidden, filled = mask.sum(axis), (counts > 0).sum(axis)
        rows = np.where(mask, counts, 0).sum(axis)
        alone = (hidden == 1) & (filled > 1)
        assert not alone.any()
        assert not ((hidden > 0) & (hidden < filled) & (rows < 3)).any()


def test_a_known_table() -> None:
    """A withheld cell has others withheld in its row and in its column; then another table fits what is shown, too."""
    counts = np.array([[20, 2, 30], [15, 40, 12], [11, 25, 60]])
    mask = suppression.withheld(counts, LEAST)
    assert mask.tolist() == [[True, True, False], [False] * 3, [True, True, False]]
    changed = counts.copy()
    changed[0, 0] += 1
    changed[0, 1] -= 1
    changed[2, 0] -= 1
    changed[2, 1] += 1
    assert (changed[~mask] == counts[~mask]).all()
    assert (changed.sum(0) == counts.sum(0)).all()
    assert (changed.sum(1) == counts.sum(1)).all()


def test_forced_cells_count_as_withheld() -> None:
    """A cell that is withheld for another reason has another one with it."""
    mask = suppression.withheld(np.array([50, 20, 30]), LEAST, np.array([True, False, False]))
    assert mask.tolist() == [True, True, False]


def test_empty_cells_are_shown() -> None:
    """Also those of a level that is withheld."""
    forced = np.array([True, True])
    assert suppression.withheld(np.array([0, 12]), LEAST, forced).tolist() == [False, True]


@given(arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 15)), st.data())
def test_joined_cells(counts: np.ndarray, data: st.DataObject) -> None:
    """Each has no rows or many; no row is lost, and few are on the other side of any cell."""
    groups = None
    if data.draw(st.booleans()):
        steps = data.draw(arrays(np.int64, len(counts), elements=st.integers(0, 1)))
        groups = np.cumsum(steps)
    found, group_of = suppression.joined(counts, LEAST, groups)
    if counts.sum() < LEAST:
        assert not found.any()
        return
    assert found.sum() == counts.sum()
    assert not ((found > 0) & (found < LEAST)).any()
    most = suppression.moved_at_most(
        counts, LEAST, np.zeros_like(counts) if groups is None else groups
    )
    assert (abs(np.cumsum(counts) - np.cumsum(found)) <= most).all()
    assert (np.diff(group_of) >= 0).all()
    for group in range(group_of.max() + 1):
        assert found[group_of == group].sum() == counts[group_of == group].sum()


@given(arrays(np.int64, 24, elements=st.integers(0, 9)))
def test_cells_of_the_second_step_lie_within_those_of_the_first(counts: np.ndarray) -> None:
    """No difference of two shown sums, one of each step, stands for fewer rows."""
    coarse = counts.reshape(6, 4).sum(1)
    if coarse.sum() < LEAST:
        return
    first, group_of = suppression.joined(coarse, LEAST)
    second, _ = suppression.joined(counts, LEAST, np.repeat(group_of, 4))
    ends = np.cumsum(second)
    for total in np.cumsum(first):
        rest = abs(ends - total)
        assert not ((rest > 0) & (rest < LEAST)).any()


def test_nothing_is_joined_without_a_limit() -> None:
    """A site without a smallest count shows each cell."""
    counts = np.array([0, 1, 5, 0])
    assert suppression.joined(counts, 0)[0].tolist() == counts.tolist()
    assert suppression.joined(counts, 1)[0].tolist() == counts.tolist()
