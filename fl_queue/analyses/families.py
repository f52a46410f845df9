"""
Families of regressions: what a row adds to log-likelihood, score and information, and where Newton's steps begin.

``Family`` is what a further one implements, with rows of its own kind; ``Glm`` is a family in which each row's terms
follow from its linear predictor: linear, logistic and Poisson with their canonical links (McCullagh and Nelder 1989).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fl_queue.analyses import elementary, grid
from fl_queue.errors import DataError
from fl_queue.protocol.arrays import Float64s, Int64s

if TYPE_CHECKING:
    from fl_queue.analyses.base import SiteRows
    from fl_queue.analyses.design import Design, Mask

#: A row's squared residual is added on a coarser grid: that of fourth powers.
SQUARES_COARSER = 8
#: Slack of families whose terms have no bound.
_SLACK = 16.0
#: From this count on Stirling's series has all digits.
_STIRLING = 48
_HALF_LOG_2_PI = float.fromhex("0x1.d67f1c864beb5p-1")


@dataclass(frozen=True)
class SiteDesign:
    """
    A site's rows without a gap, as the steps of a fit read them.

    Args:
        columns: (N, p) with the intercept first; centred and scaled.
        target: (N,); of family linear centred and scaled, less the offset.
        offset: (N,) of the linear predictor.
        weights: (N,) of each row's terms; above 0.
    """

    columns: Float64s
    target: Float64s
    offset: Float64s
    weights: Float64s


@dataclass(frozen=True)
class Place:
    """
    Where a step evaluates, and on which grid.

    Args:
        beta: (p,) coefficients of the scaled columns.
        rows: Of all sites together.
        shift: Of the grid.
        with_squares: Whether sums of squared residuals are wanted, on a grid of ``shift - 8``.
    """

    beta: Float64s
    rows: int
    shift: int
    with_squares: bool = False


@dataclass(frozen=True)
class Sums:
    """
    What a site adds up in a step.

    Args:
        steep: 1: the sums do not fit the grid, and all others are 0.
        likelihood, pearson, residuals: Pairs of words: log-likelihood, squared residuals over their variance, and
            squared residuals.
        score: (p,).
        information, squares: (p (p + 1) / 2,) lower triangles; the latter empty unless wanted.
        weights: Sum of the rows' weights in the information, and of their squares.
    """

    steep: int
    likelihood: Int64s
    pearson: Int64s
    residuals: Int64s
    score: Int64s
    information: Int64s
    squares: Int64s
    weights: tuple[float, float]


class Terms(NamedTuple):
    """
    What each row adds, (N,) each.

    Args:
        likelihood: Log-likelihood, without what does not depend on the coefficients.
        residual: Of the target; times a column it is the row's part of the score.
        weight: Of the information.
    """

    likelihood: Float64s
    residual: Float64s
    weight: Float64s


@dataclass(frozen=True)
class TargetMoments:
    """
    Exact moments of the target over all rows without a gap.

    Args:
        rows: Their number.
        total, square: Sum of the target, and of its squares.
        offset: Mean of the offset.
    """

    rows: int
    total: Fraction
    square: Fraction
    offset: Fraction

    @property
    def mean(self) -> Fraction:
        """Of the target."""
        return self.total / self.rows


class Family(ABC):
    """A family of regressions."""

    #: As in ``task.family``.
    name: str
    #: Whether the first column is an intercept, of ones.
    has_intercept = True
    #: Whether the target is centred and scaled as the columns are.
    has_scale = False
    #: Sums over rows that do not depend on the coefficients.
    constant_sums = 0

    @abstractmethod
    def check(self, name: str, target: Float64s) -> None:
        """Raise DataError unless the family takes the values. Args: ``name``: of the target's column."""

    def problem(self, target: TargetMoments) -> str:
        """Return why the target of all sites cannot be explained; empty: it can."""
        return ""

    def constants(self, target: Float64s) -> Float64s:
        """Return what each row adds to sums that do not depend on the coefficients, (N, ``constant_sums``)."""
        return np.zeros((len(target), 0))

    @abstractmethod
    def bound(self, target: TargetMoments) -> float:
        """Return the bound of a row's share of a sum, for ``grid.shift_of``."""

    @abstractmethod
    def start(self, target: TargetMoments, size: int) -> Float64s:
        """Return the coefficients (size,) of the first evaluation."""

    def second(self, score: Float64s, information: Float64s, step: Float64s) -> Float64s | None:
        """
        Return the coefficients after the first evaluation, if better ones than Newton's are known.

        Args:
            score, information: At ``start``.
            step: Newton's, from there.
        """
        return None

    def prepared(
        self, encoded: SiteDesign, design: Design, table: SiteRows, is_whole: Mask
    ) -> SiteDesign:
        """Return a site's rows as ``sums`` reads them. Args: ``encoded``: rows of ``table`` without a gap."""
        return encoded

    @abstractmethod
    def sums(self, design: SiteDesign, place: Place) -> Sums:
        """Return a site's sums."""


class Glm(Family):
    """A generalised linear model."""

    @abstractmethod
    def terms(self, eta: Float64s, target: Float64s) -> Terms:
        """Return what each row adds at a finite linear predictor (N,)."""

    def sums(self, design: SiteDesign, place: Place) -> Sums:
        """Return a site's sums."""
        columns, rows, shift = design.columns, place.rows, place.shift
        eta = grid.linear(columns, place.beta) + design.offset
        if not np.all(np.isfinite(eta)):
            return none(place)
        most = grid.largest_term(rows, shift)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            likelihood, residual, weight = (
                part * design.weights for part in self.terms(eta, design.target)
            )
            squared = residual * residual
            pearson = np.minimum(np.where(squared == 0.0, 0.0, squared / weight), most)
        # Of all rows, or of none: whether sums fit the grid does not depend on the site that has a row.
        if not (np.all(np.abs(likelihood) <= most) and np.all(squared <= most)):
            return none(place)
        residuals = grid.pair_sum(squared, shift)
        score = information = squares = None
        if grid.are_residuals_small(grid.pair_value(residuals, shift), rows, shift):
            score = grid.score(columns, residual, shift)
            information = grid.products(columns, weight, shift)
            squares = np.zeros(0, np.int64)
            if place.with_squares:
                squares = grid.products(columns, squared, shift - SQUARES_COARSER)
        if score is None or information is None or squares is None:
            return none(place)
        return Sums(
            0,
            grid.pair_sum(likelihood, shift),
            grid.pair_sum(pearson, shift),
            residuals,
            score,
            information,
            squares,
            (float(weight.sum()), float((weight * weight).sum())),
        )


def none(place: Place) -> Sums:
    """Sums that do not fit the grid."""
    size = len(place.beta)
    triangle = size * (size + 1) // 2
    pair, sums = np.zeros(2, np.int64), np.zeros(triangle, np.int64)
    squares = sums if place.with_squares else sums[:0]
    return Sums(1, pair, pair, pair, np.zeros(size, np.int64), sums, squares, (1.0, 0.0))


class Linear(Glm):
    """Squared errors. Its log-likelihood here is minus the sum of squared residuals."""

    name = "linear"
    has_scale = True

    def check(self, name: str, target: Float64s) -> None:
        """Take all numbers."""

    def problem(self, target: TargetMoments) -> str:
        """Refuse a constant target."""
        is_constant = target.rows * target.square == target.total * target.total
        return "has one value over all sites" if is_constant else ""

    def bound(self, target: TargetMoments) -> float:
        """Return 4: target and columns are scaled to at most twice the variance 1."""
        return 4.0

    def start(self, target: TargetMoments, size: int) -> Float64s:
        """Return zeros: one step leads to the solution."""
        return np.zeros(size)

    def terms(self, eta: Float64s, target: Float64s) -> Terms:
        """Return those of squared errors."""
        residual = target - eta
        return Terms(-(residual * residual), residual, np.ones_like(eta))


class Logistic(Glm):
    """Two classes: the target is 0 or 1, the link the logit."""

    name = "logistic"

    def check(self, name: str, target: Float64s) -> None:
        """Take 0 and 1."""
        if not np.all((target == 0.0) | (target == 1.0)):
            raise DataError(
                "table",
                f"column {name}: family logistic wants 0 and 1; of other values set task.classes",
                public=True,
            )

    def problem(self, target: TargetMoments) -> str:
        """Refuse a target of one class."""
        return "has one level over all sites" if target.total in (0, target.rows) else ""

    def bound(self, target: TargetMoments) -> float:
        """Return 2: weights are at most 1/4, residuals at most 1."""
        return 2.0

    def start(self, target: TargetMoments, size: int) -> Float64s:
        """Return zeros: from there the discriminant is one step."""
        return np.zeros(size)

    def second(self, score: Float64s, information: Float64s, step: Float64s) -> Float64s | None:
        """
        Return the linear discriminant's coefficients, from the sums at zero (Haggstrom 1983).

        There the information is a quarter of the columns' products, and Newton's step four times the least squares of
        ``target - 1/2``.
        """
        products, least_squares = 4.0 * information, step / 4.0
        rows = float(products[0, 0])
        share = float(score[0]) / rows + 0.5
        explained = float(_dot(least_squares, score)) / rows - (share - 0.5) ** 2
        rest = 1.0 - explained / (share * (1.0 - share))
        if not 0.0 < share < 1.0 or not rest > 1e-3:
            return None
        slopes = least_squares[1:] / (share * (1.0 - share) * rest)
        sums = products[0, 1:]
        of_ones = score[1:] + 0.5 * sums
        middle = of_ones / (rows * share) + (sums - of_ones) / (rows * (1.0 - share))
        odds = _log(share) - _log(1.0 - share)
        return np.concatenate(([odds - 0.5 * _dot(middle, slopes)], slopes))

    def terms(self, eta: Float64s, target: Float64s) -> Terms:
        """Return those of the logit."""
        small = elementary.exp(-np.abs(eta))
        share = 1.0 / (1.0 + small)
        mean = np.where(eta >= 0, share, small * share)
        likelihood = target * eta - np.maximum(eta, 0.0) - elementary.log(1.0 + small)
        # small * share * share, and not mean * (1 - mean): exact also where the mean is nearly 1.
        return Terms(likelihood, target - mean, small * share * share)


class Poisson(Glm):
    """Counts: the link is the logarithm. The log-likelihood here is without that of the counts' factorials."""

    name = "poisson"
    constant_sums = 2

    def check(self, name: str, target: Float64s) -> None:
        """Take whole numbers of at least 0."""
        if not np.all((target >= 0.0) & (target == np.rint(target))):
            raise DataError(
                "table",
                f"column {name}: family poisson wants whole numbers of at least 0",
                public=True,
            )

    def problem(self, target: TargetMoments) -> str:
        """Refuse a target of zeros."""
        return "" if target.total else "is 0 in all rows of all sites"

    def constants(self, target: Float64s) -> Float64s:
        """Return log(y!), and y log y - y: the log-likelihood of a mean that is the count itself."""
        saturated = target * elementary.log(np.maximum(target, 1.0)) - target
        return np.stack([_log_factorial(target), saturated], axis=1)

    def bound(self, target: TargetMoments) -> float:
        """Return 16 times the mean or more: means of rows have no bound, and those beyond it are counted as steep."""
        spread = math.sqrt(target.square / target.rows)
        return max(_SLACK * max(1.0, float(target.mean)), 2.0 * spread)

    def start(self, target: TargetMoments, size: int) -> Float64s:
        """Return the mean's logarithm as intercept."""
        found = np.zeros(size)
        found[0] = _log(float(target.mean)) - float(target.offset)
        return found

    def terms(self, eta: Float64s, target: Float64s) -> Terms:
        """Return those of the logarithm."""
        mean = elementary.exp(eta)
        return Terms(target * eta - mean, target - mean, mean)


def _log_factorial(counts: Float64s) -> Float64s:
    """log(n!) of whole numbers (N,): of small ones from a table, else Stirling's series, which is exact there."""
    small = np.array([float(math.factorial(count)) for count in range(_STIRLING)])
    n = np.maximum(counts, float(_STIRLING))
    series = (n + 0.5) * elementary.log(n) - n + _HALF_LOG_2_PI
    inverse = 1.0 / n
    square = inverse * inverse
    series = series + inverse * (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0)))
    table = elementary.log(small)[np.minimum(counts, _STIRLING - 1.0).astype(np.int64)]
    return np.where(counts < _STIRLING, table, series)


def _log(value: float) -> float:
    return float(elementary.log(np.array([value]))[0])


def _dot(left: Float64s, right: Float64s) -> float:
    """Return the inner product, added from the first term to the last."""
    found = 0.0
    for one, other in zip(left.tolist(), right.tolist(), strict=True):
        found += one * other
    return found


FAMILIES: dict[str, Family] = {one.name: one for one in (Linear(), Logistic(), Poisson())}
