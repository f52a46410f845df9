"""Intervals of 95 per cent."""

from __future__ import annotations

from math import sqrt

#: Of the normal distribution, 2.5 per cent are above.
Z = 1.959963984540054


def wilson(hits: float, rows: int) -> tuple[float, float]:
    """
    The interval of a share.

    Args:
        hits: Rows of the kind; may be the middle of two numbers.
        rows: All rows, 1 or more.

    Source:
        Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    share, square = hits / rows, Z * Z / rows
    middle = (share + square / 2) / (1 + square)
    half = Z * sqrt(share * (1 - share) / rows + square / (4 * rows)) / (1 + square)
    # At the ends rounding would leave 1e-17.
    return 0.0 if hits <= 0 else middle - half, 1.0 if hits >= rows else middle + half


def normal(value: float, error: float, low: float = 0.0, high: float = 1.0) -> tuple[float, float]:
    """The interval of an estimate by its standard error, cut to what is possible."""
    return max(low, value - Z * error), min(high, value + Z * error)
