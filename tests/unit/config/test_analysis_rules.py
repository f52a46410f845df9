"""Configs of analyses (``analysis_catalog``): what is refused when they are read."""

from __future__ import annotations

from typing import Any

import pytest

from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.tasks.loading import load_task

TASK: dict[str, Any] = {
    "numbers": ["age"],
    "levels": {"sex": ["F", "M"], "stage": ["I", "II"]},
}


def config(task: dict[str, Any] | None = None, **sections: dict[str, Any]) -> RunConfig:
    """A config of statistics."""
    run = {"task": "statistics", **sections.pop("run", {})}
    return RunConfig.from_dict({"run": run, "task": {**TASK, **(task or {})}, **sections})


def test_steps_of_an_analysis() -> None:
    """Quantiles need a second one; the columns are those that are asked for."""
    assert config().analysis.steps == 1  # type: ignore[union-attr]
    found = config({"quantiles": [0.5], "correlation": ["age", "bmi"]}).analysis
    assert found is not None
    assert found.steps == 2
    assert found.columns.names == ("age", "bmi", "sex", "stage")
    assert RunConfig.from_dict({}).analysis is None


def test_a_config_of_statistics_is_one_after_it_was_recorded() -> None:
    """As the sites read it, with the same digest."""
    first = config({"quantiles": [0.5], "tables": ["sex by stage"], "groups": ["age by sex"]})
    again = RunConfig.from_dict(first.record())
    assert again.digest == first.digest
    assert again.analysis.questions() == first.analysis.questions()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ({"numbers": [], "levels": {}}, "task.numbers"),
        ({"numbers": ["age", "age"]}, "task.numbers"),
        ({"numbers": ["age", "sex"]}, "task.numbers"),
        ({"levels": {"sex": ["F", " M"]}}, "task.levels.sex"),
        ({"quantiles": [0.0]}, "task.quantiles"),
        ({"quantiles": [1.0]}, "task.quantiles"),
        ({"quantiles": [0.5, 0.25]}, "task.quantiles"),
        ({"quantiles": [0.5], "numbers": []}, "task.quantiles"),
        ({"levels": {"sex": "F"}}, "task.levels.sex"),
        ({"levels": {"sex": ["F", "F"]}}, "task.levels.sex"),
        ({"levels": {"sex": [""]}}, "task.levels.sex"),
        ({"levels": {"sex": [f"{level}" for level in range(1001)]}}, "task.levels.sex"),
        ({"groups": ["age"]}, "task.groups"),
        ({"groups": ["bmi by sex"]}, "task.groups"),
        ({"groups": ["age by ward"]}, "task.groups"),
        ({"groups": ["age by sex", "age by sex"]}, "task.groups"),
        ({"tables": ["sex by sex"]}, "task.tables"),
        ({"tables": ["sex by ward"]}, "task.tables"),
        ({"correlation": ["age"]}, "task.correlation"),
        ({"correlation": ["age", "sex"]}, "task.correlation"),
        ({"survival": ["months died"]}, "task.time_grid"),
        ({"time_grid": [0, 30]}, "task.time_grid"),
        ({"survival": ["months"], "time_grid": [0, 30]}, "task.survival"),
        ({"survival": ["months months"], "time_grid": [0, 30]}, "task.survival"),
        ({"survival": ["months died by ward"], "time_grid": [0, 30]}, "task.survival"),
        ({"survival": ["months died by"], "time_grid": [0, 30]}, "task.survival"),
        ({"survival": ["months sex"], "time_grid": [0, 30]}, "task.survival"),
        ({"survival": ["months died"] * 2, "time_grid": [0, 30]}, "task.survival"),
        ({"survival": ["months died"], "time_grid": [30, 0]}, "task.time_grid"),
        ({"survival": ["months died"], "time_grid": [-1, 0]}, "task.time_grid"),
        ({"survival": ["months died"], "time_grid": [0.0] * 10_001}, "task.time_grid"),
        (
            {"survival": ["months died"], "time_grid": [0, 1, 2], "time_width": 1},
            "task.time_grid",
        ),
        (
            {"survival": ["months died"], "time_grid": [0, 1e9], "time_width": 1},
            "task.time_width",
        ),
        ({"file": "/etc/passwd"}, "task.file"),
        ({"missing": ["x"]}, "task.missing"),
    ],
)
def test_questions_that_cannot_be_asked(task: dict[str, Any], field: str) -> None:
    """Each names its field."""
    with pytest.raises(ConfigError) as refused:
        config(task)
    assert refused.value.field == field


def test_questions_about_survival_alone() -> None:
    """They need no other; without them a config has the digest that older workers compute."""
    asked = {"numbers": [], "levels": {}, "survival": ["months died"]}
    found = config({**asked, "time_grid": [0, 12], "time_width": 3}).analysis
    assert found is not None
    assert found.columns.names == ("died", "months")
    assert found.questions() == ["survival months died: 5 times from 0 to 12"]
    assert {"survival", "time_grid", "time_width"}.isdisjoint(config().record()["task"])


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("clients", "kind", "simulation"),
        ("round", "mode", "async"),
        ("data", "partition", "shards"),
        ("data", "shares", 3),
        ("aggregation", "strategy", "fedadam"),
        ("aggregation", "clip_norm", 1.0),
        ("update", "codec", "int8"),
        ("model", "codec", "bfloat16"),
        ("model", "initial", "x.safetensors"),
        ("run", "patience", 3),
        ("run", "select", "accuracy:max"),
        ("round", "cohort", 2000),
    ],
)
def test_fields_without_a_use_are_refused(section: str, key: str, value: Any) -> None:
    """They would seem to change something."""
    with pytest.raises(ConfigError) as refused:
        config(**{section: {key: value}})
    assert refused.value.field == f"{section}.{key}"


def test_a_vector_of_too_many_words_is_refused() -> None:
    """When the config is read, and not at the sites."""
    levels = {name: [str(level) for level in range(1000)] for name in ("a", "b", "c", "d")}
    tables = [f"{x} by {y}" for x in levels for y in levels if x < y]
    with pytest.raises(ConfigError, match="words") as refused:
        config({"levels": levels, "tables": tables})
    assert refused.value.field == "task.tables"


def test_an_analysis_is_no_task_that_trains() -> None:
    """Commands that train name the command that it has."""
    with pytest.raises(ConfigError, match="fl-queue statistics"):
        load_task("statistics", config())
