"""A site's table, read from CSV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_queue.analyses.base import Columns
from fl_queue.client import table_file
from fl_queue.client.policy import SitePolicy
from fl_queue.errors import DataError, PolicyRefusal

COLUMNS = Columns(("age",), {"sex": ("F", "M")})
#: In no message that leaves the site.
CELL = "Schmidt4711"


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
    assert len(set(found.lines)) == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "public"),
    [
        (f"age,sex\n30,F\n{CELL},M\n", "line 3, column age: not a number"),
        ("age,sex\n1_000,F\n", "line 2, column age: not a number"),
        ("age,sex\ninf,F\n", "line 2, column age: not a number"),
        ("age,sex\n1e400,F\n", "line 2, column age: not a number"),
        ("age,sex\n30\n", "line 2: 1 cells, the header has 2"),
        (f"age,{CELL}\n30,F\n", "has no column sex"),
        ("age,sex,age\n30,F,31\n", "column age stands twice in the header"),
        ("", "is empty; its first line must name the columns"),
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
    assert refused.value.public == "is not a CSV file in UTF-8"


def test_a_hidden_column_reads_as_a_missing_one(tmp_path: Path) -> None:
    """A question cannot find out that it is there."""
    with pytest.raises(DataError) as hidden:
        _read(tmp_path, "age,sex\n30,F\n", never=("sex",))
    with pytest.raises(DataError) as missing:
        _read(tmp_path, "age\n30\n")
    assert hidden.value.public == missing.value.public == "has no column sex"
