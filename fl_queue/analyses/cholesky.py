"""
Cholesky's factor of a symmetric matrix, column by column, elementwise: the same bits on all machines, as LAPACK has not.

At the aggregator, and at each site that checks its step.
"""

from __future__ import annotations

import numpy as np

from fl_queue.protocol.arrays import Float64s

#: A column whose pivot is a smaller part of its diagonal is a combination of those before it.
LEAST_PIVOT = 1e-9
#: Columns with a smaller share of such a combination are not named.
_LEAST_SHARE = 1e-5


class DependenceError(Exception):
    """
    A matrix without an inverse.

    Args:
        columns: The first column that is a combination of earlier ones, after those; or one without any information.
    """

    def __init__(self, columns: tuple[int, ...]) -> None:
        super().__init__(columns)
        self.columns = columns


def factor(matrix: Float64s) -> Float64s:
    """
    Factor a symmetric positive definite matrix as L L'.

    Args:
        matrix: (p, p).

    Returns:
        L, (p, p), with zeros above the diagonal.

    Raises:
        DependenceError: A pivot is below 1e-9 of its diagonal, or no number.
    """
    left = matrix.copy()
    for j in range(len(left)):
        for k in range(j):
            left[j:, j] -= left[j:, k] * left[j, k]
        if not left[j, j] > LEAST_PIVOT * matrix[j, j]:
            raise DependenceError(_combined(matrix, np.tril(left), j))
        left[j, j] = np.sqrt(left[j, j])
        left[j + 1 :, j] /= left[j, j]
    return np.tril(left)


def _combined(matrix: Float64s, left: Float64s, column: int) -> tuple[int, ...]:
    """The columns of which one is a combination, and that one. Args: ``left``: the factor before it."""
    if not matrix[column, column] > 0:
        return (column,)
    shares = solved(left[:column, :column], matrix[:column, column])
    sizes = np.sqrt(np.diagonal(matrix))
    found = np.abs(shares) * sizes[:column] > _LEAST_SHARE * sizes[column]
    return (*np.flatnonzero(found).tolist(), column)


def solved(left: Float64s, right: Float64s) -> Float64s:
    """Solve L L' x = b. Args: ``left``: L, (p, p); ``right``: b, (p,) or (p, m)."""
    found, size = right.copy(), len(left)
    tail = (slice(None),) + (None,) * (right.ndim - 1)
    for j in range(size):
        found[j] /= left[j, j]
        found[j + 1 :] -= left[j + 1 :, j][tail] * found[j]
    for j in range(size - 1, -1, -1):
        found[j] /= left[j, j]
        found[:j] -= left[j, :j][tail] * found[j]
    return found


def inverse(left: Float64s) -> Float64s:
    """Invert L L'. Args: ``left``: L, (p, p)."""
    return solved(left, np.eye(len(left)))


def product(left: Float64s, right: Float64s) -> Float64s:
    """Multiply two matrices in a written order, the first inner term first. Args: (p, q) and (q, r)."""
    found = np.zeros((left.shape[0], right.shape[1]))
    for k in range(left.shape[1]):
        found += left[:, k][:, None] * right[k]
    return found
