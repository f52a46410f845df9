"""A site's own Trainer as the local training."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fl_queue.client import local_update
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.experiments import trial
from fl_queue.strategies import STRATEGIES, get_strategy
from fl_queue.tasks import calls
from fl_queue.tasks.base import ClientData
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.hf import packages
from fl_queue.tasks.hf.trainer_task import HFTask
from fl_queue.tasks.loading import load_task
from tests.support.kept_rounds import check_same_bits

GENERATOR = np.random.default_rng(3)
X = GENERATOR.normal(size=(48, 4)).astype("f4")
Y = (X[:, 0] > 0).astype("i8")


class Model(nn.Module):
    """Returns its loss in a dictionary, as transformers' models do; notes the order of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.seen: list[float] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, Any]:
        if self.training:
            self.seen += x[:, 0].tolist()
        logits = self.layer(x)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class Own(HFTask):
    """A small task with a Trainer."""

    make: Any = None

    def build_model(self) -> nn.Module:
        return Model()

    def client_data(self, context: ClientContext) -> ClientData:
        rows = [{"x": x, "labels": int(y)} for x, y in zip(X, Y, strict=True)]
        return ClientData(rows[:40], rows[40:])  # type: ignore[arg-type]

    def trainer(self, model: nn.Module, data: ClientData, context: ClientContext) -> Any:
        arguments = self.arguments(context, learning_rate=0.05)
        made = packages.transformers().Trainer(model, arguments, self.collate, data.train)
        return made if self.make is None else self.make(made, model, data)


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> type[Own]:
    module = ModuleType("ownhf")
    made: type[Own] = type("Own", (Own,), {"__module__": "ownhf"})
    module.Own = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ownhf", module)
    return made


def config_of(**sections: Any) -> RunConfig:
    return RunConfig.from_dict(
        {"run": {"task": "ownhf:Own"}, "train": {"epochs": 2, "batch_size": 8}, **sections}
    )


def trained(round_number: int = 1) -> tuple[Model, Any, list[Any]]:
    """A model after a round's training, its sums, and what was reported after each epoch."""
    config = config_of()
    task = load_task("ownhf:Own", config, ["ownhf:Own"])
    context = ClientContext.of(config, client="a", run="r", round_number=round_number)
    torch.manual_seed(1)
    model, epochs = Model(), []
    sums = calls.trained(
        task, model, task.client_data(context), context, lambda *found: epochs.append(found)
    )
    return model, sums, epochs


def test_it_trains_the_given_model_and_reports_each_epoch() -> None:
    first, sums, epochs = trained()

    assert len(first.seen) == 80
    assert sums["num_examples"] == 40
    assert 0 < sums["loss_sum"] / 40 < 1
    assert [(number, count) for number, count, _ in epochs] == [(1, 2), (2, 2)]
    assert epochs[1][2]["loss"] < epochs[0][2]["loss"]


def test_a_process_that_stays_has_the_bits_of_fresh_ones(tmp_path: Path) -> None:
    packages.transformers().Trainer  # noqa: B018  Imported here, and not by each process.
    check_same_bits(tmp_path, config_of(), allow=("ownhf:Own",))


def test_the_round_decides_the_order_and_the_bits(own: type[Own]) -> None:
    def foreign(made: Any, model: nn.Module, data: ClientData) -> Any:
        # As a script has them, without regard for a round.
        transformers = packages.transformers()
        folder = tempfile.gettempdir()
        arguments = transformers.TrainingArguments(
            folder, per_device_train_batch_size=8, use_cpu=True, seed=7, data_seed=7, learning_rate=0.05,
            lr_scheduler_type="constant", optim="adamw_torch",
        )  # fmt: skip
        return transformers.Trainer(model, arguments, None, data.train)

    for make in (None, staticmethod(foreign)):
        own.make = make
        first, again, other = trained(1)[0], trained(1)[0], trained(2)[0]
        assert first.seen == again.seen
        assert torch.equal(first.layer.weight, again.layer.weight)
        assert sorted(first.seen) == sorted(other.seen)
        assert first.seen != other.seen
        # Each epoch in an order of its own.
        assert first.seen[:40] != first.seen[40:]


def test_nothing_is_kept_shown_or_shared(
    own: type[Own], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    used: list[Any] = []

    def keeps(made: Any, model: nn.Module, data: ClientData) -> Any:
        transformers = packages.transformers()
        arguments = transformers.TrainingArguments(
            str(tmp_path / "out"), num_train_epochs=9, save_steps=1, logging_steps=1, use_cpu=True,
            eval_strategy="steps", eval_steps=1,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model, arguments, None, data.train, eval_dataset=data.validation
        )
        used.append(trainer)
        return trainer

    own.make = staticmethod(keeps)
    model, _, _ = trained()

    assert len(model.seen) == 80
    assert capfd.readouterr().out == ""
    assert not [*tmp_path.rglob("*.*")]
    assert not Path(used[0].args.output_dir).exists()
    state = packages.accelerate_state()
    assert not state.AcceleratorState._shared_state
    assert not state.PartialState._shared_state


def other_module(made: Any, model: nn.Module, data: ClientData) -> Any:
    return packages.transformers().Trainer(Model(), made.args, None, data.train)


def replaces(made: Any, model: nn.Module, data: ClientData) -> Any:
    class Replaces(packages.transformers().TrainerCallback):  # type: ignore[misc]
        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            made.model = Model()

    made.add_callback(Replaces())
    return made


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda *given: None, "returned None, not a transformers.Trainer; is there a `return`"),
        (lambda *given: 3, "returned a int, not a transformers.Trainer"),
        (other_module, "trains another module than the model that it was given"),
        (replaces, "trains another module than the model that it was given"),
    ],
)
def test_what_is_no_trainer_of_the_model_is_refused(own: type[Own], make: Any, words: str) -> None:
    own.make = staticmethod(make)

    with pytest.raises(ConfigError, match=words) as caught:
        trained()
    assert caught.value.public
    assert not packages.accelerate_state().PartialState._shared_state


def test_a_quantised_model_is_refused(own: type[Own], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "is_quantized", True, raising=False)

    with pytest.raises(ConfigError, match=r"^run\.task: its weights are quantised"):
        trained()


def test_a_trial_makes_an_update_of_it() -> None:
    found = trial.run_trial(config_of())

    assert found.problem == ""
    assert found.largest > 0
    assert found.trained["loss"] < found.base["loss"]


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_may_be_used(strategy: str) -> None:
    kind = STRATEGIES[strategy]
    config = config_of(
        aggregation={"strategy": strategy, "weighting": kind.WEIGHTINGS[0]},
        round={"cohort": 100, "quorum": 100},
    )

    assert load_task("ownhf:Own", config, ["ownhf:Own"])


def updated(strategy: str, **options: Any) -> local_update.TrainingResult:
    """A client's update under a strategy."""
    kind = STRATEGIES[strategy]
    config = config_of(
        aggregation={"strategy": strategy, "weighting": kind.WEIGHTINGS[0]}, strategy=options
    )
    task = load_task("ownhf:Own", config, ["ownhf:Own"])
    manifest, base = local_update.initial_model(task, 1)
    base = {name: array.copy() for name, array in base.items()}
    context = ClientContext.of(config, client="a", run="r", round_number=1)
    plan = local_update.ClientStrategy(get_strategy(strategy, config.strategy))
    return local_update.train_update(task, manifest, base, context, plan=plan)


def way(found: local_update.TrainingResult) -> float:
    """How far a client went."""
    return float(sum(np.square(found.tensors[name]).sum() for name in found.tensors)) ** 0.5


@pytest.mark.parametrize("accumulate", [1, 2])
def test_terms_reach_the_trainers_optimizer(own: type[Own], accumulate: int) -> None:
    counted: list[int] = []

    def watched(made: Any, model: nn.Module, data: ClientData) -> Any:
        made.args.gradient_accumulation_steps = accumulate
        made.args.optim = "sgd"
        counted.append(0)

        class Counts(packages.transformers().TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *given: Any, **named: Any) -> None:
                counted[-1] += 1

        made.add_callback(Counts())
        return made

    own.make = staticmethod(watched)
    free, held = way(updated("fedavg")), way(updated("fedprox", mu=10.0))

    assert 0 < held < 0.9 * free
    # Its rate is half of the round's.
    assert updated("fednova").answer.scalars["tau"] == pytest.approx(counted[-1] / 2)
    assert counted[-1] == 2 * 5 if accumulate == 1 else 2 * 3


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ("scaffold", "means of SGD's gradients"),
        ("qfedavg", "the Lipschitz constant of SGD's steps"),
    ],
)
def test_a_strategy_of_sgds_steps_takes_a_trainer_with_sgd_alone(
    own: type[Own], strategy: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=rf"{words}.*steps with AdamW"):
        updated(strategy)

    def by_sgd(made: Any, model: nn.Module, data: ClientData) -> Any:
        made.args.optim = "sgd"
        return made

    assert way(updated("qfedavg", q=0.0)) > 0
    own.make = staticmethod(by_sgd)
    assert way(updated("qfedavg")) > 0


@pytest.mark.parametrize(
    ("train", "field"),
    [
        ({"optimizer": "adamw"}, "optimizer"),
        ({"optimizer_options": {"nesterov": True}, "momentum": 0.9}, "optimizer_options"),
        ({"momentum": 0.9}, "momentum"),
        ({"schedule": "cosine"}, "schedule"),
        ({"warmup": 0.1}, "warmup"),
        ({"ema": 0.9}, "ema"),
        ({"no_decay": ["@bias"]}, "no_decay"),
    ],
)
def test_what_a_trainer_does_not_use_of_the_config_is_refused(
    train: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError, match="an HFTask does not use it") as caught:
        load_task("ownhf:Own", config_of(train=train), ["ownhf:Own"])
    assert (caught.value.field, bool(caught.value.public)) == (f"train.{field}", True)


@pytest.mark.parametrize(
    ("precision", "expected"), [("float32", (False, False)), ("bfloat16", (True, False))]
)
def test_the_precision_is_the_configs(precision: str, expected: tuple[bool, bool]) -> None:
    config = config_of(train={"precision": precision})
    task: Any = load_task("ownhf:Own", config, ["ownhf:Own"])
    arguments = task.arguments(ClientContext.of(config, client="a", run="r", round_number=1))
    assert (arguments.bf16, arguments.fp16) == expected
