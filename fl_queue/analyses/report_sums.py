"""
A site's rows as the words of a report (``fl_queue.metrics.reports``), within what the site shows of them.

A word is a sum over rows of whole numbers that depend on the row alone. Where a site shows no small counts, neighbouring
bins of the score are joined until each group has no row of a class or enough of them; all other counts are sums of
such groups, so no two of them differ by a few rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fl_queue.analyses import exact_digits
from fl_queue.analyses.base import Limits
from fl_queue.analyses.suppression import withheld
from fl_queue.analyses.telling_sums import is_telling
from fl_queue.errors import PolicyRefusal
from fl_queue.metrics.reports import binary, classes, regression
from fl_queue.metrics.reports.words import TWENTIETHS, on_grid
from fl_queue.protocol.arrays import Float64s, Int64s

#: Log-odds beyond count as these in a logarithm: 1 less the probability is 2**-53 there.
_LOUDEST = 36.0
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
    group, lowest, highest = _joined(counts, least, binary.FIRST_POSITIVE)
    odds = np.clip(np.nan_to_num(log_odds, nan=-np.inf), -700.0, 700.0)
    p = _probabilities(odds)
    return binary.WORDS.packed(
        {
            "lowest": _placed(counts, group, lowest),
            "highest": _placed(counts, group, highest),
            **_by_twentieths(p, truth, group[bins] if least > 1 else None),
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
    squares = on_grid((p * p).sum(axis=1) - 2 * of_truth + 1)
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
            "losses": [on_grid(-np.log(np.maximum(of_truth, np.exp(-_LOUDEST)))).sum()],
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


def _probabilities(odds: Float64s) -> Float64s:
    small = np.exp(-np.abs(odds))
    return np.where(odds >= 0, 1 / (1 + small), small / (1 + small))


def _losses(odds: Float64s, truth: Int64s) -> Float64s:
    """-log of the probability of each row's class."""
    against = np.clip(np.where(truth == 1, -odds, odds), -_LOUDEST, _LOUDEST)
    found: Float64s = np.maximum(against, 0) + np.log1p(np.exp(-np.abs(against)))
    return found


def _shares(scores: Float64s) -> Float64s:
    """Probabilities (N, C) of scores: their softmax."""
    raised = np.exp(np.maximum(scores - scores.max(axis=1, keepdims=True), -700.0))
    found: Float64s = raised / raised.sum(axis=1, keepdims=True)
    return found


def _joined(counts: Int64s, least: int, border: int) -> tuple[Int64s, Int64s, Int64s]:
    """
    Neighbouring bins as groups, each with no row of a class or at least ``least``.

    Args:
        counts: (classes, bins); each class has no row or ``least``.
        border: First bin after a place that no group extends over, if there are rows enough on either side.

    Returns:
        Number of the group of each bin, (bins,); first and last bin of each group, (groups,).
    """
    if least <= 1:
        each = np.arange(counts.shape[1])
        return each, each, each
    ends = _ends(counts[:, :border], least)
    ends = [*ends, *(border + end for end in _ends(counts[:, border:], least))]
    while not _are_enough(counts, ends, least):
        at = _first_of_few(counts, ends, least)
        # With the neighbour on the same side of the border, if there is one.
        other = at - 1 if at and (ends[at - 1] != border or at == len(ends) - 1) else at
        del ends[other]
    stops = np.array(ends)
    starts = np.concatenate([[0], stops[:-1]])
    return np.searchsorted(stops, np.arange(counts.shape[1]), side="right"), starts, stops - 1


def _ends(counts: Int64s, least: int) -> list[int]:
    """Ends of groups of bins from the left, the last of which may have too few rows."""
    found, sums = [], np.zeros(len(counts), np.int64)
    for place, rows in enumerate(counts.T, 1):
        sums = sums + rows
        if sums.any() and _is_enough(sums, least):
            found.append(place)
            sums = np.zeros_like(sums)
    if not found or sums.any():
        return [*found, counts.shape[1]]
    found[-1] = counts.shape[1]
    return found


def _is_enough(sums: Int64s, least: int) -> bool:
    return bool(((sums == 0) | (sums >= least)).all())


def _sums(counts: Int64s, ends: Sequence[int]) -> Int64s:
    """Rows of each class and group, (classes, groups)."""
    return np.add.reduceat(counts, [0, *ends[:-1]], axis=1)


def _are_enough(counts: Int64s, ends: Sequence[int], least: int) -> bool:
    return _is_enough(_sums(counts, ends), least)


def _first_of_few(counts: Int64s, ends: Sequence[int], least: int) -> int:
    sums = _sums(counts, ends)
    return int(np.flatnonzero(((sums > 0) & (sums < least)).any(axis=0))[0])


def _placed(counts: Int64s, group: Int64s, places: Int64s) -> Int64s:
    """Counts (classes, bins) in which the rows of each group stand at one bin of it."""
    found = np.zeros_like(counts)
    for side, rows in enumerate(counts):
        np.add.at(found[side], places[group], rows)
    return found


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
    if not _is_enough(counts.sum(axis=1), least):
        return _by_twentieths(p[:0], events[:0], None)
    return _by_twentieths(p, events, _joined(counts, least, TWENTIETHS // 2)[0][place])


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
