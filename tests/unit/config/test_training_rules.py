"""Optimizers, their options, and strategies that cannot use them: refused when the config is read."""

from __future__ import annotations

from typing import Any

import pytest

from fl_queue.config.loading import load
from fl_queue.config.rendering import to_toml
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.strategies import STRATEGIES

OTHER: dict[str, dict[str, Any]] = {
    "optimizer": {"optimizer": "adamw"},
    "schedule": {"schedule": "cosine"},
    "warmup": {"warmup": 0.1},
    "optimizer_state": {"optimizer_state": "keep", "momentum": 0.9},
    "ema": {"ema": 0.9},
}
#: Strategy -> the fields of ``[train]`` that it takes.
TAKES = {
    "scaffold": {"schedule", "warmup"},
    "fednova": {"schedule", "warmup"},
    "qfedavg": set(),
    "feddyn": set(OTHER) - {"ema"},
}


def config(strategy: str = "fedavg", options: Any = None, **train: Any) -> RunConfig:
    weighting = STRATEGIES[strategy].WEIGHTINGS[0]
    raw: dict[str, Any] = {
        "aggregation": {"strategy": strategy, "weighting": weighting},
        "strategy": options or {},
        "train": train,
    }
    if STRATEGIES[strategy].needs_all:
        raw["round"] = {"cohort": 20, "quorum": 20}
    return RunConfig.from_dict(raw)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("field", OTHER)
def test_a_strategy_takes_what_its_equations_know(strategy: str, field: str) -> None:
    if field in TAKES.get(strategy, set(OTHER)):
        assert config(strategy, **OTHER[field]).train.optimizer_options == {}
        return
    with pytest.raises(ConfigError) as caught:
        config(strategy, **OTHER[field])
    assert caught.value.field == f"train.{field}"


def test_the_refusal_of_scaffold_names_what_to_take() -> None:
    with pytest.raises(ConfigError) as caught:
        config("scaffold", optimizer="adamw")
    assert str(caught.value) == (
        "train.optimizer: scaffold's control variates are means of SGD's gradients; use sgd, or "
        "fedprox or feddyn, which work with adamw"
    )


def test_without_fairness_qfedavg_takes_any_optimizer() -> None:
    assert config("qfedavg", {"q": 0.0}, optimizer="adamw", schedule="linear").train.ema == 0.0


@pytest.mark.parametrize(
    ("train", "field", "text"),
    [
        (
            {"optimizer": "adamw", "optimizer_options": {"beta1": 0.9}},
            "train.optimizer_options.beta1",
            "adamw has betas, eps, amsgrad",
        ),
        ({"optimizer": "adamv"}, "train.optimizer", "nor one of sgd, adam,.*adam"),
        ({"optimizer": "mine:"}, "train.optimizer", "is not module:name"),
        (
            {"optimizer": "adam", "optimizer_options": {"betas": [0.9]}},
            "train.optimizer_options.betas",
            "not two numbers in",
        ),
        (
            {"optimizer": "adam", "optimizer_options": {"eps": 0}},
            "train.optimizer_options.eps",
            "more than 0",
        ),
        ({"optimizer_options": "eps"}, "train.optimizer_options", "is not a table"),
        ({"optimizer": "adam", "momentum": 0.9}, "train.momentum", "adam takes none"),
        (
            {"optimizer_options": {"nesterov": True}},
            "train.optimizer_options.nesterov",
            "has no effect without momentum",
        ),
        (
            {"optimizer_state": "keep"},
            "train.optimizer_state",
            "sgd keeps nothing without momentum",
        ),
        (
            {"optimizer_state": "keep", "optimizer": "mine:Own"},
            "train.optimizer_state",
            "sgd, adam, adamw, adagrad, rmsprop, lion",
        ),
        ({"optimizer_state": "kept"}, "train.optimizer_state", "reset, keep"),
        ({"no_decay": ["@norms"]}, "train.no_decay", "@norm"),
        ({"schedule": "step"}, "train.schedule", "constant, linear, cosine"),
        ({"warmup": 1.5}, "train.warmup", "at most 1"),
        ({"ema": 1.0}, "train.ema", "set it below 1"),
    ],
)
def test_what_cannot_be_used_is_refused_by_field(
    train: dict[str, Any], field: str, text: str
) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        config(**train)
    assert caught.value.field == field


def test_a_config_without_them_keeps_its_record_and_one_with_them_reads_back() -> None:
    plain, other = config(), config(optimizer="adamw", optimizer_options={"betas": [0.8, 0.9]})

    assert not {"optimizer", "optimizer_options", "ema"} & set(plain.record()["train"])
    assert other.record()["train"]["optimizer_options"] == {"betas": [0.8, 0.9]}
    assert RunConfig.from_dict(other.record()) == other
    assert other.digest != plain.digest


def test_options_are_read_from_a_file_the_command_line_and_the_environment(tmp_path: Any) -> None:
    wanted = {"betas": (0.8, 0.9)}
    made = config(optimizer="adam", optimizer_options={"betas": [0.8, 0.9]})
    (tmp_path / "run.toml").write_text(to_toml(made.to_dict()))
    adam = ("train.optimizer=adam",)

    found = [
        load(str(tmp_path / "run.toml"), environ={}),
        load(None, (*adam, "train.optimizer_options={betas=[0.8, 0.9]}"), {}),
        load(None, adam, {"FLQ_TRAIN_OPTIMIZER_OPTIONS": "{betas=[0.8, 0.9]}"}),
    ]
    assert [one.train.optimizer_options for one in found] == [wanted] * 3
