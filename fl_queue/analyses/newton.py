"""
Newton's steps to the maximum of a likelihood, of which a step of an analysis evaluates one point.

A step that lowers the log-likelihood, or whose sums do not fit the grid, is halved. The fit ends when the decrement
U' I**-1 U, twice what a further step would gain, is below 1e-14; that step is still taken. All in + - * / and sqrt, in a
written order, so that every machine goes the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fl_queue.analyses import cholesky
from fl_queue.analyses.design import INTERCEPT
from fl_queue.analyses.grid import COARSER
from fl_queue.errors import AnalysisError
from fl_queue.protocol.arrays import Float64s

#: The decrement at which a fit ends.
DECREMENT = 1e-14
MOST_HALVINGS = 10
#: Halvings for sums that do not fit the grid, before the grid becomes coarser.
_STEEP_HALVINGS = 2
#: No grid is coarser than units of 2**40.
_LEAST_SHIFT = -40
#: A coefficient of a scaled column that is larger grows without bound.
LARGEST = 30.0
#: A fit that has not converged, and whose coefficients still move so far in a step, has no maximum.
_STILL_MOVING = 0.05


@dataclass(frozen=True)
class Point:
    """
    Where a fit is.

    Args:
        beta: (p,) where the next step evaluates; the estimate, once it has converged.
        before: (p,) the last point that was accepted.
        move: (p,) Newton's step from there.
        likelihood: There; None: no point was accepted yet.
        shift: Of the grid.
        halvings: Of the step.
        decrement: At the last point that was accepted; infinite before.
        is_done: Whether it has converged.
    """

    beta: Float64s
    before: Float64s
    move: Float64s
    likelihood: float | None
    shift: int
    halvings: int = 0
    decrement: float = float("inf")
    is_done: bool = False


@dataclass(frozen=True)
class Evaluation:
    """
    Sums of all sites at a point.

    Args:
        steep: Whether the sums do not fit the grid; then they are 0.
        likelihood: Log-likelihood.
        score: (p,) U.
        information: (p, p) I.
        slack: By which the log-likelihood may fall for rounding alone.
        dispersion: What the decrement is divided by.
    """

    steep: bool
    likelihood: float
    score: Float64s
    information: Float64s
    slack: float
    dispersion: float = 1.0


def start(beta: Float64s, shift: int) -> Point:
    """Return where a fit begins. Args: ``beta``: (p,) of its first evaluation; ``shift``: of its grid."""
    return Point(beta, beta, np.zeros_like(beta), None, shift)


def halved(point: Point) -> Point:
    """
    Return the point half way back to the last one that was accepted.

    Raises:
        AnalysisError: That was done 10 times.
    """
    if point.halvings == MOST_HALVINGS:
        raise AnalysisError(
            f"no convergence: after {MOST_HALVINGS} halvings a step does not raise the log-likelihood; scale the "
            "columns, or set task.ridge"
        )
    return replace(point, beta=(point.before + point.beta) / 2.0, halvings=point.halvings + 1)


def refused(point: Point, found: Evaluation) -> Point | None:
    """
    Return the next point if this one cannot be accepted; None: it can.

    Raises:
        AnalysisError: No grid, or no halved step, leads on.
    """
    if found.steep:
        if point.likelihood is not None and point.halvings < _STEEP_HALVINGS:
            return halved(point)
        if point.shift - COARSER < _LEAST_SHIFT:
            raise AnalysisError("no convergence: the likelihood is not finite; scale the columns")
        beta = point.beta if point.likelihood is None else point.before + point.move
        return replace(point, beta=beta, halvings=0, shift=point.shift - COARSER)
    if point.likelihood is not None:
        slack = found.slack + 1e-14 * abs(point.likelihood)
        if found.likelihood < point.likelihood - slack:
            return halved(point)
    return None


def step(found: Evaluation, names: Sequence[str], is_first: bool) -> tuple[Float64s, float]:
    """
    Compute Newton's step, and the decrement.

    Args:
        names: Of the columns.
        is_first: Whether this is the first point, where all rows weigh the same.

    Raises:
        AnalysisError: The columns are linearly dependent; or, later, the information of one has vanished.
    """
    try:
        left = cholesky.factor(found.information)
    except cholesky.DependenceError as exc:
        if not is_first:
            raise separation(names[exc.columns[-1]]) from None
        # The intercept is in it as a rule, by the columns' centres.
        listed = [names[column] for column in exc.columns if names[column] != INTERCEPT]
        if len(listed) == 1:
            raise AnalysisError(f"column {listed[0]} has one value; leave it out") from None
        raise AnalysisError(
            f"columns {', '.join(listed)} are linearly dependent; drop one"
        ) from None
    move = cholesky.solved(left, found.score)
    decrement = 0.0
    for one, other in zip(move.tolist(), found.score.tolist(), strict=True):
        decrement += one * other
    return move, decrement / found.dispersion


def accepted(
    point: Point, found: Evaluation, move: Float64s, decrement: float, beta: Float64s | None = None
) -> Point:
    """
    Return the point after one that was accepted.

    Args:
        move, decrement: Of ``step``.
        beta: Better coefficients than those after the step.
    """
    is_done = decrement < DECREMENT
    if beta is None or is_done:
        beta = point.beta + move
    return replace(
        point,
        beta=beta,
        before=point.beta,
        move=beta - point.beta,
        likelihood=found.likelihood,
        halvings=0,
        decrement=decrement,
        is_done=is_done,
    )


def check(point: Point, names: Sequence[str], is_last: bool) -> None:
    """
    Raise AnalysisError unless a fit that has not converged may go on.

    Args:
        names: Of the columns.
        is_last: Whether it has made all the steps that it may.
    """
    if point.is_done:
        return
    slopes = [(abs(one), name) for one, name in zip(point.beta.tolist(), names, strict=True)]
    largest = max((pair for pair in slopes if pair[1] != INTERCEPT), default=(0.0, ""))
    if largest[0] > LARGEST:
        raise separation(largest[1])
    if is_last:
        if point.halvings == 0 and np.abs(point.move).max() > _STILL_MOVING:
            raise separation(names[int(np.argmax(np.abs(point.move)))])
        raise AnalysisError(
            f"no convergence in task.max_steps steps: last decrement {point.decrement:.2g}; scale columns, or set "
            "task.ridge"
        )


def separation(name: str) -> AnalysisError:
    """Return the error for a coefficient that grows without bound."""
    return AnalysisError(
        f"{name} separates the target (its coefficient grows without bound); leave it out, or set task.ridge"
    )
