"""
Baselines for a federated run: clients that train alone, and one model on all their data.

Here is what such a training came to, and its file; ``baseline_training`` trains. No torch and no Redis here.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fl_queue.common import files, safe_json
from fl_queue.common.safe_json import dumps
from fl_queue.errors import DataError, MessageError
from fl_queue.reporting import rich_console
from fl_queue.reporting.rich_console import Table

LOCAL, CENTRALISED = KINDS = ("local", "centralised")
#: Clients shown one by one; of more there is a summary.
SHOWN = 40
#: Words in the names of metrics of which less is better.
_LESS = frozenset(
    [
        "loss",
        "error",
        "mae",
        "mse",
        "rmse",
        "mape",
        "perplexity",
        "brier",
        "ece",
        "wer",
        "cer",
        "distance",
    ]
)


@dataclass(frozen=True)
class BaselineModel:
    """
    One model that was trained.

    Args:
        client: Whose data it was trained on; ``centralised``: those of all.
        num_examples: Training samples.
        digest: BLAKE3 of its tensors, as that of a version: equal digests are equal bits.
        test: Finished metrics on the central test set; empty without one.
        validation: The same on what its client (or all of them) held out.
        curve: Round -> finished metrics on the test set, where there were several.
    """

    client: str
    num_examples: int
    digest: str
    test: dict[str, float]
    validation: dict[str, float]
    curve: dict[str, dict[str, float]] = field(default_factory=dict)

    def value(self, metric: str, held_out: bool = False) -> float | None:
        """
        On the test set, else on what was held out; None without such a metric.

        Args:
            held_out: On that anyway, to be beside a run without a central test.
        """
        of_test = None if held_out else self.test.get(metric)
        return self.validation.get(metric) if of_test is None else of_test


@dataclass(frozen=True)
class BaselineSetting:
    """
    Settings of the training.

    Args:
        kind: ``local``: a model for each client, alone; ``centralised``: one on all their data.
        name: The config's.
        config: As a run records it.
        rounds: As many times ``train.epochs`` each model was trained.
        clients: Clients whose data were used.
        seconds: How long it took.
        environment: Versions, device, threads, instruction set, task code digest.
    """

    kind: Literal["local", "centralised"]
    name: str
    config: dict[str, dict[str, Any]]
    rounds: int
    clients: int
    seconds: float
    environment: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Baseline(BaselineSetting):
    """
    A baseline of one config.

    Args:
        models: One of each client, or one; never empty.
    """

    models: list[BaselineModel]

    def summary(self, metric: str, held_out: bool = False) -> Spread | None:
        """The metric over its models, as ``Model.value`` has it; None when none has it."""
        found = {model.client: model.value(metric, held_out) for model in self.models}
        values = {client: value for client, value in found.items() if value is not None}
        if not values:
            return None
        worst = (max if self._is_less_better(metric) else min)(values, key=values.__getitem__)
        return Spread(
            mean=statistics.fmean(values.values()),
            deviation=statistics.stdev(values.values()) if len(values) > 1 else None,
            least=min(values.values()),
            most=max(values.values()),
            worst=worst,
            count=len(values),
            models=len(self.models),
        )

    def _is_less_better(self, metric: str) -> bool:
        """Whether lower is better: by ``run.select`` for its metric, else by the metric's name."""
        name, _, way = str(self.config.get("run", {}).get("select", "")).partition(":")
        if name == metric and way:
            return way == "min"
        return not _LESS.isdisjoint(metric.lower().split("_"))

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """(round, value) of the one model of ``centralised``; empty where only the end is known."""
        if self.kind != CENTRALISED:
            return []
        points = self.models[0].curve.items()
        return sorted((int(at), found[metric]) for at, found in points if metric in found)


@dataclass(frozen=True)
class Spread:
    """
    A metric over the models of a baseline.

    Args:
        mean, deviation: Plain mean and sample standard deviation; None: of one model.
        least, most: Its range.
        worst: Client of the worst value.
        count: Models that have it.
        models: All models.
    """

    mean: float
    deviation: float | None
    least: float
    most: float
    worst: str
    count: int
    models: int = 0

    def words(self) -> str:
        """``0.8123 ± 0.0210 over 10 clients, 0.7710 to 0.8450, worst sim-03``."""
        of = f" of {self.models}" if self.models > self.count else ""
        if self.deviation is None:
            return f"{self.mean:.4f}{f' of {self.count}{of} clients' if of else ''}"
        return (
            f"{self.mean:.4f} ± {self.deviation:.4f} over {self.count}{of} clients, "
            f"{self.least:.4f} to {self.most:.4f}, worst {self.worst}"
        )


def write(path: Path, baseline: Baseline) -> None:
    """
    Write a file that ``read`` takes; an existing one is replaced.

    Raises:
        DataError: It cannot be written.
    """
    files.write(path, dumps(asdict(baseline)).encode() + b"\n")


def read(path: Path) -> Baseline:
    """
    A baseline from its file.

    Raises:
        DataError: It cannot be read, or is no baseline; names what is wrong.
    """
    try:
        raw = safe_json.loads(path.read_bytes(), "a baseline")
        models = raw.pop("models", None) if type(raw) is dict else None
        if type(models) is not list or not models:
            raise MessageError("not a baseline: it has no models")
        safe_json.record(BaselineSetting, raw, "a baseline")
        return Baseline(
            **raw, models=[safe_json.record(BaselineModel, one, "a baseline") for one in models]
        )
    except OSError as exc:
        raise DataError(str(path), f"cannot be read: {exc.strerror or exc}") from exc
    except MessageError as exc:
        reason = f"{exc.reason}; name a file that `fl-queue baseline -o` wrote"
        raise DataError(str(path), reason) from exc


def table(baseline: Baseline) -> Table:
    """The models for a terminal."""
    parts = baseline.models
    names = _metrics(baseline)
    drawn = rich_console.table()
    drawn.add_column("Trained on", no_wrap=True)
    for column in ("Examples", *names):
        drawn.add_column(column, justify="right")
    for part in parts[:SHOWN]:
        drawn.add_row(part.client, str(part.num_examples), *(_cell(part, name) for name in names))
    if len(parts) > SHOWN:
        drawn.add_row(f"and {len(parts) - SHOWN} more")
    return drawn


def _cell(part: BaselineModel, name: str) -> str:
    value = part.value(name)
    star = "" if name in part.test else "*"
    return "-" if value is None else f"{value:.4f}{star}"


def summary(baseline: Baseline) -> list[str]:
    """Mean, spread and worst client of each metric, and what a star means; a line each."""
    lines = []
    for name in _metrics(baseline) if baseline.kind == LOCAL else ():
        spread = baseline.summary(name)
        if spread is not None:
            lines.append(f"{name} {spread.words()}")
    if any(name not in part.test for part in baseline.models for name in part.validation):
        lines.append("* on what was held out for validation")
    return lines


def _metrics(baseline: Baseline) -> list[str]:
    found = [name for model in baseline.models for name in (*model.test, *model.validation)]
    return list(dict.fromkeys(found))
