"""Families of regressions: their terms, and where they begin."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from fl_queue.analyses import grid
from fl_queue.analyses.families import (
    FAMILIES,
    Glm,
    Logistic,
    Place,
    Poisson,
    SiteDesign,
    TargetMoments,
)
from fl_queue.errors import DataError

TARGET = TargetMoments(4, Fraction(6), Fraction(14), Fraction(1))


def _glm(name: str) -> Glm:
    found = FAMILIES[name]
    assert isinstance(found, Glm)
    return found


@pytest.mark.parametrize("name", FAMILIES)
@given(st.floats(-30, 30), st.sampled_from([0.0, 1.0]))
def test_terms_are_derivatives_of_the_likelihood(name: str, eta: float, target: float) -> None:
    """The residual is the first, up to a factor; minus the weight the second."""
    step, family = 1e-6, _glm(name)
    factor = 0.5 if name == "linear" else 1.0
    points = np.array([eta - step, eta, eta + step])
    found = family.terms(points, np.full(3, target))
    slope = factor * (found.likelihood[2] - found.likelihood[0]) / (2 * step)
    curve = (found.residual[2] - found.residual[0]) / (2 * step)
    assert found.residual[1] == pytest.approx(slope, rel=1e-4, abs=1e-6)
    assert found.weight[1] == pytest.approx(-curve, rel=1e-4, abs=1e-6)


def test_weights_of_large_predictors() -> None:
    """That of a logistic row is exact where the mean is nearly 1."""
    found = Logistic().terms(np.array([40.0, -40.0]), np.zeros(2))
    assert found.weight[0] == found.weight[1] == pytest.approx(math.exp(-40), rel=1e-14)


@pytest.mark.parametrize(
    ("family", "value"), [("logistic", 2.0), ("logistic", 0.5), ("poisson", -1.0), ("poisson", 1.5)]
)
def test_targets_that_a_family_does_not_take(family: str, value: float) -> None:
    """The column is named, and no cell."""
    with pytest.raises(DataError, match=f"column died: family {family} wants") as error:
        FAMILIES[family].check("died", np.array([1.0, value]))
    assert "died" in error.value.public
    FAMILIES["linear"].check("died", np.array([value]))
    FAMILIES[family].check("died", np.array([0.0, 1.0]))


@pytest.mark.parametrize(
    ("family", "total", "square", "problem"),
    [
        ("linear", 8, 16, "has one value"),
        ("logistic", 0, 0, "has one level"),
        ("logistic", 4, 4, "has one level"),
        ("poisson", 0, 0, "is 0 in all rows"),
    ],
)
def test_targets_that_cannot_be_explained(
    family: str, total: int, square: int, problem: str
) -> None:
    """Over all sites together."""
    found = TargetMoments(4, Fraction(total), Fraction(square), Fraction(0))
    assert problem in FAMILIES[family].problem(found)
    fine = TargetMoments(4, Fraction(2), Fraction(3), Fraction(0))
    assert FAMILIES[family].problem(fine) == ""


@given(st.integers(0, 10**9))
def test_logarithms_of_factorials(count: int) -> None:
    """Those of scipy, and the likelihood of a count that is its own mean."""
    factorial, saturated = Poisson().constants(np.array([float(count)]))[0]
    assert factorial == pytest.approx(special.gammaln(count + 1.0), rel=1e-13)
    assert saturated == pytest.approx(special.xlogy(count, count) - count, rel=1e-13)


def test_a_poisson_fit_begins_at_the_mean() -> None:
    """Less the mean of the offset."""
    assert Poisson().start(TARGET, 2).tolist() == [pytest.approx(math.log(1.5) - 1.0), 0.0]


def _rows(columns: list[list[float]], target: list[float]) -> SiteDesign:
    rows = len(target)
    return SiteDesign(np.array(columns), np.array(target), np.zeros(rows), np.ones(rows))


@pytest.mark.parametrize("beta", [[0.0, 800.0], [0.0, 1e308], [60.0, 0.0]])
def test_sums_that_do_not_fit_the_grid(beta: list[float]) -> None:
    """All are 0 then, but for a flag."""
    design = _rows([[1.0, 1.0], [1.0, 20.0]], [0.0, 1.0])
    found = Poisson().sums(design, Place(np.array(beta), 2, 40, with_squares=True))
    assert found.steep == 1
    assert not found.score.any()
    assert not found.information.any()
    assert found.squares.shape == found.information.shape


def test_sums_of_squares_on_their_grid() -> None:
    """Squared residuals times the columns' products."""
    design = _rows([[1.0, 1.0], [1.0, -1.0]], [3.0, 0.0])
    found = FAMILIES["linear"].sums(design, Place(np.zeros(2), 2, 40, with_squares=True))
    assert grid.symmetric(found.squares, 2, 32).tolist() == [[9.0, 9.0], [9.0, 9.0]]
    assert grid.symmetric(found.information, 2, 40).tolist() == [[2.0, 0.0], [0.0, 2.0]]
    assert grid.pair_value(found.likelihood, 40) == -9.0


def test_effective_rows() -> None:
    """A step at which one row has all the weight is about one row."""
    design = _rows([[1.0, 0.0]] + [[1.0, 1.0]] * 9, [1.0] * 10)
    for beta, rows in ([0.0, 40.0], 1.0), ([0.0, 0.0], 10.0):
        total, squares = Logistic().sums(design, Place(np.array(beta), 10, 40)).weights
        assert total * total / squares == pytest.approx(rows)
