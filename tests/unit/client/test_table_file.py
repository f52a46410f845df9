"""A site's table, read from CSV."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped,unused-ignore]
import pytest

from fl_queue.analyses.base import Columns
from fl_queue.client import table_file
from fl_queue.client.policy import SitePolicy
from fl_queue.errors import ConfigError, DataError, PolicyRefusal
from fl_queue.tables import arrow

COLUMNS = Columns(("age",), {"sex": ("F", "M")})
#: In no message that leaves the site.
CELL = "Schmidt4711"
KEY = bytes(range(32))


def _read(tmp_path: Path, text: str, columns: Columns = COLUMNS, **rules: object) -> object:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    rules = {"min_rows": 1, "min_cell": 1, **rules}
    return table_file.read(path, columns, SitePolicy(**rules))  # type: ignore[arg-type]


def test_numbers_and_levels(tmp_path: Path) -> None:
    """Missing cells are NaN, or the last level; texts that the config does not list are the level before."""
    found = _read(tmp_path, "\ufeffsex,x,age\nF,1, 30 \nM,,\nx,2,NA\n?,3,-1e3\n")
    assert found.table.rows == 4  # type: ignore[attr-defined]
    ages, codes = found.table.numbers["age"], found.table.codes["sex"]  # type: ignore[attr-defined]
    assert np.array_equal(ages, [30, np.nan, np.nan, -1000], equal_nan=True)
    assert codes.tolist() == [0, 1, 2, 3]
    assert len(set(found.row_hashes(KEY).tolist())) == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "public"),
    [
        (f"age,sex\n30,F\n{CELL},M\n", "table.csv: line 3, column age: not a number"),
        ("age,sex\n1_000,F\n", "table.csv: line 2, column age: not a number"),
        ("age,sex\ninf,F\n", "table.csv: line 2, column age: not a number"),
        ("age,sex\n1e400,F\n", "table.csv: line 2, column age: not a finite number"),
        ("age,sex\n30\n", "table.csv: line 2: 1 cell, the header has 2"),
        (f"age,{CELL}\n30,F\n", "table.csv: has no column sex"),
        (
            "age,sex,age\n30,F,31\n",
            "table.csv: column age stands 2 times in the header, as columns 1, 3; rename or remove the others",
        ),
        ("", "table.csv: is empty; its first line must name the columns"),
    ],
)
def test_what_is_wrong_leaves_without_a_cell(tmp_path: Path, text: str, public: str) -> None:
    """File, line and column, and words of the config."""
    with pytest.raises(DataError) as refused:
        _read(tmp_path, text)
    assert refused.value.public == public
    assert CELL not in refused.value.public


@pytest.mark.parametrize("wrong", ["x,F\n", "30\n", "30,F,1\n"])
@pytest.mark.parametrize("place", [0, 3])
def test_no_line_of_a_short_table_is_named(tmp_path: Path, wrong: str, place: int) -> None:
    """Which line is wrong is about one row."""
    rows = ["30,F\n"] * 3
    rows.insert(place, wrong)
    with pytest.raises(PolicyRefusal, match="fewer rows than its min_rows"):
        _read(tmp_path, "".join(["age,sex\n", *rows]), min_rows=5)
    with pytest.raises(DataError, match=f"line {place + 2}"):
        _read(tmp_path, "".join(["age,sex\n", *rows]), min_rows=4)


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    """Nothing of it is quoted."""
    path = tmp_path / "table.csv"
    path.write_bytes(b"age,sex\n30,\xff\xfe\n")
    with pytest.raises(DataError) as refused:
        table_file.read(path, COLUMNS, SitePolicy())
    assert refused.value.public == "table.csv: is no text in UTF-8; save it as CSV UTF-8"


def test_a_hidden_column_reads_as_a_missing_one(tmp_path: Path) -> None:
    """A question cannot find out that it is there."""
    with pytest.raises(DataError) as hidden:
        _read(tmp_path, "age,sex\n30,F\n", never=("sex",))
    with pytest.raises(DataError) as missing:
        _read(tmp_path, "age\n30\n")
    assert hidden.value.public == missing.value.public == "table.csv: has no column sex"


FRAME = pd.DataFrame(
    {
        "age": [30.0, None, 41.5, 30.0],
        "sex": ["F", "M", None, "X"],
        "ill": [True, False, True, True],
        "seen": pd.to_datetime(["1970-01-02", "2024-02-29", None, "1969-12-31"]).date,
    }
)
WANTED = Columns(("age", "ill", "seen"), {"sex": ("F", "M")}, ("seen",))
WRITERS = {
    "table.csv": lambda path: FRAME.to_csv(path, index=False),
    "table.tsv": lambda path: FRAME.to_csv(path, index=False, sep="\t"),
    "comma.txt": lambda path: FRAME.to_csv(path, index=False, sep=";", decimal=","),
    "table.parquet": FRAME.to_parquet,
    "table.feather": FRAME.to_feather,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_has_the_same_rows(tmp_path: Path, name: str) -> None:
    """Numbers, booleans as 1 and 0, dates as days, levels; and the hashes of the rows."""
    FRAME.to_csv(tmp_path / "first.csv", index=False)
    WRITERS[name](tmp_path / name)
    rules = SitePolicy(min_rows=1, min_cell=1)
    first, found = (
        table_file.read(tmp_path / each, WANTED, rules, beside=("age", "not there"))
        for each in ("first.csv", name)
    )
    numbers = found.table.numbers
    assert np.array_equal(numbers["age"], [30, np.nan, 41.5, 30], equal_nan=True)
    assert numbers["ill"].tolist() == [1, 0, 1, 1]
    assert np.array_equal(numbers["seen"], [1, 19782, np.nan, -1], equal_nan=True)
    assert found.table.codes["sex"].tolist() == [0, 1, 3, 2]
    assert found.texts["age"].is_missing.tolist() == [False, True, False, False]
    assert np.array_equal(found.row_hashes(KEY), first.row_hashes(KEY))


@pytest.mark.parametrize("name", WRITERS)
def test_a_wrong_cell_of_a_short_table_is_not_named(tmp_path: Path, name: str) -> None:
    """A date that no config declares, in tables of 4 rows, in every form."""
    WRITERS[name](tmp_path / name)
    wanted = Columns(("age", "seen"), {})
    with pytest.raises(PolicyRefusal, match="fewer rows than its min_rows"):
        table_file.read(tmp_path / name, wanted, SitePolicy(min_rows=5))
    with pytest.raises(DataError, match="column seen: "):
        table_file.read(tmp_path / name, wanted, SitePolicy(min_rows=4, min_cell=1))


@pytest.mark.parametrize("header", ["x;name", "name;x", "x;y"])
def test_a_hidden_column_decides_nothing_about_the_form(tmp_path: Path, header: str) -> None:
    """The error is that of a file without it, for each way to find the delimiter."""
    with pytest.raises(DataError) as refused:
        _read(tmp_path, f"{header}\n1,5;2\n", Columns(("name",), {}), never=("name",))
    assert refused.value.public == "table.csv: has no column name"
    assert "name" not in str(refused.value).split("its columns: ")[1]


def test_a_file_that_changes_after_it_was_read(tmp_path: Path) -> None:
    """Its hashes would be those of other rows."""
    found = _read(tmp_path, "age,sex\n30,F\n")
    (tmp_path / "table.csv").write_text("age,sex\n30,F\n31,F\n")
    with pytest.raises(DataError, match="was changed while it was read"):
        found.row_hashes(KEY)  # type: ignore[attr-defined]


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named, here and elsewhere."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    arrow.pyarrow.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"\[tables\]") as refused:
            _read(tmp_path, "age,sex\n30,F\n")
    finally:
        arrow.pyarrow.cache_clear()
    assert refused.value.public == "tables need the package pyarrow, of the extra tables"
