"""
Calls of Flower clients; the only module that imports ``flwr``.

A ``NumPyClient``, a ``Client`` and a ``client_fn`` become a ``ClientApp``, as in Flower. Every app is
called with a message, so mods run, and each call makes a new client. No torch and no Redis here.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# No telemetry to a third party: no site has agreed to it. Read when flwr is imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import numpy as np
from flwr.app import (
    DEFAULT_TTL,
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fl_queue.errors import ConfigError, ModelMismatch

#: A config of Flower: it has values of these types only.
Config = Mapping[str, bool | int | float | str]
Named = Mapping[str, NDArray[Any]]

#: Kind of a message -> prefix of its records in Flower's older API.
_LEGACY = {"train": "fit", "evaluate": "evaluate", "get_parameters": "getparameters"}
#: Flower's status code of a success.
_OK = 0
#: Names of the count in the metrics of a reply, in both spellings.
_COUNTS = ("num-examples", "num_examples")


@dataclass(frozen=True)
class Reply:
    """
    Reply of a client.

    Args:
        arrays: Parameters in the client's order; empty for an evaluation.
        num_examples: Samples that were used; 0: the client has no such method.
        numbers: Metrics that are single numbers.
    """

    arrays: Named
    num_examples: int
    numbers: Mapping[str, float]


class FlowerApp:
    """
    Flower client at an attribute of a module.

    Args:
        name: ``module:attribute``, for messages.
        found: A ``ClientApp``, a subclass or an instance of ``NumPyClient`` or ``Client``, or a
            function ``client_fn(context)``.

    Raises:
        ConfigError: ``found`` is none of these, or an app without training.
    """

    def __init__(self, name: str, found: Any) -> None:
        self.name = name
        self._app = _app_of(name, found)
        #: Whether the app uses Flower's message API.
        self.has_messages = _has_messages(name, self._app)

    def parameters(self, node: Config, run: Config) -> Named:
        """
        Call ``get_parameters``.

        Raises:
            ConfigError: The client has no such method.
        """
        if self.has_messages:
            raise ConfigError("task.flower_model", _MODEL.format(self.name), public=True)
        key = "getparametersins.config"
        reply = self._ask("get_parameters", RecordDict({key: ConfigRecord({})}), node, run)
        if _code(reply, "getparametersres") != _OK:
            raise ConfigError("task.flower_model", _MODEL.format(self.name), public=True)
        return _arrays(self.name, reply["getparametersres.parameters"])

    def train(self, arrays: Named, config: Config, node: Config, run: Config) -> Reply:
        """Call ``fit`` or ``@app.train()`` with these parameters."""
        return self._work("train", arrays, config, node, run)

    def evaluate(self, arrays: Named, config: Config, node: Config, run: Config) -> Reply:
        """Call ``evaluate`` or ``@app.evaluate()`` with these parameters."""
        return self._work("evaluate", arrays, config, node, run)

    def _work(self, kind: str, arrays: Named, config: Config, node: Config, run: Config) -> Reply:
        if self.has_messages:
            named = ArrayRecord({name: Array(array) for name, array in arrays.items()})
            content = RecordDict({"arrays": named, "config": ConfigRecord(dict(config))})
            return self._reply(kind, self._ask(kind, content, node, run))
        part = _LEGACY[kind]
        numbered = ArrayRecord([np.asarray(array) for array in arrays.values()])
        content = RecordDict({
            f"{part}ins.parameters": numbered,
            f"{part}ins.config": ConfigRecord(dict(config)),
        })  # fmt: skip
        return self._legacy_reply(kind, self._ask(kind, content, node, run))

    def _ask(self, kind: str, content: RecordDict, node: Config, run: Config) -> RecordDict:
        context = Context(
            run_id=1,
            node_id=int(node["partition-id"]) + 1,
            node_config=dict(node),
            state=RecordDict(),
            run_config=dict(run),
        )
        answer = self._app(Message(content=content, metadata=_metadata(kind, context)), context)
        if len(context.state):
            raise ConfigError(
                "run.task",
                f"{self.name} keeps {', '.join(context.state)} in context.state, and nothing is kept "
                "from one round to the next here; keep it in the model, or leave it out",
                public=f"{self.name} keeps something in context.state, and nothing is kept from one round to the next here; keep it in the model, or leave it out",
            )
        if answer.has_error():
            raise ConfigError(
                "run.task",
                f"{self.name} answered {answer.error.reason}",
                public=f"{self.name} answered with an error",
            )
        found: RecordDict = answer.content
        return found

    def _legacy_reply(self, kind: str, content: RecordDict) -> Reply:
        part = f"{_LEGACY[kind]}res"
        if _code(content, part) != _OK:
            if kind == "train":
                raise ConfigError(
                    "run.task", f"{self.name} has no fit, so it trains nothing", public=True
                )
            return Reply({}, 0, {})
        count = _count(self.name, content[f"{part}.num_examples"]["num_examples"])
        numbers = _numbers(content[f"{part}.metrics"])
        if kind == "train":
            return Reply(_arrays(self.name, content[f"{part}.parameters"]), count, numbers)
        return Reply({}, count, numbers | {"loss": float(content[f"{part}.loss"]["loss"])})

    def _reply(self, kind: str, content: RecordDict) -> Reply:
        metrics = [record for record in content.values() if isinstance(record, MetricRecord)]
        found = {key: value for record in metrics for key, value in record.items()}
        counts = [found.pop(key) for key in _COUNTS if key in found]
        if not counts:
            raise ConfigError(
                "run.task",
                f"{self.name} does not have the number of examples in the metrics of its {kind} reply"
                "; add num-examples to its MetricRecord",
                public=True,
            )
        count, numbers = _count(self.name, counts[0]), _numbers(found)
        if kind == "evaluate":
            return Reply({}, count, numbers)
        arrays = [record for record in content.values() if isinstance(record, ArrayRecord)]
        if len(arrays) != 1:
            raise ModelMismatch(
                f"{self.name} answers with {len(arrays)} ArrayRecords; answer with one, the model",
                public=True,
            )
        return Reply(_arrays(self.name, arrays[0]), count, numbers)


_MODEL = (
    "{} has no get_parameters, so it cannot make version 0; name a function or class that returns its "
    "model, a torch.nn.Module or a list of arrays, as module:name"
)


def _app_of(name: str, found: Any) -> ClientApp:
    if isinstance(found, ClientApp):
        return found
    if isinstance(found, Client | NumPyClient):
        return ClientApp(client_fn=lambda context: found.to_client())
    if isinstance(found, type) and issubclass(found, Client | NumPyClient):
        _check_made_without_arguments(name, found)
        return ClientApp(client_fn=lambda context: found().to_client())
    if inspect.isfunction(found):
        if len(inspect.signature(found).parameters) != 1:
            raise ConfigError(
                "run.task", f"{name} is no client_fn: it must take one context", public=True
            )
        return ClientApp(client_fn=found)
    raise ConfigError(
        "run.task",
        f"{name} is a {type(found).__name__}; name a ClientApp, a NumPyClient or Client (a class that "
        "takes no arguments, or an instance), or a function client_fn(context)",
        public=f"{name} is no client; name a ClientApp, a NumPyClient or Client, or a function client_fn(context)",
    )


def _check_made_without_arguments(name: str, kind: Any) -> None:
    try:
        inspect.signature(kind).bind()
    except TypeError as exc:
        raise ConfigError(
            "run.task",
            f"{name} cannot be made without arguments ({exc}); name a function client_fn(context) that "
            "makes it",
            public=f"{name} cannot be made without arguments; name a function client_fn(context) that makes it",
        ) from exc
    if inspect.isabstract(kind):
        missing = ", ".join(sorted(kind.__abstractmethods__))
        raise ConfigError(
            "run.task",
            f"{name} does not define {missing}",
            public=f"{name} does not define all of its methods",
        )


def _has_messages(name: str, app: ClientApp) -> bool:
    """Whether an app has functions for messages and no ``client_fn``. Missing functions are added."""
    try:
        register = app.train()
    except ValueError:  # The app has a client_fn.
        return False
    try:
        register(_no_training)
    except ValueError:  # The app has a training function.
        pass
    else:
        raise ConfigError(
            "run.task", f"{name} has neither a client_fn nor @app.train()", public=True
        )
    with contextlib.suppress(ValueError):
        app.evaluate()(_no_evaluation)
    return True


def _no_training(message: Message, context: Context) -> Message:
    raise ConfigError(
        "run.task", "the ClientApp has neither a client_fn nor @app.train()", public=True
    )


def _no_evaluation(message: Message, context: Context) -> Message:
    none = MetricRecord({"num-examples": 0})
    return Message(RecordDict({"metrics": none}), reply_to=message)


def _metadata(kind: str, context: Context) -> Metadata:
    # Complete, as flwr would read missing values from a process of its own.
    return Metadata(
        run_id=context.run_id,
        message_id="",
        src_node_id=0,
        dst_node_id=context.node_id,
        reply_to_message_id="",
        group_id="",
        # The time to live is required, and not used here.
        created_at=time.time(),
        ttl=DEFAULT_TTL,
        message_type=kind,
    )


def _code(content: RecordDict, part: str) -> int:
    return int(content[f"{part}.status"]["code"])


def _arrays(name: str, record: ArrayRecord) -> Named:
    """Read the arrays of a record, in its order."""
    try:
        # An empty list is one array without data.
        return {key: np.asarray(array.numpy()) for key, array in record.items() if array.data}
    except (TypeError, ValueError) as exc:
        raise ModelMismatch(
            f"{name} gave no arrays of numbers: {exc}", public=f"{name} gave no arrays of numbers"
        ) from exc


def _count(name: str, value: Any) -> int:
    # int() raises for nan and infinity, so the remainder is checked first.
    if not isinstance(value, int | float) or value < 0 or value % 1 != 0:
        raise ConfigError(
            "run.task",
            f"{name} reports {value!r} examples; give a whole number",
            public=f"{name} gives no whole number of examples",
        )
    return int(value)


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Select single numbers; texts, bytes and lists have no mean over clients."""
    return {key: float(value) for key, value in record.items() if isinstance(value, int | float)}
