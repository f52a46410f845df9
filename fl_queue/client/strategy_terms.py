"""
A strategy's terms in one client's training: made of what it knows, and checked to have been added.

Imports torch. No Redis here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_queue.errors import ConfigError
from fl_queue.protocol.manifest import Manifest
from fl_queue.strategies.base import ClientTrainingState, Strategy
from fl_queue.training.kept_optimizer import KeptOptimizer
from fl_queue.training.local_rule import LocalRule
from fl_queue.training.model_tensors import state_of


def local_rule(
    strategy: Strategy,
    known: ClientTrainingState,
    model: nn.Module,
    fewest: int,
) -> LocalRule:
    """The strategy's correction, and the site's floor, as a training takes them. Args: ``known``: before it."""
    correction = strategy.correction(known)
    state, anchors, offsets = state_of(model), {}, {}
    for name in known.parameters:
        parameter = state[name]
        if not isinstance(parameter, nn.Parameter):
            continue
        if correction.proximal:
            anchors[parameter] = parameter.detach().clone()
        if correction.offset is not None:
            offset = np.broadcast_to(correction.offset(name), tuple(parameter.shape))
            offsets[parameter] = torch.tensor(offset.copy()).to(parameter)
    # q-FedAvg has a constant of SGD in its equations.
    knows_sgd = strategy.needs_gradient_sum or strategy.needs_base_loss
    only_sgd = strategy.training_refusals("adamw").get("optimizer", "") if knows_sgd else ""
    return LocalRule(correction.proximal, anchors, offsets, fewest, only_sgd, known.learning_rate)


def unseen_steps() -> ConfigError:
    """Why a strategy with terms cannot use a training: it added none."""
    return ConfigError(
        "aggregation.strategy",
        "it corrects each step of a training, and none of this task's was seen; train the given model by an optimizer "
        "of torch, hand context.rule to sgd.local_sgd, or call context.training.add_terms and count_step",
        public=True,
    )


def check_seen(
    strategy: Strategy,
    rule: LocalRule,
    model: nn.Module,
    parameters: Sequence[str],
    base: Mapping[str, NDArray[Any]],
) -> None:
    """
    Refuse an update that the strategy could not correct.

    Args:
        parameters: Names of those that are trained together.
        base: Their values before the training.

    Raises:
        ConfigError: No step of the training was seen, or none of a parameter that has changed; names it. Or it did
            not use the optimizer whose state the client keeps.
    """
    _check_kept(rule)
    if not strategy.needs_local_sgd:
        return
    if not rule.steps:
        raise unseen_steps()
    state = state_of(model)
    for name in parameters:
        found = state[name]
        before = torch.tensor(np.array(base[name])).to(found)
        if found in rule.seen or torch.equal(found, before):
            continue
        raise ConfigError(
            "aggregation.strategy",
            f"it corrects each step of a training, and {name} changed in none that was seen; train it by an optimizer "
            "of torch, or call context.training.add_terms",
            public=True,
        )


def kept_optimizer(
    model: nn.Module, layout: Manifest, found: Mapping[str, NDArray[Any]]
) -> KeptOptimizer:
    """
    The optimizer's state that a client keeps, as a training takes it.

    Args:
        layout: Of it: ``<name>/<parameter>``.
        found: The arrays of the last accepted update; empty: the optimizer begins anew.
    """
    state, names, parameters = state_of(model), set(), {}
    for spec in layout.tensors:
        name, _, owner = spec.name.partition("/")
        names.add(name)
        parameter = state.get(owner)
        if isinstance(parameter, nn.Parameter):
            parameters[owner] = parameter
    return KeptOptimizer(names, parameters, found)


def _check_kept(rule: LocalRule) -> None:
    if rule.optimizer is not None and not rule.optimizer.is_used:
        raise ConfigError(
            "train.optimizer_state",
            "keep needs the optimizer of [train], and this task's train() did not use it; train with "
            "sgd.local_sgd(..., rule=context.rule), or set it to reset",
            public=True,
        )
