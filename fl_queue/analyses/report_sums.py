"""
A site's rows as the words of a report (``fl_queue.metrics.reports``), within what the site shows of them.

A word is a sum over rows of whole numbers that depend on the row alone. Where a site shows no small counts, neighbouring
bins of the score are joined until each group has no row of a class or enough of them; all other counts are sums of
such groups, so no two of them differ by a few rows.
"""

from __future__ import annotations

import numpy as np

from fl_queue.analyses import elementary, exact_digits
from fl_queue.analyses.base import Limits
from fl_queue.analyses.joined_bins import Groups, is_enough, joined, joined_within
from fl_queue.analyses.suppression import withheld
from fl_queue.analyses.telling_sums import is_telling
from fl_queue.errors import PolicyRefusal
from fl_queue.metrics.reports import binary, classes, regression
from fl_queue.metrics.reports.words import TWENTIETHS, off_grid, on_grid
from fl_queue.protocol.arrays import Float64s, Int64s

#: Log-odds beyond count as these in a logarithm: 1 less the probability is 2**-53 there.
_LOUDEST = 36.0
_LEAST = 2.3195228302435696e-16
_FEW_OF_A_CLASS = "fewer rows of a class than its min_cell"


def of_binary(log_odds: Float64s, truth: Int64s, limits: Limits) -> list[int]:
    """
    The report of a binary target.

    Args:
        log_odds: (N,) of class 1; NaN counts as the lowest.
        truth: (N,) 0 or 1.
        limits: What the site shows.

    Raises:
        PolicyRefusal: There are too few rows, or too few of one class.
    """
    limits.check_rows(len(truth))
    bins = binary.bins_of(log_odds)
    counts = np.stack([np.bincount(bins[truth == side], minlength=binary.BINS) for side in (0, 1)])
    least = max(1, limits.min_cell)
    if any(0 < rows < least for rows in counts.sum(axis=1)):
        raise PolicyRefusal(_FEW_OF_A_CLASS)
    together = joined(counts, least, binary.FIRST_POSITIVE)
    odds = np.clip(np.nan_to_num(log_odds, nan=-np.inf), -700.0, 700.0)
    p = elementary.sigmoid(odds)
    return binary.WORDS.packed(
        {
            **_histograms(counts, _sums_by_bin(odds, truth, bins), together, least),
            **_by_twentieths(p, truth, together.group[bins] if least > 1 else None),
            "squares": [on_grid((p - truth) ** 2).sum()],
            "losses": [on_grid(_losses(odds, truth)).sum()],
        }
    )


def of_classes(scores: Float64s, truth: Int64s, limits: Limits) -> list[int]:
    """
    The report of several classes.

    Args:
        scores: (N, C) logarithms of probabilities, but for a number that is one row's; C from 3 to 40.
        truth: (N,) the class of each row.
        limits: What the site shows.

    Raises:
        PolicyRefusal: There are too few rows.
    """
    limits.check_rows(len(truth))
    count, least = scores.shape[1], max(1, limits.min_cell)
    finite = np.nan_to_num(scores, nan=-1e300, posinf=1e300, neginf=-1e300)
    predicted = finite.argmax(axis=1)
    p = _shares(finite)
    of_truth = p[np.arange(len(truth)), truth]
    matrix = np.bincount(truth * count + predicted, minlength=count * count).reshape(count, count)
    hidden = _hidden(matrix, least)
    is_hit = (predicted == truth).astype(np.int64)
    hits = int(is_hit.sum())
    is_counted = all(rows == 0 or rows >= least for rows in (hits, len(truth) - hits))
    squares = on_grid(_squares(p) - 2 * of_truth + 1)
    sure = p.max(axis=1)
    return classes.words(count).packed(
        {
            "confusion": np.where(hidden, 0, matrix),
            "withheld": hidden.astype(np.int64),
            "total": [len(truth)],
            "counted": [len(truth) if is_counted else 0],
            "hits": [hits if is_counted else 0],
            **_of_sureness(sure, is_hit, least),
            "squares": [squares.sum()],
            "losses": [on_grid(-elementary.log(np.maximum(of_truth, _LEAST))).sum()],
        }
    )


def of_numbers(prediction: Float64s, target: Float64s, limits: Limits) -> list[int] | None:
    """
    The report of a target that is a number; None where one of the numbers is not finite, or as large as 2**64.

    Args:
        prediction, target: (N,) each.
        limits: What the site shows.

    Raises:
        PolicyRefusal: There are too few rows, or one has most of a sum.
    """
    limits.check_rows(len(target))
    error = prediction - target
    columns = [_summable(column) for column in (error, np.abs(error), target, prediction)]
    if not all(np.isfinite(c).all() and (np.abs(c) < exact_digits.MOST).all() for c in columns):
        return None
    error, _, target, prediction = columns
    pairs = {
        "errors": (error, error),
        "targets": (target, target),
        "predictions": (prediction, prediction),
        "both": (target, prediction),
    }
    if any(is_telling(column, limits) for column in columns):
        raise PolicyRefusal(
            "a sum of the targets, predictions or errors would show few of its rows"
        )
    one = np.zeros(len(target), np.intp)
    sums = {
        name: exact_digits.sums(column, one, 1)
        for name, column in zip(regression.OF_VALUES, columns, strict=True)
    }
    products = {name: exact_digits.product_sums(a, b, one, 1) for name, (a, b) in pairs.items()}
    return regression.WORDS.packed({"rows": [len(target)], **sums, **products})


def _summable(values: Float64s) -> Float64s:
    """Numbers so small that an exact sum has no room for them, as differences of equal numbers may be, are 0."""
    return np.where(np.abs(values) < exact_digits.LEAST, 0.0, values)


def _losses(odds: Float64s, truth: Int64s) -> Float64s:
    """-log of the probability of each row's class."""
    against = np.clip(np.where(truth == 1, -odds, odds), -_LOUDEST, _LOUDEST)
    found: Float64s = np.maximum(against, 0) + elementary.log(1 + elementary.exp(-np.abs(against)))
    return found


def _shares(scores: Float64s) -> Float64s:
    """Probabilities (N, C) of scores: their softmax."""
    raised = elementary.exp(np.maximum(scores - scores.max(axis=1, keepdims=True), -700.0))
    total = raised[:, 0]
    for column in raised.T[1:]:  # In this order on every machine.
        total = total + column
    found: Float64s = raised / total[:, None]
    return found


def _squares(p: Float64s) -> Float64s:
    """Sum of squares of each row, (N,), in this order on every machine."""
    total = np.zeros(len(p))
    for column in p.T:
        total = total + column * column
    return total


def _histograms(
    counts: Int64s, sums: tuple[Int64s, Int64s], together: Groups, least: int
) -> dict[str, Int64s]:
    """
    Rows of each class by bins: those of groups of one bin, and those that are joined.

    Args:
        counts: (2, bins) rows.
        sums: Of log-odds and of their squares, (2, bins) each.
        together: Groups of both classes.
    """
    single, spread = np.zeros_like(counts), np.zeros_like(counts)
    lowest, highest = (np.zeros((2, binary.WIDE_BINS), np.int64) for _ in range(2))
    for side, rows in enumerate(counts):
        groups = joined_within(rows, together, binary.FIRST_POSITIVE, least)
        is_one = groups.first == groups.last
        count, total, squares = np.zeros((3, len(groups.first)), np.int64)
        for found, column in ((count, rows), (total, sums[0][side]), (squares, sums[1][side])):
            np.add.at(found, groups.group, column)
        single[side, groups.first[is_one]] = count[is_one]
        many = ~is_one & (count > 0)
        first, last, joined = groups.first[many], groups.last[many], count[many]
        mean = off_grid(total[many]) / joined
        deviation = np.sqrt(np.maximum(off_grid(squares[many]) / joined - mean * mean, 0.0))
        for point in (mean - deviation, mean + deviation):
            np.add.at(spread[side], np.clip(binary.bins_of(point), first, last), joined)
        np.add.at(lowest[side], binary.wide_of(first), joined)
        np.add.at(highest[side], binary.wide_of(last), joined)
    return {"single": single, "spread": spread, "lowest": lowest, "highest": highest}


def _sums_by_bin(odds: Float64s, truth: Int64s, bins: Int64s) -> tuple[Int64s, Int64s]:
    """Sums of log-odds and of their squares, of each class and bin; beyond the outer bins' ends they are there."""
    bounded = np.clip(odds, -binary.MOST - binary.WIDTH, binary.MOST + binary.WIDTH)
    found = np.zeros((2, 2, binary.BINS), np.int64)
    for part, column in zip(found, (bounded, bounded * bounded), strict=True):
        np.add.at(part, (truth, bins), on_grid(column))
    return found[0], found[1]


def _by_twentieths(p: Float64s, events: Int64s, group: Int64s | None) -> dict[str, Int64s]:
    """
    Rows, events and sums of probabilities by twentieths of the probability.

    Args:
        group: (N,) groups of rows that stay together, by their mean; None: each row by its own probability.
    """
    fractions = on_grid(p)
    place = np.minimum((p * TWENTIETHS).astype(np.int64), TWENTIETHS - 1)
    if group is not None and len(group):
        size = np.bincount(group)
        total = np.zeros(len(size), np.int64)
        np.add.at(total, group, fractions)
        # In whole numbers: twentieths of sums on the grid.
        unit = int(on_grid(1.0))
        means = [
            TWENTIETHS * int(t) // (int(n) * unit) if n else 0
            for t, n in zip(total, size, strict=True)
        ]
        place = np.minimum(np.array(means, np.int64), TWENTIETHS - 1)[group]
    found = {name: np.zeros(TWENTIETHS, np.int64) for name in ("rows", "events", "probability")}
    for name, column in (
        ("rows", np.ones_like(place)),
        ("events", events),
        ("probability", fractions),
    ):
        np.add.at(found[name], place, column)
    return found


def _of_sureness(p: Float64s, events: Int64s, least: int) -> dict[str, Int64s]:
    """The same with twentieths joined; nothing where there are too few rows with the event, or without it."""
    if least <= 1:
        return _by_twentieths(p, events, None)
    place = np.minimum((p * TWENTIETHS).astype(np.int64), TWENTIETHS - 1)
    counts = np.stack([np.bincount(place[events == side], minlength=TWENTIETHS) for side in (0, 1)])
    if not is_enough(counts.sum(axis=1), least):
        return _by_twentieths(p[:0], events[:0], None)
    return _by_twentieths(p, events, joined(counts, least, TWENTIETHS // 2).group[place])


def _hidden(matrix: Int64s, least: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """The counts of a confusion matrix that are withheld: those that are small, and of which others would follow."""
    hidden = withheld(matrix, least)
    diagonal = np.eye(len(matrix), dtype=bool)
    for part in (diagonal, ~diagonal):
        # The rows that are predicted as they are, and all others, are counted besides.
        few = hidden & part
        if few.any() and (few.sum() < 2 or matrix[few].sum() < least):
            return np.asarray(matrix > 0)
    return hidden
