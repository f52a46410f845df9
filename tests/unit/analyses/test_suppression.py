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


@given(st.lists(st.integers(0, 4), max_size=60))
def test_a_level_of_few_rows_counts_as_a_level_that_is_not_there(found: list[int]) -> None:
    """Its rows are among the other texts; missing cells stay what they are."""
    codes = suppression.without_few(np.array(found, np.int64), 3, LEAST)
    assert ((codes == 4) == (np.array(found) == 4)).all()
    for level in range(3):
        rows = found.count(level)
        assert (codes == level).sum() == (rows if rows >= LEAST else 0)
