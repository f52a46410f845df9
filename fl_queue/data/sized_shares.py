"""
Partitions whose sizes are given: by a formula of the share's number, or one by one; samples are drawn.

No torch and no files here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fl_queue.data.partitioners import Indices, Labels, generator_of
from fl_queue.errors import ConfigError

_Sizes = NDArray[np.float64]
#: Partition -> weights of the shares, of their numbers 1 to S. Only the ratios count.
FORMULAS: Mapping[str, Callable[[_Sizes], _Sizes]] = MappingProxyType(
    {
        "quantity_linear": lambda number: number,
        "quantity_square": lambda number: number**2,
        # Of the largest number first: e to the power of S is too large for many shares.
        "quantity_exponential": lambda number: np.exp(number - len(number)),
    }
)


def by_number(labels: Labels, shares: int, seed: int, kind: str) -> list[Indices]:
    """
    Shuffle and cut into sizes by a formula of the share's number i, from 1; the last share is the largest.

    Args:
        kind: Key of ``FORMULAS``: i, i**2 or e**i of all samples, rounded down; the last one has the rest.

    Raises:
        ConfigError: ``data.shares``, when a share would be empty.

    Source:
        flwr-datasets: ``LinearPartitioner``, ``SquarePartitioner``, ``ExponentialPartitioner``.
    """
    weights = FORMULAS[kind](np.arange(1, shares + 1, dtype=np.float64))
    sizes = (weights / weights.sum() * len(labels)).astype(np.int64)
    sizes[-1] += len(labels) - sizes.sum()
    if sizes.min() < 1:
        raise ConfigError(
            "data.shares",
            f"{shares} shares of {len(labels)} samples by {kind} leave one without samples; lower it",
            public=True,
        )
    return _cut(labels, seed, kind, sizes.tolist())


def of_sizes(labels: Labels, shares: int, seed: int, sizes: Sequence[int]) -> list[Indices]:
    """
    Shuffle and give each share as many samples as ``sizes`` has; the others are in no share.

    Raises:
        ConfigError: ``data.sizes``, when their number is not that of the shares, or there are fewer samples.

    Source:
        flwr-datasets: ``SizePartitioner``.
    """
    if len(sizes) != shares:
        raise ConfigError(
            "data.sizes",
            f"has {len(sizes)} sizes, and there are {shares} shares; give one for each",
            public=True,
        )
    if sum(sizes) > len(labels):
        raise ConfigError(
            "data.sizes",
            f"they are {sum(sizes)} samples together, and there are {len(labels)}; lower them",
            public=True,
        )
    return _cut(labels, seed, "quantity_sizes", sizes)


def _cut(labels: Labels, seed: int, kind: str, sizes: Sequence[int]) -> list[Indices]:
    order = generator_of(seed, kind).permutation(len(labels))
    parts = np.split(order, np.cumsum(sizes))[: len(sizes)]
    return [np.sort(part) for part in parts]
