"""
A site's table: the columns that an analysis reads, from a CSV file with a header line.

An error names file, line and column, and never the content of a cell. No Redis and no torch here.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_queue.analyses.base import Columns, SiteRows
from fl_queue.client.policy import SitePolicy
from fl_queue.common.spelling import nearest
from fl_queue.errors import DataError
from fl_queue.protocol.arrays import Float64s, Int64s

#: Texts of cells that are missing. No config changes them: an error that depended on them would show cells.
MISSING = frozenset(("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?"))


@dataclass(frozen=True)
class ReadTable:
    """
    A table as it was read.

    Args:
        table: The columns that were asked for.
        lines: Each row's cells, for the hashes of the ledger.
        texts: Category -> each row's text.
    """

    table: SiteRows
    lines: Sequence[bytes]
    texts: Mapping[str, Sequence[str]]


def read(
    path: Path, columns: Columns, policy: SitePolicy, beside: Collection[str] = ()
) -> ReadTable:
    """
    Read the columns that an analysis asks for.

    Args:
        policy: Columns that it hides are as if they were not there.
        beside: Columns whose texts are wanted, too, as far as they are there.

    Raises:
        PolicyRefusal: The table has too few rows.
        DataError: The file cannot be read, a column is missing or stands twice, a row has another length than the
            header, or a cell is no number.
    """
    rows = _rows(path)
    header = next(rows, (0, []))[1]
    if not header:
        raise DataError(str(path), "is empty; its first line must name the columns", public=True)
    places = _places(path, header, columns, policy)
    texts = {name: header.index(name) for name in (*columns.categories, *beside) if name in header}
    cells: dict[str, list[str]] = {name: [] for name in (*places, *texts)}
    numbers, lines, wrong = [], [], ""
    for line, row in rows:
        numbers.append(line)
        if len(row) != len(header):
            wrong = wrong or f"line {line}: {len(row)} cells, the header has {len(header)}"
            continue
        lines.append("\0".join(row).encode(errors="replace"))
        for name, place in {**places, **texts}.items():
            cells[name].append(row[place])
    # Before any error that names a line: it is about one row.
    policy.limits.check_rows(len(numbers))
    if wrong:
        raise DataError(str(path), wrong, public=True)
    table = SiteRows(
        len(lines),
        {name: _numbers(path, name, cells[name], numbers) for name in columns.numbers},
        {name: codes_of(cells[name], levels) for name, levels in columns.categories.items()},
    )
    return ReadTable(table, lines, {name: cells[name] for name in texts})


def _places(
    path: Path, header: Sequence[str], columns: Columns, policy: SitePolicy
) -> Mapping[str, int]:
    """Column -> its place in a row."""
    visible = policy.visible(header)
    for name in columns.names:
        if name not in visible:
            raise DataError(
                str(path),
                f"has no column {name}{nearest(name, visible)}; visible: {', '.join(visible)}",
                public=f"has no column {name}",
            )
        if header.count(name) > 1:
            raise DataError(str(path), f"column {name} stands twice in the header", public=True)
    return {name: header.index(name) for name in columns.names}


def _numbers(path: Path, name: str, cells: Sequence[str], lines: Sequence[int]) -> Float64s:
    found = np.empty(len(cells), np.float64)
    for place, cell in enumerate(cells):
        value = math.nan if cell in MISSING else _number(cell)
        if value is None:
            raise DataError(
                str(path), f"line {lines[place]}, column {name}: not a number", public=True
            )
        found[place] = value
    return found


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    # Python parses 1_000; in a table it is a mistake or a name.
    return value if math.isfinite(value) and "_" not in cell else None


def codes_of(cells: Sequence[str], levels: Sequence[str]) -> Int64s:
    """The number of each text's level; then that of any other text, then that of a missing cell."""
    known = {level: code for code, level in enumerate(levels)}
    other, missing = len(levels), len(levels) + 1
    return np.array(
        [known.get(cell, missing if cell in MISSING else other) for cell in cells],
        np.int64,
    )


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of each row, the header first. Raises DataError."""
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for row in filter(None, reader):
                yield reader.line_num, [cell.strip() for cell in row]
    except OSError as exc:
        raise DataError(
            str(path), f"cannot be read: {exc.strerror}; see --data and task.file", public=True
        ) from exc
    except (csv.Error, UnicodeDecodeError) as exc:
        raise DataError(
            str(path), f"is not a CSV file in UTF-8 ({exc})", public="is not a CSV file in UTF-8"
        ) from exc
