"""The task ``table``: raw rows in, each objective trained, and what a column becomes in the model."""

from __future__ import annotations

import datetime
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_queue import metrics
from fl_queue.client import local_update
from fl_queue.client.local_update import ClientTrainer
from fl_queue.config import table_options
from fl_queue.config.run_config import RunConfig
from fl_queue.config.table_options import Feature
from fl_queue.errors import DataError
from fl_queue.tasks.base import Task
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task
from fl_queue.tasks.table_model import TableModel, _calendar

pytest.importorskip("pyarrow")

COLUMNS = {
    "stage": {"type": "category", "levels": ["I", "II"], "reference": "I"},
    "ward": {"type": "category", "levels": ["A", "B"]},
    "smoker": {"type": "boolean"},
    "seen": {"type": "date", "date": ["year", "month", "weekday"]},
    "crp": {"missing": 5.0, "indicator": True},
}
FEATURES = "age,stage,ward,smoker,seen,crp"
HEADER = "died,age,stage,ward,smoker,seen,crp,visits,months,cost,pain,fever"


def rows(count: int, seed: int) -> str:
    """A table whose targets depend on the features."""
    drawn = np.random.default_rng(seed)
    lines = [HEADER]
    for _ in range(count):
        age, stage, smoker = drawn.normal(60, 10), drawn.integers(0, 3), drawn.random() < 0.4
        risk = (age - 60) / 10 + stage - 1
        happened = drawn.random() < 1 / (1 + math.exp(-2 * risk))
        time = drawn.exponential(10 * math.exp(-risk))
        cells = [
            "yes" if happened else "no",
            f"{age:.2f}",
            ("I", "II", "IX")[stage],
            "AB"[drawn.integers(0, 2)] if drawn.random() > 0.1 else "NA",
            str(smoker).lower(),
            f"20{drawn.integers(10, 24)}-0{drawn.integers(1, 10)}-1{drawn.integers(0, 10)}",
            "" if drawn.random() < 0.2 else f"{drawn.gamma(2, 10):.1f}",
            str(drawn.poisson(math.exp(0.3 + 0.5 * risk))),
            f"{min(time, 30):.3f}",
            f"{1e4 + 3e3 * risk + drawn.normal(0, 300):.0f}",
            str(risk > 0).lower(),
            "NA" if drawn.random() < 0.1 else str(risk < 0.5).lower(),
        ]
        lines.append(",".join(cells))
    return "\n".join(lines) + "\n"


OBJECTIVES: dict[str, dict[str, Any]] = {
    "binary": {"target": "died", "classes": "no,yes"},
    "classes": {"target": "ward", "classes": "A,B", "features": "age,stage,crp", "missing": ["", "?"]},
    "labels": {"target": "pain,fever"},
    "regression": {"target": "cost"},
    "counts": {"target": "visits"},
    "survival": {"target": "months,pain", "time_grid": [1.0, 3.0, 10.0, 30.0]},
}  # fmt: skip


def loaded(folder: Path, objective: str, **options: Any) -> tuple[Task, ClientContext]:
    given = {"features": FEATURES, "fill": "mean", "objective": objective, **OBJECTIVES[objective]}
    names = {*(given | options)["features"].split(",")}
    given["columns"] = {name: found for name, found in COLUMNS.items() if name in names}
    config = RunConfig.from_dict(
        {
            "run": {"task": "table"},
            "data": {"partition": "site", "validation_fraction": 0.25},
            "train": {"epochs": 1, "batch_size": 16, "learning_rate": 0.1},
            "aggregation": {"buffer_limit": 1e18},
            "task": given | options,
        }
    )
    context = ClientContext.of(
        config, client="a", run="r-1", round_number=1, share=0, shares=1, data_dir=str(folder)
    )
    return load_task("table", config), context


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text(rows(240, 3))
    return tmp_path


#: Objective -> a metric and the bound that a few epochs pass.
LEARNT = {
    "binary": ("auc", 0.75), "labels": ("f1_micro", 0.7), "regression": ("r2", 0.9),
    "counts": ("r2", 0.1),
}  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_is_learnt_and_judged(folder: Path, objective: str) -> None:
    if objective == "classes":
        (folder / "train.csv").write_text(rows(240, 3).replace(",NA,", ",A,"))
    task, context = loaded(folder, objective)
    manifest, arrays = local_update.initial_model(task, 0)
    context = replace(context, epochs=8)
    made = ClientTrainer(task, manifest, arrays, context).train()
    metrics.check(made.metrics)
    trained = {name: np.array(made.tensors.local(name)) for name in arrays}
    first, last = (
        metrics.finish(ClientTrainer(task, manifest, base, context).evaluate())
        for base in (arrays, trained)
    )
    assert last["loss"] < first["loss"]
    name, bound = LEARNT.get(objective, ("loss", -1.0))
    assert last[name] > bound
    assert set(last) == {"loss", *table_options.OBJECTIVES[objective]}


def test_a_raw_row_is_encoded_as_it_is_documented() -> None:
    task, _ = loaded(Path("."), "binary")
    model = task.build_model()
    assert isinstance(model, TableModel)
    day = float((datetime.date(2024, 3, 9) - datetime.date(1970, 1, 1)).days)  # A Saturday.
    raw = torch.tensor(
        [
            [50.0, 0.0, 0.0, 1.0, day, 7.0],
            [70.0, 1.0, 2.0, 0.0, day, math.nan],
            [math.nan, 2.0, math.nan, 1.0, math.nan, 9.0],
        ]
    )
    model.adopt_statistics(raw, torch.zeros(3))
    found = model._encoded(raw)
    assert found.shape == (3, model.layers[0].in_features)
    # age, smoker, year, crp: standardised; then the columns in their order.
    ages, smokers, years, crp = found[:, :4].T
    torch.testing.assert_close(ages, torch.tensor([-1.0, 1.0, 0.0]))
    torch.testing.assert_close(smokers, torch.tensor([1.0, -2.0, 1.0]) / math.sqrt(2))
    assert years.tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(crp, torch.tensor([-1.0, -3.0, 1.0]))  # 8 and 1; a gap counts as 5.
    rest = found[:, 4:].int().tolist()
    march, saturday = [int(n == 2) for n in range(12)], [int(n == 5) for n in range(7)]
    # stage less its reference (II, other, missing), ward (A, B, other, missing), month, weekday, gap of crp.
    assert rest[0] == [0, 0, 0, 1, 0, 0, 0, *march, *saturday, 0]
    assert rest[1] == [1, 0, 0, 0, 0, 1, 0, *march, *saturday, 1]
    assert rest[2] == [0, 1, 0, 0, 0, 0, 1, *[0] * 19, 0]


AGREED: dict[str, dict[str, Any]] = {
    "age": {"missing": "median", "median": 50.0, "mean": 40.0, "sd": 5.0},
    "ward": {"type": "category", "levels": ["A", "B"], "missing": "most_frequent", "most_frequent": "B"},
    "smoker": {"type": "boolean", "missing": "most_frequent", "most_frequent": 1.0, "mean": 0.5, "sd": 0.25},
    "crp": {"mean": 7.0, "sd": 0.0},
}  # fmt: skip


def test_what_is_agreed_is_part_of_the_model_and_sends_no_statistics() -> None:
    columns = AGREED | {"cost": {"mean": 1000.0, "sd": 100.0}}
    config = RunConfig.from_dict(
        {
            "run": {"task": "table"},
            "task": {
                "features": "age,ward,smoker,crp",
                "objective": "regression",
                "target": "cost",
                "columns": columns,
            },
        }
    )
    task = load_task("table", config)
    model = task.build_model()
    assert isinstance(model, TableModel)
    assert set(model.state_dict()) == {"layers.0.weight", "layers.0.bias"}
    assert not model.awaits_statistics
    nan = math.nan
    found = model._encoded(torch.tensor([[45.0, 0.0, 0.0, 7.0], [nan, nan, nan, 9.0]]))
    # age, smoker, crp; then A, B, and another level of ward.
    assert found.tolist() == [[1, -2, 0, 1, 0, 0], [2, 2, 2, 0, 1, 0]]
    with torch.no_grad():
        for one in model.layers.parameters():
            one.zero_()
    assert model(torch.zeros(1, 4)).tolist() == [1000.0]
    assert task.usage().details["agreed"]["cost"] == {"mean": 1000.0, "sd": 100.0}
    exported = torch.export.export(model, (torch.zeros(2, 4),)).module()
    torch.testing.assert_close(exported(torch.ones(2, 4)), model(torch.ones(2, 4)))


def test_columns_that_are_not_agreed_are_learnt_beside_the_others() -> None:
    """Each statistic is that of its own column, in whichever order the two kinds stand."""
    names = ("a", "b", "c", "d")
    units = {"b": (20.0, 2.0), "d": (40.0, 4.0)}
    model = TableModel(
        [Feature(name, missing="mean", unit=units.get(name)) for name in names], "binary", 1, ()
    )
    assert model.means.shape == (2,)
    assert model.awaits_statistics
    rows = torch.tensor([[9.0, 0.0, 29.0, 0.0], [11.0, 0.0, 31.0, 0.0]])
    model.adopt_statistics(rows, torch.zeros(2))
    assert not model.awaits_statistics
    mean, deviation = model._statistics()
    assert mean.tolist() == [10, 20, 30, 40]
    assert deviation.tolist() == [1, 2, 1, 4]


@settings(max_examples=200, deadline=None)
@given(st.dates(datetime.date(1600, 1, 1), datetime.date(2400, 12, 31)))
def test_parts_of_a_date_are_those_of_the_calendar(date: datetime.date) -> None:
    days = torch.tensor([float((date - datetime.date(1970, 1, 1)).days), math.nan])
    year, month, weekday = _calendar(days)
    assert (year[0], month[0] + 1, weekday[0]) == (date.year, date.month, date.weekday())
    assert year[1].isnan()
    assert month[1].isnan()


def test_statistics_of_sites_together_are_those_of_all_rows(folder: Path) -> None:
    """Over the values that are there, however many each site lacks."""
    task, context = loaded(folder, "regression")
    rows_of, target = task.client_data(context).train[:]
    parts = [slice(0, 20), slice(20, None)]
    models = [task.build_model() for _ in range(3)]
    models[0].adopt_statistics(rows_of, target)
    for model, part in zip(models[1:], parts, strict=True):
        model.adopt_statistics(rows_of[part], target[part])
    weights = [len(rows_of[part]) / len(rows_of) for part in parts]
    pooled = task.build_model()
    for name in ("present", "means", "squares"):
        merged = sum(
            w * getattr(m, name).double() for w, m in zip(weights, models[1:], strict=True)
        )
        getattr(pooled, name).copy_(merged)
    for ours, whole in zip(pooled._statistics(), models[0]._statistics(), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-4)
    crp = rows_of[:, 5]
    there = crp[~crp.isnan()].double()
    mean, deviation = models[0]._statistics()
    assert float(mean[3]) == pytest.approx(float(there.mean()), rel=1e-5)
    assert float(deviation[3]) == pytest.approx(float(there.std(correction=0)), rel=1e-4)


def test_intervals_of_a_survival_are_open_below_and_closed_above(tmp_path: Path) -> None:
    lines = ["t,e,x", "0,1,1", "1,1,1", "1.5,1,1", "3,0,1", "2,0,1", "50,1,1", "30,1,1"]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    task, _ = loaded(tmp_path, "survival", features="x", target="t,e")
    _, target, _ = task._read(tmp_path / "train.csv", [])  # type: ignore[attr-defined]
    gone = -100
    assert target.tolist() == [
        [1, gone, gone, gone], [1, gone, gone, gone], [0, 1, gone, gone], [0, 0, gone, gone],
        [0, gone, gone, gone], [0, 0, 0, 0], [0, 0, 0, 1],
    ]  # fmt: skip
    model = task.build_model()
    answers = model(torch.ones(2, 1))
    assert answers.shape == (2, 4)
    assert bool((answers.diff(dim=1) <= 0).all())
    hazards = torch.sigmoid(model.scores(torch.ones(1, 1)))  # type: ignore[operator]
    torch.testing.assert_close(answers[:1], torch.cumprod(1 - hazards, dim=1))


@pytest.mark.parametrize(
    ("objective", "change", "public"),
    [
        ("binary", ("yes,", "maybe,"), "train.csv: column died: not one of the values that task.classes lists"),
        ("counts", (",0,", ",-1,"), "train.csv: column visits: objective counts wants whole numbers from 0"),
        ("counts", (",0,", ",0.5,"), "column visits: not a whole number"),
        ("binary", ("true", "perhaps"), "column smoker: not true or false"),
        ("regression", ("20", "x"), "column seen: not a date such as 2024-02-29"),
        ("binary", ("no,", ",")  , "column died: no value"),
        ("survival", (".", ".-"), "column age: not a number"),
        ("regression", (",true,false\n", "e40,true,false\n"), "column cost: a number is beyond float32"),
    ],
)  # fmt: skip
def test_what_a_site_cannot_use_is_named_without_its_content(
    folder: Path, objective: str, change: tuple[str, str], public: str
) -> None:
    path = folder / "train.csv"
    head, _, body = path.read_text().partition("\n")
    path.write_text(f"{head}\n{body.replace(*change)}")
    task, context = loaded(folder, objective)
    with pytest.raises(DataError) as caught:
        task.client_data(context)
    assert public in caught.value.public
    assert "maybe" not in caught.value.public
    assert "perhaps" not in caught.value.public


def test_levels_that_are_not_declared_are_counted_for_the_site_alone(folder: Path) -> None:
    task, context = loaded(folder, "binary")
    data = task.client_data(context)
    assert data.unused["other levels in column stage"] > 0
    assert data.counts == {}
    assert task.describe(data) == {
        "columns": FEATURES.split(","), "targets": ["died"], "classes": ["no", "yes"]
    }  # fmt: skip
    usage = task.usage()
    assert usage.details["levels"] == {"stage": ["I", "II"], "ward": ["A", "B"]}
    assert usage.labels == ("no", "yes")
    example = task.example_input()
    assert example is not None
    assert task.build_model()(example).shape == (1,)


def test_a_shared_table_is_split_by_its_owner(folder: Path) -> None:
    path = folder / "train.csv"
    head, *lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([f"who,{head}", *(f"p{n // 8},{line}" for n, line in enumerate(lines))])
    )
    task, context = loaded(folder, "binary", owner="who")
    data = task.client_data(context)
    assert len(data.train) % 8 == len(data.validation) % 8 == 0
