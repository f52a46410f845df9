"""
Several runs side by side: how good, how long, and in which config fields they differ.

Runs that differ in nothing but ``run.seed`` are a sweep, and have a mean and a spread.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fl_queue import metrics
from fl_queue.common.spelling import nearest
from fl_queue.config.run_config import changed_fields
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError
from fl_queue.models import selection
from fl_queue.protocol.records import Outcome
from fl_queue.reporting import rounds_table
from fl_queue.reporting.baselines import Baseline
from fl_queue.store import RunState, Store

#: Fields of the place of a run; they do not change its result.
_ELSEWHERE = ("redis.url", "redis.blob_url")
_SEED = "run.seed"


@dataclass(frozen=True)
class ComparedRun:
    """
    One run.

    Args:
        name, run_id, state: The run's.
        version: The newest; None before version 0.
        value: The metric of the newest judged version; None when no version has it.
        best, best_version: The best value by ``run.select``, else the lowest loss or the highest other
            metric. The version is chosen by the clients' validation, if there is one.
        abandoned: Rounds that made no version.
        seconds: Counted length of its rounds.
        settings: The config fields in which the compared runs differ.
        clients, examples: How many clients, and how many of their examples, ``value`` is of; None unless it is
            from the clients' validation.
        spread: Of clients alone: how far their values are from the mean, which ``value`` is, in words.
    """

    name: str
    run_id: str
    state: str
    version: int | None
    value: float | None
    best: float | None
    best_version: int | None
    abandoned: int
    seconds: float
    settings: dict[str, Any]
    spread: str = ""
    clients: int | None = None
    examples: int | None = None


@dataclass(frozen=True)
class Sweep:
    """
    Runs that differ in their seed alone.

    Args:
        runs: Their names, two or more.
        settings: What they have in common of the fields in which the compared runs differ.
        mean, deviation: Of the metric of their newest versions; sample standard deviation.
        best_mean, best_deviation: The same of their best versions.
    """

    runs: list[str]
    settings: dict[str, Any]
    mean: float
    deviation: float
    best_mean: float
    best_deviation: float


def compare(
    store: Store,
    states: Sequence[RunState],
    metric: str,
    baselines: Sequence[Baseline] = (),
) -> list[ComparedRun]:
    """
    The runs, in the order given, and after them the baselines.

    Args:
        metric: Such as ``accuracy``; by the central test, else by the clients' validation.
    """
    records = [runs.current_config(store, state.run_id).record() for state in states]
    differing = _differing([*records, *(baseline.config for baseline in baselines)])

    def settings(record: Mapping[str, Any]) -> dict[str, Any]:
        return {field: _field(record, field) for field in differing}

    # Side by side is what was judged alike.
    held_out = not any(selection.test_metrics(store, state.run_id) for state in states)
    return [
        *(
            _compared(store, state, metric, settings(record))
            for state, record in zip(states, records, strict=True)
        ),
        *(_beside(one, metric, settings(one.config), held_out) for one in baselines),
    ]


def metric_of(store: Store, states: Sequence[RunState], wanted: str) -> str:
    """
    By which metric runs are compared.

    Args:
        wanted: Its name; empty: accuracy, or the loss where no run has one.

    Raises:
        ConfigError: The runs have metrics, and none of that name.
    """
    judged = (selection.version_metrics(store, state.run_id) for state in states)
    there = sorted({name for versions in judged for found in versions.values() for name in found})
    if not wanted:
        return "loss" if there and "accuracy" not in there else "accuracy"
    check_metric(wanted, there)
    return wanted


def check_metric(wanted: str, there: Sequence[str]) -> None:
    """Raises ConfigError if there are metrics, and none of that name."""
    if there and wanted not in there:
        raise ConfigError(
            "--metric", f"no run has {wanted}; there is {', '.join(there)}{nearest(wanted, there)}"
        )


def sweeps(compared: Sequence[ComparedRun]) -> list[Sweep]:
    """The groups of two or more runs with the metric that differ in their seed alone."""
    groups: dict[str, list[ComparedRun]] = {}
    for run in compared:
        rest = {field: value for field, value in run.settings.items() if field != _SEED}
        if run.run_id and run.value is not None and _SEED in run.settings:
            groups.setdefault(repr(rest), []).append(run)
    return [_sweep(group) for group in groups.values() if len(group) > 1]


def _differing(records: Sequence[Mapping[str, Any]]) -> list[str]:
    found = {field for record in records for field in changed_fields(records[0], record)}
    return sorted(found - set(_ELSEWHERE))


def _field(record: Mapping[str, Any], field: str) -> Any:
    section, _, key = field.partition(".")
    return record.get(section, {}).get(key)


def _compared(store: Store, state: RunState, metric: str, settings: dict[str, Any]) -> ComparedRun:
    judged = {
        version: finished
        for version, finished in selection.version_metrics(store, state.run_id).items()
        if metric in finished
    }
    selected = runs.current_config(store, state.run_id).run.select
    select = selected if selected.partition(":")[0] == metric else _select(metric)
    validated = selection.validation_metrics(store, state.run_id)
    # Of the versions that have a value to be shown: the test set may have judged every fifth.
    known = {version: found for version, found in validated.items() if version in judged}
    best = selection.best_by(select, known, judged)
    rounds = store.control.history.records(state.run_id)
    of: tuple[int | None, int | None] = (None, None)
    if judged and metric not in selection.test_metrics(store, state.run_id).get(max(judged), {}):
        of = rounds_table.validation_coverage(rounds).get(max(judged), {}).get(metric, of)
    return ComparedRun(
        name=state.name,
        run_id=state.run_id,
        state=state.state,
        version=state.version,
        value=judged[max(judged)][metric] if judged else None,
        best=None if best is None else judged[best][metric],
        best_version=best,
        abandoned=sum(record.outcome == Outcome.abandoned for record in rounds),
        seconds=sum(record.elapsed_s for record in rounds),
        settings=settings,
        clients=of[0],
        examples=of[1],
    )


def _beside(
    baseline: Baseline, metric: str, settings: dict[str, Any], held_out: bool
) -> ComparedRun:
    """A baseline as a run: its rounds are its versions."""
    spread = baseline.summary(metric, held_out)
    points = [] if held_out else baseline.curve(metric)
    curve = {at: {metric: value} for at, value in points}
    best = metrics.best_version(_select(metric), curve)
    return ComparedRun(
        name=f"{baseline.kind} {baseline.name}",
        run_id="",
        state="baseline",
        version=baseline.rounds,
        value=None if spread is None else spread.mean,
        best=None if best is None else curve[best][metric],
        best_version=best,
        abandoned=0,
        seconds=baseline.seconds,
        settings=settings,
        spread="" if spread is None or spread.deviation is None else spread.words(),
    )


def _select(metric: str) -> str:
    return f"{metric}:min" if metric == "loss" else f"{metric}:max"


def _sweep(group: Sequence[ComparedRun]) -> Sweep:
    values = [run.value for run in group if run.value is not None]
    bests = [run.best for run in group if run.best is not None]
    common = {field: value for field, value in group[0].settings.items() if field != _SEED}
    return Sweep(
        [run.name for run in group],
        common,
        statistics.fmean(values),
        statistics.stdev(values),
        statistics.fmean(bests),
        statistics.stdev(bests),
    )
