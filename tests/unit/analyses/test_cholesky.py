"""Cholesky's factor in a written order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_queue.analyses import cholesky
from fl_queue.protocol.arrays import Float64s


def _positive(size: int, seed: int) -> Float64s:
    columns = np.random.default_rng(seed).normal(size=(4 * size, size))
    found: Float64s = columns.T @ columns
    return found


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_equal_to_lapack(size: int, seed: int) -> None:
    """Factor, solution and inverse."""
    matrix = _positive(size, seed)
    left = cholesky.factor(matrix)
    np.testing.assert_allclose(left, np.linalg.cholesky(matrix), rtol=1e-9, atol=1e-9)
    right = np.arange(1.0, size + 1)
    np.testing.assert_allclose(matrix @ cholesky.solved(left, right), right, rtol=1e-9)
    np.testing.assert_allclose(cholesky.inverse(left) @ matrix, np.eye(size), rtol=1e-9, atol=1e-9)


def test_product() -> None:
    """Of two matrices."""
    left, right = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    assert cholesky.product(left, right).tolist() == (left @ right).tolist()


def test_dependent_columns_are_named() -> None:
    """The combination, and the column that is one."""
    columns = np.random.default_rng(1).normal(size=(50, 5))
    columns[:, 3] = columns[:, 0] - 2 * columns[:, 2]
    with pytest.raises(cholesky.DependenceError) as error:
        cholesky.factor(columns.T @ columns)
    assert error.value.columns == (0, 2, 3)


def test_column_without_information() -> None:
    """It is named alone."""
    matrix = np.diag([1.0, 0.0, 1.0])
    with pytest.raises(cholesky.DependenceError) as error:
        cholesky.factor(matrix)
    assert error.value.columns == (1,)


def test_nan_is_no_pivot() -> None:
    """A matrix of NaN is refused."""
    with pytest.raises(cholesky.DependenceError):
        cholesky.factor(np.full((2, 2), np.nan))
