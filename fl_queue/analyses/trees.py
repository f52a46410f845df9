"""
Boosted trees: histograms of all sites' rows are added, and the trees are those of the pooled table.

The first two steps count cells of the columns, which makes the bins, and the target. Then each step is a level of the
trees of one iteration: a site sends sums of gradients and hessians by bin and node, the aggregator splits the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from fl_queue.analyses import cells, exact_digits
from fl_queue.analyses.base import (
    Analysis,
    Block,
    Columns,
    Layout,
    Limits,
    SiteRows,
    counts,
    digits,
    flags,
)
from fl_queue.analyses.boosting import gradients, growing, plan, summary
from fl_queue.analyses.boosting.gradients import MAX_SUM
from fl_queue.analyses.boosting.grid import edges_of_counts
from fl_queue.analyses.boosting.plan import CLASSES, Plan
from fl_queue.analyses.boosting.site import Site
from fl_queue.analyses.boosting.splits import SplitSearch
from fl_queue.analyses.boosting.state import COARSE, DONE, FINE, GROW, MAX_COARSER, State
from fl_queue.analyses.differencing import ALL, Grouping
from fl_queue.errors import AnalysisError, MessageError
from fl_queue.protocol.arrays import Int64s

#: Bits of which a grid is made coarser.
_COARSER = 8
#: A standard deviation of fewer units of the grid is not resolved.
_RESOLVED = 1 << 10
#: Nor is one of fewer units in the last place of the first margin.
_MARGINS = 1 << 6


def _unit(margin: float) -> float:
    """In the last place of a margin, which is a float32 as XGBoost's are."""
    return float(np.spacing(np.float32(abs(margin))))


class Trees(Analysis):
    """The task ``trees``."""

    is_fit = True
    #: Histograms of all levels are more numbers than a table has; a site's policy lets trees be grown, or not.
    has_budget = False

    @cached_property
    def plan(self) -> Plan:
        """What is grown. Raises ConfigError."""
        return plan.Plan.of_options(self.options)

    @property
    def columns(self) -> Columns:
        """Those that trees split on, and the target."""
        found = self.plan
        if found.classes:
            return Columns(found.numbers, {**found.levels, found.target: found.classes})
        return Columns((*found.numbers, found.target), found.levels)

    @property
    def steps(self) -> int:
        """Two, one for each level of each tree, the last losses, and those that are made again."""
        rules = self.plan.rules
        return 3 + (rules.trees + MAX_COARSER) * rules.max_depth

    @property
    def state_size(self) -> int:
        """Of all trees that there may be."""
        return State.size(self.plan)

    @property
    def total_size(self) -> int:
        """Words of both steps of cells, or of a level with as many nodes as it may have."""
        numbers = len(self.plan.numbers)
        coarse, fine = Layout(self._coarse()).size, 1 + numbers * cells.MAX_CELLS
        nodes = self.plan.rules.classes << (self.plan.rules.max_depth - 1)
        return max(coarse, fine, 6 + 2 * nodes * self.plan.most_cells)

    def questions(self) -> Sequence[str]:
        """One: the trees."""
        found = self.plan
        return [f"trees for {found.target} of {', '.join(found.names)}"]

    def groupings(self) -> Sequence[Grouping]:
        """Of each number the rows that have a target, too; of each category its levels as they are listed."""
        target = self.plan.target
        whole = [Grouping(name, "", (ALL, target)) for name in self.columns.numbers]
        listed = self.columns.categories.items()
        return (*whole, *(Grouping("", name, levels) for name, levels in listed))

    def row_sets(self, table: SiteRows) -> Sequence[Int64s]:
        """The rows that are trained on, if others are held out."""
        site: Site | None = table.scratch.get("trees")
        if site is None or not len(site.validation):
            return ()
        return (site.places[site.training],)

    # The words

    def _state(self, words: Int64s) -> State:
        found = State(self.plan, self.state_of(words))
        found.check()
        return found

    def layout(self, state: Int64s) -> Layout:
        """The words of the step after a state."""
        found = self._state(state)
        if found["phase"] == DONE:
            raise MessageError("no step follows the last one")
        if found["phase"] == COARSE:
            return Layout(self._coarse())
        if found["phase"] == FINE:
            return Layout(self._fine(found))
        return Layout(_level(found))

    def _coarse(self) -> Iterator[Block]:
        found = self.plan
        yield flags("sites", 1)
        yield counts("rows", 1)
        yield counts("validation rows", 1)
        yield counts("dropped", 1)
        if found.rules.objective in CLASSES:
            yield counts("classes", max(found.rules.classes, 2))
        else:
            yield digits("sum", exact_digits.VALUES.words)
            yield digits("squares", exact_digits.PRODUCTS.words)
        for name in found.numbers:
            yield counts(f"coarse cells of {name}", cells.COARSE)

    def _fine(self, state: State) -> Iterator[Block]:
        yield flags("sites", 1)
        for name, bits in zip(self.plan.numbers, state.cuts, strict=True):
            yield counts(f"cells of {name}", len(cells.FineCells.of_bits(bits)))

    # A site

    def local(self, state: Int64s, table: SiteRows, limits: Limits) -> Int64s:
        """A site's vector of the step after a state."""
        limits.check_rows(table.rows)
        found, layout = self._state(state), self.layout(state)
        site: Site | None = table.scratch.get("trees")
        if site is None or site.limits != limits:
            site = table.scratch["trees"] = Site(self.plan, table, limits)
        if found["phase"] == COARSE:
            return layout.packed(site.coarse())
        if found["phase"] == FINE:
            return layout.packed(site.fine(found.cuts))
        return layout.packed(site.grown(found))

    # The aggregator

    def advance(self, state: Int64s, total: Int64s) -> Int64s:
        """The state with the bins, or with one level more."""
        layout, after = self.layout(state), self._state(state).copy()
        total = layout.carried(total)
        after["steps"] += 1
        if after["phase"] == COARSE:
            self._set_base(after, layout, total)
        elif after["phase"] == FINE:
            self._set_edges(after, layout, total)
        else:
            _Level(after, layout, total).advance()
        return after.words

    def _set_base(self, after: State, layout: Layout, total: Int64s) -> None:
        """Read the target, and cut the cells."""
        after["sites"] = int(layout.view(total, "sites")[0])
        after["rows"] = rows = int(layout.view(total, "rows")[0])
        after["validation_rows"] = int(layout.view(total, "validation rows")[0])
        after["dropped"] = int(layout.view(total, "dropped")[0])
        if rows == 0:
            raise AnalysisError(f"task.target: no row has a value of {self.plan.target}")
        mean, spread = self._target(layout, total, rows)
        objective = self.plan.rules.objective
        score, margin = gradients.base(objective, mean)
        after.set_number("score", score)
        after.set_number("margin", margin)
        bounds = {
            "binary": (1.0, 8.0),
            "multi": (2.0, 16.0),
            "squared": (4.0 * spread, 16.0 * spread * spread),
            "poisson": (16.0 * max(1.0, mean), 64.0 * max(1.0, mean)),
        }
        bound, of_loss = bounds[objective]
        after["scale"] = gradients.grid_scale(rows, bound)
        after["loss_scale"] = gradients.grid_scale(rows, of_loss)
        least = max(_RESOLVED * 2.0 ** -after["scale"], _MARGINS * _unit(margin))
        if objective == "squared" and spread < least:
            raise AnalysisError(
                f"task.target: {self.plan.target} varies too little beside its mean; "
                "subtract about the mean, or scale it"
            )
        names = self.plan.numbers
        after.set_cuts(
            [cells.cut_bits(layout.view(total, f"coarse cells of {name}")) for name in names]
        )
        after["phase"] = FINE

    def _target(self, layout: Layout, total: Int64s, rows: int) -> tuple[float, float]:
        """Mean and standard deviation of the target over all sites."""
        target = self.plan.target
        if self.plan.rules.objective in CLASSES:
            found = layout.view(total, "classes")
            if np.count_nonzero(found) < 2:
                raise AnalysisError(f"task.target: {target} has one class over all sites")
            mean = int(found[1]) / rows
            return mean, math.sqrt(mean * (1 - mean))
        first = exact_digits.value_of(layout.view(total, "sum"), exact_digits.VALUES) / rows
        second = exact_digits.value_of(layout.view(total, "squares"), exact_digits.PRODUCTS) / rows
        if second == first * first:
            raise AnalysisError(f"task.target: {target} has one value over all sites")
        return float(first), math.sqrt(second - first * first)

    def _set_edges(self, after: State, layout: Layout, total: Int64s) -> None:
        """Choose the edges of the bins."""
        edges = []
        for name, bits in zip(self.plan.numbers, after.cuts, strict=True):
            rows = layout.view(total, f"cells of {name}")
            is_filled = rows > 0
            lows = cells.FineCells.of_bits(bits).lows
            edges.append(edges_of_counts(lows[is_filled], rows[is_filled], self.plan.rules.max_bin))
        after.set_edges(edges)
        after["phase"] = GROW

    def is_done(self, state: Int64s) -> bool:
        """Whether the trees are grown."""
        return self._state(state)["phase"] == DONE

    def result(self, state: Int64s) -> dict[str, Any] | None:
        """What was grown, its losses, and what each column gains."""
        found = self._state(state)
        return summary.summary(found) if found["phase"] == DONE else None

    def model(self, state: Int64s) -> dict[str, Any]:
        """The trees as the JSON that XGBoost reads. Raises MessageError: they still grow."""
        if not self.is_done(state):
            raise MessageError("the trees still grow")
        return summary.model(self._state(state)).to_json()


def _level(state: State) -> Iterator[Block]:
    """The words of a level."""
    nodes, most = sum(map(len, state.open)), int(MAX_SUM)
    yield counts("rows", 1)
    yield flags("overflow", 1)
    if state["level"] == 0:
        yield flags("sites", 1)
        yield counts("validation rows", 1)
        yield Block("losses", (2,), -most, most)
    yield Block("sums", (nodes, state.grid.cells, 2), -most, most)


class _Level:
    """
    A level's sum.

    Args:
        after: The state, which is changed.
        layout: Of the words.
        total: Their sum.
    """

    def __init__(self, after: State, layout: Layout, total: Int64s) -> None:
        self._after, self._rules = after, after.plan.rules
        self._rows = int(layout.view(total, "rows")[0])
        self._overflow = int(layout.view(total, "overflow")[0])
        self._sums = layout.view(total, "sums")
        self._losses = layout.view(total, "losses") if after["level"] == 0 else None
        self._panel = {
            field: int(layout.view(total, name)[0])
            for field, name in (("sites", "sites"), ("validation_rows", "validation rows"))
            if self._losses is not None
        }

    def advance(self) -> None:
        """
        Split the nodes of the level.

        A sum that does not fit its grid, or of other sites than the tree has begun with, begins the tree anew.

        Raises:
            AnalysisError: The sums do not fit any grid.
        """
        after = self._after
        if self._overflow:
            self._begin_anew()
            after["coarser"] += 1
            after["scale"] -= _COARSER
            after["loss_scale"] -= _COARSER
            if after["coarser"] > MAX_COARSER:
                raise AnalysisError(
                    f"task.eta: sums grow beyond all bounds at tree {after['iteration'] + 1}; lower it"
                )
            return
        if after["level"] and self._rows != after["rows"]:
            self._begin_anew()
            return
        if self._losses is not None:
            self._note_panel()
            self._note_losses(self._losses)
            if self._is_last():
                after["phase"] = DONE
                return
        self._split()

    def _begin_anew(self) -> None:
        after = self._after
        if after["iteration"] < self._rules.trees:
            after.iteration_words(after["iteration"])[:] = 0
        after["level"] = 0

    def _note_panel(self) -> None:
        """Note whose rows the losses are of; those of other rows are not compared with them."""
        after, found = self._after, {"rows": self._rows, **self._panel}
        if any(after[field] != value for field, value in found.items()):
            after["best"] = after["iteration"]
        for field, value in found.items():
            after[field] = value

    def _note_losses(self, sums: Int64s) -> None:
        after = self._after
        rows = (after["rows"], after["validation_rows"])
        unit = 2.0 ** -after["loss_scale"]
        iteration = after["iteration"]
        found = [float(one) * unit / of if of else 0.0 for one, of in zip(sums, rows, strict=True)]
        after.losses[iteration] = found
        watched = 1 if self._rules.validation else 0
        if iteration == after["best"] or found[watched] < after.losses[after["best"], watched]:
            after["best"] = iteration

    def _is_last(self) -> bool:
        after, patience = self._after, self._rules.patience
        waited = after["iteration"] - after["best"]
        return after["iteration"] == self._rules.trees or 0 < patience <= waited

    def _split(self) -> None:
        after, rules = self._after, self._rules
        search = SplitSearch(after.grid, rules, after["scale"])
        trees, start = after.trees(after["iteration"]), 0
        for tree, nodes in zip(trees, after.open, strict=True):
            of_tree = self._sums[start : start + len(nodes)]
            growing.grow(tree, of_tree, search, rules, after["scale"])
            start += len(nodes)
        after["level"] += 1
        if after["level"] < rules.max_depth and any(tree.open for tree in trees):
            return
        for tree in trees:
            growing.finish(tree)
        after["level"] = 0
        after["iteration"] += 1
