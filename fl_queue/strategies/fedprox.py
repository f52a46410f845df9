"""
FedProx: FedAvg whose clients are held near the model they started from.

    w <- w - eta (grad F_i(w) + mu (w - x)),    the server as FedAvg

The term is in the gradient, before momentum. With ``mu = 0`` the versions are FedAvg's bit for bit. No
``mu`` is good for everything; the paper tries 0.001, 0.01, 0.1 and 1.

Source:
    Li et al. 2020, arXiv 1812.06127, Algorithm 2, with local SGD as its inexact solver.
"""

from __future__ import annotations

from typing import ClassVar

from fl_queue.common.options import Option
from fl_queue.strategies.base import ClientTrainingState, Correction, Strategy


class FedProx(Strategy):
    """Sends what FedAvg sends; clients keep no state."""

    supports_async = True

    OPTIONS: ClassVar = {
        "mu": Option("float", 0.01, "pull towards the round's model, 0 or more", low=0.0)
    }
    needs_local_sgd = True

    def correction(self, known: ClientTrainingState) -> Correction:
        """``mu (w - x)``."""
        return Correction(proximal=self.number("mu"))
