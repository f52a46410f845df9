"""
Survival curves of tables: what a site counts of times to an event, and whether it shows that.

Times are counted in intervals that the config fixes: of each the rows whose event is in it, and those whose follow-up
ends in it. The curves and the log-rank test follow from these counts, see ``survival_curves``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_queue.analyses.base import Block, SiteRows, counts, flags
from fl_queue.analyses.differencing import isolates_few
from fl_queue.analyses.suppression import Mask, withheld
from fl_queue.analyses.time_grids import Curve
from fl_queue.errors import DataError, PolicyRefusal
from fl_queue.protocol.arrays import Int64s

Codes = npt.NDArray[np.integer[Any]]


def blocks(curve: Curve) -> list[Block]:
    """The words of a question."""
    shape = (curve.size, len(curve.points) + 1)
    return [
        flags(f"withheld of survival {curve.name}", curve.size),
        counts(f"events of survival {curve.name}", *shape),
        counts(f"censored of survival {curve.name}", *shape),
    ]


@dataclass(frozen=True)
class Rows:
    """
    Rows of a site without a gap, as a curve counts them.

    Args:
        places: (N,) interval of each row's time; after the last one: later.
        events: (N,) whether the event was seen.
        codes: (N,) group of each row.
    """

    places: Codes
    events: Mask
    codes: Codes

    @classmethod
    def of_table(cls, curve: Curve, table: SiteRows, codes: Codes | None) -> Rows:
        """
        The rows of a table.

        Args:
            codes: (rows,) level of each row's category; None: the curve has none.

        Raises:
            DataError: A time or an event cannot be used; names the column.
        """
        times, events = table.numbers[curve.time], table.numbers[curve.event]
        whole = ~(np.isnan(times) | np.isnan(events))
        times, events = times[whole], events[whole]
        if (times < 0).any():
            raise _unusable(curve.time, "times are 0 or more")
        if not np.isin(events, (0.0, 1.0)).all():
            raise _unusable(curve.event, "an event is 1, and 0 where it was not seen")
        groups = np.zeros(len(times), np.int64) if codes is None else codes[whole]
        return cls(np.searchsorted(curve.points, times), events == 1, groups)

    def counts(self, size: int, intervals: int) -> Int64s:
        """Rows without and with the event by group and interval, (2, size, intervals). Args: ``size``: groups."""
        places = (self.events.astype(np.int64) * size + self.codes) * intervals + self.places
        found = np.bincount(places, minlength=2 * size * intervals).astype(np.int64)
        return found.reshape(2, size, intervals)


def _unusable(column: str, rule: str) -> DataError:
    return DataError("table", f"column {column}: {rule}; mend the table", public=True)


def words(
    curve: Curve, table: SiteRows, codes: Codes | None, least: int, forced: Mask | None = None
) -> dict[str, Int64s]:
    """
    A site's words of a question.

    Groups of few rows are withheld, with a further one so that they do not follow from the others.

    Args:
        codes: As of ``Rows.of_table``.
        least: Fewest rows behind a number that is shown.
        forced: Groups that are withheld for another reason.

    Raises:
        PolicyRefusal: An interval has few rows; names the width that would do.
        DataError: A time or an event cannot be used.
    """
    found = Rows.of_table(curve, table, codes).counts(curve.size, len(curve.points) + 1)
    hidden = hidden_groups(found, least, forced)
    check_intervals(curve, _looked_at(found, hidden), least)
    if not are_enough(_looked_at(_untimed(curve, table, codes), hidden), least):
        raise PolicyRefusal(
            f"survival {curve.name}: too few rows have {curve.event} and no {curve.time}; sums of {curve.event} would show "
            "them; leave both empty there (min_cell)"
        )
    shown = np.where(hidden[None, :, None], 0, found)
    # Not asked for: whether the event came after the last point.
    shown[0, :, -1] += shown[1, :, -1]
    shown[1, :, -1] = 0
    return {
        f"withheld of survival {curve.name}": hidden.astype(np.int64),
        f"events of survival {curve.name}": shown[1],
        f"censored of survival {curve.name}": shown[0],
    }


def _looked_at(found: Int64s, hidden: Mask) -> Int64s:
    """Groups that are shown, and those that are not as one: it follows from the numbers of all rows."""
    together = found[:, hidden].sum(axis=1, keepdims=True)
    return np.concatenate([found[:, ~hidden], together], axis=1)


def _untimed(curve: Curve, table: SiteRows, codes: Codes | None) -> Int64s:
    """Rows without a time, and without and with the event, by group, (2, size, 1): a sum of events is without them."""
    events = table.numbers[curve.event]
    is_untimed = np.isnan(table.numbers[curve.time]) & ~np.isnan(events)
    every = np.zeros(table.rows, np.int64) if codes is None else codes
    places = (events[is_untimed] == 1) * curve.size + every[is_untimed]
    return np.bincount(places, minlength=2 * curve.size).astype(np.int64).reshape(2, curve.size, 1)


def hidden_groups(found: Int64s, least: int, forced: Mask | None = None) -> Mask:
    """Which groups of ``Rows.counts`` are withheld: those of few rows, and what would show them."""
    return withheld(found.sum(axis=(0, 2)), least, forced)


def check_intervals(curve: Curve, groups: Int64s, least: int) -> None:
    """
    Raise PolicyRefusal if an interval of a group has few rows.

    Args:
        groups: (2, groups, intervals) as of ``Rows.counts``.
    """
    if are_enough(groups, least):
        return
    step, width = 2, curve.points[-1] - curve.points[0]
    while step < 2 * len(curve.points):
        if (end := _last_point(curve, groups, step, least)) is not None:
            raise PolicyRefusal(_advice(curve, step, end))
        step *= 2
    raise PolicyRefusal(
        f"survival {curve.name}: intervals have too few rows here, at any width up to {width:g} (min_cell)"
    )


def are_enough(groups: Int64s, least: int) -> bool:
    """Whether no count is one of few rows. Args: ``groups``: as of ``check_intervals``."""
    return not ((groups > 0) & (groups < least)).any()


def _last_point(curve: Curve, groups: Int64s, step: int, least: int) -> int | None:
    """The last point, in the later half of the grid, up to which each ``step`` intervals together have rows enough."""
    last = len(curve.points) - 1
    kept = [*range(0, last, step), last]
    for count in range(len(kept), 0, -1):
        if 2 * kept[count - 1] < last:
            return None
        # Intervals end at the points that are kept, and begin after the one before.
        starts = [0, *(place + 1 for place in kept[:count])]
        if are_enough(np.add.reduceat(groups, starts, axis=2), least):
            return int(kept[count - 1])
    return None


def _advice(curve: Curve, step: int, end: int) -> str:
    """The refusal that names which points would do."""
    points = curve.points
    widths = np.diff(points)
    upto = "" if end == len(points) - 1 else f" up to {points[end]:g}"
    width = float(widths[0])
    # The last one of task.time_width may be narrower.
    if np.allclose(widths[:-1], width) and widths[-1] <= width * (1 + 1e-9):
        return (
            f"survival {curve.name}: intervals of width {width:g} have too few rows here; {step * width:g}{upto} would do "
            "(min_cell)"
        )
    ordinal = f"{step}nd" if step % 10 == 2 and step % 100 != 12 else f"{step}th"
    return (
        f"survival {curve.name}: intervals of task.time_grid have too few rows here; every {ordinal} point{upto} would do "
        "(min_cell)"
    )


def differ_by_few(
    one: Curve, other: Curve, table: SiteRows, codes: Sequence[Codes | None], least: int
) -> bool:
    """
    Whether counts of two questions about the same times show few rows, subtracted from each other.

    Every interval that the points of both make has to have rows enough, in each group that the levels of both make. Of
    two categories no group may lie within one of the other with few rows between them: their times would follow.

    Args:
        codes: Of the two, as of ``Rows.of_table``.
    """
    both = Curve(one.time, one.event, "", (), tuple(sorted({*one.points, *other.points})))
    folded = [_folded(*pair, table, least) for pair in zip((one, other), codes, strict=True)]
    if one.category and other.category and one.category != other.category:
        return isolates_few(folded[0], folded[1], least)
    width = int(folded[1].max(initial=0)) + 1
    place = folded[0] * width + folded[1]
    kinds, group = np.unique(place, return_inverse=True)
    rows = Rows.of_table(both, table, None)
    found = Rows(rows.places, rows.events, group)
    return not are_enough(found.counts(len(kinds), len(both.points) + 1), least)


def _folded(curve: Curve, codes: Codes | None, table: SiteRows, least: int) -> Int64s:
    """The group of each row without a gap; those that are withheld are one."""
    rows = Rows.of_table(curve, table, codes)
    hidden = hidden_groups(rows.counts(curve.size, len(curve.points) + 1), least)
    return np.where(hidden[rows.codes], curve.size, rows.codes).astype(np.int64)
