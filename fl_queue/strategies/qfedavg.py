"""
q-FedAvg: clients on whose data the model is bad count more.

    F_k   = loss of x on all of the client's training data, before it trains (+ 1e-10)
    D_k   = F_k^q (x - y_k) / eta
    h_k   = q F_k^(q-1) ||(x - y_k) / eta||^2 + F_k^q / eta
    x    <- x - sum_S D_k / sum_S h_k

Both are sent times ``eta``, with the sign of an update: ``F_k^q (y_k - x)``, and ``eta h_k``, whose mean
is 1 for ``q = 0``; then the versions are those of FedAvg with uniform weights, bit for bit. Clients
compute the powers: what travels is their result. Weights are uniform, as clients are sampled uniformly.

``F_k^q`` may be large or tiny: the differences have a limit of their own (``delta_limit``), and are summed
with up to 52 bits below the point, as far as that fits. And the clients of a round divide both by the same power
of two, which cancels: 1 as long as the mean ``eta h`` of the last round is 1/16 to 4096, else 16 times that mean,
and more after a round whose updates were beyond the limit.
``||.||^2`` is over the parameters. The Lipschitz constant is ``1 / eta``, as in the authors' code.

Source:
    Li et al. 2020, arXiv 1905.10497, Algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from fl_queue.common.options import Option
from fl_queue.protocol.arrays import Float64s
from fl_queue.strategies.base import (
    Block,
    ClientContribution,
    ClientTrainingState,
    LimitSettings,
    Merged,
    Range,
    Strategy,
)

#: Where nothing need be divided: with it runs at ordinary losses keep their bits.
_PLAIN = 16


class QFedAvg(Strategy):
    """Sends its update times ``F^q``, and ``h``; clients keep no state."""

    OPTIONS: ClassVar = {
        "q": Option("float", 1.0, "fairness, 0 (none) to 16", low=0.0, high=16.0),
        "delta_limit": Option(
            "float", 65536.0, "an update with a larger `F^q (y - x)` is rejected, above 0", above=0
        ),
    }
    WEIGHTINGS = ("uniform",)
    scalars: ClassVar = {"h": 1e30}
    may_clip = False
    has_factors = True
    needs_base_loss = True
    has_exponent = True

    def ranges(self, aggregation: LimitSettings) -> dict[str, Range]:
        """Parameters as fine as it goes, within a limit of their own."""
        return super().ranges(aggregation) | {"parameter": Range(self.number("delta_limit"), 52)}

    def training_refusals(self, optimizer: str) -> Mapping[str, str]:
        """Anything but SGD at one rate, unless ``q`` is 0: ``1 / eta`` stands for the Lipschitz constant."""
        if not self.number("q"):
            return {}
        why = "qfedavg takes 1 / train.learning_rate for the Lipschitz constant of SGD's steps"
        rate = f"{why}, at one rate; set it to"
        return {
            "optimizer": f"{why}; use sgd, or fedavg, which works with {optimizer}",
            "schedule": f"{rate} constant",
            "warmup": f"{rate} 0",
            "optimizer_state": f"{why}, begun anew in each round; set it to reset",
            "ema": f"{why}, and not of their mean; set it to 0",
        }

    def answer(self, known: ClientTrainingState) -> ClientContribution:
        """``F^q`` and ``eta h``, over the round's power of two."""
        q, loss = self.number("q"), known.base_loss + 1e-10
        squares = sum(_square(known.change(name)) for name in known.parameters)
        h = q * loss ** (q - 1.0) * squares / known.learning_rate + loss**q
        part = math.ldexp(1.0, -known.exponent)
        return ClientContribution(factor=loss**q * part, scalars={"h": h * part})

    def next_exponent(self, total: Merged, exponent: int) -> int:
        """
        Scale at which the mean of ``eta h``, which no ``F^q`` is far above, becomes 1/32 to 1/16.

        Below it is room for small updates, above it for a loss that is much larger in the next round.
        """
        mean = total.scalar_mean("h")
        if mean <= 0.0:
            return exponent
        found = exponent + math.frexp(mean)[1] + 4
        return 0 if 0 <= found <= _PLAIN else found

    def step(self, block: Block) -> Float64s:
        """``x`` and the sum of the one over the sum of the other."""
        return block.x + block.mean() / block.scalar("h")


def _square(values: np.ndarray) -> float:
    wide = values.astype(np.float64)
    return float((wide * wide).sum())
