"""Metrics that a task declares: recorded with the run, and what the config names is checked before round 1."""

from __future__ import annotations

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
from tests.support.manual_run import ManualRun
from tests.support.recorded_rounds import add_rounds, record

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
