"""
Small counts of a site: which are withheld from a table, and how those of ordered cells are joined.

A count of 1 to ``least - 1`` rows is withheld, and of each line with a withheld count so many more that no withheld
one follows from the others and the line's total. Cells in an order are joined with their neighbours instead.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fl_queue.protocol.arrays import Int64s

Mask = npt.NDArray[np.bool_]


def withheld(counts: Int64s, least: int, forced: Mask | None = None) -> Mask:
    """
    The counts of a list or of a table of two categories that may not be shown.

    In each row and column with a withheld count, the smallest remaining count above 0 is withheld, too (of equals the
    first), until at least two are and stand for ``least`` rows together. Counts of 0 are shown.

    Args:
        counts: (A,) or (A, B) of one site, of each level or pair of levels.
        least: Fewest rows behind a count that is shown.
        forced: Counts that are withheld for another reason.

    Returns:
        Of the shape of ``counts``; False where the count is 0.
    """
    filled = counts > 0
    mask = filled & (counts < least)
    if forced is not None:
        mask |= filled & forced
    if counts.ndim == 1:
        _complete(mask, counts, least)
        return mask
    while True:
        before = int(mask.sum())
        for line in range(counts.shape[0]):
            _complete(mask[line], counts[line], least)
        for line in range(counts.shape[1]):
            _complete(mask[:, line], counts[:, line], least)
        if int(mask.sum()) == before:
            return mask


def _complete(mask: Mask, counts: Int64s, least: int) -> None:
    """Withhold further counts of one line; changes ``mask``."""
    while mask.any() and (mask.sum() < 2 or counts[mask].sum() < least):
        left = np.flatnonzero(~mask & (counts > 0))
        if not len(left):
            return
        mask[left[np.argmin(counts[left])]] = True


def joined(counts: Int64s, least: int, groups: Int64s | None = None) -> tuple[Int64s, Int64s]:
    """
    Join ordered cells so that each has no rows, or at least ``least``.

    From left to right, the rows of a group lie in its last cell; those that are left at the end are added to the
    group before. So for any cell, fewer than ``least`` rows are counted on the other side of it than they are; see
    ``moved_at_most`` for groups of few rows.

    Args:
        counts: (C,) of one site, in the cells' order; ``least`` rows at least, or none.
        least: Fewest rows of a group.
        groups: (C,) ascending; cells of different numbers are joined only where a number has fewer than ``least``
            rows.

    Returns:
        The joined counts (C,), and for each cell the number of its group (C,), from 0.
    """
    shown = np.zeros_like(counts)
    filled = np.flatnonzero(counts).tolist()
    numbers = np.zeros_like(counts) if groups is None else groups
    #: Of each group the cell in which its rows lie, and the last cell that belongs to it.
    places: list[int] = []
    ends: list[int] = []
    rows = 0
    for at, cell in enumerate(filled):
        rows += int(counts[cell])
        is_last = at + 1 == len(filled) or numbers[filled[at + 1]] != numbers[cell]
        if rows >= least:
            shown[cell], rows = rows, 0
            places.append(cell)
            ends.append(cell)
        elif is_last and places and numbers[places[-1]] == numbers[cell]:
            # What is left of a number goes to the last group of the same number.
            shown[places[-1]] += rows
            ends[-1], rows = cell, 0
    if rows and places:
        shown[places[-1]] += rows
    group_of = np.searchsorted(np.array(ends[:-1], np.int64), np.arange(len(counts)))
    return shown, group_of.astype(np.int64)


def moved_at_most(counts: Int64s, least: int, groups: Int64s) -> int:
    """How many rows ``joined`` counts at most on the other side of a cell than they are."""
    rows = np.bincount(groups, weights=counts)
    are_few = ((rows > 0) & (rows < least)).any()
    return max(least - 1, 0) * (2 if are_few else 1)
