"""
A task without a class: a function that returns a model and its data sets.

For a plain ``torch.nn.Module`` and two data sets; everything else is the defaults of
``Task``. docs/guides/your-own-task.md teaches it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from fl_queue.common.options import unknown_key
from fl_queue.common.spelling import nearest
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.metrics import Metric
from fl_queue.tasks.base import ClientData, Task, with_context
from fl_queue.tasks.context import ClientContext
from fl_queue.training.batches import BatchHooks, Forward, Items, Loss, OwnSums, target_of
from fl_queue.training.collation import Collate
from fl_queue.training.sgd import Samples, size_of

#: The argument that is this machine's data folder; all others are options of ``[task]``.
_FOLDER = "data_dir"
#: Partitions for which it matters of which class a sample is.
_BY_CLASS = ("shards", "label_count", "dirichlet_label", "dirichlet_hsu")


@dataclass(frozen=True)
class Parts:
    """
    Possible results of the function: ``(model, train)``, ``(model, train, test)``, or a mapping of these names.

    All but ``model`` and ``loss`` may be functions without arguments, which are called when the
    thing is needed: the evaluator needs no training data, and a client no test data.

    Args:
        model: With fresh weights, made anew by each call.
        train: Pairs (input, target) of all that is on this machine; ``[data]`` decides which of them
            are a client's, and which it holds out.
        test: The central test set, for the evaluator; None: there is none.
        loss: Mean loss of a batch of outputs and targets, and of the ``context`` if it has such an
            argument; None: the model's own, or cross entropy. Its second argument is the whole batch if
            it is called ``batch``.
        labels: (N,) classes of ``train``; None: read from it where they matter.
        owners: (N,) whose each sample of ``train`` is, for ``data.partition = "natural"``, and so that
            validation is of others than those who are trained with.
        evaluation: The samples of ``train`` in the same order, as they are validated: without the
            random changes that training makes of them; None: as in ``train``.
        collate: Makes a batch of a list of samples; None: as torch's ``DataLoader`` does.
        forward, items, own_sums: As the methods of ``Task``; None: its defaults.
        metrics: As ``Task.metrics`` returns it, a list.
    """

    model: nn.Module
    train: Any
    test: Any = None
    loss: Loss | None = None
    labels: Any = None
    owners: Any = None
    evaluation: Any = None
    collate: Collate | None = None
    forward: Forward | None = None
    items: Items | None = None
    own_sums: OwnSums | None = None
    metrics: Sequence[Metric | str] = ()


class FunctionTask(Task):
    """
    The task that a function is.

    Args:
        config: The run's config; ``[task]`` are the function's keyword arguments.
        name: ``module:function``.
        function: Called with ``[task]``, and with ``data_dir`` if it has an argument of that name.

    Raises:
        ConfigError: ``[task]`` is not what the function takes.
    """

    unmarked = ("_kept", "_loss", "_hooks", "_metrics")

    def __init__(self, config: RunConfig, name: str, function: Callable[..., Any]) -> None:
        super().__init__(config)
        self.name, self._function = name, function
        self._arguments = _arguments(name, function, config)
        self._kept: tuple[Tensor, nn.Module] | None = None
        self._loss: Loss | None = None
        self._hooks = BatchHooks()
        self._metrics: Sequence[Metric | str] = ()

    @property
    def code(self) -> Callable[..., Any]:
        """The function."""
        return self._function

    def build_model(self) -> nn.Module:
        """The function's model, its weights drawn from torch's generator as it is now."""
        kept, self._kept = self._kept, None
        # That of the call which read the data, so that they are not read twice: it began with the same seed.
        if kept is not None and torch.equal(kept[0], torch.get_rng_state()):
            return kept[1]
        return self._parts().model

    def client_data(self, context: ClientContext) -> ClientData:
        """The client's part of the function's training data."""
        begun = torch.get_rng_state()
        parts = self._parts()
        self._kept = (begun, parts.model)
        dataset = self._dataset("train", parts.train)
        owners = None if parts.owners is None else np.asarray(_asked(parts.owners))
        train, validation = self.split(self._labels(parts, dataset), context, owners)
        held_out = self._evaluated(parts, dataset)
        return ClientData(Subset(dataset, train.tolist()), Subset(held_out, validation.tolist()))

    def test_data(self, data_dir: str) -> Samples | None:
        """The function's test data, if it has any."""
        test = self._parts().test
        return None if test is None else self._dataset("test", test)

    @property
    def hooks(self) -> BatchHooks:
        """The function's own functions for batches."""
        return replace(self._hooks, items=self._hooks.items or super().hooks.items)

    def metrics(self) -> Sequence[Metric | str]:
        """The function's metrics."""
        return self._metrics

    def loss(self, output: Any, target: Any) -> Tensor:
        """The function's loss, or cross entropy."""
        return self._loss(output, target) if self._loss else super().loss(output, target)

    def loss_in(self, context: ClientContext) -> Loss:
        """The function's loss, with the context if it has an argument of that name."""
        return with_context(self._loss or self.loss, context)

    def _parts(self) -> Parts:
        parts = _parts(self.name, self._function(**self._arguments))
        self._loss = parts.loss
        self._hooks = BatchHooks(parts.collate, parts.forward, parts.items, parts.own_sums)
        self._metrics = parts.metrics
        return parts

    def _dataset(self, part: str, found: Any) -> Samples:
        dataset: Samples = _asked(found)
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise ConfigError(
                "run.task",
                f"{self.name} gives a {type(dataset).__name__} as {part}; give a data set with a "
                "length and numbered samples, not a loader or a stream",
                public=f"{self.name} gives no data set as {part}; give one with a length and numbered samples, not a loader or a stream",
            )
        return dataset

    def _evaluated(self, parts: Parts, dataset: Samples) -> Samples:
        """The training samples as they are validated."""
        if parts.evaluation is None:
            return dataset
        found = self._dataset("evaluation", parts.evaluation)
        if size_of(found) != size_of(dataset):
            raise ConfigError(
                "run.task",
                f"{self.name} gives {size_of(found)} samples as evaluation and {size_of(dataset)} as train; "
                "give the same samples in the same order",
                public="its evaluation has other samples than its train; give the same in the same order",
            )
        return found

    def _labels(self, parts: Parts, dataset: Samples) -> NDArray[np.int64]:
        """(N,) classes of the samples; zeros where nothing asks for them and they are not at hand."""
        found, count = self._found_labels(parts, dataset), size_of(dataset)
        if found is not None and found.shape == (count,) and found.dtype.kind in "iub":
            return found.astype(np.int64)
        if parts.labels is None and not self._by_class():
            return np.zeros(count, np.int64)
        rest = f", or set {' and '.join(self._by_class())}" if parts.labels is None else ""
        raise ConfigError(
            "data.partition" if parts.labels is None else "run.task",
            f"{self.name} gives no class, a whole number, for each training sample; return `labels` (N,){rest}",
            public=True,
        )

    def _found_labels(self, parts: Parts, dataset: Samples) -> NDArray[Any] | None:
        if parts.labels is not None:
            return np.asarray(_asked(parts.labels))
        targets = _targets(dataset)
        if targets is None and self._by_class():
            return np.asarray([int(target_of(dataset[index])) for index in range(size_of(dataset))])
        return targets

    def _by_class(self) -> list[str]:
        """What to set so that no sample is drawn by its class; empty: it is so."""
        data = self.config.data
        found = ["data.partition to iid or site"] if data.partition in _BY_CLASS else []
        drawn = (
            name for name in ("train_per_class", "validation_per_class") if getattr(data, name)
        )
        return [*found, *(f"data.{name} to []" for name in drawn)]


def _arguments(name: str, function: Callable[..., Any], config: RunConfig) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    if _FOLDER in config.task:
        raise ConfigError(
            f"task.{_FOLDER}",
            "is no option; the folder is data.dir, or the worker's --data",
            public=True,
        )
    taken = {
        key for key, one in parameters.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    }  # fmt: skip
    is_open = any(one.kind == one.VAR_KEYWORD for one in parameters.values())
    for key in config.task:
        if key not in taken and not is_open:
            raise unknown_key(f"task.{key}", [f"task.{each}" for each in taken - {_FOLDER}])
    arguments = dict(config.task)
    if _FOLDER in taken:
        arguments[_FOLDER] = config.data.dir
    for key in taken - arguments.keys():
        if parameters[key].default is inspect.Parameter.empty:
            raise ConfigError(
                f"task.{key}", f"is missing; {name} has no default for it", public=True
            )
    return arguments


def _parts(name: str, made: Any) -> Parts:
    """
    Result of a function, by name.

    Raises:
        ConfigError: It is nothing of what is documented.
    """
    known = [field.name for field in fields(Parts)]
    if isinstance(made, tuple) and len(made) in (2, 3):
        made = dict(zip(known, made, strict=False))
    if not isinstance(made, Mapping) or not {"model", "train"} <= made.keys():
        raise ConfigError(
            "run.task",
            f"{name} returned a {type(made).__name__}; return (model, train), (model, train, test) "
            f"or a mapping with model and train, and maybe {', '.join(known[2:])}",
            public=f"{name} returned something else than (model, train), (model, train, test) or a mapping with model and train",
        )
    for key in made:
        if key not in known:
            raise ConfigError(
                "run.task",
                f"{name} returned {key!r}, which is none of {', '.join(known)}{nearest(str(key), known)}",
                public=f"{name} returned something else than {', '.join(known)}",
            )
    if not isinstance(made["model"], nn.Module):
        raise ConfigError(
            "run.task",
            f"{name} gives a {type(made['model']).__name__} as model, not a nn.Module",
            public=f"{name} gives something else than a nn.Module as model",
        )
    return Parts(**made)


def _asked(part: Any) -> Any:
    """A thing, or what the function that stands for it returns."""
    return part() if callable(part) and not hasattr(part, "__len__") else part


def _targets(dataset: Samples) -> NDArray[Any] | None:
    """(N,) targets of a data set that has them at hand."""
    if type(dataset) is Subset:
        whole = _targets(dataset.dataset)
        return None if whole is None else whole[np.asarray(dataset.indices, np.int64)]
    if type(dataset) is TensorDataset:
        return dataset.tensors[-1].cpu().numpy()
    # Those of torchvision.
    targets = getattr(dataset, "targets", None)
    return None if targets is None else np.asarray(targets)
