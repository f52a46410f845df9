"""
FedNova: FedAvg in which clients that take more steps do not pull harder.

    d_i   = (x - y_i) / (eta ||a_i||_1)
    x    <- x - tau_eff sum_S p_i eta d_i,    tau_eff = sum_S p_i tau_i

A client sends ``(y_i - x) / ||a_i||_1``, which is ``-eta d_i`` and in the range of an update, and
``tau_i``. ``a_i`` is how often each of its gradients counts in ``y_i``: for a gradient that is always
the same, ``||a_i||_1`` is the distance it goes over ``eta``. With momentum ``rho`` and proximal ``mu``

    v <- rho v + 1 - eta mu a,    a <- a + v,    tau_i times from a = v = 0

which gives ``tau_i`` for SGD, and the paper's closed forms for momentum or proximal alone. With a learning
rate that changes within the round each step counts as its rate over ``eta``, that of the round.

Where implementations differ: ``tau_eff`` is free. As in the authors' code ``tau_i`` is ``||a_i||_1``, and
with a proximal term the number of steps; then with equal steps the versions are FedAvg's (but for
rounding, and without the proximal term). Flower's has a harmonic mean instead.

Source:
    Wang et al. 2020, arXiv 2007.07481, equations (5), (8) and section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fl_queue.common.options import Option
from fl_queue.protocol.arrays import Float64s
from fl_queue.strategies.base import (
    Block,
    ClientContribution,
    ClientTrainingState,
    Correction,
    Strategy,
)
from fl_queue.strategies.gradient_sum import gradient_sum


class FedNova(Strategy):
    """Sends its update over ``||a||_1``, and ``tau``; clients keep no state."""

    OPTIONS: ClassVar = {
        "mu": Option("float", 0.0, "proximal term of local training, 0 or more", low=0.0)
    }
    scalars: ClassVar = {"tau": 1e12}
    may_clip = False
    has_factors = True
    needs_local_sgd = needs_gradient_sum = True

    def training_refusals(self, optimizer: str) -> Mapping[str, str]:
        """Other optimizers than SGD, for which there is no ``a_i``."""
        return {
            "optimizer": "fednova divides an update by how often SGD's gradients count in it; use sgd, or fedavg or "
            f"fedprox, which work with {optimizer}",
            "optimizer_state": "fednova counts the gradients of one round, and kept momentum is of earlier ones; "
            "set it to reset",
            "ema": "fednova counts gradients in the last weights, not in their mean; set it to 0",
        }

    def correction(self, known: ClientTrainingState) -> Correction:
        """``mu (w - x)``."""
        return Correction(proximal=self.number("mu"))

    def answer(self, known: ClientTrainingState) -> ClientContribution:
        """``1 / ||a||_1`` and ``tau``."""
        mu = self.number("mu")
        norm = gradient_sum(known, mu)
        tau = float(known.steps) if mu else norm
        return ClientContribution(factor=1.0 / norm, scalars={"tau": tau})

    def step(self, block: Block) -> Float64s:
        """``x + tau_eff`` times the mean."""
        return block.x + block.scalar("tau") * block.mean()
