"""
Parts of a model that stay at one client: private tensors, a personal model beside the shared one, and fine-tuning.

Each is reported beside the version (``personal_accuracy``, ``finetuned_accuracy``) and none of it is
sent. Imports torch. No Redis here.

Source:
    FedBN: Li et al. 2021, arXiv 2102.07623. FedPer: Arivazhagan et al. 2019, arXiv 1912.00818.
    Ditto: in ``strategies/ditto.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_queue import metrics
from fl_queue.client.strategy_terms import unseen_steps
from fl_queue.common.spelling import nearest
from fl_queue.errors import ConfigError, ModelMismatch
from fl_queue.protocol.manifest import BATCH_NORM, Manifest
from fl_queue.protocol.records import Sums
from fl_queue.strategies.base import State, Strategy
from fl_queue.strategies.layouts import PERSONAL, PRIVATE
from fl_queue.tasks import calls
from fl_queue.tasks.base import ClientData, Task
from fl_queue.tasks.building import built
from fl_queue.tasks.context import ClientContext
from fl_queue.training.base_part import Fetch
from fl_queue.training.local_rule import LocalRule
from fl_queue.training.model_tensors import (
    BATCH_NORM_LAYERS,
    Arrays,
    load_some,
    state_of,
    views_of,
)
from fl_queue.training.sgd import size_of

#: Names that an error lists.
_NAMED = 8


# Private tensors


def private_names(model: nn.Module, manifest: Manifest, patterns: Sequence[str]) -> tuple[str, ...]:
    """
    The tensors that ``model.private`` keeps on the clients, sorted.

    A tensor with several names (tied weights) is private as soon as one of them is.

    Args:
        model: Of the task; its BatchNorm layers are found by their type.
        manifest: The model's.
        patterns: As in the config.

    Raises:
        ConfigError: A pattern matches nothing, or no parameter is left to be shared.
    """
    base = manifest.base.names if manifest.base is not None else frozenset()
    owners = {name: name for name in (*base, *(spec.name for spec in manifest.tensors))}
    owners |= dict(manifest.aliases)
    found: set[str] = set()
    for pattern in patterns:
        if pattern == BATCH_NORM:
            matched = _batch_norm_names(model)
        else:
            matched = [name for name in owners if fnmatchcase(name, pattern)]
        hits = {owners[name] for name in matched if name in owners}
        if not hits:
            raise ConfigError(
                "model.private",
                _nothing(pattern, sorted(owners)),
                public=f"{pattern} matches no tensor of the model",
            )
        # What is not trained is the same everywhere.
        found |= hits - base
    parameters = [spec.name for spec in manifest.tensors if spec.kind == "parameter"]
    parameters = [name for name in parameters if name not in manifest.frozen]
    if found and found.issuperset(parameters):
        raise ConfigError(
            "model.private",
            f"{', '.join(patterns)} matches every parameter that is trained, so there is nothing to train together; "
            f"leave some out of: {_listed(parameters)}",
            public=f"{', '.join(patterns)} matches every parameter that is trained, so there is nothing to train together; leave some out",
        )
    return tuple(sorted(found))


def check_private(model: nn.Module, manifest: Manifest, patterns: Sequence[str]) -> None:
    """
    Refuse a run that shares other tensors than this client's config lets it share.

    Raises:
        ModelMismatch: The run's record and the config disagree; names a tensor.
    """
    differing = set(private_names(model, manifest, patterns)) ^ set(manifest.private)
    if differing:
        raise ModelMismatch(
            f"tensor {min(differing)} is private by model.private or by the run's manifest, and not "
            "by both; use the same task code and options",
            public=True,
        )


def _batch_norm_names(model: nn.Module) -> list[str]:
    return [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, BATCH_NORM_LAYERS)
        for name in module.state_dict()
    ]


def _nothing(pattern: str, names: Sequence[str]) -> str:
    if pattern == BATCH_NORM:
        return f"{pattern} matches nothing: the model has no BatchNorm layer; remove it"
    parents = {f"{name.rpartition('.')[0]}.*" for name in names if "." in name}
    near = nearest(pattern, [*names, *sorted(parents)])
    return f"{pattern!r} matches no tensor{near}; the model has: {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


# What a client does beside its update


@dataclass(frozen=True)
class Personalization:
    """
    A client's part that stays with it, in one round.

    Args:
        task, context: As for the update.
        manifest: The run's model.
        base: Arrays of the round's version.
        data: The client's.
        strategy: The run's.
        kept: What the client has kept.
        fetch_base_part: Brings the run's base part, where the task's build has another one.
    """

    task: Task
    context: ClientContext
    manifest: Manifest
    base: Mapping[str, NDArray[Any]]
    data: ClientData
    strategy: Strategy
    kept: State
    fetch_base_part: Fetch | None = None

    def make_own(self, model: nn.Module) -> Sums:
        """
        Give a model that has the version's tensors the client's private ones.

        Those of version 0, which each version has, where the client has kept none yet.

        Returns:
            Its validation, as the personal one; empty where nothing is private.
        """
        if not self.manifest.private:
            return {}
        load_some(model, self.kept.get(PRIVATE, {}))
        return self._validate("personal", model)

    def personal_model(self) -> nn.Module | None:
        """The personal model as the client has kept it, else the version; None without such."""
        if not self.strategy.personal:
            return None
        model = self._build(self.base)
        load_some(model, self.kept.get(PERSONAL, {}))
        return model

    def validate_personal(self, model: nn.Module | None) -> Sums:
        """The personal model's validation; empty without such."""
        return {} if model is None else self._validate("personal", model)

    def train_personal(self, model: nn.Module | None) -> Arrays:
        """``v <- v - eta (grad F(v) + lambda (v - w))`` in place; returns views of ``v``."""
        if model is None:
            return {}
        state = state_of(model)
        anchors = {
            parameter: torch.tensor(np.array(self.base[spec.name])).to(parameter)
            for spec in self.manifest.tensors
            if isinstance(parameter := state[spec.name], nn.Parameter) and parameter.requires_grad
        }
        rule = LocalRule(self.strategy.proximal_strength(), anchors)
        self._train(model, self.context.epochs, rule)
        if not rule.steps:
            raise unseen_steps()
        model.zero_grad()  # Gradients are as large as the model.
        return views_of(model, self.manifest)

    def finetune(self, model: nn.Module | None = None) -> Sums:
        """
        Validation of the version after ``train.finetune_epochs`` on the client's training data.

        Args:
            model: One that may be overwritten, with the version and the private tensors; built
                unless it is given.
        """
        epochs = self.task.config.train.finetune_epochs
        if not epochs or not size_of(self.data.train):
            return {}
        if model is None:
            model = self._build(self.base)
            load_some(model, self.kept.get(PRIVATE, {}))
        self._train(model, epochs, None)
        return self._validate("finetuned", model)

    def _train(self, model: nn.Module, epochs: int, rule: LocalRule | None) -> None:
        context = replace(self.context, epochs=epochs, rule=rule)
        calls.trained(self.task, model, self.data, context, lambda epoch, epochs, found: None)

    def _validate(self, part: str, model: nn.Module) -> Sums:
        sums = calls.evaluated(self.task, model, self.data.validation, self.context)
        return metrics.beside(part, sums)

    def _build(self, arrays: Mapping[str, NDArray[Any]]) -> nn.Module:
        return built(self.task, self.manifest, arrays, self.context.device, self.fetch_base_part)
