"""After a loss all clients are asked again, whatever else happens at that moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from fl_queue.coordinator.aggregator.closing import ClosingDecision
from fl_queue.coordinator.aggregator.intake import UpdateIntake
from fl_queue.coordinator.aggregator.open_round import OpenRound
from fl_queue.coordinator.aggregator.ownership import claim_round
from fl_queue.coordinator.operations import controls
from fl_queue.coordinator.operations.healer import Healer
from fl_queue.coordinator.operations.missed_updates import LOOKED_AT_S
from fl_queue.models import retention
from fl_queue.protocol.records import Receipt
from fl_queue.store import Store, keyspace
from fl_queue.store.control import PUSH_AGAIN_S
from fl_queue.store.jobs import dispatch
from fl_queue.store.jobs.rq_types import FLJob
from tests.support.manual_run import ManualRun


def attempts(hand: ManualRun) -> dict[str, int]:
    tickets = dispatch.tickets(hand.store, hand.run, hand.round.number)
    return {who: ticket.attempt for who, ticket in tickets.items()}


def finish(hand: ManualRun, *clients: str) -> None:
    """RQ has the jobs of these clients as finished."""
    tickets = dispatch.tickets(hand.store, hand.run, hand.round.number)
    for client in clients:
        hand.store.control.redis.hset(FLJob.key_for(tickets[client].job), "status", "finished")


def cut_connections(server: redis.Redis, hand: ManualRun) -> None:
    server.client_kill_filter(_type="normal", skipme=True)


def replace_another(server: redis.Redis, hand: ManualRun) -> None:
    key = keyspace.round_jobs(hand.run, 1)
    ticket = dispatch.tickets(hand.store, hand.run, 1)["b"]
    server.hset(key, "b", ticket.next_attempt().to_json())


@pytest.mark.parametrize("meanwhile", [cut_connections, replace_another])
def test_a_job_is_replaced_though_connections_break_or_another_client_gets_a_new_one(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[redis.Redis, ManualRun], None],
) -> None:
    hand = ManualRun(store, tmp_path, "ab", 100)
    aside = redis.Redis(connection_pool=redis.ConnectionPool(**_options(store.control.redis)))
    old, publish = dispatch.tickets(store, hand.run, 1)["a"], dispatch.publish

    def disturbed(*args: Any, **options: Any) -> None:
        publish(*args, **options)
        meanwhile(aside, hand)

    monkeypatch.setattr(dispatch, "publish", disturbed)
    new = dispatch.replace(store, keyspace.round_jobs(hand.run, 1), "a", old)

    assert new is not None
    assert dispatch.tickets(store, hand.run, 1)["a"] == new
    assert dispatch.queued(store, old.queue) == [new.job]
    monkeypatch.undo()
    assert dispatch.replace(store, keyspace.round_jobs(hand.run, 1), "a", old) is None
    assert dispatch.queued(store, old.queue) == [new.job]
    aside.close()


def _options(client: redis.Redis) -> dict[str, Any]:
    pool = client.connection_pool
    wanted = ("path", "host", "port", "db")
    options = {key: pool.connection_kwargs[key] for key in wanted if key in pool.connection_kwargs}
    return {**options, "connection_class": pool.connection_class}


def test_a_reply_that_is_lost_publishes_no_second_attempt(store: Store, tmp_path: Path) -> None:
    hand = ManualRun(store, tmp_path, "ab", 100)
    old = dispatch.tickets(store, hand.run, 1)["a"]
    wanted: list[Any] = []
    once = store.control.queues.replace_jobs

    def twice(key: str, replacements: Any) -> list[bool]:
        wanted.extend(replacements)
        once(key, wanted)
        return once(key, wanted)

    store.control.queues.replace_jobs = twice  # type: ignore[method-assign]
    new = dispatch.replace(store, keyspace.round_jobs(hand.run, 1), "a", old)

    assert new is not None
    assert dispatch.queued(store, old.queue) == [new.job]


def test_who_is_lost_is_asked_again_though_others_are_in(store: Store, tmp_path: Path) -> None:
    hand = ManualRun(store, tmp_path, "abc", 100)
    intake = hand.intake()
    hand.update("a")
    hand.take(intake, 1)
    finish(hand, "a", "b")  # b's update was pushed, and the server that had it is gone.
    hand.store.control.redis.hdel(keyspace.round_jobs(hand.run, 1), "aggregator")
    healer = Healer(store, tmp_path)
    healer.heal(hand.run)
    assert attempts(hand) == {"a": 1, "b": 1, "c": 1}  # It may be being looked at.

    hand.store.control.redis.hincrbyfloat(keyspace.round_(hand.run, 1), "elapsed_s", LOOKED_AT_S)
    healer.heal(hand.run)
    assert attempts(hand) == {"a": 1, "b": 2, "c": 1}


def test_an_answer_that_comes_while_the_healer_looks_is_not_asked_for_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = ManualRun(store, tmp_path, "ab", 100)
    intake = hand.intake()
    hand.store.control.redis.hdel(keyspace.round_jobs(hand.run, 1), "aggregator")
    finish(hand, "a", "b")
    waiting = store.data.results.count

    def taken_now(run: str) -> int:
        for client in "ab":
            hand.update(client)
        hand.take(intake, 2)
        intake.taken.discard()
        return waiting(run)

    monkeypatch.setattr(store.data.results, "count", taken_now)
    Healer(store, tmp_path)._heal_jobs(hand.run, hand.round)
    assert attempts(hand) == {"a": 1, "b": 1}


def test_a_machine_without_the_checkpoint_leaves_healing_to_the_one_that_has_it(
    store: Store, tmp_path: Path
) -> None:
    without, having = Healer(store, tmp_path / "one"), Healer(store, tmp_path / "two")
    without.tick()
    hand = ManualRun(store, tmp_path / "two", "ab", 100)
    model = keyspace.model_blob(hand.run, hand.state.digest)
    store.data.redis.flushall()
    having.tick()
    assert store.data.chunks.are_missing(model, 1)  # The other one heals.
    without.tick()
    having.tick()
    assert not store.data.chunks.are_missing(model, 1)


def test_what_a_machine_fetched_of_a_run_goes_with_the_run(store: Store, tmp_path: Path) -> None:
    hand = ManualRun(store, tmp_path / "one", "ab", 100)
    hand.folder = tmp_path / "two"  # The next round is merged on a machine without the checkpoint.
    hand.update("a")
    hand.update("b")
    hand.work()
    cached = tmp_path / "two" / "cache" / hand.run
    assert list(cached.iterdir())
    Healer(store, tmp_path / "two").tick()
    assert list(cached.iterdir())
    # By any holder of the lease: each machine tidies its own disk.
    controls.cancel(store, "by-hand")
    Healer(store, tmp_path / "two").tick()
    assert not cached.exists()


def test_the_grace_begins_anew_after_the_updates_were_lost(store: Store, tmp_path: Path) -> None:
    hand = ManualRun(store, tmp_path, "abc", 100, "round.quorum=2", "round.grace_s=20")
    store.control.rounds.set_quorum_at(hand.run, 1, 1.0)
    store.control.redis.hset(keyspace.round_(hand.run, 1), "data_server", "another")
    Healer(store, tmp_path).heal(hand.run)

    assert hand.round.quorum_at_s is None


def test_an_aggregator_at_work_gives_the_time_to_push_again(store: Store, tmp_path: Path) -> None:
    hand = ManualRun(store, tmp_path, "abc", 100, "round.quorum=2", "round.grace_s=20")
    incarnation = claim_round(store, hand.run, 1, hand.job())
    assert incarnation is not None
    current = OpenRound.load(store, incarnation)
    intake = UpdateIntake(current, tmp_path)
    closing = ClosingDecision(current, intake)
    intake.receipts["a"] = intake.receipts["b"] = Receipt("received")
    assert closing.ending(drained=True) is None
    before = hand.round.deadline_s
    assert hand.round.quorum_at_s is not None
    # The healer notes another data server; an hour has been counted meanwhile.
    store.control.redis.hincrbyfloat(keyspace.round_(hand.run, 1), "elapsed_s", before)
    store.control.rounds.set_data_server(hand.run, 1, "another")

    assert closing.ending(drained=True) is None
    assert current.state.deadline_s == before + PUSH_AGAIN_S
    assert hand.round.quorum_at_s == pytest.approx(before, abs=30)


def test_versions_that_are_never_scored_leave_the_data_server(store: Store, tmp_path: Path) -> None:
    hand = ManualRun(store, tmp_path, "ab", 100, "run.evaluate_every=0")
    store.control.redis.hset(keyspace.run(hand.run), "rounds_wanted", 5)
    for _ in range(5):
        hand.update("a")
        hand.update("b")
        hand.work()

    versions = store.control.versions.all(hand.run)
    there = [
        version
        for version, entry in versions.items()
        if not store.data.chunks.are_missing(keyspace.model_blob(hand.run, entry["digest"]), 1)
    ]
    assert there == sorted(versions)[-retention.ON_DATA_SERVER :]
