"""
Models that are named arrays, and tasks that train them by any code: numpy, scikit-learn.

The arrays travel as every model's tensors do. Imports torch; no Redis here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from fl_queue.errors import ConfigError, ModelMismatch
from fl_queue.metrics import finish
from fl_queue.protocol.records import Sums
from fl_queue.tasks.base import ClientData, OnEpoch, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.error_disclosure import class_name
from fl_queue.training.model_tensors import load_some, state_of
from fl_queue.training.sgd import Samples, size_of

Named = Mapping[str, NDArray[Any]]


class ArrayModel(nn.Module):
    """
    Arrays as a model: a tensor for each array, of its dtype.

    Args:
        name: Origin of the arrays, for messages.
        arrays: By name, or a list whose names are its numbers. Floats become parameters, integers and
            booleans integer buffers.

    Raises:
        ModelMismatch: No array, one whose dtype cannot be sent, or a name that no tensor can have;
            names it.
    """

    def __init__(self, name: str, arrays: Named | Sequence[NDArray[Any]]) -> None:
        super().__init__()
        if not arrays:
            raise ModelMismatch(f"{name} gives no arrays; a model has at least one", public=True)
        #: Whether the arrays are a list.
        self.is_list = not isinstance(arrays, Mapping)
        named = (
            arrays
            if isinstance(arrays, Mapping)
            else {str(index): array for index, array in enumerate(arrays)}
        )
        for key, array in named.items():
            if not isinstance(key, str) or not key or "." in key or hasattr(self, key):
                raise ModelMismatch(
                    f"{name}: an array is called {key!r}, which no tensor can be; use letters, digits and _, "
                    "and no attribute of torch's modules",
                    public=f"{name} has an array with a name that no tensor can have",
                )
            tensor = _tensor(f"{name}: array {key}", array)
            if tensor.is_floating_point():
                self.register_parameter(key, nn.Parameter(tensor))
            else:
                self.register_buffer(key, tensor)


class Rows(Dataset[Any]):
    """
    Arrays with one row for each sample, as a data set: sample ``i`` is row ``i`` of each.

    Args:
        *arrays: Of equal length N, such as features (N, ...) and targets (N,).

    Raises:
        ConfigError: No array, or arrays of different lengths.
    """

    def __init__(self, *arrays: Any) -> None:
        self.arrays = tuple(np.asarray(array) for array in arrays)
        lengths = {len(array) if array.ndim else -1 for array in self.arrays}
        if len(lengths) != 1 or -1 in lengths:
            raise ConfigError(
                "run.task", "Rows takes arrays with one row for each sample", public=True
            )

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(array[index] for array in self.arrays)


def rows_of(dataset: Samples) -> tuple[NDArray[Any], ...]:
    """
    The arrays of a data set, one row for each of its samples.

    Args:
        dataset: ``Rows``, a ``TensorDataset``, and parts (``Subset``) or sums (``ConcatDataset``) of them.

    Raises:
        ConfigError: Another kind of data set.
    """
    if isinstance(dataset, Rows):
        return dataset.arrays
    if type(dataset) is TensorDataset:
        return tuple(_numpy(tensor) for tensor in dataset.tensors)
    if type(dataset) is Subset:
        chosen = np.asarray(dataset.indices, np.int64)
        return tuple(array[chosen] for array in rows_of(dataset.dataset))
    if type(dataset) is ConcatDataset:
        parts = [rows_of(part) for part in dataset.datasets]
        return tuple(np.concatenate(found) for found in zip(*parts, strict=True))
    what = f"its data are a {class_name(type(dataset))}"
    raise ConfigError("run.task", f"{what}; give fl_queue.tasks.Rows(x, y)", public=True)


class ArrayTask(Task):
    """
    Task whose model is named numpy arrays, and whose training is any code.

    ``initial_arrays``, ``client_data``, ``fit`` and ``score`` are needed. The data sets are ``Rows``,
    whose arrays ``fit`` and ``score`` are given::

        class Digits(ArrayTask):
            def initial_arrays(self):
                return {"coef": np.zeros((10, 64)), "intercept": np.zeros(10)}

            def client_data(self, context):
                x, y = load_digits(return_X_y=True)
                train, validation = self.split(y, context)
                return ClientData(Rows(x[train], y[train]), Rows(x[validation], y[validation]))

            def fit(self, arrays, rows, context):
                model = restored(arrays)            # warm start
                model.fit(*rows)
                return {"coef": model.coef_, "intercept": model.intercept_}

            def score(self, arrays, rows, context):
                hits = restored(arrays).predict(rows[0]) == rows[1]
                return {"num_examples": len(hits), "accuracy_sum": hits.sum()}

    A version is the mean of its clients' arrays, weighted as ``aggregation.weighting`` has it; integer
    arrays are merged by their maximum. Strategies that correct the gradient of each step are refused.
    """

    takes_corrections: ClassVar[bool] = False

    @abstractmethod
    def initial_arrays(self) -> Named:
        """Return the arrays of version 0; their names, shapes and dtypes must be the same on every machine."""

    @abstractmethod
    def fit(
        self,
        arrays: dict[str, NDArray[Any]],
        rows: tuple[NDArray[Any], ...],
        context: ClientContext,
    ) -> Named:
        """
        Train from a version.

        Draw from numpy's global generator, which is seeded, or by ``context.seed_for``.

        Args:
            arrays: The version's, in their dtypes; they may be changed.
            rows: The training data's arrays.
            context: Epochs and learning rate are those of the round.

        Returns:
            Arrays of the same names, shapes and kinds.
        """

    @abstractmethod
    def score(
        self,
        arrays: dict[str, NDArray[Any]],
        rows: tuple[NDArray[Any], ...],
        context: ClientContext,
    ) -> Sums:
        """Return metrics of arrays on rows as sums, such as ``loss_sum``, with ``num_examples``."""

    def build_model(self) -> nn.Module:
        """Build the model of ``initial_arrays``."""
        made = self.initial_arrays()
        if not isinstance(made, Mapping):
            name = self.config.run.task
            raise ConfigError(
                "run.task",
                f"initial_arrays() of {name} returned a {class_name(type(made))}, not a table of arrays",
                public=True,
            )
        return ArrayModel(self.config.run.task, made)

    def train(
        self, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
    ) -> Sums:
        """
        Train by ``fit``, and copy what it returns into ``model``.

        Raises:
            ModelMismatch: It does not fit the model; names the array.
        """
        given = arrays_of(model)
        shapes = {name: (array.shape, array.dtype) for name, array in given.items()}
        made = self.fit(given, rows_of(data.train), context)
        load_some(model, _fitted(f"fit() of {self.config.run.task}", shapes, made))
        on_epoch(
            context.epochs, context.epochs, finish(self.evaluate(model, data.validation, context))
        )
        return {"num_examples": size_of(data.train)}

    def evaluate(self, model: nn.Module, dataset: Samples, context: ClientContext) -> Sums:
        """Return metrics by ``score``; of no samples none."""
        if not size_of(dataset):
            return {"num_examples": 0}
        return self.score(arrays_of(model), rows_of(dataset), context)


def arrays_of(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Copy a model's tensors, by name; a list of arrays in its order."""
    state = state_of(model)
    names = list(state)
    # torch has parameters before buffers; the order of a list is by number.
    if isinstance(model, ArrayModel) and model.is_list:
        names.sort(key=int)
    return {name: np.array(_numpy(state[name])) for name in names}


def check_array(what: str, before: tuple[tuple[int, ...], np.dtype[Any]], after: Any) -> None:
    """
    Raise ModelMismatch unless an array fits that of the model.

    Args:
        what: Name of the array, to begin a sentence with: "fit() returned as coef".
        before: Shape and dtype of the model's.
    """
    shape, dtype = before
    if after.shape != shape:
        raise ModelMismatch(
            f"{what} one of shape {after.shape}, and was given {shape}", public=True
        )
    if after.dtype.kind not in ("fiub" if dtype.kind == "f" else "iub"):
        raise ModelMismatch(
            f"{what} one of {after.dtype}, and was given {dtype}",
            public=f"{what} one of another kind of numbers than it was given",
        )


def _fitted(
    what: str, wanted: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], made: Any
) -> dict[str, NDArray[Any]]:
    """Arrays that a training returned, checked by name."""
    if not isinstance(made, Mapping):
        found = "None" if made is None else f"a {class_name(type(made))}"
        raise ModelMismatch(f"{what} returned {found}, not a table of arrays", public=True)
    arrays = {}
    for name, before in wanted.items():
        if name not in made:
            raise ModelMismatch(f"{what} returned no array {name}", public=True)
        arrays[name] = np.asarray(made[name])
        check_array(f"{what} returned as {name}", before, arrays[name])
    extra = [name for name in made if name not in wanted]
    if extra:
        raise ModelMismatch(
            f"{what} returned an array {extra[0]!r}, which initial_arrays() does not have",
            public=f"{what} returned an array that initial_arrays() does not have",
        )
    return arrays


def _tensor(what: str, array: Any) -> Tensor:
    """Copy an array. Raises ModelMismatch if its dtype cannot be sent."""
    values = np.asarray(array)
    try:
        # torch requires the native byte order.
        tensor = torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("=")))
    except TypeError as exc:
        raise ModelMismatch(
            f"{what} is of {values.dtype}, and only numbers travel",
            public=f"{what} holds no numbers, and only numbers travel",
        ) from exc
    if tensor.is_complex():
        raise ModelMismatch(
            f"{what} is of {values.dtype}; use floats or integers",
            public=f"{what} holds complex numbers; use floats or integers",
        )
    return tensor


def _numpy(tensor: Tensor) -> NDArray[Any]:
    plain = tensor.detach().cpu()
    # numpy has no bfloat16.
    found: NDArray[Any] = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    return found
