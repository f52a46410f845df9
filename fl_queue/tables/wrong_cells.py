"""
Find the place of a cell that cannot be used: a second, slow reading of a text file that was refused.

An error that leaves the site has file, line and column, and never the cell. No pyarrow here.
"""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from fl_queue.errors import DataError
from fl_queue.tables.dialect import Dialect, refusal
from fl_queue.tables.schema import FALSE, NOTHING, TRUE, Column, TableForm, codes_of

log = logging.getLogger(__name__)
#: Places that the site's own log names.
_NAMED = 3
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
#: Such as 1.234,5 or 1.234.567; or 1.234 where the decimal sign is a comma.
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}([., ']\d{3})+([.,]\d*)?", re.ASCII)
#: Of a cell whose line the config, which chooses the levels, could use to read the file.
CLOSED = "not one of the values that task.classes lists"
_EMPTY = "no value"
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d(:\d\d(:\d\d)?)?)?", re.ASCII)


def problem(column: Column, cell: str, decimal: str = ".") -> str:
    """Why a cell is no value of a column; empty: it is one."""
    if column.kind in ("category", "text"):
        return CLOSED if column.is_closed and cell not in codes_of(column.levels) else ""
    if column.kind == "boolean":
        return "" if cell in (*TRUE, *FALSE) else "not true or false"
    if column.kind == "date":
        return "" if _is_date(cell) else "not a date such as 2024-02-29"
    plain = cell if decimal == "." else cell.replace(".", "x").replace(decimal, ".")
    if not _NUMBER.fullmatch(plain):
        is_grouped = _GROUPED.fullmatch(cell)
        return f"not a number{'; write thousands without a separator' if is_grouped else ''}"
    if not math.isfinite(float(plain)):
        return "not a finite number"
    if column.kind == "integer" and float(plain) % 1:
        return "not a whole number"
    return ""


def error(path: Path, dialect: Dialect, form: TableForm, columns: Sequence[Column]) -> DataError:
    """
    The error for a file that cannot be read, by its first wrong line or cell.

    The line leaves the site only where the config has not chosen what counts as missing: it could else ask for
    the cells of a column one by one.
    """
    found: dict[bool, list[tuple[int, str, str]]] = {False: [], True: []}
    count = 0
    for place in _wrong(path, dialect, form, columns):
        count += 1
        # Last of all, so that the order of errors has nothing to read either.
        if len(found[place[2] == CLOSED]) < _NAMED:
            found[place[2] == CLOSED].append(place)
    places = [*found[False], *found[True]]
    if not places:
        return refusal(path, "cannot be read as a table; see task.delimiter")
    named = [f"line {line}{f', {where}' if where else ''}: {why}" for line, where, why in places]
    log.error("%s: %s; %d such places in all", path, "; ".join(named[:_NAMED]), count)
    _, where, why = places[0]
    is_shown = tuple(form.missing) == NOTHING and why != CLOSED
    return refusal(path, named[0], named[0] if is_shown else f"{where or 'a line'}: {why}")


def open_quote(path: Path, dialect: Dialect) -> int:
    """Line at which the last row of a file begins, if a quote in it is not closed; 0 else."""
    line = 1
    # The cell is as long as the rest of the file.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.reader(file, delimiter=dialect.delimiter, strict=True)
            try:
                for _ in reader:
                    line = reader.line_num + 1
            except csv.Error:
                # Text behind a closing quote is an error as well, and may be anywhere.
                return line if not file.read(1) else 0
    finally:
        csv.field_size_limit(limit)
    return 0


def _wrong(
    path: Path, dialect: Dialect, form: TableForm, columns: Sequence[Column]
) -> Iterator[tuple[int, str, str]]:
    """Line, column and reason of each place that cannot be used."""
    at: Mapping[str, int] = {name: index for index, name in enumerate(dialect.header)}
    width = len(dialect.header)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file, delimiter=dialect.delimiter)
        try:
            for row in reader:
                if reader.line_num <= dialect.header_lines or not row:
                    continue
                if len(row) != width:
                    cells = f"{len(row)} cell{'s' * (len(row) != 1)}"
                    yield reader.line_num, "", f"{cells}, the header has {width}"
                    continue
                for column in columns:
                    why = _why(column, row[at[column.name]], form, dialect.decimal)
                    if why:
                        yield reader.line_num, f"column {column.name}", why
        except csv.Error:
            yield reader.line_num, "", "cannot be read as cells"


def _why(column: Column, cell: str, form: TableForm, decimal: str) -> str:
    if "\0" in cell or "\N{REPLACEMENT CHARACTER}" in cell:
        return "not text in UTF-8"
    # Spaces around a number or a level are none of it; a boolean or a date has none.
    is_exact = column.kind in ("boolean", "date")
    if cell in form.missing or (
        column.kind in ("category", "text") and cell.strip() in form.missing
    ):
        return _EMPTY if column.is_required else ""
    return problem(column, cell if is_exact else cell.strip(), decimal)


def _is_date(cell: str) -> bool:
    if not _DATE.fullmatch(cell):
        return False
    try:
        datetime.fromisoformat(cell)
    except ValueError:
        return False
    return True
