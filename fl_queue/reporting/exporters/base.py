"""The numbers that exporters write, and the interface of an exporter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fl_queue.reporting import curves, rounds_table
from fl_queue.reporting.curves import Point
from fl_queue.reporting.rounds_table import RoundRow
from fl_queue.store import RunState, Store


@dataclass(frozen=True)
class Numbers:
    """
    The numbers of a run at one moment.

    Args:
        rows: The rounds, as ``fl-queue history`` has them.
        points: Every number, as ``curves`` has them.
    """

    rows: list[RoundRow]
    points: list[Point]


class Exporter(Protocol):
    """Writes a run's numbers for another tool. Numbers that are there are not written again."""

    def write(self, state: RunState, numbers: Numbers) -> int:
        """
        Write the new numbers; returns how many there were.

        Raises:
            OSError: It cannot be written.
        """


def numbers_of(store: Store, run: str) -> Numbers:
    """Read the numbers of a run. Args: ``run``: run id."""
    history = rounds_table.history_of(store, run)
    return Numbers(history.rows, curves.points(history.records, history.tested))
