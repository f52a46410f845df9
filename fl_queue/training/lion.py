"""
Lion, which torch does not have: steps of one size, in the direction of a momentum's sign.

Imports torch. No Redis here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lion(Optimizer):
    """
    Evolved sign momentum, with decoupled weight decay.

    ::

        w <- w - lr (sign(b1 m + (1 - b1) g) + weight_decay w),    m <- b2 m + (1 - b2) g

    Args:
        params: Parameters, or groups of them, as of any optimizer of torch.
        lr: Learning rate; about a tenth of Adam's.
        betas: ``b1`` and ``b2``.
        weight_decay: Of the weights; about ten times Adam's.

    Source:
        Chen et al. 2023, arXiv 2302.06675, Algorithm 2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient. Args: ``closure``: computes the gradients and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        first, second = group["betas"]
        state = self.state[parameter]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        mean = state["exp_avg"]
        direction = mean.mul(first).add_(gradient, alpha=1 - first).sign_()
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"])
        mean.mul_(second).add_(gradient, alpha=1 - second)
