"""
The columns of a regression's design: made of a table's, by treatment contrasts, and scaled by what all sites agree on.

A category with L levels has L - 1 columns of 0 and 1, one for each level but the reference. Rows with a gap in any
column are left out; so are those with a text that is none of a category's levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fl_queue.analyses.base import Columns, SiteRows
from fl_queue.analyses.families import Family, SiteDesign
from fl_queue.protocol.arrays import Float64s, Int64s

#: Fractional bits of a centre, in units of its column's scale: so a cell less the centre is mostly exact.
_CENTRE_BITS = 8
#: Name of the column of ones.
INTERCEPT = "const"

#: Parts of dates that are categories, with their levels.
PARTS = {
    "month": (
        *("January", "February", "March", "April", "May", "June"),
        *("July", "August", "September", "October", "November", "December"),
    ),
    "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
}

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Feature:
    """
    A column of the table that explains the target.

    Args:
        name: In the header.
        levels: Of a category; empty: a column of numbers.
        reference: The level without a column.
        is_date: Whether the numbers are dates, as days since 1970-01-01.
        parts: Of dates, in place of the days: year (a number), month and weekday (categories).
    """

    name: str
    levels: tuple[str, ...] = ()
    reference: str = ""
    is_date: bool = False
    parts: tuple[str, ...] = ()

    @property
    def terms(self) -> tuple[Term, ...]:
        """Its columns in the design."""
        if self.levels:
            return _contrasts(self.name, "", self.name, self.levels, self.reference)
        if not self.parts:
            return (Term(self.name, -1, self.name),)
        found: list[Term] = []
        for part in self.parts:
            title = f"{self.name} {part}"
            if part in PARTS:
                found += _contrasts(self.name, part, title, PARTS[part], PARTS[part][0])
            else:
                found.append(Term(self.name, -1, title, part))
        return tuple(found)


@dataclass(frozen=True)
class Term:
    """
    A column of the design beside the intercept.

    Args:
        feature: Column of the table.
        level: Of a category, by its place; -1: the number itself.
        name: For users.
        part: Of a date; empty: the column as it is.
        level_name: Of a category.
    """

    feature: str
    level: int
    name: str
    part: str = ""
    level_name: str = ""


def _contrasts(
    feature: str, part: str, title: str, levels: tuple[str, ...], reference: str
) -> tuple[Term, ...]:
    return tuple(
        Term(feature, place, f"{title}: {level}", part, level)
        for place, level in enumerate(levels)
        if level != reference
    )


@dataclass(frozen=True)
class Design:
    """
    What a regression reads.

    Args:
        features: In the config's order.
        target: Column of the target.
        classes: The target's two texts, of which the second counts as 1; empty: it has numbers.
        offset, weights: Columns; empty: none.
        time: Column of times to an event, where the target is whether it was seen; empty: the target is all.
        strata: Categories whose rows are compared with rows of the same levels only.
    """

    features: tuple[Feature, ...]
    target: str
    classes: tuple[str, ...] = ()
    offset: str = ""
    weights: str = ""
    time: str = ""
    strata: tuple[Feature, ...] = ()

    @property
    def terms(self) -> tuple[Term, ...]:
        """The columns beside the intercept."""
        return tuple(term for one in self.features for term in one.terms)

    @property
    def columns(self) -> Columns:
        """The table's columns."""
        numbers = [one.name for one in self.features if not one.levels]
        numbers += [name for name in (self.offset, self.weights, self.time) if name]
        categories = {one.name: one.levels for one in (*self.features, *self.strata) if one.levels}
        if self.classes:
            categories[self.target] = self.classes
        else:
            numbers.append(self.target)
        dates = tuple(one.name for one in self.features if one.is_date)
        return Columns(tuple(dict.fromkeys(numbers)), categories, dates)

    @property
    def names(self) -> tuple[str, ...]:
        """The table's columns that decide which rows are used, in the config's order."""
        more = (name for name in (self.offset, self.weights, self.time) if name)
        listed = (one.name for one in (*self.features, *self.strata))
        return tuple(dict.fromkeys((*listed, self.target, *more)))

    def is_whole(self, table: SiteRows) -> Mask:
        """Which rows have no gap, (rows,)."""
        found = np.ones(table.rows, np.bool_)
        for name in self.columns.numbers:
            found &= ~np.isnan(table.numbers[name])
        for name, levels in self.columns.categories.items():
            found &= table.codes[name] < len(levels)
        return found

    def has_gap(self, table: SiteRows) -> Mask:
        """Which rows miss a cell, (rows,)."""
        found = np.zeros(table.rows, np.bool_)
        for name in self.columns.numbers:
            found |= np.isnan(table.numbers[name])
        for name, levels in self.columns.categories.items():
            found |= table.codes[name] == len(levels) + 1
        return found

    def column(self, table: SiteRows, term: Term, is_whole: Mask) -> Float64s:
        """The numbers of a term, of whole rows."""
        if term.part:
            values = part_of(table.numbers[term.feature][is_whole], term.part)
        elif term.level < 0:
            return table.numbers[term.feature][is_whole]
        else:
            values = table.codes[term.feature][is_whole].astype(np.float64)
        return values if term.level < 0 else (values == term.level).astype(np.float64)

    def target_of(self, table: SiteRows, is_whole: Mask) -> Float64s:
        """The target of whole rows."""
        if self.classes:
            return table.codes[self.target][is_whole].astype(np.float64)
        return table.numbers[self.target][is_whole]

    def number(self, table: SiteRows, name: str, is_whole: Mask, default: float) -> Float64s:
        """A column of numbers that may not be asked for. Args: ``default``: of each row, if ``name`` is empty."""
        if not name:
            return np.full(int(is_whole.sum()), default)
        return table.numbers[name][is_whole]


@dataclass(frozen=True)
class Scale:
    """
    Centre and scale of columns: z = (x - centre) * 2**-power.

    Args:
        centres: (q,) means, rounded to multiples of 2**(power - 8).
        powers: (q,) whole numbers; 2**power is within a factor of sqrt(2) of the standard deviation.
    """

    centres: Float64s
    powers: Int64s

    def scaled(self, place: int, values: Float64s) -> Float64s:
        """A column's z."""
        found: Float64s = np.ldexp(values - self.centres[place], -int(self.powers[place]))
        return found


def part_of(days: Float64s, part: str) -> Float64s:
    """
    A part of dates: the year, the month from 0 (January), or the weekday from 0 (Monday).

    Args:
        days: (N,) since 1970-01-01.
        part: ``year``, or of ``PARTS``.
    """
    whole = np.floor(days).astype(np.int64)
    found = (whole + 3) % 7
    if part != "weekday":
        unit = "M" if part == "month" else "Y"
        found = whole.astype("datetime64[D]").astype(f"datetime64[{unit}]").astype(np.int64)
        found = found % 12 if part == "month" else found + 1970
    return found.astype(np.float64)


def centre_and_power(rows: int, total: Fraction, square: Fraction) -> tuple[float, int] | None:
    """
    Centre and power of a column by its exact moments; None: it is constant.

    Args:
        rows: Their number, above 0.
        total, square: Sums of the values and of their squares.
    """
    mean = total / rows
    variance = square / rows - mean * mean
    if variance <= 0:
        return None
    # The power k with 2**(2 k - 1) <= variance < 2**(2 k + 1), by comparing whole numbers.
    bits = variance.numerator.bit_length() - variance.denominator.bit_length()
    power = bits // 2
    while variance >= Fraction(2) ** (2 * power + 1):
        power += 1
    while variance < Fraction(2) ** (2 * power - 1):
        power -= 1
    unit = Fraction(2) ** (power - _CENTRE_BITS)
    return float(round(mean / unit) * unit), power


def encoded(design: Design, scale: Scale, table: SiteRows, family: Family) -> SiteDesign:
    """
    A site's rows as the steps of a fit read them.

    Args:
        scale: Of the terms, and after them of the target.
    """
    is_whole = design.is_whole(table)
    rows, terms = int(is_whole.sum()), design.terms
    first = int(family.has_intercept)
    columns = np.ones((rows, first + len(terms)))
    for place, term in enumerate(terms):
        columns[:, first + place] = scale.scaled(place, design.column(table, term, is_whole))
    target = design.target_of(table, is_whole)
    offset = design.number(table, design.offset, is_whole, 0.0)
    if family.has_scale:
        target, offset = scale.scaled(len(terms), target - offset), np.zeros(rows)
    weights = design.number(table, design.weights, is_whole, 1.0)
    found = SiteDesign(columns, target, offset, weights)
    return family.prepared(found, design, table, is_whole)
