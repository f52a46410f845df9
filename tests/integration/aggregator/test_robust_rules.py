"""Rounds of rules that need all updates, one step at a time; with workers they are in test_rounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fl_queue.config import loading
from fl_queue.coordinator.operations import controls, deletion
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.protocol import tensor_layout
from fl_queue.store import Store, keyspace
from tests.support.manual_run import NAME, ManualRun

SIZE = 40_000
UNIFORM = ("aggregation.weighting=uniform", "run.evaluate_every=0")
MEDIAN = (
    *UNIFORM,
    "aggregation.strategy=median",
    "redis.inline_bytes=0",
    "redis.chunk_bytes=65536",
)


def by_hand(store: Store, folder: Path, *overrides: str) -> ManualRun:
    return ManualRun(store, folder, "abcd", SIZE, *MEDIAN, *overrides)


def test_the_next_incarnation_takes_all_updates_again(store: Store, tmp_path: Path) -> None:
    hand = by_hand(store, tmp_path / "calm")
    for client in "abcd":
        hand.update(client)
    assert hand.work() == "committed: 4 of 4 updates in"
    calm, base = hand.record, np.zeros(SIZE)
    updates = [np.frombuffer(hand_body(hand, client), "<f4", SIZE, 8) for client in "abcd"]
    expected = base + np.median(np.stack(updates).astype(np.float64), axis=0)
    controls.cancel(store, NAME)
    deletion.delete(store, hand.state, tmp_path / "calm")

    hand = by_hand(store, tmp_path)
    first = hand.intake()
    for client in "dbc":
        hand.update(client)
    hand.take(first, 3)
    assert (first.received(), first.is_full()) == (3, False)
    first.checkpoint()
    assert (
        store.data.taken.count(hand.run, first.incarnation.fence),
        store.data.partial_sum.get(hand.run),
    ) == (
        3,
        {},
    )

    hand.update("a")
    # A chunk that has vanished since: its client is asked again, and the others are not.
    body = hand.body("b")
    store.data.chunks.drop(keyspace.update_blob("b", hand.run, tensor_layout.body_digest(body)), 1)
    before = store.control.rounds.jobs(hand.run, 1)
    store.control.redis.hset(f"rq:job:{before['b']['job']}", "status", "started")
    second = hand.intake()
    hand.take(second, 4)
    after = store.control.rounds.jobs(hand.run, 1)
    assert second.received() == 3
    assert [who for who in "abcd" if before[who] != after[who]] == ["b"]
    hand.update("b")

    assert hand.work() == "committed: 4 of 4 updates in"
    assert hand.record == calm
    digest = store.control.versions.all(hand.run)[1]["digest"]
    made = (tmp_path / "checkpoints" / hand.run / f"{digest}.safetensors").read_bytes()
    np.testing.assert_allclose(np.frombuffer(made[-4 * SIZE :], "<f4"), expected, atol=1e-6)
    assert hand.leftovers() == {}


def hand_body(hand: ManualRun, client: str) -> bytes:
    """What a client sent in round 1."""
    draw = np.random.default_rng([ord(client), 1])
    return bytes(8) + draw.standard_normal(hand.size, "<f4").tobytes()


def test_a_hostile_integer_buffer_does_not_become_the_models(store: Store, tmp_path: Path) -> None:
    hand = by_hand(store, tmp_path)
    for client in "abcd":
        body = hand.body(client)
        if client == "d":
            body = np.array([2**62], "<i8").tobytes() + body[8:]
        assert hand.send(hand.header("update", client, body), body)
    hand.work()

    digest = store.control.versions.all(hand.run)[1]["digest"]
    made = (tmp_path / "checkpoints" / hand.run / f"{digest}.safetensors").read_bytes()
    counts = np.frombuffer(made[-4 * SIZE - 8 : -4 * SIZE], "<i8")
    assert counts.tolist() == [ord("b")]


def test_a_run_whose_updates_have_no_room_together_fails_and_reports_the_memory_needed(
    store: Store, tmp_path: Path
) -> None:
    needed = 4 * (4 * SIZE + 8)
    # Of a task whose model the config does not know: else it would be refused when it is read.
    own = ("run.task=own:Task", "run.preflight=off")
    hand = by_hand(store, tmp_path, f"redis.unmerged_bytes={needed - 1}", *own)

    assert hand.state.state == "failed"
    assert f"median needs the 4 updates of a round at once, {needed} bytes" in hand.state.reason
    assert f"raise redis.unmerged_bytes to {needed}" in hand.state.reason
    again = replace(hand.config, redis=replace(hand.config.redis, unmerged_bytes=needed))
    runs.start_run(store, NAME, again, 1)
    lifecycle.advance(store, hand.run)
    assert hand.state.state == "training"
    assert hand.round.purpose == "train"


def few(store: Store, clients: str) -> str:
    """A run with version 0, and that many clients, for a rule that needs five updates."""
    for client in clients:
        store.control.leases.hold(keyspace.client_holder(client), "t", 60, {})
    store.control.redis.hset(keyspace.CLOCK, "settling_s", 0)
    loaded = loading.load(
        "mnist-3v7",
        (*UNIFORM, "aggregation.strategy=krum", "round.cohort=1.0", "round.quorum=0.9"),
        {},
    )
    run = runs.start_run(store, "few", loaded, 1).run_id
    fields = {"version": 0, "digest": "0" * 64, "round": 0}
    store.control.redis.hset(keyspace.run(run), mapping=fields)
    return run


def test_a_round_waits_for_as_many_clients_as_the_rule_needs(store: Store) -> None:
    run = few(store, "abcd")
    lifecycle.advance(store, run)
    state = store.control.runs.get(run)
    assert state is not None
    assert state.round == 0
    assert "krum (f = 1; n >= 2 f + 3) needs 5 updates at least, the quorum is 4" in state.reason

    store.control.leases.hold(keyspace.client_holder("e"), "t", 60, {})
    lifecycle.advance(store, run)
    current = store.control.rounds.get(run, 1)
    assert current is not None
    assert (len(current.cohort), current.quorum) == (5, 5)


def test_a_round_whose_quorum_was_lowered_behind_our_back_is_abandoned(
    store: Store, tmp_path: Path
) -> None:
    hand = ManualRun(
        store, tmp_path, "abcde", 4, *UNIFORM, "aggregation.strategy=krum", "round.max_abandoned=1"
    )
    store.control.redis.hset(keyspace.round_(hand.run, 1), "quorum", "4")
    hand.work()

    assert hand.state.state == "failed"
    assert "needs 5 updates at least, the quorum is 4" in hand.state.reason
