"""What try-task passes a run accepts, whatever a task of one's own returns, logs and has in its model."""

from __future__ import annotations

import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from fl_queue import metrics
from fl_queue.aggregation.merge import UpdateMerger
from fl_queue.aggregation.sum_format import sum_format
from fl_queue.client import local_update, outbox, update_message
from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, DataError
from fl_queue.experiments import trial
from fl_queue.metrics import finish
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.header import Header
from fl_queue.strategies import get_strategy
from fl_queue.tasks.base import ClientData, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.site_facts import facts_of

SAMPLES = TensorDataset(torch.linspace(0, 1, 24).reshape(8, 3), torch.zeros(8, dtype=torch.long))

KINDS: dict[str, Any] = {
    "int": int,
    "float": float,
    "float64": np.float64,
    "float32": np.float32,
    "int64": np.int64,
    "int32": np.int32,
    "longdouble": np.longdouble,
    "array": lambda value: np.array([value]),
    "array0": np.array,
    "tensor": torch.tensor,
    "tensor1": lambda value: torch.tensor([[value]]),
    "half": lambda value: torch.tensor(value, dtype=torch.bfloat16),
    "bool": bool,
    "text": str,
    "two": lambda value: np.array([value, value]),
}


def kept_as(kind: str, value: float) -> Any:
    try:
        with np.errstate(all="ignore"):
            return KINDS[kind](value)
    except (ValueError, OverflowError, RuntimeError):  # No int is NaN.
        return value


VALUES = st.one_of(
    st.integers(0, 100),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e250, -3.5, 0.25, 2**70, -1]),
)
NUMBERS = st.builds(kept_as, st.sampled_from(sorted(KINDS)), VALUES)
TABLES = st.sampled_from(
    [
        [[3, 1], [0, 4]],
        [[np.int64(3), 1], [0, torch.tensor(4)]],
        np.array([[3, 1], [0, 4]]),
        torch.tensor([[3, 1], [0, 4]]),
        torch.tensor([[3.5, 1], [0, 4]]),
        np.array([[5]]),
        np.array([1, 2]),
        [["cat"]],
        np.zeros((80, 80), np.int64),
    ]
)
NAMES = st.sampled_from(
    ["loss_sum", "mae_sum", "accuracy", "9th_sum", "a" * 70 + "_sum", "personal_mae_sum", "over", "m.a-e_sum"]
)  # fmt: skip
SUMS = st.builds(
    lambda count, numbers, table: (
        {"num_examples": count} | numbers | ({} if table is None else {"confusion": table})
    ),
    NUMBERS | st.just(8),
    st.dictionaries(NAMES, NUMBERS, max_size=3),
    st.none() | TABLES,
)
MANY = {f"m{index}_sum": np.float64(index) for index in range(63)}
BUFFERS = st.sampled_from(
    [None, torch.tensor([-math.inf, 0.0]), torch.tensor([0.5]), torch.tensor([3], dtype=torch.uint8)]
)  # fmt: skip


class Random(Task):
    """Built from what a test has drawn."""

    drawn: dict[str, Any]

    def build_model(self) -> nn.Module:
        model = nn.Linear(3, 2)
        if self.drawn["buffer"] is not None:
            model.register_buffer("kept", self.drawn["buffer"].clone())
        return model

    def client_data(self, context: ClientContext) -> ClientData:
        return ClientData(SAMPLES, SAMPLES)

    def describe(self, data: ClientData) -> Any:
        return {"classes": self.drawn["describe"]}

    def evaluate(self, model: nn.Module, dataset: Any, context: ClientContext) -> Any:
        return self.drawn["evaluate"]

    def train(self, model: Any, data: Any, context: ClientContext, on_epoch: Any) -> Any:
        context.log(gap=self.drawn["logged"], examples=self.drawn["examples"])
        with torch.no_grad():
            model.weight += 0.25
            if self.drawn["buffer"] is not None:
                shift = self.drawn["shift"]
                model.kept += shift if model.kept.is_floating_point() else 1
        on_epoch(1, 1, {"accuracy": self.drawn["logged"]})
        return self.drawn["train"]


def task_of(config: RunConfig, drawn: dict[str, Any]) -> Task:
    good = {
        "buffer": None, "shift": 0, "describe": ["cat"], "evaluate": {"num_examples": 8}, "logged": 1.0,
        "examples": 1, "train": {"num_examples": 8},
    }  # fmt: skip
    made: Task = type("Drawn", (Random,), {"drawn": good | drawn})(config)
    return made


def loaded(*changes: str) -> RunConfig:
    return loading.load("mnist-3v7", ("run.task=here:Drawn", "train.epochs=1", *changes), {})


def passes(task: Task) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "load_task", lambda *args: task)
        try:
            return not trial.run_trial(task.config).problem
        except (ConfigError, DataError):
            return False


def run_through(task: Task) -> Header:
    """A client's part of a round, and the aggregator's checks of it; what they raise."""
    config = task.config
    context = ClientContext.of(config, client="site-1", run="run-00", round_number=1, shares=2)
    facts_of(task, task.client_data(context))
    manifest, arrays = local_update.initial_model(task, config.run.seed)
    base = {name: array.copy() for name, array in arrays.items()}
    plan = local_update.ClientStrategy(get_strategy(config.aggregation.strategy, config.strategy))
    made = local_update.train_update(task, manifest, base, context, plan=plan)
    blank = Header(kind="update", run="run-00", round=1, client="site-1", token="0")
    encoding = codec.encoding(config.update)
    header = update_message.build_header(blank, made, encoding, {}, context)
    with tempfile.TemporaryDirectory() as folder:
        path = outbox.write(
            Path(folder), header, update_message.iter_body(made, encoding, context, {})
        )
        kept = outbox.read(path)
        assert kept is not None
        metrics.check(kept[0].metrics)
        metrics.check(kept[0].train_metrics)
        w_max, scales, _ = sum_format(config.aggregation, config.strategy, 2)
        merge = UpdateMerger.of_round(manifest, config, scales, w_max, Path(folder))
        merge.check(kept[0])
        merge.add(*kept)
    return kept[0]


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    drawn=st.fixed_dictionaries(
        {},
        optional={
            "buffer": BUFFERS,
            "shift": st.sampled_from([0, 0.5, 1e6, math.nan]),
            "describe": st.sampled_from(
                [
                    ["cat"],
                    np.array(["cat", "dog"]),
                    np.array([0, 1]),
                    np.int64(3),
                    torch.tensor([1]),
                ]
            ),
            "evaluate": SUMS | st.just(MANY),
            "train": SUMS | st.just(MANY),
            "logged": NUMBERS,
            "examples": st.sampled_from([1, np.int64(2), torch.tensor(3), 0]),
        },
    ),
    change=st.sampled_from(
        [
            "update.codec=int8",
            "update.codec=float32",
            "train.finetune_epochs=1",
            "model.max_bytes=8",
        ]
    ),
)
@example(
    drawn={"evaluate": {"num_examples": 8, "loss_sum": np.float64(2)}}, change="train.epochs=1"
)
@example(drawn={"evaluate": {"num_examples": 8, "loss_sum": math.nan}}, change="train.epochs=1")
@example(drawn={"evaluate": {"num_examples": 8, "accuracy": 0.5}}, change="train.epochs=1")
@example(drawn={"evaluate": MANY}, change="train.finetune_epochs=1")
@example(drawn={"buffer": torch.tensor([0.5]), "shift": 1e6}, change="train.epochs=1")
@example(drawn={"buffer": torch.tensor([0.5]), "shift": math.nan}, change="train.epochs=1")
@example(drawn={"describe": np.array(["cat", "dog"])}, change="train.epochs=1")
def test_what_is_passed_is_accepted(drawn: dict[str, Any], change: str) -> None:
    task = task_of(loaded(change), drawn)
    if passes(task):
        run_through(task)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"bool", "text", "two"}))
def test_numbers_of_every_kind_arrive_as_python_s_own(kind: str) -> None:
    sums = {"num_examples": kept_as("int64", 8), "loss_sum": kept_as(kind, 2)}
    sums["confusion"] = np.array([[3, 1], [0, 4]])
    drawn = {"evaluate": sums, "train": sums, "logged": kept_as(kind, 2), "examples": np.int64(4)}
    task = task_of(loaded(), drawn)
    assert passes(task)
    header = run_through(task)
    assert finish(header.metrics)["loss"] == 0.25
    assert finish(header.metrics)["accuracy"] == 7 / 8
    assert finish(header.train_metrics)["gap"] == 2


@pytest.mark.parametrize("value", [math.nan, -math.inf, np.float32("nan"), torch.tensor(math.inf), 1e300, 10**400], ids=range(6))  # fmt: skip
def test_a_sum_that_is_not_finite_is_left_out_and_logged_once(
    value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from fl_queue.tasks import plain_numbers

    plain_numbers.say_left_out.cache_clear()
    sums = {"num_examples": 8, "mae_sum": value, "loss_sum": 2.0}
    task = task_of(loaded(), {"evaluate": sums})
    with caplog.at_level(logging.WARNING):
        header = run_through(task)
        run_through(task)
    assert finish(header.metrics) == {"loss": 0.25}
    warnings = [
        record.getMessage() for record in caplog.records if "left out" in record.getMessage()
    ]
    assert len(warnings) == 1
    assert "evaluate() of here:Drawn returned mae_sum" in warnings[0]


@pytest.mark.parametrize(
    ("drawn", "change", "words"),
    [
        ({"buffer": torch.tensor([0.5]), "shift": 1e6}, "train.epochs=1", "outside ±65536.0 (aggregation.buffer_limit)"),
        ({"evaluate": MANY}, "train.finetune_epochs=1", "metrics: 126 keys; at most 64"),
    ],
)  # fmt: skip
def test_what_would_be_refused_is_named(drawn: Any, change: str, words: str) -> None:
    task = task_of(loaded(change), drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "load_task", lambda *args: task)
        problem = trial.run_trial(task.config).problem
    assert words in problem


@pytest.mark.parametrize(
    ("drawn", "change", "words"),
    [
        ({"evaluate": {"num_examples": 8, "accuracy": 0.5}}, "train.epochs=1", "evaluate() of here:Drawn returned accuracy, which is no sum"),
        ({"evaluate": {"num_examples": -8}}, "train.epochs=1", "metrics.num_examples: is not a count"),
        ({"describe": 3.5j}, "train.epochs=1", "describe() of here:Drawn returned a complex as classes"),
        ({}, "model.max_bytes=8", "raise model.max_bytes"),
    ],
)  # fmt: skip
def test_what_no_run_takes_is_an_error_before_the_training(
    drawn: Any, change: str, words: str
) -> None:
    task = task_of(loaded(change), drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "load_task", lambda *args: task)
        with pytest.raises((ConfigError, DataError)) as refused:
            trial.run_trial(task.config)
    assert words in str(refused.value)
