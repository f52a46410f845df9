"""Metrics that a task declares: recorded with the run, and what the config names is checked before round 1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_queue import metrics
from fl_queue.config import loading
from fl_queue.coordinator.rounds import runs
from fl_queue.errors import ConfigError
from fl_queue.models import selection
from fl_queue.protocol.header import Header
from fl_queue.protocol.records import METRICS
from fl_queue.store import Store
from fl_queue.store.embedded.server_pair import start
from tests.support.checkout import ROOT
from tests.support.federation import Federation
from tests.support.manual_run import ManualRun
from tests.support.recorded_rounds import add_rounds, record
from tests.support.server_binaries import chosen_server

OWN = ("run.task=mine:Mine", "run.preflight=off")
DECLARED = ("dice:max", "iou:max", "loss:min")


class Declaring(ManualRun):
    """A run whose version 0 comes with a declaration."""

    declared: Any = DECLARED

    def header(self, kind: str, client: str, body: bytes, token: str = "") -> Header:
        made = super().header(kind, client, body, token)
        if kind == "model":
            object.__setattr__(made, "environment", {METRICS: self.declared})
        return made


class Strange(Declaring):
    """One that no run records."""

    declared: Any = ("no name", 3)


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("run.select=dic:max", "run.select: dic is none of dice:max, iou:max, loss:min; did you mean dice?"),
        ("run.select=dice:min", "run.select: dice:min chooses the worst version; write dice:max"),
        ("run.stop_when=accuracy>0.9", "run.stop_when: accuracy is none of dice:max, iou:max, loss:min"),
        ("run.select=personal_dice:max", "personal_dice is none of"),
    ],
)  # fmt: skip
def test_a_metric_that_is_not_declared_ends_the_run_before_round_1(
    store: Store, tmp_path: Path, field: str, text: str
) -> None:
    hand = Declaring(store, tmp_path, "ab", 3, *OWN, field)
    assert (hand.state.state, hand.state.version, hand.state.round) == ("failed", 0, 0)
    assert text in hand.state.reason


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ("run.select=iou:max", "run.stop_when=dice >= 0.9"),
        ("run.select=finetuned_dice:max", "train.finetune_epochs=1"),
    ],
)
def test_a_declared_metric_lets_round_1_begin(
    store: Store, tmp_path: Path, fields: tuple[str, ...]
) -> None:
    hand = Declaring(store, tmp_path, "ab", 3, *OWN, *fields)
    assert (hand.state.state, hand.state.round) == ("training", 1)
    assert hand.state.metrics == DECLARED


def test_a_declaration_that_cannot_be_read_is_none(store: Store, tmp_path: Path) -> None:
    hand = Strange(store, tmp_path, "ab", 3, *OWN, "run.select=dic:max")
    assert (hand.state.state, hand.state.metrics) == ("training", ())


def test_a_maker_of_an_older_release_declares_nothing_and_the_run_goes_on(
    store: Store, tmp_path: Path
) -> None:
    hand = ManualRun(store, tmp_path, "ab", 3, *OWN, "run.select=dic:max")
    assert (hand.state.state, hand.state.round, hand.state.metrics) == ("training", 1, ())
    assert not store.control.redis.hexists(f"flq:{{{hand.run}}}", "metrics")


def test_the_first_declared_metric_selects_and_a_continued_run_is_checked(
    store: Store, tmp_path: Path
) -> None:
    hand = Declaring(store, tmp_path, "ab", 3, *OWN)
    reported = [
        {"num_examples": 2, "loss_sum": loss, "dice.macro.max": [[dice], [1.0]]}
        for loss, dice in ((3.0, 0.1), (2.0, 0.9), (1.0, 0.5))
    ]
    rounds = [
        record(n + 1, n, validation=metrics.merge_clients({"a": one}))
        for n, one in enumerate(reported)
    ]
    add_rounds(store, hand.run, *rounds)
    assert selection.best_version(store, hand.run, hand.config) == 1
    store.control.redis.hset(f"flq:{{{hand.run}}}", "state", "completed")
    wrong = loading.load("mnist-3v7", ("round.cohort=2", *OWN, "run.select=dice:min"), {})
    with pytest.raises(ConfigError, match="write dice:max"):
        runs.start_run(store, hand.state.name, wrong, 3)


TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from fl_queue.metrics import Mean

def rows():
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(200, 3, generator=drawn)
    return TensorDataset(x, x.sum(1, keepdim=True) + 5)

def sums(output, batch):
    return {"biased": (output - batch[1]).sum()}

def task():
    return {
        "model": nn.Linear(3, 1), "train": rows, "loss": nn.functional.mse_loss, "own_sums": sums,
        "metrics": ["regression", Mean("bias", "biased", "min")],
    }
"""


#: The config's own split draws samples by class.
NO_CLASSES = ("data.partition=iid", "data.train_per_class=[]", "data.validation_per_class=[]")


@pytest.fixture
def sites(tmp_path: Path, no_process_left: None) -> Iterator[Federation]:
    """An aggregator and two clients with a task that declares its metrics."""
    (tmp_path / "lines.py").write_text(TASK)
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with start(tmp_path / "state", server=chosen_server()) as redis:
        made = Federation(
            redis, tmp_path, 2, environment, "lines:task", evaluator=False, forked=True
        )
        try:
            yield made
        finally:
            made.close()


def test_a_regression_is_judged_by_what_it_declares(sites: Federation) -> None:
    run = sites.begin(
        "lines", "run.task=lines:task", "run.rounds=3", "round.cohort=1.0", "run.evaluate_every=0",
        "run.stop_when=r2 > 2", "train.learning_rate=0.05", *NO_CLASSES,
    )  # fmt: skip
    ended = sites.finish(run)
    assert (ended.state, ended.reason) == ("completed", "")
    state = sites.store.control.runs.get(run)
    assert state is not None
    assert state.metrics == ("mae:min", "rmse:min", "r2:max", "bias:min", "loss:min")
    found = selection.validation_metrics(sites.store, run)
    assert found[3]["mae"] < found[0]["mae"]
    assert found[3]["rmse"] ** 2 == pytest.approx(found[3]["loss"], rel=1e-5)
    assert found[3].keys() == {"loss", "mae", "rmse", "r2", "bias"}
    assert selection.best_version(sites.store, run, runs.current_config(sites.store, run)) == 3
