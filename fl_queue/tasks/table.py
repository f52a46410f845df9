"""A table as it is (``run.task = "table"``): raw rows of CSV, Parquet or Arrow files. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from fl_queue.common import data_folder
from fl_queue.config.table_options import AGREED, Feature, features_of, names_of, target_unit
from fl_queue.errors import ConfigError, DataError
from fl_queue.metrics import Metric
from fl_queue.metrics.kinds import IGNORED
from fl_queue.protocol.model_usage import ModelUsage
from fl_queue.protocol.records import Sums
from fl_queue.tables import MISSING, OTHER, Column, TableForm, read
from fl_queue.tables.dialect import refusal
from fl_queue.tables.schema import Kind
from fl_queue.tasks.base import ClientData, OnEpoch, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.table_model import TableModel

_KINDS: Mapping[str, Sequence[str]] = {
    "binary": ("classification",),
    "classes": ("classification",),
    "labels": ("multilabel",),
    "regression": ("regression",),
    "counts": ("regression",),
    "survival": (),
}
_ANSWERS = {
    "binary": "log-odds of {last} (B,); the sigmoid gives its probability",
    "classes": "scores of the classes (B, classes); softmax gives probabilities",
    "labels": "log-odds of each label (B, labels)",
    "regression": "{target} in its own unit (B,)",
    "counts": "expected {target} (B,)",
    "survival": "probability that there was no event until the end of each interval of task.time_grid (B, intervals)",
}


class TableTask(Task):
    """Answers of a table's target from its features, which are encoded inside the model."""

    def build_model(self) -> nn.Module:
        """Raw rows (B, features) -> answers, see ``TableModel``."""
        objective = self.options["objective"]
        outputs = {
            "classes": len(self._classes()),
            "labels": len(self._targets()),
            "survival": len(self.options["time_grid"]),
        }.get(objective, 1)
        hidden, unit = self.options["hidden"], target_unit(self.options)
        return TableModel(self._features(), objective, outputs, hidden, unit)

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
        path = data_folder.inside(context.data_dir, self.options["file"], "task.file")
        rows, target, owners = self._read(path, names_of(self.options["owner"]))
        train, validation = self.split(self._strata(target), context, owners)
        others = self._others(rows)
        return ClientData(
            _dataset(rows[train], target[train]),
            _dataset(rows[validation], target[validation]),
            unused=others,
        )

    def depends_on(self, context: ClientContext) -> Iterable[Path]:
        """``task.file`` and ``task.test_file``."""
        names = (self.options["file"], self.options["test_file"])
        return data_folder.named(context.data_dir, *names) if context.data_dir else ()

    def describe(self, data: ClientData) -> dict[str, list[str]]:
        """Return the columns in the model's order, the targets, and the classes where there are some."""
        columns = [one.name for one in self._features()]
        classes = self._classes() if self.options["objective"] in ("binary", "classes") else []
        found = {"columns": columns, "targets": self._targets(), "classes": classes}
        return {name: names for name, names in found.items() if names}

    def test_data(self, data_dir: str) -> TensorDataset | None:
        """
        The rows of ``task.test_file``; None on a machine without a data folder.

        Raises:
            DataError: The file is missing, or a cell cannot be used; names line and column.
        """
        if not data_dir:
            return None
        path = data_folder.inside(data_dir, self.options["test_file"], "task.test_file")
        rows, target, _ = self._read(path, [])
        return _dataset(rows, target)

    def train(
        self, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
    ) -> Sums:
        """
        Local SGD; in the first round with this client's own statistics of its columns.

        Raises:
            DataError: A statistic is larger than a buffer may be.
        """
        if isinstance(model, TableModel) and model.awaits_statistics:
            rows, target = data.train[:]  # A TensorDataset, from client_data.
            squares = model.adopt_statistics(rows, target)
            limit = self.config.aggregation.buffer_limit
            if bool((squares > limit).any()):
                what = (
                    f"a column's mean square is over aggregation.buffer_limit = {limit:g}; raise it"
                )
                raise DataError(context.data_dir, what, public=True)
        return super().train(model, data, context, on_epoch)

    def forward(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """
        Outputs of a batch (rows, target): ``logits``, which metrics are of, and what the loss needs besides.

        Of a regression and of counts these are answers in the target's unit.
        """
        rows, _ = batch
        assert isinstance(model, TableModel)
        scores = model.scores(rows)
        if self.options["objective"] == "regression":
            mean, deviation = model.unit()
            return {"logits": mean + deviation * scores, "deviation": deviation}
        if self.options["objective"] == "counts":
            return {"logits": scores.exp(), "log_rate": scores}
        return {"logits": scores}

    def loss(self, output: Any, target: Any) -> Tensor:
        """
        Mean loss of a batch.

        Cross entropy of classes and labels; squared error of the standardised target; negative log-likelihood of
        Poisson counts (log link, without log y!), and of a logistic hazard in each interval (Gensheimer and
        Narasimhan 2019, doi 10.7717/peerj.6257).
        """
        scores, objective = output["logits"], self.options["objective"]
        if objective == "classes":
            return functional.cross_entropy(scores, target)
        if objective == "binary":
            return functional.binary_cross_entropy_with_logits(scores, target.to(scores))
        if objective == "regression":
            error: Tensor = (scores - target) / output["deviation"]
            return error.square().mean()
        if objective == "counts":
            return functional.poisson_nll_loss(output["log_rate"], target)
        used = target != IGNORED
        each = functional.binary_cross_entropy_with_logits(
            scores, target.clamp_min(0).to(scores), reduction="none"
        )
        total = torch.where(used, each, 0.0).sum(dim=1)
        return (total if objective == "survival" else total / target.shape[1]).mean()

    def metrics(self) -> Sequence[Metric | str]:
        """Return the kind of metrics of the objective; of survival there is the loss alone."""
        return _KINDS[self.options["objective"]]

    def usage(self) -> ModelUsage:
        """Describe the columns of a raw row, and the answers."""
        options = self.options
        names = {"last": self._classes()[-1], "target": self._targets()[0]}
        labels = {
            "binary": self._classes(), "classes": self._classes(), "labels": self._targets()
        }.get(options["objective"], [])  # fmt: skip
        details: dict[str, Any] = {
            "columns": [one.name for one in self._features()],
            "types": {one.name: one.kind for one in self._features()},
            "levels": {one.name: list(one.levels) for one in self._features() if one.levels},
        }
        agreed = {name: dict(given) for name, given in options["columns"].items()}
        for name, given in agreed.items():
            agreed[name] = {key: given[key] for key in AGREED if key in given}
        if any(agreed.values()):
            details["agreed"] = {name: given for name, given in agreed.items() if given}
        if options["objective"] == "survival":
            details["time_grid"] = list(options["time_grid"])
        return ModelUsage(
            "raw rows (B, columns), float32: numbers as they are, booleans 0 or 1, dates as days since 1970-01-01, "
            "of a category the place of its level in levels, from 0 (their number for any other); NaN where a value "
            "is missing. The model encodes and standardises them",
            _ANSWERS[options["objective"]].format(**names),
            tuple(labels),
            details,
        )

    def example_input(self) -> Tensor:
        """A row of zeros."""
        return torch.zeros(1, len(self._features()))

    # Reading

    def _features(self) -> list[Feature]:
        return features_of(self.options)

    def _targets(self) -> list[str]:
        return names_of(self.options["target"])

    def _classes(self) -> list[str]:
        return names_of(self.options["classes"])

    def _read(
        self, path: Path, owner: Sequence[str]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any] | None]:
        """Read features (N, features), targets (N, ...) and owners (N,) of a file, in its order."""
        options, features = self.options, self._features()
        form = TableForm(options["delimiter"], options["decimal"], tuple(options["missing"]))
        columns = [
            Column(one.name, one.kind, one.levels, is_required=one.missing == "refuse")
            for one in features
        ]
        columns += self._target_columns()
        columns += [Column(name, "text", is_required=True) for name in owner]
        found = read(path, columns, form)
        target = _TARGETS[options["objective"]](self, path, found)
        owners = found[owner[0]] if owner else None
        rows = np.empty((len(target), len(features)), np.float32)
        for index, one in enumerate(features):
            values = found.pop(one.name)
            with np.errstate(over="ignore"):
                rows[:, index] = values
            if one.kind == "category":
                rows[values == MISSING, index] = np.nan
            elif np.isinf(rows[:, index]).any():
                raise refusal(path, f"column {one.name}: a number is beyond float32")
        return rows, target, owners

    def _target_columns(self) -> list[Column]:
        objective, names = self.options["objective"], self._targets()
        if objective in ("binary", "classes"):
            return [
                Column(
                    names[0], "category", tuple(self._classes()), is_required=True, is_closed=True
                )
            ]
        if objective == "labels":
            return [Column(name, "boolean") for name in names]
        if objective == "survival":
            time, event = names
            return [Column(time, is_required=True), Column(event, "boolean", is_required=True)]
        kind: Kind = "integer" if objective == "counts" else "number"
        return [Column(names[0], kind, is_required=True)]

    def _class_target(self, path: Path, found: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        return found[self._targets()[0]].astype(np.int64)

    def _label_target(self, path: Path, found: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """Labels (N, labels) of 0 and 1; a missing one counts nowhere."""
        values = np.stack([found[name] for name in self._targets()], axis=1)
        return np.where(np.isnan(values), IGNORED, values).astype(np.int64)

    def _number_target(self, path: Path, found: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        (name,) = self._targets()
        values = found[name]
        if self.options["objective"] == "counts" and (values < 0).any():
            why = f"column {name}: objective counts wants whole numbers from 0"
            raise refusal(path, f"row {int(np.argmax(values < 0)) + 1}, {why}", why)
        with np.errstate(over="ignore"):
            target = values.astype(np.float32)
        if np.isinf(target).any():
            raise refusal(path, f"column {name}: a number is beyond float32")
        return target

    def _time_target(self, path: Path, found: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """
        Of each interval (N, intervals): 0 survived, 1 the event, IGNORED when no longer at risk.

        Intervals are open below and closed above. A row that is censored within one counts in those before.
        """
        name, happened = self._targets()
        times, events = found[name], found[happened] == 1
        if (times < 0).any():
            why = f"column {name}: a time is below 0"
            raise refusal(path, f"row {int(np.argmax(times < 0)) + 1}, {why}", why)
        grid = np.array(self.options["time_grid"])
        survived = times[:, None] >= grid
        inside = (times[:, None] <= grid) & (times[:, None] > np.array([-1.0, *grid[:-1]]))
        target = np.where(survived, 0, IGNORED)
        return np.where(inside & events[:, None], 1, target).astype(np.int64)

    def _strata(self, target: NDArray[Any]) -> NDArray[np.int64]:
        """Classes (N,) by which rows are held out and shared: of a survival whether there was an event."""
        objective = self.options["objective"]
        if objective in ("binary", "classes"):
            return np.asarray(target, np.int64)
        if objective == "survival":
            return np.asarray((target == 1).any(axis=1), np.int64)
        return np.zeros(len(target), np.int64)

    def _others(self, rows: NDArray[np.float32]) -> dict[str, int]:
        """Cells with a level that is not declared, by column, for the site's own log."""
        found = {
            f"other levels in column {one.name}": int(
                (rows[:, at] == len(one.levels) + OTHER).sum()
            )
            for at, one in enumerate(self._features())
            if one.levels
        }
        return {name: count for name, count in found.items() if count}


_TARGETS: Mapping[str, Callable[[TableTask, Path, Mapping[str, NDArray[Any]]], NDArray[Any]]] = {
    "binary": TableTask._class_target,
    "classes": TableTask._class_target,
    "labels": TableTask._label_target,
    "regression": TableTask._number_target,
    "counts": TableTask._number_target,
    "survival": TableTask._time_target,
}


def _dataset(rows: NDArray[np.float32], target: NDArray[Any]) -> TensorDataset:
    return TensorDataset(torch.from_numpy(rows), torch.from_numpy(target))
