"""Delimiter, header and decimal sign of a text file, from its first lines. No pyarrow here."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_queue.common.spelling import nearest
from fl_queue.errors import DataError
from fl_queue.tables.schema import DELIMITERS, FALSE, TRUE, Column, TableForm

#: Bytes and lines that are looked at.
_HEAD, _LINES = 64 * 1024, 100
#: Lines that are looked at however long they are, such as a header with genes, and the most bytes of them.
_LEAST, _LONGEST = 10, 64 * 1024**2
_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_POINT = re.compile(r"[+-]?\d*\.\d+([eE][+-]?\d+)?")


IsVisible = Callable[[str], bool]


@dataclass(frozen=True)
class Dialect:
    """
    The form of one file.

    Args:
        delimiter: The character.
        decimal: ``.`` or ``,``.
        header: Names of the columns, without spaces around them.
        header_lines: Lines of the file up to the end of the header.
    """

    delimiter: str
    decimal: str
    header: tuple[str, ...]
    header_lines: int


def dialect_of(
    path: Path, form: TableForm, columns: Sequence[Column], is_visible: IsVisible = bool
) -> Dialect:
    """
    The form of a file: as it is declared, else as its first lines have it.

    Args:
        columns: Those that will be read.
        is_visible: Of a name; other columns are as if they were not there.

    Raises:
        DataError: It is empty, no text in UTF-8, or can be read in two ways; names the option to set.
    """
    head = _head(path)
    wanted = {column.name for column in columns if is_visible(column.name)}
    is_hidden = len(wanted) < len({column.name for column in columns})
    delimiter = DELIMITERS[form.delimiter] if form.delimiter else ""
    delimiter = delimiter or _delimiter(path, head, wanted if not is_hidden else None)
    lines, rows = _rows(head, delimiter)
    if not rows or not any(rows[0]):
        raise refusal(path, "is empty; its first line must name the columns")
    header = tuple(rows[0])
    check_header(path, header, columns, is_visible)
    decimal = form.decimal or _decimal(path, delimiter, header, rows[1:], columns)
    return Dialect(delimiter, decimal, header, lines[0])


def boolean_columns(path: Path, names: Sequence[str], form: TableForm) -> set[str]:
    """
    Columns whose first value in the first lines is a word for true or false; 1 and 0 are numbers.

    Args:
        names: Of columns that are there once.
        form: With nothing left to detect.
    """
    header, *rows = _rows(_head(path), DELIMITERS[form.delimiter])[1]
    words = {*TRUE, *FALSE} - {"1", "0"}
    found = set()
    for name in names:
        at = header.index(name)
        cells = (row[at] for row in rows if at < len(row) and row[at] not in form.missing)
        if next(cells, None) in words:
            found.add(name)
    return found


def even_delimiters(path: Path) -> list[str]:
    """
    Delimiters by which all first lines have as many cells, more than one; the most cells first.

    Raises:
        DataError: The file is no text in UTF-8, or not there.
    """
    head, widths = _head(path), dict[str, int]()
    for name, mark in DELIMITERS.items():
        found = {len(row) for row in _rows(head, mark)[1]}
        if len(found) == 1 and (width := found.pop()) > 1:
            widths[name] = width
    return sorted(widths, key=lambda name: -widths[name])


def check_joined(path: Path, form: TableForm, columns: Sequence[Column]) -> None:
    """
    Raise DataError for the name of a column that is several by another delimiter than the form's.

    It would join cells of columns: of one that is hidden, or in numbers whose decimal sign is the delimiter.
    """
    for name in even_delimiters(path):
        for column in columns:
            if name != form.delimiter and DELIMITERS[name] in column.name:
                raise refusal(
                    path,
                    f"column {column.name}: its name is several columns by the delimiter {name}; correct task.delimiter, "
                    "or rename it in the table",
                )


def row_count(path: Path, form: TableForm) -> int:
    """Rows of a text file below its header, whatever is wrong with them; empty lines are none."""
    # A cell may be as long as the file.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            return sum(map(bool, csv.reader(file, delimiter=DELIMITERS[form.delimiter]))) - 1
    finally:
        csv.field_size_limit(limit)


def refusal(path: Path, reason: str, away: str | None = None) -> DataError:
    """An error about a file. Args: ``away``: how it reads elsewhere; the same unless given."""
    # The config named the file, so its plain name is known elsewhere.
    return DataError(str(path), reason, public=f"{path.name}: {reason if away is None else away}")


def check_header(
    path: Path,
    header: Sequence[str],
    columns: Sequence[Column],
    is_visible: IsVisible = bool,
) -> None:
    """Raise DataError for a wanted column that is missing, hidden or stands twice, and for one without a name."""
    found = dict[str, list[str]]()
    for index, name in enumerate(header, 1):
        if is_visible(name):
            found.setdefault(name, []).append(str(index))
    for column in columns:
        places = found.get(column.name, [])
        if len(places) > 1:
            raise refusal(
                path,
                f"column {column.name} stands {len(places)} times in the header, as columns "
                f"{', '.join(places)}; rename or remove the others",
            )
        if not places:
            near = nearest(column.name, [name for name in found if name])
            raise refusal(
                path,
                f"has no column {column.name}{near}; its columns: {', '.join(found)}",
                f"has no column {column.name}",
            )


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_HEAD)
            while max(raw.count(b"\n"), raw.count(b"\r")) <= _LEAST and len(raw) < _LONGEST:
                more = file.read(len(raw) or 1)
                raw += more
                if not more:
                    break
            is_whole = not file.read(1)
    except OSError as exc:
        why = exc.strerror or type(exc).__name__
        raise refusal(path, f"cannot be read: {why}; see data.dir and task.file") from exc
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw:
        raise refusal(path, "is no text in UTF-8; save it as CSV UTF-8")
    if not is_whole:
        # The last line, and the character in it that may be cut in two, are left out.
        raw = raw[: raw.rfind(b"\n") + 1] or raw
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise refusal(path, "is no text in UTF-8; save it as CSV UTF-8") from exc


def _rows(head: str, delimiter: str) -> tuple[list[int], list[list[str]]]:
    """Ends of the first rows, as lines of the file, and their cells; empty lines are none."""
    reader, ends, rows = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter), [], []
    try:
        for row in reader:
            if row:
                ends.append(reader.line_num)
                rows.append([cell.strip() for cell in row])
            if len(rows) > _LINES:
                break
    except csv.Error:
        pass  # A cell longer than 128 KiB: what is wrong there, the reading finds.
    return ends, rows


def _delimiter(path: Path, head: str, wanted: Collection[str] | None) -> str:
    """
    The one delimiter by which all lines have as many cells, and the header the columns.

    Args:
        wanted: Names of the columns; None: one is not there.
    """
    split = {mark: _rows(head, mark)[1] for mark in DELIMITERS.values()}
    found = [
        mark
        for mark, rows in split.items()
        if rows and wanted is not None and {*wanted} <= {*rows[0]}
    ]
    if len(found) > 1:
        even = [mark for mark in found if len({len(row) for row in split[mark]}) == 1]
        found = even if even else found
    if not found:
        found = [
            mark
            for mark, rows in split.items()
            if rows and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1
        ]
    if len(found) == 1:
        return found[0]
    if not found:
        return ","
    # A file of one column reads alike with each.
    if all(len(split[mark][0]) == 1 for mark in found):
        return ","
    raise refusal(path, "its cells may be separated in two ways; set task.delimiter")


def _decimal(
    path: Path,
    delimiter: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    columns: Sequence[Column],
) -> str:
    """The decimal sign of the first rows' numbers; cells such as 1,234 alone decide nothing."""
    if delimiter == ",":
        return "."
    at = {name: index for index, name in enumerate(header)}
    places = [at[one.name] for one in columns if one.kind in ("number", "integer")]
    cells = [row[at] for row in rows for at in places if at < len(row)]
    commas = [cell for cell in cells if _COMMA.fullmatch(cell)]
    if not commas:
        if any(_GROUPED.fullmatch(cell) for cell in cells):
            raise refusal(path, "its numbers have commas between thousands; write them without")
        return "."
    if any(_POINT.fullmatch(cell) for cell in cells):
        raise refusal(path, "its numbers have both decimal points and commas; set task.decimal")
    if all(_GROUPED.fullmatch(cell) for cell in commas):
        raise refusal(path, "cells such as 1,234 may be thousands or decimals; set task.decimal")
    return ","
