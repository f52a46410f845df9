"""What has room in a round's exact sum, and what has none, on real servers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fl_queue.coordinator.operations import verification
from fl_queue.coordinator.rounds import opening
from fl_queue.coordinator.rounds.plan import RoundPlan
from fl_queue.errors import ConfigError, DataError
from fl_queue.models.initial import publish_initial
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import statements
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import TensorSpec
from fl_queue.store import Store, keyspace
from tests.support.manual_run import ManualRun

pytestmark = pytest.mark.timeout(60)

CLIENTS = "abcd"
SIZE = 40
#: Updates travel in chunks, and every one of them is checkpointed.
CHECKPOINTS = ("redis.inline_bytes=0", "redis.unmerged_bytes=1")
#: There is room for two updates of this size, and for no three.
TOO_MUCH = ("round.cohort=1.0", "aggregation.limit=1.5e10", "aggregation.buffer_limit=1e30")


class Table(ManualRun):
    """A model with the mean squares of a table's columns."""

    buffers = (TensorSpec("a_squares", (3,), "float_buffer"),)
    scales = (1e-16, 1.0, 1e16)

    def squares(self, client: str) -> np.ndarray:
        factor = 1 + CLIENTS.index(client) / 7
        return (np.array(self.scales) * factor).astype(np.float32)

    def body(self, client: str) -> bytes:
        return self.squares(client).tobytes() + super().body(client)


class Fair(ManualRun):
    """Clients of q-FedAvg, on whose data the loss is small."""

    h = 1e-9
    factor = 1.0

    def header(self, kind: str, client: str, body: bytes, token: str = "") -> Header:
        made = super().header(kind, client, body, token)
        if kind != "update":
            return made
        return replace(made, scalars={"h": math.ldexp(self.h, -self.round.exponent)})

    def body(self, client: str) -> bytes:
        values = np.frombuffer(super().body(client)[8:], "<f4") * np.float32(self.factor)
        return super().body(client)[:8] + values.tobytes()

    def all_answer(self) -> None:
        for client in self.clients:
            self.update(client)
        self.work()


def tables(store: Store, folder: Path, *overrides: str) -> Table:
    options = ("aggregation.buffer_limit=1e18", "model.keep_updates=true", *overrides)
    return Table(store, folder, CLIENTS, SIZE, *options)


def test_small_and_large_columns_are_exact_after_a_kill_and_can_be_verified(
    store: Store, tmp_path: Path
) -> None:
    hand = tables(store, tmp_path, *CHECKPOINTS)
    for client in CLIENTS[:2]:
        hand.update(client)
    killed = hand.intake()
    for _ in range(2):
        hand.take(killed, 1)
        killed.checkpoint()
    for client in CLIENTS[2:]:
        hand.update(client)
    hand.work()

    record = hand.record
    assert record.outcome == "committed"
    assert len(record.scales["float_buffer"]) == 3
    body = ModelStore(store, hand.run, 1 << 20, tmp_path).open_version(1, hand.manifest)
    found = np.frombuffer(bytes(body.view[:12]), "<f4")
    weights = np.array([record.weights[client] for client in CLIENTS], np.float64)
    squares = np.array([hand.squares(client) for client in CLIENTS], np.float64)
    assert np.array_equal(found, (weights @ squares / weights.sum()).astype(np.float32))
    assert [verdict.result for verdict in verification.verify(store, hand.state, tmp_path, 1)] == [
        "same"
    ]


def test_a_round_without_room_for_its_clients_fails_the_run_with_the_field(
    store: Store, tmp_path: Path
) -> None:
    hand = Table(store, tmp_path, CLIENTS, SIZE, *TOO_MUCH)

    assert hand.state.state == "failed"
    assert "aggregation.limit: 15000000000.0 leaves no room" in hand.state.reason


def test_the_closing_evaluation_sums_nothing_and_has_room_for_all(
    store: Store, tmp_path: Path
) -> None:
    hand = Table(store, tmp_path, CLIENTS[:2], SIZE, *TOO_MUCH)
    plan = RoundPlan(3, "evaluate", CLIENTS, CLIENTS, len(CLIENTS))
    fields = opening._round_fields(store, hand.state, hand.config, plan)

    assert fields["purpose"] == "evaluate"
    with pytest.raises(ConfigError, match="leaves no room"):
        opening._round_fields(store, hand.state, hand.config, replace(plan, purpose="train"))


def test_rounds_of_qfedavg_follow_the_loss_and_make_room_after_a_refusal(
    store: Store, tmp_path: Path
) -> None:
    fair = ("aggregation.strategy=qfedavg", "aggregation.weighting=uniform")
    hand = Fair(store, tmp_path, CLIENTS, SIZE, *fair, "model.keep_updates=true")
    assert hand.round.exponent == 0
    hand.all_answer()
    assert (hand.record.exponent, hand.record.next_exponent) == (0, -25)
    assert (hand.round.number, hand.round.exponent) == (2, -25)

    hand.factor = 1e6
    # A refused element may be of any sender, so the round waits for its clients until its deadline.
    key = keyspace.round_(hand.run, hand.round.number)
    store.control.redis.hset(key, "elapsed_s", hand.round.deadline_s)
    hand.all_answer()
    record = store.control.history.records(hand.run)[-1]
    assert (record.outcome, record.exponent) == ("abandoned", -25)
    assert (hand.round.number, hand.round.exponent) == (3, -9)

    hand.factor = 1.0
    signed = statements.of_round(hand.state, hand.round, 4, "", "")
    assert signed["exponent"] == -9
    assert "exponent" not in statements.of_round(
        hand.state, replace(hand.round, exponent=0), 4, "", ""
    )
    for client in hand.clients:
        hand.update(client)
    killed = hand.intake()
    hand.take(killed, 2)
    killed.checkpoint()
    hand.work()
    record = store.control.history.records(hand.run)[-1]
    assert (record.outcome, record.exponent, record.next_exponent) == ("committed", -9, -25)
    assert [verdict.result for verdict in verification.verify(store, hand.state, tmp_path)] == [
        "same"
    ] * 2


def test_an_initial_model_with_nan_is_refused_before_it_is_sent(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "initial.safetensors"
    save_file({"mask": np.array([-np.inf], np.float32), "w": np.array([1.0, np.nan])}, path)
    with pytest.raises(DataError, match="tensor 'w' holds NaN"):
        publish_initial(store, path, 1 << 20)
    assert store.data.redis.dbsize() == 0
