"""``context.log``: means of a training, with its update, and no bit of the model changed."""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from fl_queue import metrics
from fl_queue.client.local_update import TrainingResult, initial_model, train_update
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.protocol.events import event_of
from fl_queue.tasks.base import ClientData, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task
from fl_queue.tasks.logged_metrics import MOST, TrainingLog


class Quiet(Task):
    """Six samples, four of them to train with, in batches of three and one; two to validate."""

    def build_model(self) -> nn.Module:
        return nn.Linear(2, 2)

    def client_data(self, context: ClientContext) -> ClientData:
        rows = torch.arange(12.0).reshape(6, 2) / 12
        data = rows, (rows[:, 0] > 0.4).long()
        return ClientData(
            TensorDataset(*(part[:4] for part in data)), TensorDataset(*(part[4:] for part in data))
        )


class Logging(Quiet):
    def loss(
        self, output: torch.Tensor, target: torch.Tensor, context: ClientContext | None = None
    ) -> torch.Tensor:
        assert context is not None
        loss = super().loss(output, target)
        context.log("size", len(target))
        context.log(weighted=float(len(target)), ones=torch.ones(1), examples=len(target))
        context.log("seen", loss * 0 + 2)  # A tensor with a gradient.
        return loss


def config_of(**train: Any) -> RunConfig:
    return RunConfig.from_dict(
        {"run": {"task": "x:Y"}, "train": {"epochs": 2, "batch_size": 3} | train}
    )


def context_of(config: RunConfig) -> ClientContext:
    return ClientContext.of(config, client="a", run="demo", round_number=1)


def trained_by(task: Task, **changes: Any) -> TrainingResult:
    manifest, arrays = initial_model(task, 0)
    context = replace(context_of(task.config), **changes)
    return train_update(task, manifest, {name: a.copy() for name, a in arrays.items()}, context)


def test_means_over_steps_or_examples_go_with_the_update() -> None:
    made = trained_by(Logging(config_of()))
    finished = metrics.finish(made.train_metrics)
    metrics.check(made.train_metrics)
    assert made.train_metrics["num_examples"] == 4
    # Two steps an epoch, of 3 and 1 samples; validation, which calls the loss, too, is not in it.
    assert finished["size"] == 2.0
    assert finished["weighted"] == (3 * 3 + 1 * 1) / 4
    assert (finished["ones"], finished["seen"]) == (1.0, 2.0)
    assert not {"size", "ones"} & metrics.finish(made.metrics).keys()


def test_logging_changes_no_bit() -> None:
    plain, logging = trained_by(Quiet(config_of())), trained_by(Logging(config_of()))
    assert plain.num_examples == logging.num_examples == 4
    for (spec, _, ours), (_, _, theirs) in zip(plain.pieces(), logging.pieces(), strict=True):
        assert ours.tobytes() == theirs.tobytes(), spec.name
    assert plain.train_metrics["loss_sum"] == logging.train_metrics["loss_sum"]


def test_finetuning_is_not_counted() -> None:
    once = trained_by(Logging(config_of()))
    more = trained_by(Logging(config_of(finetune_epochs=3)))
    assert metrics.finish(more.metrics)["finetuned_loss"] > 0
    assert more.train_metrics == once.train_metrics


def test_clients_are_merged_by_their_examples() -> None:
    sums = []
    for examples, value in ((10, 1.0), (30, 2.0)):
        logged = TrainingLog()
        logged.add({"gap": value}, 1)
        sums.append(logged.joined({}, examples))
    assert metrics.finish(metrics.merge(sums)) == {"gap": 1.75}


def test_a_training_of_ones_own_logs_and_may_return_nothing() -> None:
    class Own(Quiet):
        def train(self, model: Any, data: Any, context: Any, on_epoch: Any) -> Any:
            context.log(norm=3.0)
            on_epoch(1, 1, {})
            context.log(norm=5.0)
            return {}

    logged, seen = TrainingLog(), []
    task = Own(config_of())
    manifest, arrays = initial_model(task, 0)
    context = replace(context_of(task.config), logged=logged)
    made = train_update(task, manifest, arrays, context, lambda *_: seen.append(logged.means()))
    assert seen == [{"norm": 3.0}]  # An epoch's event has the mean so far.
    assert made.train_metrics == {"num_examples": 4, "norm_sum": 16.0}


def test_a_function_s_loss_is_given_the_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
        import torch
        from torch import nn
        from torch.utils.data import TensorDataset

        def loss(output, target, context):
            value = nn.functional.cross_entropy(output, target)
            context.log("twice", 2 * value, examples=len(target))
            return value

        def plain():
            rows = TensorDataset(torch.arange(24.0).reshape(12, 2), torch.arange(12) % 3)
            return {"model": nn.Linear(2, 3), "train": rows, "loss": loss}
        """
    (tmp_path / "logging_plain.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "logging_plain:plain"
    config = RunConfig.from_dict(
        {"run": {"task": name}, "train": {"epochs": 1}, "data": {"partition": "site"}}
    )
    made = trained_by(load_task(name, config, (name,), ""))
    finished = metrics.finish(made.train_metrics)
    assert finished["twice"] == pytest.approx(2 * finished["loss"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gap": math.nan}, "gap is nan"),
        ({"gap": math.inf}, "gap is inf"),
        ({"gap": 1e200}, "1e+200"),
        ({"gap": torch.ones(2)}, "one number"),
        ({"gap": "much"}, "log one number"),
        ({"gap": None}, "NoneType"),
        ({"Gap": 1.0}, "is no name"),
        ({"a" * 49: 1.0}, "at most 48"),
        ({"loss": 1.0}, "my_loss"),
        ({"personal_gap": 1.0}, "my_personal_gap"),
        ({3: 1.0}, "log(name, value)"),
    ],
)
def test_what_cannot_be_logged_is_an_error_of_the_author(
    values: dict[Any, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as error:
        TrainingLog().add(values, 1)
    assert error.value.field == "context.log"
    assert words in error.value.reason


def test_calls_without_a_name_and_wrong_weights_are_refused() -> None:
    context = context_of(config_of())
    context.log("gap", 1.0)  # Outside a training it is checked, and forgotten.
    with pytest.raises(ConfigError, match="nothing is named"):
        context.log()
    with pytest.raises(ConfigError, match="examples is 0"):
        context.log("gap", 1.0, examples=0)
    with pytest.raises(ConfigError, match="gap is nan"):
        context.log(gap=math.nan)


def test_so_many_names_and_no_more_and_none_that_train_returns() -> None:
    logged = TrainingLog()
    for number in range(MOST):
        logged.add({f"step_{number}": 1.0}, 1)
    logged.add({"step_0": 3.0}, 1)
    with pytest.raises(ConfigError, match="near step_"):
        logged.add({"step_99": 1.0}, 1)
    assert len(logged.means()) == MOST
    with pytest.raises(ConfigError, match="train"):
        logged.joined({"num_examples": 1, "step_0_sum": 1.0}, 1)


def test_readers_take_a_map_of_numbers_only() -> None:
    def parsed(logged: Any) -> dict[str, Any]:
        return event_of({b"event": json.dumps({"event": "epoch", "logged": logged}).encode()})

    assert parsed({"gap": 0.5})["logged"] == {"gap": 0.5}
    for garbage in ([1], "gap", {"gap": "much"}, {"gap": [1]}, {"gap": True}, None):
        assert parsed(garbage)["event"] == "unreadable"
