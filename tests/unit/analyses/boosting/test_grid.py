"""Edges of bins, and the bins of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_queue.analyses.boosting import gradients
from fl_queue.analyses.boosting.grid import Grid, edges_of_counts


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(2, 20))
def test_edges(counts: list[int], most: int) -> None:
    """They are lowest numbers of cells, ascend, and make no more bins than wanted."""
    lows = np.arange(len(counts), dtype=np.float32)
    found = edges_of_counts(lows, np.array(counts), most)
    assert len(found) < most
    assert set(found.tolist()) <= set(lows[1:].tolist())
    assert (np.diff(found) > 0).all()
    if len(counts) <= most:
        assert len(found) == len(counts) - 1


def test_a_heavy_cell_is_a_bin_of_its_own() -> None:
    """As the zeros of a column of which nine in ten are 0."""
    counts = np.array([900, *[10] * 10])
    found = edges_of_counts(np.arange(11, dtype=np.float32), counts, 4)
    assert found.tolist() == [1.0, 4.0, 8.0]


def test_bins() -> None:
    """A number on an edge is in the bin above; a missing value comes after all, and so does a missing cell."""
    grid = Grid((np.array([1.0, 2.5], np.float32),), (3,))
    values = np.array([0.0, 1.0, 2.4999, 2.5, 9.0, np.nan])
    assert grid.binned([values], [np.array([0, 1, 2, 3, 0, 0])]).tolist() == [
        [0, 0],
        [1, 1],
        [1, 2],
        [2, 3],
        [2, 0],
        [3, 0],
    ]
    assert grid.starts.tolist() == [0, 4, 8]


@pytest.mark.parametrize(
    ("rows", "bound", "expected"),
    [(455, 1.0, 40), (24421, 1.0, 37), (16152, 64.0, 32), (353, 4 * 77.0, 35), (1, 1e-9, 40)],
)
def test_grid_scale(rows: int, bound: float, expected: int) -> None:
    """The sum of all rows stays below 2**52."""
    assert gradients.grid_scale(rows, bound) == expected
    assert rows * bound * 2.0**expected <= 2.0**52


@given(st.sampled_from(["binary", "poisson"]), st.floats(0.01, 0.99))
def test_the_first_margin_does_not_hang_on_a_logarithm_s_last_bit(
    objective: str, mean: float
) -> None:
    """The score is near the mean, and its margin is not near the middle between two float32."""
    score, margin = gradients.base(objective, mean)
    # Where a step of the score is nearly so many whole steps of the margin, it takes hundreds: 0.9697010278995857.
    assert score == pytest.approx(mean, rel=1e-4)
    exact = np.log(score / (1 - score)) if objective == "binary" else np.log(score)
    # XGBoost divides in float32.
    assert margin == pytest.approx(exact, rel=1e-4, abs=1e-6)
    assert np.float32(margin) == margin
