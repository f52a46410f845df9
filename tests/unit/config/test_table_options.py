"""Options of the task ``table`` are checked when a config is read, and name the field to change."""

from __future__ import annotations

from typing import Any

import pytest

from fl_queue.config import loading, metric_choice
from fl_queue.config.run_config import RunConfig
from fl_queue.config.table_options import OBJECTIVES, features_of, target_unit
from fl_queue.config.task_catalog import TASKS
from fl_queue.errors import ConfigError

STAGE = {"type": "category", "levels": ["I", "II"]}


def loaded(columns: Any = None, run: Any = None, **options: Any) -> RunConfig:
    given = {"features": "age,stage", "target": "died", "columns": columns or {}, **options}
    return RunConfig.from_dict({"run": {"task": "table", **(run or {})}, "task": given})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"features": ""}, "task.features: is empty; list the columns"),
        ({"target": " "}, "task.target: is empty"),
        ({"features": "age,age"}, "task.features: age is listed twice"),
        ({"target": "age"}, "task.features: age is listed twice, or is the target"),
        ({"columns": {"sage": STAGE}}, "task.columns.sage: there is no such field"),
        ({"columns": {"age": 3}}, "task.columns.age: is no table"),
        ({"columns": {"age": {"tipe": "date"}}}, "did you mean task.columns.age.type"),
        ({"columns": {"age": {"type": "text"}}}, "task.columns.age.type: 'text' is not one of number, integer"),
        ({"columns": {"age": {"levels": ["a"]}}}, 'task.columns.age.levels: is for type = "category"'),
        ({"columns": {"stage": {"type": "category"}}}, "task.columns.stage.levels: list its values"),
        ({"columns": {"stage": {**STAGE, "levels": ["I", "I"]}}}, "task.columns.stage.levels: lists a value twice"),
        ({"columns": {"stage": {**STAGE, "levels": [1]}}}, "task.columns.stage.levels: is no list of texts"),
        ({"columns": {"stage": {**STAGE, "reference": "IV"}}}, "task.columns.stage.reference: is not one of"),
        ({"columns": {"stage": {**STAGE, "missing": 3}}}, "task.columns.stage.missing: '3' is not \"refuse\""),
        ({"columns": {"stage": {**STAGE, "indicator": True}}}, "task.columns.stage.indicator: is for numbers"),
        ({"columns": {"age": {"indicator": True}}}, "task.columns.age.indicator"),
        ({"columns": {"age": {"indicator": "yes", "missing": 0}}}, "task.columns.age.indicator: 'yes' is not true or"),
        ({"columns": {"age": {"missing": float("nan")}}}, "task.columns.age.missing: nan is no number"),
        ({"columns": {"age": {"missing": 1e39}}}, "task.columns.age.missing: '1e+39' is not \"refuse\""),
        ({"columns": {"stage": {**STAGE, "levels": ["None", "I"]}}}, "task.columns.stage.levels: 'None' is a cell without"),
        ({"columns": {"stage": {**STAGE, "levels": ["I", ""]}}}, "task.columns.stage.levels: '' is a cell without"),
        ({"columns": {"stage": {**STAGE, "levels": ["I", "II "]}}}, "task.columns.stage.levels: 'II ' has spaces around"),
        ({"classes": "no,NA"}, "task.classes: 'NA' is a cell without a value by task.missing"),
        ({"classes": "no,yes", "missing": ["no"]}, "task.classes: 'no' is a cell without a value"),
        ({"columns": {"age": {"missing": "level"}}}, "task.columns.age.missing: 'level' is not \"refuse\", \"mean\""),
        ({"columns": {"age": {"date": ["year"]}}}, "task.columns.age.date: is for dates"),
        ({"columns": {"age": {"type": "date", "date": ["hour"]}}}, "lists some of year, month, weekday"),
        ({"columns": {"age": {"type": "date", "date": ["year", "year"]}}}, "task.columns.age.date: lists a part twice"),
        ({"columns": {"age": {"mean": 3.0}}}, "task.columns.age.sd: is missing beside mean; give both"),
        ({"columns": {"age": {"mean": 3.0, "sd": -1}}}, "task.columns.age.sd: -1 is below 0"),
        ({"columns": {"age": {"mean": "3", "sd": 1}}}, "task.columns.age.mean: '3' is no number"),
        ({"columns": {"stage": {**STAGE, "mean": 3, "sd": 1}}}, "task.columns.stage.mean: is for numbers"),
        ({"columns": {"age": {"missing": "median"}}}, "task.columns.age.median: is not agreed yet; have the sites agree on it: `fl-queue prepare CONFIG`"),
        ({"fill": "median"}, "task.columns.age.median: is not agreed yet"),
        ({"columns": {"stage": STAGE, "age": {"missing": "mean"}}, "fill": "most_frequent"}, "task.columns.stage.most_frequent: is not agreed"),
        ({"columns": {"age": {"median": 3.0}}}, 'task.columns.age.median: is for missing = "median"'),
        ({"columns": {"stage": {**STAGE, "missing": "most_frequent", "most_frequent": "V"}}}, "task.columns.stage.most_frequent: is not one of the levels"),
        ({"columns": {"age": {"type": "boolean", "missing": "median"}}}, "task.columns.age.missing: 'median' is not \"refuse\", \"mean\", \"most_frequent\", or a number"),
        ({"columns": {"died": {"mean": 1.0, "sd": 1.0}}}, "task.columns.died: there is no such field"),
        ({"columns": {"died": {"type": "number"}}, "objective": "regression"}, "task.columns.died.type: there is no such field"),
        ({"columns": {"age": {"type": "date", "missing": 1}}}, "task.columns.age.missing: '1' is not"),
        ({"owner": "clinic,ward"}, "task.owner: 2 columns; name the one"),
        ({"classes": "a"}, "task.classes: two or more"),
        ({"classes": "a,b,c"}, "task.objective: binary, with 3 classes; write classes"),
        ({"objective": "hazard"}, "task.objective: 'hazard' is not one of binary"),
        ({"delimiter": ":"}, "task.delimiter: ':' is not one of '', ',', ';', tab, '|'"),
        ({"objective": "regression", "target": "a,b"}, "task.target: 2 columns; task.objective = regression wants one"),
        ({"objective": "survival"}, "task.target: 1 columns; task.objective = survival wants the columns of time and event"),
        ({"objective": "survival", "target": "t,e"}, "task.time_grid: is empty"),
        ({"objective": "survival", "target": "t,e", "time_grid": [0, 1]}, "task.time_grid: does not rise"),
        ({"delimiter": ":"}, "task.delimiter"),
        ({"file": "../train.csv"}, "task.file: is not the name of something in the data folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_when_the_config_is_read(options: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(**options)
    assert text in str(caught.value)


def test_missing_values_follow_fill_unless_a_column_has_its_own() -> None:
    columns = {"stage": STAGE, "age": {"missing": 40, "indicator": True}}
    config = loaded(columns, features="age,stage,crp", fill="mean")
    assert [one.missing for one in features_of(config.task)] == [40.0, "level", "mean"]
    config = loaded(columns, features="age,stage,crp")
    assert [one.missing for one in features_of(config.task)] == [40.0, "refuse", "refuse"]


@pytest.mark.parametrize(
    ("fill", "filled"),
    [
        ("refuse", ["refuse"] * 5),
        ("mean", ["mean", "mean", "mean", "mean", "level"]),
        ("median", ["median", "median", "most_frequent", "mean", "level"]),
        ("most_frequent", ["median", "median", "most_frequent", "mean", "most_frequent"]),
    ],
)
def test_fill_is_of_each_kind_of_column(fill: str, filled: list[str]) -> None:
    kinds = ("number", "integer", "boolean", "date", "category")
    columns = {kind: {"type": kind} for kind in kinds}
    options = {"features": ",".join(kinds), "columns": columns, "fill": fill}
    found = features_of(options, is_open=True)
    assert [one.missing for one in found] == filled


def test_what_the_sites_agreed_on_is_taken() -> None:
    age = {"missing": "median", "median": 52.5, "mean": 50, "sd": 0.0, "indicator": True}
    stage = {**STAGE, "missing": "most_frequent", "most_frequent": "II"}
    config = loaded(
        {"age": age, "stage": stage, "died": {"mean": 1.5, "sd": 2}}, objective="regression"
    )
    first, second = features_of(config.task)
    assert (first.missing, first.unit) == (52.5, (50.0, 0.0))
    assert (second.missing, second.most_frequent) == ("most_frequent", "II")
    assert target_unit(config.task) == (1.5, 2.0)
    assert target_unit(loaded(objective="regression").task) is None
    assert RunConfig.from_dict(config.record()).digest == config.digest


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_has_its_metrics(objective: str) -> None:
    target = "t,e" if objective == "survival" else "died"
    config = loaded(objective=objective, target=target, time_grid=[1.0])
    found = TASKS["table"].metrics_in(config.task)
    assert found == OBJECTIVES[objective]
    first = next(iter(found))
    assert metric_choice.select_of(config, ()) == f"{first}:{found[first]}"
    assert metric_choice.of_config(config) == {"loss", *found}
    wrong = "max" if found[first] == "min" else "min"
    run = {"select": f"{first}:{wrong}"}
    with pytest.raises(ConfigError, match="chooses the worst version"):
        metric_choice.check_config(
            loaded(objective=objective, target=target, time_grid=[1.0], run=run)
        )


def test_the_preset_is_read_and_its_columns_are_recorded() -> None:
    config = loading.load("table", (), {})
    record = config.record()["task"]
    assert record["columns"]["stage"] == {
        "type": "category", "levels": ["I", "II", "III", "IV"], "reference": "I"
    }  # fmt: skip
    assert RunConfig.from_dict(config.record()).digest == config.digest
