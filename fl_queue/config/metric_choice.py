"""
Whether ``run.select`` and ``run.stop_when`` name metrics that a task reports. No Redis here.

Of a built-in task that is known when a run begins. Any other declares its metrics with version 0, and a run that
names another one ends before round 1. Of a task that declares none, and is evaluated by its own code, the first
round whose clients validated something shows it: a run that could never have a best version, or never stop, ends
there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from fl_queue import metrics
from fl_queue.common.spelling import nearest
from fl_queue.config.run_config import RunConfig
from fl_queue.config.task_catalog import TASKS, TaskEntry
from fl_queue.errors import ConfigError
from fl_queue.protocol.records import RoundRecord, Sums
from fl_queue.strategies import get_strategy

#: Most declared metrics that a message names.
_LISTED = 20
#: Metrics between 0 and 1, and which way each metric that the library computes is better.
_SHARES = ("accuracy", "auc", "f1")
_DIRECTIONS = {"loss": "min", **dict.fromkeys(_SHARES, "max")}


def of_config(config: RunConfig) -> frozenset[str] | None:
    """The metrics that a run's clients can report; None where that depends on the task's code."""
    entry = TASKS.get(config.run.task)
    if config.analysis is not None:
        return frozenset()
    if entry is None:
        return None
    found, beside = _of_task(entry, config)
    strategy = get_strategy(config.aggregation.strategy, config.strategy)
    if strategy.personal or config.model.private:
        found |= {f"personal_{name}" for name in beside}
    if config.train.finetune_epochs:
        found |= {f"finetuned_{name}" for name in beside}
    return frozenset(found)


def _of_task(entry: TaskEntry, config: RunConfig) -> tuple[set[str], set[str]]:
    """Metrics of a built-in task's versions, and those of the models that clients report beside them."""
    if declared := entry.metrics_in(config.task):
        names = {"loss", *declared}
        return names, names
    listed = [name for name in config.task.get("classes", "").split(",") if name.strip()]
    count = entry.classes or len(listed)
    names = {"loss", "accuracy"}
    if count <= metrics.MAX_CLASSES:
        names.add("f1")
    found = names | ({"auc"} if count in (0, 2) else set())
    return found, names if count <= metrics.BESIDE_CLASSES else names - {"f1"}


def check_declared(config: RunConfig, record: Sequence[str]) -> None:
    """
    Refuse a metric that the task does not declare, or in the wrong direction.

    Args:
        record: Of the run, see ``metrics.Declared.to_record``; empty: not known. Of a built-in task
            ``check_config`` knows them.

    Raises:
        ConfigError: Names the field, and what the task declares.
    """
    if not record or config.run.task in TASKS:
        return
    of_version = metrics.names_in(record)
    known = dict(of_version)
    for part, is_there in _beside(config).items():
        known |= {f"{part}_{name}": way for name, way in of_version.items() if is_there}
    for field, text in (
        ("run.select", config.run.select),
        ("run.stop_when", config.run.stop_when),
    ):
        match = re.match(r"\w+", text)
        if match and match[0] not in known:
            near = nearest(match[0], sorted(known))
            raise ConfigError(field, f"{match[0]} is none of {_listed(known)}{near}")
    metric, _, direction = config.run.select.partition(":")
    right = known.get(metric) or direction
    if direction != right:
        raise ConfigError(
            "run.select", f"{metric}:{direction} chooses the worst version; write {metric}:{right}"
        )


def _listed(known: Mapping[str, str]) -> str:
    """Metrics for a message: it is a run's reason, and the maker of version 0 has written the names."""
    names = [f"{name}:{way}" if way else name for name, way in known.items()]
    left_out = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {left_out} more" if left_out > 0 else "")


def problem_declared(config: RunConfig, record: Sequence[str]) -> str:
    """The same as a reason; empty where there is none."""
    try:
        check_declared(config, record)
    except ConfigError as exc:
        return str(exc)
    return ""


def select_of(config: RunConfig, record: Sequence[str]) -> str:
    """
    ``run.select``, or the first metric that the task declares; empty: neither.

    Args:
        record: Of the run; of a built-in task the catalog counts, and not what a client has written.
    """
    entry = TASKS.get(config.run.task)
    names = (
        [f"{name}:{way}" for name, way in entry.metrics_in(config.task).items()]
        if entry
        else record
    )
    return config.run.select or next((one for one in names if ":" in one), "")


def _beside(config: RunConfig) -> dict[str, bool]:
    """Part beside the version -> whether clients report its metrics."""
    strategy = get_strategy(config.aggregation.strategy, config.strategy)
    return {
        "personal": bool(strategy.personal or config.model.private),
        "finetuned": bool(config.train.finetune_epochs),
    }


def of_history(records: Iterable[RoundRecord]) -> frozenset[str] | None:
    """The metrics that a run's clients have reported; None where they have reported none yet."""
    return of_validations(record.validation for record in records)


def of_validations(validations: Iterable[Sums]) -> frozenset[str] | None:
    """The metrics of such validations; None where nothing was validated."""
    names: set[str] = set()
    for sums in validations:
        # What is there of one class only has no AUC yet, and may have one.
        names |= {*metrics.told_by(sums), *metrics.finish(sums)}
    return frozenset(names) or None


def check_config(config: RunConfig) -> None:
    """
    Refuse metrics that the config alone shows to be wrong.

    Such are a metric that its task does not report, the worst version as the best one, and a bound that
    no value can pass.

    Not a check of the fields themselves: a run that was started with such a config goes on.

    Raises:
        ConfigError: Names the field and what to write.
    """
    reported = of_config(config)
    check(config, reported)
    metric, _, direction = config.run.select.partition(":")
    entry = TASKS.get(config.run.task)
    known = {**_DIRECTIONS, **(entry.metrics_in(config.task) if entry else {})}
    right = known.get(_base(metric), direction)
    if direction != right:
        raise ConfigError(
            "run.select",
            f"{metric}:{direction} chooses the worst version; write {metric}:{right}",
        )
    # An own task may report per cent under the same name.
    if reported is not None and (out := metrics.bound(config.run.stop_when)):
        metric, value = out
        if _base(metric) in _SHARES and not 0 <= value <= 1:
            raise ConfigError(
                "run.stop_when",
                f"{metric} is between 0 and 1, and never {value:g}; 97 % is written 0.97",
            )


def _base(metric: str) -> str:
    """A metric's name without the prefix that names the model."""
    return metric.removeprefix("personal_").removeprefix("finetuned_")


def check(config: RunConfig, reported: Collection[str] | None) -> None:
    """
    Refuse a metric that is not reported.

    Args:
        reported: Of ``of_config`` or ``of_history``; None: not known yet.

    Raises:
        ConfigError: Names the field, and what the task reports.
    """
    if reported is None:
        return
    select, condition = config.run.select, config.run.stop_when
    for field, text in (("run.select", select), ("run.stop_when", condition)):
        match = re.match(r"\w+", text)
        if match and match[0] not in reported:
            raise ConfigError(
                field,
                f"{match[0]} is not what the clients of {config.run.task} report"
                f"{nearest(match[0], sorted(reported))}; choose one of {', '.join(sorted(reported))}",
            )


def problem(config: RunConfig, reported: Collection[str] | None) -> str:
    """The same as a reason; empty where there is none."""
    try:
        check(config, reported)
    except ConfigError as exc:
        return str(exc)
    return ""
