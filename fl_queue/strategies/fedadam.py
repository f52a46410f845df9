"""
FedAdam: Adam on the server.

    v <- beta_2 v + (1 - beta_2) D^2,    the rest as in ``adaptive.py``

``beta_2`` is 0.99 by default, as in the paper and Flower (Adam's own is 0.999).

Source:
    Reddi et al. 2021, arXiv 2003.00295, Algorithm 2 (FedAdam).
"""

from __future__ import annotations

from fl_queue.common.options import Option
from fl_queue.protocol.arrays import Float64s
from fl_queue.strategies.adaptive import Adaptive, options


class FedAdam(Adaptive):
    """Sends what FedAvg sends; the server keeps ``m`` and ``v``."""

    OPTIONS = options(0.9, 0.99) | {
        "bias_correction": Option(
            "bool", False, "Adam's bias correction, which the paper leaves out"
        )
    }

    def second_moment(self, v: Float64s, square: Float64s) -> Float64s:
        """``beta_2 v + (1 - beta_2) D^2``."""
        beta_2 = self.number("beta_2")
        return beta_2 * v + (1.0 - beta_2) * square
