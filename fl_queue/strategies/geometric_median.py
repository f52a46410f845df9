"""
Geometric median (RFA): the point with the smallest sum of distances to the updates, by Weiszfeld's algorithm.

    b_i = a_i / max(nu, d_i),    a_i = weight of u_i,    d_i = weighted median of ||u_i - u_j|| over all j
    z   = sum_i b_i u_i / sum_i b_i
    up to R times, until no b_i / sum b changes by more than 1e-9 of itself:
        b_i <- a_i / max(nu, ||z - u_i||),    z <- sum_i b_i u_i / sum_i b_i
    x <- x + z

``R = iterations``, ``nu = smoothing``. Norms are over all parameters. ``z`` is never formed before the
end: with c = b / sum b and the distances D_ij between updates,

    ||z - u_i||^2 = sum_j c_j D_ij^2 - 1/2 sum_jk c_j c_k D_jk^2

so that the updates are read twice, however many steps there are.

Withstands hostile updates of a part theta < 1/2 of the weight, wherever they are. The sum of distances
g(y) = sum_i a_i ||y - u_i||, sum_i a_i = 1, gives for each y and v, H the honest updates,

    g(y) >= g(v) + (1 - 2 theta) ||y - v|| - 2 sum_H a_i ||u_i - v||

by the triangle inequality. So z, whose g is within nu of the smallest, is within

    (2 sum_H a_i ||u_i - v|| + nu) / (1 - 2 theta)

of the honest updates' mean v: at most 2 (1 - theta) / (1 - 2 theta) times the distance of the furthest honest
update. With ``weighting = "examples"`` clients claim their weight themselves, so prefer ``uniform``
or ``capped`` where they are not trusted.

Where implementations differ: the paper and its code begin with the mean and take 3 or 4 steps, after which
two of ten updates at ``aggregation.limit`` still have a hold. Here the first point is one that no
minority can carry away: where most of the weight is honest, a hostile update that is far off
is far from most, and counts for as much less. Each step makes g smaller, and the last ones change nothing.
nu is the paper's code's 1e-5.

Source:
    Pillutla et al. 2022, arXiv 1912.13445: Algorithm 2, and the bound, from Lopuhaä and Rousseeuw 1991
    (breakdown point 1/2) and Minsker 2015, arXiv 1308.1334, Lemma 2.1.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fl_queue.common.options import Option
from fl_queue.protocol.arrays import Float64s
from fl_queue.strategies.base import Updates
from fl_queue.strategies.distances import squared_distances
from fl_queue.strategies.robust import Choice, Robust, row_sums, weighted_mean

#: Weiszfeld's algorithm stops when no share changes by more than this part of itself.
_LITTLE = 1e-9


class GeometricMedian(Robust):
    """A weighted mean of all updates, whose weights follow from the distances between them."""

    OPTIONS: ClassVar = {
        "iterations": Option(
            "int", 1000, "R, the most steps of Weiszfeld's algorithm, 1 or more", low=1
        ),
        "smoothing": Option("float", 1e-5, "nu, smallest distance that counts, above 0", above=0),
    }
    WEIGHTINGS = ("examples", "capped", "uniform")

    def choose(self, updates: Updates) -> Choice:
        """All of them, and their shares of ``z``."""
        squares = squared_distances(updates)
        shares = self._shares(updates.weights, typical_distances(squares, updates.weights))
        for _ in range(int(self.options["iterations"])):
            before = shares
            shares = self._shares(updates.weights, distances_from(squares, before))
            if np.all(np.abs(shares - before) <= _LITTLE * before):
                break
        return Choice(range(updates.count), shares)

    def _shares(self, weights: Float64s, distances: Float64s) -> Float64s:
        """``b_i / sum b``."""
        shares: Float64s = weights / np.maximum(self.number("smoothing"), distances)
        shares /= _total(shares)
        return shares

    def combine(self, values: Float64s, weights: Float64s) -> Float64s:
        """``z``."""
        return weighted_mean(values, weights)


def typical_distances(squares: Float64s, weights: Float64s) -> Float64s:
    """
    Of each update the weighted median of the distances to all updates, itself at 0 among them.

    The lower one: the smallest distance within which there is half of the weight.
    """
    order = np.argsort(squares, axis=1, kind="stable")
    # Weights are integers: their sums are exact.
    within = np.cumsum(weights[order], axis=1)
    place = np.argmax(2.0 * within >= within[:, -1:], axis=1)
    rows = np.arange(len(squares))
    found: Float64s = np.sqrt(squares[rows, order[rows, place]])
    return found


def distances_from(squares: Float64s, shares: Float64s) -> Float64s:
    """``||z - u_i||`` for each i, ``z = sum_i c_i u_i``, from the squared distances between updates."""
    to_each = row_sums(squares * shares)
    spread = _total(shares * to_each) / 2.0
    return np.sqrt(np.maximum(0.0, to_each - spread))


def _total(values: Float64s) -> float:
    return float(row_sums(values[np.newaxis].copy())[0])
