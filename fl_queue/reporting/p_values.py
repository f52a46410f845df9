"""p-values of test statistics, by scipy (an extra)."""

from __future__ import annotations


def chi_square(statistic: float, degrees_of_freedom: int) -> float | None:
    """The probability of a larger statistic under the chi-square distribution; None: scipy is not installed."""
    try:
        # An extra, and slow to import.
        from scipy.special import chdtrc  # type: ignore[import-untyped,unused-ignore]
    except ModuleNotFoundError:
        return None
    return float(chdtrc(degrees_of_freedom, statistic))


def text(value: float | None) -> str:
    """A p-value as tables show it."""
    if value is None:
        return "-"
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"
