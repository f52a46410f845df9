"""
Whether ``run.select`` and ``run.stop_when`` name metrics that a task reports. No Redis here.

Of a built-in task that is known when a run begins. Of any other the first round whose clients
validated something shows it: a run that could never have a best version, or never stop, ends there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from fl_queue import metrics
from fl_queue.catalog import TASKS
from fl_queue.config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.records import RoundRecord
from fl_queue.spelling import nearest
from fl_queue.strategies import get_strategy


def of_config(config: RunConfig) -> frozenset[str] | None:
    """The metrics that a run's clients can report; None where only the task's code says it."""
    entry = TASKS.get(config.run["task"])
    if entry is None:
        return None
    listed = [name for name in config.task.get("classes", "").split(",") if name.strip()]
    count = entry.classes or len(listed)
    names = {"loss", "accuracy"}
    if count <= metrics.MAX_CLASSES:
        names.add("f1")
    found = names | ({"auc"} if count in (0, 2) else set())
    beside = names if count <= metrics.BESIDE_CLASSES else names - {"f1"}
    strategy = get_strategy(config.aggregation["strategy"], config.strategy)
    if strategy.personal or config.model["private"]:
        found |= {f"personal_{name}" for name in beside}
    if config.train["finetune_epochs"]:
        found |= {f"finetuned_{name}" for name in beside}
    return frozenset(found)


def of_history(records: Iterable[RoundRecord]) -> frozenset[str] | None:
    """The metrics that a run's clients have reported; None where they have reported none yet."""
    names: set[str] = set()
    for record in records:
        # What is there of one class only has no AUC yet, and may have one.
        names |= {*metrics.told_by(record.validation), *metrics.finish(record.validation)}
    return frozenset(names) or None


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
    select, condition = config.run["select"], config.run["stop_when"]
    for field, text in (("run.select", select), ("run.stop_when", condition)):
        match = re.match(r"\w+", text)
        if match and match[0] not in reported:
            raise ConfigError(
                field,
                f"{match[0]} is not what the clients of {config.run['task']} report"
                f"{nearest(match[0], sorted(reported))}; choose one of {', '.join(sorted(reported))}",
            )


def problem(config: RunConfig, reported: Collection[str] | None) -> str:
    """The same as a reason; empty where there is none."""
    try:
        check(config, reported)
    except ConfigError as exc:
        return str(exc)
    return ""
