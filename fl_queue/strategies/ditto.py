"""
Ditto: FedAvg, and beside it a model of its own for each client, held near the global one.

    y_k  <- local SGD from w                            sent, w <- sum_k n_k/n y_k, as FedAvg
    v_k  <- v_k - eta (grad F_k(v_k) + lambda (v_k - w))    kept, in as many steps of local SGD

``w`` is the round's model. ``v_k`` never leaves the client, and advances once the round has accepted its
update; what the client validates as ``personal_accuracy`` is ``v_k`` as it was when the round began. The
versions are FedAvg's bit for bit, whatever ``lambda``. With ``lambda = 0`` clients learn alone; with a
large one ``v_k`` is the global model. The paper tries 0.1, 1 and 2; the product of learning rate and
``lambda`` must stay below 2, or the steps diverge.

Where implementations differ: ``v_k`` begins as the model of the client's first round, not as version 0,
which it may never have had. It is trained in every round in which the client is selected, with the epochs,
batches and momentum of ``[train]``. Buffers (BatchNorm statistics) are the personal model's own.

Source:
    Li et al. 2021, arXiv 2012.04221, Algorithm 1, with local SGD as the solver of both.
"""

from __future__ import annotations

from typing import ClassVar

from fl_queue.common.options import Option
from fl_queue.strategies.base import Strategy


class Ditto(Strategy):
    """Sends what FedAvg sends; clients keep ``v_k``."""

    OPTIONS: ClassVar = {
        "lambda": Option(
            "float", 1.0, "pull of the personal model to the global one, 0 or more", low=0.0
        )
    }
    personal = True
    needs_local_sgd = True

    def proximal_strength(self) -> float:
        """``lambda``."""
        return self.number("lambda")
