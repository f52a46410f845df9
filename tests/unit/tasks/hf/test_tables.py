"""Tables of a site as ``datasets`` objects, in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_queue.errors import ConfigError, DataError
from fl_queue.tasks.hf import packages, tables

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two parquet files, beside JSON lines and CSV of the same rows."""
    (tmp_path / "parts/deep").mkdir(parents=True)
    parquet.write_table(arrow.table({"x": [1, 2], "y": ["a", "b"]}), tmp_path / "parts/1.parquet")
    parquet.write_table(arrow.table({"x": [3], "y": ["c"]}), tmp_path / "parts/deep/0.parquet")
    (tmp_path / "parts/notes.md").write_text("not read")
    (tmp_path / "all.jsonl").write_text("".join(f'{{"x": {n}, "y": "{c}"}}\n' for n, c in zip((1, 2, 3), "abc", strict=True)))  # fmt: skip
    (tmp_path / "all.csv").write_text("x,y\n1,a\n2,b\n3,c\n")
    rows = packages.datasets().Dataset.from_dict({"x": [3, 0, 2, 1], "y": list("c-ba")})
    # The order is kept beside the rows.
    rows.select([3, 2, 0]).save_to_disk(tmp_path / "saved")
    return tmp_path


@pytest.mark.parametrize("name", ["parts", "saved", "all.jsonl", "all.csv"])
def test_a_file_or_a_folder_of_parquet_is_a_data_set_in_memory(folder: Path, name: str) -> None:
    found = tables.read(str(folder), name)

    assert (list(found["x"]), list(found["y"])) == ([1, 2, 3], ["a", "b", "c"])
    assert found.select([2])[0] == {"x": 3, "y": "c"}
    # Nothing of it is in a cache outside the data folder, also after a map.
    assert found.cache_files == found.map(lambda row: {"z": row["x"] + 1}).cache_files == []


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("../other", ConfigError, "without .. in it"),
        ("nothing.csv", DataError, "there is no such file"),
        ("mixed", DataError, "its files have different columns"),
        ("empty", DataError, r"has no \*.parquet files"),
        ("splits", DataError, "is a DatasetDict; name one of the folders in it"),
        ("half", DataError, "must be what Dataset.save_to_disk writes"),
        ("notes.md", DataError, "its name must end in one of .parquet"),
        ("broken.jsonl", DataError, "is no .jsonl file that can be read"),
    ],
)
def test_what_cannot_be_read_is_named_without_its_content(
    folder: Path, name: str, error: type[Exception], words: str
) -> None:
    (folder / "empty").mkdir()
    (folder / "mixed").mkdir()
    (folder / "notes.md").write_text("Erika")
    (folder / "half").mkdir()
    (folder / "half/state.json").write_text('{"Erika": 1}')
    (folder / "splits").mkdir()
    (folder / "splits/dataset_dict.json").write_text('{"splits": ["Erika"]}')
    (folder / "broken.jsonl").write_text('{"Erika": 1}\n{"Erika"')
    for number, column in enumerate(("Erika", "Max")):
        parquet.write_table(arrow.table({column: [1]}), folder / f"mixed/{number}.parquet")

    with pytest.raises(error, match=words) as caught:
        tables.read(str(folder), name)

    public = caught.value.public  # type: ignore[attr-defined]
    assert "Erika" not in public
    assert str(folder) not in public


def test_a_link_out_of_the_data_folder_is_refused(folder: Path) -> None:
    (folder / "site").mkdir()
    (folder / "site/parts").mkdir()
    (folder / "site/parts/1.parquet").symlink_to(folder / "parts/1.parquet")

    with pytest.raises(DataError, match="a link leads out of the data folder"):
        tables.read(str(folder / "site"), "parts")
