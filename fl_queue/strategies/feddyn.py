"""
FedDyn: a regulariser that moves, so that the clients' optima come to agree with the global one.

    y_k  <- argmin L_k(w) - <g_k, w> + alpha/2 ||w - x||^2      (local SGD from x)
    g_k  <- g_k - alpha (y_k - x)
    h    <- N' / N h - alpha (1/N) sum_S (y_k - x)
    x    <- mean_S y_k - h / alpha

``h`` and all ``g_k`` are 0 at first. Clients send ``y_k - x`` only, and keep ``g_k`` once it has been
accepted. ``N`` is the population: all clients that the run has seen, or ``clients.count`` of a
simulation; ``N'`` that of the round that made ``h``. A client that joins has ``g_k = 0``, so that ``h`` stays
the mean of all ``g_k``; without that factor the model would converge to another point. Means are uniform.

Where implementations differ: the authors' code keeps ``-g_k / alpha`` and scales alpha by the client's
share of the data, clips gradients to norm 10 and adds the weight decay to alpha; none of this here, as
none is in the paper's algorithm. Buffers get their mean. Updates must arrive as they were made
(``update.codec = "float32"``): ``h`` is the mean of the ``g_k`` only if both sides add the same.

Source:
    Acar et al. 2021, arXiv 2111.04263, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from fl_queue.common.options import Option
from fl_queue.protocol.arrays import Float64s
from fl_queue.protocol.tensor_layout import Tensor
from fl_queue.strategies.base import (
    Block,
    ClientContribution,
    ClientTrainingState,
    Correction,
    Strategy,
)


class FedDyn(Strategy):
    """Sends what FedAvg sends; the server keeps ``h``, and clients ``g``."""

    OPTIONS: ClassVar = {
        "alpha": Option("float", 0.01, "weight of the regulariser, above 0", above=0)
    }
    WEIGHTINGS = ("uniform",)
    server_state = ("h",)
    client_state = ("g",)
    needs_exact_updates = True
    may_clip = False
    needs_local_sgd = True

    def training_refusals(self, optimizer: str) -> Mapping[str, str]:
        """No mean of weights: ``g_k - alpha (y_k - x)`` is the condition of first order at the last ones."""
        return {"ema": "feddyn's g_k is exact at the last weights, not at their mean; set it to 0"}

    def correction(self, known: ClientTrainingState) -> Correction:
        """``alpha (w - x) - g_k``."""
        return Correction(self.number("alpha"), lambda name: np.negative(_g(known, name)))

    def answer(self, known: ClientTrainingState) -> ClientContribution:
        """``g_k - alpha (y_k - x)``."""
        alpha = np.float32(self.number("alpha"))
        return ClientContribution(
            keep=lambda which, name: _g(known, name) - alpha * known.change(name)
        )

    def step(self, block: Block) -> Float64s:
        """``h``, then ``x``."""
        alpha, mean = self.number("alpha"), block.mean()
        share = block.facts.accepted / block.facts.population
        h = block.facts.over_population(block.state["h"]) - alpha * share * mean
        block.state["h"] = h
        return block.x + mean - h / alpha


def _g(known: ClientTrainingState, name: str) -> Tensor | np.float32:
    return known.state_of(known.kept, "g", name)
