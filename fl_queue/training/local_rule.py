"""
Inputs of a local training that no config has: the strategy's terms, and the site's floor of samples.

Imports torch. No Redis here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fl_queue.strategies.gradient_sum import GradientSum
from fl_queue.training.kept_optimizer import KeptOptimizer

#: A parameter, its anchor, room for what is between the two, and its offset.
_Terms = tuple[nn.Parameter, Tensor | None, Tensor | None, Tensor | None]


class LocalRule:
    """
    Inputs of local training that are not in the config: the strategy's addition to each gradient, the site's floor.

    ``gradient + proximal * (w - anchor) + offset``, before the optimizer's step; with neither no bit changes.

    Args:
        proximal: Pull towards the anchors.
        anchors, offsets: By parameter, on its device; a parameter that is not there gets nothing.
        fewest: Samples of which the site makes a step and an update, see ``row_floor``; 1: any.
        only_sgd: Why the strategy takes steps of SGD alone; empty: it takes any.
        learning_rate: Of the round; for ``gradient_sum``.
    """

    def __init__(
        self,
        proximal: float = 0.0,
        anchors: Mapping[nn.Parameter, Tensor] | None = None,
        offsets: Mapping[nn.Parameter, Tensor] | None = None,
        fewest: int = 1,
        only_sgd: str = "",
        learning_rate: float = 0.0,
    ) -> None:
        self.fewest, self.only_sgd, self.learning_rate = fewest, only_sgd, learning_rate
        self.proximal = proximal
        self.anchors, self.offsets = dict(anchors or {}), dict(offsets or {})
        #: Whether local SGD knew of it: a task may train in another way.
        self.is_used = False
        #: Whether a step is under way to whose gradients the terms have been added.
        self.is_in_step = False
        #: State of the optimizer that the client keeps; None: each training begins anew.
        self.optimizer: KeptOptimizer | None = None
        self.steps = 0
        self._rooms: dict[torch.Size, Tensor] = {}
        #: By the id of a parameter, which is held beside its terms.
        self._terms: dict[int, _Terms] = {}
        #: Parameters that a step with the terms may have changed.
        self.seen: set[nn.Parameter] = set()
        #: How often the gradients count so far; followed where ``only_sgd``.
        self.gradient_sum = GradientSum(learning_rate * proximal)

    @property
    def has_terms(self) -> bool:
        """Whether it adds anything to a gradient."""
        return bool(self.anchors or self.offsets)

    def corrected(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        """The gradient with what is added."""
        if parameter in self.anchors:
            gradient = gradient.add(parameter - self.anchors[parameter], alpha=self.proximal)
        if parameter in self.offsets:
            gradient = gradient.add(self.offsets[parameter])
        return gradient

    @torch.no_grad()
    def add_terms(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add to the gradients themselves, of those parameters that have one."""
        if not self.has_terms:
            return
        held = [one for one in parameters if one.grad is not None]
        if held and held[0].device.type == "cuda":
            self._add_to_lists(held)
            return
        for parameter in held:
            gradient, terms = parameter.grad, self._terms.get(id(parameter))
            if terms is None or not _is_beside(parameter, terms):
                terms = self._terms[id(parameter)] = self._terms_of(parameter)
            assert gradient is not None
            _, anchor, room, offset = terms
            if anchor is not None and room is not None:
                torch.sub(parameter, anchor, out=room)
                gradient.add_(room, alpha=self.proximal)
            if offset is not None:
                gradient.add_(offset)

    def _add_to_lists(self, held: Sequence[nn.Parameter]) -> None:
        """The same on an accelerator, where starting an operation costs more than the arithmetic of a small tensor."""
        pulled: list[Tensor] = [one for one in held if one in self.anchors]
        if pulled:
            anchors: Any = [_beside(one, self.anchors) for one in held if one in self.anchors]
            away: Any = torch._foreach_sub(pulled, anchors)
            torch._foreach_add_(_gradients(pulled), away, alpha=self.proximal)
        shifted: list[Tensor] = [one for one in held if one in self.offsets]
        if shifted:
            offsets: Any = [_beside(one, self.offsets) for one in held if one in self.offsets]
            torch._foreach_add_(_gradients(shifted), offsets)

    def _terms_of(self, parameter: nn.Parameter) -> _Terms:
        """What is added to a parameter's gradient, looked up once: to hash a parameter is a call of Python."""
        anchor = _beside(parameter, self.anchors) if parameter in self.anchors else None
        offset = _beside(parameter, self.offsets) if parameter in self.offsets else None
        room = None if anchor is None else self._room(parameter)
        return parameter, anchor, room, offset

    def _room(self, parameter: nn.Parameter) -> Tensor:
        """Room for a tensor like a parameter: allocating it in each step costs more than the arithmetic."""
        found = self._rooms.get(parameter.shape)
        if found is None or (found.device, found.dtype) != (parameter.device, parameter.dtype):
            found = self._rooms[parameter.shape] = torch.empty_like(parameter, requires_grad=False)
        return found

    @torch.no_grad()
    def penalty(self, parameters: Iterable[nn.Parameter]) -> Tensor | float:
        """``proximal / 2 ||w - anchor||^2 + <offset, w - anchor>``, whose gradient the terms are; without anchors ``<offset, w>``."""
        total: Tensor | float = 0.0
        for one in parameters:
            away = one - _beside(one, self.anchors) if one in self.anchors else one
            if one in self.anchors:
                total = total + self.proximal / 2 * (away * away).sum()
            if one in self.offsets:
                total = total + (_beside(one, self.offsets) * away).sum()
        return total

    def count(self, rate: float, momentum: float = 0.0, nesterov: bool = False) -> None:
        """Count a step of SGD. Args: ``rate``: its learning rate."""
        self.steps += 1
        if self.only_sgd:
            self.gradient_sum.step(rate / self.learning_rate, momentum, nesterov)


def _beside(parameter: nn.Parameter, tensors: dict[nn.Parameter, Tensor]) -> Tensor:
    """The tensor of a parameter, on its device: a loop of the user's own may have moved the model."""
    found = tensors[parameter]
    if found.device != parameter.device or found.dtype != parameter.dtype:
        found = tensors[parameter] = found.to(parameter)
    return found


def _is_beside(parameter: nn.Parameter, terms: _Terms) -> bool:
    """Whether terms are still of a parameter's device and dtype."""
    found = terms[1] if terms[1] is not None else terms[3]
    return found is None or (found.dtype is parameter.dtype and found.device == parameter.device)


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of parameters that have one."""
    return [one.grad for one in parameters if one.grad is not None]
