"""
The ways to split one data set over clients: label arrays in, one index array for each share out.

No torch and no files here. ``partition`` picks one and finds a client's share in it; the formulas
are in docs/guides/partitions.md. Everything is drawn from the run's seed: equal arguments, equal shares.

The two Dirichlet partitions are different data sets: ``dirichlet_label`` splits each class over
the clients (shares of unequal size), ``dirichlet_hsu`` draws each client's own mix of classes
(shares of equal size).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_queue.common.seeding import seed_for
from fl_queue.errors import ConfigError

Labels = NDArray[np.int64]
Indices = NDArray[np.int64]
#: Whose each sample is, (N,): a name or a number.
Owners = NDArray[Any]

#: ``dirichlet_label`` and the quantity partitions give every share at least this many samples, where
#: there are enough of them.
LEAST_SAMPLES = 10
_REDRAWS = 10
# Beyond these a draw is one class, or the prior itself, anyway; and at the ends of float64 the
# product of alpha and prior is 0, or numpy's sampler returns NaN.
_CONCENTRATION_RANGE = (1e-9, 1e9)


def iid(labels: Labels, shares: int, seed: int) -> list[Indices]:
    """
    Shuffle and cut into shares whose sizes differ by at most one.

    Source:
        McMahan et al. 2017, arXiv 1602.05629, section 3 (MNIST, IID).
    """
    order = generator_of(seed, "iid").permutation(len(labels))
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
            public=True,
        )
    pieces = np.array_split(np.argsort(labels, kind="stable"), wanted)
    dealt = generator_of(seed, "shards").permutation(wanted).reshape(shares, shards_per_client)
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
    return _by_class(generator_of(seed, "dirichlet_label"), labels, shares, alpha)


def dirichlet_balanced(labels: Labels, shares: int, seed: int, alpha: float) -> list[Indices]:
    """
    ``dirichlet_label``, but a share that has more than N / shares samples gets nothing of the further classes.

    Source:
        Code of Yurochkin et al. 2019, arXiv 1905.12022 (the paper has not the rule); NIID-Bench and
        flwr-datasets (``DirichletPartitioner(self_balancing=True)``) have it, too.
    """
    generator = generator_of(seed, "dirichlet_balanced")
    return _by_class(generator, labels, shares, alpha, is_balanced=True)


def _by_class(
    generator: np.random.Generator,
    labels: Labels,
    shares: int,
    alpha: float,
    is_balanced: bool = False,
) -> list[Indices]:
    """Shares of classes that are cut, each with its least number of samples."""
    least = min(LEAST_SAMPLES, len(labels) // shares)
    for _ in range(_REDRAWS):
        parts = _split_classes(generator, labels, shares, alpha, is_balanced)
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
            public=True,
        )
    generator = generator_of(seed, "dirichlet_hsu")
    pools = [generator.permutation(members) for members in members_of(labels)]
    prior = np.array([len(pool) for pool in pools]) / len(labels)
    parts = []
    for _ in range(shares):
        mix = _dirichlet(generator, alpha * prior)
        left = np.array([len(pool) for pool in pools])
        takes = _draw_counts(generator, mix, left, samples_per_client)
        parts.append(np.sort(np.concatenate([p[:n] for p, n in zip(pools, takes, strict=True)])))
        pools = [pool[take:] for pool, take in zip(pools, takes, strict=True)]
    return parts


def label_count(labels: Labels, shares: int, seed: int, labels_per_client: int) -> list[Indices]:
    """
    Give each share ``labels_per_client`` classes; the shares that have a class get equal parts of it.

    Share i has class i mod K, so that K shares have all K classes, and others at random. Sizes of
    the parts of a class differ by at most one. A class that no share has is left over.

    Raises:
        ConfigError: ``data.labels_per_client``, when there are fewer classes; ``data.shares``, when
            a share would be empty.

    Source:
        Li et al. 2022, arXiv 2102.02079, section 4.1 (NIID-Bench, "#C = k").
    """
    members = members_of(labels)
    if labels_per_client > len(members):
        raise ConfigError(
            "data.labels_per_client",
            f"{labels_per_client} labels a client, and there are {len(members)}; lower it",
            public=True,
        )
    generator = generator_of(seed, "label_count")
    holders: list[list[int]] = [[] for _ in members]
    for share in range(shares):
        first = share % len(members)
        others = np.delete(np.arange(len(members)), first)
        for label in (first, *generator.permutation(others)[: labels_per_client - 1]):
            holders[label].append(share)
    pieces: list[list[Indices]] = [[] for _ in range(shares)]
    for pool, having in zip(members, holders, strict=True):
        # Of a class with fewer samples than holders some get none: not always the last ones.
        for place, part in zip(
            generator.permutation(having),
            np.array_split(generator.permutation(pool), len(having)) if having else (),
            strict=True,
        ):
            pieces[place].append(part)
    parts = [np.sort(np.concatenate(piece)) for piece in pieces]
    if min(map(len, parts)) == 0:
        raise ConfigError(
            "data.shares",
            f"{shares} shares of {labels_per_client} labels leave one without samples; lower it, "
            "or raise data.labels_per_client",
            public=True,
        )
    return parts


def quantity_dirichlet(labels: Labels, shares: int, seed: int, alpha: float) -> list[Indices]:
    """
    Shuffle and cut by proportions from Dir(alpha, ..., alpha): shares differ in size only.

    Every share gets ``LEAST_SAMPLES`` samples, or half of N / shares if that is less, and one at
    least; small ones are filled as in ``dirichlet_label``.

    Source:
        Li et al. 2022, arXiv 2102.02079, section 4.3 (NIID-Bench, quantity skew).
    """
    generator = generator_of(seed, "quantity_dirichlet")
    order = generator.permutation(len(labels))
    least = _least_of_quantity(labels, shares)
    for _ in range(_REDRAWS):
        parts = _cut(order, _dirichlet(generator, np.full(shares, alpha)))
        if min(map(len, parts)) >= least:
            break
    else:
        _fill_small(generator, parts, least)
    return [np.sort(part) for part in parts]


def quantity_power(labels: Labels, shares: int, seed: int, exponent: float) -> list[Indices]:
    """
    Shuffle and cut into sizes that fall by a power law: the r-th largest share is as r ** -exponent.

    That is of what remains when each share has its least, which is that of ``quantity_dirichlet``.
    Which share is the r-th is drawn.

    Source:
        Sizes by a power law as in Li et al. 2020, arXiv 1812.06127, section 5.1 (FedProx), which
        gives no formula; this is Zipf's.
    """
    generator = generator_of(seed, "quantity_power")
    order = generator.permutation(len(labels))
    least = _least_of_quantity(labels, shares)
    common, rest = order[: least * shares].reshape(shares, least), order[least * shares :]
    weights = np.arange(1, shares + 1, dtype=np.float64) ** -exponent
    extra = _cut(rest, generator.permutation(weights / weights.sum()))
    return [np.sort(np.concatenate(pair)) for pair in zip(common, extra, strict=True)]


def natural(labels: Labels, shares: int, seed: int, owners: Owners | None) -> list[Indices]:
    """
    Give each share everything of some owners: a hospital's rows, a writer's images.

    The owners are dealt at random; their numbers in two shares differ by at most one.

    Args:
        owners: (N,) owner of each sample; None when the task has none.

    Raises:
        ConfigError: ``data.partition`` without owners; ``data.shares``, when there are fewer.

    Source:
        Caldas et al. 2018, arXiv 1812.01097 (LEAF: data sets keyed by their users).
    """
    if owners is None:
        raise ConfigError(
            "data.partition",
            "natural needs the owner of each sample, and the task has none; csv has "
            "task.owner, image-folder a folder for each owner, an own task gives self.split owners",
            public=True,
        )
    _, whose = np.unique(owners, return_inverse=True)
    count = int(whose.max()) + 1
    if count < shares:
        raise ConfigError(
            "data.shares",
            f"{shares} shares cannot be made of {count} owners; lower it",
            public=True,
        )
    place = np.empty(count, dtype=np.int64)
    dealt = generator_of(seed, "natural").permutation(count)
    for share, hand in enumerate(np.array_split(dealt, shares)):
        place[hand] = share
    order = np.argsort(place[whose], kind="stable")
    return np.split(order, np.cumsum(np.bincount(place[whose], minlength=shares))[:-1])


def generator_of(seed: int, kind: str) -> np.random.Generator:
    """Inputs of the draws of a run's partition."""
    return np.random.Generator(np.random.PCG64(seed_for(seed, "partition", kind)))


def members_of(labels: Labels) -> list[Indices]:
    """The samples of each class there is, in the order of the classes."""
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _least_of_quantity(labels: Labels, shares: int) -> int:
    # Half of the mean: were it all of it, there would be no skew where there are few samples.
    return max(1, min(LEAST_SAMPLES, len(labels) // (2 * shares)))


def _cut(order: Indices, proportions: NDArray[np.float64]) -> list[Indices]:
    """Consecutive pieces of ``order``, of these proportions rounded down at each cut."""
    return np.split(order, (np.cumsum(proportions)[:-1] * len(order)).astype(np.int64))


def _dirichlet(
    generator: np.random.Generator, concentration: NDArray[np.float64]
) -> NDArray[np.float64]:
    return generator.dirichlet(np.clip(concentration, *_CONCENTRATION_RANGE))


def _split_classes(
    generator: np.random.Generator, labels: Labels, shares: int, alpha: float, is_balanced: bool
) -> list[Indices]:
    pieces: list[list[Indices]] = [[] for _ in range(shares)]
    for members in members_of(labels):
        proportions = _dirichlet(generator, np.full(shares, alpha))
        if is_balanced:
            sizes = np.array([sum(map(len, piece)) for piece in pieces])
            # One at least has no more than the mean.
            has_room = sizes * shares <= len(labels)
            rest = np.where(has_room, proportions, 0.0)
            # What was drawn for them may be 0 to all digits.
            rest = rest if rest.sum() > 0.0 else has_room.astype(np.float64)
            proportions = rest / rest.sum()
        dealt = _cut(generator.permutation(members), proportions)
        for piece, part in zip(pieces, dealt, strict=True):
            piece.append(part)
    return [np.concatenate(piece) for piece in pieces]


def _fill_small(generator: np.random.Generator, parts: list[Indices], least: int) -> None:
    """Move random samples from the largest to the smallest shares, in place; it always ends."""
    sizes = np.array([len(part) for part in parts])
    while True:
        small, large = int(np.argmin(sizes)), int(np.argmax(sizes))
        missing = least - int(sizes[small])
        if missing <= 0:
            return
        # least <= N // shares: while a share is below it, the largest one is above it.
        moved = min(missing, int(sizes[large]) - least)
        shuffled = generator.permutation(parts[large])
        parts[small] = np.concatenate([parts[small], shuffled[:moved]])
        parts[large] = shuffled[moved:]
        sizes[small] += moved
        sizes[large] -= moved


def _draw_counts(
    generator: np.random.Generator,
    mix: NDArray[np.float64],
    left: NDArray[np.int64],
    wanted: int,
) -> NDArray[np.int64]:
    """
    Number of samples of each class: ``wanted`` draws from ``mix``, a class stopping when empty.

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
