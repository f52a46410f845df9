"""
Which samples of a data set are a client's, and which of them it holds out for validation.

Works on label arrays and returns index arrays. No torch and no files here. ``splits`` has the ways
to split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from fl_queue.common.seeding import seed_for
from fl_queue.data import partitioners, sized_shares
from fl_queue.data.partitioners import Indices, Labels, Owners
from fl_queue.errors import ConfigError


class PartitionSettings(Protocol):
    """The fields of ``[data]`` that decide which samples are in which share."""

    def __hash__(self) -> int:
        """Equal settings are one key of a cache."""

    @property
    def partition(self) -> str:
        """Kind of partition."""

    @property
    def alpha(self) -> float:
        """Concentration of the Dirichlet partitions, above 0; small is skewed."""

    @property
    def shards_per_client(self) -> int:
        """For ``shards``."""

    @property
    def samples_per_client(self) -> int:
        """For ``dirichlet_hsu``."""

    @property
    def labels_per_client(self) -> int:
        """For ``label_count``."""

    @property
    def exponent(self) -> float:
        """For ``quantity_power``, 0 or more; large is skewed."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """For ``quantity_sizes``: samples of each share."""


class SplitSettings(PartitionSettings, Protocol):
    """The fields of ``[data]`` that decide what a client trains and validates with."""

    @property
    def validation_fraction(self) -> float:
        """Part of a share that is held out."""

    @property
    def train_per_class(self) -> tuple[int, ...]:
        """Range of training samples to draw per class; empty: all."""

    @property
    def validation_per_class(self) -> tuple[int, ...]:
        """Range of validation samples to draw per class; empty: by the fraction."""


def partition_indices(
    data: PartitionSettings,
    labels: Labels,
    shares: int,
    seed: int,
    owners: Owners | None = None,
) -> list[Indices]:
    """
    Split samples into disjoint shares; equal arguments give equal shares.

    Args:
        data: The ``[data]`` section; any partition but ``site``.
        labels: (N,) class of each sample.
        shares: Number of shares, 1 or more.
        seed: The run's seed.
        owners: (N,) owner of each sample, for ``natural``.

    Returns:
        Sorted index arrays, one per share. Every sample is in exactly one, but for
        ``dirichlet_hsu`` and ``quantity_sizes``, which leave over what is not asked for, and
        ``label_count``, which leaves over a class that no share has.

    Raises:
        ConfigError: The samples do not suffice; names the field to change.
    """
    if not 1 <= shares <= len(labels):
        raise ConfigError(
            "data.shares",
            f"{shares} shares cannot be cut from {len(labels)} samples; "
            "it is from 1 to the number of samples",
            public=True,
        )
    if data.partition not in _WAYS:
        raise ConfigError(
            "data.partition",
            f"{data.partition!r} does not split one data set into shares",
            public=True,
        )
    return _WAYS[data.partition](data, labels, shares, seed, owners)


_Way = Callable[[PartitionSettings, Labels, int, int, "Owners | None"], list[Indices]]
_WAYS: dict[str, _Way] = {
    "iid": lambda data, labels, shares, seed, owners: partitioners.iid(labels, shares, seed),
    "shards": lambda data, labels, shares, seed, owners: partitioners.shards(
        labels, shares, seed, data.shards_per_client
    ),
    "label_count": lambda data, labels, shares, seed, owners: partitioners.label_count(
        labels, shares, seed, data.labels_per_client
    ),
    "dirichlet_label": lambda data, labels, shares, seed, owners: partitioners.dirichlet_label(
        labels, shares, seed, data.alpha
    ),
    "dirichlet_balanced": lambda data, labels, shares, seed, owners: (
        partitioners.dirichlet_balanced(labels, shares, seed, data.alpha)
    ),
    "dirichlet_hsu": lambda data, labels, shares, seed, owners: partitioners.dirichlet_hsu(
        labels, shares, seed, data.alpha, data.samples_per_client
    ),
    "quantity_dirichlet": lambda data, labels, shares, seed, owners: (
        partitioners.quantity_dirichlet(labels, shares, seed, data.alpha)
    ),
    "quantity_power": lambda data, labels, shares, seed, owners: partitioners.quantity_power(
        labels, shares, seed, data.exponent
    ),
    "quantity_sizes": lambda data, labels, shares, seed, owners: sized_shares.of_sizes(
        labels, shares, seed, data.sizes
    ),
    **{
        kind: lambda data, labels, shares, seed, owners: sized_shares.by_number(
            labels, shares, seed, data.partition
        )
        for kind in sized_shares.FORMULAS
    },
    "natural": lambda data, labels, shares, seed, owners: partitioners.natural(
        labels, shares, seed, owners
    ),
}


def client_split(
    labels: Labels,
    data: SplitSettings,
    *,
    seed: int,
    client: str,
    share: int,
    shares: int,
    owners: Owners | None = None,
) -> tuple[Indices, Indices]:
    """
    The training and validation samples of one client, the same in every round.

    Args:
        labels: (N,) classes of all samples that are on the client's machine.
        data: The ``[data]`` section of the config. With ``partition = "site"`` all samples are
            the client's own and ``share`` does not matter.
        seed: The run's seed.
        client: Its id; two clients with the same share still differ in what they hold out.
        share: Which share is this client's, from 0.
        shares: How many there are.
        owners: (N,) the owner of each sample, for ``natural``, and so that no owner has samples in both
            parts; ``data.train_per_class`` and ``validation_per_class`` draw single samples.

    Returns:
        Sorted, disjoint index arrays into ``labels``. Training is not empty unless the share is.

    Raises:
        ConfigError: There is no such share, or the split is impossible.
    """
    if data.partition == "site":
        own = np.arange(len(labels))
    else:
        own = _share(labels, data, seed, share, shares, owners)
    if data.train_per_class or data.validation_per_class:
        return _hold_out_per_class(own, labels, data, seed, client)
    order = np.random.Generator(np.random.PCG64(seed_for(seed, client, "validation")))
    if owners is not None and len(np.unique(owners[own])) > 1:
        return _hold_out_owners(own, owners[own], data.validation_fraction, order)
    shuffled = order.permutation(own)
    # Rounded down, and the fraction is at most 0.9: a share with samples has training samples.
    held = int(data.validation_fraction * len(own))
    return np.sort(shuffled[held:]), np.sort(shuffled[:held])


def _share(
    labels: Labels,
    data: PartitionSettings,
    seed: int,
    share: int,
    shares: int,
    owners: Owners | None,
) -> Indices:
    if not 0 <= share < shares:
        raise ConfigError(
            "data.shares",
            f"there is no share {share}: the data was split into {shares} when the run began; "
            "start a new run with data.shares at least the number of clients",
            public=True,
        )
    if labels.flags.writeable or owners is not None:
        parts = partition_indices(data, labels, shares, seed, owners)
    else:
        parts = _kept_split(data, _Same(labels), shares, seed)
    return parts[share]


class _Same:
    """Labels that cannot change, as a key: the same array, without a look at what is in it."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.labels is other.labels

    def __hash__(self) -> int:
        return id(self.labels)


@lru_cache(maxsize=2)
def _kept_split(data: PartitionSettings, labels: _Same, shares: int, seed: int) -> list[Indices]:
    """``partition_indices``, done once for all the clients that one process trains."""
    return partition_indices(data, labels.labels, shares, seed)


def _hold_out_owners(
    own: Indices, owners: Owners, fraction: float, order: np.random.Generator
) -> tuple[Indices, Indices]:
    """
    Hold out whole owners, drawn at random, as many as fit into the fraction.

    Where every owner has more samples than that the smallest is held out, unless these are more than a
    quarter of all: then none is.

    Args:
        own: (n,) indices of the client's samples.
        owners: (n,) whose each of them is, of two or more.
    """
    names, places, counts = np.unique(owners, return_inverse=True, return_counts=True)
    room = int(fraction * len(own))
    held: list[int] = []
    for name in order.permutation(len(names)).tolist():
        if counts[name] <= room and len(held) < len(names) - 1:
            held.append(name)
            room -= int(counts[name])
    if not held and room and 4 * counts.min() <= len(own):
        held = [int(counts.argmin())]
    is_held = np.isin(places.reshape(-1), held)
    return np.sort(own[~is_held]), np.sort(own[is_held])


def _hold_out_per_class(
    own: Indices, labels: Labels, data: SplitSettings, seed: int, client: str
) -> tuple[Indices, Indices]:
    train: list[Indices] = []
    validation: list[Indices] = []
    for members in partitioners.members_of(labels[own]):
        pool = own[members]
        number = seed_for(seed, client, "samples", int(labels[pool[0]]))
        generator = np.random.Generator(np.random.PCG64(number))
        shuffled = generator.permutation(pool)
        held, used = _per_class_counts(generator, len(pool), data)
        validation.append(shuffled[:held])
        train.append(shuffled[held : held + used])
    return _joined(train), _joined(validation)


def _per_class_counts(
    generator: np.random.Generator, available: int, data: SplitSettings
) -> tuple[int, int]:
    """Validation and training samples to take of a class; both shrink alike when it is small."""
    train_span, held_span = data.train_per_class, data.validation_per_class
    used = _between(generator, train_span) if train_span else available
    held = _between(generator, held_span) if held_span else 0
    if not held_span:
        held = int(data.validation_fraction * available)
    if not train_span:
        used = max(available - held, 1)
    if used + held > available:
        held = available * held // (used + held)
        used = available - held
    return held, used


def _between(generator: np.random.Generator, span: Sequence[int]) -> int:
    return int(generator.integers(span[0], span[1], endpoint=True))


def _joined(parts: list[Indices]) -> Indices:
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *parts]))
