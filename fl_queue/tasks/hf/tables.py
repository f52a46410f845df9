"""
Files of a site as a ``datasets.Dataset`` in memory: parquet (a file or a folder), JSON lines, CSV.

``datasets`` itself would keep a copy of what it reads in a cache outside the data folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fl_queue.common import data_folder
from fl_queue.errors import DataError
from fl_queue.tasks.hf import packages

#: Suffix -> module of pyarrow that reads it, and its function.
READERS = {
    ".parquet": ("parquet", "read_table"),
    ".jsonl": ("json", "read_json"),
    ".json": ("json", "read_json"),
    ".csv": ("csv", "read_csv"),
}


def read(data_dir: str, name: str) -> Any:
    """
    Read a file, or all parquet files of a folder in the order of their names.

    Args:
        data_dir: The site's data folder.
        name: Of the file or folder in it.

    Returns:
        A ``datasets.Dataset`` whose rows are in memory.

    Raises:
        ConfigError: The name leads out of the data folder, or the packages are not installed.
        DataError: It cannot be read, or the files of a folder have different columns.
    """
    path = data_folder.inside(data_dir, name, "the data")
    files = [path]
    if path.is_dir():
        found, _ = data_folder.files_below(path)
        files = [data_folder.checked(data_dir, one) for one in found if one.suffix == ".parquet"]
    if not files:
        raise DataError(
            str(path), "has no *.parquet files", public="the folder has no *.parquet files"
        )
    arrow, datasets = packages.pyarrow(), packages.datasets()
    tables = [_table(one) for one in files]
    try:
        whole = arrow.concat_tables(tables)
    except arrow.ArrowException as exc:
        raise DataError(
            str(path),
            f"its files have different columns ({exc})",
            public="the files of its folder have different columns",
        ) from exc
    return datasets.Dataset(datasets.table.InMemoryTable(whole))


def _table(path: Path) -> Any:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        what = f"is no table: its name must end in one of {', '.join(READERS)}"
        raise DataError(str(path), what, public=what)
    module, function = reader
    try:
        return getattr(packages.pyarrow_part(module), function)(str(path))
    except FileNotFoundError as exc:
        what = "cannot be read: there is no such file"
        raise DataError(str(path), what, public=what) from exc
    except packages.pyarrow().ArrowException as exc:  # Its text quotes cells.
        raise DataError(
            str(path),
            f"is no {path.suffix} file that can be read ({exc})",
            public=f"is no {path.suffix} file that can be read",
        ) from exc
    except OSError as exc:
        what = f"cannot be read: {exc.strerror or type(exc).__name__}"
        raise DataError(str(path), what, public="cannot be read") from exc
