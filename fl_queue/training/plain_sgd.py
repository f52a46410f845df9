"""
The step of SGD, in a loop over the parameters: the bits of ``torch.optim.SGD`` without its imports.

Imports torch. No Redis here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fl_queue.training.local_rule import LocalRule
from fl_queue.training.row_floor import Parts, check_pull

#: What torch's clipping adds to a norm before it divides.
_TINY = 1e-6


class PlainSGD:
    """
    The step of ``torch.optim.SGD``, with the same bits.

    That one imports torch's compiler on its first use: nine hundred modules, two seconds between the
    start of a killed worker and its training again.
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        rule: LocalRule | None = None,
        clip_norm: float = 0.0,
    ) -> None:
        self.rule, self.clip_norm = rule, clip_norm
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.learning_rate, self.momentum, self.weight_decay = learning_rate, momentum, weight_decay
        self.velocity: dict[int, Tensor] = {}
        #: Where the site has a floor.
        self.parts: Parts | None = None

    def watch(self, count: int, steps: int, device: str) -> None:
        """
        Follow how large a part each of ``count`` rows has in what is trained.

        Raises:
            ConfigError: A step would forget those before it.
        """
        proximal = self.rule.proximal if self.rule is not None else 0.0
        check_pull(self.learning_rate, self.weight_decay, proximal)
        pull = self.weight_decay + proximal
        self.parts = Parts(count, steps, self.learning_rate, self.momentum, pull, device)

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        if self.rule is not None:
            self.rule.steps += 1
        norm = None
        if self.clip_norm:
            norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        if self.parts is not None:
            clipped = 1.0 if norm is None else (self.clip_norm / (norm + _TINY)).clamp(max=1.0)
            self.parts.stepped(clipped)
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                continue
            change = parameter.grad
            if self.weight_decay:
                change = change.add(parameter, alpha=self.weight_decay)
            if self.rule is not None:
                change = self.rule.corrected(parameter, change)
            if self.momentum:
                change = self._with_momentum(index, change)
            parameter.add_(change, alpha=-self.learning_rate)

    def _with_momentum(self, index: int, change: Tensor) -> Tensor:
        if index in self.velocity:
            self.velocity[index].mul_(self.momentum).add_(change)
        else:
            self.velocity[index] = change.clone()
        return self.velocity[index]
