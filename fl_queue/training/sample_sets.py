"""Data sets by number of samples: size, parts, unions, and the batches they are cut into. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

Samples = Dataset[Any]


def size_of(dataset: Samples) -> int:
    """Number of samples; torch's ``Dataset`` itself declares no length."""
    return len(cast(Sized, dataset))


def part_of(dataset: Samples, most: int, seed: int) -> Samples:
    """
    At most so many samples of a data set, drawn by a seed, in their order.

    Args:
        most: 1 or more; a data set that is no larger is returned as it is.
        seed: The same draws the same samples.
    """
    count = size_of(dataset)
    if count <= most:
        return dataset
    drawn = np.random.Generator(np.random.PCG64(seed)).permutation(count)[:most]
    return whole(Subset(dataset, np.sort(drawn).tolist()))


def joined(datasets: Sequence[Samples]) -> Samples:
    """The samples of all data sets as one, in their order; a ``TensorDataset`` where all are such."""
    wholes = [whole(dataset) for dataset in datasets]
    found = [one.tensors for one in wholes if type(one) is TensorDataset]
    if len(found) == len(wholes) and wholes:
        return TensorDataset(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    return ConcatDataset(wholes)


def whole(dataset: Samples) -> Samples:
    """A part of a ``TensorDataset`` (of ``random_split``) as one of its own, for speed."""
    if type(dataset) is Subset and type(dataset.dataset) is TensorDataset:
        chosen = torch.as_tensor(dataset.indices, dtype=torch.int64)
        return TensorDataset(*(tensor[chosen] for tensor in dataset.dataset.tensors))
    return dataset


def cuts_of(count: int, batch_size: int) -> list[int]:
    """Ends of the batches of an epoch; the last batch may be smaller."""
    return [*range(batch_size, count, batch_size), count] if count else []


def cut(order: Tensor, cuts: list[int]) -> list[Tensor]:
    """The indices of each batch: ``order`` (N,), cut at ``cuts``."""
    return [order[start:end] for start, end in pairwise([0, *cuts])]
