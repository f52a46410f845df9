"""What a task's methods return is looked at where they return: one line names the method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from fl_queue.config import loading
from fl_queue.errors import ConfigError
from fl_queue.experiments import trial
from fl_queue.tasks.base import ClientData, Task
from fl_queue.tasks.context import ClientContext

SAMPLES = TensorDataset(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))


class Good(Task):
    def build_model(self) -> nn.Module:
        return nn.Linear(3, 2)

    def client_data(self, context: ClientContext) -> ClientData:
        return ClientData(SAMPLES, SAMPLES)


def returning(method: str, value: Any) -> type[Task]:
    return type("Bad", (Good,), {method: lambda self, *args: value})


@pytest.mark.parametrize(
    ("method", "value", "words"),
    [
        ("train", None, "train() of here:Bad returned None, not a table of sums"),
        ("train", (1, 2), "train() of here:Bad returned a tuple, not a table of sums"),
        ("train", {"loss_sum": None}, "train() of here:Bad returned None as loss_sum, not a number"),
        ("train", {"loss_sum": torch.ones(2)}, "returned a Tensor as loss_sum, not a number"),
        ("train", {"num_examples": np.arange(3)}, "returned a ndarray as num_examples, not a number"),
        ("evaluate", None, "evaluate() of here:Bad returned None, not a table of sums"),
        ("evaluate", {3: 1.0}, "returned a int as a name of its sums, not text"),
        ("build_model", None, "build_model() of here:Bad returned None, not a torch.nn.Module"),
        ("client_data", None, "client_data() of here:Bad returned None, not a ClientData"),
        ("client_data", (SAMPLES, SAMPLES), "client_data() of here:Bad returned a tuple"),
        ("client_data", ClientData(SAMPLES, None), "returned None as validation, not a data set"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_a_method_that_returns_something_else_is_named(
    monkeypatch: pytest.MonkeyPatch, method: str, value: Any, words: str
) -> None:
    loaded = loading.load("mnist-3v7", ("run.task=here:Bad",), {})
    monkeypatch.setattr(trial, "load_task", lambda *args: returning(method, value)(loaded))
    with pytest.raises(ConfigError) as refused:
        trial.run_trial(loaded)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.field == "run.task"


def test_a_table_of_another_kind_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import Counter

    sums = Counter({"num_examples": 8, "loss_sum": np.float64(2.0)})
    loaded = loading.load("mnist-3v7", ("run.task=here:Good", "train.epochs=1"), {})
    monkeypatch.setattr(trial, "load_task", lambda *args: returning("evaluate", sums)(loaded))
    assert trial.run_trial(loaded).base["loss"] == 0.25


def test_a_metric_that_the_task_lacks_is_found_before_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def tried(select: str) -> str:
        loaded = loading.load("mnist-3v7", ("run.task=here:Good", f"run.select={select}"), {})
        sums = {"num_examples": 8, "loss_sum": 2.0, "mae_sum": 1.0}
        monkeypatch.setattr(trial, "load_task", lambda *args: returning("evaluate", sums)(loaded))
        return trial.run_trial(loaded).problem

    assert tried("mae:min") == ""
    assert "accuracy is not what" in tried("accuracy:max")
    assert "choose one of loss, mae" in tried("accuracy:max")


@pytest.mark.parametrize("count", [1.0, np.float32(1), 0, -1, True, "1", None, torch.ones(2)])
@pytest.mark.parametrize("place", [0, 1])
def test_an_epoch_that_is_no_whole_number_from_1_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, count: Any, place: int
) -> None:
    counts = [1, 1]
    counts[place] = count

    def train(self: Task, model: Any, data: Any, context: Any, on_epoch: Any) -> Any:
        on_epoch(*counts, {})
        return {}

    loaded = loading.load("mnist-3v7", ("run.task=here:Bad",), {})
    monkeypatch.setattr(
        trial, "load_task", lambda *args: type("Bad", (Good,), {"train": train})(loaded)
    )
    with pytest.raises(ConfigError, match=r"train\(\) of here:Bad calls on_epoch with") as refused:
        trial.run_trial(loaded)
    assert refused.value.field == "run.task"
