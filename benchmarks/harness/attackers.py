"""
What hostile clients send in ``benchmarks.cases.attacks``: attacks of the papers, as functions of what they know.

They act together, and the strong ones know all honest updates, but not the rule.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CLIENTS = 11
#: How many of them are hostile: as many as Bulyan withstands, and as many as Krum does.
HOSTILE = (2, 4)
Arrays = dict[str, NDArray[np.float32]]


class Round(NamedTuple):
    """
    What hostile clients know, and send one update each in place of.

    Args:
        honest: The updates of the others, which strong attackers know.
        hostile: How many they are themselves.
        limit: ``aggregation.limit``.
    """

    honest: Sequence[Arrays]
    hostile: int
    limit: float

    def mean(self, name: str) -> NDArray[np.float32]:
        """Of a tensor of the honest."""
        mean: NDArray[np.float32] = np.mean([sent[name] for sent in self.honest], axis=0)
        return mean

    def spread(self, name: str) -> NDArray[np.float32]:
        """Standard deviation of each element of a tensor of the honest."""
        spread: NDArray[np.float32] = np.std([sent[name] for sent in self.honest], axis=0)
        return spread


#: (own update, what is known) -> what is pushed.
Attack = Callable[[Arrays, Round], Arrays]


def as_it_is(own: Arrays, known: Round) -> Arrays:
    """No change to the update."""
    return own


def sign_flip(own: Arrays, known: Round) -> Arrays:
    """Five times its own update, backwards."""
    return {name: np.float32(-5.0) * values for name, values in own.items()}


def at_the_limit(own: Arrays, known: Round) -> Arrays:
    """The largest value that is let in, everywhere."""
    return {name: np.full_like(values, known.limit) for name, values in own.items()}


def inner_product(epsilon: float) -> Attack:
    """
    What pulls the inner product of the honest mean with the result below zero.

    Source:
        Xie et al. 2020, arXiv 1903.03936, "Fall of Empires" (inner product manipulation).
    """

    def attack(own: Arrays, known: Round) -> Arrays:
        return {name: np.float32(-epsilon) * known.mean(name) for name in own}

    return attack


def a_little(own: Arrays, known: Round) -> Arrays:
    """
    As far from the mean, in standard deviations, as enough honest updates are to be taken for hostile.

    Source:
        Baruch et al. 2019, arXiv 1902.06156, "A Little Is Enough", Algorithm 3.
    """
    z = deviations(len(known.honest) + known.hostile, known.hostile)
    return {name: known.mean(name) - np.float32(z) * known.spread(name) for name in own}


def deviations(n: int, hostile: int) -> float:
    """Factor z of "A Little Is Enough", such that the hostile and s honest ones are more than half of n."""
    honest, supporters = n - hostile, n // 2 + 1 - hostile
    return statistics.NormalDist().inv_cdf((honest - supporters) / honest)


def min_max(own: Arrays, known: Round) -> Arrays:
    """
    As far from the mean as no honest update is farther from than two honest ones are from each other.

    Away from it by minus each element's standard deviation; knows nothing of the rule.

    Source:
        Shejwalkar and Houmansadr 2021, "Manipulating the Byzantine" (NDSS), section IV, Min-Max.
    """
    names = list(own)
    rows = [np.concatenate([sent[name].ravel() for name in names]) for sent in known.honest]
    honest = np.stack(rows).astype(np.float64)
    mean, direction = honest.mean(axis=0), -honest.std(axis=0)
    pairs = itertools.combinations(honest, 2)
    furthest = max(float(np.sum((one - other) ** 2)) for one, other in pairs)
    # ||mean + gamma p - u||^2 <= furthest, a quadratic inequality of gamma for each u.
    square = float(direction @ direction)
    gamma = min(
        (math.sqrt(max(0.0, b * b - square * (c - furthest))) - b) / square
        for b, c in (
            (float(direction @ (mean - u)), float(np.sum((mean - u) ** 2))) for u in honest
        )
    )
    vector = (mean + gamma * direction).astype(np.float32)
    ends = np.cumsum([own[name].size for name in names])[:-1]
    parts = zip(names, np.split(vector, ends), strict=True)
    return {name: values.reshape(own[name].shape) for name, values in parts}


#: Name -> what is done to the update, and on which labels the hostile train: "true", "flipped", or "" if not at all.
ATTACKS: dict[str, tuple[Attack, str]] = {
    "none": (as_it_is, "true"),
    "sign flip": (sign_flip, "true"),
    "at the limit": (at_the_limit, ""),
    "label flip": (as_it_is, "flipped"),
    "ALIE": (a_little, ""),
    "IPM 0.5": (inner_product(0.5), ""),
    "IPM 10": (inner_product(10.0), ""),
    "min-max": (min_max, ""),
}


_Z = " and ".join(f"{deviations(CLIENTS, hostile):.2f}" for hostile in HOSTILE)
#: What a hostile client sends, and the paper.
SENT = {
    "none": ("its honest update: what a rule costs", ""),
    "sign flip": ("five times its own update, backwards", "Li et al. 2019, arXiv 1811.03761"),
    "at the limit": ("`aggregation.limit` (64) in each element", ""),
    "label flip": ("what it has trained on labels 9 - y", "Tolpegin et al. 2020, arXiv 2007.08432"),
    "ALIE": (
        f"the honest mean minus z standard deviations in each element; z so that it passes for honest: {_Z}",
        '"A Little Is Enough", Baruch et al. 2019, arXiv 1902.06156',
    ),
    "IPM 0.5": (
        "minus half the honest mean (inner-product manipulation)",
        '"Fall of Empires", Xie et al. 2020, arXiv 1903.03936',
    ),
    "IPM 10": ("minus ten times the honest mean", "the same"),
    "min-max": (
        "the honest mean minus as many standard deviations that no honest update is farther away than two honest ones are from each other",
        '"Manipulating the Byzantine", Shejwalkar and Houmansadr 2021, NDSS',
    ),
}
