"""
FedYogi: Yogi on the server, whose ``v`` falls more slowly than Adam's.

    v <- v - (1 - beta_2) D^2 sign(v - D^2),    the rest as in ``adaptive.py``

``sign(0) = 0``, as in the paper. ``beta_2`` is 0.99 by default, as in the paper and Flower.

Source:
    Reddi et al. 2021, arXiv 2003.00295, Algorithm 2 (FedYogi).
"""

from __future__ import annotations

import numpy as np

from fl_queue.protocol.arrays import Float64s
from fl_queue.strategies.adaptive import Adaptive, options


class FedYogi(Adaptive):
    """Sends what FedAvg sends; the server keeps ``m`` and ``v``."""

    OPTIONS = options(0.9, 0.99)

    def second_moment(self, v: Float64s, square: Float64s) -> Float64s:
        """``v - (1 - beta_2) D^2 sign(v - D^2)``; never below 0, as neither term is."""
        return v - (1.0 - self.number("beta_2")) * square * np.sign(v - square)
