"""
A CSV table with a label column: logistic regression, or a small perceptron.

Columns are standardised inside the model, so its input is raw values at all sites.
Without ``task.means`` and ``task.stds`` the statistics come from the first round: each client trains
with its own and sends them as buffers, whose weighted mean is that of all rows.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fl_queue.common import data_folder
from fl_queue.common.spelling import nearest
from fl_queue.errors import ConfigError, DataError
from fl_queue.protocol.model_usage import ModelUsage
from fl_queue.protocol.records import Sums
from fl_queue.tasks.base import ClientData, OnEpoch, Task
from fl_queue.tasks.context import ClientContext

_FLOAT32_MAX = float(np.finfo(np.float32).max)
# In float32, mean(x^2) - mean(x)^2 of a column whose spread is below a thousandth of its mean is
# mostly rounding; such a column counts as constant.
_CONSTANT = 1e-6
# Unusable cells that are named in a message; more are counted.
_NAMED = 3
# Separators of other programs, for a better message.
_SEPARATORS = (";", "\t", "|")


class CsvTask(Task):
    """Classify the rows of a table; the label's values are ``task.classes``."""

    def build_model(self) -> nn.Module:
        """
        Raw columns (B, features) -> class scores (B, classes).

        Raises:
            ConfigError: The features are not known, or ``task.means`` and ``task.stds`` do not fit.
        """
        features = self._features()
        layers = _layers([len(features), *self.options["hidden"], len(self._classes())])
        means, stds = self.options["means"], self.options["stds"]
        if not means and not stds:
            return PooledTable(layers, len(features))
        for name, values in (("means", means), ("stds", stds)):
            if len(values) != len(features):
                raise ConfigError(
                    f"task.{name}",
                    f"{len(values)} numbers for {len(features)} features: {', '.join(features)}",
                    public=f"{len(values)} numbers for {len(features)} features",
                )
        return FixedTable(layers, torch.tensor(means), torch.tensor(stds))

    def client_data(self, context: ClientContext) -> ClientData:
        """
        The client's share of ``task.file``, or all of it with ``partition = "site"``.

        Raises:
            DataError: The file is missing, or a cell cannot be used; names line and column.
            ConfigError: No data folder, or no such share.
        """
        if not context.data_dir:
            raise ConfigError(
                "data.dir", "is empty; start the worker with --data FOLDER", public=True
            )
        path = self._file(context.data_dir, "file")
        rows, labels = self._read(path)
        owners = None
        if self.options["owner"]:
            owners = np.array(_column(path, self.options["owner"]))
        train, validation = self.split(labels, context, owners)
        return ClientData(
            _dataset(rows[train], labels[train]), _dataset(rows[validation], labels[validation])
        )

    def depends_on(self, context: ClientContext) -> Iterable[Path]:
        """``task.file`` and ``task.test_file``."""
        names = (self.options["file"], self.options["test_file"])
        return data_folder.named(context.data_dir, *names) if context.data_dir else ()

    def describe(self, data: ClientData) -> dict[str, list[str]]:
        """Return the classes and the columns in the model's order."""
        return {"classes": self._classes(), "columns": self._features()}

    def test_data(self, data_dir: str) -> TensorDataset | None:
        """
        The rows of ``task.test_file``; None on a machine without a data folder.

        Raises:
            DataError: The file is missing, or a cell cannot be used; names line and column.
        """
        return _dataset(*self._read(self._file(data_dir, "test_file"))) if data_dir else None

    def _file(self, data_dir: str, option: str) -> Path:
        return data_folder.inside(data_dir, self.options[option], f"task.{option}")

    def train(
        self, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
    ) -> Sums:
        """
        Local SGD; in the first round with this client's own column statistics.

        Raises:
            DataError: A statistic is larger than a buffer may be.
        """
        if isinstance(model, PooledTable) and not model.standardised:
            rows, _ = data.train[:]  # a TensorDataset, from client_data
            self._check_statistics(model.adopt_statistics(rows), context.data_dir)
        return super().train(model, data, context, on_epoch)

    def usage(self) -> ModelUsage:
        """Describe input and output: raw columns, and a score for each class."""
        fixed = {name: list(self.options[name]) for name in ("means", "stds") if self.options[name]}
        return ModelUsage(
            "raw numbers of the columns (B, columns), float32; the model standardises them",
            "scores of the classes (B, classes); softmax gives probabilities",
            tuple(self._classes()),
            {"columns": self._features(), **fixed},
        )

    def example_input(self) -> Tensor:
        """A row of zeros."""
        return torch.zeros(1, len(self._features()))

    def _named(self, feature: str) -> str:
        """Name a feature for other sites, with its name only if the config lists it."""
        listed = _names(self.options["features"])
        return f" (task.features: {feature})" if feature in listed else " (of those the file names)"

    def _check_statistics(self, squares: Tensor, data_dir: str) -> None:
        limit = self.config.aggregation.buffer_limit
        for name, square in zip(self._features(), squares.tolist(), strict=True):
            if square > limit:
                raise DataError(
                    data_dir,
                    f"column {name}: its mean square {square:g} is over aggregation.buffer_limit = "
                    f"{limit:g}; raise it (its size costs no precision), or set task.means and task.stds",
                    public=f"the mean square of a column{self._named(name)} is over aggregation.buffer_limit; raise it, or set task.means and task.stds",
                )

    def _classes(self) -> list[str]:
        classes = _names(self.options["classes"])
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise ConfigError(
                "task.classes",
                f"{', '.join(classes)}: two or more different classes are needed",
                public=True,
            )
        return classes

    def _features(self) -> list[str]:
        listed = _names(self.options["features"])
        if listed:
            if len(set(listed)) < len(listed) or not self._others().isdisjoint(listed):
                raise ConfigError(
                    "task.features",
                    "a column is listed twice, or is the label or the owner",
                    public=True,
                )
            return listed
        if not self.config.data.dir:
            raise ConfigError(
                "task.features",
                "is empty and this machine has no data folder; list the columns",
                public=True,
            )
        header = _header(self._file(self.config.data.dir, "file"))
        return [name for name in header if name not in self._others()]

    def _others(self) -> set[str]:
        """Columns that are not features: label and owner."""
        return {name for name in (self.options["label"], self.options["owner"]) if name}

    def _read(self, path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Read features (N, features) and class indices (N,) of a file, in file order."""
        features, label = self._features(), self.options["label"]
        columns = _positions(path, _header(path), features, label)
        # Position of each feature, its name, and its name for other sites.
        wanted = [
            (columns[name], name, f"column {columns[name] + 1}{self._named(name)}")
            for name in features
        ]
        classes, unusable = _Classes(self._classes()), _Unusable(path)
        rows: list[list[float]] = []
        labels: list[int] = []
        unknown: DataError | None = None
        for line, cells in islice(_rows(path), 1, None):
            labels.append(classes.index(cells[columns[label]]))
            if labels[-1] < 0 and unknown is None:
                unknown = self._unknown_label(path, line, columns[label], cells, classes.by_text)
            row = [_number(cells[place]) for place, _, _ in wanted]
            if None in row:
                unusable.add(line, cells, wanted)
            elif not unusable.count:
                rows.append(row)  # type: ignore[arg-type]
        if not labels:
            raise DataError(str(path), "has no rows below its header", public=True)
        unusable.check()
        if unknown is not None:
            raise unknown
        return np.array(rows, dtype=np.float32), np.array(labels, dtype=np.int64)

    def _unknown_label(
        self, path: Path, line: int, column: int, cells: Sequence[str], known: Collection[str]
    ) -> DataError:
        """
        Make the error for an unknown label. Its line is shown to the site alone.

        It is raised after all other errors. The config chooses the column and the classes, so the line of
        the first unknown label, or the order of errors, would let it read the file cell by cell.
        """
        label = self.options["label"]
        return DataError(
            str(path),
            f"line {line}: {label} is {cells[column]!r}, and not one of task.classes: {', '.join(known)}",
            public=f"column {column + 1} (task.label): not one of task.classes",
        )


class PooledTable(nn.Module):
    """
    Standardise by buffers that are averaged over the clients of the first round.

    Args:
        layers: Standardised columns (B, features) -> class scores.
        features: Number of columns.
    """

    feature_mean: Tensor
    feature_square_mean: Tensor
    standardised: Tensor

    def __init__(self, layers: nn.Module, features: int) -> None:
        super().__init__()
        self.layers = layers
        # Means of x and of x^2 can be averaged over sites; a deviation cannot.
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_square_mean", torch.zeros(features))
        # Integer buffers are merged by maximum, so one client suffices.
        self.register_buffer("standardised", torch.zeros((), dtype=torch.int64))

    def adopt_statistics(self, rows: Tensor) -> Tensor:
        """Set the buffers from ``rows`` (N, features). Returns the mean squares (features,)."""
        exact = rows.to(self.feature_mean.device, torch.float64)
        self.feature_mean.copy_(exact.mean(dim=0))
        self.feature_square_mean.copy_((exact**2).mean(dim=0))
        self.standardised.fill_(1)
        return self.feature_square_mean

    def forward(self, rows: Tensor) -> Tensor:
        """Compute scores: (B, features) -> (B, classes). Constant columns are only centred."""
        variance = self.feature_square_mean - self.feature_mean**2
        constant = variance <= _CONSTANT * self.feature_square_mean
        deviation = torch.where(constant, 1.0, variance).sqrt()
        scores: Tensor = self.layers((rows - self.feature_mean) / deviation)
        return scores


class FixedTable(nn.Module):
    """
    Standardise by numbers of the config, which are not part of the state dict.

    Args:
        layers: Standardised columns (B, features) -> class scores.
        means, stds: (features,) each; standard deviations above 0.
    """

    means: Tensor
    stds: Tensor

    def __init__(self, layers: nn.Module, means: Tensor, stds: Tensor) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("means", means, persistent=False)
        self.register_buffer("stds", stds, persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Compute scores: (B, features) -> (B, classes)."""
        scores: Tensor = self.layers((rows - self.means) / self.stds)
        return scores


class _Classes:
    """Index of classes: by text, and by value if all classes are numbers (1.0 equals 1)."""

    def __init__(self, names: Sequence[str]) -> None:
        self.by_text = {name: index for index, name in enumerate(names)}
        values = [_number(name) for name in names]
        are_numbers = None not in values and len(set(values)) == len(values)
        self.by_value = {value: n for n, value in enumerate(values)} if are_numbers else {}

    def index(self, cell: str) -> int:
        """Class index of a cell, from 0; -1: unknown."""
        found = self.by_text.get(cell)
        return self.by_value.get(_number(cell), -1) if found is None else found


class _Unusable:
    """Cells of a file that are not numbers: the first are named, all are counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self.named: list[str] = []
        self.public = ""

    def add(self, line: int, cells: Sequence[str], wanted: Sequence[tuple[int, str, str]]) -> None:
        """Record the unusable cells of a row. Args: ``wanted``: position, name and public name of each feature."""
        for place, name, public in wanted:
            cell = cells[place]
            if _number(cell) is not None:
                continue
            self.count += 1
            if len(self.named) < _NAMED:
                what = "not a finite float32" if _is_float(cell) else "not a number"
                self.named.append(f"line {line}, column {name}: {cell!r} is {what}")
                self.public = self.public or f"line {line}, {public}: {what}"

    def check(self) -> None:
        """Raise DataError if a cell was unusable."""
        if not self.count:
            return
        count = f"; {self.count} such cells in all" if self.count > 1 else ""
        raise DataError(
            str(self.path),
            f"{'; '.join(self.named)}{count}. csv reads numbers with a decimal point: fill in missing "
            "cells, and write 0 and 1 for words, or leave the column out of task.features",
            public=f"{self.public}{count}",
        )


def _layers(sizes: list[int]) -> nn.Sequential:
    """Linear layers of these sizes, with ReLU between them."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(sizes):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _dataset(rows: NDArray[np.float32], labels: NDArray[np.int64]) -> TensorDataset:
    return TensorDataset(torch.from_numpy(rows), torch.from_numpy(labels))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _header(path: Path) -> list[str]:
    for _, header in _rows(path):
        return header
    raise DataError(str(path), "is empty; its first line must name the columns", public=True)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of each row, the header first. Raises DataError for a row of another length."""
    width = None
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for row in filter(None, reader):
                width = len(row) if width is None else width
                if len(row) != width:
                    raise DataError(
                        str(path),
                        f"line {reader.line_num}: {len(row)} cells, and the header has {width}; a cell "
                        "with a comma in it needs quotes, and decimals a point",
                        public=True,
                    )
                yield reader.line_num, [cell.strip() for cell in row]
    except OSError as exc:
        raise DataError(
            str(path), f"cannot be read: {exc.strerror}; see data.dir and task.file", public=True
        ) from exc
    except (csv.Error, UnicodeDecodeError) as exc:
        raise DataError(
            str(path), f"is not a CSV file in UTF-8 ({exc})", public="is not a CSV file in UTF-8"
        ) from exc


def _column(path: Path, name: str) -> list[str]:
    """The cells of one column, in the file's order."""
    header = _header(path)
    if name not in header:
        raise DataError(
            str(path),
            f"has no column {name} (task.owner); its columns: {', '.join(header)}",
            public=f"has no column {name} (task.owner)",
        )
    _check_once(path, header, name, " (task.owner)")
    at = header.index(name)
    return [cells[at] for _, cells in islice(_rows(path), 1, None)]


def _positions(path: Path, header: list[str], features: list[str], label: str) -> dict[str, int]:
    separator = next((mark for mark in _SEPARATORS if mark in header[0]), "")
    if label not in header and len(header) == 1 and separator:
        raise DataError(
            str(path),
            f"its cells are separated by {separator!r}; csv reads commas: save it with commas, and "
            "decimals with a point",
            public="its cells are not separated by commas",
        )
    wanted = [(name, "task.features") for name in features]
    for name, field in [(label, "task.label"), *wanted]:
        if name not in header:
            kind = "label column" if field == "task.label" else "column"
            raise DataError(
                str(path),
                f"has no {kind} {name} ({field}){nearest(name, header)}; its columns: {', '.join(header)}",
                public=f"has no column {name} ({field})",
            )
        _check_once(path, header, name, f" ({field})")
    return {name: header.index(name) for name in (*features, label)}


def _check_once(path: Path, header: list[str], name: str, field: str) -> None:
    """Raise DataError if a column name occurs twice."""
    places = [str(index) for index, one in enumerate(header, 1) if one == name]
    if len(places) > 1:
        where = f"as columns {', '.join(places)}"
        raise DataError(
            str(path),
            f"has {name}{field} more than once, {where}; rename or remove one",
            public=f"has a column{field} more than once, {where}; rename or remove one",
        )


def _number(cell: str) -> float | None:
    """Parse a cell as a finite float32; None: it is not one."""
    try:
        value = float(cell)
    except ValueError:
        return None
    # NaN fails the comparison. Python parses 1_000; in a table it is a mistake or a name.
    return value if -_FLOAT32_MAX <= value <= _FLOAT32_MAX and "_" not in cell else None


def _is_float(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell
