"""
The rest that the fixed point of an exact sum cuts off, summed too: float buffers are added without any rounding.

A buffer's scale follows from everything that updates may hold at most: with many clients and large limits the
variance of a column, or of a BatchNorm layer, is less than its last bit. ``q = rint(u * 2**s)`` leaves
``u * 2**s - q``, which float64 holds exactly; times ``2**digit`` that is rounded to the next integer, and so
on, until nothing can be left of a float32. Each of these digits is summed in int64 as ``q`` is.
"""

from __future__ import annotations

import math

import numpy as np

from fl_queue.protocol.arrays import Float32s, Float64s, Int64s

#: Fractional bits of the smallest float32.
_LAST = 149
_WIDEST = 32
_NARROWEST = 8


def width(updates: int, w_max: int) -> int:
    """
    Bits of a digit, so that no sum of one can overflow: ``updates * w_max * 2**(bits - 1) < 2**63``.

    Returns:
        8 to 32; 0: there is no room for so many updates of so large a weight.
    """
    for bits in range(_WIDEST, _NARROWEST - 1, -1):
        if updates * w_max * 2 ** (bits - 1) < 2**63:
            return bits
    return 0


def count(s: int, digit: int) -> int:
    """Digits below ``s`` fractional bits that hold all that is left. Args: ``digit``: its bits; 0: none."""
    return -(-(_LAST - s) // digit) if digit else 0


def add(totals: Int64s, values: Float32s, weight: int, s: int, digit: int) -> None:
    """
    Add an update's digits.

    Args:
        totals: (digits, elements) sums, the highest digit first; modified.
        values: (elements,) each within the scale's limit.
        weight: The update's; negative takes it out again.
        s, digit: Of the scale.
    """
    # Exact, all of it: products with powers of two, and what rint leaves of a number.
    rest = values.astype(np.float64)
    rest *= math.ldexp(1.0, s)
    rest -= np.rint(rest)
    for total in totals:
        if not rest.any():
            return
        rest *= math.ldexp(1.0, digit)
        whole = np.rint(rest)
        rest -= whole
        total += whole.astype(np.int64) * weight


def mean(totals: Int64s, divisor: int, s: int, digit: int) -> Float64s:
    """Compute the part of a mean that is in the digits. Args: as of ``add``."""
    found = np.zeros(totals.shape[1])
    # The smallest first, one rounding each, so that every machine gets the same bits.
    for place in range(len(totals), 0, -1):
        part = totals[place - 1].astype(np.float64)
        part /= float(divisor)
        part *= math.ldexp(1.0, -(s + place * digit))
        found += part
    return found
