"""
Differences between a site's answers: whether a question, and those before it, show a few rows together.

Each answer has rows enough by itself. Sums are exact, so what two of them differ by is the sum of the rows between.
No Redis and no torch here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from fl_queue.analyses import survival
from fl_queue.analyses.base import Analysis, Limits
from fl_queue.analyses.differencing import ALL, Grouping, isolates_few, nested
from fl_queue.analyses.suppression import Mask, without_few
from fl_queue.analyses.telling_sums import is_telling
from fl_queue.analyses.time_grids import Curve
from fl_queue.client import table_file
from fl_queue.client.table_file import ReadTable
from fl_queue.errors import DataError, PolicyRefusal
from fl_queue.protocol.arrays import Float64s, Int64s


def check(
    analysis: Analysis,
    read: ReadTable,
    limits: Limits,
    groupings: Collection[Grouping],
    curves: Collection[Curve],
) -> None:
    """
    Refuse a question that shows a few rows together with an earlier one, or with another part of itself.

    Args:
        analysis: What is asked.
        read: The table, with the texts of all columns that decide about groups.
        limits: What the site shows of it.
        groupings, curves: Of earlier questions.

    Raises:
        PolicyRefusal: It does; names the question, and no group.
        DataError: A time or an event cannot be used.
    """
    asked_for = {*analysis.groupings()}
    rows = _rows(
        read, asked_for | {one for one in groupings if read.texts.keys() >= {*one.columns}}
    )
    known = {one for one in groupings if one.where in rows and read.texts.keys() >= {*one.columns}}
    timed = {one for one in curves if read.texts.keys() >= {one.time, one.event}}
    asked = _Asked(read, limits, asked_for, {*analysis.curves()}, known, timed, rows)
    asked.check_groups()
    asked.check_values()
    asked.check_curves({*curves})
    asked.check_times()


def _rows(read: ReadTable, groupings: Collection[Grouping]) -> dict[tuple[str, ...], Mask]:
    """Rows that meet the conditions of each; without those that are about a column of another kind, of another file."""
    found = {}
    for one in groupings:
        if one.where not in found:
            with suppress(DataError):
                found[one.where] = table_file.rows_of(one.conditions, read.texts, read.whole.rows)
    return found


@dataclass(frozen=True)
class _Asked:
    """
    A question beside earlier ones.

    Args:
        read, limits: As of ``check``.
        groupings, curves: What is asked.
        known, timed: Groupings and curves of earlier questions whose columns are there.
        rows: Of each ``where`` the rows that meet it.
    """

    read: ReadTable
    limits: Limits
    groupings: set[Grouping]
    curves: set[Curve]
    known: set[Grouping]
    timed: set[Curve]
    rows: Mapping[tuple[str, ...], Mask]

    def check_groups(self) -> None:
        """Raise PolicyRefusal if a group lies within another, with a few rows between them."""
        for one in sorted(self.groupings, key=repr):
            for other in sorted(self.groupings | self.known, key=repr):
                if one.is_compared(other) and self._differ_by_few(one, other):
                    raise PolicyRefusal(
                        f"{_named(one)}, and what was asked before or with it, differ by too few rows (min_cell)"
                    )

    def check_values(self) -> None:
        """
        Raise PolicyRefusal if the sum of a column, and counts of its values, show a few rows.

        Value times count, of each level that is shown, is a part of the sum: the rest is the sum of all other rows.
        """
        for one in sorted(self.groupings | self.known, key=repr):
            name = one.category
            is_new = one in self.groupings or name in self._summed(one.where, is_new=True)
            if one.number or one.is_table or not name or not is_new:
                continue
            if name not in self._summed(one.where):
                continue
            rest = self.read.texts[name].numbers[self._codes(one) == len(one.levels)]
            if self._are_few(rest):
                raise PolicyRefusal(
                    f"the sum of {name} and its levels, asked before or with it, differ by too few rows (min_cell)"
                )

    def _summed(self, where: tuple[str, ...] = (), *, is_new: bool = False) -> set[str]:
        """Columns of numbers whose sums over these rows are shown. Args: ``is_new``: by this question."""
        every = self.groupings if is_new else self.groupings | self.known
        found = (one for one in every if one.where == where)
        return {one.number for one in found if one.number not in dict(one.listed)} - {""}

    def check_curves(self, curves: Collection[Curve]) -> None:
        """Raise PolicyRefusal if counts of times, and those of this or an earlier question, differ by a few rows."""
        for one in sorted(self.curves, key=repr):
            for other in sorted({*self.curves, *curves}, key=repr):
                if not one.is_compared(other):
                    continue
                codes = [self._curve_codes(curve) for curve in (one, other)]
                least = self.limits.min_cell
                if survival.differ_by_few(one, other, self.read.whole, codes, least):
                    raise PolicyRefusal(_about_times(one))

    def check_times(self) -> None:
        """
        Raise PolicyRefusal if intervals of a curve, and levels or sums of its column of times, show a few rows.

        Of each interval the rows that no listed level counts have to be enough, with and without the event, in each of
        the curve's groups; and so have those whose time no interval shows, where the sum of all times is shown.
        """
        for curve in sorted(self.curves | self.timed, key=repr):
            is_new = curve in self.curves
            for one in sorted(self.groupings | self.known, key=repr):
                is_level = one.category == curve.time and (is_new or one in self.groupings)
                if is_level and self._splits_intervals(curve, one):
                    raise PolicyRefusal(_about_times(curve))
            is_summed = curve.time in self._summed(is_new=not is_new)
            if is_summed and self._are_few(self._untold_times(curve)):
                raise PolicyRefusal(_about_times(curve))

    def _splits_intervals(self, curve: Curve, levels: Grouping) -> bool:
        """Whether few rows of an interval are listed, or not listed, among levels of the times."""
        times, events, codes = self._timed_rows(curve)
        is_listed = self._codes(levels) < len(levels.levels)
        there = ~np.isnan(times)
        places = np.searchsorted(curve.points, times)
        kinds = np.stack([places, np.nan_to_num(events, nan=-1.0), codes, is_listed])[:, there]
        rows = np.unique(kinds, axis=1, return_counts=True)[1]
        return bool((rows < self.limits.min_cell).any())

    def _untold_times(self, curve: Curve) -> Float64s:
        """Times that no interval shows: those of rows without an event's value, and of intervals with several times."""
        times, events, _ = self._timed_rows(curve)
        is_counted = ~(np.isnan(times) | np.isnan(events))
        untold = times[~np.isnan(times) & np.isnan(events)]
        counted = np.sort(times[is_counted])
        if not len(counted):
            return untold
        starts = np.flatnonzero(np.diff(np.searchsorted(curve.points, counted), prepend=-1))
        ends = np.append(starts[1:], len(counted))
        is_told = (counted[starts] == counted[ends - 1]) & (counted[starts] <= curve.points[-1])
        return np.concatenate([untold, counted[~np.repeat(is_told, ends - starts)]])

    def _timed_rows(self, curve: Curve) -> tuple[Float64s, Float64s, Int64s]:
        """Of each row its time and its event, NaN where there is none, and its group."""
        texts, codes = self.read.texts, self._curve_codes(curve)
        if codes is None:
            codes = np.zeros(self.read.whole.rows, np.int64)
        return texts[curve.time].numbers, texts[curve.event].numbers, codes

    def _are_few(self, values: Float64s) -> bool:
        """Whether the sum of these shows few rows."""
        return 0 < len(values) < self.limits.min_cell or is_telling(values, self.limits)

    def _curve_codes(self, curve: Curve) -> Int64s | None:
        """The group of each row; None: the curve has no groups, or its category is no column (any more)."""
        if curve.category not in self.read.texts:
            return None
        codes = self.read.texts[curve.category].placed(curve.levels)
        return without_few(codes, len(curve.levels), self.limits.min_cell)

    def _differ_by_few(self, one: Grouping, other: Grouping) -> bool:
        """Whether a group lies within one of the other, and the rows between them are few, or their sum is of few."""
        codes = [self._codes(grouping) for grouping in (one, other)]
        if one.number != other.number or not one.number:
            return isolates_few(codes[0], codes[1], self.limits.min_cell)
        values = self.read.whole.numbers.get(one.number)
        if values is None:
            values = self.read.texts[one.number].numbers
        is_there = ~np.isnan(values)
        left, right = (each[is_there] for each in codes)
        if isolates_few(left, right, self.limits.min_cell):
            return True
        if one.where == other.where or not len(left):
            return False
        return any(
            is_telling(values[is_there][(left == a) != (right == b)], self.limits)
            for a, b, _ in nested(left, right)
        )

    def _codes(self, grouping: Grouping) -> Int64s:
        """The group of each row, as it is counted: a refusal shows no more of a rare text than an answer would."""
        texts, is_in = self.read.texts, self.rows[grouping.where]
        groups, size = np.zeros(int(is_in.sum()), np.int64), 1
        if grouping.category:
            for name, levels in ((grouping.category, grouping.levels), *grouping.listed):
                codes = texts[name].placed(levels)[is_in]
                groups = groups * (len(levels) + 2)
                groups += without_few(codes, len(levels), self.limits.min_cell)
                size *= len(levels) + 2
        else:
            gaps = [texts[name].is_missing[is_in] for name in filter(None, grouping.levels)]
            gaps += [
                texts[name].placed(known)[is_in] >= len(known) for name, known in grouping.listed
            ]
            groups, size = np.any([groups > 0, *gaps], axis=0).astype(np.int64), 2
        found = np.full(len(is_in), size, np.int64)
        found[is_in] = groups
        return found


def _about_times(curve: Curve) -> str:
    return f"survival {curve.name}, and what was asked before or with it about these times, differ by too few rows (min_cell)"


def _named(grouping: Grouping) -> str:
    where = f" where {' and '.join(grouping.where)}" if grouping.where else ""
    if grouping.category:
        beside = "".join(f" by {name}" for name, _ in grouping.listed)
        named = (
            f"{grouping.number} by {grouping.category}" if grouping.number else grouping.category
        )
        return f"{named}{beside}{where}"
    if not grouping.levels:
        return f"{grouping.number or 'rows'}{where}"
    what = "correlation" if grouping.levels[:1] != (ALL,) else "trees or regression"
    return f"{what} of {grouping.number}{where}"
