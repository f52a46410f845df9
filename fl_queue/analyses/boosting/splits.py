"""
The best split of a node, from its histogram: XGBoost's gain, scan order and ties.

Columns are looked at in their order; of each first with missing values on the right, boundaries upward, then with them
on the left, boundaries downward. Only a greater gain, as float32, replaces the one before. Source: Chen and Guestrin,
XGBoost, 2016, equation 7; the order is that of its tree method ``hist``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_queue.analyses.boosting.grid import Grid
from fl_queue.analyses.boosting.nodes import Split
from fl_queue.analyses.boosting.rules import LEAST_GAIN, MAX_CATEGORIES, ONE_HOT_BELOW, Rules
from fl_queue.protocol.arrays import Float32s, Float64s, Int64s

_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """
    A split and its sides.

    Args:
        split: Its place.
        left, right: (2,) sums of gradients and hessians, integers.
    """

    split: Split
    left: Int64s
    right: Int64s


def soft(gradients: Float64s, l1: float) -> Float64s:
    """Gradients moved towards 0 by ``l1``."""
    if l1 == 0.0:
        return gradients
    low: Float64s = np.where(gradients < -l1, gradients + l1, 0.0)
    return np.where(gradients > l1, gradients - l1, low)


def _step(gradients: Float64s, hessians: Float64s, rules: Rules) -> Float64s:
    found = -soft(gradients, rules.l1) / (hessians + rules.l2)
    most = rules.max_step
    return np.clip(found, -most, most) if most else found


def weight(sums: Int64s, scale: int, rules: Rules) -> np.float32:
    """The weight of a leaf; 0 without rows. Args: ``sums``: (2,) of gradients and hessians, integers."""
    if not sums[1]:
        return np.float32(0)
    gradient, hessian = sums.astype(np.float64) * 2.0**-scale
    return np.float32(float(_step(gradient, hessian, rules)) * rules.eta)


def _gain(gradients: Float64s, hessians: Float64s, rules: Rules) -> Float64s:
    """The gain of a side, of any shape. There are no sides without rows."""
    if not rules.max_step:
        part = soft(gradients, rules.l1)
        return part * part / (hessians + rules.l2)
    step = _step(gradients, hessians, rules)
    found = -(2.0 * gradients * step + (hessians + rules.l2) * step * step)
    return found if rules.l1 == 0.0 else found + rules.l1 * np.abs(step)


class SplitSearch:
    """
    Search of the splits of nodes.

    Args:
        grid: The columns' cells.
        rules: Settings.
        scale: Fractional bits of the histograms' integers.
    """

    def __init__(self, grid: Grid, rules: Rules, scale: int) -> None:
        self._grid, self._rules = grid, rules
        #: Cells of the first column, whose sum is that of a node.
        self.first_column = int(grid.starts[1])
        self._unit = 2.0**-scale
        numbers = len(grid.edges)
        #: Cells of the columns of numbers, without those of missing values; their columns, and their places in these.
        self._column = np.repeat(np.arange(numbers), grid.bins[:numbers])
        at = np.arange(len(self._column)) - np.repeat(
            np.concatenate(([0], np.cumsum(grid.bins[:numbers])))[:-1], grid.bins[:numbers]
        )
        self._bin = at
        self._cell = grid.starts[self._column] + at
        self._is_last = at == grid.bins[self._column] - 1
        self._missing = (grid.starts[1:] - 1)[self._column]

    def best(self, sums: Int64s) -> Found | None:
        """
        The best split of a node; None: none gains enough.

        Args:
            sums: (cells, 2) of gradients and hessians, integers; the cells of each column have the same sum.
        """
        if not sums[:, 1].any():
            return None
        total = sums[: self.first_column].sum(axis=0)
        node = _Node(sums, total, self._rules, self._unit)
        best, gain = None, max(self._rules.gamma, LEAST_GAIN)
        for found in self._candidates(node):
            if found.split.gain > float(np.float32(gain)):
                gain, best = found.split.gain, found
        return best

    def _candidates(self, node: _Node) -> Iterator[Found]:
        if len(self._cell):
            yield from self._number(node)
        for column in range(len(self._grid.edges), self._grid.columns):
            yield from _Category(self._grid, column, node).found()

    def _number(self, node: _Node) -> Iterator[Found]:
        """The best of all columns of numbers."""
        cells = node.sums[self._cell]
        run = np.cumsum(cells, axis=0)
        first = np.flatnonzero(self._bin == 0)
        before = (run - cells)[first][self._column]
        upward = run - before
        ends = np.flatnonzero(self._is_last)
        downward = (run[ends] - before[ends])[self._column] - (upward - cells)
        missing = node.sums[self._missing]
        has_missing, is_filled = missing[:, 1] > 0, cells[:, 1] > 0
        up = node.gains(upward, is_filled & (~self._is_last | has_missing))
        down = node.gains(node.total - downward, is_filled & has_missing & (self._bin > 0))
        most = max(up.max(), down.max())
        if most == -np.inf:
            return
        column = int(min(self._column[(up == most) | (down == most)]))
        of_column = self._column == column
        if (at := np.flatnonzero(of_column & (up == most))).size:
            place, left, default = int(at[0]), upward[at[0]], False
            cut = int(self._bin[place])
        else:
            place = int(np.flatnonzero(of_column & (down == most))[-1])
            left, default = node.total - downward[place], True
            cut = int(self._bin[place]) - 1
        split = Split(column, cut, default, 0, float(most))
        yield Found(split, left, node.total - left)


class _Node:
    """
    A node's histogram.

    Args:
        sums: (cells, 2).
        total: (2,) of the node.
        rules: Settings.
        unit: Of the integers.
    """

    def __init__(self, sums: Int64s, total: Int64s, rules: Rules, unit: float) -> None:
        self.sums, self.total, self.rules, self.unit = sums, total, rules, unit
        gradient, hessian = total.astype(np.float64) * unit
        self._parent = _gain(gradient, hessian, rules)

    def gains(self, left: Int64s, is_candidate: _Mask) -> Float32s:
        """
        Gains of splits, (n,) float32; minus infinity: not a split.

        Args:
            left: (n, 2) sums of the left sides.
            is_candidate: (n,).
        """
        found = np.full(len(left), -np.inf, np.float32)
        right = self.total - left
        least = self.rules.min_child_weight
        lh = left[:, 1].astype(np.float64) * self.unit
        rh = right[:, 1].astype(np.float64) * self.unit
        at = np.flatnonzero(
            is_candidate & (left[:, 1] > 0) & (right[:, 1] > 0) & (lh >= least) & (rh >= least)
        )
        one = _gain(left[at, 0] * self.unit, lh[at], self.rules)
        other = _gain(right[at, 0] * self.unit, rh[at], self.rules)
        found[at] = (one + other - self._parent).astype(np.float32)
        return found


class _Category:
    """
    The splits of a column of categories. A set of categories goes right; others, and those never seen, go left.

    Args:
        grid: The columns' cells.
        column: Its number.
        node: The node.
    """

    def __init__(self, grid: Grid, column: int, node: _Node) -> None:
        self._column, self._node = column, node
        start, bins = int(grid.starts[column]), int(grid.bins[column])
        self._sums, self._missing = node.sums[start : start + bins], node.sums[start + bins]
        self._codes = np.flatnonzero(self._sums[:, 1])
        self._is_one_hot = bins < ONE_HOT_BELOW

    def found(self) -> Iterator[Found]:
        """The best one, if there is any."""
        sets = self._codes if self._is_one_hot else self._ordered()
        count = len(sets)
        if not count:
            return
        right = self._sums[sets] if self._is_one_hot else np.cumsum(self._sums[sets], axis=0)
        # Sides with missing values on the left, and on the right, in the order in which they are looked at.
        upward, is_left = np.arange(count), np.ones(count, np.bool_)
        if self._is_one_hot:
            places = np.repeat(upward, 2)
            default_left = np.tile([True, False], count)
        else:
            places = np.concatenate((upward, upward[::-1]))
            default_left = np.concatenate((is_left, ~is_left))
        right = right[places] + np.where(default_left[:, None], 0, self._missing)
        is_other = default_left | (self._missing[1] > 0)
        gains = self._node.gains(self._node.total - right, is_other)
        best = int(np.argmax(gains))
        if gains[best] == -np.inf:
            return
        place = int(places[best])
        members = sets[place : place + 1] if self._is_one_hot else sets[: place + 1]
        bits = sum(1 << int(code) for code in members)
        split = Split(self._column, 0, bool(default_left[best]), bits, float(gains[best]))
        yield Found(split, self._node.total - right[best], right[best])

    def _ordered(self) -> Int64s:
        """Categories with rows by their weights, those of equal weights by their codes."""
        sums = self._sums[self._codes] * self._node.unit
        weights = -sums[:, 0] / (sums[:, 1] + self._node.rules.l2)
        return self._codes[np.argsort(weights, kind="stable")][:MAX_CATEGORIES]
