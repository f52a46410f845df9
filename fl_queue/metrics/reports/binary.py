"""
The report of a binary target: rows by their log-odds, and the errors of their probabilities.

A site that may not show small counts joins neighbouring bins, of each class by itself. Of the rows of a group there are
the lowest and the highest bin in which they may lie (of the wider ones, which lets a report fit into a header), and half
of them each stand at their mean less and plus their standard deviation. Each figure has a bound of what that may change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl_queue.metrics.reports import calibration, roc
from fl_queue.metrics.reports.words import TWENTIETHS, Words, off_grid
from fl_queue.protocol.arrays import Float64s, Int64s

#: Bins of log-odds: width 0.05 over -20 .. 20, and one beyond either end.
WIDTH, MOST = 0.05, 20
BINS = 802
#: Wide bins: five of the others each, and one beyond either end.
_WIDE = 5
WIDE_BINS = (BINS - 2) // _WIDE + 2
#: The first bin of log-odds of 0 or more, where class 1 is predicted.
FIRST_POSITIVE = BINS // 2
WORDS = Words(
    single=(2, BINS),
    spread=(2, BINS),
    lowest=(2, WIDE_BINS),
    highest=(2, WIDE_BINS),
    rows=(TWENTIETHS,),
    events=(TWENTIETHS,),
    probability=(TWENTIETHS,),
    squares=(1,),
    losses=(1,),
)
NAMES = (
    "accuracy",
    "accuracy_bound",
    "auc",
    "auc_bound",
    "auc_error",
    "brier",
    "calibration_intercept",
    "calibration_slope",
    "event_rate",
    "events",
    "f1",
    "log_loss",
    "mean_probability",
    "rows",
    "sensitivity",
    "sensitivity_bound",
    "specificity",
    "specificity_bound",
)


@dataclass(frozen=True)
class Counts:
    """
    Rows by the prediction of class 1 at a probability of at least 1/2: fewest, most, and as they are likely to be.

    Args:
        events, others: Rows of class 1 and of class 0.
        hits: Rows of class 1 that are predicted so.
        rejections: The same of class 0.
    """

    events: int
    others: int
    hits: tuple[int, int, float]
    rejections: tuple[int, int, float]

    @property
    def correct(self) -> tuple[int, int, float]:
        """Rows that are predicted as they are."""
        hits, kept = self.hits, self.rejections
        return hits[0] + kept[0], hits[1] + kept[1], hits[2] + kept[2]


@dataclass(frozen=True)
class BinaryReport:
    """
    The figures of a report.

    Args:
        words: One site's, or the sum of several.
    """

    words: Sequence[int]

    @property
    def histograms(self) -> roc.Histograms:
        """Rows by bins of log-odds."""
        parts = WORDS.parts(self.words)
        single, spread = parts["single"], parts["spread"]
        ends = {"lowest": _first_of_wide, "highest": _last_of_wide}
        found = {}
        for name, place in ends.items():
            found[name] = [[*side] for side in single]
            for side, rows in enumerate(parts[name]):
                for at, count in enumerate(rows):
                    found[name][side][place(at)] += count
        doubled = [
            [2 * one + both for one, both in zip(single[side], spread[side], strict=True)]
            for side in (0, 1)
        ]
        return roc.Histograms(found["lowest"], found["highest"], doubled)

    @property
    def counts(self) -> Counts:
        """Rows by the prediction."""
        found = self.histograms
        others, events = (sum(side) for side in found.lowest)
        hits = [sum(one[1][FIRST_POSITIVE:]) for one in (found.lowest, found.highest, found.spread)]
        kept = [sum(one[0][:FIRST_POSITIVE]) for one in (found.highest, found.lowest, found.spread)]
        return Counts(
            events, others, (hits[0], hits[1], hits[2] / 2), (kept[0], kept[1], kept[2] / 2)
        )

    @property
    def groups(self) -> list[calibration.Group]:
        """Rows by twentieths of the probability."""
        parts = WORDS.parts(self.words)
        return calibration.groups(parts["rows"], parts["events"], parts["probability"])

    @property
    def brier(self) -> float:
        """Mean of (p - y)**2."""
        return self._mean("squares")

    @property
    def log_loss(self) -> float:
        """Mean of -log of the true class's probability, log-odds beyond +-36 counting as 36."""
        return self._mean("losses")

    def _mean(self, part: str) -> float:
        parts = WORDS.parts(self.words)
        return float(off_grid(parts[part][0]) / sum(parts["rows"]))


def size_problem(size: int) -> str:
    """Why a report has not that many words; empty: it has."""
    return "" if size == WORDS.size else f"a list of {WORDS.size} whole numbers"


def bins_of(log_odds: Float64s) -> Int64s:
    """The bin of each row, (N,); NaN is in the lowest one."""
    scaled = np.nan_to_num(log_odds, nan=-np.inf, posinf=np.inf, neginf=-np.inf) * (1 / WIDTH)
    bounded = np.clip(np.floor(scaled), -FIRST_POSITIVE, FIRST_POSITIVE - 1)
    found: Int64s = bounded.astype(np.int64) + FIRST_POSITIVE
    return found


def wide_of(bins: Int64s) -> Int64s:
    """The wide bin of each bin."""
    return np.where(bins == BINS - 1, WIDE_BINS - 1, (bins + _WIDE - 1) // _WIDE)


def _first_of_wide(place: int) -> int:
    return 0 if place == 0 else BINS - 1 if place == WIDE_BINS - 1 else _WIDE * (place - 1) + 1


def _last_of_wide(place: int) -> int:
    return BINS - 1 if place == WIDE_BINS - 1 else _WIDE * place


def centres() -> Float64s:
    """The log-odds in the middle of each bin, (802,); of the two outer ones their inner end."""
    found = (np.arange(BINS) - FIRST_POSITIVE + 0.5) * WIDTH
    return np.asarray(np.clip(found, -MOST, MOST), np.float64)


def values(words: Sequence[int]) -> dict[str, float]:
    """Single numbers of a report; what has no value, such as an area without both classes, is left out."""
    report = BinaryReport(words)
    counts, rows = report.counts, report.counts.events + report.counts.others
    if not rows:
        return {}
    hits, kept = counts.hits[2], counts.rejections[2]
    probability = sum(group.probability * group.rows for group in report.groups)
    found = {
        "rows": float(rows),
        "events": float(counts.events),
        "event_rate": counts.events / rows,
        "mean_probability": probability / rows,
        "brier": report.brier,
        "log_loss": report.log_loss,
    }
    if predicted := counts.events + hits + counts.others - kept:
        found["f1"] = 2 * hits / predicted
    parts = {
        "accuracy": (counts.correct, rows),
        "sensitivity": (counts.hits, counts.events),
        "specificity": (counts.rejections, counts.others),
    }
    for name, ((fewest, most, likely), of) in parts.items():
        if of:
            found[name] = likely / of
        if most > fewest:
            found[f"{name}_bound"] = max(most - likely, likely - fewest) / of
    if (area := roc.area(report.histograms)) is not None:
        found |= {"auc": area.value, "auc_bound": area.bound}
        found |= {"auc_error": area.error} if area.error is not None else {}
    if (line := calibration.line(report.histograms, centres())) is not None:
        found |= {"calibration_intercept": line.intercept, "calibration_slope": line.slope}
    return found
