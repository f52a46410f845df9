"""What a site checks before it adds up a regression's sums: none of them is about few rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fl_queue.analyses import telling_sums
from fl_queue.analyses.base import Limits, SiteRows
from fl_queue.analyses.design import PARTS, Design, Feature, Mask, part_of
from fl_queue.errors import PolicyRefusal
from fl_queue.protocol.arrays import Float64s, Int64s

#: Column's name, and each whole row's group by it.
_Partition = tuple[str, Int64s]


def check(design: Design, table: SiteRows, is_whole: Mask, limits: Limits) -> None:
    """
    Refuse columns whose sums would show few rows.

    The information holds the sums of products of all columns: of categories their cross-table, to which the level without
    a coefficient is what is left, and of a category and numbers the sum of each level. So a level, the reference as any
    other, must not have few rows, nor two of different columns have few in common; and no sum of numbers, of all rows or
    of a level, be that of few. Strata are levels, too: a fit that lists one of them more differs by its rows.

    Raises:
        PolicyRefusal: Names the columns, and not the level.
    """
    if limits.min_cell < 2 and not limits.dominance:
        return
    # Of gaps as many as there are may be known; of other texts not.
    others = int((~is_whole & ~design.has_gap(table)).sum())
    if 0 < others < limits.min_cell:
        names = ", ".join(design.columns.categories)
        raise PolicyRefusal(
            f"few rows have a text that the levels of {names} do not list (min_cell)"
        )
    numbers = list(_numbers(design, table, is_whole))
    for name, values in numbers:
        if telling_sums.is_telling(values, limits):
            raise PolicyRefusal(f"column {name} would show few rows (min_cell, dominance)")
    partitions = list(_categories(design, table, is_whole))
    for name, codes in partitions:
        if _has_few(np.bincount(codes), limits):
            raise PolicyRefusal(f"column {name} would show few rows (min_cell, dominance)")
    halved = {name: telling_sums.halves(values) for name, values in numbers}
    partitions += [
        (name, found.astype(np.int64)) for name, found in halved.items() if found is not None
    ]
    _check_pairs(partitions, limits)
    _check_groups(partitions, [pair for pair in numbers if halved[pair[0]] is None], limits)


def _numbers(design: Design, table: SiteRows, is_whole: Mask) -> Iterator[tuple[str, Float64s]]:
    """Columns of whole rows whose sums are shown. A target of two classes is 0 and 1."""
    for term in design.terms:
        if term.level < 0:
            yield term.name, design.column(table, term, is_whole)
    for name in (design.offset, design.weights):
        if name:
            yield name, table.numbers[name][is_whole]
    yield design.target, design.target_of(table, is_whole)


def _categories(design: Design, table: SiteRows, is_whole: Mask) -> Iterator[_Partition]:
    for one in (*design.features, *design.strata):
        yield from _levels(one, table, is_whole)


def _levels(feature: Feature, table: SiteRows, is_whole: Mask) -> Iterator[_Partition]:
    """The groups of a column's categories; none: it is one of numbers."""
    if feature.levels:
        yield feature.name, table.codes[feature.name][is_whole].astype(np.int64)
    for part in feature.parts:
        if part in PARTS:
            days = table.numbers[feature.name][is_whole]
            yield f"{feature.name} {part}", part_of(days, part).astype(np.int64)


def _has_few(counts: Int64s, limits: Limits) -> bool:
    return bool(np.any((counts > 0) & (counts < limits.min_cell)))


def _check_pairs(partitions: Sequence[_Partition], limits: Limits) -> None:
    for place, (name, codes) in enumerate(partitions):
        for other, others in partitions[:place]:
            if _has_few(np.bincount((int(others.max()) + 1) * codes + others), limits):
                raise PolicyRefusal(
                    f"columns {other} and {name} have few rows in common (min_cell)"
                )


def _check_groups(
    partitions: Sequence[_Partition], numbers: Sequence[tuple[str, Float64s]], limits: Limits
) -> None:
    for name, codes in partitions:
        order = np.argsort(codes, kind="stable")
        ends = np.bincount(codes).cumsum()[:-1]
        for other, values in numbers:
            if any(telling_sums.is_telling(part, limits) for part in np.split(values[order], ends)):
                raise PolicyRefusal(f"{other} by {name} would show few rows (min_cell, dominance)")
