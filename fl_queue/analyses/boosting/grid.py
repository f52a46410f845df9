"""
Bins of columns: their edges, the bin of each row, and the cells of a histogram.

A column of numbers has ascending float32 edges; the bin of a number is how many edges are not above it, so ``x < edge``
is ``bin <= b`` for the edge after bin b. A category's bin is its code. After its bins each column has one more cell,
that of missing values. A histogram has the cells of all columns, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fl_queue.protocol.arrays import Float32s, Float64s, Int64s, Octets

Mask = npt.NDArray[np.bool_]


def edges_of_counts(lows: Float32s, counts: Int64s, most: int) -> Float32s:
    """
    The edges of a column's bins, from counts of its cells.

    Where there are few cells each is a bin. Else a cell with as many rows as a bin would have, or more, is a bin of its
    own, and the cells between are joined to bins of about equal numbers of rows.

    Args:
        lows: (C,) lowest number of each cell, ascending.
        counts: (C,) rows of each, above 0.
        most: Bins at most, 2 or more.

    Returns:
        (E,) ascending, ``most - 1`` at most.
    """
    if len(lows) <= most:
        return lows[1:].astype(np.float32)
    heavy = _heavy(counts, most)
    rest, bins = int(counts[~heavy].sum()), max(1, most - int(heavy.sum()))
    found: list[int] = []
    rows = 0
    for cell in range(len(lows)):
        is_full = rows > 0 and (2 * rows + int(counts[cell])) * bins > 2 * rest
        is_edge = cell > 0 and bool(heavy[cell] or heavy[cell - 1] or is_full)
        if is_edge and len(found) < most - 1:
            found.append(cell)
            if rows:
                rest, bins, rows = rest - rows, max(1, bins - 1), 0
        if not heavy[cell]:
            rows += int(counts[cell])
    return lows[found].astype(np.float32)


def _heavy(counts: Int64s, most: int) -> Mask:
    """The cells that have at least the rows of a bin of the other cells."""
    heavy = np.zeros(len(counts), np.bool_)
    while (bins := most - int(heavy.sum())) > 0:
        more = ~heavy & (counts * bins >= int(counts[~heavy].sum()))
        if not more.any():
            break
        heavy |= more
    return heavy


@dataclass(frozen=True)
class Grid:
    """
    The cells of the columns: those of numbers first, then categories.

    Args:
        edges: Of each column of numbers.
        categories: Number of codes of each category, 64 at most.
    """

    edges: tuple[Float32s, ...]
    categories: tuple[int, ...] = ()

    @cached_property
    def bins(self) -> Int64s:
        """(F,) bins of each column, without the cell of missing values."""
        return np.array([*(len(one) + 1 for one in self.edges), *self.categories], np.int64)

    @cached_property
    def starts(self) -> Int64s:
        """(F + 1,) first cell of each column, and the number of all cells."""
        return np.concatenate(([0], np.cumsum(self.bins + 1))).astype(np.int64)

    @property
    def cells(self) -> int:
        """Number of cells of all columns."""
        return int(self.starts[-1])

    @property
    def columns(self) -> int:
        """Number of columns."""
        return len(self.bins)

    def is_category(self, column: int) -> bool:
        """Whether a column is one of categories."""
        return column >= len(self.edges)

    def binned(self, numbers: Sequence[Float64s], codes: Sequence[Int64s]) -> Octets:
        """
        The bins of rows; that of a missing value comes after the others of its column.

        Args:
            numbers: (N,) of each column of numbers; NaN: missing.
            codes: (N,) of each category, from 0 to its number of codes, which is a missing cell.

        Returns:
            (N, F), row after row.
        """
        rows = len((*numbers, *codes)[0])
        found = np.empty((rows, self.columns), np.uint8)
        for column, (edges, values) in enumerate(zip(self.edges, numbers, strict=True)):
            bins = np.searchsorted(edges, values.astype(np.float32), side="right")
            found[:, column] = np.where(np.isnan(values), len(edges) + 1, bins)
        for column, found_codes in enumerate(codes, len(self.edges)):
            found[:, column] = found_codes
        return found
