"""
Geometric median (RFA), by the smoothed Weiszfeld algorithm: no update pulls harder than another.

    z <- sum_i a_i u_i / sum_i a_i,    a_i = weight of u_i
    R times:  b_i = a_i / max(nu, ||z - u_i||),    z <- sum_i b_i u_i / sum_i b_i
    x <- x + z

``R = iterations``, ``nu = smoothing``. Withstands hostile updates of less than half of the weight; with
``weighting = "examples"`` clients claim that themselves, so prefer ``uniform`` or ``capped`` where they
are not trusted. Norms are over all parameters.

Where implementations differ: the paper counts iterations; its code stops early, too, when z moves
little. R is fixed here, 4 as that code has it, so that the result depends on nothing else; nu is that
code's 1e-5.

Source:
    Pillutla et al. 2022, arXiv 1912.13445, Algorithm 2.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fl_queue.exact import Float64s
from fl_queue.fields import Field
from fl_queue.gather import Gathered
from fl_queue.strategies.robust import Choice, Robust, square_sums, tiles, weighted_mean


class GeometricMedian(Robust):
    """A weighted mean, whose weights are found in one pass over all updates for each iteration."""

    OPTIONS: ClassVar = {
        "iterations": Field("int", 4, "R, steps of Weiszfeld's algorithm, 1 or more", low=1),
        "smoothing": Field("float", 1e-5, "nu, smallest distance that counts, above 0", above=0),
    }
    WEIGHTINGS = ("examples", "capped", "uniform")

    def choose(self, updates: Gathered) -> Choice:
        """All of them, and their ``b_i``."""
        weights = updates.weights
        for _ in range(int(self.options["iterations"])):
            squares = np.zeros(updates.count)
            for values in tiles(updates):
                squares += square_sums(values - weighted_mean(values, weights))
            weights = updates.weights / np.maximum(self.number("smoothing"), np.sqrt(squares))
        return Choice(range(updates.count), weights)

    def combine(self, values: Float64s, weights: Float64s) -> Float64s:
        """``z``."""
        return weighted_mean(values, weights)
