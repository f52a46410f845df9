"""
A tree of exact sums beside XGBoost's: ``python -m benchmarks.cases.trees [--quick]``.

One core, one site, the pooled table; both grow trees of the same settings from data in bins. Processor time, in turns.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np

from benchmarks.harness.table import markdown
from fl_queue.analyses.boosting import gradients, growing
from fl_queue.analyses.boosting.grid import Grid
from fl_queue.analyses.boosting.growth import Growth
from fl_queue.analyses.boosting.loops import loops
from fl_queue.analyses.boosting.nodes import SPLIT, Tree
from fl_queue.analyses.boosting.rules import Rules
from fl_queue.analyses.boosting.splits import SplitSearch
from fl_queue.protocol.arrays import Float32s, Float64s, Int64s

COLUMNS, BINS, DEPTH, REPEATS = 30, 64, 6, 5
#: Fractional bits of the gradients of a million rows.
SCALE = 32


class Subject:
    """A table of ``rows`` rows in bins. Args: ``rows``: their number."""

    def __init__(self, rows: int) -> None:
        rng = np.random.default_rng(0)
        self.columns: Float32s = rng.normal(size=(rows, COLUMNS)).astype(np.float32)
        risk = self.columns[:, 0] + self.columns[:, 1] * self.columns[:, 2]
        self.target: Float64s = (risk + rng.normal(size=rows) > 0).astype(np.float64)
        cuts = np.arange(1, BINS) / BINS
        self.grid = Grid(
            tuple(np.quantile(column, cuts).astype(np.float32) for column in self.columns.T)
        )
        self.bins = self.grid.binned(list(self.columns.T.astype(np.float64)), [])
        self.rows = np.arange(rows, dtype=np.int32)
        self.margins = np.zeros((1, rows), np.float32)
        self.rules = Rules(max_depth=DEPTH)
        self.search = SplitSearch(self.grid, self.rules, SCALE)
        self._kept = self.gradients()

    def gradients(self) -> tuple[Int64s, Int64s]:
        """Integers of all rows."""
        found = gradients.integers("binary", self.margins.T, self.target, SCALE)
        assert found is not None
        return found[0][0], found[1][0]

    def histogram(self) -> None:
        """The histogram of all rows."""
        gradient, hessian = self._kept
        found = np.zeros((self.grid.cells, 3), np.int64)
        loops().add_rows(self.bins, gradient, hessian, self.grid.starts[:-1], found)

    def tree(self) -> None:
        """A whole tree: gradients, all levels at the site and at the aggregator, and the margins."""
        gradient, hessian = self.gradients()
        growth = Growth(self.grid, self.bins, gradient, hessian, self.rows, 1)
        tree = Tree(np.zeros((self.rules.max_nodes, 2), np.int64))
        for level in range(DEPTH):
            nodes = tree.open or [0]
            growing.grow(tree, growth.sums(), self.search, self.rules, SCALE)
            if level + 1 < DEPTH:
                kinds = tree.kinds
                growth.split([tree.split(v) if kinds[v] == SPLIT else None for v in nodes])
        growing.finish(tree)
        columns, lefts, sides, weights = tree.routes(self.grid)
        loops().add_leaves(self.bins, columns, lefts, sides, weights, self.margins[0])


def _peer(subject: Subject) -> Callable[[], object]:
    """One iteration of XGBoost's ``hist`` on one thread."""
    import xgboost

    data = xgboost.QuantileDMatrix(subject.columns, subject.target, max_bin=BINS, nthread=1)
    options = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_bin": BINS,
        "max_depth": DEPTH,
        "base_score": 0.5,
        "nthread": 1,
    }
    booster, done = xgboost.Booster(options, [data]), iter(range(1 << 20))
    return lambda: booster.update(data, next(done))


def seconds(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Least processor seconds of each, measured in turns after one that warms up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            found[name].append(time.process_time() - began)
    return {name: min(values[1:]) for name, values in found.items()}


def report(quick: bool = False) -> str:
    """The table."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows = 20_000 if quick else 1_000_000
    subject = Subject(rows)
    found = seconds(
        {
            "histogram of all rows": subject.histogram,
            "tree of exact sums": subject.tree,
            "XGBoost's tree": _peer(subject),
        }
    )
    lines = [
        [name, f"{1000 * spent:.1f}", f"{spent / rows / COLUMNS * 1e9:.2f}"]
        for name, spent in found.items()
    ]
    head = (f"{rows:,} rows, {COLUMNS} columns, {BINS} bins, depth {DEPTH}", "ms", "ns a cell")
    ratio = found["tree of exact sums"] / found["XGBoost's tree"]
    return f"{markdown(head, lines)}\nA tree takes {ratio:.2f} times XGBoost's time."


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20,000 rows")
    print(report(parser.parse_args().quick))


if __name__ == "__main__":
    main()
