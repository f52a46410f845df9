"""
Loops over a table's rows that numba compiles: exact sums by exponent, and the edges of groups of rows.

Without numba the callers take numpy's way to the same bits.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from fl_queue.common import jit
from fl_queue.protocol.arrays import Float64s, Int64s

#: Biased exponents of float64 that sums have a place for: 2**-256 to below 2**129, of values, products and their errors.
FIRST, LAST = 1023 - 256, 1023 + 129
#: Bits of a float64 below its exponent, and the lower half of a mantissa.
_FRACTION, _LOW = (1 << 52) - 1, (1 << 32) - 1
#: Veltkamp's constant of float64: 2**27 + 1.
_SPLITTER = 134217729.0


def add_values(bins: Int64s, values: Float64s, places: npt.NDArray[np.intp]) -> None:
    """
    Add mantissas by group and exponent.

    Args:
        bins: (groups, 2 * exponents): of each exponent the sums of the lower 32 and of the upper bits.
        values: (N,) each 0, or of an exponent from ``FIRST`` to ``LAST``.
        places: (N,) group of each.
    """
    for row in range(len(values)):
        bits = np.float64(values[row]).view(np.int64)
        exponent = (bits >> 52) & 2047
        if exponent:
            sign = 1 if bits >= 0 else -1
            whole = (bits & _FRACTION) | (_FRACTION + 1)
            at = 2 * (exponent - FIRST)
            bins[places[row], at] += sign * (whole & _LOW)
            bins[places[row], at + 1] += sign * (whole >> 32)


def add_products(
    bins: Int64s, left: Float64s, right: Float64s, places: npt.NDArray[np.intp]
) -> None:
    """Add products, each as two float64 that add up to it (Veltkamp, Dekker). Args: as of ``add_values``."""
    for row in range(len(left)):
        x, y = left[row], right[row]
        scaled = _SPLITTER * x
        x_high = scaled - (scaled - x)
        x_low = x - x_high
        scaled = _SPLITTER * y
        y_high = scaled - (scaled - y)
        y_low = y - y_high
        product = x * y
        error = x_high * y_high - product
        error = error + x_high * y_low
        error = error + x_low * y_high
        error = error + x_low * y_low
        for part in (product, error):
            bits = np.float64(part).view(np.int64)
            exponent = (bits >> 52) & 2047
            if exponent:
                sign = 1 if bits >= 0 else -1
                whole = (bits & _FRACTION) | (_FRACTION + 1)
                at = 2 * (exponent - FIRST)
                bins[places[row], at] += sign * (whole & _LOW)
                bins[places[row], at + 1] += sign * (whole >> 32)


def find_edges(ordered: npt.NDArray[np.uint32], least: int, edges: Int64s) -> int:
    """
    Cut ascending keys into groups of ``least`` or more, equal keys in one.

    Args:
        edges: (N + 1,) takes where each group begins, and then where the last full one ends.

    Returns:
        Number of edges.
    """
    found, end = 1, 0
    edges[0] = 0
    while len(ordered) - end >= least:
        end += least
        while end < len(ordered) and ordered[end] == ordered[end - 1]:
            end += 1
        edges[found] = end
        found += 1
    return found


class Loops:
    """The compiled loops. Raises ImportError without numba."""

    def __init__(self) -> None:
        places = "int64[::1]"
        self.add_values, self.add_products, self.find_edges = jit.compiled(
            {
                add_values: f"void(int64[:, ::1], float64[::1], {places})",
                add_products: f"void(int64[:, ::1], float64[::1], float64[::1], {places})",
                find_edges: "int64(uint32[::1], int64, int64[::1])",
            }
        )


@cache
def compiled() -> Loops | None:
    """The loops; None: there is no numba."""
    try:
        return Loops()
    except ImportError:
        return None
