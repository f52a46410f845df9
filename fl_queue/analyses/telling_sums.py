"""
Sums of many rows that show few of them all the same: which of a site's sums are withheld for what their rows hold.

That is so where one row makes nearly all of a sum or of a sum of squares, where all rows but few have the same number,
and where there are two or three different numbers: how many rows have each follows from number, sum and squares.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt

from fl_queue.analyses.base import Limits
from fl_queue.analyses.suppression import Mask
from fl_queue.protocol.arrays import Float64s, Int64s

#: Rows that are looked at first: usually they have more different numbers than any rule is about.
_LOOK = 4096
#: The first of these, where that is enough.
_GLANCE = 64
#: Far above the relative error of a sum of so many float64.
_MARGIN = 1e-6
#: Count, sum and sum of squares are three equations.
_EQUATIONS = 3

Places = npt.NDArray[np.intp]


def by_group(values: Float64s, places: Places, size: int, limits: Limits) -> Mask:
    """
    Of each group whether number, sum and sum of squares show few rows, (size,).

    Args:
        values: (N,) finite.
        places: (N,) group of each, 0 to ``size - 1``.
    """
    if size == 1:
        return np.array([is_telling(values, limits)])
    order = np.argsort(places, kind="stable")
    parts = np.split(values[order], np.searchsorted(places[order], np.arange(1, size)))
    return np.array([is_telling(part, limits) for part in parts])


def complete(mask: Mask, counts: Int64s, values: Float64s, places: Places, limits: Limits) -> None:
    """
    Withhold further groups until those that are withheld show few rows no more: their sum follows from the total.

    Changes ``mask``.

    Args:
        mask: (size,) groups that are withheld.
        counts: (size,) rows of each.
        values, places: As of ``by_group``.
    """
    while mask.any() and is_telling(values[mask[places]], limits):
        left = np.flatnonzero(~mask & (counts > 0))
        if not len(left):
            return
        mask[left[np.argmin(counts[left])]] = True


def of_products(columns: Float64s, is_whole: Mask, limits: Limits) -> bool:
    """
    Whether sums and sums of products of columns show few rows.

    A column of two numbers cuts the rows of each other column in two: its products with them are sums by group.

    Args:
        columns: (p, N); NaN: missing.
        is_whole: (N,) rows without a gap.
    """
    whole = columns[:, is_whole]
    rest = (column[~is_whole & ~np.isnan(column)] for column in columns)
    if any(is_telling(part, limits) for part in (*whole, *rest)):
        return True
    cuts = [halves(column) for column in whole]
    products = np.empty(whole.shape[1])
    for i, j in combinations(range(len(whole)), 2):
        np.multiply(whole[i], whole[j], out=products)
        if _is_dominated(products, limits) or _is_nearly_constant(products, limits.min_cell):
            return True
        for cut, other in ((cuts[i], whole[j]), (cuts[j], whole[i])):
            if cut is not None and by_group(other, cut, 2, limits).any():
                return True
    return False


def halves(values: Float64s) -> Places | None:
    """Of each row which of two numbers it has; None: there are not two."""
    if not len(values):
        return None
    low, high = values.min(), values.max()
    is_two = low < high and bool(np.all((values == low) | (values == high)))
    return (values == high).astype(np.intp) if is_two else None


def is_telling(values: Float64s, limits: Limits) -> bool:
    """Whether number, sum and sum of squares of all rows show few of them."""
    return (
        _is_dominated(values, limits)
        or _is_dominated(values, limits, of_squares=True)
        or _is_nearly_constant(values, limits.min_cell)
    )


def _is_dominated(values: Float64s, limits: Limits, *, of_squares: bool = False) -> bool:
    """Whether a sum shows nearly its largest value: the p per cent rule, for numbers that are not negative."""
    if not limits.dominance or not len(values):
        return False
    low, high = float(values.min()), float(values.max())
    largest = max(low * low, high * high) if of_squares else high
    if largest == 0 or (low < 0 and not of_squares):
        return False
    least = limits.dominance / 100 * largest
    head = values[:_LOOK] ** 2 if of_squares else values[:_LOOK]
    # Some rows without their two largest have no more than all rows without theirs; the margin is for rounding.
    if (1 - _MARGIN) * head.sum() - 2 * head.max() > (1 + _MARGIN) * least:
        return False
    whole = values * values if of_squares else values
    first = np.partition(whole, max(len(whole) - 2, 0))[:-2]
    return bool(first.sum() < least)


def _is_nearly_constant(values: Float64s, least: int) -> bool:
    """Whether few rows have another number than the rest, or one of two or three numbers."""
    if least < 2:
        return False
    for look in (_GLANCE, _LOOK):
        if len(np.unique(values[:look])) > max(least, _EQUATIONS) + 1:
            return False
    counts = np.unique(values, return_counts=True)[1]
    if len(counts) < 2:
        return False
    others = len(values) - int(counts.max())
    if counts.max() >= least and others < least:
        return True
    return len(counts) <= _EQUATIONS and bool(counts.min() < least)
