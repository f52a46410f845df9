"""
Gradients, hessians and losses of the objectives: of each row in float64, then rounded once to an integer.

The formulas are XGBoost's. Everything is of + - * / and our own exp and log, so a row has the same integers everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fl_queue.analyses import elementary
from fl_queue.analyses.boosting.rules import POISSON_STEP
from fl_queue.protocol.arrays import Float32s, Float64s, Int64s

#: Least hessian of a row before it is rounded.
_LEAST = 1e-16
#: No site's sum of magnitudes is larger: it is then a whole float64, and a thousand sites stay below 2**62.
MAX_SUM = 2.0**52
#: Finest grid.
MAX_SCALE = 40
#: Rows taken together, so that they stay in the cache.
_BLOCK = 1 << 13

#: (margins (N, K), targets (N,)) -> gradients and hessians, both (N, K).
_Formula = Callable[[Float64s, Float64s], tuple[Float64s, Float64s]]
_Loss = Callable[[Float64s, Float64s], Float64s]


def grid_scale(rows: int, bound: float) -> int:
    """
    Fractional bits of the integers of a sum.

    Args:
        rows: Of all sites.
        bound: Mean magnitude of a row's share, at most.
    """
    power = 0
    while power < 300 and 2.0**power < rows * bound:
        power += 1
    return min(MAX_SCALE, 52 - power)


@dataclass(frozen=True)
class Objective:
    """
    What is minimised.

    Args:
        name: XGBoost's.
        formula: Gradients and hessians.
        loss: (N,) of each row.
    """

    name: str
    formula: _Formula
    loss: _Loss


def _binary(margins: Float64s, targets: Float64s) -> tuple[Float64s, Float64s]:
    p = elementary.sigmoid(margins)
    return p - targets[:, None], np.maximum(p * (1.0 - p), _LEAST)


def _binary_loss(margins: Float64s, targets: Float64s) -> Float64s:
    m = margins[:, 0]
    rest = elementary.log(1.0 + elementary.exp(-np.abs(m)))
    return np.maximum(m, 0.0) - m * targets + rest


def _shares(margins: Float64s) -> tuple[Float64s, Float64s]:
    """Exponentials of margins below their largest, and the sums over the classes in their order."""
    powers = elementary.exp(margins - margins.max(axis=1, keepdims=True))
    total = powers[:, 0].copy()
    for each in range(1, powers.shape[1]):
        total = total + powers[:, each]
    return powers, total


def _multi(margins: Float64s, targets: Float64s) -> tuple[Float64s, Float64s]:
    powers, total = _shares(margins)
    p: Float64s = powers / total[:, None]
    is_class = targets[:, None] == np.arange(margins.shape[1])
    return p - is_class, np.maximum(2.0 * p * (1.0 - p), _LEAST)


def _multi_loss(margins: Float64s, targets: Float64s) -> Float64s:
    of_class: Float64s = np.take_along_axis(margins, targets.astype(np.int64)[:, None], axis=1)[
        :, 0
    ]
    rest: Float64s = of_class - margins.max(axis=1)
    return elementary.log(_shares(margins)[1]) - rest


def _squared(margins: Float64s, targets: Float64s) -> tuple[Float64s, Float64s]:
    return margins - targets[:, None], np.ones_like(margins)


def _squared_loss(margins: Float64s, targets: Float64s) -> Float64s:
    rest = margins[:, 0] - targets
    return rest * rest


_POISSON_FACTOR = elementary.exp(np.array([POISSON_STEP]))[0]


def _poisson(margins: Float64s, targets: Float64s) -> tuple[Float64s, Float64s]:
    means = elementary.exp(margins)
    return means - targets[:, None], means * _POISSON_FACTOR


def _poisson_loss(margins: Float64s, targets: Float64s) -> Float64s:
    m = margins[:, 0]
    return elementary.exp(m) - targets * m


OBJECTIVES: dict[str, Objective] = {
    "binary": Objective("binary:logistic", _binary, _binary_loss),
    "multi": Objective("multi:softprob", _multi, _multi_loss),
    "squared": Objective("reg:squarederror", _squared, _squared_loss),
    "poisson": Objective("count:poisson", _poisson, _poisson_loss),
}


def integers(
    objective: str, margins: Float32s, targets: Float64s, scale: int
) -> tuple[Int64s, Int64s] | None:
    """
    Gradients and hessians of rows on the grid of ``2**-scale``.

    Args:
        objective: A name of ``OBJECTIVES``.
        margins: (N, K).
        targets: (N,).

    Returns:
        Both (K, N), a hessian 1 at least; None if their sums may not fit the grid.
    """
    formula = OBJECTIVES[objective].formula
    rows, classes = margins.shape
    found = np.empty((2, classes, rows), np.int64)
    total = np.zeros(2)
    for start in range(0, rows, _BLOCK):
        stop = min(start + _BLOCK, rows)
        pair = formula(margins[start:stop].astype(np.float64), targets[start:stop])
        for which, values in enumerate(pair):
            whole = np.rint(values * 2.0**scale).T
            total[which] += np.abs(whole).max(axis=0).sum()
            if not total[which] <= MAX_SUM:
                return None
            found[which, :, start:stop] = whole
    return found[0], np.maximum(found[1], 1)


def loss(objective: str, margins: Float32s, targets: Float64s, scale: int) -> int | None:
    """The sum of the rows' losses on the grid; None if it may not fit."""
    total, whole = 0, 0.0
    for start in range(0, len(targets), _BLOCK):
        stop = start + _BLOCK
        each = OBJECTIVES[objective].loss(
            margins[start:stop].astype(np.float64), targets[start:stop]
        )
        rounded = np.rint(each * 2.0**scale)
        whole += float(np.abs(rounded).sum())
        if not whole <= MAX_SUM:
            return None
        total += int(rounded.astype(np.int64).sum())
    return total


def base(objective: str, mean: float) -> tuple[float, float]:
    """
    Score and margin from which the trees begin.

    XGBoost reads the score from a file and computes the margin in float32. The score is moved, float32 by float32,
    until no rounding of a logarithm can decide about the margin's last bit.

    Args:
        objective: A name of ``OBJECTIVES``.
        mean: Of the target: for ``binary`` in (0, 1), for ``poisson`` above 0; ``multi`` has none.

    Returns:
        Both float32 numbers.
    """
    if objective == "multi":
        return 0.5, 0.5
    score = np.float32(mean)
    if objective == "squared":
        return float(score), float(score)
    towards = np.float32(1.0 if objective == "poisson" else 0.5)  # of which the margin is 0
    while True:
        margin = _margin(objective, score)
        near = np.float32(margin)
        if abs(margin - float(near)) <= 0.4 * float(np.spacing(np.abs(near))):
            return float(score), float(near)
        score = np.nextafter(score, towards)


def _margin(objective: str, score: np.float32) -> float:
    if objective == "poisson":
        return float(elementary.log(np.array([score], np.float64))[0])
    odds = np.float32(1) / score - np.float32(1)
    return -float(elementary.log(np.array([odds], np.float64))[0])
