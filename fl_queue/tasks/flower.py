"""
A Flower client as a task (``run.task = "flower:module:attribute"``); see docs/guides/flower.md.

The client has its own training and evaluation. Its parameters are the model's tensors: those of the
torch model that ``task.flower_model`` names, else numbered arrays. Needs the extra ``flower``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset

from fl_queue.config.run_config import RunConfig
from fl_queue.config.task_catalog import FLOWER_MODEL
from fl_queue.errors import ConfigError, DataError, ModelMismatch
from fl_queue.metrics import MAX_SUM, finish
from fl_queue.protocol import identifiers
from fl_queue.protocol.records import Sums
from fl_queue.tasks import calls
from fl_queue.tasks.arrays import ArrayModel, arrays_of, check_array
from fl_queue.tasks.base import ClientData, OnEpoch, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.flower_adapter import Config, FlowerApp, Named, Reply
from fl_queue.training.model_tensors import load_some
from fl_queue.training.sgd import Samples

#: Reason of a refusal, after the client's name.
_READS_ITS_DATA = "is a Flower client, which reads its data itself"


class FlowerTask(Task):
    """
    Task that is a Flower client.

    Args:
        config: The run's config; ``[task]`` goes to the client.
        module: Module of the client's code.
        app: The client.
        model: Factory of ``task.flower_model``; None: the client's ``get_parameters`` makes the model.

    Raises:
        ConfigError: ``[task]`` has a value that no Flower config can hold, or the app needs a model.
    """

    # A client keeps what it likes, in its context and its module.
    keep = False

    def __init__(
        self, config: RunConfig, module: ModuleType, app: FlowerApp, model: Callable[[], Any] | None
    ) -> None:
        super().__init__(config)
        self._module, self._app, self._make = module, app, model
        self._options = _flat("task", config.task)
        self._options.pop(FLOWER_MODEL, None)
        self._context = _initial_context(config)

    @property
    def code(self) -> Callable[..., Any] | ModuleType:
        """The client's module."""
        return self._module

    def build_model(self) -> nn.Module:
        """Build the model of ``task.flower_model``, else one of the arrays of ``get_parameters``."""
        if self._make is None:
            node, run = _node(self._context), self._run(self._context)
            return ArrayModel(self._app.name, list(self._app.parameters(node, run).values()))
        name = self.options[FLOWER_MODEL]
        made = self._make()
        if isinstance(made, nn.Module):
            return made
        if isinstance(made, list | tuple):
            return ArrayModel(name, [np.asarray(array) for array in made])
        raise ConfigError(
            f"task.{FLOWER_MODEL}",
            f"{name} returned a {type(made).__name__}; return a torch.nn.Module or a list of arrays",
            public=f"{name} returned something else than a torch.nn.Module or a list of arrays",
        )

    def client_data(self, context: ClientContext) -> ClientData:
        """
        Return placeholders: the client reads its data itself, and reports their number after training.

        Raises:
            ConfigError: The site limits the number of examples.
        """
        if context.max_examples:
            raise ConfigError(
                "--max-examples", f"{self._app.name} {_READS_ITS_DATA}; leave it out", public=True
            )
        self._context = context
        return ClientData(_Hidden("train"), _Hidden("validation"))

    def train(
        self, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
    ) -> Sums:
        """
        Train by the client, and copy the returned arrays into ``model``.

        Raises:
            ConfigError: ``data`` are not one client's, or fewer than the site's minimum.
            DataError: The client trained on no examples.
            ModelMismatch: The returned arrays do not fit the model.
        """
        own = data.train
        if not isinstance(own, _Hidden):
            raise ConfigError(
                "run.task",
                f"{self._app.name} {_READS_ITS_DATA}, and not those of others",
                public=True,
            )
        given = arrays_of(model)
        config, node, run = self._config(context), _node(context), self._run(context)
        reply = self._app.train(given, config, node, run)
        if reply.num_examples == 0:
            raise DataError(
                context.data_dir or "training data",
                f"{self._app.name} trained on no examples; look at its data, and at num_examples",
                public=True,
            )
        if reply.num_examples < max(context.min_examples, context.min_training):
            raise calls.too_few(context)
        load_some(model, _returned(self._app.name, model, given, reply.arrays))
        own.count = reply.num_examples
        after = finish(self.evaluate(model, data.validation, context))
        on_epoch(context.epochs, context.epochs, after)
        return _sums(reply)

    def evaluate(self, model: nn.Module, dataset: Samples, context: ClientContext) -> Sums:
        """
        Evaluate by the client, on its own validation data; without examples if it has none.

        Raises:
            ConfigError: ``dataset`` is not the client's validation data.
        """
        if not isinstance(dataset, _Hidden) or dataset.part != "validation":
            raise ConfigError(
                "aggregation.strategy",
                f"it wants the loss on other data than validation, and {self._app.name} {_READS_ITS_DATA}; "
                "use another one",
                public=True,
            )
        config, node, run = self._config(context), _node(context), self._run(context)
        reply = self._app.evaluate(arrays_of(model), config, node, run)
        return _sums(reply) if reply.num_examples >= context.min_examples else {"num_examples": 0}

    def _config(self, context: ClientContext) -> dict[str, bool | int | float | str]:
        """Config of ``fit`` and ``evaluate``, or the ConfigRecord of a message."""
        return {
            "server_round": context.round,
            "server-round": context.round,
            "lr": context.learning_rate,
            **_settings(context),
            **self._options,
        }

    def _run(self, context: ClientContext) -> Config:
        return {
            "num-server-rounds": self.config.run.rounds,
            **_settings(context),
            **self._options,
        }


class _Hidden(Dataset[Any]):
    """
    Placeholder of samples that only the client can read.

    Args:
        part: ``train`` or ``validation``.
    """

    #: ``count`` is unknown before the training.
    counts_itself = True

    def __init__(self, part: str) -> None:
        self.part = part
        #: Reported by the training; 1 before it.
        self.count = 1

    def __len__(self) -> int:
        return self.count


def _settings(context: ClientContext) -> dict[str, bool | int | float | str]:
    """The ``[train]`` section in the two spellings that Flower apps use."""
    values: dict[str, bool | int | float | str] = {
        "local_epochs": context.epochs,
        "batch_size": context.batch_size,
        "learning_rate": context.learning_rate,
    }
    return values | {key.replace("_", "-"): value for key, value in values.items()}


def _node(context: ClientContext) -> Config:
    node = {"partition-id": context.share, "num-partitions": context.shares}
    return node | ({"data-dir": context.data_dir} if context.data_dir else {})


def _initial_context(config: RunConfig) -> ClientContext:
    """Context in which version 0 is made: no client, share 0 of the expected number."""
    cohort = config.round.cohort
    # A fraction is of living clients, whose number is unknown here.
    shares = config.data.shares or config.clients.count or cohort
    return ClientContext.of(
        config,
        client="nobody",  # codespell:ignore nobody
        run="",
        round_number=1,
        data_dir=config.data.dir,
        shares=shares if isinstance(shares, int) else 1,
    )


def _flat(field: str, table: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Flatten a table as Flower does: ``{a = {b = 1}}`` becomes ``{"a.b": 1}``."""
    found: dict[str, bool | int | float | str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{k}": v for k, v in _flat(f"{field}.{key}", value).items()}
        elif isinstance(value, bool | int | float | str):
            found[key] = value
        else:
            raise ConfigError(
                f"{field}.{key}",
                "is a list; a Flower config holds numbers, texts, true and false",
                public=True,
            )
    return found


def _returned(name: str, model: nn.Module, given: Named, arrays: Named) -> Named:
    """
    Name the arrays that a client returned by the model's tensors.

    Raises:
        ModelMismatch: Number, shape or kind differs from the model's; names the first array.
    """
    if len(arrays) != len(given):
        raise ModelMismatch(
            f"{name} returned {len(arrays)} arrays and was given {len(given)}", public=True
        )
    # A list is named by numbers.
    by_name = (
        arrays if arrays.keys() == given.keys() else dict(zip(given, arrays.values(), strict=True))
    )
    for index, (tensor, before) in enumerate(given.items()):
        what = f"{name} returned as array {index}" + (
            "" if isinstance(model, ArrayModel) else f" ({tensor})"
        )
        check_array(what, (before.shape, before.dtype), by_name[tensor])
    return by_name


def _sums(reply: Reply) -> Sums:
    """Convert the means of a reply to sums over its examples."""
    count = reply.num_examples
    # Flower allows any metric name: "val/acc" becomes val_acc.
    sums = {f"{_named(name)}_sum": value * count for name, value in reply.numbers.items()}
    return {"num_examples": count} | {
        key: value for key, value in sums.items() if math.isfinite(value) and abs(value) <= MAX_SUM
    }


def _named(name: str) -> str:
    """Convert a metric's name to a valid one, see ``identifiers.is_metric``."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:64]
    return plain if identifiers.is_metric(plain) else f"m_{plain}"[:64]
