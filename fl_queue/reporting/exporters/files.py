"""
A run's numbers as plain files: the rounds, as ``fl-queue history`` has them, and every point.

Each file is replaced whole, so a reader never sees half of one, and repeating it changes nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from fl_queue.common import escaping
from fl_queue.common.files import SHARED, write_atomically
from fl_queue.common.safe_json import dumps
from fl_queue.reporting import rounds_table
from fl_queue.reporting.curves import Point
from fl_queue.reporting.exporters.base import Numbers
from fl_queue.store import RunState


class _Files:
    """``rounds.<suffix>`` and ``points.<suffix>`` in a folder."""

    suffix = ""
    #: Lines above the points.
    header_lines = 0

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, state: RunState, numbers: Numbers) -> int:
        """Replace both files, if there is anything new; returns how many points were."""
        texts = {"rounds": self.rounds(numbers), "points": self.points(numbers.points)}
        known = self._lines("points")
        for name, text in texts.items():
            if self._text(name) != text:
                with write_atomically(self._path(name), mode=SHARED) as file:
                    file.write(text.encode())
        return len(self._lines("points") - known)

    def rounds(self, numbers: Numbers) -> str:
        """The text of the file of rounds."""
        raise NotImplementedError

    def points(self, points: Sequence[Point]) -> str:
        """The text of the file of points."""
        raise NotImplementedError

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.{self.suffix}"

    def _text(self, name: str) -> str | None:
        path = self._path(name)
        return path.read_text("utf-8") if path.exists() else None

    def _lines(self, name: str) -> set[str]:
        return set((self._text(name) or "").splitlines()[self.header_lines :])


class CsvFiles(_Files):
    """``rounds.csv``, the same as ``fl-queue history --csv``, and ``points.csv``."""

    suffix = "csv"
    header_lines = 1

    def rounds(self, numbers: Numbers) -> str:
        """Format the rounds."""
        return rounds_table.to_csv(numbers.rows)

    def points(self, points: Sequence[Point]) -> str:
        """Format the points."""
        text = io.StringIO()
        columns = [field.name for field in fields(Point)]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for point in points:
            writer.writerow([escaping.csv_cell(getattr(point, column)) for column in columns])
        return text.getvalue()


class JsonFiles(_Files):
    """``rounds.jsonl`` and ``points.jsonl``: one JSON document a line."""

    suffix = "jsonl"

    def rounds(self, numbers: Numbers) -> str:
        """Format the rounds."""
        return "".join(f"{dumps(row)}\n" for row in rounds_table.to_json(numbers.rows))

    def points(self, points: Sequence[Point]) -> str:
        """Format the points."""
        return "".join(f"{dumps(asdict(point))}\n" for point in points)
