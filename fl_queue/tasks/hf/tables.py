"""
Files of a site as a ``datasets.Dataset`` in memory: parquet (a file or a folder), JSON lines, CSV, a saved data set.

A folder that ``Dataset.save_to_disk`` has written is read from its arrow files. ``datasets`` itself would keep a copy of what it reads in a cache outside the data folder.
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
    Read a file, a folder of ``Dataset.save_to_disk``, or all parquet files of a folder in the order of their names.

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
    if path.is_dir():
        return of_folder(path, data_dir)
    return packages.datasets().Dataset(packages.datasets().table.InMemoryTable(_table(path)))


def of_folder(path: Path, data_dir: str | Path) -> Any:
    """
    Read a folder; raises as ``read``.

    Args:
        path: It.
        data_dir: The data folder, out of which no link may lead.
    """
    found, _ = data_folder.files_below(path)
    files = [data_folder.checked(data_dir, one) for one in found]
    datasets = packages.datasets()
    if path / "dataset_dict.json" in files:
        what = "is a DatasetDict; name one of the folders in it, such as train"
        raise DataError(str(path), what, public=f"its folder {what}")
    if path / "state.json" in files:
        return _saved(path)
    files = [one for one in files if one.suffix == ".parquet"]
    if not files:
        what = "has no *.parquet files, and is none of Dataset.save_to_disk"
        raise DataError(str(path), what, public=f"the folder {what}")
    arrow = packages.pyarrow()
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


def _saved(path: Path) -> Any:
    """A data set of ``save_to_disk``, in memory: a copy in its folder would be made by ``map``. Raises DataError."""
    try:
        return packages.datasets().load_from_disk(str(path), keep_in_memory=True)
    except (OSError, ValueError, KeyError, TypeError, packages.pyarrow().ArrowException) as exc:
        what = "cannot be read; it must be what Dataset.save_to_disk writes"
        raise DataError(str(path), f"{what} ({exc})", public=f"its folder {what}") from exc


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
