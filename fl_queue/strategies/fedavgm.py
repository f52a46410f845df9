"""
FedAvgM: FedAvg with momentum on the server.

    D <- sum_S p_i D_i
    b <- beta b + D
    x <- x + eta b                      (plain)
    x <- x + eta (D + beta b)           (Nesterov)

``beta = momentum``, ``eta = server_learning_rate``, ``b = 0`` at version 0. With ``momentum = 0`` and
``server_learning_rate = 1`` the versions are FedAvg's bit for bit.

Where implementations differ: Hsu et al. use Nesterov momentum, Reddi et al. and Flower's strategy the
plain one; Flower's baseline of Hsu et al. reports the plain one to be worse than FedAvg on very skewed
data. Plain is the default, ``nesterov = true`` is the other.

Source:
    Hsu et al. 2019, arXiv 1909.06335, section 4.3; Reddi et al. 2021, arXiv 2003.00295, Algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar

from fl_queue.common.options import Option
from fl_queue.protocol.arrays import Float64s
from fl_queue.strategies.base import Block, Strategy


class FedAvgM(Strategy):
    """Sends what FedAvg sends; the server keeps ``b``."""

    OPTIONS: ClassVar = {
        "server_learning_rate": Option("float", 1.0, "eta, step of the server, above 0", above=0),
        "momentum": Option("float", 0.9, "beta, momentum of the server, 0 to 1", low=0.0, high=1.0),
        "nesterov": Option("bool", False, "Nesterov's momentum in place of the plain one"),
    }
    server_state = ("b",)
    supports_async = True

    def step(self, block: Block) -> Float64s:
        """``b``, then ``x``; see the module."""
        beta, mean = self.number("momentum"), block.mean()
        b = beta * block.state["b"] + mean
        block.state["b"] = b
        change = mean + beta * b if self.options["nesterov"] else b
        return block.x + self.number("server_learning_rate") * change
