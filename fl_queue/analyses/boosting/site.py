"""A site's rows of a run of trees, and its words of each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from fl_queue.analyses import cells, exact_digits, telling_sums
from fl_queue.analyses.base import Limits, SiteRows
from fl_queue.analyses.boosting import coins, gradients
from fl_queue.analyses.boosting.gradients import MAX_SUM
from fl_queue.analyses.boosting.growth import Growth, Rows
from fl_queue.analyses.boosting.loops import loops
from fl_queue.analyses.boosting.nodes import SPLIT, Tree
from fl_queue.analyses.boosting.plan import CLASSES, Plan
from fl_queue.analyses.boosting.state import State
from fl_queue.errors import DataError, PolicyRefusal
from fl_queue.protocol.arrays import Float32s, Float64s, Int64s, Octets

Words = dict[str, Int64s]
_Mask = npt.NDArray[np.bool_]


def word(value: int) -> Int64s:
    """A block of one word."""
    return np.array([value], np.int64)


class Site:
    """
    The rows that have a target, and what was computed from them for the last step.

    Args:
        plan: The run's.
        table: The site's rows.
        limits: What it shows of them.

    Raises:
        PolicyRefusal: There are too few rows.
        DataError: A number cannot be used; names the column.
    """

    def __init__(self, plan: Plan, table: SiteRows, limits: Limits) -> None:
        self._plan, self.limits = plan, limits
        self._least = max(limits.min_cell, 1)
        targets, is_there = _targets(plan, table)
        self.targets = targets[is_there]
        #: In the table, of each row that has a target.
        self.places: Int64s = np.flatnonzero(is_there).astype(np.int64)
        self.dropped = int(table.rows - len(self.targets))
        self._numbers = [table.numbers[name][is_there] for name in plan.numbers]
        self._codes = [table.codes[name][is_there] for name in plan.levels]
        self._check_numbers()
        self._digests = coins.digests(self._bits(), len(self.targets))
        is_kept = coins.taken(
            self._digests, plan.rules.seed, coins.VALIDATION, plan.rules.validation
        )
        self.validation: Rows = np.flatnonzero(is_kept).astype(np.int32)
        self.training: Rows = np.flatnonzero(~is_kept).astype(np.int32)
        limits.check_rows(len(self.training))
        if 0 < len(self.validation) < self._least:
            raise PolicyRefusal("the rows of task.validation are fewer than its min_cell")
        self._fit: _Fit | None = None

    def _check_numbers(self) -> None:
        for name, values in zip(self._plan.numbers, self._numbers, strict=True):
            if not exact_digits.are_summable(values[~np.isnan(values)]):
                raise _unusable(name, "values outside 2**-64 .. 2**64; scale it")

    def _bits(self) -> Iterator[npt.NDArray[np.uint64]]:
        """The bits of each cell and of the target, column after column."""
        for values in self._numbers:
            keys = cells.keys(np.nan_to_num(values)).astype(np.uint64)
            yield np.where(np.isnan(values), np.uint64(1 << 32), keys)
        for codes in self._codes:
            yield codes.astype(np.uint64)
        yield (self.targets + 0.0).view(np.uint64)

    # The first two steps

    def coarse(self) -> Words:
        """
        Counts of the target and of coarse cells.

        Raises:
            PolicyRefusal: They would show few rows.
        """
        found = {
            "sites": word(1),
            "rows": word(len(self.training)),
            "validation rows": word(len(self.validation)),
            # A few rows without a target are not counted.
            "dropped": word(self.dropped if self.dropped >= self._least else 0),
        }
        found |= self._target()
        for name, keys in zip(self._plan.numbers, self._keys(), strict=True):
            found[f"coarse cells of {name}"] = cells.coarse_counts(keys)
        return found

    def _target(self) -> Words:
        targets, plan = self.targets[self.training], self._plan
        if plan.rules.objective in CLASSES:
            counts = np.bincount(targets.astype(np.int64), minlength=max(plan.rules.classes, 2))
            if np.any((counts > 0) & (counts < self._least)):
                raise PolicyRefusal(f"a class of {plan.target} has too few rows (min_cell)")
            return {"classes": counts.astype(np.int64)}
        places = np.zeros(len(targets), np.intp)
        if telling_sums.by_group(targets, places, 1, self.limits)[0]:
            raise PolicyRefusal(f"sums of {plan.target} would show few rows")
        return {
            "sum": exact_digits.sums(targets, places, 1)[0],
            "squares": exact_digits.product_sums(targets, targets, places, 1)[0],
        }

    def _keys(self) -> Iterator[cells.Keys]:
        """Keys under which the rows that are trained on are counted, of each column of numbers."""
        for values in self._numbers:
            trained = values[self.training]
            keys = cells.keys(trained[~np.isnan(trained)])
            few = len(keys) < self._least
            yield keys[:0] if few else cells.placed(keys, self._least)

    def fine(self, cuts: Sequence[Int64s]) -> Words:
        """Counts of fine cells. Args: ``cuts``: of each column of numbers."""
        found = {"sites": word(1)}
        for name, bits, keys in zip(self._plan.numbers, cuts, self._keys(), strict=True):
            found[f"cells of {name}"] = cells.FineCells.of_bits(bits).counts(keys)
        return found

    # The trees

    def grown(self, state: State) -> Words:
        """
        The words of a level: sums of gradients and hessians, and with the root's the losses before it.

        Raises:
            MessageError: The state has no trees that can be grown.
            PolicyRefusal: See ``Growth.sums``.
        """
        key = blake3(state.edge_words.tobytes()).digest()
        if self._fit is None or self._fit.key != (key, state.number("margin")):
            grid = state.grid
            bins = grid.binned(self._numbers, self._codes)
            self._fit = _Fit(self, state, (key, state.number("margin")), bins)
        return self._fit.words(state)

    def sample(self, iteration: int) -> Rows:
        """The rows of an iteration, of those that are trained on."""
        rules = self._plan.rules
        if rules.subsample >= 1:
            return self.training
        digests = self._digests[self.training]
        return self.training[coins.taken(digests, rules.seed, iteration, rules.subsample)]

    @property
    def least(self) -> int:
        """Fewest rows behind a number that is shown."""
        return self._least


class _Fit:
    """
    Rows in bins, their margins, and the trees that grow.

    Args:
        site: The rows.
        state: With the edges and the first margin.
        key: Of both.
        bins: (N, F) of the rows.
    """

    def __init__(self, site: Site, state: State, key: tuple[bytes, float], bins: Octets) -> None:
        self._site, self.key, self._bins = site, key, bins
        self._rules, self._grid = state.plan.rules, state.grid
        self._margin = np.float32(state.number("margin"))
        self._begin()

    def _begin(self) -> None:
        """No tree is there."""
        shape = (self._rules.classes, len(self._bins))
        self._margins: Float32s = np.full(shape, self._margin, np.float32)
        #: Words of the trees whose leaves are in the margins, iteration after iteration.
        self._added: list[bytes] = []
        self._forget()

    def _forget(self) -> None:
        """No tree grows."""
        self._growths: list[Growth] | None = None
        self._scale: int | None = None
        self._applied: list[bytes] = []

    def words(self, state: State) -> Words:
        """As ``Site.grown``."""
        self._add_leaves(state)
        nodes = sum(map(len, state.open))
        found: Words = {
            "rows": word(len(self._site.training)),
            "overflow": word(0),
            "sums": np.zeros((nodes, self._grid.cells, 2), np.int64),
        }
        if state["level"] == 0:
            found["sites"] = word(1)
            found["validation rows"] = word(len(self._site.validation))
            found["losses"] = np.zeros(2, np.int64)
        sums = self._sums(state) if nodes else found["sums"]
        losses = self._losses(state) if state["level"] == 0 else None
        if sums is None or (state["level"] == 0 and losses is None):
            found["overflow"] = word(1)
            return found
        found["sums"] = sums
        if losses is not None:
            found["losses"] = losses
        return found

    def _add_leaves(self, state: State) -> None:
        """Bring the margins to the trees that are finished: the same additions in the same order, whenever."""
        wanted = state["iteration"]
        known = [state.iteration_words(one).tobytes() for one in range(len(self._added))]
        if len(self._added) > wanted or known != self._added:
            self._begin()
        for iteration in range(len(self._added), wanted):
            for tree, margins in zip(state.trees(iteration), self._margins, strict=True):
                tree.check(self._grid)
                columns, lefts, sides, weights = tree.routes(self._grid)
                loops().add_leaves(self._bins, columns, lefts, sides, weights, margins)
            self._added.append(state.iteration_words(iteration).tobytes())
            self._forget()

    def _losses(self, state: State) -> Int64s | None:
        found = []
        for rows in (self._site.training, self._site.validation):
            margins, targets = self._margins[:, rows].T, self._site.targets[rows]
            total = gradients.loss(self._rules.objective, margins, targets, state["loss_scale"])
            if total is None:
                return None
            found.append(total)
        return np.array(found, np.int64)

    def _sums(self, state: State) -> Int64s | None:
        trees = state.trees(state["iteration"])
        levels = []
        for tree in trees:
            if state["level"]:
                tree.check(self._grid)
            levels.append(state.levels(tree))
        wanted = [_words(trees, [one[level] for one in levels]) for level in range(state["level"])]
        is_same = self._scale == state["scale"] and self._applied == wanted[: len(self._applied)]
        if self._growths is None or not is_same:
            self._forget()
            self._growths, self._scale = self._roots(state), state["scale"]
        if self._growths is None:
            return None
        for level in range(len(self._applied), state["level"]):
            for growth, tree, nodes in zip(self._growths, trees, levels, strict=True):
                kinds = tree.kinds
                growth.split([tree.split(v) if kinds[v] == SPLIT else None for v in nodes[level]])
            self._applied.append(wanted[level])
        found = np.concatenate([growth.sums() for growth in self._growths])
        return found if float(np.abs(found).max(initial=0)) <= MAX_SUM else None

    def _roots(self, state: State) -> list[Growth] | None:
        pair = gradients.integers(
            self._rules.objective, self._margins.T, self._site.targets, state["scale"]
        )
        if pair is None:
            return None
        rows = self._site.sample(state["iteration"])
        return [
            Growth(self._grid, self._bins, of_gradient, of_hessian, rows, self._site.least)
            for of_gradient, of_hessian in zip(*pair, strict=True)
        ]


def _words(trees: Sequence[Tree], nodes: Sequence[Sequence[int]]) -> bytes:
    """The words of nodes of each tree."""
    return b"".join(tree.words[list(of)].tobytes() for tree, of in zip(trees, nodes, strict=True))


def _targets(plan: Plan, table: SiteRows) -> tuple[Float64s, _Mask]:
    """The target of each row, and which rows have one. Raises DataError: it is none of the objective."""
    if plan.classes:
        codes = table.codes[plan.target]
        return codes.astype(np.float64), codes < len(plan.classes)
    values = table.numbers[plan.target]
    is_there = ~np.isnan(values)
    found, objective = values[is_there], plan.rules.objective
    if objective == "binary" and np.any((found != 0) & (found != 1)):
        raise _unusable(plan.target, "not all are 0 or 1, as objective binary wants")
    if objective == "poisson" and np.any((found < 0) | (found != np.rint(found))):
        raise _unusable(plan.target, "not all are whole numbers of 0 or more, as poisson wants")
    if not exact_digits.are_summable(found):
        raise _unusable(plan.target, "values outside 2**-64 .. 2**64; scale it")
    return values, is_there


def _unusable(column: str, reason: str) -> DataError:
    return DataError("table", f"column {column}: {reason}", public=True)
