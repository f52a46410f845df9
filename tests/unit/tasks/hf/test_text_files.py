"""Files of texts: each form is read alike, and what cannot be read is named by its line, without its content."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_queue.errors import DataError
from fl_queue.tasks.hf import packages, text_files

COLUMNS = [("text", "task.text"), ("kind", "task.label")]
ROWS = [("good\nfilm", "1"), ('a "bad", one', "0"), ("Größe 漢", "x")]


def write(path: Path, rows: Any) -> Path:
    """Write rows of text and kind in the form of the path's suffix."""
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps({"text": a, "kind": b}) for a, b in rows))
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([("other", "kind", "text"), *((3, b, a) for a, b in rows)])
    elif path.suffix == ".saved":
        columns = {
            "kind": [b for _, b in rows],
            "text": [a for a, _ in rows],
            "other": [1] * len(rows),
        }
        packages.datasets().Dataset.from_dict(columns).save_to_disk(path)
    elif path.suffix == ".folder":
        path.mkdir()
        for number, row in enumerate(rows):
            write(path / f"{number}.parquet", [row])
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        arrow = pytest.importorskip("pyarrow")
        columns = {"kind": [b for _, b in rows], "text": [a for a, _ in rows]}
        parquet.write_table(arrow.table(columns), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".folder", ".saved"])
def test_each_form_has_the_same_rows(tmp_path: Path, suffix: str) -> None:
    assert text_files.read(write(tmp_path / f"a{suffix}", ROWS), COLUMNS) == ROWS


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
            st.text("ab1", min_size=1),
        ),
        min_size=1,
    )
)
def test_any_text_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    for suffix in (".jsonl", ".csv"):
        assert text_files.read(write(folder / f"a{suffix}", rows), COLUMNS) == rows


def test_numbers_are_labels_and_truth_values_are_as_json_has_them(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        '{"text": "a", "kind": 3}\n{"text": "b", "kind": true}\n{"text": 4, "kind": 0.5}'
    )

    assert text_files.read(path, COLUMNS) == [("a", "3"), ("b", "true"), ("4", "0.5")]


def test_each_line_of_plain_text_is_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("first line \n\n  \nsecond\r\n")

    assert text_files.read(path, COLUMNS[:1]) == [("first line ",), ("second",)]
    with pytest.raises(DataError, match=r"has no column for task\.label"):
        text_files.read(path, COLUMNS)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"text": "Erika", "kind": 1}\nErika', "line 2: is no JSON object"),
        ("a.jsonl", '["Erika"]', "line 1: is no JSON object"),
        ("a.jsonl", '{"Erika": 1, "kind": 2}', "line 1: has no text (task.text)"),
        (
            "a.jsonl",
            '{"text": ["Erika"], "kind": 2}',
            "line 1: has neither text nor number as text",
        ),
        ("a.jsonl", '{"text": "Erika", "kind": null}', "line 1: has no kind (task.label)"),
        ("a.jsonl", "\n\n", "has no texts"),
        ("a.csv", "text,kind\nErika\n", "line 2: has no kind (task.label)"),
        ("a.csv", "text,kind\n", "has no texts"),
        ("a.parquet", "Erika", "is not a parquet file"),
        ("a.docx", "Erika", "its name must end in one of .jsonl, .json, .csv, .parquet, .txt"),
        ("a.txt", "Erika\udcff", "is not in UTF-8"),
    ],
)
def test_what_cannot_be_read_is_named_without_its_content(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    columns = COLUMNS[:1] if name == "a.txt" else COLUMNS

    with pytest.raises(DataError) as caught:
        text_files.read(path, columns)

    assert words in str(caught.value)
    assert caught.value.public
    assert "Erika" not in caught.value.public
    assert str(tmp_path) not in caught.value.public
    # Which line it is may stand for a patient.
    assert not re.search(r"line \d", caught.value.public)


def test_a_folder_without_the_column_is_named_by_the_option(tmp_path: Path) -> None:
    path = write(tmp_path / "a.saved", ROWS)
    with pytest.raises(DataError, match=r"line 1: has no review \(task\.text\)"):
        text_files.read(path, [("review", "task.text")])


def test_a_missing_file_is_named_by_its_option(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No such file or directory; see data\.dir and task\.file"):
        text_files.read(tmp_path / "a.csv", COLUMNS)
