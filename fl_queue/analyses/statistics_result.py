"""The result of the task ``statistics``: its last state as plain values, rounded once from exact sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_queue.analyses import cells, exact_digits, survival_curves, vocabulary
from fl_queue.analyses.exact_digits import PRODUCTS, VALUES
from fl_queue.protocol.arrays import Int64s

if TYPE_CHECKING:
    from fl_queue.analyses.statistics import Statistics
    from fl_queue.analyses.time_grids import Curve

#: Names of the levels that the config does not list.
OTHER, MISSING = "other", "missing"
#: Name of the block with the number to whose multiples a site rounds its counts; 0: to none.
ROUNDING = "rounding"
#: The least float32 that is normal: those below it share the cell of 0.
_TINY = 2.0**-126
#: Name of the group of a curve without a category.
ALL = "all"


def result(analysis: Statistics, state: Int64s) -> dict[str, Any]:
    """
    The result of a finished analysis.

    ``withheld`` counts the sites that have withheld something: their rows are in no number beside it.
    """
    quantiles = []
    if analysis.steps == 2:
        quantiles = _quantiles(analysis, state, analysis.second_total(state))
    return _result(analysis, analysis.first_total(state), quantiles)


def site_result(analysis: Statistics, state: Int64s, answers: Sequence[Int64s]) -> dict[str, Any]:
    """The result of one site. Args: ``answers``: its words of the first step, and of the second if it has answered that."""
    quantiles = []
    if len(answers) == 2:
        quantiles = _quantiles(analysis, state, answers[1])
    return _result(analysis, answers[0], quantiles)


def _result(
    analysis: Statistics, total: Int64s, quantiles: list[list[dict[str, Any]]]
) -> dict[str, Any]:
    found = _Result(analysis, total, quantiles)
    asked = analysis.asked
    return {
        "sites": found.one("sites"),
        "rows": found.one("rows"),
        **found.rounding(),
        "numbers": {name: found.number(place, name) for place, name in enumerate(asked.numbers)},
        "levels": {name: found.levels(name) for name in asked.levels},
        "groups": {f"{x} by {g}": found.groups(x, g) for x, g in asked.groups},
        "tables": {f"{a} by {b}": found.table(a, b) for a, b in asked.tables},
        "correlation": found.correlation() if asked.correlated else None,
        "survival": {curve.name: found.survival(curve) for curve in asked.curves},
        **({"vocabulary": {x: found.names(x) for x in asked.named}} if asked.named else {}),
    }


class _Result:
    """
    Reads the sums of the first step.

    Args:
        analysis: What was asked.
        total: The sums.
        quantiles: Of each column of numbers; empty: there are none.
    """

    def __init__(
        self, analysis: Statistics, total: Int64s, quantiles: list[list[dict[str, Any]]]
    ) -> None:
        self._analysis, self._asked = analysis, analysis.asked
        self._first, self._total = analysis.first, total
        self._quantiles = quantiles

    def rounding(self) -> dict[str, float]:
        """How far a count may be from that of the rows, as sites have rounded theirs; nothing where none has."""
        found = self.one(ROUNDING)
        return {"counts_within": found / 2} if found else {}

    def _view(self, name: str) -> Int64s:
        return self._first.view(self._total, name)

    def one(self, name: str) -> int:
        """A block of one word."""
        return int(self._view(name)[0])

    def names(self, category: str) -> list[str] | None:
        """Names of levels, by code point; None: too many of them."""
        return vocabulary.names_of(self._view(f"names of {category}"))

    def number(self, place: int, name: str) -> dict[str, Any]:
        """A column of numbers. Args: ``place``: of it in the config."""
        found = self._moments(name, 0)
        shown = self.one("rows") - found["rows"] if not found["withheld"] else None
        found["missing"] = shown
        if self._quantiles:
            found["quantiles"] = self._quantiles[place]
        return found

    def _moments(self, name: str, group: int) -> dict[str, Any]:
        rows = int(self._view(f"present of {name}")[group])
        sums = self._view(f"sum of {name}").reshape(-1, VALUES.words)[group]
        squares = self._view(f"squares of {name}").reshape(-1, PRODUCTS.words)[group]
        total = exact_digits.value_of(sums, VALUES)
        square = exact_digits.value_of(squares, PRODUCTS)
        return {
            "rows": rows,
            "withheld": int(self._view(f"withheld of {name}")[group]),
            "sum": float(total),
            "mean": float(total / rows) if rows else None,
            "sd": _deviation(square - total * total / rows, rows) if rows > 1 else None,
        }

    def levels(self, name: str) -> list[dict[str, Any]]:
        """Counts of a category's levels; sites with few rows of one, or none, count them as other texts."""
        few = self.one(f"few rows of {name}")
        shown = self._view(f"levels of {name}").tolist()
        hidden = self._view(f"withheld levels of {name}").tolist()
        return [
            {"level": level, "rows": rows, "withheld": sites, "few": few}
            for level, rows, sites in zip(self._names(name), shown, hidden, strict=True)
        ]

    def _names(self, category: str) -> list[str]:
        return [*self._asked.levels[category], OTHER, MISSING]

    def groups(self, number: str, category: str) -> list[dict[str, Any]]:
        """Means by level."""
        return [
            {"level": level, **self._moments(f"{number} by {category}", place)}
            for place, level in enumerate(self._names(category))
        ]

    def table(self, left: str, right: str) -> dict[str, Any]:
        """A table of two categories, with the chi-square statistic of its levels where nothing is withheld."""
        shown = self._view(f"table of {left} by {right}")
        hidden = self._view(f"withheld of {left} by {right}")
        listed = shown[:-2, :-2]
        return {
            "rows": self._names(left),
            "columns": self._names(right),
            "counts": shown.tolist(),
            "withheld": hidden.tolist(),
            **({} if hidden.any() else _chi_square(listed)),
        }

    def correlation(self) -> dict[str, Any]:
        """Correlation and covariance over the rows that have all of the columns."""
        names, rows = self._asked.correlated, self.one("present of correlation")
        size = len(names)
        found: dict[str, Any] = {
            "columns": list(names),
            "rows": rows,
            "withheld": self.one("withheld of correlation"),
        }
        if rows < 2:
            return found | {"covariance": None, "correlation": None}
        totals = [
            exact_digits.value_of(words, VALUES) for words in self._view("sums of correlation")
        ]
        centred: dict[tuple[int, int], Fraction] = {}
        for words, (i, j) in zip(
            self._view("products of correlation"),
            combinations_with_replacement(range(size), 2),
            strict=True,
        ):
            product = exact_digits.value_of(words, PRODUCTS)
            centred[i, j] = centred[j, i] = product - totals[i] * totals[j] / rows
        # Below 0 where a site has sent squares that are none.
        spread = [math.sqrt(max(centred[i, i], Fraction(0))) for i in range(size)]
        return found | {
            "covariance": [
                [float(centred[i, j] / (rows - 1)) for j in range(size)] for i in range(size)
            ],
            "correlation": [
                [_ratio(float(centred[i, j]), spread[i] * spread[j], i == j) for j in range(size)]
                for i in range(size)
            ],
        }

    def survival(self, curve: Curve) -> dict[str, Any]:
        """Curves of each group, and the log-rank test of the listed levels where none of them is withheld."""
        points = np.array(curve.points)
        events, censored, hidden = (
            self._view(f"{kind} of survival {curve.name}")
            for kind in ("events", "censored", "withheld")
        )
        names = self._names(curve.category) if curve.category else [ALL]
        listed = len(curve.levels)
        return {
            "times": list(curve.points),
            "groups": [
                {"level": name, "withheld": int(hidden[group])}
                | survival_curves.kaplan_meier(points, events[group], censored[group])
                for group, name in enumerate(names)
            ],
            "log_rank": None
            if hidden[:listed].any()
            else survival_curves.log_rank(events[:listed], censored[:listed]),
        }


def _deviation(squares: Fraction, rows: int) -> float | None:
    """A standard deviation; None: a site has sent squares that are none."""
    return math.sqrt(squares / (rows - 1)) if squares >= 0 else None


def _ratio(product: float, spread: float, is_own: bool) -> float | None:
    """A correlation in [-1, 1]; None: a column is constant."""
    if not spread:
        return None
    return 1.0 if is_own else max(-1.0, min(1.0, product / spread))


def _chi_square(counts: Int64s) -> dict[str, Any]:
    """Pearson's statistic of independence and its degrees of freedom, over rows and columns that are not empty."""
    counts = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0]
    freedom = (counts.shape[0] - 1) * (counts.shape[1] - 1)
    if freedom < 1:
        return {}
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    return {
        "chi_square": float(((counts - expected) ** 2 / expected).sum()),
        "degrees_of_freedom": int(freedom),
    }


def _quantiles(analysis: Statistics, state: Int64s, total: Int64s) -> list[list[dict[str, Any]]]:
    """Of each column of numbers the quantiles, each with the bracket in which it lies. Args: ``total``: of the second step."""
    layout = analysis.second(state)
    found = []
    for name, fine in zip(analysis.asked.numbers, analysis.fine_cells(state), strict=True):
        counted = layout.view(total, f"cells of {name}")
        moved = int(layout.view(total, f"moved of {name}")[0])
        found.append(
            [_quantile(fine, counted, moved, fraction) for fraction in analysis.asked.quantiles]
        )
    return found


def _quantile(
    fine: cells.FineCells, counted: Int64s, moved: int, fraction: float
) -> dict[str, Any]:
    """
    A quantile by linear interpolation between ranks, as pandas defines it, known up to the bracket [low, high].

    Args:
        moved: Rows at most that sites have counted on the other side of a cell than they are.
    """
    rows = int(counted.sum())
    if not rows:
        return {"quantile": fraction, "rows": 0, "value": None, "low": None, "high": None}
    place = Fraction(fraction) * (rows - 1)
    first, _ = cells.rank_bracket(counted, math.floor(place), moved)
    _, last = cells.rank_bracket(counted, math.ceil(place), moved)
    low, high = fine.bounds(first)[0], fine.bounds(last)[1]
    return {
        "quantile": fraction,
        "rows": rows,
        # The cell of 0 has numbers beside it that no table holds.
        "value": 0.0 if abs(low) < _TINY > abs(high) else low / 2 + high / 2,
        "low": low,
        "high": high,
    }
