"""
FedAdagrad: the server's step shrinks where it has changed much.

    v <- v + D^2,    the rest as in ``adaptive.py``

``beta_1`` is 0 by default, as in Flower and the paper's experiments.

Source:
    Reddi et al. 2021, arXiv 2003.00295, Algorithm 2 (FedAdagrad).
"""

from __future__ import annotations

from fl_queue.protocol.arrays import Float64s
from fl_queue.strategies.adaptive import Adaptive, options


class FedAdagrad(Adaptive):
    """Sends what FedAvg sends; the server keeps ``m`` and ``v``."""

    OPTIONS = options(0.0, None)

    def second_moment(self, v: Float64s, square: Float64s) -> Float64s:
        """``v + D^2``."""
        return v + square
