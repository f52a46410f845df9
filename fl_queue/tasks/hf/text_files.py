"""
Texts, and what belongs to each, from a file (JSON lines, CSV, parquet, plain text) or a folder of parquet.

Messages quote no cell: only lines, whose numbers stay at the site, and names that the config has. No torch and no Redis here.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fl_queue.errors import DataError
from fl_queue.tasks.hf import packages, tables

#: Suffixes of files that can be read.
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
_NO_OBJECT = "is no JSON object; one object in each line is expected"


def read(path: Path, columns: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    """
    Read the rows of a file.

    Args:
        path: Its suffix decides how it is read; of plain text only the first column is there. A folder has parquet
            files, or is one of ``Dataset.save_to_disk``.
        columns: Name of each column, and the option that names it, for messages. The first has the text.

    Returns:
        Of each row a text for each column; numbers as Python writes them. In the file's order.

    Raises:
        DataError: It cannot be read, or a row lacks a column; names the line.
    """
    reader = _folder if path.is_dir() else _READERS.get(path.suffix.lower())
    if reader is None:
        what = f"is no file of texts: its name must end in one of {', '.join(SUFFIXES)}, or it is a folder"
        raise DataError(str(path), what, public=what)
    try:
        rows = list(reader(path, columns))
    except OSError as exc:
        what = f"cannot be read: {exc.strerror}; see data.dir and task.file"
        raise DataError(str(path), what, public=what) from exc
    except UnicodeDecodeError as exc:
        raise DataError(str(path), "is not in UTF-8", public="is not in UTF-8") from exc
    if not rows:
        raise DataError(str(path), "has no texts", public="has no texts")
    return rows


def _json_lines(path: Path, columns: Sequence[tuple[str, str]]) -> Iterator[tuple[str, ...]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as exc:
                raise _in_line(path, number, _NO_OBJECT) from exc
            yield _cells(path, number, row, columns)


def _csv(path: Path, columns: Sequence[tuple[str, str]]) -> Iterator[tuple[str, ...]]:
    # A text may be longer than the module's 128 KiB; the file's own size limits it.
    csv.field_size_limit(sys.maxsize)
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                yield _cells(path, reader.line_num, row, columns)
    except csv.Error as exc:
        raise DataError(
            str(path), f"is not a CSV file ({exc})", public="is not a CSV file"
        ) from exc


def _parquet(path: Path, columns: Sequence[tuple[str, str]]) -> Iterator[tuple[str, ...]]:
    try:
        table = packages.pyarrow_part("parquet").read_table(str(path))
    except packages.pyarrow().ArrowException as exc:
        raise DataError(
            str(path), f"is not a parquet file ({exc})", public="is not a parquet file"
        ) from exc
    yield from _rows(path, table, columns)


def _folder(path: Path, columns: Sequence[tuple[str, str]]) -> Iterator[tuple[str, ...]]:
    # The folder itself was found inside the data folder; its files are, if they are inside of it.
    found = tables.of_folder(path, path)
    names = [name for name, _ in columns if name in found.column_names]
    # Rows that ``select`` or ``shuffle`` had chosen before it was saved are chosen by indices.
    chosen = found.select_columns(names or found.column_names).with_format("arrow")
    yield from _rows(path, chosen[:], columns)


def _rows(path: Path, table: Any, columns: Sequence[tuple[str, str]]) -> Iterator[tuple[str, ...]]:
    wanted = [name for name, _ in columns if name in table.column_names]
    for number, row in enumerate(table.select(wanted).to_pylist(), 1):
        yield _cells(path, number, row, columns)


def _lines(path: Path, columns: Sequence[tuple[str, str]]) -> Iterator[tuple[str, ...]]:
    if len(columns) > 1:
        option = columns[1][1]
        what = f"is plain text, which has no column for {option}; use JSON lines, CSV or parquet"
        raise DataError(str(path), what, public=what)
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield (line.rstrip("\r\n"),)


_READERS = {
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
    ".txt": _lines,
}


def _cells(
    path: Path, number: int, row: Any, columns: Sequence[tuple[str, str]]
) -> tuple[str, ...]:
    """Texts of a row's columns."""
    if not isinstance(row, dict):
        raise _in_line(path, number, _NO_OBJECT)
    found = []
    for name, option in columns:
        value = row.get(name)
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, int | float):
            # True and False as JSON has them.
            found.append(str(value).lower() if isinstance(value, bool) else str(value))
        else:
            state = "has no" if value is None else "has neither text nor number as"
            raise _in_line(path, number, f"{state} {name} ({option})")
    return tuple(found)


def _in_line(path: Path, number: int, what: str) -> DataError:
    """The error of one line; its number stays at the site, as it may stand for a patient."""
    return DataError(str(path), f"line {number}: {what}", public=f"a line {what}")
