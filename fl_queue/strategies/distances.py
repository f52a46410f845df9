"""
Squared distances between all updates of a round, by way of their inner products.

    G_ij = sum over the parameters k of u_ik u_jk,    ||u_i - u_j||^2 = G_ii + G_jj - 2 G_ij

The same bits on every machine: values are float32, so that a product is exact in float64, with or
without a fused multiply-add, and coordinates are added one after the other. BLAS would add them in an
order of its own. The loop compiled by numba and plain numpy add in the same order.

Updates that agree in nearly all digits are the only ones whose distance loses digits, those of
``||u||^2`` times 2e-16: too little to distinguish them from equal ones.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from fl_queue.common import jit
from fl_queue.protocol.arrays import Float64s
from fl_queue.strategies.base import Updates
from fl_queue.strategies.robust import steps

_log = logging.getLogger(__name__)
#: Coordinates that numpy, which keeps every partial sum, looks at together.
_PIECE = 256


def squared_distances(updates: Updates) -> Float64s:
    """``||u_i - u_j||^2`` over the parameters: n x n, in the order of clients, never below 0."""
    products = inner_products(updates)
    squares = np.diagonal(products).copy()
    # Equal updates have equal sums: exactly 0.
    products *= -2.0
    products += squares[:, np.newaxis] + squares
    return np.maximum(products, 0.0, out=products)


def inner_products(updates: Updates) -> Float64s:
    """``G``, from block after block of coordinates."""
    upper = np.zeros((updates.count, updates.count))
    for spec in updates.parameters():
        for at, end in steps(0, spec.size, updates.count):
            values = updates.block(spec.name, at, end)
            # A row for each coordinate: the innermost loop goes over updates, and adds to each pair apart.
            _kernel()(np.ascontiguousarray(values.T), upper)
    return upper + np.triu(upper, 1).T


#: ``found[i, j] += values[k, i] * values[k, j]`` for j >= i and each k in order.
_Kernel = Callable[[Float64s, Float64s], None]


@functools.cache
def _kernel() -> _Kernel:
    try:
        return jit.compiled({_add_loop: "void(float64[:, ::1], float64[:, ::1])"})[0]
    except ImportError as exc:
        _log.warning("numba cannot be imported (%s): distances with numpy, far slower", exc)
        return _add_numpy


def _add_loop(values: Any, found: Any) -> Any:
    # Eight coordinates for each time a sum is read and written: three times as fast as one.
    whole = values.shape[0] - values.shape[0] % 8
    for k in range(0, whole, 8):
        for i in range(found.shape[0]):
            sums = found[i, i:]
            a, b, c, d = values[k, i:], values[k + 1, i:], values[k + 2, i:], values[k + 3, i:]
            e, f, g, h = values[k + 4, i:], values[k + 5, i:], values[k + 6, i:], values[k + 7, i:]
            for j in range(sums.size):
                first = sums[j] + a[0] * a[j] + b[0] * b[j] + c[0] * c[j] + d[0] * d[j]
                sums[j] = first + e[0] * e[j] + f[0] * f[j] + g[0] * g[j] + h[0] * h[j]
    for k in range(whole, values.shape[0]):
        for i in range(found.shape[0]):
            sums, a = found[i, i:], values[k, i:]
            for j in range(sums.size):
                sums[j] += a[0] * a[j]


def _add_numpy(values: Float64s, found: Float64s) -> None:
    for start in range(0, len(values), _PIECE):
        rows = np.ascontiguousarray(values[start : start + _PIECE].T)
        for i in range(len(found)):
            products = rows[i:] * rows[i]
            products[:, 0] += found[i, i:]
            # accumulate adds one after the other; np.sum does not.
            found[i, i:] = np.add.accumulate(products, axis=1, out=products)[:, -1]
