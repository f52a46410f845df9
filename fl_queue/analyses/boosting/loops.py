"""Loops over rows and cells, compiled by numba where there is one; without it they run as they are written, slowly."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Any

from fl_queue.common import jit
from fl_queue.common.jit import Loop

_log = logging.getLogger(__name__)

#: Bins of a column, with that of missing values: what a table from bins to sides has.
SIDES = 256


def add_rows(bins: Any, gradients: Any, hessians: Any, starts: Any, found: Any) -> None:
    """
    Add rows to a histogram.

    Args:
        bins: (n, F) of the rows.
        gradients, hessians: (n,) integers.
        starts: (F,) first cell of each column.
        found: (cells, 3) sums of gradients and hessians, and counts; changed.
    """
    columns = bins.shape[1]
    for row in range(bins.shape[0]):
        gradient, hessian = gradients[row], hessians[row]
        for column in range(columns):
            cell = starts[column] + bins[row, column]
            found[cell, 0] += gradient
            found[cell, 1] += hessian
            found[cell, 2] += 1


def divide(bins: Any, column: Any, is_left: Any, found: Any) -> Any:
    """
    Divide the rows of a node, each side in their order.

    Args:
        bins: (n, F).
        column: Of the split.
        is_left: (256,) by bin.
        found: (n,) places of the rows of the left side, then of those of the right; changed.

    Returns:
        How many are on the left side.
    """
    left = 0
    for row in range(bins.shape[0]):
        left += is_left[bins[row, column]]
    below, above = 0, left
    for row in range(bins.shape[0]):
        if is_left[bins[row, column]]:
            found[below] = row
            below += 1
        else:
            found[above] = row
            above += 1
    return left


def add_leaves(
    bins: Any, columns: Any, lefts: Any, is_left: Any, weights: Any, margins: Any
) -> None:
    """
    Add to each row's margin the weight of its leaf.

    Args:
        bins: (N, F).
        columns: (nodes,) column of each split.
        lefts: (nodes,) left child of each split, after which comes the right one; 0: a leaf.
        is_left: (nodes, 256) by bin.
        weights: (nodes,) float32.
        margins: (N,) float32; changed.
    """
    for row in range(bins.shape[0]):
        node = 0
        while lefts[node]:
            node = lefts[node] + 1 - is_left[node, bins[row, columns[node]]]
        margins[row] += weights[node]


def close_groups(counts: Any, least: Any, rows: Any, ends: Any) -> Any:
    """
    Join cells from the first on: a group ends where each node has no rows in it, or ``least`` of them or more.

    Args:
        counts: (nodes, cells).
        least: Fewest rows of a group.
        rows: (nodes,) zeros; then the rows that are left after the last group.
        ends: (cells,) last cell of each group; changed.

    Returns:
        Number of groups.
    """
    groups = 0
    for cell in range(counts.shape[1]):
        is_closed, is_filled = True, False
        for node in range(counts.shape[0]):
            rows[node] += counts[node, cell]
            is_filled |= rows[node] > 0
            is_closed &= rows[node] == 0 or rows[node] >= least
        if is_closed and is_filled:
            ends[groups] = cell
            groups += 1
            rows[:] = 0
    return groups


_BINS = "Array(uint8, 2, 'C', readonly=True)"
_SIGNATURES: dict[Loop, str] = {
    add_rows: f"void({_BINS}, int64[::1], int64[::1], int64[::1], int64[:, ::1])",
    divide: f"int64({_BINS}, int64, uint8[::1], int32[::1])",
    add_leaves: f"void({_BINS}, int64[::1], int64[::1], uint8[:, ::1], float32[::1], float32[::1])",
    close_groups: "int64(int64[:, ::1], int64, int64[::1], int64[::1])",
}


@dataclass(frozen=True)
class Loops:
    """
    The loops of this module, compiled.

    Args:
        add_rows, divide, add_leaves, close_groups: See the functions of these names.
    """

    add_rows: Loop
    divide: Loop
    add_leaves: Loop
    close_groups: Loop


@functools.cache
def loops() -> Loops:
    """The loops, compiled at the first call."""
    try:
        return Loops(*jit.compiled(_SIGNATURES))
    except ImportError as exc:
        _log.warning("numba cannot be imported (%s): trees with Python's loops, far slower", exc)
        return Loops(*_SIGNATURES)
