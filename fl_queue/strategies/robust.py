"""
Common part of the rules that need all updates: an aggregate in place of the mean.

A rule chooses updates, and combines their values coordinate by coordinate; the result is added to the
base as FedAvg adds the mean. Rules see parameters only. Of buffers, which have no direction and
let one update do much, the coordinate median of the chosen updates is taken; of integer buffers the
lower median: a maximum would be any value that one attacker sends.

Weights are the clients' own claims, so that all rules but the geometric median, which is defined with
them, count every update once (``aggregation.weighting = "uniform"``).

The same bits everywhere: float64, elementwise, rows in the order of client ids; sums over coordinates
(``distances.py``) are added one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_queue.common.options import Option
from fl_queue.protocol.arrays import Float64s, Int64s
from fl_queue.protocol.manifest import Manifest
from fl_queue.strategies.base import Strategy, Updates

#: Bytes that a block of all updates, and what a rule makes of it, may take.
_MEMORY = 64 * 1024 * 1024
_BYTES_EACH = 24

#: The option of rules that have to know how many updates may be hostile.
F = Option("int", 1, "f, hostile updates that are withstood, 0 or more", low=0)


@dataclass(frozen=True)
class Choice:
    """
    The updates that are combined.

    Args:
        rows: Which of ``updates.clients``.
        weights: Theirs, in this order.
    """

    rows: Sequence[int]
    weights: Float64s


class Robust(Strategy):
    """A rule: ``choose``, ``combine``, and how many updates it takes."""

    needs_all = True
    WEIGHTINGS: ClassVar[tuple[str, ...]] = ("uniform",)

    def choose(self, updates: Updates) -> Choice:
        """The updates that are combined, and their weights; all of them unless overridden."""
        return Choice(range(updates.count), updates.weights)

    def combine(self, values: Float64s, weights: Float64s) -> Float64s:
        """
        Some coordinates of the result.

        Elementwise: what coordinates come together must make no difference.

        Args:
            values: One row for each chosen update; may be overwritten.
            weights: Of the rows.
        """
        raise NotImplementedError

    def merged(self, updates: Updates) -> RobustAggregate:
        """
        The result of the rule, in the place of a mean.

        Raises:
            ValueError: They are too few for it.
        """
        if updates.count < self.min_updates():
            raise ValueError(
                f"{updates.count} updates, {type(self).__name__} needs {self.min_updates()} ({self.NEEDS})"
            )
        return RobustAggregate(self, updates)


class RobustAggregate:
    """Aggregate of all updates by a rule, block by block; see ``base.Merged``."""

    def __init__(self, rule: Robust, updates: Updates) -> None:
        self.manifest: Manifest = updates.manifest
        self.count = updates.count
        self._rule, self._updates = rule, updates
        self._choice = rule.choose(updates)
        let_in = set(self._choice.rows)
        self.left_out = [c for row, c in enumerate(updates.clients) if row not in let_in]

    def mean_block(self, name: str, start: int, stop: int) -> Float64s:
        """Elements ``start`` to ``stop`` of what stands for the mean of a float tensor."""
        is_parameter = self._updates.spec(name).kind == "parameter"
        out = np.empty(stop - start, np.float64)
        for at, end in steps(start, stop, len(self._choice.rows)):
            values = self._updates.block(name, at, end, self._choice.rows)
            out[at - start : end - start] = (
                self._rule.combine(values, self._choice.weights)
                if is_parameter
                else coordinate_median(values)
            )
        return out

    def maximum(self, name: str) -> Int64s:
        """Replacement for the maximum of an integer buffer: the lower median, in its shape."""
        spec = self._updates.spec(name)
        middle = (len(self._choice.rows) - 1) // 2
        out = np.empty(spec.size, np.int64)
        for at, end in steps(0, spec.size, len(self._choice.rows)):
            values = self._updates.block(name, at, end, self._choice.rows)
            out[at:end] = np.partition(values, middle, axis=0)[middle]
        return out.reshape(spec.shape)

    def scalar_mean(self, name: str) -> float:
        """Rules send no scalars. Raises ValueError."""
        raise ValueError(f"a rule that needs all updates has no scalar {name!r}")

    def release(self, name: str) -> None:
        """Nothing: it is all on disk."""


def coordinate_median(values: Float64s) -> Float64s:
    """
    The median of each column; of an even number the mean of the two in the middle.

    Args:
        values: One row for each update; each column comes out sorted.
    """
    # numpy sorts columns faster than it partitions them.
    values.sort(axis=0)
    result: Float64s = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
    return result


def weighted_mean(values: Float64s, weights: Float64s) -> Float64s:
    """``sum_i w_i v_i / sum_i w_i`` of each column, added up row by row."""
    total, whole = np.zeros(values.shape[1]), 0.0
    for row, weight in zip(values, weights, strict=True):
        total += weight * row
        whole += float(weight)
    return total / whole


def row_sums(values: Float64s) -> Float64s:
    """The sum of each row, halves added to halves; the rows are overwritten."""
    # Not np.sum: in which order that adds is its own affair.
    size = values.shape[1]
    while size > 1:
        half = (size + 1) // 2
        values[:, : size - half] += values[:, half:size]
        size = half
    return values[:, 0] if size else np.zeros(len(values))


def steps(start: int, stop: int, count: int) -> Iterator[tuple[int, int]]:
    """From start to stop, so many coordinates of ``count`` updates at a time that memory is bounded."""
    step = max(1, _MEMORY // (_BYTES_EACH * count))
    for at in range(start, stop, step):
        yield at, min(at + step, stop)
