"""
Batches of any form: how they are fetched, moved, given to a model, and split into inputs and target.

==================================================  ====================================  ==========
batch                                               call                                  target
==================================================  ====================================  ==========
``(x, y)``                                          ``model(x)``; of a mapping            ``y``
                                                    ``model(**x)``, of a tuple or list
                                                    ``model(*x)``, where it takes them so
``(a, b, ..., y)``                                  ``model(a, b, ...)``                  the last
a mapping with ``labels``, ``label``, ``target``    ``model(**keys that it takes)``       that key
anything else                                       ``forward(model, batch)``             none
==================================================  ====================================  ==========

Imports torch. No Redis here.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fl_queue.errors import ConfigError, DataError
from fl_queue.training import stopping
from fl_queue.training.batch_errors import naming_shapes
from fl_queue.training.collation import Collate, as_named
from fl_queue.training.data_loading import LoaderSettings, iterate_batches
from fl_queue.training.sample_sets import Samples

#: Mean loss of a batch, of the model's output and the target; or of the output and the whole batch,
#: if the second argument is called ``batch``.
Loss = Callable[[Any, Any], Tensor]
#: Output of a model for a batch.
Forward = Callable[[nn.Module, Any], Any]
#: Sums of a batch, of the model's output and the target; or of the output and the whole batch, as ``Loss``.
OwnSums = Callable[[Any, Any], Mapping[str, Any]]
#: How many items of a batch its mean loss is a mean over.
Items = Callable[[Any], int]

#: Keys that hold the target of a batch that is a mapping.
TARGETS = ("labels", "label", "target")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchHooks:
    """
    A task's own functions for batches.

    Args:
        collate: Makes a batch of a list of samples; None: torch's ``default_collate``.
        forward: Output of a model for a batch; None: as the table above has it.
        items: Number of items over which a batch's loss is a mean, such as its tokens; None: the samples.
        own_sums: Sums of which the task's own metrics are made; None: it has none.
    """

    collate: Collate | None = None
    forward: Forward | None = None
    items: Items | None = None
    own_sums: OwnSums | None = None


class BatchPass:
    """
    A model's way with batches: its outputs, and their loss.

    Args:
        model: Takes the batches.
        loss: Of outputs and targets, or of outputs and batches.
        forward: As of ``BatchHooks``.
    """

    def __init__(self, model: nn.Module, loss: Loss, forward: Forward | None = None) -> None:
        self._model, self._loss, self._forward = model, loss, forward
        self._takes_batch = takes_batch(loss)

    def output(self, batch: Any) -> Any:
        """
        Output of the model for a batch.

        Raises:
            ConfigError: The model does not take it; names the shapes.
            DataError: The batch is in none of the documented forms, and the task has no ``forward``.
        """
        with naming_shapes(self._model, batch):
            if self._forward is not None:
                return self._forward(self._model, batch)
            return default_forward(self._model, batch)

    def loss(self, output: Any, batch: Any) -> Tensor:
        """Mean loss of an output."""
        return self._loss(output, batch if self._takes_batch else target_of(batch))


def takes_batch(function: Callable[..., Any]) -> bool:
    """Whether the second argument of a function of outputs is the whole batch: it is called ``batch``."""
    try:
        names = [*inspect.signature(function).parameters]
    except (TypeError, ValueError):  # One without a signature, written in C.
        return False
    return len(names) > 1 and names[1] == "batch"


def default_forward(model: nn.Module, batch: Any) -> Any:
    """
    Output of a model for a batch in one of the documented forms.

    Raises:
        DataError: The batch is in none of them.
    """
    if _is_sequence(batch) and len(batch) > 1:
        *inputs, _ = batch
        return call(model, inputs[0] if len(inputs) == 1 else tuple(inputs))
    if isinstance(batch, Mapping) and _target_key(batch) is not None:
        return model(**_taken(model, batch))
    kind = type(batch).__name__
    raise DataError(
        "training data",
        f"a batch is a {kind}, not (input, target) or a mapping with {', '.join(TARGETS)}; return such "
        "samples, or give the task a collate that makes such batches, or a forward(model, batch)",
        public="a batch is not (input, target) or a mapping with a target, and the task has no collate "
        "that makes such, nor a forward(model, batch)",
    )


def target_of(batch: Any) -> Any:
    """The target of a batch; None where it has none in the documented forms."""
    if _is_sequence(batch) and len(batch) > 1:
        return batch[-1]
    if isinstance(batch, Mapping) and (key := _target_key(batch)) is not None:
        return batch[key]
    return None


def items_in(count: Items, batch: Any) -> int:
    """
    Number of items of a batch.

    Raises:
        ConfigError: The task's function does not return a count.
    """
    found = count(batch)
    if isinstance(found, Tensor) and found.numel() == 1:
        found = found.item()
    if isinstance(found, bool) or not isinstance(found, (int, np.integer)) or found < 0:
        raise ConfigError(
            "run.task",
            f"items(batch) returned a {type(found).__name__}, not how many items the mean loss is over; "
            "return a whole number, 0 or more",
            public="items(batch) returned something else than a whole number, 0 or more",
        )
    return int(found)


def size_in(batch: Any) -> int:
    """Number of samples of a batch, by the length of its first tensor or list."""
    for one in leaves(batch):
        if isinstance(one, Tensor) and one.ndim:
            return len(one)
    return len(batch)


def input_of(sample: Any) -> Any:
    """A sample, or batch, without its target; several inputs stay together."""
    if _is_sequence(sample) and len(sample) > 1:
        return sample[0] if len(sample) == 2 else tuple(sample[:-1])
    if isinstance(sample, Mapping):
        return {key: value for key, value in sample.items() if key not in TARGETS}
    return sample


def call(model: nn.Module, inputs: Any) -> Any:
    """
    Outputs of a model for a batch's inputs.

    Those in a mapping are arguments by name, and several others one after the other, where the model's
    ``forward`` takes them so; else they are one argument.
    """
    if isinstance(inputs, Mapping) and _takes(model, (), inputs):
        return model(**inputs)
    if _is_sequence(inputs) and _takes(model, inputs, {}):
        return model(*inputs)
    return model(inputs)


def logits_of(output: Any) -> Any:
    """The scores in an output: ``.logits``, ``["logits"]``, the first of a tuple, or the output itself."""
    found = named_logits(output)
    if found is None and _is_sequence(output) and len(output):
        return output[0]
    return output if found is None else found


def named_logits(output: Any) -> Tensor | None:
    """The scores that an output has under the name ``logits``; None: it has none such."""
    return _named(output, "logits")


def own_loss(output: Any) -> Tensor | None:
    """The mean loss that a model's output has under the name ``loss``; None: it has none."""
    found = _named(output, "loss")
    return None if found is None else found.mean()


def leaves(value: Any) -> Iterator[Any]:
    """Everything in nested mappings, tuples and lists that is none of them, in their order."""
    if isinstance(value, Mapping):
        for one in value.values():
            yield from leaves(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from leaves(one)
    else:
        yield value


def to_device(value: Any, device: str, *, waits: bool = True) -> Any:
    """
    The same on a device: tensors in mappings, tuples, named tuples and lists, too.

    What has no ``to`` stays as it is.

    Args:
        waits: Whether the copy of a tensor is done on return; False: the device orders it before its use.
    """
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=not waits)
    if callable(getattr(value, "to", None)):  # A packed sequence, what a tokenizer gives.
        return value.to(device)
    if isinstance(value, Mapping):
        return _mapped(
            value, {key: to_device(one, device, waits=waits) for key, one in value.items()}
        )
    if isinstance(value, (list, tuple)):
        moved = [to_device(one, device, waits=waits) for one in value]
        if isinstance(value, list):
            return moved
        return as_named(value, moved)
    return value


def fetch(
    dataset: Samples, chunks: Sequence[Tensor], device: str, reading: LoaderSettings
) -> Iterator[Any]:
    """
    Batches of the samples whose indices each chunk has, on ``device``.

    Args:
        chunks: Of each batch the indices of its samples, (B,) of int64.
    """
    # A subclass may give other samples than its tensors hold: normalised, or turned.
    if type(dataset) is TensorDataset and reading.collate is None:
        tensors = [tensor.to(device) for tensor in dataset.tensors]
        for chunk in chunks:
            stopping.check()
            chosen = chunk.to(device)
            yield [tensor[chosen] for tensor in tensors]
        return
    is_pinned = torch.device(device).type == "cuda"
    indices = [chunk.tolist() for chunk in chunks]
    for batch in iterate_batches(dataset, indices, reading, is_pinned=is_pinned):
        stopping.check()
        yield to_device(batch, device, waits=not is_pinned)


def _is_sequence(value: Any) -> bool:
    # A packed sequence is a named tuple, too.
    return isinstance(value, (tuple, list)) and not callable(getattr(value, "to", None))


def _target_key(batch: Mapping[Any, Any]) -> str | None:
    return next((key for key in TARGETS if key in batch), None)


def _named(output: Any, name: str) -> Tensor | None:
    """A tensor of an output by attribute or key. A named tuple may have such a field."""
    found = getattr(output, name, None)
    if found is None and isinstance(output, Mapping):
        found = output.get(name)
    return found if isinstance(found, Tensor) else None


def _mapped(value: Mapping[Any, Any], moved: dict[Any, Any]) -> Any:
    """Moved values in a mapping of the same class, where it can be copied."""
    if type(value) is dict or not isinstance(value, MutableMapping):
        return moved
    copied = copy.copy(value)
    copied.update(moved)
    return copied


def _takes(model: nn.Module, arguments: Sequence[Any], named: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(model.forward).bind(*arguments, **named)
    except (
        TypeError,
        ValueError,
    ):  # Other arguments; or it has no signature, as what is written in C.
        return False
    return True


def _taken(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a batch that a model takes as arguments."""
    target = _target_key(batch)
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return {key: value for key, value in batch.items() if key != target}
    if any(one.kind == one.VAR_KEYWORD for one in parameters):
        return dict(batch)
    names = {
        one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    }
    left_out = tuple(sorted(str(key) for key in batch if key not in names and key != target))
    if left_out:
        _note_left_out(left_out, type(model).__name__)
    return {key: value for key, value in batch.items() if key in names}


@lru_cache(maxsize=8)
def _note_left_out(keys: tuple[str, ...], model: str) -> None:
    """Log once in a process which keys of a batch a model is not given."""
    _log.warning(
        "batch: %s are no arguments of %s.forward, and are left out", ", ".join(keys), model
    )
