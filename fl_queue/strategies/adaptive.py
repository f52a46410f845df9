"""
Common part of FedAdagrad, FedAdam and FedYogi: Algorithm 2 of Reddi et al.

    D <- sum_S p_i D_i
    m <- beta_1 m + (1 - beta_1) D
    v <- each its own, from v and D^2
    x <- x + eta m / (sqrt(v) + tau)

``m = v = 0`` at version 0. Only parameters take these steps; buffers get their mean.

Where implementations differ: the second moment is of ``D``, as in the paper's published algorithm and
in Flower, not of ``m``. The paper starts ``v`` at ``tau^2`` or more, its experiments and other libraries at 0.
There is no bias correction, as in the paper; where a strategy offers it, ``bias_correction = true`` is
Adam's own, ``eta sqrt(1 - beta_2^t) / (1 - beta_1^t)`` at version ``t`` (Flower's FedAdam has ``t + 1``).

Source:
    Reddi et al. 2021, arXiv 2003.00295, Algorithm 2.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from fl_queue.common.options import Option
from fl_queue.protocol.arrays import Float64s
from fl_queue.strategies.base import Block, Strategy

_RATE = Option("float", 0.1, "eta, step of the server, above 0", above=0)
_TAU = Option("float", 0.001, "tau, adaptivity: added to the root, above 0", above=0)


def options(beta_1: float, beta_2: float | None) -> dict[str, Option]:
    """The options of one of the three with these defaults; no ``beta_2``: no decay of ``v``."""
    fields = {
        "server_learning_rate": _RATE,
        "tau": _TAU,
        "beta_1": Option(
            "float", beta_1, "decay of the mean, 0 to below 1", low=0.0, high=0.999999
        ),
    }
    if beta_2 is not None:
        doc = "decay of the mean square, 0 to below 1"
        fields["beta_2"] = Option("float", beta_2, doc, low=0.0, high=0.999999)
    return fields


class Adaptive(Strategy):
    """The server keeps ``m`` and ``v``."""

    server_state: ClassVar[tuple[str, ...]] = ("m", "v")
    supports_async = True

    def second_moment(self, v: Float64s, square: Float64s) -> Float64s:
        """The next ``v``. Args: ``square``: ``D^2``."""
        raise NotImplementedError

    def step(self, block: Block) -> Float64s:
        """``m``, ``v``, then ``x``; see the module."""
        beta_1, mean = self.number("beta_1"), block.mean()
        m = beta_1 * block.state["m"] + (1.0 - beta_1) * mean
        v = self.second_moment(block.state["v"], mean * mean)
        block.state |= {"m": m, "v": v}
        rate = self.number("server_learning_rate") * self._correction(block.facts.version)
        return block.x + rate * m / (np.sqrt(v) + self.number("tau"))

    def _correction(self, version: int) -> float:
        if not self.options.get("bias_correction"):
            return 1.0
        first = 1.0 - _power(self.number("beta_1"), version)
        second = 1.0 - _power(self.number("beta_2"), version)
        return math.sqrt(second) / first


def _power(base: float, exponent: int) -> float:
    """By squaring: ``pow`` of a C library may round otherwise on another machine."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result
