"""Metrics of a run's config and the declarations of its task."""

from __future__ import annotations

from typing import Any

import pytest

from fl_queue.config import metric_choice
from fl_queue.config.run_config import RunConfig


def config_of(task: str, **run: Any) -> RunConfig:
    return RunConfig.from_dict({"run": {"task": task, **run}})


@pytest.mark.parametrize(
    ("task", "select", "record", "chosen"),
    [
        ("mine:Mine", "", ("dice:max", "loss:min"), "dice:max"),
        ("mine:Mine", "iou:max", ("dice:max", "iou:max", "loss:min"), "iou:max"),
        ("mine:Mine", "", ("accuracy", "auc", "f1", "loss"), ""),
        ("mine:Mine", "", (), ""),
        ("mnist-2nn", "", ("forged:max",), ""),
    ],
)
def test_the_first_declared_metric_is_the_default(
    task: str, select: str, record: tuple[str, ...], chosen: str
) -> None:
    assert metric_choice.select_of(config_of(task, select=select), record) == chosen


def test_a_built_in_task_that_declares_is_judged_by_the_catalog_alone() -> None:
    config = RunConfig.from_dict({"run": {"task": "causal-lm"}, "task": {"model": "gpt"}})
    assert metric_choice.select_of(config, ("token_accuracy:min",)) == "perplexity:min"
    metric_choice.check_declared(config_of("mnist-2nn", select="accuracy:max"), ("forged:max",))


def test_a_reason_names_few_of_many_declared_metrics() -> None:
    record = [f"m{n}{'x' * 50}:max" for n in range(64)]
    reason = metric_choice.problem_declared(config_of("mine:Mine", select="dice:max"), record)
    assert "m19" in reason
    assert "m20" not in reason
    assert "and 44 more" in reason
    assert len(reason) < 1500
