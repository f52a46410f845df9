"""
One step of a client's training: clip, schedule, the strategy's terms, the optimizer, the mean of the weights.

Imports torch. No Redis here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fl_queue.errors import ConfigError
from fl_queue.training.kept_optimizer import Scaled
from fl_queue.training.local_rule import LocalRule
from fl_queue.training.optimizers import Recipe, group_options
from fl_queue.training.parameter_groups import Groups, by_decay, checked
from fl_queue.training.plain_sgd import PlainSGD
from fl_queue.training.row_floor import Parts, Steps, check_pull
from fl_queue.training.schedules import Schedule

#: What torch's clipping adds to a norm before it divides.
_TINY = 1e-6
#: In a group of parameters: what strategies that count SGD's steps count as one for all.
_COUNTED = ("lr", "lr_factor", "momentum", "nesterov")


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """
    Settings of a client's steps.

    Args:
        recipe: The optimizer.
        schedule: Of the learning rate within the round.
        clip_norm: Largest L2 norm of a step's gradient; 0: any.
        no_decay: Patterns of parameters without weight decay.
        ema: Decay of the running mean of the weights; 0: none.
        param_groups: Groups of a model's parameters, in place of those by ``no_decay``.
        scaled: Scales the loss.
    """

    recipe: Recipe
    schedule: Schedule
    clip_norm: float = 0.0
    no_decay: Sequence[str] = ()
    ema: float = 0.0
    param_groups: Callable[[nn.Module], Any] | None = None
    scaled: Scaled | None = None

    def groups(self, model: nn.Module) -> Groups:
        """
        The groups of a model's trained parameters.

        Raises:
            ConfigError: A pattern matches nothing, or the task's groups cannot be used.
        """
        found = by_decay(model, self.no_decay)
        given = self.param_groups(model) if self.param_groups is not None else None
        if given is None:
            return found
        return checked(model, given, group_options(self.recipe.name))


class LocalStep:
    """
    The steps of one training, one after the other.

    Their order is that of the papers: the loss's gradient is clipped, then the strategy adds its terms.

    Args:
        model: On the recipe's device.
        settings: Of the steps.
        rule: The strategy's terms, and the site's floor.

    Raises:
        ConfigError: The strategy takes steps of SGD alone, at one learning rate for all parameters; or an
            option cannot be used.
    """

    def __init__(self, model: nn.Module, settings: StepSettings, rule: LocalRule | None) -> None:
        self._settings, self._rule = settings, rule
        groups = settings.groups(model)
        self.parameters = [one for group in groups for one in group["params"]]
        self.updater = settings.recipe.updater(groups)
        self._rates = [group.get("lr", settings.recipe.learning_rate) for group in groups]
        self._taken = 0
        self._mean = {one: one.detach().clone() for one in self.parameters} if settings.ema else {}
        #: Where the site has a floor.
        self.parts: Parts | None = None
        if rule is not None and rule.only_sgd:
            self._check_sgd(rule.only_sgd, groups)
        if rule is not None and rule.optimizer is not None:
            rule.optimizer.restore(self.updater, self.parameters, settings.scaled)

    def _check_sgd(self, why: str, groups: Groups) -> None:
        if self._settings.recipe.name != "sgd":
            raise ConfigError("train.optimizer", why, public=True)
        if any(key in group for group in groups for key in _COUNTED):
            raise ConfigError(
                "run.task",
                "param_groups() has groups with learning rates, momentum or nesterov of their own, "
                "and aggregation.strategy counts SGD's steps at one; remove them, or use another strategy",
                public=True,
            )

    def watch(self, count: int, device: str) -> None:
        """
        Follow how large a part each of ``count`` rows has in what is trained.

        Raises:
            ConfigError: A step would forget those before it, or its optimizer's parts cannot be followed.
        """
        optimizer = self.updater
        if self._rule is not None and self._rule.optimizer is not None:
            raise ConfigError(
                "train.optimizer_state",
                "this site sends what a fixed number of examples make up at least, which it follows through the steps "
                "of one round; set it to reset, or have the site lower --min-batch",
                public=True,
            )
        if not isinstance(optimizer, PlainSGD) or len(optimizer.groups) > 1:
            raise ConfigError(
                "train.optimizer",
                "this site has a minimum of examples for each step, which holds for sgd with one group of parameters "
                "only; use sgd, or have the site lower --min-batch to 1",
                public=True,
            )
        proximal = self._rule.proximal if self._rule is not None else 0.0
        # Of the group, as it may differ from the config.
        group = optimizer.groups[0]
        learning_rate, pull = float(group["lr"]), float(group["weight_decay"]) + proximal
        check_pull(learning_rate, float(group["weight_decay"]), proximal)
        rates = [learning_rate * factor for factor in self._settings.schedule.factors()]
        nesterov = bool(group["nesterov"])
        steps = Steps(rates, float(group["momentum"]), pull, nesterov, self._settings.ema)
        self.parts = Parts.of(count, steps, device)

    def set_count(self, count: int) -> None:
        """Set how many steps the schedule has, where that was not known at first."""
        if self._settings.schedule.steps != count:
            schedule = replace(self._settings.schedule, steps=count)
            self._settings = replace(self._settings, schedule=schedule)

    def skipped(self) -> None:
        """Pass over a step whose gradient overflowed."""
        self._taken += 1
        if self.parts is not None:
            self.parts.skipped()

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        settings, norm = self._settings, None
        if settings.clip_norm:
            norm = nn.utils.clip_grad_norm_(self.parameters, settings.clip_norm)
        if self.parts is not None:
            self.parts.stepped(_clipped(norm, settings.clip_norm))
        factor = settings.schedule.factor(self._taken)
        self._taken += 1
        self.updater.step(factor, self._rule)
        if self._rule is not None:
            nesterov = bool(settings.recipe.options.get("nesterov"))
            rate = settings.recipe.learning_rate * factor
            self._rule.count(rate, settings.recipe.momentum, nesterov)
        for parameter, mean in self._mean.items():
            mean.lerp_(parameter, 1.0 - settings.ema)

    @torch.no_grad()
    def finish(self) -> None:
        """Put the running mean of the weights in their place, where there is one; keep the optimizer's state."""
        for parameter, mean in self._mean.items():
            parameter.copy_(mean)
        if self._rule is not None and self._rule.optimizer is not None:
            self._rule.optimizer.keep(self.updater, self._settings.scaled)


def _clipped(norm: Tensor | None, most: float) -> Tensor | float:
    """The factor by which a gradient was scaled down."""
    return 1.0 if norm is None else (most / (norm + _TINY)).clamp(max=1.0)
