"""
How one data set is split over clients, and a client's share into training and validation.

Works on label arrays and returns index arrays. No torch and no files here.

The two Dirichlet partitions are different data sets: ``dirichlet_label`` splits each class over
the clients (shares of unequal size), ``dirichlet_hsu`` draws each client's own mix of classes
(shares of equal size).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_queue.errors import ConfigError
from fl_queue.sampling import seed_for

Labels = NDArray[np.int64]
Indices = NDArray[np.int64]

#: ``dirichlet_label`` gives every share at least this many samples, where there are enough.
LEAST_SAMPLES = 10
_REDRAWS = 10
# Beyond these a draw is one class, or the prior itself, anyway; and at the ends of float64 the
# product of alpha and prior is 0, or numpy's sampler returns NaN.
_CONCENTRATION_RANGE = (1e-9, 1e9)


def split(
    kind: str,
    labels: Labels,
    shares: int,
    seed: int,
    *,
    alpha: float = 0.5,
    shards_per_client: int = 2,
    samples_per_client: int = 500,
) -> list[Indices]:
    """
    Split samples into disjoint shares; equal arguments give equal shares.

    Args:
        kind: ``iid``, ``shards``, ``dirichlet_label`` or ``dirichlet_hsu``.
        labels: (N,) class of each sample.
        shares: Number of shares, 1 or more.
        seed: The run's seed.
        alpha: Concentration of the Dirichlet partitions, above 0; small is skewed.
        shards_per_client: For ``shards``.
        samples_per_client: For ``dirichlet_hsu``.

    Returns:
        Sorted index arrays, one per share. Every sample is in exactly one, but for
        ``dirichlet_hsu``, which leaves over what is not asked for.

    Raises:
        ConfigError: The samples do not suffice; names the field to change.
    """
    if not 1 <= shares <= len(labels):
        raise ConfigError(
            "data.shares", f"{shares} shares cannot be cut from {len(labels)} samples"
        )
    if kind == "iid":
        return iid(labels, shares, seed)
    if kind == "shards":
        return shards(labels, shares, seed, shards_per_client)
    if kind == "dirichlet_label":
        return dirichlet_label(labels, shares, seed, alpha)
    if kind == "dirichlet_hsu":
        return dirichlet_hsu(labels, shares, seed, alpha, samples_per_client)
    raise ConfigError("data.partition", f"{kind!r} does not split one data set into shares")


def iid(labels: Labels, shares: int, seed: int) -> list[Indices]:
    """
    Shuffle and cut into shares whose sizes differ by at most one.

    Source:
        McMahan et al. 2017, arXiv 1602.05629, section 3 (MNIST, IID).
    """
    order = _generator(seed, "iid").permutation(len(labels))
    return [np.sort(part) for part in np.array_split(order, shares)]


def shards(labels: Labels, shares: int, seed: int, shards_per_client: int) -> list[Indices]:
    """
    Sort by label, cut into ``shares * shards_per_client`` shards, give each share random ones.

    With two shards a client, most clients have two classes only.

    Raises:
        ConfigError: ``data.shards_per_client``, when there are more shards than samples.

    Source:
        McMahan et al. 2017, arXiv 1602.05629, section 3 (MNIST, pathological non-IID).
    """
    wanted = shares * shards_per_client
    if wanted > len(labels):
        raise ConfigError(
            "data.shards_per_client",
            f"{shares} shares of {shards_per_client} shards need {wanted} samples, "
            f"and there are {len(labels)}; lower it, or data.shares",
        )
    pieces = np.array_split(np.argsort(labels, kind="stable"), wanted)
    dealt = _generator(seed, "shards").permutation(wanted).reshape(shares, shards_per_client)
    return [np.sort(np.concatenate([pieces[piece] for piece in hand])) for hand in dealt]


def dirichlet_label(labels: Labels, shares: int, seed: int, alpha: float) -> list[Indices]:
    """
    Split each class over the shares by proportions drawn from Dir(alpha, ..., alpha).

    Every share gets ``LEAST_SAMPLES`` samples, or N // shares if that is less. The usual redraw
    until this holds may never end with many shares, so after a few draws the small shares are
    filled from the largest ones.

    Source:
        Yurochkin et al. 2019, arXiv 1905.12022, section 4.
    """
    generator = _generator(seed, "dirichlet_label")
    least = min(LEAST_SAMPLES, len(labels) // shares)
    for _ in range(_REDRAWS):
        parts = _split_classes(generator, labels, shares, alpha)
        if min(len(part) for part in parts) >= least:
            break
    else:
        _fill_small(generator, parts, least)
    return [np.sort(part) for part in parts]


def dirichlet_hsu(
    labels: Labels, shares: int, seed: int, alpha: float, samples_per_client: int
) -> list[Indices]:
    """
    Give each share ``samples_per_client`` samples, of a class mix drawn from Dir(alpha * prior).

    The prior is how frequent the classes are. Samples are drawn without replacement; a class that
    runs out is left out of the mix from then on, so late shares are less skewed. What is left over
    when every share has its samples belongs to no share.

    Raises:
        ConfigError: ``data.samples_per_client``, when there are not enough samples.

    Source:
        Hsu et al. 2019, arXiv 1909.06335, section 3.1.
    """
    if shares * samples_per_client > len(labels):
        raise ConfigError(
            "data.samples_per_client",
            f"{shares} shares of {samples_per_client} need {shares * samples_per_client} samples, "
            f"and there are {len(labels)}; at most {len(labels) // shares} is possible",
        )
    generator = _generator(seed, "dirichlet_hsu")
    pools = [generator.permutation(members) for members in _members(labels)]
    prior = np.array([len(pool) for pool in pools]) / len(labels)
    parts = []
    for _ in range(shares):
        mix = _dirichlet(generator, alpha * prior)
        left = np.array([len(pool) for pool in pools])
        takes = _draw_counts(generator, mix, left, samples_per_client)
        parts.append(np.sort(np.concatenate([p[:n] for p, n in zip(pools, takes, strict=True)])))
        pools = [pool[take:] for pool, take in zip(pools, takes, strict=True)]
    return parts


def client_split(
    labels: Labels,
    data: Mapping[str, Any],
    *,
    seed: int,
    client: str,
    share: int,
    shares: int,
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

    Returns:
        Sorted, disjoint index arrays into ``labels``. Training is not empty unless the share is.

    Raises:
        ConfigError: There is no such share, or the split is impossible.
    """
    if data["partition"] == "site":
        own = np.arange(len(labels))
    else:
        own = _share(labels, data, seed, share, shares)
    if data["train_per_class"] or data["validation_per_class"]:
        return _hold_out_per_class(own, labels, data, seed, client)
    order = np.random.Generator(np.random.PCG64(seed_for(seed, client, "validation")))
    shuffled = order.permutation(own)
    # Rounded down, and the fraction is at most 0.9: a share with samples has training samples.
    held = int(data["validation_fraction"] * len(own))
    return np.sort(shuffled[held:]), np.sort(shuffled[:held])


def _share(labels: Labels, data: Mapping[str, Any], seed: int, share: int, shares: int) -> Indices:
    if not 0 <= share < shares:
        raise ConfigError(
            "data.shares",
            f"there is no share {share}: the data was split into {shares} when the run began; "
            "start a new run with data.shares at least the number of clients",
        )
    kind, alpha = data["partition"], data["alpha"]
    hand, count = data["shards_per_client"], data["samples_per_client"]
    if labels.flags.writeable:
        parts = split(kind, labels, shares, seed, alpha=alpha, shards_per_client=hand, samples_per_client=count)  # fmt: skip
    else:
        parts = _kept_split(kind, _Same(labels), shares, seed, alpha, hand, count)
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
    kind: str, labels: _Same, shares: int, seed: int, alpha: float, hand: int, count: int
) -> list[Indices]:
    """``split``, done once for all the clients that one process trains."""
    return split(kind, labels.labels, shares, seed, alpha=alpha, shards_per_client=hand, samples_per_client=count)  # fmt: skip


def _hold_out_per_class(
    own: Indices, labels: Labels, data: Mapping[str, Any], seed: int, client: str
) -> tuple[Indices, Indices]:
    train: list[Indices] = []
    validation: list[Indices] = []
    for members in _members(labels[own]):
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


def _generator(seed: int, kind: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed_for(seed, "partition", kind)))


def _members(labels: Labels) -> list[Indices]:
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _dirichlet(
    generator: np.random.Generator, concentration: NDArray[np.float64]
) -> NDArray[np.float64]:
    return generator.dirichlet(np.clip(concentration, *_CONCENTRATION_RANGE))


def _split_classes(
    generator: np.random.Generator, labels: Labels, shares: int, alpha: float
) -> list[Indices]:
    pieces: list[list[Indices]] = [[] for _ in range(shares)]
    for members in _members(labels):
        proportions = _dirichlet(generator, np.full(shares, alpha))
        cuts = (np.cumsum(proportions)[:-1] * len(members)).astype(np.int64)
        for piece, part in zip(pieces, np.split(generator.permutation(members), cuts), strict=True):
            piece.append(part)
    return [np.concatenate(piece) for piece in pieces]


def _fill_small(generator: np.random.Generator, parts: list[Indices], least: int) -> None:
    """Move random samples from the largest to the smallest shares, in place; it always ends."""
    while True:
        sizes = [len(part) for part in parts]
        small, large = int(np.argmin(sizes)), int(np.argmax(sizes))
        missing = least - sizes[small]
        if missing <= 0:
            return
        # least <= N // shares: while a share is below it, the largest one is above it.
        moved = min(missing, sizes[large] - least)
        shuffled = generator.permutation(parts[large])
        parts[small] = np.concatenate([parts[small], shuffled[:moved]])
        parts[large] = shuffled[moved:]


def _draw_counts(
    generator: np.random.Generator,
    mix: NDArray[np.float64],
    left: NDArray[np.int64],
    wanted: int,
) -> NDArray[np.int64]:
    """
    How many samples of each class: ``wanted`` draws from ``mix``, a class stopping when empty.

    Draws beyond what is left of a class are repeated with the other classes, which is the same
    distribution as drawing one at a time. Each repetition empties a class, so it ends.
    """
    takes = np.zeros(len(left), dtype=np.int64)
    while wanted > 0:
        weights = np.where(takes < left, mix, 0.0)
        if weights.sum() <= 0.0:
            weights = (left - takes).astype(np.float64)
        drawn = generator.multinomial(wanted, weights / weights.sum())
        drawn = np.minimum(drawn, left - takes)
        takes += drawn
        wanted -= int(drawn.sum())
    return takes
