"""Any table that is written by the csv module is read as it was, or refused at the first cell that is none."""

from __future__ import annotations

import csv
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_queue.errors import DataError
from fl_queue.tables import MISSING, Column, TableForm, read
from fl_queue.tables.schema import NOTHING
from fl_queue.tables.wrong_cells import problem

pytest.importorskip("pyarrow")

LEVELS = ("low", "high, really", 'a "word"', "two\nlines", "ü")
NUMBERS = st.one_of(
    st.floats(-1e12, 1e12).map(repr),
    st.integers(-(10**6), 10**6).map(str),
    st.sampled_from(NOTHING),
)
CELLS = st.one_of(
    NUMBERS,
    st.sampled_from(["1.", ".5", "-.5e3", "+1", "1e400", "nan(1)", "1,5", "1 000", "0b1", "true", "5-", "٣", "--1"]),
)  # fmt: skip


def number(cell: str, decimal: str) -> float:
    return math.nan if cell in NOTHING else float(cell.replace(decimal, "."))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(NUMBERS, st.sampled_from([*LEVELS, "other", *NOTHING])), min_size=1, max_size=30),
    st.sampled_from([",", ";", "tab", "|"]),
    st.sampled_from(["\n", "\r\n"]),
)  # fmt: skip
def test_what_the_csv_module_writes_is_read_as_it_was(
    rows: list[tuple[str, str]], delimiter: str, newline: str
) -> None:
    decimal = "." if delimiter == "," else ","
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            mark = "\t" if delimiter == "tab" else delimiter
            writer = csv.writer(file, delimiter=mark, lineterminator=newline)
            writer.writerow(["level", "x"])
            writer.writerows((level, cell.replace(".", decimal)) for cell, level in rows)
        columns = [Column("x"), Column("level", "category", LEVELS)]
        # Cells without a decimal sign show none.
        found = read(path, columns, TableForm(delimiter=delimiter, decimal=decimal))
    np.testing.assert_array_equal(found["x"], [number(cell, ".") for cell, _ in rows])
    codes = [
        MISSING if level in NOTHING else LEVELS.index(level) if level in LEVELS else len(LEVELS)
        for _, level in rows
    ]
    assert found["level"].tolist() == codes


@settings(max_examples=150, deadline=None)
@given(
    st.lists(CELLS, min_size=1, max_size=12),
    st.sampled_from(["number", "integer", "boolean", "date"]),
)
def test_a_column_is_read_exactly_where_no_cell_is_wrong(cells: list[str], kind: str) -> None:
    column = Column("x", kind)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [["y", "x"], *(["1", cell] for cell in cells)]
            )
        wrong = [
            (at, why)
            for at, cell in enumerate(cells)
            if cell not in NOTHING and (why := problem(column, cell))
        ]
        if not wrong:
            assert len(read(path, [column])["x"]) == len(cells)
            return
        with pytest.raises(DataError) as caught:
            read(path, [column])
    at, why = wrong[0]
    assert caught.value.reason == f"line {at + 2}, column x: {why}"
    # No cell leaves the site, whatever it is.
    assert caught.value.public == f"t.csv: {caught.value.reason}"
