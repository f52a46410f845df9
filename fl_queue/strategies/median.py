"""
Coordinate median: of each parameter the median of the updates.

    D_k = median { u_ik : i in S }          for each coordinate k
    x <- x + D

The mean of the two in the middle where |S| is even. Withstands f < n / 2 hostile updates. Each update
counts once: the paper has no weights. On skewed data it is not the mean of honest updates, and models
converge more slowly.

Source:
    Yin et al. 2018, arXiv 1803.01498, Definition 1 and Algorithm 1 (option I).
"""

from __future__ import annotations

from fl_queue.protocol.arrays import Float64s
from fl_queue.strategies.robust import Robust, coordinate_median


class Median(Robust):
    """All updates, coordinate by coordinate."""

    def combine(self, values: Float64s, weights: Float64s) -> Float64s:
        """``D``."""
        return coordinate_median(values)
