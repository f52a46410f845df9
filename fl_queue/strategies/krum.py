"""
Krum: the update that is closest to its n - f - 2 nearest neighbours.

    s_i = sum over the n - f - 2 smallest of ||u_i - u_j||^2, j != i,    n = |S|
    x <- x + u_i*,    i* = argmin s_i

Needs n >= 2 f + 3. Distances are of the differences ``u = y - x`` over all parameters, not of the
models: the same in exact arithmetic, and these lose fewer digits. A tie goes to the first client id.

Source:
    Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    arXiv 1703.02757, section 4 (the Krum function).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from fl_queue.protocol.arrays import Float64s
from fl_queue.strategies.base import Updates
from fl_queue.strategies.distances import squared_distances
from fl_queue.strategies.robust import (
    Choice,
    F,
    Robust,
    row_sums,
    weighted_mean,
)


class Krum(Robust):
    """The one with the lowest score."""

    OPTIONS: ClassVar = {"f": F}
    NEEDS = "n >= 2 f + 3"

    def min_updates(self) -> int:
        """``2 f + 3``."""
        return 2 * int(self.options["f"]) + 3

    def chosen_count(self, n: int) -> int:
        """Number of updates chosen of n."""
        return 1

    def choose(self, updates: Updates) -> Choice:
        """The updates with the lowest scores."""
        n = updates.count
        rows = best(squared_distances(updates), range(n), self.options["f"])
        rows = sorted(rows[: self.chosen_count(n)])
        return Choice(rows, updates.weights[rows])

    def combine(self, values: Float64s, weights: Float64s) -> Float64s:
        """The mean of the chosen."""
        return weighted_mean(values, weights)


def best(squares: Float64s, rows: Sequence[int], f: int) -> list[int]:
    """
    Rows by their score among themselves, the lowest first; ties as the rows are ordered.

    Args:
        squares: Squared distances of all updates, n x n.
        rows: Those that are looked at, ascending.
        f: Of them; each has ``len(rows) - f - 2`` neighbours, one at least.
    """
    neighbours = max(1, len(rows) - f - 2)
    among = squares[np.ix_(rows, rows)]
    # Itself first, whatever else is at distance 0.
    np.fill_diagonal(among, -1.0)
    among.sort(axis=1)
    scores = row_sums(among[:, 1 : 1 + neighbours].copy())
    return [rows[place] for place in np.argsort(scores, kind="stable")]
