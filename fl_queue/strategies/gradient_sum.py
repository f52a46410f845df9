"""
How often the gradients of a client's SGD count in its update: ``||a||_1``.

No Redis and no torch here.
"""

from __future__ import annotations

from fl_queue.strategies.local_training import ClientTrainingState


class GradientSum:
    """
    ``y - x = -eta sum_j a_j h_j`` of the corrected gradients ``h_j``; ``total`` is ``sum_j a_j``.

    Found by SGD on a gradient of 1: with momentum ``rho`` and the proximal pull ``mu (w - x)``::

        u <- 1 - eta mu a,    v <- rho v + u,    a <- a + r v    (Nesterov: a + r (u + rho v))

    where ``r`` is a step's learning rate over ``eta``. Weight decay and clipping are part of ``h_j``.

    Args:
        pull: ``eta mu`` of a proximal term.

    Source:
        Wang et al. 2020, arXiv 2007.07481, section 4, for a constant rate.
    """

    def __init__(self, pull: float = 0.0) -> None:
        self._pull, self._velocity = pull, 0.0
        self.total = 0.0

    def step(self, rate: float = 1.0, momentum: float = 0.0, nesterov: bool = False) -> None:
        """Take a step. Args: ``rate``: its learning rate over ``eta``."""
        pulled = self._pull * self.total
        self._velocity = momentum * self._velocity + 1.0 - pulled
        if nesterov:
            self.total += rate * (1.0 - pulled + momentum * self._velocity)
        else:
            self.total += rate * self._velocity


def accumulated(steps: int, momentum: float = 0.0, pull: float = 0.0) -> float:
    """``||a||_1`` of so many steps of SGD at one rate. Args: ``pull``: ``eta mu`` of a proximal term."""
    counted = GradientSum(pull)
    for _ in range(steps):
        counted.step(momentum=momentum)
    return counted.total


def gradient_sum(known: ClientTrainingState, mu: float = 0.0) -> float:
    """``||a||_1`` of a client's training. Args: ``mu``: of a proximal term."""
    if known.gradient_sum:
        return known.gradient_sum
    return accumulated(known.steps, known.momentum, known.learning_rate * mu)
