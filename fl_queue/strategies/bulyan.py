"""
Bulyan: Krum chooses n - 2 f updates one after the other; then a trimmed mean around their median.

    theta = n - 2 f,    beta = theta - 2 f,    n = |S|
    theta times: take out the Krum of those that are left
    D_k = mean of the beta of the theta values u_ik that are closest to their median
    x <- x + D

Needs n >= 4 f + 3. A tie of scores goes to the first client id, one of distances to the smaller value.

Where implementations differ: the last of the theta choices are among fewer updates than Krum needs.
Each choice has max(1, n' - f - 2) neighbours of the n' that are left.

Source:
    El Mhamdi et al. 2018, arXiv 1802.07927, section 4.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fl_queue.protocol.arrays import Float64s
from fl_queue.strategies.base import Updates
from fl_queue.strategies.distances import squared_distances
from fl_queue.strategies.krum import best
from fl_queue.strategies.robust import (
    Choice,
    F,
    Robust,
    coordinate_median,
    weighted_mean,
)


class Bulyan(Robust):
    """Krum's choice, then coordinate by coordinate."""

    OPTIONS: ClassVar = {"f": F}
    NEEDS = "n >= 4 f + 3"

    def min_updates(self) -> int:
        """``4 f + 3``."""
        return 4 * int(self.options["f"]) + 3

    def choose(self, updates: Updates) -> Choice:
        """The theta updates."""
        f, left = int(self.options["f"]), list(range(updates.count))
        squares = squared_distances(updates)
        rows = []
        for _ in range(updates.count - 2 * f):
            rows.append(best(squares, left, f)[0])
            left.remove(rows[-1])
        rows.sort()
        return Choice(rows, updates.weights[rows])

    def combine(self, values: Float64s, weights: Float64s) -> Float64s:
        """``D``."""
        beta = len(values) - 2 * int(self.options["f"])
        values.sort(axis=0)
        away = np.abs(values - coordinate_median(values))
        nearest = np.argsort(away, axis=0, kind="stable")[:beta]
        return weighted_mean(np.take_along_axis(values, nearest, axis=0), weights[:beta])
