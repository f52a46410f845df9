"""Calibration: probabilities beside the shares of rows in which the event occurred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl_queue.metrics.reports.roc import Histograms
from fl_queue.metrics.reports.words import off_grid
from fl_queue.protocol.arrays import Float64s

#: Newton steps of the calibration line, and the decrement at which it has converged.
_STEPS, _CONVERGED = 50, 1e-18
#: Largest slope and intercept: beyond, the classes are separated and there is none.
_LARGEST = 1e3


@dataclass(frozen=True)
class Group:
    """
    Rows whose probabilities are in one twentieth.

    Args:
        place: Its number, from 0.
        rows: Number of rows.
        events: Rows in which the event occurred.
        probability: Mean of their probabilities.
    """

    place: int
    rows: int
    events: int
    probability: float


@dataclass(frozen=True)
class Line:
    """Log-odds of the event as ``intercept + slope * log-odds of the model``; 0 and 1 of one that is calibrated."""

    intercept: float
    slope: float


def groups(rows: Sequence[int], events: Sequence[int], totals: Sequence[int]) -> list[Group]:
    """The groups that have rows. Args: ``totals``: sums of probabilities on the grid."""
    return [
        Group(place, count, events[place], off_grid(totals[place]) / count)
        for place, count in enumerate(rows)
        if count
    ]


def expected_error(found: Sequence[Group]) -> float:
    """Mean difference of probability and share over the groups, by their rows."""
    rows = sum(group.rows for group in found)
    return sum(abs(group.events - group.probability * group.rows) for group in found) / rows


def line(found: Histograms, centres: Float64s) -> Line | None:
    """
    The logistic regression of the event on the model's log-odds, each row in the middle of its bin, by Newton's steps.

    None where one class is missing, all rows are in one bin, or the classes are separated.

    Source:
        Cox 1958, Two further applications of a model for binary regression.
    """
    negatives, positives = (np.array(side, np.float64) for side in found.spread)
    rows, events = negatives + positives, positives
    if not negatives.any() or not positives.any() or np.count_nonzero(rows) < 2:
        return None
    beta = np.zeros(2)
    for _ in range(_STEPS):
        step = _step(beta, rows, events, centres)
        if step is None or np.abs(beta + step).max() > _LARGEST:
            return None
        beta = beta + step
        if float(step @ step) < _CONVERGED:
            return Line(float(beta[0]), float(beta[1]))
    return None


def _step(beta: Float64s, rows: Float64s, events: Float64s, x: Float64s) -> Float64s | None:
    """One step of Newton's; None where the information is singular."""
    odds = np.clip(beta[0] + beta[1] * x, -700, 700)
    p = 1 / (1 + np.exp(-odds))
    weights, errors = rows * p * (1 - p), events - rows * p
    a, b, c = (float((weights * x**power).sum()) for power in (0, 1, 2))
    first, second = float(errors.sum()), float((errors * x).sum())
    determinant = a * c - b * b
    if not determinant > 1e-12 * a * c:
        return None
    return np.array([c * first - b * second, a * second - b * first]) / determinant
