"""
The step of SGD, in a loop over the parameters: the bits of ``torch.optim.SGD`` without its imports.

Imports torch. No Redis here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fl_queue.training.local_rule import LocalRule
from fl_queue.training.parameter_groups import Groups, trained_parameters


class PlainSGD:
    """
    The step of ``torch.optim.SGD`` on a CPU, with the same bits.

    That one imports torch's compiler on its first use: nine hundred modules, two seconds between the
    start of a killed worker and its training again.

    Args:
        model: Its parameters that are not frozen are updated; or groups of parameters, tables with
            ``params`` and, where they differ, ``lr``, ``momentum``, ``weight_decay`` and ``nesterov``.
        learning_rate, momentum, weight_decay, nesterov: As of ``torch.optim.SGD``.
    """

    def __init__(
        self,
        model: nn.Module | Groups,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool = False,
    ) -> None:
        if isinstance(model, nn.Module):
            model = [{"params": trained_parameters(model)}]
        defaults = {
            "lr": learning_rate,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        self.groups: Groups = [defaults | group for group in model]
        self.parameters = [one for group in self.groups for one in group["params"]]
        self._velocity: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def step(self, factor: float = 1.0, rule: LocalRule | None = None) -> None:
        """Update every parameter that has a gradient. Args: ``factor``: times the learning rate; ``rule``: adds its terms."""
        for group in self.groups:
            rate = group["lr"] * factor
            for parameter in group["params"]:
                if parameter.grad is not None:
                    change = self._change(parameter, group, rule)
                    parameter.add_(change, alpha=-rate)

    def _change(
        self, parameter: nn.Parameter, group: Mapping[str, Any], rule: LocalRule | None
    ) -> Tensor:
        assert parameter.grad is not None
        change = parameter.grad
        if group["weight_decay"]:
            change = change.add(parameter, alpha=group["weight_decay"])
        if rule is not None:
            change = rule.corrected(parameter, change)
        if group["momentum"]:
            velocity = self._with_momentum(parameter, change, group["momentum"])
            change = (
                change.add(velocity, alpha=group["momentum"]) if group["nesterov"] else velocity
            )
        return change

    def _with_momentum(self, parameter: nn.Parameter, change: Tensor, momentum: float) -> Tensor:
        if parameter in self._velocity:
            self._velocity[parameter].mul_(momentum).add_(change)
        else:
            self._velocity[parameter] = change.clone()
        return self._velocity[parameter]

    def state(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """The momentum of each parameter, as torch names it."""
        return {one: {"momentum_buffer": found} for one, found in self._velocity.items()}

    def restore(self, state: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        """Go on from a state."""
        self._velocity |= {one: found["momentum_buffer"] for one, found in state.items()}
