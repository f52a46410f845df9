"""Contradictions between sections (``config.consistency``, over ``config.settings``) are refused when a config is read, and not when a round is opened."""

from __future__ import annotations

import pytest

from fl_queue.config import loading
from fl_queue.config.task_catalog import TASKS
from fl_queue.errors import ConfigError
from fl_queue.tasks.loading import load_task

#: A hundred clients, by name.
NAMED = str([f"site-{number}" for number in range(100)]).replace("'", '"')
SIMULATION = ("clients.kind=simulation", "clients.count=10")


@pytest.mark.parametrize(
    ("field", "overrides"),
    [
        ("aggregation.limit", ("aggregation.limit=1e18",)),
        ("aggregation.limit", ("round.cohort=8", "aggregation.limit=1e12")),
        (
            "aggregation.limit",
            (*SIMULATION, "clients.count=1000", "data.source=full", "aggregation.limit=4e7"),
        ),
        (
            "aggregation.limit",
            ("round.mode=async", "round.concurrency=1000", "aggregation.limit=1e8"),
        ),
        ("aggregation.limit", (f"clients.include={NAMED}", "aggregation.limit=1e10")),
        ("aggregation.limit", ("data.shares=100", "aggregation.limit=1e10")),
        ("aggregation.limit", ("round.cohort=8", "aggregation.max_examples=1125899906842624")),
        (
            "strategy.control_limit",
            (
                "aggregation.strategy=scaffold",
                "aggregation.weighting=uniform",
                "strategy.control_limit=1e18",
            ),
        ),
        ("round.cohort", ('clients.include=["a", "b"]', "round.cohort=3")),
        ("round.concurrency", ('clients.include=["a"]', "round.mode=async", "round.concurrency=2")),
        ("round.cohort", ("data.shares=2", "round.cohort=3")),
        ("round.quorum", (*SIMULATION, "round.cohort=0.5", "round.quorum=6")),
        (
            "redis.unmerged_bytes",
            (
                "aggregation.strategy=median",
                "aggregation.weighting=uniform",
                "round.cohort=8",
                "redis.unmerged_bytes=25119",
            ),
        ),
        ("clients.include", ('clients.include=["a_b"]',)),
        ("clients.include", ('clients.include=[""]',)),
        ("clients.exclude", (*SIMULATION, 'clients.exclude=["sim-1"]')),
    ],
)
def test_it_is_refused_with_the_field(field: str, overrides: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        loading.load("mnist-3v7", overrides, {})
    assert caught.value.field == field


@pytest.mark.parametrize(
    "overrides",
    [
        ('clients.include=["hospital-*", "clinic-[ab]"]', "round.cohort=9"),
        ('clients.exclude=["hospital-c"]',),
        ("data.shares=3", "round.cohort=3"),
        ("data.shares=2", "data.partition=site", "run.task=csv", "round.cohort=3"),
        ("data.shares=2", "run.task=own:Task", "round.cohort=3"),
        (*SIMULATION, "round.cohort=0.5", "round.quorum=5"),
        ("round.cohort=8", "aggregation.buffer_limit=1e30"),
        (*SIMULATION, "clients.count=1000", "data.source=full", "aggregation.buffer_limit=1e30"),
        ("round.mode=async", "round.concurrency=1000", "aggregation.buffer_limit=1e30"),
        ('clients.include=["site-*"]', "aggregation.limit=1e10"),
        (f"clients.include={NAMED}", "round.cohort=0.01", "aggregation.limit=1e10"),
        (
            "aggregation.strategy=median",
            "aggregation.weighting=uniform",
            "round.cohort=8",
            "redis.unmerged_bytes=25120",
        ),
    ],
)
def test_what_can_be_is_not(overrides: tuple[str, ...]) -> None:
    loading.load("mnist-3v7", overrides, {})


@pytest.mark.parametrize("task", ["mnist-3v7", "mnist-2nn", "mnist-cnn"])
def test_the_models_have_the_parameter_count_of_the_catalog(task: str) -> None:
    loaded = loading.load(None, (f"run.task={task}",), {})
    model = load_task(task, loaded).build_model()
    assert sum(one.numel() for one in model.parameters()) == TASKS[task].parameters
