"""Trees grown without Redis: by the kernels alone on given edges, and by all steps of the analysis."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_queue.analyses.base import Limits, SiteRows
from fl_queue.analyses.boosting import gradients, growing
from fl_queue.analyses.boosting.grid import Grid, edges_of_counts
from fl_queue.analyses.boosting.growth import Growth
from fl_queue.analyses.boosting.loops import loops
from fl_queue.analyses.boosting.nodes import SPLIT, Tree
from fl_queue.analyses.boosting.rules import Rules
from fl_queue.analyses.boosting.splits import SplitSearch
from fl_queue.analyses.trees import Trees
from fl_queue.protocol.arrays import Float32s, Float64s, Int64s, Octets

#: Options of the task, as the catalog completes them.
OPTIONS: dict[str, Any] = {
    "file": "table.csv",
    "target": "y",
    "numbers": (),
    "levels": {},
    "objective": "binary",
    "trees": 3,
    "max_depth": 3,
    "eta": 0.3,
    "max_bin": 64,
    "lambda": 1.0,
    "alpha": 0.0,
    "gamma": 0.0,
    "min_child_weight": 1.0,
    "subsample": 1.0,
    "validation": 0.0,
    "patience": 0,
    "seed": 0,
}


def distinct_edges(columns: Float64s, most: int) -> tuple[Float32s, ...]:
    """Edges from the distinct values of each column of (N, F)."""
    found = []
    for values in columns.T:
        there = values[~np.isnan(values)].astype(np.float32)
        lows, counts = np.unique(there, return_counts=True)
        found.append(edges_of_counts(lows, counts, most))
    return tuple(found)


class Pool:
    """
    Rows in bins at several sites, and trees of their sums.

    Args:
        grid: The columns' cells.
        bins: (N, F).
        targets: (N,).
        rules: Settings.
        margin: The first one.
        scale: Fractional bits.
        places: (N,) site of each row; None: one site.
        least: Fewest rows of a cell that is shown.
    """

    def __init__(
        self,
        grid: Grid,
        bins: Octets,
        targets: Float64s,
        rules: Rules,
        margin: float,
        scale: int,
        places: Int64s | None = None,
        least: int = 1,
    ) -> None:
        self.grid, self.rules, self.scale, self.least = grid, rules, scale, least
        places = np.zeros(len(targets), np.int64) if places is None else places
        self.sites = []
        for site in np.unique(places):
            is_here = places == site
            margins = np.full((rules.classes, int(is_here.sum())), np.float32(margin), np.float32)
            self.sites.append((np.ascontiguousarray(bins[is_here]), targets[is_here], margins))
        self.trees: list[Tree] = []

    def grow(self) -> Pool:
        """Grow all trees."""
        for _ in range(self.rules.trees):
            self._iterate()
        return self

    def _iterate(self) -> None:
        pairs = []
        for _, targets, margins in self.sites:
            pair = gradients.integers(self.rules.objective, margins.T, targets, self.scale)
            assert pair is not None
            pairs.append(pair)
        new = [self._tree(k, pairs) for k in range(self.rules.classes)]
        for bins, _, margins in self.sites:
            for tree, of_class in zip(new, margins, strict=True):
                columns, lefts, sides, weights = tree.routes(self.grid)
                loops().add_leaves(bins, columns, lefts, sides, weights, of_class)
        self.trees += new

    def _tree(self, k: int, pairs: Sequence[tuple[Int64s, Int64s]]) -> Tree:
        tree = Tree(np.zeros((self.rules.max_nodes, 3), np.int64))
        search = SplitSearch(self.grid, self.rules, self.scale)
        growths = [
            Growth(
                self.grid,
                bins,
                gradient[k],
                hessian[k],
                np.arange(len(targets), dtype=np.int32),
                self.least,
            )
            for (bins, targets, _), (gradient, hessian) in zip(self.sites, pairs, strict=True)
        ]
        for _ in range(self.rules.max_depth):
            nodes = tree.open or [0]
            sums = np.sum([growth.sums() for growth in growths], axis=0)
            growing.grow(tree, sums, search, self.rules, self.scale)
            splits = [tree.split(node) if tree.kinds[node] == SPLIT else None for node in nodes]
            for growth in growths:
                growth.split(splits)
            if not tree.open:
                break
        growing.finish(tree)
        tree.check(self.grid)
        return tree


def margins_of(
    trees: Sequence[Tree], grid: Grid, bins: Octets, classes: int, first: float
) -> Float32s:
    """(K, N) margins of rows in bins."""
    found = np.full((classes, len(bins)), np.float32(first), np.float32)
    for place, tree in enumerate(trees):
        columns, lefts, sides, weights = tree.routes(grid)
        loops().add_leaves(bins, columns, lefts, sides, weights, found[place % classes])
    return found


def text_of(trees: Sequence[Tree]) -> str:
    """A line for each node in the order in which they were made, and an empty one after each tree."""
    lines = []
    for tree in trees:
        for node in range(len(tree)):
            if tree.kinds[node] == SPLIT:
                found, left = tree.split(node), int(tree.lefts[node])
                lines.append(
                    f"split {found.column} {found.bin} {found.default_left:d} {left} {left + 1}"
                )
            else:
                lines.append(f"leaf {float(tree.weights[node]).hex()}")
        lines.append("")
    return "\n".join(lines)


def digest_of(trees: Sequence[Tree]) -> str:
    """The first digits of the SHA-256 of ``text_of``."""
    return hashlib.sha256(text_of(trees).encode()).hexdigest()[:16]


# All steps of the analysis


def tables_of(
    numbers: Mapping[str, Float64s], codes: Mapping[str, Int64s], places: npt.NDArray[np.int64]
) -> list[SiteRows]:
    """The tables of sites. Args: ``places``: (N,) site of each row, from 0."""
    found = []
    for site in range(int(places.max()) + 1):
        is_here = places == site
        found.append(
            SiteRows(
                int(is_here.sum()),
                {name: values[is_here] for name, values in numbers.items()},
                {name: values[is_here] for name, values in codes.items()},
            )
        )
    return found


def fitted(
    options: Mapping[str, Any],
    tables: Sequence[SiteRows],
    least: int = 1,
    forgets: bool = False,
    limits: Limits | None = None,
) -> tuple[Trees, Int64s]:
    """
    The analysis and its last state.

    Args:
        options: Those that differ from ``OPTIONS``.
        least: Each site's ``min_cell``.
        forgets: Whether sites lose what they keep between steps.
        limits: Instead of ``least``.
    """
    analysis = Trees(OPTIONS | dict(options))
    state, limits = analysis.initial(), limits or Limits(min_cell=least)
    for _ in range(analysis.steps):
        if analysis.is_done(state):
            break
        layout, total = analysis.layout(state), np.zeros(0, np.int64)
        for table in tables:
            if forgets:
                table.scratch.clear()
            words = analysis.local(state, table, limits)
            layout.check(words)
            total = words if not len(total) else total + words
        assert total.size <= analysis.total_size
        state = analysis.advance(state, total)
    return analysis, state
