"""
FedNova: FedAvg in which clients that take more steps do not pull harder.

    d_i   = (x - y_i) / (eta ||a_i||_1)
    x    <- x - tau_eff sum_S p_i eta d_i,    tau_eff = sum_S p_i tau_i

A client sends ``(y_i - x) / ||a_i||_1``, which is ``-eta d_i`` and in the range of an update, and
``tau_i``. ``a_i`` is how often each of its gradients counts in ``y_i``: for a gradient that is always
the same, ``||a_i||_1`` is the distance it goes over ``eta``. With momentum ``rho`` and proximal ``mu``

    v <- rho v + 1 - eta mu a,    a <- a + v,    tau_i times from a = v = 0

which gives ``tau_i`` for SGD, and the paper's closed forms for momentum or proximal alone.

Where implementations differ: ``tau_eff`` is free. As in the authors' code ``tau_i`` is ``||a_i||_1``, and
with a proximal term the number of steps; then with equal steps the versions are FedAvg's (but for
rounding, and without the proximal term). Flower's has a harmonic mean instead.

Source:
    Wang et al. 2020, arXiv 2007.07481, equations (5), (8) and section 4.
"""

from __future__ import annotations

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


def accumulated(steps: int, momentum: float = 0.0, pull: float = 0.0) -> float:
    """``||a||_1`` of so many steps of SGD. Args: ``pull``: ``eta mu`` of a proximal term."""
    total = velocity = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1.0 - pull * total
        total += velocity
    return total


class FedNova(Strategy):
    """Sends its update over ``||a||_1``, and ``tau``; clients keep no state."""

    OPTIONS: ClassVar = {
        "mu": Option("float", 0.0, "proximal term of local training, 0 or more", low=0.0)
    }
    scalars: ClassVar = {"tau": 1e12}
    may_clip = False
    needs_local_sgd = True

    def correction(self, known: ClientTrainingState) -> Correction:
        """``mu (w - x)``."""
        return Correction(proximal=self.number("mu"))

    def answer(self, known: ClientTrainingState) -> ClientContribution:
        """``1 / ||a||_1`` and ``tau``."""
        mu = self.number("mu")
        norm = accumulated(known.steps, known.momentum, known.learning_rate * mu)
        tau = float(known.steps) if mu else norm
        return ClientContribution(factor=1.0 / norm, scalars={"tau": tau})

    def step(self, block: Block) -> Float64s:
        """``x + tau_eff`` times the mean."""
        return block.x + block.scalar("tau") * block.mean()
