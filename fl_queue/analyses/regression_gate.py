"""What a site checks before it adds up a regression's sums: none of them is about few rows."""

from __future__ import annotations

import numpy as np

from fl_queue.analyses import telling_sums
from fl_queue.analyses.base import Limits, SiteRows
from fl_queue.analyses.design import Design, Mask
from fl_queue.errors import PolicyRefusal
from fl_queue.protocol.arrays import Float64s


def check(design: Design, table: SiteRows, is_whole: Mask, limits: Limits) -> None:
    """
    Refuse a column whose sums would show few rows.

    That is so for a column of a category, or a target of two classes, with few rows on either side; for numbers of
    which one makes nearly all of the sum; and for two columns of 0 and 1 with few rows in common: the information holds
    how many there are.

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
    columns = [(one.feature, design.column(table, one, is_whole)) for one in design.terms]
    columns.append((design.target, design.target_of(table, is_whole)))
    for name, values in columns:
        places = np.zeros(len(values), np.intp)
        if telling_sums.by_group(values, places, 1, limits).any():
            raise PolicyRefusal(f"column {name} would show few rows (min_cell, dominance)")
    _check_pairs([pair for pair in columns if _is_binary(pair[1])], limits)


def _is_binary(values: Float64s) -> bool:
    return bool(np.all((values == 0.0) | (values == 1.0)))


def _check_pairs(columns: list[tuple[str, Float64s]], limits: Limits) -> None:
    for place, (name, values) in enumerate(columns):
        for other, others in columns[:place]:
            cells = np.bincount((2.0 * values + others).astype(np.int64), minlength=4)
            if name != other and np.any((cells > 0) & (cells < limits.min_cell)):
                raise PolicyRefusal(
                    f"columns {other} and {name} have few rows in common (min_cell)"
                )
