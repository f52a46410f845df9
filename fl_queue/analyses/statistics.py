"""
Statistics of tables: rows, missing cells, means, standard deviations, quantiles, counts, correlations, survival.

The first step counts and sums; where quantiles are asked for, a second one counts cells that the first has chosen.
Of each step the state keeps the sum. Counts of few rows are withheld or joined by each site, see ``suppression``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_queue.analyses import (
    cells,
    exact_digits,
    statistics_result,
    survival,
    telling_sums,
    vocabulary,
)
from fl_queue.analyses.base import (
    MAX_ROUNDING,
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
from fl_queue.analyses.differencing import Grouping
from fl_queue.analyses.exact_digits import PRODUCTS, VALUES
from fl_queue.analyses.filters import Condition
from fl_queue.analyses.questions import Questions
from fl_queue.analyses.statistics_result import ROUNDING
from fl_queue.analyses.suppression import Mask, withheld, without_few
from fl_queue.analyses.time_grids import Curve
from fl_queue.errors import DataError, MessageError, PolicyRefusal
from fl_queue.protocol.arrays import Float64s, Int64s

#: Levels beside those of the config: any other text, and a missing cell.
MORE_LEVELS = 2
#: Sum and sum of squares of numbers of so few values are counts of rows: of 0, 1 and 2 both others follow.
_COUNTED = 3

_Words = dict[str, Int64s]


class Statistics(Analysis):
    """The task ``statistics``."""

    @cached_property
    def asked(self) -> Questions:
        """What is asked. Raises ConfigError."""
        return Questions.of_options(self.options)

    @property
    def columns(self) -> Columns:
        """Columns of numbers, and categories with their levels."""
        timed = (name for curve in self.asked.curves for name in (curve.time, curve.event))
        numbers = tuple(dict.fromkeys((*self.asked.numbers, *self.asked.correlated, *timed)))
        filters = tuple(dict.fromkeys(one.column for one in self.where))
        return Columns(numbers, self.asked.levels, self.asked.dates, self.asked.named, filters)

    @property
    def where(self) -> tuple[Condition, ...]:
        """Of ``task.where``."""
        return self.asked.where

    @property
    def steps(self) -> int:
        """One; two with quantiles."""
        return 2 if self.asked.quantiles else 1

    @property
    def state_size(self) -> int:
        """The number of the step, and the sums of both."""
        cells_size = len(self.asked.numbers) * cells.MAX_CELLS if self.steps == 2 else 0
        return 1 + self.first.size + self._second([0] * len(self.asked.numbers)).size + cells_size

    def questions(self) -> Sequence[str]:
        """A line for each question."""
        asked = self.asked
        found = []
        if asked.numbers:
            found.append(f"numbers {', '.join(asked.numbers)}")
        if asked.quantiles:
            found.append(f"quantiles of {', '.join(asked.numbers)}")
        found += [f"levels of {name}" for name in asked.levels]
        found += [f"{number} by {category}" for number, category in asked.groups]
        found += [f"table of {left} by {right}" for left, right in asked.tables]
        if asked.correlated:
            found.append(f"correlation of {', '.join(asked.correlated)}")
        found += [f"names of the levels of {name}" for name in asked.named]
        found += [curve.question for curve in asked.curves]
        where = " and ".join(one.text for one in asked.where)
        return [f"{one} where {where}" for one in found] if where else found

    def groupings(self) -> Sequence[Grouping]:
        """Of each category and table as it is counted, of each number by level, and of the rows without a gap."""
        levels, whole = self.asked.levels, self.asked.correlated
        where = tuple(one.text for one in self.where)
        found = [
            *(Grouping("", name, tuple(listed)) for name, listed in levels.items()),
            *(Grouping(number, "", ()) for number in self.asked.numbers),
            *(Grouping(number, "", whole) for number in whole),
            *(Grouping(number, name, tuple(levels[name])) for number, name in self.asked.groups),
            *(
                Grouping("", left, tuple(levels[left]), ((right, tuple(levels[right])),))
                for left, right in self.asked.tables
            ),
        ]
        # Of all rows, the count of them is no group of any.
        found += [Grouping("", "", ())] if where else []
        return [replace(one, where=where) for one in found]

    def curves(self) -> Sequence[Curve]:
        """The questions about survival."""
        return self.asked.curves

    # The words

    def size_of(self, category: str) -> int:
        """Levels of a category, with those of other texts and of missing cells."""
        return len(self.asked.levels[category]) + MORE_LEVELS

    @cached_property
    def first(self) -> Layout:
        """The words of the first step."""
        return Layout(self._first_blocks())

    def _first_blocks(self) -> Iterator[Block]:
        asked = self.asked
        yield flags("sites", 1)
        yield Block(ROUNDING, (1,), 0, MAX_ROUNDING)
        yield counts("rows", 1)
        for name in asked.numbers:
            yield counts(f"present of {name}", 1)
            yield flags(f"withheld of {name}", 1)
            yield digits(f"sum of {name}", VALUES.words)
            yield digits(f"squares of {name}", PRODUCTS.words)
            if asked.quantiles:
                yield counts(f"coarse cells of {name}", cells.COARSE)
        for name in asked.levels:
            yield counts(f"levels of {name}", self.size_of(name))
            yield flags(f"withheld levels of {name}", self.size_of(name))
            yield flags(f"few rows of {name}", 1)
        for number, category in asked.groups:
            name, size = f"{number} by {category}", self.size_of(category)
            yield counts(f"present of {name}", size)
            yield flags(f"withheld of {name}", size)
            yield digits(f"sum of {name}", size, VALUES.words)
            yield digits(f"squares of {name}", size, PRODUCTS.words)
        for left, right in asked.tables:
            shape = (self.size_of(left), self.size_of(right))
            yield counts(f"table of {left} by {right}", *shape)
            yield flags(f"withheld of {left} by {right}", *shape)
        if p := len(asked.correlated):
            yield counts("present of correlation", 1)
            yield flags("withheld of correlation", 1)
            yield digits("sums of correlation", p, VALUES.words)
            yield digits("products of correlation", p * (p + 1) // 2, PRODUCTS.words)
        for curve in asked.curves:
            yield from survival.blocks(curve)
        for name in asked.named:
            yield vocabulary.block(f"names of {name}")

    def _second(self, sizes: Sequence[int]) -> Layout:
        """The words of the second step. Args: ``sizes``: cells of each column of numbers."""
        blocks = [flags("sites", 1)]
        if self.steps == 2:
            for name, size in zip(self.asked.numbers, sizes, strict=True):
                blocks += [
                    flags(f"withheld of {name}", 1),
                    counts(f"moved of {name}", 1),
                    counts(f"cells of {name}", size),
                ]
        return Layout(blocks)

    def fine_cells(self, state: Int64s) -> list[cells.FineCells]:
        """The cells of the second step, of each column of numbers."""
        total = self.first_total(state)
        return [
            cells.FineCells.of_counts(self.first.view(total, f"coarse cells of {name}"))
            for name in self.asked.numbers
        ]

    def second(self, state: Int64s) -> Layout:
        """The words of the second step, once the first has been summed."""
        return self._second([len(found) for found in self.fine_cells(state)])

    def layout(self, state: Int64s) -> Layout:
        """The words of the step after a state."""
        step = int(self.state_of(state)[0])
        if not 0 <= step < self.steps:
            raise MessageError(f"no step follows step {step}")
        return self.second(state) if step else self.first

    # A site

    def local(self, state: Int64s, table: SiteRows, limits: Limits) -> Int64s:
        """A site's vector of the step after a state."""
        limits.check_rows(table.rows)
        layout = self.layout(state)
        for name in self.columns.numbers:
            values = table.numbers[name]
            if not exact_digits.are_summable(values[~np.isnan(values)]):
                raise DataError(
                    "table",
                    f"column {name}: values outside 2**-64 .. 2**64; scale it",
                    public=True,
                )
        if layout is self.first:
            return layout.packed(self._first_words(table, limits))
        return layout.packed(self._cell_words(state, table, limits))

    def _first_words(self, table: SiteRows, limits: Limits) -> _Words:
        """The words of the first step, its counts rounded as the site has it."""
        if limits.round_to and (self.asked.quantiles or self.asked.curves):
            what = "quantiles" if self.asked.quantiles else "survival curves"
            raise PolicyRefusal(f"it rounds its counts (round), and {what} need exact ones")
        words = _FirstStep(self, table, limits).words()
        rounded = {
            block.name: limits.rounded(words[block.name])
            for block in self.first.blocks
            if block.is_count
        }
        # After the rounding: this one has what it is rounded to.
        return {**words, **rounded, ROUNDING: _one(limits.round_to)}

    def _cell_words(self, state: Int64s, table: SiteRows, limits: Limits) -> _Words:
        words: _Words = {"sites": _one(1)}
        for name, fine in zip(self.asked.numbers, self.fine_cells(state), strict=True):
            values = table.numbers[name]
            found = cells.keys(values[~np.isnan(values)])
            is_withheld = 0 < len(found) < limits.min_cell
            shown = found[:0] if is_withheld else cells.placed(found, limits.min_cell)
            words |= {
                f"withheld of {name}": _one(int(is_withheld)),
                f"moved of {name}": _one(max(limits.min_cell - 1, 0)),
                f"cells of {name}": fine.counts(shown),
            }
        return words

    # The aggregator

    def advance(self, state: Int64s, total: Int64s) -> Int64s:
        """The state with the sum of its next step."""
        layout = self.layout(state)
        start = 1 + self.first.size if state[0] else 1
        after = state.copy()
        after[start : start + layout.size] = layout.carried(total)
        after[0] += 1
        return after

    def first_total(self, state: Int64s) -> Int64s:
        """The sum of the first step."""
        return state[1 : 1 + self.first.size]

    def second_total(self, state: Int64s) -> Int64s:
        """The sum of the second step."""
        start = 1 + self.first.size
        return state[start : start + self.second(state).size]

    def result(self, state: Int64s) -> dict[str, Any] | None:
        """The numbers that were asked for."""
        if int(self.state_of(state)[0]) < self.steps:
            return None
        return statistics_result.result(self, state)

    def site_result(self, state: Int64s, answers: Sequence[Int64s]) -> dict[str, Any]:
        """
        The same of one site alone: its quantiles lie in the cells that were chosen for all sites.

        Raises:
            MessageError: An answer is not of its step.
        """
        layouts = [self.first, self.second(state)]
        if not answers or any(
            words.shape != (layout.size,) for words, layout in zip(answers, layouts, strict=False)
        ):
            raise MessageError("an answer is not of its step")
        carried = [layout.carried(words) for words, layout in zip(answers, layouts, strict=False)]
        return statistics_result.site_result(self, state, carried)


def _one(value: int) -> Int64s:
    return np.array([value], np.int64)


class _FirstStep:
    """
    The first step at a site.

    Args:
        analysis: What is asked.
        table: The site's rows.
        limits: What it shows of them.
    """

    def __init__(self, analysis: Statistics, table: SiteRows, limits: Limits) -> None:
        self._analysis, self._asked = analysis, analysis.asked
        self._table, self._limits = table, limits
        #: Category -> codes in which levels of few rows are among the other texts.
        self._codes: dict[str, Int64s] = {}
        #: Category -> whether a level has few rows, or none.
        self._few: dict[str, bool] = {}
        for name, codes in table.codes.items():
            self._codes[name], self._few[name] = self._without_few(name, codes)
        #: Category -> levels whose counts are withheld.
        self._hidden: dict[str, Mask] = {}

    def _without_few(self, name: str, codes: Int64s) -> tuple[Int64s, bool]:
        """
        Codes in which levels of few rows count as other texts, so that no answer shows whether a rare one is there.

        Returns:
            The codes, and whether a level has few rows or none: the same for both.
        """
        listed, least = len(self._asked.levels[name]), self._limits.min_cell
        rows = np.bincount(codes, minlength=listed)[:listed]
        return without_few(codes, listed, least), bool((rows < least).any())

    def words(self) -> _Words:
        """The words of each block."""
        found: _Words = {"sites": _one(1), "rows": _one(self._table.rows)}
        parts: Mapping[str, Callable[[], _Words]] = {
            "levels": self._levels,
            "numbers": self._numbers,
            "groups": self._groups,
            "tables": self._tables,
            "correlation": self._correlation,
            "survival": self._survival,
            "vocabulary": self._names,
        }
        for part in parts.values():
            found |= part()
        return found

    def _levels(self) -> _Words:
        words: _Words = {}
        for name in self._asked.levels:
            found = np.bincount(self._codes[name], minlength=self._analysis.size_of(name)).astype(
                np.int64
            )
            mask = self._hidden[name] = withheld(found, self._limits.min_cell)
            words[f"levels of {name}"] = np.where(mask, 0, found)
            words[f"withheld levels of {name}"] = mask.astype(np.int64)
            words[f"few rows of {name}"] = _one(int(self._few[name]))
        return words

    def _names(self) -> _Words:
        """The names of levels with rows enough. Raises PolicyRefusal."""
        words: _Words = {}
        for name in self._asked.named:
            least, most = max(self._limits.min_cell, 1), self._limits.max_names
            if not most:
                raise PolicyRefusal("it shows no names of levels (name_levels)")
            rows = self._table.texts[name]
            found = [text for text, count in rows.items() if count >= least]
            if len(found) > most:
                raise PolicyRefusal(f"{name} has more levels than are shown (max_levels)")
            words[f"names of {name}"] = vocabulary.words_of(filter(vocabulary.can_be_named, found))
        return words

    def _numbers(self) -> _Words:
        words: _Words = {}
        for name in self._asked.numbers:
            values = self._table.numbers[name]
            words |= self._moments(name, values, np.zeros(len(values), np.intp), 1)
            if self._asked.quantiles:
                found = cells.keys(values[~np.isnan(values)])
                least = self._limits.min_cell
                shown = found[:0] if len(found) < least else cells.placed(found, least)
                words[f"coarse cells of {name}"] = cells.coarse_counts(shown)
        return words

    def _groups(self) -> _Words:
        words: _Words = {}
        for number, category in self._asked.groups:
            values, codes = self._table.numbers[number], self._codes[category]
            words |= self._moments(
                f"{number} by {category}",
                values,
                codes.astype(np.intp),
                self._analysis.size_of(category),
                self._hidden[category],
            )
        return words

    def _moments(
        self,
        name: str,
        values: Float64s,
        places: npt.NDArray[np.intp],
        size: int,
        hidden: Mask | None = None,
    ) -> _Words:
        """Counts and sums of a column by group. Args: ``hidden``: groups that are withheld."""
        is_there = ~np.isnan(values)
        values, places = values[is_there], places[is_there]
        found = np.bincount(places, minlength=size).astype(np.int64)
        forced = telling_sums.by_group(values, places, size, self._limits)
        forced |= self._are_counts(values, places, size)
        if hidden is not None:
            forced |= hidden
        mask = withheld(found, self._limits.min_cell, forced)
        if size > 1:
            telling_sums.complete(mask, found, values, places, self._limits)
        shown = ~mask[:, None]
        sums = exact_digits.sums(values, places, size) * shown
        squares = exact_digits.product_sums(values, values, places, size) * shown
        return {
            f"present of {name}": np.where(mask, 0, found),
            f"withheld of {name}": mask.astype(np.int64),
            f"sum of {name}": sums,
            f"squares of {name}": squares,
        }

    def _are_counts(self, values: Float64s, places: npt.NDArray[np.intp], size: int) -> Mask:
        """Groups (size,) whose sums would show counts that are rounded elsewhere: of few different numbers."""
        if not self._limits.round_to:
            return np.zeros(size, np.bool_)
        pairs = np.unique(np.stack([places.astype(np.float64), values]), axis=1)
        different = np.bincount(pairs[0].astype(np.intp), minlength=size)
        return np.asarray(different <= _COUNTED)

    def _is_count(self, values: Float64s) -> bool:
        """The same of one group."""
        return bool(self._are_counts(values, np.zeros(len(values), np.intp), 1)[0])

    def _tables(self) -> _Words:
        words: _Words = {}
        for left, right in self._asked.tables:
            shape = (self._analysis.size_of(left), self._analysis.size_of(right))
            at = self._codes[left] * shape[1] + self._codes[right]
            found = np.bincount(at, minlength=shape[0] * shape[1]).astype(np.int64).reshape(shape)
            # A level whose count is withheld would follow from its cells.
            forced = self._hidden[left][:, None] | self._hidden[right][None, :]
            mask = withheld(found, self._limits.min_cell, forced)
            words[f"table of {left} by {right}"] = np.where(mask, 0, found)
            words[f"withheld of {left} by {right}"] = mask.astype(np.int64)
        return words

    def _correlation(self) -> _Words:
        names = self._asked.correlated
        if not names:
            return {}
        columns = np.stack([self._table.numbers[name] for name in names])
        is_whole: Mask = np.asarray(~np.isnan(columns).any(axis=0))
        rows = int(is_whole.sum())
        mask = (
            self._are_few(rows, names, is_whole)
            or telling_sums.of_products(columns, is_whole, self._limits)
            or any(map(self._is_count, columns[:, is_whole]))
        )
        whole, places = columns[:, is_whole], np.zeros(rows, np.intp)
        sums = [exact_digits.sums(column, places, 1)[0] for column in whole]
        products = [
            exact_digits.product_sums(whole[i], whole[j], places, 1)[0]
            for i, j in combinations_with_replacement(range(len(names)), 2)
        ]
        return {
            "present of correlation": _one(0 if mask else rows),
            "withheld of correlation": _one(int(mask)),
            "sums of correlation": np.stack(sums) * int(not mask),
            "products of correlation": np.stack(products) * int(not mask),
        }

    def _survival(self) -> _Words:
        words: _Words = {}
        for curve in self._asked.curves:
            codes, hidden = self._codes.get(curve.category), self._hidden.get(curve.category)
            words |= survival.words(curve, self._table, codes, self._limits.min_cell, hidden)
        return words

    def _are_few(self, rows: int, names: Sequence[str], is_whole: Mask) -> bool:
        """
        Whether the rows without a gap are few, or the rest of a column is.

        The sums of a column over all of its rows are shown, too: their difference would be those of few rows.
        """
        least = self._limits.min_cell
        if 0 < rows < least:
            return True
        there = (~np.isnan(self._table.numbers[name]) for name in names)
        return any(0 < int(found.sum()) - rows < least for found in there)
