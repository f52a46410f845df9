"""
A table's declared columns as arrays, read by pyarrow.

Columns that no config names are not parsed, and cannot fail. No polars: it fills a row that is too short with
nulls, without an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_queue.common.extras import how_to_install
from fl_queue.errors import ConfigError
from fl_queue.tables import arrow, dialect, wrong_cells
from fl_queue.tables.dialect import Dialect, IsVisible, check_header, dialect_of, refusal
from fl_queue.tables.schema import (
    DELIMITERS,
    FALSE,
    MISSING,
    OTHER,
    TRUE,
    Column,
    TableForm,
    codes_of,
)

Columns = dict[str, NDArray[Any]]
#: Suffixes of text files, and of the others with what reads them.
TEXT = (".csv", ".tsv", ".txt")
BINARY = {
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "feather", ".feather": "feather", ".ipc": "feather"
}  # fmt: skip
#: Of what is read at once of a text file, bytes: at first, and the most at which a longer row has it grow.
_BLOCK, _LARGEST = 1024**2, 2**27
_DAY_S = 86_400


def read(path: Path, columns: Sequence[Column], form: TableForm | None = None) -> Columns:
    """
    The columns of a file, in its order of rows.

    Args:
        path: ``*.csv``, ``*.tsv``, ``*.txt``, ``*.parquet``, ``*.pq``, ``*.arrow``, ``*.feather`` or ``*.ipc``.
        columns: Which; each name once.
        form: Of a text file; detected unless it is given.

    Returns:
        Name -> array (rows,): float64 with NaN for a missing value, of booleans 0 and 1, of dates the days since
        1970-01-01; of a category int32 codes, from 0 in the order of its levels, ``len(levels) + OTHER`` of a level
        that is not declared, ``MISSING`` of none.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: The file cannot be read, lacks a column, or a cell is no value of it; names line and column, and
            never the cell.
    """
    if _is_text(path):
        return _text(path, columns, form or TableForm())
    return _binary(path, columns, BINARY[path.suffix.lower()])


def header_of(
    path: Path, columns: Sequence[Column], form: TableForm, is_visible: IsVisible | None = None
) -> tuple[tuple[str, ...], TableForm]:
    """
    Names of all columns of a file, and its form with nothing left to detect.

    Args:
        columns: Those that will be read.
        is_visible: Of a name; other columns are as if they were not there. None: all are visible.

    Raises:
        ConfigError, DataError: As ``read``, but for a cell.
        DataError: The name of a column is several by another delimiter.
    """
    is_visible = is_visible or bool
    if _is_text(path):
        found = dialect_of(path, form, columns, is_visible)
        delimiter = next(name for name, mark in DELIMITERS.items() if mark == found.delimiter)
        form = replace(form, delimiter=delimiter, decimal=found.decimal)
        dialect.check_joined(path, form, columns)
        return found.header, form
    with _refusing(path):
        header = tuple(_schema(path, BINARY[path.suffix.lower()]).names)
    check_header(path, header, columns, is_visible)
    return header, form


def table_of_texts(path: Path, names: Sequence[str] | None, form: TableForm) -> Any:
    """
    Columns as an Arrow table: of a text file as large strings (all: as bytes), of another one as they are.

    Args:
        names: Which; None: all, in their order.
        form: Of ``header_of``.

    Raises:
        ConfigError, DataError: As ``read``, but for a cell of any kind.
    """
    if not _is_text(path):
        with _refusing(path):
            return _binary_table(path, names, BINARY[path.suffix.lower()])
    found = dialect_of(path, form, [Column(name, "text") for name in names or ()])
    kind = arrow.pyarrow().large_string()
    if names is None:
        # Columns that are not asked for cannot fail: they may be in another encoding.
        names, kind = _unique(found.header), arrow.pyarrow().large_binary()
    with _text_errors(path, found, form, ()):
        return _text_table(path, found, form, dict.fromkeys(names, kind))


def row_count(path: Path, form: TableForm) -> int:
    """
    Rows of a file, whatever is wrong with their cells.

    Args:
        form: Of ``header_of``.

    Raises:
        ConfigError, DataError: As ``read``, but for a cell.
    """
    if _is_text(path):
        return dialect.row_count(path, form)
    with _refusing(path):
        return int(_binary_table(path, None, BINARY[path.suffix.lower()]).num_rows)


def boolean_columns(path: Path, names: Sequence[str], form: TableForm) -> set[str]:
    """Columns of a text file whose cells are words for true and false; another file has types."""
    return dialect.boolean_columns(path, names, form) if _is_text(path) else set()


def even_delimiters(path: Path) -> list[str]:
    """Delimiters by which a text file has as many cells in each line, more than one; the most cells first."""
    return dialect.even_delimiters(path) if _is_text(path) else []


def _is_text(path: Path) -> bool:
    """Whether a file is a text. Raises ConfigError without pyarrow, DataError for a name of no table."""
    try:
        arrow.pyarrow()
    except ImportError as exc:
        raise ConfigError(
            "run.task",
            f"tables need the package pyarrow; {how_to_install('tables')}",
            public="tables need the package pyarrow, of the extra tables",
        ) from exc
    suffix = path.suffix.lower()
    if suffix not in (*TEXT, *BINARY):
        raise refusal(
            path, f"is no table: its name must end in one of {', '.join((*TEXT, *BINARY))}"
        )
    return suffix in TEXT


def _text(path: Path, columns: Sequence[Column], form: TableForm) -> Columns:
    found = dialect_of(path, form, columns)
    with _text_errors(path, found, form, columns):
        kinds = {one.name: _arrow_type(one) for one in columns}
        made = _taken(_text_table(path, found, form, kinds), columns, form.missing)
    if not len(made[columns[0].name]):
        raise refusal(path, "has no rows below its header")
    return made


@contextmanager
def _text_errors(
    path: Path, found: Dialect, form: TableForm, columns: Sequence[Column]
) -> Iterator[None]:
    """Raise DataError, with the place of what cannot be read, for an error of Arrow: its text quotes cells."""
    try:
        yield
    except (arrow.pyarrow().ArrowException, _Unusable) as exc:
        raise wrong_cells.error(path, found, form, columns) from exc


def _text_table(path: Path, found: Dialect, form: TableForm, kinds: Mapping[str, Any]) -> Any:
    """The columns of ``kinds`` as an Arrow table. Raises ArrowException, DataError."""
    quotes, csv = _count(path, b'"'), arrow.part("csv")
    table = _parsed(
        path,
        found,
        csv.ParseOptions(delimiter=found.delimiter, newlines_in_values=quotes > 0),
        csv.ConvertOptions(
            include_columns=list(kinds),
            column_types=kinds,
            null_values=list(form.missing),
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
            true_values=list(TRUE),
            false_values=list(FALSE),
            decimal_point=found.decimal,
            timestamp_parsers=[csv.ISO8601],
        ),
    )
    # A quote without its other half takes all rows after it for its cell.
    if quotes % 2 and (line := wrong_cells.open_quote(path, found)):
        why = "a quote begins there that is not closed"
        raise refusal(path, f"line {line}: {why}", "a quote is not closed")
    return table


def _parsed(path: Path, found: Dialect, parse: Any, convert: Any) -> Any:
    """The Arrow table of a text file. Raises ArrowException."""
    pyarrow, csv = arrow.pyarrow(), arrow.part("csv")
    block, size = _BLOCK, path.stat().st_size
    while True:
        options = csv.ReadOptions(
            block_size=block, column_names=_unique(found.header), skip_rows=found.header_lines
        )
        try:
            return csv.read_csv(
                str(path), read_options=options, parse_options=parse, convert_options=convert
            )
        except pyarrow.ArrowInvalid as exc:
            # A header or a row is longer: of a wide table, or with a long note in a column that is not read.
            if "block size" not in str(exc) or block > min(size, _LARGEST):
                raise
            block *= 8


def _unique(header: Sequence[str]) -> list[str]:
    """Names for all columns; those that are not read may stand twice."""
    first = dict[str, int]()
    return [
        name if first.setdefault(name, at) == at else f"\0{at}" for at, name in enumerate(header)
    ]


def _count(path: Path, what: bytes) -> int:
    """How often a byte is in a file."""
    with path.open("rb") as file:
        return sum(part.count(what) for part in iter(partial(file.read, _BLOCK), b""))


class _Unusable(Exception):
    """Values that are no finite or no whole numbers, of a column and a row from 0."""

    def __init__(self, column: Column, row: int, why: str) -> None:
        super().__init__()
        self.column, self.row, self.why = column, row, why


def _arrow_type(column: Column) -> Any:
    pyarrow = arrow.pyarrow()
    if column.kind == "category":
        return pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    if column.kind == "text":
        return pyarrow.string()
    if column.kind == "boolean":
        return pyarrow.bool_()
    return pyarrow.timestamp("s") if column.kind == "date" else pyarrow.float64()


def _taken(table: Any, columns: Sequence[Column], missing: Sequence[str] = ()) -> Columns:
    """Columns of an Arrow table as arrays; each leaves the table, so that none is in memory twice."""
    made: Columns = {}
    for column in columns:
        at = table.column_names.index(column.name)
        values = table.column(at)
        table = table.remove_column(at)
        made[column.name] = _array(values, column, missing)
        del values
    return made


def _array(values: Any, column: Column, missing: Sequence[str]) -> NDArray[Any]:
    """A column (rows,) of an Arrow table. Raises _Unusable."""
    pyarrow, compute = arrow.pyarrow(), arrow.part("compute")
    if column.is_required and values.null_count:
        _refuse(column, "no value", np.asarray(compute.is_null(values)))
    if column.kind == "category":
        codes = _codes(values, column, missing)
        _refuse(column, "no value", column.is_required & (codes == MISSING))
        other = codes == len(column.levels) + OTHER
        _refuse(column, wrong_cells.CLOSED, column.is_closed & other)
        return codes
    if column.kind == "text":
        texts = np.array([str(one).strip() for one in values.to_pylist()])
        _refuse(column, "no value", column.is_required & np.isin(texts, list(missing)))
        return texts
    if column.kind == "date":
        seconds = compute.cast(values, pyarrow.int64())
        return np.floor(_floats(seconds) / _DAY_S)
    found = _floats(values)
    bad = np.isinf(found)
    if values.null_count != np.isnan(found).sum():
        bad |= np.isnan(found) & ~np.asarray(compute.is_null(values))
    if column.kind == "integer" and not bad.any():
        whole = np.isnan(found) | (np.floor(found) == found)
        _refuse(column, "not a whole number", ~whole)
    if column.kind == "boolean":
        _refuse(column, "not true or false", ~(np.isnan(found) | (found == 0) | (found == 1)))
    _refuse(column, "not a finite number", bad)
    return found


def _refuse(column: Column, why: str, bad: NDArray[np.bool_]) -> None:
    """Raise _Unusable for the first of the rows (rows,) that cannot be used, if there is one."""
    if bad.any():
        raise _Unusable(column, int(np.argmax(bad)), why)


def _floats(values: Any) -> NDArray[np.float64]:
    """Numbers (rows,), NaN where there are none; block by block, so that no column is there three times."""
    found = np.empty(len(values), np.float64)
    start = 0
    for block in values.chunks:
        part = block.cast(arrow.pyarrow().float64(), safe=False)
        found[start : start + len(part)] = part.to_numpy(zero_copy_only=False)
        start += len(part)
    return found


def _codes(values: Any, column: Column, missing: Sequence[str]) -> NDArray[np.int32]:
    """Codes (rows,) of a category, by its levels; spaces around a cell are no part of it."""
    levels = column.levels
    known = codes_of(levels) | dict.fromkeys(missing, MISSING)
    found = np.empty(len(values), np.int32)
    start = 0
    for block in values.chunks:
        names = [str(name).strip() for name in block.dictionary.to_pylist()]
        # The last one is that of a missing value, whose index is -1.
        codes = np.array([*(known.get(name, len(levels) + OTHER) for name in names), MISSING])
        indices = block.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        found[start : start + len(block)] = codes[indices]
        start += len(block)
    return found


# Files with types of their own


def _binary(path: Path, columns: Sequence[Column], reader: str) -> Columns:
    try:
        with _refusing(path):
            schema = _schema(path, reader)
            check_header(path, schema.names, columns)
            for column in columns:
                check_type(path, column, schema.field(column.name).type)
            table = _binary_table(path, [one.name for one in columns], reader)
            made = _taken(_converted(table, columns), columns)
    except _Unusable as exc:
        where = f"column {exc.column.name}: {exc.why}"
        away = where if exc.why == wrong_cells.CLOSED else f"row {exc.row + 1}, {where}"
        raise refusal(path, f"row {exc.row + 1}, {where}", away) from exc
    if not len(made[columns[0].name]):
        raise refusal(path, "has no rows")
    return made


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Raise DataError for an error of Arrow."""
    try:
        yield
    except FileNotFoundError as exc:
        raise refusal(
            path, "cannot be read: there is no such file; see data.dir and task.file"
        ) from exc
    except (arrow.pyarrow().ArrowException, OSError) as exc:  # Its text may quote cells.
        raise refusal(
            path,
            f"is no {path.suffix} file that can be read ({type(exc).__name__})",
            f"is no {path.suffix} file that can be read",
        ) from exc


def _binary_table(path: Path, names: Sequence[str] | None, reader: str) -> Any:
    """An Arrow table. Raises ArrowException, OSError."""
    module = arrow.part(reader)
    wanted = None if names is None else list(names)
    if reader == "parquet":
        return module.read_table(str(path), columns=wanted)
    return module.read_table(str(path), columns=wanted, memory_map=False)


def _schema(path: Path, reader: str) -> Any:
    pyarrow = arrow.pyarrow()
    if reader == "parquet":
        return arrow.part("parquet").read_schema(str(path))
    with pyarrow.OSFile(str(path)) as file:
        return pyarrow.ipc.open_file(file).schema


def check_type(path: Path, column: Column, kind: Any) -> None:
    """Raise DataError unless a column of a file has a type that its declared one can be read from."""
    types = arrow.part("types")
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind)
    fits = {
        "number": is_number or types.is_boolean(kind),
        "integer": is_number or types.is_boolean(kind),
        # 0 and 1; with missing values pandas makes float64 of them.
        "boolean": types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind),
        "date": types.is_date(kind) or types.is_timestamp(kind),
        "category": is_text or types.is_integer(kind) or types.is_boolean(kind),
        "text": is_text or types.is_integer(kind),
    }
    # A column without any value has no type, as pandas writes it.
    if not fits[column.kind] and not types.is_null(kind):
        raise refusal(
            path, f"column {column.name}: its type is {kind} there, and {column.kind} is declared"
        )


def _converted(table: Any, columns: Sequence[Column]) -> Any:
    """The same table with the types that text files are read with; a NaN of pandas is a missing value."""
    pyarrow, compute, types = arrow.pyarrow(), arrow.part("compute"), arrow.part("types")
    for column in columns:
        at = table.column_names.index(column.name)
        values = table.column(at)
        kind = values.type
        if column.kind == "category":
            if types.is_dictionary(kind):
                values = values.cast(kind.value_type)
            values = values.cast(pyarrow.string()).dictionary_encode()
        elif column.kind == "text":
            values = values.cast(pyarrow.string())
        elif column.kind == "date":
            if types.is_timestamp(kind) and kind.tz is not None:
                # The day where the zone is; a date at midnight would else be the day before, east of Greenwich.
                values = compute.local_timestamp(values)
            # To the day before, not to zero, for a time before 1970.
            values = values.cast(pyarrow.date32(), safe=False).cast(pyarrow.timestamp("s"))
        elif types.is_null(kind):
            values = values.cast(_arrow_type(column))
        elif types.is_floating(kind):
            values = compute.if_else(compute.is_nan(values), None, values)
        table = table.set_column(at, column.name, values)
    return table
