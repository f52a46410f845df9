"""Tables as they are: each form of a file gives the same arrays, and an error names the place and never the cell."""

from __future__ import annotations

import datetime
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_queue.errors import DataError
from fl_queue.tables import MISSING, Column, TableForm, read

arrow = pytest.importorskip("pyarrow")
csv = pytest.importorskip("pyarrow.csv")
feather = pytest.importorskip("pyarrow.feather")
parquet = pytest.importorskip("pyarrow.parquet")

COLUMNS = (
    Column("age"),
    Column("visits", "integer"),
    Column("smoker", "boolean"),
    Column("seen", "date"),
    Column("stage", "category", ("I", "II")),
    Column("who", "text"),
)
TEXT = """\
name,age,visits,smoker,seen,stage,who
x,60.5,3,yes,2024-02-29,II,a
,NA,,,,?,b
"y, z",-1e3,0,FALSE,1969-12-31T23:59:59,III,c
"""
EXPECTED = {
    "age": [60.5, math.nan, -1000.0],
    "visits": [3.0, math.nan, 0.0],
    "smoker": [1.0, math.nan, 0.0],
    "seen": [19782.0, math.nan, -1.0],
    "stage": [1, MISSING, 2],
    "who": ["a", "b", "c"],
}


def written(folder: Path, text: str | bytes, name: str = "train.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def check(found: dict[str, Any]) -> None:
    assert set(found) == set(EXPECTED)
    for name, values in EXPECTED.items():
        np.testing.assert_array_equal(found[name], np.array(values), err_msg=name)
    assert found["age"].dtype == np.float64
    assert found["stage"].dtype == np.int32


SEMICOLONS = TEXT.replace('"y, z"', "y").replace(",", ";").replace("60.5", "60,5")


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "\ufeff" + TEXT,
        TEXT.replace("\n", "\r\n"),
        TEXT.replace("\n", "\n\n"),
        TEXT.rstrip("\n"),
        TEXT.replace(",age", ", age ").replace(",60.5,", ", 60.5 ,").replace(",II,", ", II ,"),
        TEXT.replace('"y, z"', '"y\nz, ""q"""'),
        TEXT.replace("name,", "name,extra,").replace("\nx,", "\nx,oops,").replace("\n,", "\n,,").replace('"y, z",', "y,,"),
        SEMICOLONS,
        SEMICOLONS.replace(";", "\t"),
        SEMICOLONS.replace("60,5", "60.5").replace(";", "|"),
        TEXT.replace("name,", "other,").replace("x,60.5", "1_000,60.5"),
        TEXT.replace("name,", ","),
    ],
)  # fmt: skip
def test_each_form_of_text_gives_the_same_columns(tmp_path: Path, text: str) -> None:
    check(read(written(tmp_path, text), COLUMNS))


@pytest.mark.parametrize("name", ["t.parquet", "t.pq", "t.arrow", "t.feather", "t.ipc"])
@pytest.mark.parametrize("is_dictionary", [True, False])
def test_files_with_types_give_the_same_columns(
    tmp_path: Path, name: str, is_dictionary: bool
) -> None:
    stage = arrow.array(["II", None, "III"])
    table = arrow.table(
        {
            "who": ["a", "b", "c"],
            "age": arrow.array([60.5, math.nan, -1e3], arrow.float32()),
            "visits": arrow.array([3, None, 0], arrow.int16()),
            "smoker": [True, None, False],
            "seen": [datetime.date(2024, 2, 29), None, datetime.date(1969, 12, 31)],
            "stage": stage.dictionary_encode() if is_dictionary else stage,
            "name": ["x", "y", "z"],
        }
    )
    writer = parquet.write_table if "p" in name[2] else feather.write_feather
    writer(table, str(tmp_path / name))
    check(read(tmp_path / name, COLUMNS))


def test_a_table_may_have_a_header_and_rows_of_any_length(tmp_path: Path) -> None:
    """Of 30,000 genes the header alone is longer than what is read at once for an ordinary table."""
    genes = [f"gene_{number}" for number in range(30_000)]
    values = ",".join(["1.2345678"] * len(genes))
    long = "a note" * 2**18
    text = f"{','.join(genes)},note,age\n{values},{long},60.5\n{values},,61\n"
    path = written(tmp_path, text)
    found = read(path, [Column("age"), Column("gene_29999")])
    assert found["age"].tolist() == [60.5, 61.0]
    assert found["gene_29999"].tolist() == [1.2345678, 1.2345678]
    # A header that is longer than a block, and detection of what rows beyond the first 64 KiB have.
    wide = ",".join(f"{'gene' * 50}_{number}" for number in range(6000))
    path = written(tmp_path, f"{wide},age\n".replace(",", ";") + "0;" * 6000 + "60,5\n")
    assert read(path, [Column("age")])["age"].tolist() == [60.5]


@pytest.mark.parametrize("end", ["", "\n3,I,\n", "\n3,I," * 50_000])
def test_a_quote_that_is_not_closed_takes_no_rows(tmp_path: Path, end: str) -> None:
    """Its cell would be the rest of the file, and this is a column that is not even read."""
    lines = f'age,stage,note\n1,I,"x\ny"\n2,I,"sick{end}'
    with pytest.raises(
        DataError, match="line 4: a quote begins there that is not closed"
    ) as caught:
        read(written(tmp_path, lines), AGE)
    assert caught.value.public == "train.csv: a quote is not closed"
    # One within a cell begins nothing.
    path = written(tmp_path, 'age,stage,note\n1,I,5" pipe\n2,II,\n')
    assert read(path, AGE)["age"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", ["t.parquet", "t.feather"])
def test_a_time_is_of_the_day_where_its_zone_is(tmp_path: Path, name: str) -> None:
    """Midnight in Berlin is the day before in UTC; a moment before 1970 is no later day either."""
    midnight = arrow.array(
        [datetime.datetime(2024, 2, 29, 23, tzinfo=datetime.UTC), None],
        arrow.timestamp("us", "Europe/Berlin"),
    )
    before = arrow.array([-500, 86_400_000], arrow.timestamp("ms"))
    writer = parquet.write_table if name.endswith("parquet") else feather.write_feather
    writer(arrow.table({"seen": midnight, "born": before}), str(tmp_path / name))
    found = read(tmp_path / name, [Column("seen", "date"), Column("born", "date")])
    assert found["seen"].tolist()[:1] == [19_783.0]
    assert np.isnan(found["seen"][1])
    assert found["born"].tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("name", ["t.parquet", "t.feather"])
@pytest.mark.parametrize("kind", ["int64", "uint8", "float64"])
def test_booleans_may_be_numbers_of_0_and_1(tmp_path: Path, name: str, kind: str) -> None:
    """In text they may, and pandas writes what it reads there so."""
    writer = parquet.write_table if name.endswith("parquet") else feather.write_feather
    for last, expected in ((0, [1.0, math.nan, 0.0]), (2, None)):
        values = arrow.array([1, None, last]).cast(kind)
        writer(arrow.table({"smoker": values}), str(tmp_path / name))
        if expected is None:
            with pytest.raises(DataError, match="row 3, column smoker: not true or false"):
                read(tmp_path / name, [COLUMNS[2]])
        else:
            found = read(tmp_path / name, [COLUMNS[2]])["smoker"]
            np.testing.assert_array_equal(found, np.array(expected))


@pytest.mark.parametrize(
    ("levels", "codes"),
    [
        (("False", "True"), [1, 0, MISSING]),
        (("true", "false"), [0, 1, MISSING]),
        (("TRUE", "no"), [0, 2, MISSING]),
        # Both are levels: a text is the one that it is.
        (("True", "true", "false"), [1, 2, MISSING]),
    ],
)
def test_true_and_false_are_levels_in_each_file(
    tmp_path: Path, levels: tuple[str, ...], codes: list[int]
) -> None:
    """A typed file has booleans, one of text their names as its writer spells them."""
    column = Column("smoker", "category", levels)
    parquet.write_table(arrow.table({"smoker": [True, False, None]}), str(tmp_path / "t.parquet"))
    assert read(tmp_path / "t.parquet", [column])["smoker"].tolist() == codes
    lower = written(tmp_path, "x,smoker\n1,true\n1,false\n1,NA\n")
    assert read(lower, [column])["smoker"].tolist() == codes
    closed = Column("smoker", "category", ("False", "True"), is_closed=True)
    assert read(lower, [closed])["smoker"].tolist() == [1, 0, MISSING]
    with pytest.raises(DataError, match="line 3, column smoker: not one of the values"):
        read(written(tmp_path, "x,smoker\n1,true\n1,yes\n"), [closed])


@pytest.mark.parametrize("cell", ["1.234.567", "1.234,5", "1'234", "-12 345.5"])
def test_a_number_in_groups_of_thousands_is_named_as_one(tmp_path: Path, cell: str) -> None:
    path = written(tmp_path, f"age;stage\n1.5;I\n{cell};II\n")
    with pytest.raises(DataError) as refused:
        read(path, AGE)
    assert refused.value.public == (
        "train.csv: line 3, column age: not a number; write thousands without a separator"
    )
    commas = written(tmp_path, "age;stage\n1,5;I\n1.234;II\n")
    with pytest.raises(DataError, match="line 3, column age: not a number; write thousands"):
        read(commas, AGE, TableForm(decimal=","))


@pytest.mark.parametrize("name", ["t.parquet", "t.feather"])
def test_a_column_without_any_value_needs_no_type(tmp_path: Path, name: str) -> None:
    table = arrow.table({column.name: arrow.nulls(2) for column in COLUMNS})
    writer = parquet.write_table if name.endswith("parquet") else feather.write_feather
    writer(table, str(tmp_path / name))
    found = read(tmp_path / name, COLUMNS[:-1])
    assert all(np.isnan(found[one.name]).all() for one in COLUMNS[:4])
    assert found["stage"].tolist() == [MISSING, MISSING]
    with pytest.raises(DataError, match="row 1, column age: no value"):
        read(tmp_path / name, [Column("age", is_required=True)])


@pytest.mark.parametrize("cell", [" NA", "NA ", " ", "\t?", '" null "'])
def test_a_missing_category_is_missing_with_spaces_around_it_too(tmp_path: Path, cell: str) -> None:
    path = written(tmp_path, f"x,stage\n1,I\n1,{cell}\n")
    assert read(path, AGE[1:])["stage"].tolist() == [0, MISSING]
    for column in (
        Column("stage", "category", ("I",), is_required=True),
        Column("stage", "category", ("I",), is_required=True, is_closed=True),
        Column("stage", "text", is_required=True),
    ):
        with pytest.raises(DataError, match="line 3, column stage: no value"):
            read(path, [column])


AGE = (Column("age"), Column("stage", "category", ("I", "II")))
#: What stands in the file after a header and a good line -> what leaves the site.
WRONG = {
    "sick,I": "line 3, column age: not a number",
    "1_000,I": "line 3, column age: not a number",
    "inf,I": "line 3, column age: not a number",
    "-Infinity,I": "line 3, column age: not a number",
    "1e400,I": "line 3, column age: not a finite number",
    "0x1F,I": "line 3, column age: not a number",
    "2 3,I": "line 3, column age: not a number",
    "٣,I": "line 3, column age: not a number",
    "61\n62,I": "line 3: 1 cell, the header has 2",
    "61,I\n62,I,I": "line 4: 3 cells, the header has 2",
    "\n\n7,I\nsick,I": "line 6, column age: not a number",
    "sick\0,I": "line 3, column age: not text in UTF-8",
}


@pytest.mark.parametrize(("lines", "reason"), WRONG.items())
def test_a_wrong_cell_is_named_by_its_place_and_never_by_its_content(
    tmp_path: Path, lines: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Beyond the first 64 KiB, too: a part of the file that detection does not look at.
    for good in ("60,I\n", "60,I\n" * 20_000):
        more = good.count("\n") - 1
        expected = reason
        if more:
            number = int(reason.split()[1].strip(":,"))
            expected = reason.replace(f"line {number}", f"line {number + more}", 1)
        elif "\0" in lines:
            expected = "is no text in UTF-8; save it as CSV UTF-8"
        path = written(tmp_path, f"age,stage\n{good}{lines}\n")
        with caplog.at_level(logging.ERROR), pytest.raises(DataError) as caught:
            read(path, AGE)
        assert caught.value.reason.startswith(expected), caught.value.reason
        assert caught.value.public == f"train.csv: {caught.value.reason}"
        assert "sick" not in caught.value.public + caplog.text


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        (Column("x", "integer"), "1.5", "not a whole number"),
        (Column("x", "boolean"), "maybe", "not true or false"),
        (Column("x", "date"), "2023-02-29", "not a date such as 2024-02-29"),
        (Column("x", "date"), "29.02.2024", "not a date such as 2024-02-29"),
        (Column("x", is_required=True), "NA", "no value"),
        (Column("x", "category", ("a",), is_required=True), "", "no value"),
        (Column("x", "text", is_required=True), "null", "no value"),
    ],
)
def test_each_type_refuses_what_it_is_not(
    tmp_path: Path, column: Column, cell: str, reason: str
) -> None:
    good = {"boolean": "yes", "date": "2020-01-01"}.get(column.kind, "1")
    path = written(tmp_path, f"y,x\n1,{good}\n1,{cell}\n")
    with pytest.raises(DataError, match=f"line 3, column x: {reason}"):
        read(path, [column])


def test_a_config_cannot_read_a_table_by_the_lines_of_errors(tmp_path: Path) -> None:
    """One that chooses what is missing, or what a column may hold, would get its cells one by one."""
    path = written(tmp_path, "sick,age\nflu,60\ncold,61\nflu,old\n")
    for columns, form, public in (
        ([Column("sick")], TableForm(missing=("flu",)), "train.csv: column sick: not a number"),
        ([Column("age", is_required=True)], TableForm(missing=("61",)), "train.csv: column age: no value"),
        (
            [Column("sick", "category", ("flu",), is_closed=True)],
            TableForm(),
            "train.csv: column sick: not one of the values that task.classes lists",
        ),
        # The order of errors has nothing to read either.
        (
            [Column("sick", "category", ("flu",), is_closed=True), Column("age")],
            TableForm(),
            "train.csv: line 4, column age: not a number",
        ),
    ):  # fmt: skip
        with pytest.raises(DataError) as caught:
            read(path, columns, form)
        assert caught.value.public == public
        assert "line " in caught.value.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty; its first line must name the columns"),
        ("\n\n", "is empty; its first line must name the columns"),
        ("age,stage\n", "has no rows below its header"),
        ("age,stage,age\n1,I,2\n", "column age stands 2 times in the header, as columns 1, 3"),
        ("ages,stage\n1,I\n", "has no column age; did you mean ages?"),
        ("61,II\n62,I\n", "has no column age"),
        ("age,stage\n\xff".encode("latin-1"), "is no text in UTF-8"),
        ("age,stage\n1,I\n".encode("utf-16"), "is no text in UTF-8"),
        ("age;stage\n1,234;I\n5,678;II\n", "cells such as 1,234 may be thousands or decimals; set task.decimal"),
        ("age;stage\n1,5;I\n2.5;II\n", "its numbers have both decimal points and commas; set task.decimal"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_such_table_is_refused(
    tmp_path: Path, text: str | bytes, reason: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(written(tmp_path, text), AGE)
    assert reason in caught.value.reason
    assert "ages" not in caught.value.public


def test_what_is_declared_is_not_detected(tmp_path: Path) -> None:
    path = written(tmp_path, "age;stage\n1,234;I\n5,678;II\n")
    for decimal, first in ((",", 1.234),):
        found = read(path, AGE, TableForm(decimal=decimal))
        assert found["age"][0] == first
    with pytest.raises(DataError, match="line 2, column age: not a number"):
        read(path, AGE, TableForm(decimal="."))
    two = written(tmp_path, "age,a;stage,a\n1,2;I,3\n")
    with pytest.raises(DataError, match="has no column age"):
        read(two, AGE, TableForm(delimiter=";"))
    dashes = written(tmp_path, "age,stage\n-,I\nNA,-\n1,-\n")
    found = read(dashes, AGE, TableForm(missing=("-", "NA")))
    assert np.isnan(found["age"]).tolist() == [True, True, False]
    assert found["stage"].tolist() == [0, MISSING, MISSING]


@pytest.mark.parametrize("name", ["t.parquet", "t.feather"])
def test_files_with_other_types_or_of_another_kind_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write = parquet.write_table if name.endswith("parquet") else feather.write_feather

    def refused(columns: Any, **values: Any) -> str:
        write(arrow.table(values), str(path))
        with pytest.raises(DataError) as caught:
            read(path, columns)
        assert "sick" not in caught.value.public
        return caught.value.reason

    assert refused([Column("x")], x=["sick"]) == (
        "column x: its type is string there, and number is declared"
    )
    assert "date is declared" in refused([Column("x", "date")], x=[1])
    assert refused([Column("x")], x=[1.0, math.inf]) == "row 2, column x: not a finite number"
    assert refused([Column("x", "integer")], x=[1.0, 1.5]) == "row 2, column x: not a whole number"
    assert (
        refused([Column("x", is_required=True)], x=[1.0, math.nan]) == "row 2, column x: no value"
    )
    assert refused([Column("x")], x=arrow.array([], arrow.float64())) == "has no rows"
    assert "has no column x" in refused([Column("x")], y=[1])
    closed = Column("x", "category", ("a",), is_closed=True)
    assert "not one of the values" in refused([closed], x=["a", "sick"])
    path.write_bytes(b"no such file")
    with pytest.raises(DataError, match="that can be read"):
        read(path, [Column("x")])
    path.unlink()
    with pytest.raises(DataError, match="there is no such file"):
        read(path, [Column("x")])


def test_other_files_and_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its name must end in one of"):
        read(written(tmp_path, "age\n1\n", "t.xlsx"), AGE[:1])
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read(tmp_path / "t.csv", AGE[:1])
