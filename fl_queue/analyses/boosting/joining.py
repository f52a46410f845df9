"""
Joined cells of a site: in no cell of a histogram does a node have few rows.

The cells of both children of a node are joined together, so that each child has no rows in a joined cell, or ``least``
or more. A child's cells begin as those of its parent are joined, so no two sums of one tree differ by a smaller one.
The rows follow: a split that cuts a joined cell sends all of its rows to one side. A node's total is then that of the
rows that the aggregator counts there.
"""

from __future__ import annotations

import numpy as np

from fl_queue.analyses.boosting.grid import Grid
from fl_queue.analyses.boosting.loops import loops
from fl_queue.protocol.arrays import Int64s


def joined(counts: Int64s, grid: Grid, least: int) -> Int64s:
    """
    Join the cells of sibling nodes.

    Args:
        counts: (nodes, cells) rows; each node has none, or ``least`` or more.
        grid: The columns' cells.
        least: Fewest rows of a joined cell.

    Returns:
        (cells,) of each cell the one that has the joined cell's rows.
    """
    found = np.arange(grid.cells)
    if least < 2:
        return found
    for column in range(grid.columns):
        start, stop = int(grid.starts[column]), int(grid.starts[column + 1])
        found[start:stop] = start + _joined_column(counts[:, start:stop], least)
    return found


def _joined_column(counts: Int64s, least: int) -> Int64s:
    """As ``joined`` of one column, whose last cell is that of missing values."""
    nodes, last = counts.shape[0], counts.shape[1] - 1
    rest, ends = np.zeros(nodes, np.int64), np.zeros(last + 1, np.int64)
    groups = int(loops().close_groups(np.ascontiguousarray(counts[:, :last]), least, rest, ends))
    is_alone = not _are_few(counts[:, last], least)
    if not is_alone:
        rest = rest + counts[:, last]
    if rest.any():
        # The rest joins the group before it, these the one before, until no node has few rows in them.
        kept, is_open = groups, True
        while kept and is_open:
            kept -= 1
            first = int(ends[kept - 1]) + 1 if kept else 0
            rest = rest + counts[:, first : ends[kept] + 1].sum(axis=1)
            is_open = _are_few(rest, least)
        if is_open:
            return np.full(last + 1, last)
        groups = kept + 1
    found = np.arange(last + 1)
    if groups:
        places = np.searchsorted(ends[:groups], found[:last])
        found[:last] = ends[np.minimum(places, groups - 1)]
        if not is_alone:
            found[last] = ends[groups - 1]
    return found


def folded(histogram: Int64s, cells: Int64s) -> Int64s:
    """
    A histogram whose cells are joined.

    Args:
        histogram: (cells, words).
        cells: (cells,) of each cell the one that has its sums.
    """
    found = np.zeros_like(histogram)
    np.add.at(found, cells, histogram)
    return found


def _are_few(rows: Int64s, least: int) -> bool:
    return bool(np.any((rows > 0) & (rows < least)))
