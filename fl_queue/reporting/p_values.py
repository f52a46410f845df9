"""p-values of test statistics, by scipy (an extra)."""

from __future__ import annotations

import statistics

#: Of intervals, unless another one is asked for.
LEVEL = 0.95


def chi_square(statistic: float, degrees_of_freedom: int) -> float | None:
    """The probability of a larger statistic under the chi-square distribution; None: scipy is not installed."""
    try:
        # An extra, and slow to import.
        from scipy.special import chdtrc  # type: ignore[import-untyped,unused-ignore]
    except ModuleNotFoundError:
        return None
    return float(chdtrc(degrees_of_freedom, statistic))


def two_sided(statistic: float, degrees_of_freedom: int) -> float | None:
    """
    The probability of a statistic further from 0, of either sign.

    Args:
        degrees_of_freedom: Of Student's t distribution; 0: the normal distribution.

    Returns:
        None: scipy is not installed.
    """
    try:
        # An extra, and slow to import.
        from scipy.special import ndtr, stdtr  # type: ignore[import-untyped,unused-ignore]
    except ModuleNotFoundError:
        return None
    below = -abs(statistic)
    return 2.0 * float(stdtr(degrees_of_freedom, below) if degrees_of_freedom else ndtr(below))


def quantile(probability: float, degrees_of_freedom: int) -> float | None:
    """As ``two_sided``: the value with this probability below it."""
    if not degrees_of_freedom:
        return statistics.NormalDist().inv_cdf(probability)
    try:
        # An extra, and slow to import.
        from scipy.special import stdtrit  # type: ignore[import-untyped,unused-ignore]
    except ModuleNotFoundError:
        return None
    return float(stdtrit(degrees_of_freedom, probability))


def text(value: float | None) -> str:
    """A p-value as tables show it."""
    if value is None:
        return "-"
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"
