"""The report of a target that is a number: exact sums of predictions, targets and their differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import sqrt

from fl_queue.metrics.reports.words import Words

#: Words of an exact sum of values and of one of products, and the exponents of their lowest bits: those of
#: ``fl_queue.analyses.exact_digits``.
VALUES, PRODUCTS = (8, -128), (14, -256)
#: Sums of values: the error (prediction less target), its size, targets and predictions.
OF_VALUES = ("error", "size", "target", "prediction")
#: Sums of products of two of these.
OF_PRODUCTS = ("errors", "targets", "predictions", "both")
WORDS = Words(
    rows=(1,),
    **dict.fromkeys(OF_VALUES, (VALUES[0],)),
    **dict.fromkeys(OF_PRODUCTS, (PRODUCTS[0],)),
)
NAMES = ("bias", "calibration_slope", "mae", "r2", "rmse", "rows")


def size_problem(size: int) -> str:
    """Why a report has not that many words; empty: it has."""
    return "" if size == WORDS.size else f"a list of {WORDS.size} whole numbers"


@dataclass(frozen=True)
class RegressionReport:
    """
    The figures of a report.

    Args:
        words: One site's, or the sum of several.
    """

    words: Sequence[int]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.words[0])

    def total(self, part: str) -> Fraction:
        """An exact sum."""
        low = (VALUES if part in OF_VALUES else PRODUCTS)[1]
        words = WORDS.parts(self.words)[part]
        whole = sum(word << (32 * place) for place, word in enumerate(words))
        return Fraction(whole) * Fraction(2) ** low

    def spread(self, part: str) -> Fraction:
        """Sum of products of differences to the means: of targets, of predictions, or of ``both``."""
        names = {
            "targets": ("target", "target"),
            "predictions": ("prediction", "prediction"),
            "both": ("target", "prediction"),
        }
        first, second = (self.total(name) for name in names[part])
        return self.total(part) - first * second / self.rows


def values(words: Sequence[int]) -> dict[str, float]:
    """Single numbers of a report, each rounded once; what has no value is left out."""
    report = RegressionReport(words)
    if not report.rows:
        return {}
    errors, targets = report.total("errors"), report.spread("targets")
    predictions = report.spread("predictions")
    found = {
        "rows": float(report.rows),
        "bias": float(report.total("error") / report.rows),
        "mae": float(report.total("size") / report.rows),
        "rmse": sqrt(float(errors / report.rows)),
    }
    if targets > 0:
        found["r2"] = float(1 - errors / targets)
    if predictions > 0:
        found["calibration_slope"] = float(report.spread("both") / predictions)
    return found
