"""Distances between updates: right, and the same bits however they are computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_queue.aggregation.exact_sum import Scale
from fl_queue.aggregation.update_matrix import UpdateMatrix
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.strategies import distances, robust

MANIFEST = Manifest(
    (
        TensorSpec("a.weight", (7, 19), "parameter"),
        TensorSpec("b.running_mean", (3,), "float_buffer"),
        TensorSpec("c.weight", (401,), "parameter"),
    )
)
SCALES = {"parameter": Scale(31, 64.0), "float_buffer": Scale(31, 65536.0)}


def gathered(
    folder: Path, count: int, order: list[int] | None = None
) -> tuple[UpdateMatrix, np.ndarray]:
    """Updates of random sizes, two of them equal, and their parameters, a row for each."""
    rng = np.random.default_rng(count)
    sizes = {spec.name: spec.size for spec in MANIFEST.tensors}
    sent = [
        {
            name: (rng.normal(0, 10.0 ** -(i % 4), size)).astype(np.float32)
            for name, size in sizes.items()
        }
        for i in range(count)
    ]
    sent[-1] = sent[0]
    updates = UpdateMatrix(MANIFEST, SCALES, 1, folder)
    for index in order or range(count):
        updates.add_blocks(f"c{index:02}", lambda spec, t=sent[index]: [t[spec.name]], 1)
    rows = np.concatenate([updates.block(s.name, 0, s.size) for s in updates.parameters()], axis=1)
    return updates, rows


def one_after_the_other(rows: np.ndarray) -> np.ndarray:
    """Inner products, coordinate by coordinate in order."""
    total = np.zeros((len(rows), len(rows)))
    for values in rows.T:
        total += np.multiply.outer(values, values)
    return total


@pytest.mark.parametrize("memory", [64 * 2**20, 24 * 12 * 13, 1])
@pytest.mark.parametrize("numba", [True, False])
def test_coordinates_are_added_in_order_in_blocks_of_any_size(
    numba: bool, memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates, rows = gathered(tmp_path, 12)
    monkeypatch.setattr(robust, "_MEMORY", memory)
    if not numba:
        monkeypatch.setattr(distances, "_kernel", lambda: distances._add_numpy)

    found = distances.inner_products(updates)

    assert found.tobytes() == one_after_the_other(rows).tobytes()


def test_distances_are_those_of_the_differences(tmp_path: Path) -> None:
    updates, rows = gathered(tmp_path, 12)
    expected = [[np.sum((a - b) ** 2) for b in rows] for a in rows]

    found = distances.squared_distances(updates)

    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)
    assert found.tobytes() == found.T.tobytes()
    # Equal updates are at no distance at all.
    assert found[0, -1] == 0.0
    assert not np.diagonal(found).any()


def test_updates_that_came_in_another_order_have_the_same_distances(tmp_path: Path) -> None:
    one, _ = gathered(tmp_path, 12)
    other, _ = gathered(tmp_path, 12, np.random.default_rng(1).permutation(12).tolist())

    assert (
        distances.squared_distances(one).tobytes() == distances.squared_distances(other).tobytes()
    )


@pytest.mark.parametrize("count", [1, 2])
def test_few_updates_have_distances_too(count: int, tmp_path: Path) -> None:
    manifest = Manifest((TensorSpec("none", (0,), "parameter"), TensorSpec("w", (3,), "parameter")))
    updates = UpdateMatrix(manifest, SCALES, 1, tmp_path)
    for index in range(count):
        updates.add_blocks(f"c{index}", lambda s, i=index: [np.full(s.size, i, np.float32)], 1)

    expected = [[3.0 * (i - j) ** 2 for j in range(count)] for i in range(count)]
    assert distances.squared_distances(updates).tolist() == expected
