"""No step, and no update, of fewer examples than a site allows (--min-batch), whatever a config asks for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fl_queue import errors
from fl_queue.cli.worker import worker
from fl_queue.client import local_update, preflight
from fl_queue.client.resident import Resident
from fl_queue.client.site import WorkerSettings
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, UpdateWithheld
from fl_queue.experiments import launching
from fl_queue.strategies import get_strategy
from fl_queue.training import row_floor, sgd, step_cuts
from fl_queue.training.local_step import LocalStep
from tests.support.site_jobs import SiteJob

ROWS = 43
STATE: Any = SimpleNamespace(name="run", run_id="run-abc123", segment=0)
FIXED = {"features": "age,weight", "means": [40.0, 80.0], "stds": [10.0, 10.0]}


def table() -> list[tuple[float, float, int]]:
    """The site's rows: two linearly separable groups, and one row that lies on the wrong side."""
    low = [(25 + row * 7 % 11 / 2, 60 + row * 5 % 13 / 2, 0) for row in range(ROWS // 2)]
    high = [(50 + row * 7 % 11 / 2, 95 + row * 5 % 13 / 2, 1) for row in range(ROWS - len(low) - 1)]
    return [*low, *high, (47.5, 91.25, 0)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = [f"{age:g},{weight:g},{label}" for age, weight, label in table()]
    (tmp_path / "train.csv").write_text("\n".join(["age,weight,label", *lines, ""]))
    return tmp_path


def config_of(task: dict[str, Any] | None = None, strategy: Any = None, **train: Any) -> RunConfig:
    return RunConfig.from_dict(
        {
            "run": {"task": "csv"},
            "data": {"partition": "site", "validation_fraction": 0.0},
            "train": train,
            "task": FIXED | (task or {}),
        }
        | (strategy or {})
    )


def trained(
    config: RunConfig, site: WorkerSettings, rounds: int = 1
) -> local_update.TrainingResult:
    """What a client's job makes in the last of some rounds, each from what it made in the one before."""
    job = SiteJob(config, site)
    manifest, arrays = local_update.initial_model(job.task(), 0)
    base = {name: array.copy() for name, array in arrays.items()}
    plan = local_update.ClientStrategy(get_strategy(config.aggregation.strategy, config.strategy))
    for _ in range(rounds):
        before = {name: array.copy() for name, array in base.items()}
        found = local_update.train_update(job.task(), manifest, before, job.context(), plan=plan)
        for name in found.tensors:
            base[name] = base[name] + found.tensors[name]
    return found


def row_of(
    update: local_update.TrainingResult, base_is_gone: bool, config: RunConfig
) -> tuple[float, ...]:
    """The row that an update of a linear model is made of, as its receiver computes it: gradient by gradient."""
    weights = update.tensors.local("layers.0.weight") if base_is_gone else update.tensors["layers.0.weight"]  # fmt: skip
    biases = update.tensors.local("layers.0.bias") if base_is_gone else update.tensors["layers.0.bias"]  # fmt: skip
    scaled = weights[0].astype(np.float64) / float(biases[0])
    return tuple(scaled * config.task["stds"] + config.task["means"])


def is_a_row(found: tuple[float, ...]) -> bool:
    return any(np.allclose(found, row[:2], atol=0.02) for row in table())


OLD = {
    "forgets": (config_of(batch_size=1, learning_rate=0.5, weight_decay=2.0), 1, True),
    "is pulled back": (
        config_of(
            None,
            {"aggregation": {"strategy": "fedprox"}, "strategy": {"mu": 2.0}},
            batch_size=1,
            learning_rate=0.5,
        ),
        1,
        False,
    ),
    # 43 rows: the last batch is of three, or of one.
    "last batch": (config_of(batch_size=42, learning_rate=0.5, weight_decay=2.0), 1, True),
    # From the second round on the model answers all but one row with certainty.
    "is certain": (config_of(batch_size=64, learning_rate=1e6), 2, False),
    "small deviations": (
        config_of({"stds": [1e-5, 1e-5]}, batch_size=64, learning_rate=0.1),
        2,
        False,
    ),
}


@pytest.mark.parametrize("attack", OLD)
def test_a_config_that_has_one_row_count_alone_gets_nothing(data: Path, attack: str) -> None:
    config, rounds, is_gone = OLD[attack]
    is_refused_for_good = rounds == 1
    any_batch = WorkerSettings(data_dir=str(data), client="a", min_batch=1)
    print(attack, row_of(trained(config, any_batch, rounds), is_gone, config))
    assert is_a_row(row_of(trained(config, any_batch, rounds), is_gone, config))  # As it was.
    with pytest.raises((ConfigError, UpdateWithheld), match="--min-batch") as caught:
        trained(config, WorkerSettings(data_dir=str(data), client="a"), rounds)
    assert caught.value.public == caught.value.reason
    # A later round's update may show enough rows: nothing keeps the client from being selected for it.
    assert isinstance(caught.value, errors.LASTING) == is_refused_for_good


def test_the_facts_before_round_1_have_the_problem(data: Path) -> None:
    site = WorkerSettings(data_dir=str(data), client="a")
    ask = Resident(site).handle
    for attack, field in (("forgets", "train.batch_size"), ("last batch", "train.weight_decay")):
        found = preflight.read_facts(site, STATE, OLD[attack][0], ask)
        assert found["problem"].startswith(f"{field}: ")
        assert found["cannot"] == "yes"
    assert "problem" not in preflight.read_facts(site, STATE, config_of(), ask)


def test_ordinary_training_goes_on_until_it_is_certain(data: Path) -> None:
    site = WorkerSettings(data_dir=str(data), client="a")
    for config in (
        config_of(),
        config_of(batch_size=5, accumulate=2, momentum=0.9, weight_decay=0.01),
        config_of(batch_size=64, learning_rate=1.0, epochs=20),
        config_of(clip_norm=0.1, learning_rate=1.0, epochs=5),
        config_of({"hidden": [8]}, epochs=20),
    ):
        assert trained(config, site, rounds=8).num_examples == ROWS


def model_of(seed: int = 1) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def batches_of(count: int, batch_size: int, accumulate: int, fewest: int) -> list[list[int]]:
    cuts = step_cuts.training_cuts(model_of(), count, batch_size, accumulate, fewest)
    return step_cuts.step_groups(cuts, accumulate, fewest)


def test_a_short_last_batch_joins_the_one_before() -> None:
    assert batches_of(43, 10, 1, 1) == [[10], [10], [10], [10], [3]]
    assert batches_of(43, 10, 1, 10) == [[10], [10], [10], [13]]
    assert batches_of(40, 10, 1, 10) == [[10], [10], [10], [10]]
    assert batches_of(13, 5, 2, 10) == [[5, 8]]
    assert batches_of(25, 5, 2, 10) == [[5, 5], [5, 5, 5]]
    assert batches_of(12, 64, 1, 10) == [[12]]


def test_statistics_of_batch_norm_are_of_as_many() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with pytest.raises(ConfigError, match="--min-batch"):
        step_cuts.training_cuts(model, 40, 5, 2, 10)
    assert step_cuts.training_cuts(model, 21, 10, 1, 1) == [10, 21]


def test_a_floor_changes_no_bit_of_whole_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 3, generator=generator)
    dataset = TensorDataset(inputs, (inputs.sum(1) > 0).long())
    found: list[bytes] = []
    for fewest in (1, 10):
        model = model_of()
        sgd.local_sgd(
            model,
            dataset,
            nn.functional.cross_entropy,
            seed=3,
            epochs=3,
            batch_size=10,
            learning_rate=0.1,
            momentum=0.9,
            clip_norm=0.5,
            rule=sgd.LocalRule(fewest=fewest),
        )
        found.append(model.weight.detach().numpy().tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("ema", [0.0, 0.7])
def test_what_is_left_of_steps_that_differ(nesterov: bool, ema: float) -> None:
    rates, momentum, pull = [0.1, 0.4, 0.2, 0.05], 0.9, 0.3
    steps = row_floor.Steps(rates, momentum, pull, nesterov, ema)
    for step in range(4):
        model = velocity = mean = 0.0
        for number, rate in enumerate(rates):
            change = float(number == step) + pull * model
            velocity = momentum * velocity + change
            model -= rate * (change + momentum * velocity if nesterov else velocity)
            mean = ema * mean + (1 - ema) * model
        left = row_floor.Parts.of(1, steps, "cpu")._left
        assert left[::-1][step] == pytest.approx(abs(mean))


@pytest.mark.parametrize("settings", [{"optimizer": "adamw"}, {"no_decay": ["bias"]}])
def test_an_optimizer_whose_steps_the_floor_does_not_follow_is_refused(
    settings: dict[str, Any],
) -> None:
    rows = TensorDataset(torch.randn(40, 3), torch.zeros(40, dtype=torch.int64))
    with pytest.raises(ConfigError, match="have the site lower --min-batch") as caught:
        sgd.local_sgd(
            model_of(),
            rows,
            nn.functional.cross_entropy,
            seed=0,
            epochs=1,
            batch_size=10,
            learning_rate=0.1,
            rule=sgd.LocalRule(fewest=10),
            **settings,
        )
    assert caught.value.field == "train.optimizer"


OWN = {"lr": 0.02, "weight_decay": 0.5, "momentum": 0.3, "nesterov": True}


def test_the_floor_follows_the_options_of_the_one_group() -> None:
    def stepped(rule: sgd.LocalRule, groups: Any, **settings: Any) -> list[float]:
        options = sgd.SgdOptions(
            seed=0, epochs=1, batch_size=10, param_groups=groups, **settings
        ).steps(4)
        step = LocalStep(model_of(), options, rule)
        step.watch(40, "cpu")
        assert step.parts is not None
        return step.parts._left

    def grouped(model: nn.Module) -> Any:
        return [{"params": model.parameters(), **OWN}]

    rule = sgd.LocalRule(fewest=10)
    found = stepped(rule, grouped, learning_rate=0.1)
    whole = stepped(
        rule,
        None,
        learning_rate=0.02,
        weight_decay=0.5,
        momentum=0.3,
        optimizer_options={"nesterov": True},
    )
    assert found == pytest.approx(whole)
    with pytest.raises(ConfigError, match="each step forgets those before it"):
        stepped(
            rule,
            lambda model: [{"params": model.parameters(), "weight_decay": 10.0}],
            learning_rate=0.1,
        )


@pytest.mark.parametrize(
    "own", [{"lr": 0.2}, {"lr_factor": 2.0}, {"momentum": 0.5}, {"nesterov": True}]
)
def test_a_group_whose_steps_a_strategy_would_count_wrongly_is_refused(own: dict[str, Any]) -> None:
    options = sgd.SgdOptions(
        seed=0, epochs=1, batch_size=10, learning_rate=0.1, momentum=0.9,
        param_groups=lambda model: [{"params": model.parameters(), **own}],
    ).steps(4)  # fmt: skip
    with pytest.raises(ConfigError, match="counts SGD's steps at one"):
        LocalStep(model_of(), options, sgd.LocalRule(only_sgd="counts", learning_rate=0.1))


def test_what_is_left_of_each_step() -> None:
    """Of a scalar that is trained by hand."""
    for rate, momentum, pull in ((0.1, 0.0, 0.0), (0.3, 0.9, 1.5), (0.5, 0.5, 0.0)):
        for step in range(4):
            model = velocity = 0.0
            for at in range(4):
                velocity = momentum * velocity + pull * model + float(at == step)
                model -= rate * velocity
            parts = row_floor.Parts(1, 4, rate, momentum, pull, "cpu")
            assert parts._left[::-1][step] == pytest.approx(abs(model))


def test_an_output_without_rows_is_not_judged() -> None:
    parts = row_floor.Parts(20, 1, 0.1, 0.0, 0.0, "cpu")
    parts.watch({"scores": 1}, torch.arange(20))
    parts.check(10)
    whole = Tensor([3.0]).requires_grad_()
    parts = row_floor.Parts(20, 1, 0.1, 0.0, 0.0, "cpu")
    parts.watch(whole * 2, torch.arange(20))
    assert not parts.is_known


def test_who_trains_its_own_data_has_no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launching.with_data(WorkerSettings(), [config_of()]).min_step_examples == 1
    assert WorkerSettings().min_step_examples == 10
    started: list[Any] = []
    monkeypatch.setattr("os.execve", lambda *command: started.append(command[2]))
    client = ["client", "--client", "a"]
    for run in (
        client,
        [*client, "--min-examples", "50"],
        [*client, "--min-batch", "3"],
        [*client, "--min-examples", "4"],
        ["pool"],
    ):
        worker(run, standalone_mode=False)
    assert [WorkerSettings.from_environ(one).min_step_examples for one in started] == [
        10,
        10,
        3,
        4,
        1,
    ]
    with pytest.raises(ConfigError, match=r"--min-batch: .*--min-examples"):
        worker([*client, "--min-batch", "11"], standalone_mode=False)


@pytest.mark.parametrize(
    ("form", "is_known"),
    [
        (lambda scores: {"logits": scores}, True),
        (lambda scores: {"loss": scores.sum(), "logits": scores}, True),
        (lambda scores: (scores, scores * 2), True),
        (lambda scores: {"logits": scores.reshape(-1)}, False),
        (lambda scores: {"loss": scores.sum()}, False),
        (lambda scores: "text", False),
    ],
)
def test_rows_are_followed_through_outputs_of_any_form(form: Any, is_known: bool) -> None:
    scores = torch.ones(4, 3, requires_grad=True) * 1.0
    parts = row_floor.Parts(4, 1, 0.1, 0.0, 0.0, "cpu")
    parts.watch(form(scores), torch.tensor([3, 1, 0, 2]))
    (scores * torch.tensor([[1.0], [0.0], [0.0], [2.0]])).sum().backward()  # type: ignore[no-untyped-call]
    parts.stepped()
    assert parts.is_known == is_known
    assert parts.counting() == (2 if is_known else 4)
