"""Updates scaled down to a norm, before a real aggregator: receipts, history, verification."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fl_queue.coordinator.operations import verification
from fl_queue.errors import RunStateError
from fl_queue.reporting import run_status
from fl_queue.reporting.rounds_table import rows
from fl_queue.store import Store, keyspace
from tests.support.manual_run import ManualRun

CLIENTS = ("a", "b")


@pytest.mark.parametrize("overrides", [(), ("redis.inline_bytes=0", "redis.unmerged_bytes=1")])
def test_norms_are_recorded_and_verified(
    store: Store, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    bound = ("aggregation.clip_norm=3", "model.keep_updates=true", *overrides)
    hand = ManualRun(store, tmp_path, CLIENTS, 20, *bound)
    hand.update("a")  # 20 values of a normal distribution: about 4.5.
    short = bytearray(hand.body("b"))
    short[8:] = bytes(len(short) - 8)
    hand.send(hand.header("update", "b", bytes(short)), bytes(short))
    hand.work()

    record = hand.record
    receipts = store.control.receipts.of_round(hand.run, 1)
    assert receipts["a"].norm is not None
    assert receipts["a"].norm > 3
    assert (receipts["a"].clipped, receipts["b"].clipped, receipts["b"].norm) == (True, False, 0.0)
    assert record.norms == {"a": receipts["a"].norm, "b": 0.0}
    assert record.clipped == ["a"]
    assert [row.clipped for row in rows([record], {}, {})] == [1]
    (verdict,) = verification.verify(store, hand.state, tmp_path)
    assert verdict.result == "same"

    store.control.redis.delete(keyspace.round_updates(hand.run, 1))
    found = run_status.receipts(store, hand.state, 1, "a")["a"]
    assert (found["norm"], found["clipped"]) == (record.norms["a"], True)
    with pytest.raises(
        RunStateError, match=r"it was not in the cohort; did you mean a\? \(cohort: "
    ):
        run_status.receipts(store, hand.state, 1, "aa")
    lie = replace(record, norms={**record.norms, "a": 2.0})
    store.control.redis.lset(keyspace.history(hand.run), 0, lie.to_json())
    (verdict,) = verification.verify(store, hand.state, tmp_path)
    assert verdict.result == "different"
    assert verdict.reason.startswith("a: norm ")


def test_without_a_bound_no_norm_is_computed(store: Store, tmp_path: Path) -> None:
    hand = ManualRun(store, tmp_path, CLIENTS, 20)
    for client in CLIENTS:
        hand.update(client)
    hand.work()

    assert hand.record.norms == {}
    (text,) = {
        r.to_json() for who, r in store.control.receipts.of_round(hand.run, 1).items() if who == "a"
    }
    assert json.loads(text)["norm"] is None
