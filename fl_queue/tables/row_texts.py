"""
Cells of a table as texts: the levels of a column, and a hash of each row over all columns of the file.

A row has the same hash in a text file and in a copy as Parquet: a number is the same however it is written (30, 30.0,
3e1), a missing cell is one whatever stands for it, and the order of columns does not count. A cell is hashed under a
key of its column, and a row's hash is the sum of its cells'.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from fl_queue.errors import DataError
from fl_queue.tables import arrow, reading
from fl_queue.tables.cell_hash import CellHash, Hashes
from fl_queue.tables.schema import FALSE, MISSING, NOTHING, TRUE, Column, TableForm

#: Texts that are hashed as another one: missing cells as none, and what pandas writes for booleans.
_SAME = {
    **dict.fromkeys(NOTHING, ""),
    **{text: "true" for text in TRUE if text.lower() == "true"},
    **{text: "false" for text in FALSE if text.lower() == "false"},
}


@dataclass(frozen=True)
class Texts:
    """
    A column of texts.

    Args:
        names: The different ones, without spaces around them.
        codes: (rows,) int32, place in ``names``; ``MISSING`` of a missing cell.
    """

    names: tuple[str, ...]
    codes: npt.NDArray[np.int32]

    def placed(self, levels: Collection[str]) -> npt.NDArray[np.int64]:
        """(rows,) place in ``levels``; after them that of any other text, then that of a missing cell."""
        known = {level: place for place, level in enumerate(levels)}
        places = [*(known.get(name, len(levels)) for name in self.names), len(levels) + 1]
        # The code of a missing cell is -1, the last one.
        return np.array(places, np.int64)[self.codes]

    def counted(self) -> dict[str, int]:
        """Text -> its rows."""
        rows = np.bincount(self.codes[self.codes != MISSING], minlength=len(self.names))
        return dict(zip(self.names, rows.tolist(), strict=True))

    @property
    def numbers(self) -> npt.NDArray[np.float64]:
        """(rows,) the number of each text; where one is none, all are their places in ``names``."""
        try:
            values = [float(name.replace(",", ".")) for name in self.names]
        except ValueError:
            values = [float(place) for place in range(len(self.names))]
        # The code of a missing cell is -1, the last one.
        return np.array([*values, np.nan])[self.codes]

    @property
    def is_missing(self) -> npt.NDArray[np.bool_]:
        """(rows,) whether there is no text."""
        return np.asarray(self.codes == MISSING)


def texts(
    path: Path, categories: Collection[str], beside: Collection[str], form: TableForm
) -> dict[str, Texts]:
    """
    Columns as texts.

    Args:
        categories: Names of columns of texts, or of whole numbers.
        beside: Of further ones, of any kind.
        form: Of ``reading.header_of``.

    Raises:
        ConfigError, DataError: As ``reading.read``.
    """
    names = sorted({*categories, *beside})
    if not names:
        return {}
    table = reading.table_of_texts(path, names, form)
    for name in categories:
        reading.check_type(path, Column(name, "category"), table.schema.field(name).type)
    return {name: _texts(table.column(name)) for name in names}


def hashes(path: Path, form: TableForm, key: bytes) -> Hashes:
    """
    Hashes of all rows (rows,), in the file's order.

    Args:
        form: Of ``reading.header_of``.
        key: 32 bytes; without them no row can be looked up.

    Raises:
        ConfigError, DataError: As ``reading.read``.
    """
    # Not by the config's delimiter, or by that of the columns that it asks for: a row has one hash.
    for delimiter in reading.even_delimiters(path):
        try:
            return _hashes(path, replace(form, delimiter=delimiter), key)
        except DataError:
            continue
    return _hashes(path, form, key)


def _hashes(path: Path, form: TableForm, key: bytes) -> Hashes:
    header, form = reading.header_of(path, (), replace(form, decimal="."))
    table = reading.table_of_texts(path, None, form)
    return of_columns(zip(header, table.columns, strict=True), key)


def of_columns(columns: Iterable[tuple[str, Any]], key: bytes) -> Hashes:
    """Hashes of the rows of Arrow columns. Args: ``columns``: each with its name; two may have the same."""
    total: Hashes | None = None
    times: dict[str, int] = {}
    for name, values in columns:
        times[name] = times.get(name, 0) + 1
        own = blake3(f"{times[name]}\0{name}".encode(), key=key).digest(16)
        hashed = CellHash(np.frombuffer(own, "<u8").astype(np.uint64), _SAME)
        parts = [hashed.of(*_buffers(chunk)) for chunk in _as_texts(values).chunks]
        found = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
        total = found if total is None else total + found
    return total if total is not None else np.zeros(0, np.uint64)


def _buffers(chunk: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """
    Bytes and offsets (rows + 1,) of an Arrow array of large strings.

    Spaces around a cell are no part of it, and a missing one is empty.
    """
    compute = arrow.part("compute")
    if chunk.null_count:
        chunk = compute.fill_null(chunk, "")
    raw, offsets = _parts(chunk)
    cells = raw[offsets[0] : offsets[-1]]
    if len(cells) and cells.min() <= ord(" "):
        return _parts(compute.ascii_trim_whitespace(chunk))
    return raw, offsets


def _parts(chunk: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    _, offsets, data = chunk.buffers()
    found = np.frombuffer(offsets, np.int64) if offsets is not None else np.zeros(1, np.int64)
    raw = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return raw, found[chunk.offset : chunk.offset + len(chunk) + 1]


def _texts(values: Any) -> Texts:
    """A column of an Arrow table; spaces around a cell are no part of it."""
    places = dict.fromkeys(NOTHING, MISSING)
    found = []
    for chunk in _as_texts(values).dictionary_encode().chunks:
        names = [str(name).strip() for name in chunk.dictionary.to_pylist()]
        codes = [places.setdefault(name, len(places) - len(NOTHING)) for name in names]
        indices = chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        found.append(np.array([*codes, MISSING], np.int32)[indices])
    known = [name for name, code in places.items() if code != MISSING]
    return Texts(tuple(known), np.concatenate(found) if found else np.zeros(0, np.int32))


def _as_texts(values: Any) -> Any:
    """A column as large strings."""
    pyarrow, types = arrow.pyarrow(), arrow.part("types")
    text = pyarrow.large_string()
    if types.is_large_binary(values.type):
        # Of a text file, in whatever encoding.
        values = pyarrow.chunked_array([chunk.view(text) for chunk in values.chunks], text)
    if types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if types.is_timestamp(values.type):
        values = _as_short(values)
    try:
        return values.cast(text)
    except pyarrow.ArrowException:
        # Lists, structures, bytes that are no text.
        return pyarrow.chunked_array([[repr(one) for one in values.to_pylist()]], text)


def _as_short(values: Any) -> Any:
    """A column of times as dates, if each begins a day, or of whole seconds, if each is; as a text file has them."""
    pyarrow = arrow.pyarrow()
    for short in (pyarrow.date32(), pyarrow.timestamp("s", values.type.tz)):
        if values.cast(short, safe=False).cast(values.type).equals(values):
            return values.cast(short)
    return values
