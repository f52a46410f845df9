"""
A site's table: the columns that an analysis reads, and the hashes of its rows.

An error names file, line and column, and never the content of a cell. No Redis and no torch here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_queue import tables
from fl_queue.analyses.base import Columns, SiteRows
from fl_queue.analyses.filters import Condition
from fl_queue.analyses.suppression import Mask
from fl_queue.client.policy import SitePolicy
from fl_queue.errors import DataError, PolicyRefusal
from fl_queue.protocol.arrays import Float64s
from fl_queue.tables import Column, TableForm, Texts
from fl_queue.tables.cell_hash import Hashes


@dataclass(frozen=True)
class ReadTable:
    """
    A table as it was read.

    Args:
        table: The columns that were asked for, of the rows that a question is about.
        whole: The same of all rows.
        is_in: (rows,) whether a row of the file is one of those.
        texts: Category -> each row's text, and of further columns whose groups are compared.
        path: The file.
        form: Of a text file.
        seen: What the file was when it was read.
    """

    table: SiteRows
    whole: SiteRows
    is_in: Mask
    texts: Mapping[str, Texts]
    path: Path
    form: TableForm
    seen: tuple[int, ...]

    def row_hashes(self, key: bytes) -> Hashes:
        """
        Hashes of the rows that a question is about, over all columns of the file, (rows,) in their order.

        Args:
            key: 32 bytes; it stays at the site, so that no row can be looked up.

        Raises:
            DataError: The file has changed since it was read.
        """
        found = tables.hashes(self.path, self.form, key)
        _check_unchanged(self.path, self.seen)
        return found[self.is_in]


def read(
    path: Path,
    columns: Columns,
    policy: SitePolicy,
    beside: Collection[str] = (),
    form: TableForm | None = None,
    where: Sequence[Condition] = (),
) -> ReadTable:
    """
    Read the columns that an analysis asks for.

    Args:
        policy: Columns that it hides are as if they were not there.
        beside: Columns whose texts are wanted, too, as far as they are there.
        form: Of a text file; detected unless it is given.
        where: Conditions of the rows that a question is about.

    Raises:
        ConfigError: pyarrow is not installed.
        PolicyRefusal: The table has too few rows, or the conditions leave in or out too few.
        DataError: The file cannot be read, a column is missing or stands twice, a row has another length than the
            header, or a cell is no number.
    """
    seen = _seen(path)
    wanted = [_column(name, columns) for name in columns.names]
    header, form = tables.header_of(path, wanted, form or TableForm(), policy.is_visible)
    beside = {name for name in (*beside, *columns.filters) if name and header.count(name) == 1}
    beside -= {*columns.categories, *columns.texts}
    try:
        kinds = ("category", "text")
        numbers = _numbers(path, [one for one in wanted if one.kind not in kinds], form)
        texts = tables.texts(path, [*columns.categories, *columns.texts], beside, form)
    except DataError:
        # It may name a line: that is about one row.
        policy.limits.check_rows(tables.row_count(path, form))
        raise
    _check_unchanged(path, seen)
    rows = [len(each) for each in numbers.values()] + [len(each.codes) for each in texts.values()]
    policy.limits.check_rows(rows[0])
    codes = {name: texts[name].placed(levels) for name, levels in columns.categories.items()}
    counted = {name: texts[name].counted() for name in columns.texts}
    whole = SiteRows(rows[0], numbers, codes, texts=counted)
    is_in = rows_of(where, texts, rows[0])
    table = _part(whole, is_in, policy) if where else whole
    return ReadTable(table, whole, is_in, texts, path, form, seen)


def rows_of(where: Sequence[Condition], texts: Mapping[str, Texts], rows: int) -> Mask:
    """
    Rows (rows,) that meet all conditions; a missing cell meets none.

    Raises:
        DataError: A column holds something else than what a condition compares it with.
    """
    found = np.ones(rows, np.bool_)
    for one in where:
        column = texts[one.column]
        # The code of a missing cell is -1, the last one.
        found &= np.append(one.holds(column.names), False)[column.codes]
    return found


def _part(whole: SiteRows, is_in: Mask, policy: SitePolicy) -> SiteRows:
    """Rows that meet the conditions. Raises PolicyRefusal: they, or the others, are few."""
    rows = int(is_in.sum())
    policy.limits.check_rows(rows, "task.where leaves fewer rows than its min_rows")
    # Also for none: whether a rare text is there would follow from an answer to `ward != rare`.
    if whole.rows - rows < policy.min_cell:
        raise PolicyRefusal("task.where leaves out too few rows (min_cell)")
    numbers = {name: values[is_in] for name, values in whole.numbers.items()}
    return SiteRows(rows, numbers, {name: codes[is_in] for name, codes in whole.codes.items()})


def _column(name: str, columns: Columns) -> Column:
    if name in columns.categories or name in columns.texts:
        return Column(name, "category")
    if name not in columns.numbers:
        return Column(name, "text")
    return Column(name, "date" if name in columns.dates else "number")


def _numbers(path: Path, columns: Sequence[Column], form: TableForm) -> dict[str, Float64s]:
    """Columns of numbers; one of words such as yes and no is 1 and 0."""
    if not columns:
        return {}
    words = tables.boolean_columns(path, [one.name for one in columns], form)
    kinds = [Column(one.name, "boolean") if one.name in words else one for one in columns]
    return tables.read(path, kinds, form)


def _seen(path: Path) -> tuple[int, ...]:
    """What changes with a file. Raises DataError if it is not there."""
    try:
        found = path.stat()
    except OSError as exc:
        raise DataError(
            str(path),
            f"cannot be read: {exc.strerror}; see --data and task.file",
            public=f"{path.name}: cannot be read: {exc.strerror}; see --data and task.file",
        ) from exc
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _check_unchanged(path: Path, seen: tuple[int, ...]) -> None:
    """Raise DataError if a file was changed while it was read: its rows would not be those that the ledger notes."""
    if _seen(path) != seen:
        raise DataError(
            str(path), "was changed while it was read; ask again", public="the table was changed"
        )
