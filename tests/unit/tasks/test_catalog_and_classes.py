"""The catalog of built-in tasks agrees with their classes, which it names without importing torch."""

from __future__ import annotations

import importlib

import pytest

from fl_queue.config.schema import RunSection
from fl_queue.config.task_catalog import TASKS
from fl_queue.tasks import Task


@pytest.mark.parametrize("name", TASKS)
def test_an_entry_and_its_class_agree_on_feature_skew(name: str) -> None:
    module, _, attribute = TASKS[name].target.partition(":")
    task_class = getattr(importlib.import_module(module), attribute)
    assert TASKS[name].skews == task_class.skews


@pytest.mark.parametrize("name", TASKS)
def test_an_entry_names_metrics_where_its_class_declares_some(name: str) -> None:
    module, _, attribute = TASKS[name].target.partition(":")
    task_class = getattr(importlib.import_module(module), attribute)
    assert bool(TASKS[name].metrics) == (task_class.metrics is not Task.metrics)


def test_the_schema_lists_the_tasks_of_the_catalog() -> None:
    listed = RunSection.options()["task"].doc
    assert f"({', '.join(TASKS)})" in listed
