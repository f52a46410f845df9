"""
SCAFFOLD: each client corrects its gradients by how its data differ from those of all clients.

    y_i  <- y_i - eta_l (g_i(y_i) - c_i + c),        K times from x
    c_i+  = c_i - c + (x - y_i) / (K eta_l)          (option II)
    x    <- x + eta_g mean_S (y_i - x)
    c    <- N' / N c + |S| / N mean_S (c_i+ - c_i)

``c`` and all ``c_i`` are 0 at first. Clients fetch ``c`` with the model, send ``c_i+ - c_i`` beside their
update, and keep ``c_i+`` once it has been accepted. ``N`` is the population: all clients that the run has
seen, or ``clients.count`` of a simulation; never the cohort. ``N'`` is the population of the round that made
``c``: a client that joins has ``c_i = 0``, so that ``c`` stays the mean of all ``c_i``. Without that factor it
would never be again, and the model would converge to another point. Weights are uniform, as in the paper.

Where implementations differ: option II, which costs nothing, as everywhere. With momentum, or a learning rate that
changes within the round, ``K eta_l`` is ``eta_l ||a||_1`` of FedNova, the effective sum of steps. Control variates are of parameters only:
BatchNorm's buffers have no gradient, and get their mean. An update must arrive as it was made
(``update.codec = "float32"``): ``c`` is the mean of the ``c_i`` only if both sides add the same.

Source:
    Karimireddy et al. 2020, arXiv 1910.06378, Algorithm 1.
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
    LimitSettings,
    Range,
    Strategy,
)
from fl_queue.strategies.gradient_sum import gradient_sum


class Scaffold(Strategy):
    """Sends ``dc`` besides its update; the server keeps ``c``, which clients fetch, and they ``c_i``."""

    OPTIONS: ClassVar = {
        "server_learning_rate": Option("float", 1.0, "eta_g, step of the server, above 0", above=0),
        "control_limit": Option(
            "float",
            1024.0,
            "an update whose control variate changes by more is rejected, above 0",
            above=0,
        ),
    }
    WEIGHTINGS = ("uniform",)
    server_state = fetched = ("c",)
    extras = ("dc",)
    client_state = ("c",)
    needs_exact_updates = True
    may_clip = False
    needs_local_sgd = needs_gradient_sum = True

    def ranges(self, aggregation: LimitSettings) -> dict[str, Range]:
        """A control variate is a gradient: not in the range of an update."""
        return super().ranges(aggregation) | {"dc": Range(self.number("control_limit"))}

    def training_refusals(self, optimizer: str) -> Mapping[str, str]:
        """Other optimizers than SGD, whose ``y - x`` is no known sum of gradients."""
        return {
            "optimizer": "scaffold's control variates are means of SGD's gradients; use sgd, or fedprox or feddyn, "
            f"which work with {optimizer}",
            "optimizer_state": "scaffold's control variates are means of one round's gradients, and kept momentum "
            "is of earlier ones; set it to reset",
            "ema": "scaffold's control variates follow from the last weights, not from their mean; set it to 0",
        }

    def correction(self, known: ClientTrainingState) -> Correction:
        """``c - c_i``."""
        return Correction(offset=lambda name: np.subtract(_c(known, name), _c_i(known, name)))

    def answer(self, known: ClientTrainingState) -> ClientContribution:
        """``dc = (x - y) / (K eta_l) - c``, and ``c_i + dc``."""
        distance = known.learning_rate * gradient_sum(known)

        def change(name: str) -> Tensor:
            wide = known.change(name).astype(np.float64) / -distance
            return (wide - _c(known, name)).astype(np.float32)

        return ClientContribution(
            extra=lambda extra, name: change(name),
            keep=lambda which, name: np.add(_c_i(known, name), change(name)),
        )

    def step(self, block: Block) -> Float64s:
        """``c``, then ``x``."""
        share = block.facts.accepted / block.facts.population
        block.state["c"] = block.facts.over_population(block.state["c"]) + share * block.mean("dc")
        return block.x + self.number("server_learning_rate") * block.mean()


def _c(known: ClientTrainingState, name: str) -> Tensor | np.float32:
    return known.state_of(known.server, "c", name)


def _c_i(known: ClientTrainingState, name: str) -> Tensor | np.float32:
    return known.state_of(known.kept, "c", name)
