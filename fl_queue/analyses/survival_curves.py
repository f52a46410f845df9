"""
Kaplan-Meier curves and log-rank tests from counts by interval.

Rows are at risk in an interval if their time is in it or later: rows whose follow-up ends in an interval count as
followed to its end. Where all times are points of the grid, these are the estimators of the single times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fl_queue.protocol.arrays import Float64s, Int64s

#: Quantile of the normal distribution of a two-sided interval of 95 %.
Z95 = 1.959963984540054


def at_risk(events: Int64s, censored: Int64s) -> Int64s:
    """Rows at risk in each interval, (..., K). Args: ``events``, ``censored``: (..., K + 1), the last one: later."""
    rows = (events + censored)[..., ::-1].cumsum(axis=-1)[..., ::-1]
    found: Int64s = rows[..., :-1]
    return found


def kaplan_meier(points: Float64s, events: Int64s, censored: Int64s) -> dict[str, Any]:
    """
    The survival curve of one group.

    Args:
        points: (K,) ends of the intervals.
        events, censored: (K + 1,) rows; the last one: later.

    Returns:
        ``at_risk``, ``events``, ``censored``, ``survival``, ``error`` (Greenwood), ``low`` and ``high`` (95 %, by
        log(-log S)) at each point, and ``median`` with ``median_low`` and ``median_high``; None: not reached, or where
        nothing is at risk.

    Source:
        Kaplan and Meier 1958; Greenwood 1926; Kalbfleisch and Prentice 2002, section 1.4.
    """
    found: dict[str, Any] = {"survival": [], "error": [], "low": [], "high": []}
    risk, survival, variance = at_risk(events, censored), 1.0, 0.0
    for rows, died in zip(risk.tolist(), events.tolist(), strict=False):
        if rows:
            survival *= (rows - died) / rows
            variance += died / (rows * (rows - died)) if died < rows else 0.0
        low, high = _interval(survival, variance, Z95)
        found["survival"].append(survival)
        found["error"].append(survival * float(np.sqrt(variance)))
        found["low"].append(low)
        found["high"].append(high)
    return {
        "rows": int(events.sum() + censored.sum()),
        "at_risk": risk.tolist(),
        "events": events[:-1].tolist(),
        "censored": censored[:-1].tolist(),
        **found,
        "median": _median(points, found["survival"]),
        "median_low": _median(points, found["low"]),
        "median_high": _median(points, found["high"]),
    }


def with_quantile(points: Float64s, curve: Mapping[str, Any], quantile: float) -> dict[str, Any]:
    """
    A curve with other intervals.

    Args:
        points, curve: Of ``kaplan_meier``.
        quantile: Of the normal distribution, of a two-sided interval.
    """
    pairs = zip(curve["survival"], curve["error"], strict=True)
    ends = [
        _interval(value, (error / value) ** 2 if value else 0.0, quantile) for value, error in pairs
    ]
    low, high = ([end[place] for end in ends] for place in (0, 1))
    medians = {"median_low": _median(points, low), "median_high": _median(points, high)}
    return {**curve, "low": low, "high": high, **medians}


def _interval(survival: float, variance: float, quantile: float) -> tuple[float, float]:
    """The interval of a curve. Args: ``variance``: Greenwood's sum, of log S; ``quantile``: of ``with_quantile``."""
    if not 0 < survival < 1:
        return survival, survival
    log = float(np.log(survival))
    spread = quantile * float(np.sqrt(variance)) / log
    low, high = (survival ** float(np.exp(sign * spread)) for sign in (-1, 1))
    return low, high


def _median(points: Float64s, curve: list[float]) -> float | None:
    """The first point at which a curve is at most a half."""
    return next(
        (float(time) for time, value in zip(points, curve, strict=True) if value <= 0.5), None
    )


def log_rank(events: Int64s, censored: Int64s) -> dict[str, Any] | None:
    """
    The log-rank test of equal survival.

    Args:
        events, censored: (G, K + 1) rows by group and interval; the last one: later.

    Returns:
        ``chi_square`` and ``degrees_of_freedom``, and of each group ``observed`` and ``expected`` events; None: there
        is nothing to compare.

    Source:
        Mantel 1966; Kalbfleisch and Prentice 2002, section 1.5.
    """
    risk, died = at_risk(events, censored).astype(np.float64), events[:, :-1].astype(np.float64)
    rows, deaths = risk.sum(axis=0), died.sum(axis=0)
    is_used = (rows > 0) & (deaths > 0)
    risk, died, rows, deaths = (each[..., is_used] for each in (risk, died, rows, deaths))
    expected = (risk * deaths / rows).sum(axis=1)
    observed = died.sum(axis=1)
    ties = deaths * (rows - deaths) / np.maximum(rows - 1, 1)
    shares = risk / rows
    covariance = np.diag((shares * ties).sum(axis=1)) - (shares * ties) @ shares.T
    is_compared = risk.sum(axis=1) > 0
    # They add up to 0, so one follows from the others.
    places = np.flatnonzero(is_compared)[:-1]
    if not len(places) or not covariance.any():
        return None
    excess = (observed - expected)[places]
    solved, _, rank, _ = np.linalg.lstsq(covariance[np.ix_(places, places)], excess, rcond=1e-10)
    return {
        "chi_square": float(excess @ solved),
        "degrees_of_freedom": int(rank),
        "observed": observed.astype(np.int64).tolist(),
        "expected": expected.tolist(),
    }
