"""Newton's steps from evaluation to evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fl_queue.analyses import newton
from fl_queue.analyses.newton import Evaluation, Point
from fl_queue.errors import AnalysisError

NAMES = ("sex", "age")
BEGUN = newton.start(np.zeros(2), 41)
FOUND = Evaluation(False, -10.0, np.array([2.0, 8.0]), np.diag([4.0, 16.0]), 1e-9)


def _second(likelihood: float = -10.0) -> Point:
    move, decrement = newton.step(FOUND, NAMES, True)
    return replace(newton.accepted(BEGUN, FOUND, move, decrement), likelihood=likelihood)


def test_a_step_and_its_decrement() -> None:
    """U' I**-1 U, over the dispersion."""
    move, decrement = newton.step(FOUND, NAMES, True)
    assert move.tolist() == [0.5, 0.5]
    assert decrement == 5.0
    assert newton.step(replace(FOUND, dispersion=2.0), NAMES, True)[1] == 2.5
    after = newton.accepted(BEGUN, FOUND, move, decrement)
    assert (after.beta.tolist(), after.before.tolist()) == ([0.5, 0.5], [0.0, 0.0])
    assert (after.likelihood, after.is_done) == (-10.0, False)


def test_the_last_step_is_taken() -> None:
    """A decrement below 1e-14 ends the fit, and no other start replaces its step."""
    after = newton.accepted(BEGUN, FOUND, np.array([1e-9, 0.0]), 9e-15, np.array([5.0, 5.0]))
    assert after.is_done
    assert after.beta.tolist() == [1e-9, 0.0]


def test_a_step_that_lowers_the_likelihood_is_halved() -> None:
    """Ten times; by rounding alone it may fall."""
    point: Point | None = _second()
    assert newton.refused(_second(), replace(FOUND, likelihood=-10.0 - 9e-10)) is None
    for _ in range(newton.MOST_HALVINGS):
        assert point is not None
        point = newton.refused(point, replace(FOUND, likelihood=-11.0))
    assert point is not None
    assert point.beta.tolist() == [0.5**11, 0.5**11]
    with pytest.raises(AnalysisError, match="after 10 halvings"):
        newton.refused(point, replace(FOUND, likelihood=-11.0))


def test_sums_that_do_not_fit_halve_first_and_make_the_grid_coarser_then() -> None:
    """The whole step is tried again on the coarser grid."""
    steep = replace(FOUND, steep=True)
    once = newton.refused(_second(), steep)
    assert once is not None
    assert (once.beta.tolist(), once.shift) == ([0.25, 0.25], 41)
    twice = newton.refused(once, steep)
    assert twice is not None
    coarser = newton.refused(twice, steep)
    assert coarser is not None
    assert (coarser.beta.tolist(), coarser.shift, coarser.halvings) == ([0.5, 0.5], 33, 0)
    first = newton.refused(BEGUN, steep)
    assert first is not None
    assert (first.beta.tolist(), first.shift) == ([0.0, 0.0], 33)
    with pytest.raises(AnalysisError, match="not finite"):
        newton.refused(replace(BEGUN, shift=-33), steep)


@pytest.mark.parametrize(
    ("information", "is_first", "message"),
    [
        ([[1.0, 1.0], [1.0, 1.0]], True, "columns sex, age are linearly dependent; drop one"),
        ([[1.0, 0.0], [0.0, 0.0]], True, "column age has one value; leave it out"),
        ([[1.0, 1.0], [1.0, 1.0]], False, "age separates the target"),
    ],
)
def test_information_without_an_inverse(
    information: list[list[float]], is_first: bool, message: str
) -> None:
    """At first the columns are at fault, later the target."""
    found = replace(FOUND, information=np.array(information))
    with pytest.raises(AnalysisError, match=message):
        newton.step(found, NAMES, is_first)


def test_a_coefficient_without_bound() -> None:
    """It is named."""
    with pytest.raises(AnalysisError, match="age separates the target"):
        newton.check(replace(_second(), beta=np.array([0.0, -31.0])), NAMES, False)
    newton.check(replace(_second(), beta=np.array([0.0, -29.0])), NAMES, False)


def test_the_last_allowed_step() -> None:
    """Coefficients that still move separate; else there is no convergence."""
    with pytest.raises(AnalysisError, match="separates the target"):
        newton.check(_second(), NAMES, True)
    still = replace(_second(), move=np.array([1e-3, 1e-3]), decrement=0.3)
    with pytest.raises(AnalysisError, match=r"last decrement 0\.3"):
        newton.check(still, NAMES, True)
    newton.check(replace(still, is_done=True), NAMES, True)
