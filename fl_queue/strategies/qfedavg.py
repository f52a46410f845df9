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
with up to 52 bits below the point, as far as that fits.
``||.||^2`` is over the parameters. The Lipschitz constant is ``1 / eta``, as in the authors' code.

Source:
    Li et al. 2020, arXiv 1905.10497, Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fl_queue.exact import Float64s
from fl_queue.fields import Field
from fl_queue.strategies.base import Answer, Block, Known, Range, Strategy


class QFedAvg(Strategy):
    """Sends its update times ``F^q``, and ``h``; nobody keeps anything."""

    OPTIONS: ClassVar = {
        "q": Field("float", 1.0, "fairness, 0 (none) to 16", low=0.0, high=16.0),
        "delta_limit": Field(
            "float", 65536.0, "an update with a larger `F^q (y - x)` is rejected, above 0", above=0
        ),
    }
    WEIGHTINGS = ("uniform",)
    scalars: ClassVar = {"h": 1e30}
    may_clip = False
    needs_base_loss = True

    def ranges(self, aggregation: Mapping[str, Any]) -> dict[str, Range]:
        """Parameters as fine as it goes, within a limit of their own."""
        return super().ranges(aggregation) | {"parameter": Range(self.number("delta_limit"), 52)}

    def answer(self, known: Known) -> Answer:
        """``F^q`` and ``eta h``."""
        q, loss = self.number("q"), known.base_loss + 1e-10
        squares = sum(_square(known.change(name)) for name in known.parameters)
        h = q * loss ** (q - 1.0) * squares / known.learning_rate + loss**q
        return Answer(factor=loss**q, scalars={"h": h})

    def step(self, block: Block) -> Float64s:
        """``x`` and the sum of the one over the sum of the other."""
        return block.x + block.mean() / block.scalar("h")


def _square(values: np.ndarray) -> float:
    wide = values.astype(np.float64)
    return float((wide * wide).sum())
