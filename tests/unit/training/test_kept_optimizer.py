"""A kept optimizer goes on in the next round as if it had never stopped; what it had not begun stays as made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fl_queue.client.local_update import ClientStrategy, initial_model, train_update
from fl_queue.config.optimizer_catalog import SCALE, kept_state
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.strategies.layouts import OPTIMIZER
from fl_queue.tasks.base import ClientData, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.training.kept_optimizer import KeptOptimizer
from fl_queue.training.local_rule import LocalRule
from fl_queue.training.mixed_precision import Precision
from fl_queue.training.optimizers import Recipe
from fl_queue.training.sgd import SgdOptions, local_sgd

ROWS, BATCH, EPOCHS = 23, 5, 2
SETTINGS: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.5, "optimizer_options": {"nesterov": True}},
    "adam": {"optimizer": "adam"},
    "amsgrad": {"optimizer": "adamw", "optimizer_options": {"amsgrad": True}},
    "adagrad": {
        "optimizer": "adagrad",
        "optimizer_options": {"initial_accumulator_value": 0.3, "lr_decay": 0.1},
    },
    "rmsprop": {"optimizer": "rmsprop", "momentum": 0.9, "optimizer_options": {"centered": True}},
    "lion": {"optimizer": "lion", "weight_decay": 0.1},
    "a schedule": {"optimizer": "adam", "schedule": "cosine", "warmup": 0.2},
}


class Net(nn.Module):
    """A layer, and one that is used from the second round on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.late, self.uses_late = nn.Linear(6, 3), nn.Linear(3, 3), False

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.first(x)
        return self.late(found) if self.uses_late else found


def built() -> Net:
    torch.manual_seed(0)
    return Net()


def rows() -> TensorDataset:
    drawn = torch.Generator().manual_seed(2)
    return TensorDataset(
        torch.randn(ROWS, 6, generator=drawn), torch.randint(0, 3, (ROWS,), generator=drawn)
    )


def rounds_of_ours(settings: dict[str, Any], count: int, keeps: bool = True) -> list[Tensor]:
    """Rounds of one client; between two of them its state is arrays, and its model a new one."""
    options = SgdOptions(seed=7, epochs=EPOCHS, batch_size=BATCH, learning_rate=0.01, **settings)
    names = kept_state(
        options.optimizer, options.momentum, options.optimizer_options, options.precision
    )
    model, found = built(), {}
    for number in range(count):
        fresh = built()
        fresh.load_state_dict(model.state_dict())
        model, fresh.uses_late = fresh, number > 0
        parameters = dict(model.named_parameters())
        rule = LocalRule()
        if keeps:
            rule.optimizer = KeptOptimizer(names, parameters, found)
        local_sgd(model, rows(), nn.functional.cross_entropy, options, rule=rule)
        if rule.optimizer is not None:
            found = {
                f"{name}/{owner}": rule.optimizer.array(f"{name}/{owner}")
                for name in names
                for owner in parameters
            }
    return list(model.parameters())


def rounds_of_torch(settings: dict[str, Any], count: int) -> list[Tensor]:
    """The same by one optimizer that lives on."""
    settings = dict(settings)
    schedule, warmup = settings.pop("schedule", "constant"), settings.pop("warmup", 0.0)
    model = built()
    recipe = Recipe(
        name=settings.get("optimizer", "sgd"),
        learning_rate=0.01,
        momentum=settings.get("momentum", 0.0),
        weight_decay=settings.get("weight_decay", 0.0),
        options=settings.get("optimizer_options", {}),
    )
    optimizer = recipe.optimizer([{"params": list(model.parameters())}])
    steps = EPOCHS * len(range(0, ROWS, BATCH))
    rates = (
        SgdOptions(
            seed=7,
            epochs=EPOCHS,
            batch_size=BATCH,
            learning_rate=0.01,
            schedule=schedule,
            warmup=warmup,
        )
        .steps(steps, Precision("float32", "cpu"))
        .schedule.factors()
    )
    x, y = rows().tensors
    for number in range(count):
        model.uses_late = number > 0
        order, taken = torch.Generator().manual_seed(7), iter(rates)
        for _ in range(EPOCHS):
            for picked in torch.randperm(ROWS, generator=order).split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[picked]), y[picked]).backward()
                optimizer.param_groups[0]["lr"] = 0.01 * next(taken)
                optimizer.step()
    return list(model.parameters())


@pytest.mark.parametrize("case", SETTINGS)
def test_rounds_with_a_kept_state_are_one_optimizer_that_lives_on(case: str) -> None:
    found = rounds_of_ours(SETTINGS[case], 3)

    wanted = rounds_of_torch(SETTINGS[case], 3)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    reset = rounds_of_ours(SETTINGS[case], 3, keeps=False)
    assert not any(torch.equal(a, b) for a, b in zip(found, reset, strict=True))


def test_a_float16_loss_goes_on_with_its_scale() -> None:
    first, names = Precision("float32", "cpu", scaled=True), kept_state("adam", 0.0, {}, "float16")
    weight = nn.Parameter(torch.ones(1))
    first.go_on_from((2.0**7, 41.0))
    kept = KeptOptimizer(names, {"w": weight}, {})
    recipe = Recipe(name="adam", learning_rate=0.1)
    kept.keep(recipe.updater([{"params": [weight]}]), first)
    arrays = {name: kept.array(name) for name in ("exp_avg/w", "exp_avg_sq/w", "step/w", SCALE)}

    second = Precision("float32", "cpu", scaled=True)
    again = KeptOptimizer(names, {"w": weight}, arrays)
    again.restore(recipe.updater([{"params": [weight]}]), [weight], second)

    assert second.scale() == (2.0**7, 41.0)
    assert Precision("float32", "cpu").scale() is None
    assert KeptOptimizer(names, {"w": weight}, {}).array(SCALE).tolist() == [0.0, 0.0]


class Rows(Task):
    """Local SGD, or a loop that makes an optimizer of its own."""

    def build_model(self) -> nn.Module:
        model = built()
        model.late.requires_grad_(False)
        return model

    def client_data(self, context: ClientContext) -> ClientData:
        return ClientData(rows(), rows())

    def train(self, model: Any, data: ClientData, context: ClientContext, on_epoch: Any) -> Any:
        if self.options["is_own"]:
            torch.optim.SGD(model.parameters(), 0.1).step()
            return {"num_examples": ROWS}
        return super().train(model, data, context, on_epoch)


def update_of(is_own: bool = False, **context: Any) -> Any:
    train = {"optimizer_state": "keep", "momentum": 0.9, "batch_size": BATCH}
    config = RunConfig.from_dict(
        {"run": {"task": "mine:Rows"}, "task": {"is_own": is_own}, "train": train}
    )
    task = Rows(config)
    manifest, base = initial_model(task, 1)
    place = ClientContext.of(config, client="a", run="r", round_number=1, **context)
    return train_update(task, manifest, base, place, plan=ClientStrategy())


def test_frozen_parameters_have_no_state_and_trained_ones_theirs() -> None:
    made = update_of()

    assert np.abs(made.kept(OPTIMIZER, "momentum_buffer/first.weight")).max() > 0
    with pytest.raises(KeyError):
        made.kept(OPTIMIZER, "momentum_buffer/late.weight")


def test_a_training_without_the_optimizer_of_the_config_is_refused() -> None:
    with pytest.raises(ConfigError, match="did not use it; train with") as caught:
        update_of(is_own=True)
    assert caught.value.field == "train.optimizer_state"


def test_a_site_that_follows_each_examples_part_keeps_no_state() -> None:
    with pytest.raises(ConfigError, match="of one round; set it to reset") as caught:
        update_of(min_batch=2)
    assert caught.value.field == "train.optimizer_state"
