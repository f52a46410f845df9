"""Sums of rows on a fixed grid."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fl_queue.analyses import grid
from fl_queue.protocol.arrays import Float64s

COLUMNS = arrays.arrays(
    np.float64, st.tuples(st.integers(0, 20), st.just(3)), elements=st.floats(-9, 9)
)


@pytest.mark.parametrize(
    ("rows", "bound", "shift"),
    [(442, 4.0, 41), (569, 2.0, 41), (20190, 45.76, 32), (1, 1.0, 52), (3, 1.0, 50), (4, 0.5, 51)],
)
def test_shift(rows: int, bound: float, shift: int) -> None:
    """52 bits less those of rows times bound, rounded up."""
    assert grid.shift_of(rows, bound) == shift


@given(COLUMNS, st.integers(0, 2**32 - 1))
def test_numba_adds_what_numpy_adds(columns: Float64s, seed: int) -> None:
    """The same bits, with numba's loops and without."""
    rng = np.random.default_rng(seed)
    weight, beta = rng.random(len(columns)), rng.normal(size=3)
    assert grid.linear(columns, beta).tobytes() == grid.linear_by_numpy(columns, beta).tobytes()
    score, products = np.zeros(3), np.zeros((3, 3))
    grid.score_by_numpy(columns, np.ldexp(weight, 30), score)
    grid.products_by_numpy(columns, np.ldexp(weight, 30), products)
    found = grid.score(columns, weight, 30)
    assert found is not None
    assert found.tolist() == score.astype(np.int64).tolist()
    found = grid.products(columns, weight, 30)
    assert found is not None
    assert found.tolist() == products[np.tril_indices(3)].astype(np.int64).tolist()


@given(COLUMNS, st.integers(0, 20))
def test_any_split_has_the_same_sums(columns: Float64s, cut: int) -> None:
    """Each row is rounded by itself."""
    weight = np.abs(columns[:, 0]) / 3
    for add in (grid.score, grid.products):
        whole, one, other = (
            add(columns[part], weight[part], 35)
            for part in (slice(None), slice(cut), slice(cut, None))
        )
        assert whole is not None
        assert one is not None
        assert other is not None
        assert whole.tolist() == (one + other).tolist()


def test_a_row_is_rounded_half_to_even() -> None:
    """As rint does, and each word by itself."""
    columns = np.array([[1.0, 0.5], [1.0, 1.5]])
    found = grid.score(columns, np.array([1.0, 1.0]), 0)
    assert found is not None
    assert found.tolist() == [2, 0 + 2]


@pytest.mark.parametrize("weight", [2.0**53, np.inf, np.nan])
def test_a_sum_that_leaves_the_grid(weight: float) -> None:
    """There is none then."""
    columns = np.ones((1, 2))
    assert grid.products(columns, np.array([weight]), 0) is None
    assert grid.score(columns, np.array([weight]), 0) is None
    assert grid.products(columns, np.array([2.0**53 - 1]), 0) is not None


@given(st.lists(st.floats(-(2.0**20), 2.0**20), max_size=30))
def test_a_sum_in_two_words(values: list[float]) -> None:
    """It is that of the rounded numbers."""
    found = grid.pair_sum(np.array(values, np.float64), 40)
    exact = sum((Fraction(round(Fraction(value) * 2**40)) for value in values), Fraction(0))
    assert grid.pair_value(found, 40) == float(exact / 2**40)


def test_symmetric_matrix() -> None:
    """Of a lower triangle."""
    found = grid.symmetric(np.array([2, 4, 6], np.int64), 2, 1)
    assert found.tolist() == [[1.0, 2.0], [2.0, 3.0]]


@pytest.mark.parametrize(("squares", "is_small"), [(2.0**9, True), (2.0**9 + 1, False)])
def test_residuals_that_cannot_leave_the_grid(squares: float, is_small: bool) -> None:
    """By the sum of their squares."""
    assert grid.are_residuals_small(squares, 2**8, 44) is is_small
