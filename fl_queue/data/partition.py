"""
Which samples of a data set are a client's, and which of them it holds out for validation.

Works on label arrays and returns index arrays. No torch and no files here. ``splits`` has the ways
to split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from fl_queue.common.seeding import seed_for
from fl_queue.data import partitioners
from fl_queue.data.partitioners import Indices, Labels, Owners
from fl_queue.errors import ConfigError

#: What decides a partition besides labels and seed: fields of the config's ``[data]`` section.
OPTIONS = ("alpha", "shards_per_client", "samples_per_client", "labels_per_client", "exponent")


def partition_indices(
    kind: str,
    labels: Labels,
    shares: int,
    seed: int,
    *,
    owners: Owners | None = None,
    alpha: float = 0.5,
    shards_per_client: int = 2,
    samples_per_client: int = 500,
    labels_per_client: int = 2,
    exponent: float = 1.0,
) -> list[Indices]:
    """
    Split samples into disjoint shares; equal arguments give equal shares.

    Args:
        kind: ``data.partition``, but for ``site``.
        labels: (N,) class of each sample.
        shares: Number of shares, 1 or more.
        seed: The run's seed.
        owners: (N,) whose each sample is, for ``natural``.
        alpha: Concentration of the Dirichlet partitions, above 0; small is skewed.
        shards_per_client: For ``shards``.
        samples_per_client: For ``dirichlet_hsu``.
        labels_per_client: For ``label_count``.
        exponent: For ``quantity_power``, 0 or more; large is skewed.

    Returns:
        Sorted index arrays, one per share. Every sample is in exactly one, but for
        ``dirichlet_hsu``, which leaves over what is not asked for, and ``label_count``, which leaves
        over a class that no share has.

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
    ways = {
        "iid": lambda: partitioners.iid(labels, shares, seed),
        "shards": lambda: partitioners.shards(labels, shares, seed, shards_per_client),
        "label_count": lambda: partitioners.label_count(labels, shares, seed, labels_per_client),
        "dirichlet_label": lambda: partitioners.dirichlet_label(labels, shares, seed, alpha),
        "dirichlet_hsu": lambda: partitioners.dirichlet_hsu(
            labels, shares, seed, alpha, samples_per_client
        ),
        "quantity_dirichlet": lambda: partitioners.quantity_dirichlet(labels, shares, seed, alpha),
        "quantity_power": lambda: partitioners.quantity_power(labels, shares, seed, exponent),
        "natural": lambda: partitioners.natural(labels, shares, seed, owners),
    }
    if kind not in ways:
        raise ConfigError(
            "data.partition", f"{kind!r} does not split one data set into shares", public=True
        )
    return ways[kind]()


def client_split(
    labels: Labels,
    data: Mapping[str, Any],
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
        owners: (N,) whose each sample is, for ``natural``, and so that nobody's samples are in both
            parts; ``data.train_per_class`` and ``validation_per_class`` draw single samples.

    Returns:
        Sorted, disjoint index arrays into ``labels``. Training is not empty unless the share is.

    Raises:
        ConfigError: There is no such share, or the split is impossible.
    """
    if data["partition"] == "site":
        own = np.arange(len(labels))
    else:
        own = _share(labels, data, seed, share, shares, owners)
    if data["train_per_class"] or data["validation_per_class"]:
        return _hold_out_per_class(own, labels, data, seed, client)
    order = np.random.Generator(np.random.PCG64(seed_for(seed, client, "validation")))
    if owners is not None and len(np.unique(owners[own])) > 1:
        return _hold_out_owners(own, owners[own], data["validation_fraction"], order)
    shuffled = order.permutation(own)
    # Rounded down, and the fraction is at most 0.9: a share with samples has training samples.
    held = int(data["validation_fraction"] * len(own))
    return np.sort(shuffled[held:]), np.sort(shuffled[:held])


def _share(
    labels: Labels,
    data: Mapping[str, Any],
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
    options = tuple((name, data[name]) for name in OPTIONS)
    if labels.flags.writeable or owners is not None:
        parts = partition_indices(
            data["partition"], labels, shares, seed, owners=owners, **dict(options)
        )
    else:
        parts = _kept_split(data["partition"], _Same(labels), shares, seed, options)
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
def _kept_split(
    kind: str, labels: _Same, shares: int, seed: int, options: tuple[tuple[str, Any], ...]
) -> list[Indices]:
    """``split``, done once for all the clients that one process trains."""
    return partition_indices(kind, labels.labels, shares, seed, **dict(options))


def _hold_out_owners(
    own: Indices, owners: Owners, fraction: float, order: np.random.Generator
) -> tuple[Indices, Indices]:
    """
    Hold out whole owners, drawn at random, as many as fit into the fraction.

    Where every owner has more samples than that the smallest is held out, unless these are more than a
    quarter of all: then nobody.

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
    own: Indices, labels: Labels, data: Mapping[str, Any], seed: int, client: str
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
    generator: np.random.Generator, available: int, data: Mapping[str, Any]
) -> tuple[int, int]:
    """Validation and training samples to take of a class; both shrink alike when it is small."""
    train_span, held_span = data["train_per_class"], data["validation_per_class"]
    used = _between(generator, train_span) if train_span else available
    held = _between(generator, held_span) if held_span else 0
    if not held_span:
        held = int(data["validation_fraction"] * available)
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
