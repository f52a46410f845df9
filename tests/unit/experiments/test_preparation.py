"""A config of the task ``table``, prepared from statistics of all rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from fl_queue.analyses.base import Limits, SiteRows
from fl_queue.analyses.statistics import Statistics
from fl_queue.client import sums
from fl_queue.client.site import WorkerSettings
from fl_queue.config.run_config import RunConfig
from fl_queue.config.table_options import features_of, target_unit
from fl_queue.errors import ConfigError, DataError
from fl_queue.experiments.preparation import Preparation

TABLES: dict[str, Any] = {
    "run": {"task": "table", "rounds": 3},
    "round": {"cohort": 2, "mode": "sync"},
    "train": {"batch_size": 32},
    "task": {
        "features": "age,bmi,stage,smoker,seen",
        "objective": "regression",
        "target": "cost",
        "fill": "most_frequent",
        "columns": {
            "bmi": {"missing": "mean"},
            "stage": {"type": "category", "levels": ["I", "II"]},
            "smoker": {"type": "boolean"},
            "seen": {"type": "date"},
        },
    },
}
SMOKES = ["yes"] * 30 + ["no"] * 18 + ["0"] * 12


def prepared(**task: Any) -> Preparation:
    tables = {**TABLES, "task": TABLES["task"] | task}
    return Preparation.of_tables({**tables, "redis": {"url": "redis://:secret@host"}}, tables)


def rows(wanted: Preparation) -> SiteRows:
    """Sixty rows, as a site reads them for the survey."""
    drawn = np.random.default_rng(1)
    stages = np.array([0] * 25 + [1] * 35)
    smokes = np.array([float(cell == "yes") for cell in SMOKES])
    age = drawn.integers(20, 90, 60).astype(float)
    bmi = drawn.normal(25, 4, 60)
    bmi[:5] = math.nan
    return SiteRows(
        60,
        {"age": age, "bmi": bmi, "cost": drawn.normal(1e4, 100, 60), "smoker": smokes},
        {"stage": stages},
    )


def result(wanted: Preparation, table: SiteRows) -> dict[str, Any]:
    analysis = wanted.survey().analysis
    assert isinstance(analysis, Statistics)
    state = analysis.initial()
    while (found := analysis.result(state)) is None:
        state = analysis.advance(state, analysis.local(state, table, Limits()))
    return found


def test_a_prepared_config_has_the_statistics_of_all_rows() -> None:
    wanted = prepared()
    table = rows(wanted)
    made = RunConfig.from_dict(wanted.agreed(result(wanted, table)))
    columns = made.task["columns"]
    age, bmi = table.numbers["age"], table.numbers["bmi"]
    bmi = bmi[~np.isnan(bmi)]
    for name, values in (("age", age), ("bmi", bmi), ("cost", table.numbers["cost"])):
        assert columns[name]["mean"] == pytest.approx(values.mean(), rel=1e-12)
        assert columns[name]["sd"] == pytest.approx(values.std(ddof=1), rel=1e-12)
    assert columns["age"]["median"] == pytest.approx(np.median(age), abs=0.5)
    assert "median" not in columns["bmi"]
    assert columns["stage"]["most_frequent"] == "II"
    smokes = np.array([cell == "yes" for cell in SMOKES], float)
    assert columns["smoker"]["mean"] == smokes.mean()
    assert columns["smoker"]["sd"] == pytest.approx(smokes.std(ddof=1), rel=1e-12)
    # As many rows are true as false.
    assert columns["smoker"]["most_frequent"] == 0.0
    assert columns["seen"] == {"type": "date"}
    assert [one.missing for one in features_of(made.task)] == [
        columns["age"]["median"], "mean", "most_frequent", 0.0, "mean",
    ]  # fmt: skip
    assert target_unit(made.task) == (columns["cost"]["mean"], columns["cost"]["sd"])


def test_a_prepared_config_is_the_file_with_what_was_agreed_and_nothing_else() -> None:
    """What the environment sets, such as a password, is for the question alone."""
    wanted = prepared()
    made = wanted.agreed(result(wanted, rows(wanted)))
    assert wanted.survey().redis.url == "redis://:secret@host"
    assert {name: found for name, found in made.items() if name != "task"} == {
        name: found for name, found in TABLES.items() if name != "task"
    }
    again = Preparation.of_tables(made, made)
    assert again.is_complete
    survey = wanted.survey()
    assert (survey.run.task, survey.round.cohort) == ("statistics", 2)


def test_levels_that_are_not_listed_are_named_by_the_sites_first() -> None:
    columns = TABLES["task"]["columns"] | {"stage": {"type": "category"}}
    wanted = prepared(columns=columns)
    assert wanted.unnamed == ("stage",)
    assert wanted.vocabulary().task["vocabulary"] == ("stage",)
    named = wanted.with_levels({"vocabulary": {"stage": ["I", "II"]}})
    made = named.agreed(result(named, rows(named)))
    assert made["task"]["columns"]["stage"] == {
        "type": "category", "levels": ["I", "II"], "most_frequent": "II"
    }  # fmt: skip
    assert "redis" not in made
    for levels, why in ([], "no site names a level"), (None, "there are too many levels"):
        with pytest.raises(DataError, match=why):
            wanted.with_levels({"vocabulary": {"stage": levels}})
    reference = prepared(columns=columns | {"stage": {"type": "category", "reference": "III"}})
    with pytest.raises(ConfigError, match=r"stage\.reference: is not one of the levels"):
        reference.with_levels({"vocabulary": {"stage": ["I", "II"]}})


def test_a_column_of_which_nothing_is_shown_is_named() -> None:
    wanted = prepared()
    table = rows(wanted)
    table.numbers["bmi"][:] = math.nan
    with pytest.raises(DataError, match=r"column bmi: no site shows its mean and sd"):
        wanted.agreed(result(wanted, table))


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({**TABLES, "run": {"task": "csv"}}, 'run.task: is csv; set it to "table"'),
        ({"task": TABLES["task"]}, "run.task: is missing"),
        ({**TABLES, "clients": {"kind": "simulation"}}, "clients.kind: is simulation, which has no sites"),
        ({**TABLES, "task": {"file": "a.csv", "feature": "x"}}, "task.feature: there is no such field"),
        ({**TABLES, "task": TABLES["task"] | {"missing": ["", "-9"]}}, "task.missing: '-9' is a value for statistics"),
        ({**TABLES, "train": {"epochs": 0}}, "train.epochs"),
        ({**TABLES, "round": {"quorum": 0}}, "round.quorum"),
        ({**TABLES, "task": TABLES["task"] | {"target": "age"}}, "task.features: age is listed twice"),
    ],
)  # fmt: skip
def test_what_could_not_be_trained_is_refused_before_the_sites_are_asked(
    tables: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        Preparation.of_tables(tables, tables)
    assert text in str(refused.value)


def test_a_table_has_the_same_statistics_in_each_form(tmp_path: Path) -> None:
    """Booleans are words in a text file and a type in Parquet; delimiter and decimal sign are those of the task."""
    drawn = np.random.default_rng(2)
    ages, smokes = drawn.integers(20, 90, 80) + 0.5, drawn.random(80) < 0.4
    lines = [
        f"{str(age).replace('.', ',')};{'yes' if smoker else 'no'};{'III'[: 1 + n % 3]}"
        for n, (age, smoker) in enumerate(zip(ages, smokes, strict=True))
    ]
    (tmp_path / "t.csv").write_text("\n".join(["age;smoker;stage", *lines]))
    stages = [line.rpartition(";")[2] for line in lines]
    parquet.write_table(
        pyarrow.table({"age": ages, "smoker": smokes, "stage": stages}), str(tmp_path / "t.parquet")
    )
    found = []
    for file, form in (("t.csv", {"delimiter": ";", "decimal": ","}), ("t.parquet", {})):
        columns = {"smoker": {"type": "boolean"}, "stage": {"type": "category"}}
        wanted = prepared(
            features="age,smoker,stage", objective="binary", target="died", fill="most_frequent",
            columns=columns, file=file, **form,
        )  # fmt: skip
        site = WorkerSettings(data_dir=str(tmp_path), state_dir=tmp_path / "state", client="a")
        wanted = wanted.with_levels(sums.preview(site, wanted.vocabulary()))
        found.append(wanted.agreed(sums.preview(site, wanted.survey()))["task"]["columns"])
    assert found[0] == found[1]
    assert found[0]["stage"] == {
        "type": "category",
        "levels": ["I", "II", "III"],
        "most_frequent": "I",
    }
    assert found[0]["smoker"]["mean"] == smokes.mean()
    assert found[0]["smoker"]["most_frequent"] == 0.0
    assert found[0]["age"]["mean"] == ages.mean()
