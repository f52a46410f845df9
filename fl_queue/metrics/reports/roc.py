"""
The ROC curve, the area under it and its standard error, from counts of both classes by bins of the score.

Two rows of different classes in one bin count half. If each row's bin is known exactly, the area of the single rows
differs by at most half the share of such pairs. Where sites have joined bins, each row lies between two bins, and the
bound is that of the best and the worst order that is possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import sqrt


@dataclass(frozen=True)
class Histograms:
    """
    Rows by bins of the score, in ascending order.

    Args:
        lowest: Of class 0 and of class 1, (bins,) each: rows by the lowest bin in which they may be.
        highest: The same by the highest bin.
        spread: Twice the rows, half of those that are joined at either side of their mean.
    """

    lowest: Sequence[Sequence[int]]
    highest: Sequence[Sequence[int]]
    spread: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Area:
    """
    The area under a ROC curve.

    Args:
        value: From bins.
        bound: The area of the single rows differs by this at most.
        error: DeLong's standard error; None with fewer than two rows of a class.
    """

    value: float
    bound: float
    error: float | None


def area(found: Histograms) -> Area | None:
    """
    The area under the curve; None without rows of both classes.

    Source:
        Hanley and McNeil 1982 (the area as a share of pairs); DeLong, DeLong and Clarke-Pearson 1988, equations 4 and 5
        (variance by placements).
    """
    negatives, positives = found.spread
    others, events = sum(negatives), sum(positives)
    if not others or not events:
        return None
    under = _placements(negatives)
    over = [2 * events - place for place in _placements(positives)]
    won = sum(count * place for count, place in zip(positives, under, strict=True))
    value = Fraction(won, 2 * others * events)
    pairs = others * events // 4
    best = Fraction(_pairs(found.lowest[0], found.highest[1], with_equal=True), pairs)
    worst = Fraction(_pairs(found.highest[0], found.lowest[1], with_equal=False), pairs)
    variances = [
        _variance(positives, under, 2 * others, value),
        _variance(negatives, over, 2 * events, value),
    ]
    error = None
    if None not in variances:
        error = sqrt(float(sum(filter(None, variances), Fraction(0))))
    return Area(float(value), float(max(best - value, value - worst)), error)


def curve(found: Histograms) -> list[tuple[float, float]]:
    """The points (false positive rate, true positive rate) of the curve, from (0, 0) to (1, 1)."""
    negatives, positives = found.spread
    others, events = sum(negatives), sum(positives)
    points = [(0.0, 0.0)]
    if not others or not events:
        return points
    down = zip(
        accumulate(reversed(negatives)),
        accumulate(reversed(positives)),
        strict=True,
    )
    for false, true in down:
        point = (false / others, true / events)
        if point != points[-1]:
            points.append(point)
    return points


def _placements(counts: Sequence[int]) -> list[int]:
    """Of each bin twice the rows below it, and those in it."""
    return [2 * total - count for total, count in zip(accumulate(counts), counts, strict=True)]


def _pairs(negatives: Sequence[int], positives: Sequence[int], *, with_equal: bool) -> int:
    """Pairs of rows in which that of class 1 is in the higher bin, or in the same one."""
    won, below = 0, 0
    for negative, positive in zip(negatives, positives, strict=True):
        won += positive * (below + (negative if with_equal else 0))
        below += negative
    return won


def _variance(
    counts: Sequence[int], placements: Sequence[int], whole: int, value: Fraction
) -> Fraction | None:
    """The variance of the mean placement of a class. Args: ``counts``: twice its rows; ``whole``: a placement of 1."""
    rows = sum(counts) // 2
    if rows < 2:
        return None
    squares = sum(
        count * place * place for count, place in zip(counts, placements, strict=True) if count
    )
    spread = Fraction(squares, 2 * whole * whole) - rows * value * value
    return spread / (rows - 1) / rows
