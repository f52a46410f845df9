"""A loop of a task's own with the batches, the optimizer and the steps of the config: the bits of local SGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fl_queue.client.local_update import ClientStrategy, TrainingResult, initial_model, train_update
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.strategies import get_strategy
from fl_queue.tasks.base import ClientData, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.training import stopping
from fl_queue.training.local_rule import LocalRule
from fl_queue.training.step_hook import LocalTraining

ROWS = 23


class Default(Task):
    """Trained by local SGD."""

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 3))

    def client_data(self, context: ClientContext) -> ClientData:
        drawn = torch.Generator().manual_seed(4)
        x = torch.randn(ROWS, 4, generator=drawn)
        y = torch.randint(0, 3, (ROWS,), generator=drawn)
        return ClientData(TensorDataset(x, y), TensorDataset(x[:2], y[:2]))


class Weighed(Default):
    """Its loss is a mean over items, of which some batches have none."""

    def items(self, batch: Any) -> int:
        return int((batch[1] != 0).sum())

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target, ignore_index=0)


def loop(task: Task, model: nn.Module, data: ClientData, context: ClientContext) -> None:
    training = context.training
    assert training is not None
    for _ in range(context.epochs):
        for x, y in training.batches(data.train):
            with training.forward():
                loss = task.loss_in(context)(model(x), y)
            training.step(loss)


def stepping_loop(task: Task, model: nn.Module, data: ClientData, context: ClientContext) -> None:
    """Steps the optimizer itself, which `[train]` has made."""
    training = context.training
    assert training is not None
    optimizer = training.optimizer()
    for _ in range(context.epochs):
        for x, y in training.batches(data.train):
            optimizer.zero_grad()
            task.loss_in(context)(model(x), y).backward()
            optimizer.step()


Loop = Callable[[Task, nn.Module, ClientData, ClientContext], None]


def own(kind: type[Default], chosen: Loop) -> type[Default]:
    class Own(kind):  # type: ignore[valid-type, misc]
        def train(self, model: Any, data: Any, context: Any, on_epoch: Any) -> dict[str, Any]:
            chosen(self, model, data, context)
            return {"num_examples": ROWS}

    return Own


def update_of(
    kind: type[Default], strategy: str = "fedavg", *, kept: Any = None, **train: Any
) -> TrainingResult:
    config = RunConfig.from_dict(
        {
            "run": {"task": "mine:Own"},
            "aggregation": {"strategy": strategy, "weighting": "uniform"},
            "train": {"epochs": 2, "batch_size": 5, "learning_rate": 0.05, **train},
        }
    )
    task = kind(config)
    context = ClientContext.of(config, client="a", run="r", round_number=1)
    manifest, base = initial_model(task, 1)
    plan = ClientStrategy(get_strategy(strategy, config.strategy), kept=kept or {})
    return train_update(task, manifest, base, context, plan=plan)


def same(one: TrainingResult, other: TrainingResult) -> bool:
    return all(np.array_equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


ADAM = {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.1}
CASES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9, "clip_norm": 0.5},
    "accumulated": {"accumulate": 2, "schedule": "cosine", "warmup": 0.3},
    "adamw": {**ADAM, "no_decay": ["@norm", "@bias"], "ema": 0.9},
    "bfloat16": {"precision": "bfloat16", "accumulate": 3},
    "fedprox": {**ADAM, "strategy": "fedprox"},
    "scaffold": {"strategy": "scaffold", "schedule": "linear", "momentum": 0.5},
    "kept": {**ADAM, "optimizer_state": "keep"},
}


@pytest.mark.parametrize("kind", [Default, Weighed])
@pytest.mark.parametrize("case", CASES)
def test_a_loop_by_the_config_has_the_bits_of_local_sgd(case: str, kind: type[Default]) -> None:
    wanted, found = update_of(kind, **CASES[case]), update_of(own(kind, loop), **CASES[case])

    assert same(found, wanted)
    assert found.answer.scalars == wanted.answer.scalars
    assert found.is_by_optimizer
    if case == "kept":
        names = ("exp_avg/0.weight", "exp_avg_sq/3.bias", "step/0.bias")
        assert all(
            np.array_equal(found.kept("optimizer", name), wanted.kept("optimizer", name))
            for name in names
        )


@pytest.mark.parametrize("case", ["sgd", "fedprox", "scaffold", "kept"])
def test_a_loop_may_step_the_optimizer_of_the_config_itself(case: str) -> None:
    settings = {key: value for key, value in CASES[case].items() if key != "schedule"}

    wanted, found = (
        update_of(Default, **settings),
        update_of(own(Default, stepping_loop), **settings),
    )

    assert same(found, wanted)
    assert found.is_by_optimizer


def without_batches(task: Task, model: nn.Module, data: ClientData, context: ClientContext) -> None:
    training = context.training
    assert training is not None
    x, y = data.train[:]
    training.step(nn.functional.cross_entropy(model(x), y))
    training.step(nn.functional.cross_entropy(model(x), y))


def test_steps_go_on_after_batches_that_were_left() -> None:
    stepped: list[bool] = []

    def leaving(task: Task, model: nn.Module, data: ClientData, context: ClientContext) -> None:
        training = context.training
        assert training is not None
        for _ in training.batches(data.train):
            break
        x, y = data.train[:]
        stepped.extend(training.step(nn.functional.cross_entropy(model(x), y)) for _ in range(4))

    update_of(own(Default, leaving), accumulate=2)

    assert stepped == [False, True, False, True]


def two_optimizers(task: Task, model: Any, data: ClientData, context: ClientContext) -> None:
    training = context.training
    assert training is not None
    training.optimizer(model[0]), training.optimizer(model[3])
    without_batches(task, model, data, context)


@pytest.mark.parametrize(
    ("chosen", "train", "field", "text"),
    [
        (without_batches, {"schedule": "linear"}, "train.schedule", "take the batches of"),
        (two_optimizers, {}, "run.task", "does not know which"),
        (stepping_loop, {"ema": 0.5}, "train.ema", "leave out context.training.optimizer"),
    ],
)
def test_what_a_loop_cannot_have_is_named(
    chosen: Loop, train: dict[str, Any], field: str, text: str
) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        update_of(own(Default, chosen), **train)
    assert caught.value.field == field


def test_batches_of_a_loader_of_its_own_accumulate_as_the_config_says() -> None:
    once = update_of(own(Default, without_batches), accumulate=2)
    twice = update_of(own(Default, without_batches))

    assert not same(once, twice)
    assert np.abs(once.tensors["0.weight"]).max() > 0


@pytest.mark.parametrize("has_rule", [True, False])
def test_a_training_whose_round_has_ended_ends_at_the_next_step_of_its_optimizer(
    has_rule: bool,
) -> None:
    model, steps = nn.Linear(2, 1), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def train() -> None:
        with LocalTraining(model, LocalRule() if has_rule else None).watching():
            while len(steps) < 5:
                if len(steps) == 2:
                    stopping.end_round()
                optimizer.step()
                steps.append(1)

    stopping.begin()
    try:
        with pytest.raises(stopping.NotWanted):
            train()
    finally:
        stopping.begin()
    assert len(steps) == 2
    optimizer.step()
