"""
Differences of sums: whether two ways to group the same rows show the sum of a few of them.

Sums are exact. If one group lies within another, the difference of their sums is that of the rows between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_queue.analyses.filters import Condition
from fl_queue.protocol.arrays import Int64s

#: Before the columns of a grouping by gaps.
ALL = ""


@dataclass(frozen=True)
class Grouping:
    """
    One way in which rows are grouped for a question.

    Args:
        number: Column whose sums are shown, of numbers or a category's levels; empty: the rows are counted.
        category: Column that groups them; empty: by whether one of the columns in ``levels`` has a gap.
        levels: Its levels, as the config lists them. Columns with ``ALL`` as the first of them: sums over the rows
            without a gap are shown however few other rows there are; none: those over all rows of ``number``.
        listed: Of those columns, categories with levels: a row with another text is as one with a gap. Beside a
            ``category``: another one, whose levels cut each of its groups.
        where: Conditions of the rows, as texts; other rows are a group of their own.
    """

    number: str
    category: str
    levels: tuple[str, ...]
    listed: tuple[tuple[str, tuple[str, ...]], ...] = ()
    where: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that decide which group a row is in."""
        found = (self.category,) if self.category else tuple(filter(None, self.levels))
        more = (*(name for name, _ in self.listed), *(one.column for one in self.conditions))
        return tuple(dict.fromkeys((*found, *more)))

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Of ``where``."""
        return tuple(map(Condition.of_text, self.where))

    @property
    def is_table(self) -> bool:
        """Whether two categories make the groups."""
        return bool(self.category and self.listed)

    def is_compared(self, other: Grouping) -> bool:
        """
        Whether sums of one may be subtracted from those of the other.

        Of the same rows, counts of other categories are not; of other rows, each may be.
        """
        if self.where != other.where:
            return True
        if self == other or self.number != other.number or self.is_table or other.is_table:
            return False
        ways = {(one.category, one.levels) for one in (self, other)}
        if ("", ()) in ways:
            # A correlation is withheld where the rest of its column are few rows.
            return any(levels[:1] == (ALL,) for _, levels in ways)
        return bool(self.number) or self.category == other.category


def isolates_few(left: Int64s, right: Int64s, least: int) -> bool:
    """
    Whether a group of one way lies within one of the other, and 1 to ``least - 1`` rows are between them.

    Args:
        left, right: (N,) group of each row, from 0.
    """
    if not len(left) or least < 2:
        return False
    return any(few < least for _, _, few in nested(left, right))


def nested(left: Int64s, right: Int64s) -> list[tuple[int, int, int]]:
    """
    Groups of which one lies within the other, with further rows in that one: group of ``left``, of ``right``, rows.

    Args:
        left, right: (N,) group of each row, from 0; N > 0.
    """
    width = int(right.max()) + 1
    shape = (int(left.max()) + 1, width)
    both = np.bincount(left * width + right, minlength=shape[0] * width).reshape(shape)
    only_left = both.sum(axis=1)[:, None] - both
    only_right = both.sum(axis=0)[None, :] - both
    found = []
    for inside, beyond in ((only_right, only_left), (only_left, only_right)):
        at = np.nonzero((both > 0) & (inside == 0) & (beyond > 0))
        found += [(int(a), int(b), int(beyond[a, b])) for a, b in zip(*at, strict=True)]
    return found
