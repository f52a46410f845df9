"""
Trimmed mean: of each parameter the mean without the b largest and the b smallest values.

    b = max(f, floor(beta n)),    n = |S|
    D_k = 1 / (n - 2 b) sum of u_(b+1)k .. u_(n-b)k,    u_(1)k <= .. <= u_(n)k
    x <- x + D

Withstands b hostile updates; needs 2 b < n, and n >= 1 / beta, for otherwise nothing would be cut off.
``beta = 0`` and ``f = 0`` cut nothing: the uniform mean.

Where implementations differ: the paper removes a fraction beta of all values at each end, as Flower
does (int(beta n), 0.2 by default); others remove a number f. Both are here: what cuts off more counts.
floor(beta n) is of the decimal number that beta was written as: 0.29 of 100 is 29, not 28.

Source:
    Yin et al. 2018, arXiv 1803.01498, Definition 2 and Algorithm 1 (option II).
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import ClassVar

from fl_queue.common.options import Option
from fl_queue.protocol.arrays import Float64s
from fl_queue.strategies.robust import Robust, weighted_mean


def _below_half(beta: float) -> str | None:
    return None if beta < 0.5 else f"{beta:g} at each end leaves nothing; it must be below 0.5"


class TrimmedMean(Robust):
    """All updates, coordinate by coordinate."""

    OPTIONS: ClassVar = {
        "beta": Option(
            "float",
            0.2,
            "part of the updates cut off at each end, 0 to below 0.5",
            low=0.0,
            check=_below_half,
        ),
        "f": Option("int", 0, "updates cut off at each end, if that is more, 0 or more", low=0),
    }
    NEEDS = "n > 2 f, n >= 1 / beta"

    def min_updates(self) -> int:
        """``2 f < n``, and one at least is cut off."""
        beta = self._beta()
        return max(2 * int(self.options["f"]) + 1, math.ceil(1 / beta) if beta else 1)

    def combine(self, values: Float64s, weights: Float64s) -> Float64s:
        """``D``."""
        n = len(values)
        b = max(self.options["f"], math.floor(self._beta() * n))
        values.sort(axis=0)
        return weighted_mean(values[b : n - b], weights[b : n - b])

    def _beta(self) -> Fraction:
        return Fraction(repr(self.options["beta"]))
