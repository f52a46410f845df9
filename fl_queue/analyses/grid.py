"""
Sums of rows on a fixed grid: each row's number is rounded once, to a whole multiple of 2**-shift, and then added.

What a row adds depends on that row and on the grid alone, so sums have the same bits for any split of the rows. A sum
stays below 2**53: then float64 adds the multiples without rounding, which is quick, and a site's sum is a whole float64.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from fl_queue.analyses.base import Block
from fl_queue.common import jit
from fl_queue.protocol.arrays import Float64s, Int64s

#: Bits of the largest sum that a grid is made for. Sums of 1,024 sites of twice its size stay below 2**63.
BITS = 52
MOST = (1 << (BITS + 1)) - 1
#: Bits of the lower word of a sum that has two.
_LOW_BITS = 26
#: Bits by which a grid becomes coarser where a row does not fit it.
COARSER = 8
#: Rows taken together where numpy has to do.
_BLOCK = 4096


class _Loops(NamedTuple):
    linear: jit.Loop
    score: jit.Loop
    products: jit.Loop


def shift_of(rows: int, bound: float) -> int:
    """
    Fractional bits for sums of rows: ``52 - ceil(log2(rows * bound))``.

    Args:
        rows: Of all sites together.
        bound: The sum's magnitude is at most ``rows * bound``; above 0.
    """
    limit = Fraction(rows) * Fraction(bound)
    bits = limit.numerator.bit_length() - limit.denominator.bit_length()
    while Fraction(2) ** bits < limit:
        bits += 1
    while Fraction(2) ** (bits - 1) >= limit:
        bits -= 1
    return BITS - bits


def largest_term(rows: int, shift: int) -> float:
    """Compute the largest magnitude of a row's number of which ``pair_sum`` adds ``rows``."""
    return math.ldexp(1.0, BITS - shift + _LOW_BITS) / rows


def are_residuals_small(squares: float, rows: int, shift: int) -> bool:
    """
    Whether no part of a sum of ``residual * z_j`` can leave the grid.

    Args:
        squares: Sum of the squared residuals.
        rows: Of all sites; a column's z**2 add up to twice as many at most (Cauchy-Schwarz).
    """
    return 2.0 * rows * squares <= math.ldexp(1.0, 2 * (BITS + 1 - shift))


def words(name: str, *shape: int) -> Block:
    """A block of sums on a grid."""
    return Block(name, shape, -MOST, MOST)


def pair(name: str) -> Block:
    """A block of one sum in two words, as of ``pair_sum``."""
    return Block(name, (2,), -(1 << 52), 1 << 52)


def pair_sum(values: Float64s, shift: int) -> Int64s:
    """
    The sum of numbers that may be much larger than the grid's bound, in two words: high * 2**26 + low.

    Args:
        values: (N,) each at most ``largest_term``.
        shift: Of the grid.

    Returns:
        (2,) high, low.
    """
    whole = np.rint(np.ldexp(values, shift))
    high = np.floor(np.ldexp(whole, -_LOW_BITS))
    low = whole - np.ldexp(high, _LOW_BITS)
    return np.array([high.astype(np.int64).sum(), low.astype(np.int64).sum()], np.int64)


def pair_value(found: Int64s, shift: int) -> float:
    """The number of a sum in two words, rounded once."""
    whole = (int(found[0]) << _LOW_BITS) + int(found[1])
    return float(Fraction(whole) / Fraction(2) ** shift)


def values(found: Int64s, shift: int) -> Float64s:
    """The numbers of sums."""
    return np.ldexp(found.astype(np.float64), -shift)


def symmetric(found: Int64s, size: int, shift: int) -> Float64s:
    """The symmetric matrix (size, size) of the sums of its lower triangle, row by row."""
    matrix = np.zeros((size, size))
    matrix[np.tril_indices(size)] = values(found, shift)
    return matrix + np.tril(matrix, -1).T


def linear(columns: Float64s, beta: Float64s) -> Float64s:
    """
    ``columns @ beta``, added from the first column to the last.

    Args:
        columns: (N, p).
        beta: (p,).
    """
    loops = _loops()
    if loops is None:
        return linear_by_numpy(columns, beta)
    found = np.empty(len(columns))
    loops.linear(np.ascontiguousarray(columns), beta, found)
    return found


def score(columns: Float64s, residual: Float64s, shift: int) -> Int64s | None:
    """
    Sums of ``residual * z_j``, (p,).

    Args:
        columns: (N, p) z.
        residual: (N,) whose squares' sum ``are_residuals_small`` lets pass.

    Returns:
        None: a sum leaves the grid.
    """
    total, scaled = np.zeros(columns.shape[1]), np.ldexp(residual, shift)
    loops = _loops()
    if loops is not None:
        loops.score(np.ascontiguousarray(columns), scaled, total)
    else:
        score_by_numpy(columns, scaled, total)
    return _whole(total)


def products(columns: Float64s, weight: Float64s, shift: int) -> Int64s | None:
    """
    Sums of ``weight * z_i * z_j`` for j <= i, row by row of the lower triangle.

    Args:
        columns: (N, p) z.
        weight: (N,) none below 0; then no part of a sum is larger than the largest on the diagonal.

    Returns:
        None: a sum leaves the grid.
    """
    size = columns.shape[1]
    total, scaled = np.zeros((size, size)), np.ldexp(weight, shift)
    loops = _loops()
    if loops is not None:
        loops.products(np.ascontiguousarray(columns), scaled, total)
    else:
        products_by_numpy(columns, scaled, total)
    return _whole(total[np.tril_indices(size)])


def linear_by_numpy(columns: Float64s, beta: Float64s) -> Float64s:
    """As ``linear``, without numba."""
    found = np.zeros(len(columns))
    for place, one in enumerate(beta):
        found = found + columns[:, place] * one
    return found


def score_by_numpy(columns: Float64s, scaled: Float64s, total: Float64s) -> None:
    """Add to ``total`` (p,) as numba's loop does. Args: ``scaled``: residuals times 2**shift."""
    for start in range(0, len(columns), _BLOCK):
        stop = start + _BLOCK
        total += np.rint(scaled[start:stop, None] * columns[start:stop]).sum(axis=0)


def products_by_numpy(columns: Float64s, scaled: Float64s, total: Float64s) -> None:
    """Add to ``total`` (p, p) as numba's loop does. Args: ``scaled``: weights times 2**shift."""
    for start in range(0, len(columns), _BLOCK):
        block, weight = columns[start : start + _BLOCK], scaled[start : start + _BLOCK]
        for place in range(columns.shape[1]):
            part = (weight * block[:, place])[:, None] * block[:, : place + 1]
            total[place, : place + 1] += np.rint(part).sum(axis=0)


def _whole(total: Float64s) -> Int64s | None:
    return total.astype(np.int64) if np.all(np.abs(total) <= MOST) else None


@functools.cache
def _loops() -> _Loops | None:
    """Loops of numba; None: numpy has to do."""
    try:
        return _Loops(
            *jit.compiled(
                {
                    _linear_loop: "void(float64[:, ::1], float64[::1], float64[::1])",
                    _score_loop: "void(float64[:, ::1], float64[::1], float64[::1])",
                    _products_loop: "void(float64[:, ::1], float64[::1], float64[:, ::1])",
                }
            )
        )
    except ImportError:
        return None


def _linear_loop(columns: Float64s, beta: Float64s, out: Float64s) -> None:
    for row in range(columns.shape[0]):
        found = 0.0
        for place in range(columns.shape[1]):
            found = found + columns[row, place] * beta[place]
        out[row] = found


def _score_loop(columns: Float64s, scaled: Float64s, total: Float64s) -> None:
    for row in range(columns.shape[0]):
        for place in range(columns.shape[1]):
            total[place] += np.rint(scaled[row] * columns[row, place])


def _products_loop(columns: Float64s, scaled: Float64s, total: Float64s) -> None:
    # The sums are whole numbers below 2**53: any order of adding gives the same.
    for row in range(columns.shape[0]):
        for i in range(columns.shape[1]):
            weighted = scaled[row] * columns[row, i]
            for j in range(i + 1):
                total[i, j] += np.rint(weighted * columns[row, j])
