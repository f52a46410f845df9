"""A fit for tests, registered only where ``ENVIRONMENT`` is: the mean of a column, by bounded steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fl_queue.analyses.base import Analysis, Block, Columns, Layout, Limits, SiteRows, counts
from fl_queue.common.options import Option
from fl_queue.config.analysis_catalog import FIT, AnalysisEntry
from fl_queue.errors import AnalysisError
from fl_queue.protocol.arrays import Float64s, Int64s

_HERE = Path(__file__).resolve().parent
#: With it each Python process knows the fit, by the ``sitecustomize`` of the first folder.
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(_HERE / "with_tiny_fit"), str(_HERE.parents[1])])}
#: A number of the grid is so many times its value.
SCALE = 2.0**20


class TinyFit(Analysis):
    """The task ``tiny-fit``: steps of at most ``task.bound`` until the mean is found."""

    is_fit = True

    @property
    def columns(self) -> Columns:
        """One column of numbers."""
        return Columns((self.options["column"],), {})

    @property
    def steps(self) -> int:
        """As the config has it."""
        return int(self.options["most"])

    @property
    def state_size(self) -> int:
        """Steps of this panel, its rows, the mean and the last step, as float64."""
        return 4

    @property
    def total_size(self) -> int:
        """Of each step."""
        return 2

    @property
    def parameters(self) -> int:
        """The mean."""
        return 1

    def questions(self) -> Sequence[str]:
        """One."""
        return (f"mean of {self.options['column']} by steps",)

    def layout(self, state: Int64s) -> Layout:
        """Rows, and the sum of their distances from the mean."""
        self.state_of(state)
        return Layout([counts("rows", 1), Block("sum", (1,), -(1 << 52), 1 << 52)])

    def local(self, state: Int64s, table: SiteRows, limits: Limits) -> Int64s:
        """Each row is rounded once."""
        column = table.numbers[self.options["column"]]
        ready = table.scratch.setdefault("ready", column[~np.isnan(column)])
        limits.check_rows(len(ready))
        apart = np.rint((ready - mean_of(state)) * SCALE).astype(np.int64)
        words = {"rows": np.array([len(ready)]), "sum": np.array([apart.sum()])}
        return self.layout(state).packed(words)

    def advance(self, state: Int64s, total: Int64s) -> Int64s:
        """Go towards the mean; of fewer rows the panel is another one, whose steps are counted anew."""
        rows, apart = (int(word) for word in total)
        step = 1 + (int(state[0]) if rows == state[1] else 0)
        if step == self.options["fails_at"]:
            raise AnalysisError(f"column {self.options['column']} has no mean, as the test wishes")
        bound = self.options["bound"]
        change = min(max(apart / rows / SCALE, -bound), bound)
        return np.array([step, rows, *_words([mean_of(state) + change, change])], np.int64)

    def result(self, state: Int64s) -> dict[str, Any] | None:
        """The mean, once a step is short."""
        change = float(state.view(np.float64)[3])
        if not state[0] or abs(change) > 1e-5:
            return None
        return {"rows": int(state[1]), "mean": mean_of(state), "steps": int(state[0])}


def mean_of(state: Int64s) -> float:
    """The mean so far."""
    return float(state.view(np.float64)[2])


def _words(values: Sequence[float]) -> Int64s:
    floats: Float64s = np.array(values, np.float64)
    return floats.view(np.int64)


def entry() -> AnalysisEntry:
    """The fit as an analysis of the catalog."""
    return AnalysisEntry(
        TinyFit,
        "the mean of a column by steps",
        {
            **FIT,
            "file": Option("str", "table.csv", "file name in each site's data folder"),
            "column": Option("str", "age", "column of numbers"),
            "most": Option("int", 40, "largest number of steps", low=1),
            "bound": Option("float", 10.0, "longest step"),
            "fails_at": Option("int", 0, "step that ends the run; 0: none", low=0),
        },
        lambda options: None,
    )
