"""Neighbouring bins of a score, joined until each group has no row of a class, or enough of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl_queue.protocol.arrays import Int64s


@dataclass(frozen=True)
class Groups:
    """
    Neighbouring bins that are joined.

    Args:
        group: (bins,) number of the group of each bin.
        first, last: (groups,) first and last bin of each group.
    """

    group: Int64s
    first: Int64s
    last: Int64s


def joined(counts: Int64s, least: int, border: int) -> Groups:
    """
    Groups of bins, each with no row of a class or at least ``least``.

    Args:
        counts: (classes, bins) rows; each class has none or ``least``.
        border: First bin after a place that no group extends over, if there are rows enough on either side.
    """
    if least <= 1:
        each = np.arange(counts.shape[1])
        return Groups(each, each, each)
    ends = _ends(counts[:, :border], least)
    ends = [*ends, *(border + end for end in _ends(counts[:, border:], least))]
    while len(few := _few(counts, ends, least)):
        at = int(few[0])
        # With the neighbour on the same side of the border, if there is one.
        other = at - 1 if at and (ends[at - 1] != border or at == len(ends) - 1) else at
        del ends[other]
    stops = np.array(ends)
    starts = np.concatenate([[0], stops[:-1]])
    return Groups(np.searchsorted(stops, np.arange(counts.shape[1]), "right"), starts, stops - 1)


def joined_within(counts: Int64s, together: Groups, border: int, least: int) -> Groups:
    """
    Groups of one class, each within a group of both.

    So an end of a group of both is one of each class, too, and no two sums differ by a few rows.

    Args:
        counts: (bins,) its rows.
        border: As of ``joined``.
    """
    if least <= 1:
        return together
    first: list[int] = []
    last: list[int] = []
    for start, stop in zip(together.first, together.last + 1, strict=True):
        found = joined(counts[None, start:stop], least, max(0, min(border, stop) - start))
        first += (start + found.first).tolist()
        last += (start + found.last).tolist()
    ends = np.array(last)
    return Groups(np.searchsorted(ends, np.arange(len(counts)), "left"), np.array(first), ends)


def is_enough(rows: Int64s, least: int) -> bool:
    """Whether each number of rows is 0, or at least ``least``."""
    return bool(((rows == 0) | (rows >= least)).all())


def _ends(counts: Int64s, least: int) -> list[int]:
    """Ends of groups from the left, the last of which may have too few rows."""
    size = counts.shape[1]
    if not size:
        return []
    found, rows = [], np.zeros(len(counts), np.int64)
    for place, here in enumerate(counts.T, 1):
        rows = rows + here
        if rows.any() and is_enough(rows, least):
            found.append(place)
            rows = np.zeros_like(rows)
    if not found or rows.any():
        return [*found, size]
    return [*found[:-1], size]


def _few(counts: Int64s, ends: Sequence[int], least: int) -> Int64s:
    """Numbers of the groups with too few rows of a class."""
    sums = np.add.reduceat(counts, [0, *ends[:-1]], axis=1)
    found: Int64s = np.flatnonzero(((sums > 0) & (sums < least)).any(axis=0))
    return found
