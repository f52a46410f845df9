"""Questions about survival, as the config's ``[task]`` has them: columns, groups, and the times of the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fl_queue.errors import ConfigError

#: Points of a time grid.
MAX_POINTS = 10_000


@dataclass(frozen=True)
class Curve:
    """
    A question about survival.

    Args:
        time: Column of times, 0 or more.
        event: Column of 0 and 1; 1: the event was at that time, 0: it was not seen until then.
        category: Column whose levels have a curve each; empty: all rows together.
        levels: Its levels, as the config lists them.
        points: Ascending ends of the intervals ``[0, p0], (p0, p1], ...``; later rows are at risk in all of them.
    """

    time: str
    event: str
    category: str
    levels: tuple[str, ...]
    points: tuple[float, ...]

    @property
    def name(self) -> str:
        """As the config writes it."""
        grouped = f" by {self.category}" if self.category else ""
        return f"{self.time} {self.event}{grouped}"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that decide how a row is counted."""
        return (self.time, self.event, *([self.category] if self.category else []))

    @property
    def question(self) -> str:
        """As a ledger notes it; other points are another question."""
        points = self.points
        return f"survival {self.name}: {len(points)} times from {points[0]:g} to {points[-1]:g}"

    def is_compared(self, other: Curve) -> bool:
        """Whether counts of one may be subtracted from those of the other."""
        return self != other and (self.time, self.event) == (other.time, other.event)

    @property
    def size(self) -> int:
        """Number of curves: of each level, of other texts and of missing cells."""
        return len(self.levels) + 2 if self.category else 1


def curves_of(options: Mapping[str, Any], levels: Mapping[str, tuple[str, ...]]) -> list[Curve]:
    """
    The curves that are asked for.

    Args:
        options: ``survival``, ``time_grid`` and ``time_width`` of ``[task]``.
        levels: Category -> its levels.

    Raises:
        ConfigError: Names the option, and the fix.
    """
    asked = tuple(options.get("survival", ()))
    points = grid_points(options.get("time_grid", ()), options.get("time_width", 0.0))
    if asked and not points:
        raise ConfigError("task.time_grid", "is empty; list the times that end an interval")
    if points and not asked:
        raise ConfigError("task.time_grid", "is that of task.survival, which is empty")
    found = []
    for text in asked:
        columns, grouped, category = (part.strip() for part in text.partition(" by "))
        names = columns.split()
        if len(names) != 2 or bool(grouped) != bool(category) or names[0] == names[1]:
            raise ConfigError(
                "task.survival",
                f"{text!r} is no question such as `time event` or `time event by sex`",
            )
        if category and category not in levels:
            raise ConfigError("task.survival", f"{category} is not in task.levels; add it there")
        for name in names:
            if name in levels:
                raise ConfigError(
                    "task.survival",
                    f"{name} has levels in task.levels; times and events are numbers",
                )
        found.append(Curve(names[0], names[1], category, levels.get(category, ()), points))
    if len(set(found)) < len(found):
        raise ConfigError("task.survival", "has a question twice; leave one out")
    return found


def grid_points(grid: Sequence[float], width: float) -> tuple[float, ...]:
    """
    The ends of intervals.

    Args:
        grid: As the config lists them; with a width the first and the last one.
        width: Of the intervals; 0: ``grid`` is complete.

    Raises:
        ConfigError: Names the option, and the fix.
    """
    if any(low >= high for low, high in pairwise(grid)):
        raise ConfigError("task.time_grid", "does not ascend; write its times in order, each once")
    if not width:
        points = tuple(grid)
    elif len(grid) != 2:
        raise ConfigError("task.time_grid", "with task.time_width, is the first and the last time")
    else:
        first, last = grid
        if (last - first) / width > MAX_POINTS:
            raise ConfigError("task.time_width", "makes too many intervals; widen it")
        # 12 digits: 3 * 0.1 is 0.3, as the tables have it.
        inside = (
            float(f"{first + place * width:.12g}")
            for place in range(int((last - first) // width) + 1)
        )
        points = (*(time for time in inside if time < last), last)
    if len(points) > MAX_POINTS:
        raise ConfigError("task.time_grid", f"has {len(points)} points; {MAX_POINTS} at most")
    return points
