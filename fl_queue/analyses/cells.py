"""
Cells of numbers, for quantiles from counts: in two steps, and without a minimum or a maximum of any site.

A number is looked at as float32, and a float32 as a key, an unsigned integer of 32 bits in the same order. The first
step counts keys by their highest 12 bits. In the second step each of those coarse cells is cut so finely that no cell
holds more than about a thousandth of all rows, unless it is a single float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_queue.analyses import loops
from fl_queue.errors import MessageError
from fl_queue.protocol.arrays import Float32s, Float64s, Int64s

#: Bits of a key that the first step looks at, and the cells that makes.
COARSE_BITS = 12
COARSE = 1 << COARSE_BITS
#: A cell of the second step holds at most about this part of the rows: 1 / 1024.
FINE_BITS = 10
#: No step has more cells for a column: of each coarse cell one, and together twice 1024 parts.
MAX_CELLS = COARSE + (2 << FINE_BITS)
_SHIFT = 32 - COARSE_BITS
_SIGN = np.uint32(1 << 31)

Keys = npt.NDArray[np.uint32]


def keys(values: Float64s) -> Keys:
    """Keys of finite numbers (N,): ``a < b`` as float32 exactly if their keys are. -0.0 is 0.0."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def coarse_counts(found: Keys) -> Int64s:
    """Count keys by their highest 12 bits, (4096,)."""
    return np.bincount(found >> np.uint32(_SHIFT), minlength=COARSE).astype(np.int64)


def placed(found: Keys, least: int) -> Keys:
    """
    The keys under which rows are counted, so that no count of any cells shows few of them.

    Rows in ascending order make groups of ``least`` rows or more: rows of one key are in one group, and those left at
    the end in the last one. Each row is counted at the middle row of its group, so the first and the last row decide
    nothing. The groups depend on the rows alone: the counts of any two ways to cut cells, also ways that an operator has
    made up, differ by whole groups. For any cell, fewer than ``least`` rows are counted on the other side than they are:
    an edge that cuts a group has fewer on one side of it, and the middle lies on the other.

    Args:
        found: (N,) in any order, ``least`` of them or more.
        least: Fewest rows of a group.

    Returns:
        (N,) ascending.
    """
    ordered = np.sort(found)
    if least < 2:
        return ordered
    edges = np.zeros(len(ordered) + 1, np.int64)
    cut = (loops.compiled() or loops).find_edges
    edges = edges[: cut(ordered, least, edges)]
    edges[-1] = len(ordered)
    starts, ends = edges[:-1], edges[1:]
    return np.repeat(ordered[(starts + ends - 1) // 2], ends - starts)


def cut_bits(counts: Int64s) -> Int64s:
    """
    How finely coarse cells are cut: see ``FineCells.of_counts``.

    Args:
        counts: (4096,) sum over the sites.

    Returns:
        (4096,) of each coarse cell the exponent of its number of parts; -1: it is joined to the empty one before.

    Raises:
        MessageError: A count is negative.
    """
    if counts.min() < 0:
        raise MessageError("a count of cells is negative")
    # Not of int64: a state may come with counts whose sum is none.
    rows = sum(counts.tolist())
    # Each coarse cell that has rows, and the first of the empty ones in a row.
    is_first = np.concatenate(([True], counts[:-1] > 0))
    found = np.where((counts > 0) | is_first, 0, -1)
    for coarse in np.flatnonzero(counts > 0).tolist():
        count, bits = int(counts[coarse]), 0
        while (rows << bits) < (count << FINE_BITS):
            bits += 1
        found[coarse] = bits
    return found


@dataclass(frozen=True)
class FineCells:
    """
    The cells of the second step.

    Args:
        starts: (C,) lowest key of each cell, ascending from 0; a cell ends before the next one begins.
    """

    starts: npt.NDArray[np.uint64]

    @classmethod
    def of_counts(cls, counts: Int64s) -> FineCells:
        """
        Cut each coarse cell by its share of the rows.

        A coarse cell with c of n rows is cut into the least power of two that is 1024 c / n or more. Empty coarse
        cells in a row are one cell.

        Args:
            counts: (4096,) sum over the sites.

        Raises:
            MessageError: A count is negative.
        """
        return cls.of_bits(cut_bits(counts))

    @classmethod
    def of_bits(cls, bits: Int64s) -> FineCells:
        """
        Cut each coarse cell into a power of two of equal parts.

        Args:
            bits: (4096,) of each the exponent; -1: it belongs to the cell before.

        Raises:
            MessageError: An exponent is none of ``cut_bits``.
        """
        if bits.min() < -1 or bits.max() > FINE_BITS or bits[0] < 0:
            raise MessageError("a coarse cell is cut into parts that no counts make")
        pieces = []
        for coarse in np.flatnonzero(bits >= 0).tolist():
            cut = int(bits[coarse])
            width = 1 << (_SHIFT - cut)
            pieces.append((coarse << _SHIFT) + width * np.arange(1 << cut, dtype=np.uint64))
        return cls(np.concatenate(pieces).astype(np.uint64))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lows(self) -> Float32s:
        """The lowest float32 of each cell, (C,); of a cell of NaN an infinity."""
        return np.array([_number(int(start)) for start in self.starts], np.float32)

    def counts(self, found: Keys) -> Int64s:
        """Count keys by cell, (C,)."""
        at = np.searchsorted(self.starts, found.astype(np.uint64), side="right") - 1
        return np.bincount(at, minlength=len(self)).astype(np.int64)

    def bounds(self, cell: int) -> tuple[float, float]:
        """
        The numbers of a cell: from, to, as float64.

        Numbers that are rounded to the cell's first float32 lie up to half a step below it, and so above the last.
        """
        first = int(self.starts[cell])
        last = int(self.starts[cell + 1]) - 1 if cell + 1 < len(self) else (1 << 32) - 1
        low, before = _number(first), _number(max(first - 1, 0))
        high, after = _number(last), _number(min(last + 1, (1 << 32) - 1))
        return _between(before, low), _between(high, after)


def _number(key: int) -> float:
    """The float32 of a key; those of NaN are the infinity next to them."""
    bits = key ^ (1 << 31) if key >> 31 else ~key & 0xFFFFFFFF
    value = float(np.array([bits], np.uint32).view(np.float32)[0])
    if value != value:
        return float("inf") if key >> 31 else float("-inf")
    return value


def _between(low: float, high: float) -> float:
    middle = low / 2 + high / 2
    return middle if np.isfinite(middle) else (high if np.isfinite(high) else low)


def rank_bracket(counts: Int64s, rank: int, slack: int) -> tuple[int, int]:
    """
    The first and last cell that may hold the value of a rank.

    Args:
        counts: (C,) sum over the sites, with ``sum(counts)`` rows.
        rank: From 0, of the rows in ascending order.
        slack: So many rows at most may be counted on the other side of a cell than they are.
    """
    total = int(counts.sum())
    ends = np.cumsum(counts)
    first, last = max(rank - slack, 0), min(rank + slack, total - 1)
    found = np.searchsorted(ends, np.array([first, last]), side="right")
    return int(found[0]), int(found[1])
