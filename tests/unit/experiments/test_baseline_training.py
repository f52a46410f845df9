"""Clients alone, and one model on all data: what is trained, on which samples, and its file."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import save_file
from torch.utils.data import TensorDataset

from fl_queue.cli import cli
from fl_queue.client import local_update
from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, DataError, ModelMismatch
from fl_queue.experiments import baseline_training
from fl_queue.protocol import tensor_layout
from fl_queue.reporting import baselines, comparison, rounds_table
from fl_queue.reporting.baselines import Baseline
from fl_queue.store import Store
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task
from fl_queue.training import sgd
from tests.support.recorded_rounds import record, start_scored_run

SIMULATED = (
    "clients.kind=simulation", "clients.count=3", "run.rounds=2", "train.epochs=2",
    "data.partition=dirichlet_label", "train.learning_rate=[[1, 0.5], [2, 0.1]]",
)  # fmt: skip


def loaded(*overrides: str) -> RunConfig:
    return loading.load("mnist-3v7", (*SIMULATED, "data.train_per_class=[]", *overrides), {})


@pytest.fixture(scope="module")
def local() -> Baseline:
    return baseline_training.train(loaded(), "local", "many")


@pytest.fixture(scope="module")
def centralised() -> Baseline:
    return baseline_training.train(loaded(), "centralised", "many")


def test_each_client_is_trained_from_version_0_on_its_own_share(local: Baseline) -> None:
    """By hand: two rounds of two epochs from version 0, as a client's job does one."""
    settings = loaded()
    task = load_task("mnist-3v7", settings)
    manifest, arrays = local_update.initial_model(task, 0)
    context = ClientContext.of(
        settings, client="sim-2", run="baseline-local", round_number=1, share=1, shares=3
    )
    for number in (1, 2):
        base = {name: array.copy() for name, array in arrays.items()}
        context = replace(context, round=number, learning_rate=settings.learning_rate(number))
        done = local_update.train_update(task, manifest, base, context)
        arrays = {name: done.tensors.local(name) for name in done.tensors}

    assert [model.client for model in local.models] == ["sim-1", "sim-2", "sim-3"]
    second = local.models[1]
    assert second.digest == tensor_layout.pieces_digest(arrays[name] for name in sorted(arrays))
    assert second.num_examples == done.num_examples
    assert second.test["accuracy"] > 0.8
    assert second.curve == {}


def test_equal_configs_give_equal_bits_and_few_clients_are_some_of_all(local: Baseline) -> None:
    few = baseline_training.train(loaded(), "local", clients=2)

    assert len(few.models) == few.clients == 2
    known = {model.client: model for model in local.models}
    assert all(known[model.client] == model for model in few.models)


def test_one_model_is_trained_on_the_shares_of_all(local: Baseline, centralised: Baseline) -> None:
    (model,) = centralised.models

    assert model.num_examples == sum(part.num_examples for part in local.models)
    assert set(model.curve) == {"1", "2"}
    assert model.test == model.curve["2"]
    assert centralised.curve("accuracy")[1] == (2, model.test["accuracy"])
    assert local.curve("accuracy") == []


def test_the_spread_is_over_clients_and_the_worst_named(local: Baseline) -> None:
    values = {model.client: model.test["accuracy"] for model in local.models}
    spread = local.summary("accuracy")

    assert spread is not None
    assert spread.mean == pytest.approx(np.mean(list(values.values())))
    assert spread.deviation == pytest.approx(np.std(list(values.values()), ddof=1))
    assert values[spread.worst] == spread.least
    of_loss = local.summary("loss")
    assert of_loss is not None
    assert {m.client: m.test["loss"] for m in local.models}[of_loss.worst] == of_loss.most
    assert local.summary("bleu") is None


@pytest.mark.parametrize(
    ("metric", "select", "is_least_worst"),
    [
        ("val_rmse", "accuracy:max", False),
        ("mae", "accuracy:max", False),
        ("dice", "accuracy:max", True),
        ("dice", "dice:min", False),
        ("mae", "mae:max", True),
    ],
)
def test_the_worst_is_the_largest_where_less_is_better(
    local: Baseline, metric: str, select: str, is_least_worst: bool
) -> None:
    models = [
        replace(model, test={metric: float(number)}) for number, model in enumerate(local.models)
    ]
    changed = replace(local, models=models, config={"run": {"select": select}})
    spread = changed.summary(metric)

    assert spread is not None
    assert spread.worst == models[0 if is_least_worst else -1].client


def test_without_a_central_test_the_held_out_samples_judge() -> None:
    made = baseline_training.train(loaded("run.evaluate_every=0"), "centralised", clients=2)

    assert made.models[0].test == {}
    assert made.models[0].value("accuracy") == made.models[0].validation["accuracy"]
    assert baselines.summary(made) == ["* on what was held out for validation"]


def test_data_of_tensors_stay_tensors_and_others_are_chained() -> None:
    parts = [TensorDataset(torch.full((n, 2), float(n)), torch.arange(n)) for n in (1, 2)]

    whole = sgd.joined(parts)
    assert isinstance(whole, TensorDataset)
    assert whole.tensors[1].tolist() == [0, 0, 1]
    mixed = sgd.joined([parts[0], [(torch.zeros(2), 5)]])  # type: ignore[list-item]
    assert sgd.size_of(mixed) == 2
    assert mixed[1][1] == 5


def table(path: Path, rows: int) -> None:
    """A file of so many rows; the class is whether a is above 50."""
    lines = [f"{number % 100},{number % 7},{int(number % 100 > 50)}" for number in range(rows)]
    path.write_text("\n".join(["a,b,label", *lines]))


def test_sites_have_a_folder_each(tmp_path: Path) -> None:
    for name, rows in (("north", 200), ("south", 300)):
        (tmp_path / name).mkdir()
        table(tmp_path / name / "train.csv", rows)
    table(tmp_path / "test.csv", 100)
    settings = loading.load(
        "csv",
        ("task.label=label", "task.classes=0,1", "task.features=a,b", "run.rounds=2"),
        {},
    )
    folders = (str(tmp_path / "north"), str(tmp_path / "south"))
    place = baseline_training.BaselineMachine(folders, test=str(tmp_path))

    made = baseline_training.train(settings, "local", place=place)
    whole = baseline_training.train(settings, "centralised", place=place)

    assert [(m.client, m.num_examples) for m in made.models] == [("north", 160), ("south", 240)]
    assert whole.models[0].num_examples == 400
    assert whole.models[0].test["accuracy"] > 0.9
    with pytest.raises(DataError, match=r"north/test\.csv: .*name their folder with --test-data"):
        baseline_training.train(settings, "local", place=baseline_training.BaselineMachine(folders))
    with pytest.raises(ConfigError, match="--data: one folder is split"):
        baseline_training.train(loaded(), "local", place=place)
    with pytest.raises(ConfigError, match="--data: two of the folders have the same name"):
        baseline_training.train(
            settings, "local", place=baseline_training.BaselineMachine((folders[0], folders[0]))
        )


UNEVEN = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from fl_queue.tasks import ClientData, Task

class Uneven(Task):
    def build_model(self):
        return nn.Linear(2, 2)

    def client_data(self, context):
        rows = TensorDataset(torch.eye(2).repeat(8, 1), torch.arange(16) % 2)
        none = TensorDataset(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
        return ClientData(none, rows) if context.share == 0 else ClientData(rows, none)
"""


def test_a_client_without_training_rows_keeps_no_other_from_its_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uneven.py").write_text(UNEVEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = loaded("run.task=uneven:Uneven", "run.evaluate_every=0")

    made = baseline_training.train(settings, "local")
    whole = baseline_training.train(settings, "centralised")

    assert [(m.client, m.validation) for m in made.models] == [("sim-2", {}), ("sim-3", {})]
    assert [m.num_examples for m in whole.models] == [32]
    assert whole.models[0].validation["accuracy"] == 1.0
    alone = loaded("run.task=uneven:Uneven", "run.evaluate_every=0", "clients.count=1")
    for kind in baselines.KINDS:
        with pytest.raises(DataError, match="no client has training samples"):
            baseline_training.train(alone, kind)


def test_a_metric_that_few_models_have_names_how_many(local: Baseline) -> None:
    first = replace(local.models[0], test={**local.models[0].test, "dice": 0.5})
    few = replace(local, models=[first, *local.models[1:]])
    spread = few.summary("dice")
    assert spread is not None
    assert spread.words() == "0.5000 of 1 of 3 clients"


def test_how_many_clients_there_are_must_be_known() -> None:
    with pytest.raises(ConfigError, match=r"data\.shares: is 0"):
        baseline_training.train(loading.load("mnist-3v7", ("round.cohort=0.5",), {}), "local")


def test_an_initial_model_of_another_task_is_refused_as_in_a_run(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": np.zeros((2, 784), np.float32)}, path)
    with pytest.raises(ModelMismatch, match=r"model\.initial: tensor 'bias' is missing"):
        baseline_training.train(
            loading.load("mnist-3v7", (f"model.initial={path}", "data.shares=2")), "local"
        )


def test_a_device_is_not_replaced_by_a_file(local: Baseline) -> None:
    with pytest.raises(DataError, match="is not a file"):
        baselines.write(Path("/dev/null"), local)


def test_a_file_is_read_as_it_was_written_and_nothing_else(local: Baseline, tmp_path: Path) -> None:
    path = tmp_path / "local.json"
    baselines.write(path, local)
    assert baselines.read(path) == local
    raw = asdict(local)
    for text, reason in (
        ("{", "not a baseline"),
        ("[]", "has no models"),
        (json.dumps({**raw, "models": []}), "has no models"),
        (json.dumps({**raw, "rounds": "two"}), "field rounds is a str, not an integer"),
        (json.dumps({**raw, "models": [{"client": 3}]}), "field client is a int, not text"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=reason):
            baselines.read(path)
    with pytest.raises(DataError, match="cannot be read"):
        baselines.read(tmp_path / "none.json")


def test_it_is_shown_beside_runs(
    local: Baseline, centralised: Baseline, store: Store, tmp_path: Path
) -> None:
    state = start_scored_run(store, "tested", [0.5, 0.9], *SIMULATED[:4])

    tested, mean, one = comparison.compare(store, [state], "accuracy", [local, centralised])

    spread = local.summary("accuracy")
    assert spread is not None
    assert (mean.name, mean.state, mean.value) == ("local many", "baseline", spread.mean)
    assert mean.spread == spread.words()
    assert (one.value, one.version) == (centralised.models[0].test["accuracy"], 2)
    assert tested.settings["data.partition"] == "iid"
    assert mean.settings["data.partition"] == "dirichlet_label"
    rounds_table.plot(
        tmp_path / "p.png", [record(1, 0)], {1: {"accuracy": 0.5}}, [local, centralised]
    )
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_beside_a_run_without_a_central_test_is_what_was_held_out(
    local: Baseline, store: Store
) -> None:
    state = start_scored_run(store, "untested", [], *SIMULATED[:4])

    _, mean = comparison.compare(store, [state], "accuracy", [local])

    assert mean.value == pytest.approx(np.mean([m.validation["accuracy"] for m in local.models]))


def test_the_command_writes_table_and_file(tmp_path: Path, local: Baseline) -> None:
    path = tmp_path / "two.json"
    arguments = ["baseline", "mnist-3v7", "--kind", "local", "--clients", "2", "-o", str(path)]
    for setting in (*SIMULATED, "data.train_per_class=[]"):
        arguments += ["--set", setting]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)

    assert done.exit_code == 0
    found = baselines.read(path)
    known = {model.client: model for model in local.models}
    assert [known[model.client] for model in found.models] == found.models
    spread = found.summary("accuracy")
    assert spread is not None
    assert f"accuracy {spread.words()}" in done.stdout
    assert f"1 of 2: {found.models[0].client}, round 2: accuracy" in done.output
