"""
Batches of samples: padding of unequal ones, and errors that name the sample that does not fit.

Imports torch. No Redis here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, default_collate

from fl_queue.errors import ConfigError

#: Makes a batch of samples.
Collate = Callable[[list[Any]], Any]
#: Errors that code which makes a batch raises; those of fl-queue and of time limits pass.
_OF_CODE = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)
#: A filling, or fillings by key or position of the samples' parts.
Filling = float | Mapping[str, Any] | Sequence[Any]


class ReadSamples(list[Any]):
    """Samples of one batch, with their indices in the data set."""

    def __init__(self, samples: Sequence[Any], indices: Sequence[int]) -> None:
        super().__init__(samples)
        self.indices = indices


def pad(samples: Sequence[Any], value: Filling = 0) -> Any:
    """
    A batch of samples whose tensors are of unequal sizes: each is filled up at its ends.

    For a task's ``collate``::

        def collate(self, samples):
            return pad(samples, {"input_ids": 0, "labels": -100})

    Args:
        samples: Of one form: tensors, arrays, lists of numbers, numbers, nested in mappings and tuples.
        value: The filling; or a mapping by key, or a sequence by position, of the parts' fillings
            (0 for a key that is not there).

    Returns:
        As ``default_collate`` makes it; a tensor of sizes (B, largest of each dimension), of a dtype that
        holds the numbers of all samples.
    """
    first = samples[0]
    if isinstance(first, Mapping):
        fillings = {key: _of_part(value, key, 0) for key in first}
        return {key: pad([one[key] for one in samples], fillings[key]) for key in first}
    if isinstance(first, (list, tuple)) and not _is_numbers(first):
        parts = [
            pad([one[index] for one in samples], _of_part(value, index, 0))
            for index in range(len(first))
        ]
        return as_named(first, parts) if hasattr(first, "_fields") else parts
    if isinstance(first, (Tensor, np.ndarray, list, tuple)):
        tensors = [torch.as_tensor(one) for one in samples]
        # An empty list has no numbers from which its dtype could be known.
        known = [one.dtype for one, of in zip(tensors, samples, strict=True) if _has_dtype(of)]
        return _padded(tensors, value, reduce(torch.promote_types, known or [tensors[0].dtype]))
    return default_collate([*samples])


def as_named(value: Any, parts: Sequence[Any]) -> Any:
    """Parts as the named tuple that a value is, else as a tuple."""
    return type(value)._make(parts) if hasattr(value, "_fields") else tuple(parts)


def _of_part(value: Filling, key: Any, otherwise: float) -> Any:
    if isinstance(value, Mapping):
        return value.get(key, otherwise)
    if isinstance(value, Sequence):
        return value[key] if isinstance(key, int) and key < len(value) else otherwise
    return value


def _is_numbers(value: Sequence[Any]) -> bool:
    return all(isinstance(one, Number) for one in value)


def _has_dtype(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) or len(value) > 0


def _padded(tensors: list[Tensor], value: Any, dtype: torch.dtype) -> Tensor:
    """Tensors (...) of one number of dimensions as one (B, largest of each dimension)."""
    sizes = [max(sizes) for sizes in zip(*(one.shape for one in tensors), strict=True)]
    batch = tensors[0].new_full((len(tensors), *sizes), value, dtype=dtype)
    for row, one in zip(batch, tensors, strict=True):
        row[tuple(slice(size) for size in one.shape)] = one
    return batch


def collated(collate: Collate, samples: ReadSamples, dataset: Dataset[Any]) -> Any:
    """
    A batch of samples.

    Raises:
        ConfigError: They do not make one; names a sample that does not fit, by its index in the data set.
    """
    try:
        return collate(samples)
    except _OF_CODE as exc:
        if "shared memory" in str(exc):  # Of the machine, and not of a sample.
            raise
        # Samples of unequal sizes are what a collate of the task's own may be for.
        looks = [_unequal, _unfit_alone] if collate is default_collate else [_unfit_alone, _unequal]
        for look in looks:
            found = look(collate, samples, dataset)
            if found is not None:
                raise found from exc
        raise


def _unequal(collate: Collate, samples: ReadSamples, dataset: Dataset[Any]) -> ConfigError | None:
    """The error of the first sample whose form most of the others do not have."""
    forms = [repr(_form(sample)) for sample in samples]
    usual = max(forms, key=forms.count)
    beside = samples[forms.index(usual)]
    for index, sample, form in zip(samples.indices, samples, forms, strict=True):
        if form != usual:
            this, other = _difference(_form(sample), _form(beside))
            return ConfigError(
                "collate",
                f"sample {_origin(dataset, index)} does not fit the others: {this} beside {other}; "
                "define collate, or pad",
                public=True,
            )
    return None


def _unfit_alone(
    collate: Collate, samples: ReadSamples, dataset: Dataset[Any]
) -> ConfigError | None:
    """The error of the first sample of which no batch can be made even if it is the only one."""
    for index, sample in zip(samples.indices, samples, strict=True):
        try:
            collate([sample])
        except _OF_CODE as exc:
            what = f"sample {_origin(dataset, index)} makes no batch ({type(exc).__name__})"
            return ConfigError(
                "collate",
                f"{what}: {str(exc)[:200]}; define collate, or return tensors",
                public=f"{what}; define collate, or return tensors",
            )
    return None


def _form(sample: Any) -> Any:
    """Kinds and shapes of a sample's parts; none of its values."""
    if isinstance(sample, Mapping):
        return {str(key): _form(one) for key, one in sample.items()}
    if isinstance(sample, (list, tuple)) and (not sample or not _is_numbers(sample)):
        return [_form(one) for one in sample]
    if isinstance(sample, (Tensor, np.ndarray)):
        return tuple(sample.shape)
    if isinstance(sample, (list, tuple)):
        return (len(sample),)
    return "a number" if isinstance(sample, Number) else f"a {type(sample).__name__}"


def _difference(one: Any, other: Any) -> tuple[str, str]:
    """The first parts in which two forms differ, as texts."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next(_difference(one[key], other[key]) for key in one if one[key] != other[key])
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return next(_difference(a, b) for a, b in zip(one, other, strict=True) if a != b)
    return _text(one), _text(other)


def _text(form: Any) -> str:
    if isinstance(form, (dict, list)):
        return f"{len(form)} {'keys' if isinstance(form, dict) else 'parts'}"
    return str(form)


def _origin(dataset: Dataset[Any], index: int) -> int:
    """Index of a sample in the data set of which a data set is a part."""
    while type(dataset) is Subset:
        index, dataset = int(dataset.indices[index]), dataset.dataset
    return index
