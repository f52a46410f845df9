"""Hashes of rows, and columns as texts: the same for the same table, in whatever form it is written."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import csv, feather, parquet

from fl_queue import tables
from fl_queue.tables import MISSING, Column, TableForm, cell_hash, row_texts

KEY = bytes(range(32))
OTHER_KEY = bytes(32)
FRAME = {
    "id": pa.array([1, 2, 3, None], pa.int64()),
    "value": pa.array([30.0, -0.5, 1e30, 1.5e-7]),
    "small": pa.array([1.5, None, 0.0, -2.25], pa.float32()),
    "is_ill": pa.array([True, False, None, True]),
    "name": pa.array(["Ann", "Bo, B.", "Çelik", None]),
    "stage": pa.array(["I", "II", "I", "III"]).dictionary_encode(),
    "day": pa.array([0, 19_000, None, 5], pa.int32()).cast(pa.date32()),
}
TABLE = pa.table(FRAME)


def _form(path: Path, column: str) -> TableForm:
    return tables.header_of(path, [Column(column)], TableForm())[1]


def _hashes(path: Path, column: str, key: bytes = KEY) -> list[int]:
    form = _form(path, column)
    return [int(one) for one in tables.hashes(path, form, key)]


def _column(*texts: str | None) -> list[int]:
    column = pa.chunked_array([pa.array(texts, pa.string())])
    return [int(one) for one in row_texts.of_columns([("x", column)], KEY)]


WRITERS: dict[str, Callable[[pa.Table, Path], object]] = {
    "csv": lambda table, path: csv.write_csv(table, path),
    "tsv": lambda table, path: csv.write_csv(table, path, csv.WriteOptions(delimiter="\t")),
    "parquet": lambda table, path: parquet.write_table(table, path, row_group_size=3),
    "feather": lambda table, path: feather.write_feather(table, str(path), chunksize=2),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_copy_in_another_form_has_the_same_rows(tmp_path: Path, suffix: str) -> None:
    """With its columns in another order as well."""
    first, second = tmp_path / "a.csv", tmp_path / f"b.{suffix}"
    csv.write_csv(TABLE, first)
    WRITERS[suffix](TABLE.select(TABLE.column_names[::-1]), second)
    found = _hashes(first, "id")
    assert found == _hashes(second, "id")
    assert len(set(found)) == TABLE.num_rows
    assert found != _hashes(first, "id", OTHER_KEY)


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["2024-02-29", "", "2024-03-01"], ["2024-02-29", None, "2024-03-01"]),
        (["2024-02-29 10:00:01", "2024-03-01 00:00:00"], ["2024-02-29 10:00:01", "2024-03-01"]),
    ],
)
@pytest.mark.parametrize("unit", ["s", "ns"])
def test_times_are_those_of_a_text_file(
    tmp_path: Path, cells: list[str], values: list[str | None], unit: str
) -> None:
    """As pandas writes dates, which it has as nanoseconds."""
    number = range(len(cells))
    rows = [f"{row},{cell}" for row, cell in zip(number, cells, strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(["x,day", *rows]) + "\n")
    times = pa.array([None if value is None else datetime.fromisoformat(value) for value in values])
    made = pa.table({"x": [*number], "day": times.cast(pa.timestamp(unit))})
    parquet.write_table(made, tmp_path / "b.parquet")
    assert _hashes(tmp_path / "a.csv", "x") == _hashes(tmp_path / "b.parquet", "x")


def test_decimal_commas_are_points(tmp_path: Path) -> None:
    """As a spreadsheet writes them in half of Europe."""
    (tmp_path / "a.csv").write_text("x,y\n1.5,a\n-0.25,b\n")
    (tmp_path / "b.csv").write_text("x;y\n1,5;a\n-0,25;b\n")
    found = _hashes(tmp_path / "b.csv", "x")
    assert found == _hashes(tmp_path / "a.csv", "x")


@pytest.mark.parametrize(
    "same",
    [
        ("30", "30.0", "3e1", "+30", "0030.00", "300E-1", " 30 ", "30."),
        ("0", "-0", "0.00", "0e9", ".0"),
        ("-0.5", "-.5", "-5e-01", "-0.50"),
        ("1e30", "1" + "0" * 30, "0.1e31"),
        ("1003", "1003.0", "1.003e3"),
        ("", "NA", "nan", "?", None, " NULL "),
        ("true", "True", "TRUE"),
        ("false", "FALSE"),
    ],
)
def test_ways_to_write_a_cell(same: tuple[str | None, ...]) -> None:
    """They have one hash."""
    assert len(set(_column(*same))) == 1


DIFFERENT = [
    *("30", "-30", "3", "0.3", "303", "3003", "30003", "0", "3e300", "3e-300", "1_000", "1,5"),
    *("e5", "3e", "3e+", ".", "-", "inf", "a", "A", "abcdef", "", "true", "yes", "1.2.3", "--3"),
    *("30 0", "3e30", "3e3e3", "0x10", "é", "e"),
]


def test_different_cells() -> None:
    """Each has its own hash: one digit, one sign, one letter."""
    assert len(set(_column(*DIFFERENT))) == len(DIFFERENT)


def test_a_cell_in_another_column_is_another_row() -> None:
    """Also where two columns have the same name, of which no question can ask."""
    a, b = (pa.chunked_array([pa.array([text])]) for text in ("1", "2"))
    for second in ("y", "x"):
        one = row_texts.of_columns([("x", a), (second, b)], KEY)
        other = row_texts.of_columns([("x", b), (second, a)], KEY)
        assert one != other


@given(
    st.lists(
        st.one_of(
            st.text(max_size=12),
            st.floats().map(str),
            st.from_regex(r"-?0*\d{1,4}\.\d{0,3}e[-+]?\d", fullmatch=True),
        ),
        max_size=8,
    )
)
def test_the_loops_are_the_same_without_numba(texts: list[str]) -> None:
    """A machine without it finds the rows that one with it has noted."""
    raw = [text.encode("utf-8", "replace") for text in texts]
    offsets = np.cumsum([0, *map(len, raw)], dtype=np.int64)
    data = np.frombuffer(b"".join(raw), np.uint8)
    hashed = cell_hash.CellHash(np.array([3**40, 5**27], np.uint64), {"NA": "", "": ""})
    with pytest.MonkeyPatch.context() as patch:
        compiled = hashed.of(data, offsets)
        patch.setattr(cell_hash, "_loops", lambda: (cell_hash._hash_texts, cell_hash._hash_numbers))
        assert np.array_equal(hashed.of(data, offsets), compiled)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_equal_however_they_are_formatted(value: float) -> None:
    """Arrow's and Python's ways, and without an exponent."""
    arrow = pa.array([value]).cast(pa.string())[0].as_py()
    assert len(set(_column(arrow, repr(value), f"{Decimal(repr(value)):f}"))) == 1


def test_texts_of_columns(tmp_path: Path) -> None:
    """Places of levels, of other texts and of missing cells."""
    for suffix, write in WRITERS.items():
        path = tmp_path / f"t.{suffix}"
        write(TABLE, path)
        form = _form(path, "value")
        found = tables.texts(path, ["stage", "name"], ["value", "small"], form)
        assert found["stage"].placed(("II", "I")).tolist() == [1, 0, 1, 2]
        assert found["name"].placed(("Ann",)).tolist() == [0, 1, 1, 2]
        assert found["small"].is_missing.tolist() == [False, True, False, False]
        assert MISSING == -1


def test_columns_that_are_not_asked_for_may_be_anything(tmp_path: Path) -> None:
    """Of another encoding, or nested."""
    (tmp_path / "a.csv").write_bytes(b"x,note\n" + b"1,a\n" * 20_000 + b"2,\xff\xfe\n3,\xfd\n")
    assert len(set(_hashes(tmp_path / "a.csv", "x"))) == 3
    nested = pa.table({"x": [1, 2], "list": [[1, 2], [3]], "raw": [b"\xff", b"\xfe"]})
    parquet.write_table(nested, tmp_path / "b.parquet")
    assert len(set(_hashes(tmp_path / "b.parquet", "x"))) == 2
