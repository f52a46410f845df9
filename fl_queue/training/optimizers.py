"""
The optimizers of a client by name, over torch's own.

What torch may choose by the machine is fixed: its loops over single tensors on a CPU, over lists of
tensors on an accelerator, and no fused kernels. SGD on a CPU is ``plain_sgd``, which imports none of torch's
compiler. Imports torch. No Redis here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fl_queue.config.optimizer_catalog import OPTIMIZERS, is_own, options_of
from fl_queue.errors import ConfigError
from fl_queue.training.lion import Lion
from fl_queue.training.local_rule import LocalRule
from fl_queue.training.parameter_groups import RATE_FACTOR, Groups
from fl_queue.training.plain_sgd import PlainSGD

#: An own optimizer: ``(parameters, lr, **options) -> torch.optim.Optimizer``.
Maker = Callable[..., Any]

#: Name -> its class in torch, and whether that takes ``fused``.
_TORCH: Mapping[str, tuple[str, bool]] = {
    "sgd": ("SGD", True),
    "adam": ("Adam", True),
    "adamw": ("AdamW", True),
    "adagrad": ("Adagrad", True),
    "rmsprop": ("RMSprop", False),
}


class Updater(Protocol):
    """An optimizer as the local training steps it."""

    def step(self, factor: float = 1.0, rule: LocalRule | None = None) -> None:
        """Add the terms and update the parameters. Args: ``factor``: times each group's learning rate."""

    def state(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """What it keeps of each parameter that it has updated."""

    def restore(self, state: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        """Go on from a state."""


#: Marks an optimizer to whose gradients the terms are added before its step is called.
_STEPPED_HERE = "_flq_stepped_here"


def is_stepped_here(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the local training of fl-queue steps an optimizer, and not a loop of the user's own."""
    return bool(getattr(optimizer, _STEPPED_HERE, False))


class TorchUpdater:
    """
    An optimizer of torch.

    Args:
        optimizer: With the learning rates of the round.
        is_own: Whether a loop of the user's own may step it, too.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, is_own: bool = False) -> None:
        self.optimizer = optimizer
        if not is_own:
            setattr(optimizer, _STEPPED_HERE, True)
        self._rates = [group["lr"] for group in optimizer.param_groups]

    def step(self, factor: float = 1.0, rule: LocalRule | None = None) -> None:
        """As of ``Updater``."""
        if rule is not None:
            rule.add_terms(one for group in self.optimizer.param_groups for one in group["params"])
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        if rule is None:
            self.optimizer.step()
            return
        # An own optimizer may step others, whose gradients have the terms already.
        rule.is_in_step = True
        try:
            self.optimizer.step()
        finally:
            rule.is_in_step = False

    def state(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """As of ``Updater``."""
        found: Mapping[Any, dict[str, Tensor]] = self.optimizer.state
        return {one: dict(kept) for one, kept in found.items() if kept}

    def restore(self, state: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
        """As of ``Updater``."""
        for parameter, found in state.items():
            self.optimizer.state[parameter] = dict(found)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """
    Settings of an optimizer.

    Args:
        name: As ``train.optimizer``.
        learning_rate: Of the round.
        momentum, weight_decay: As ``[train]`` has them.
        options: ``train.optimizer_options``.
        device: Of the parameters.
        own: Makes an own one.
        as_torch: Whether a loop of the user's own may step it: it is one of torch's, and the terms are added
            where it is stepped.
    """

    learning_rate: float
    name: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    own: Maker | None = None
    as_torch: bool = False

    def updater(self, groups: Groups) -> Updater:
        """
        The optimizer of a model's parameters, as the local training steps it.

        Args:
            groups: Tables with ``params``; their other keys override the options.

        Raises:
            ConfigError: An option cannot be used, or an own optimizer is none.
        """
        if self.as_torch:
            return TorchUpdater(self.optimizer(groups), is_own=True)
        if self.name == "sgd" and not self.device.startswith("cuda"):
            nesterov = bool(options_of("sgd", self.options)["nesterov"])
            groups = _with_rates(groups, self.learning_rate)
            return PlainSGD(groups, self.learning_rate, self.momentum, self.weight_decay, nesterov)
        return TorchUpdater(self.optimizer(groups))

    def optimizer(self, groups: Groups) -> torch.optim.Optimizer:
        """The same as one of torch's; arguments and errors as of ``updater``."""
        groups, given = _with_rates(groups, self.learning_rate), options_of(self.name, self.options)
        if is_own(self.name):
            # Of these two an own optimizer may know nothing.
            given |= {"weight_decay": self.weight_decay} if self.weight_decay else {}
            given |= {"momentum": self.momentum} if self.momentum else {}
            return _own(self, groups, given)
        given["weight_decay"] = self.weight_decay
        if OPTIMIZERS[self.name].takes_momentum:
            given["momentum"] = self.momentum
        if self.name == "lion":
            return Lion(groups, self.learning_rate, **given)
        kind, takes_fused = _TORCH[self.name]
        fixed = {"foreach": self.device.startswith("cuda")}
        fixed |= {"fused": False} if takes_fused else {}
        found: torch.optim.Optimizer = getattr(torch.optim, kind)(
            groups, lr=self.learning_rate, **given, **fixed
        )
        return found


def _with_rates(groups: Groups, learning_rate: float) -> Groups:
    """Groups whose ``lr_factor`` has become a learning rate."""
    return [
        {key: value for key, value in group.items() if key != RATE_FACTOR}
        | ({"lr": learning_rate * group[RATE_FACTOR]} if RATE_FACTOR in group else {})
        for group in groups
    ]


def group_options(name: str) -> tuple[str, ...]:
    """Options that a group of parameters may have; empty: any, of an own optimizer."""
    if name not in OPTIMIZERS:
        return ()
    entry = OPTIMIZERS[name]
    momentum = ("momentum",) if entry.takes_momentum else ()
    return ("lr", "weight_decay", *momentum, *entry.options)


def implementation(name: str, device: str) -> str:
    """An optimizer as receipts name it: its name, and the loop that steps it."""
    if is_own(name):
        return name
    if name == "lion" or not device.startswith("cuda"):
        return f"{name} (single tensors)"
    return f"{name} (foreach)"


def _own(recipe: Recipe, groups: Groups, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    name = recipe.name
    if recipe.own is None:
        raise ConfigError("train.optimizer", f"{name} has not been loaded", public=True)
    given = groups[0]["params"] if _is_plain(groups) else groups
    try:
        found = recipe.own(given, recipe.learning_rate, **options)
    except TypeError as exc:
        listed = ", ".join(options) or "none"
        raise ConfigError(
            "train.optimizer_options",
            f"{name} does not take them ({listed}): {exc}",
            public=f"{name} does not take them ({listed})",
        ) from exc
    if not isinstance(found, torch.optim.Optimizer) or not _have_rates(found.param_groups):
        raise ConfigError(
            "train.optimizer",
            f"{name} returned a {type(found).__name__}, not a torch.optim.Optimizer whose groups have lr",
            public=True,
        )
    return found


def _is_plain(groups: Sequence[Mapping[str, Any]]) -> bool:
    return len(groups) == 1 and set(groups[0]) == {"params"}


def _have_rates(groups: Iterable[Mapping[str, Any]]) -> bool:
    return all("lr" in group for group in groups)
