"""The geometric median stays near the honest mean, whatever less than half of the weight sends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fl_queue.aggregation.exact_sum import Scale
from fl_queue.aggregation.update_matrix import UpdateMatrix
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.strategies import get_strategy
from fl_queue.strategies.robust import Robust

LIMIT = 64.0
#: Where hostile updates are, from the honest mean, random numbers, their number and the coordinates.
PLACES = {
    "at the limit": lambda mean, rng, q, d: np.full((q, d), LIMIT),
    "at both limits": lambda mean, rng, q, d: np.full((q, d), LIMIT) * (-1.0) ** np.arange(q)[:, None],
    "each elsewhere": lambda mean, rng, q, d: rng.uniform(-LIMIT, LIMIT, (q, d)),
    "along one line": lambda mean, rng, q, d: np.outer(LIMIT * 0.5 ** np.arange(q), np.ones(d)),
    "among the honest": lambda mean, rng, q, d: mean + rng.normal(0, 0.03, (q, d)),
    "one point nearby": lambda mean, rng, q, d: np.tile(mean + 0.05, (q, 1)),
}  # fmt: skip


def result(u: np.ndarray, weights: np.ndarray, folder: Path) -> np.ndarray:
    """What the rule makes of updates."""
    rule = get_strategy("geometric_median")
    assert isinstance(rule, Robust)
    manifest = Manifest((TensorSpec("w", (u.shape[1],), "parameter"),))
    updates = UpdateMatrix(manifest, {"parameter": Scale(31, LIMIT)}, int(weights.max()), folder)
    for index, row in enumerate(u):
        updates.add_blocks(f"c{index:03}", lambda spec, row=row: [row], int(weights[index]))
    return rule.merged(updates).mean_block("w", 0, u.shape[1])


@settings(max_examples=60)
@given(
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=21),
    dimensions=st.integers(1, 300),
    place=st.sampled_from(sorted(PLACES)),
    spread=st.sampled_from([0.0, 0.01, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
@example(weights=[1] * 10, dimensions=1000, place="at the limit", spread=0.01, seed=0)
@example(weights=[1] * 101, dimensions=200, place="at the limit", spread=0.01, seed=1)
def test_the_result_is_as_near_the_honest_mean_as_is_proven(
    weights: list[int],
    dimensions: int,
    place: str,
    spread: float,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """
    ``||z - v|| <= (2 sum_H a_i ||u_i - v|| + nu) / (1 - 2 theta)``, for each theta < 1/2.

    Source:
        Pillutla et al. 2022, arXiv 1912.13445; Lopuhaä and Rousseeuw 1991; Minsker 2015, arXiv
        1308.1334, Lemma 2.1. The docstring of ``geometric_median.py`` has the inequality.
    """
    a = np.array(weights, float) / sum(weights)
    # As many of the first as have less than half of the weight: theirs are hostile.
    hostile = int(np.count_nonzero(2 * np.cumsum(weights) < sum(weights)))
    rng = np.random.default_rng(seed)
    honest = rng.normal(0.1, spread, (len(weights) - hostile, dimensions)).astype(np.float32)
    mean = np.average(honest.astype(float), axis=0, weights=a[hostile:])
    bad = PLACES[place](mean, rng, hostile, dimensions).astype(np.float32)

    moved = result(np.concatenate([bad, honest]), np.array(weights), tmp_path_factory.getbasetemp())

    away = np.linalg.norm(moved - mean)
    radii = np.linalg.norm(honest - mean, axis=1)
    bound = (2 * a[hostile:] @ radii + 1e-5) / (1 - 2 * a[:hostile].sum())
    assert away <= bound * (1 + 1e-6) + 1e-8


@pytest.mark.parametrize("hostile", [2, 3, 4])
def test_hostile_updates_near_the_limit_move_no_coordinate_far(
    hostile: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    honest = rng.normal(0, 0.01, (10 - hostile, 2000)).astype(np.float32)
    bad = np.full((hostile, 2000), 60, np.float32)

    moved = result(np.concatenate([bad, honest]), np.ones(10), tmp_path)

    # The honest themselves are 0.01 from their mean.
    assert np.sqrt(np.mean((moved - honest.mean(axis=0)) ** 2)) < 0.011


def test_most_of_the_weight_decides_not_most_updates(tmp_path: Path) -> None:
    u = np.array([[60.0], [60.0], [60.0], [0.5]], np.float32)
    assert result(u, np.array([1, 1, 1, 4]), tmp_path) == pytest.approx([0.5], abs=1e-3)
