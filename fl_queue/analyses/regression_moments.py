"""The first step of a regression: exact moments of the design's columns and of the target, over rows without a gap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fl_queue.analyses import exact_digits, regression_gate
from fl_queue.analyses.base import Layout, Limits, SiteRows, counts, digits, flags
from fl_queue.analyses.design import Design, Mask
from fl_queue.analyses.exact_digits import PRODUCTS, VALUES
from fl_queue.analyses.families import Family, TargetMoments
from fl_queue.errors import DataError
from fl_queue.protocol.arrays import Float64s, Int64s

#: No weight of a row is as large.
_MOST_WEIGHT = 2.0**32


@dataclass(frozen=True)
class Moments:
    """
    Sums of the first step.

    Args:
        rows, sites: Their numbers.
        dropped: Rows with a gap.
        withheld: Sites with few of them, which are not counted.
        terms: Exact sum and sum of squares of each term, and after them of the target.
        offset: Mean of the offset.
        constants: Of the family.
    """

    rows: int
    sites: int
    dropped: int
    withheld: int
    terms: tuple[tuple[Fraction, Fraction], ...]
    offset: Fraction
    constants: tuple[float, ...]

    @property
    def target(self) -> TargetMoments:
        """Those of the target."""
        return TargetMoments(self.rows, *self.terms[-1], self.offset)


def layout(design: Design, family: Family) -> Layout:
    """The words of the step."""
    size = len(design.terms) + 1
    return Layout(
        [
            flags("sites", 1),
            counts("rows", 1),
            counts("dropped", 1),
            flags("withheld dropped", 1),
            digits("sums", size, VALUES.words),
            digits("squares", size, PRODUCTS.words),
            digits("offset", VALUES.words),
            digits("constants", family.constant_sums, VALUES.words),
        ]
    )


def read(made: Layout, total: Int64s) -> Moments:
    """The sums of all sites. Args: ``made``: of ``layout``; ``total``: its words."""

    def values(name: str) -> list[Fraction]:
        return [exact_digits.value_of(one, VALUES) for one in made.view(total, name)]

    def one(name: str) -> int:
        return int(made.view(total, name)[0])

    squares = [exact_digits.value_of(each, PRODUCTS) for each in made.view(total, "squares")]
    return Moments(
        one("rows"),
        one("sites"),
        one("dropped"),
        one("withheld dropped"),
        tuple(zip(values("sums"), squares, strict=True)),
        exact_digits.value_of(made.view(total, "offset"), VALUES) / max(one("rows"), 1),
        tuple(map(float, values("constants"))),
    )


def words(design: Design, family: Family, table: SiteRows, limits: Limits) -> dict[str, Int64s]:
    """
    A site's words.

    Raises:
        PolicyRefusal: They would show few rows.
        DataError: A number cannot be summed, or is none of the family's target; names the column.
    """
    is_whole = design.is_whole(table)
    rows = int(is_whole.sum())
    limits.check_rows(rows, "the rows without a gap are fewer than its min_rows")
    target = design.target_of(table, is_whole)
    family.check(design.target, target)
    if design.time and np.any(table.numbers[design.time][is_whole] < 0.0):
        raise DataError(
            "table", f"column {design.time}: times are 0 or more; mend the table", public=True
        )
    offset = design.number(table, design.offset, is_whole, 0.0)
    _check_summable(design.offset, offset)
    weights = design.number(table, design.weights, is_whole, 1.0)
    if not np.all((weights > 0) & (weights < _MOST_WEIGHT)):
        raise DataError(
            "table",
            f"column {design.weights}: a weight is not above 0; mend the table",
            public=True,
        )
    regression_gate.check(design, table, is_whole, limits)
    places = np.zeros(rows, np.intp)
    sums, squares = [], []
    for values in _columns(design, table, is_whole, target - offset * family.has_scale):
        sums.append(exact_digits.sums(values, places, 1)[0])
        squares.append(exact_digits.product_sums(values, values, places, 1)[0])
    constants = [exact_digits.sums(column, places, 1)[0] for column in family.constants(target).T]
    dropped = table.rows - rows
    is_few = 0 < dropped < limits.min_cell
    return {
        "sites": np.array([1]),
        "rows": np.array([rows]),
        "dropped": np.array([0 if is_few else dropped]),
        "withheld dropped": np.array([int(is_few)]),
        "sums": np.stack(sums),
        "squares": np.stack(squares),
        "offset": exact_digits.sums(offset, places, 1)[0],
        "constants": np.array(constants, np.int64).reshape(-1, VALUES.words),
    }


def _columns(
    design: Design, table: SiteRows, is_whole: Mask, target: Float64s
) -> Iterator[Float64s]:
    """Yield the columns of the terms, then the target, each checked. Args: ``target``: as it is scaled."""
    for term in design.terms:
        values = design.column(table, term, is_whole)
        _check_summable(term.feature, values)
        yield values
    _check_summable(design.target, target)
    yield target


def _check_summable(name: str, values: Float64s) -> None:
    if not exact_digits.are_summable(values):
        raise DataError(
            "table", f"column {name}: values outside 2**-64 .. 2**64; scale it", public=True
        )
