"""Keys that have become something else: removed and reported, and what met them goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from fl_queue.config import loading
from fl_queue.coordinator.operations import controls
from fl_queue.coordinator.operations.healer import Healer
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.store import Store, keyspace
from fl_queue.store.jobs import dispatch, rq_cleanup
from tests.support.manual_run import ManualRun

pytestmark = pytest.mark.timeout(60)


def spoil(client: redis.Redis, *keys: str) -> None:
    """Make keys what no key of ours is."""
    for key in keys:
        client.delete(key)
        client.geoadd(key, (0, 0, "x")) if "rq:wip" not in key else client.sadd(key, "x")
        if "finished" in key or "failed" in key:
            client.delete(key)
            client.sadd(key, "x")


def removed(store: Store, run: str) -> set[str]:
    """The keys whose removal the run's events report."""
    streams = {keyspace.events(run): "0-0"}
    events = [event for _, _, event in store.control.events.read(streams, None)]
    return {event["key"] for event in events if event["event"] == "key_removed"}


def job_keys(store: Store, run: str) -> list[str]:
    """What a client may write of its job and its queue."""
    ticket = dispatch.tickets(store, run, 0)["a"]
    queue = ticket.queue
    return [
        f"rq:job:{ticket.job}", f"rq:results:{ticket.job}", f"rq:queue:{queue}",
        f"rq:queue:{queue}:intermediate", f"rq:wip:{queue}", f"rq:finished:{queue}", f"rq:failed:{queue}",
    ]  # fmt: skip


def test_whatever_a_client_makes_of_its_keys_the_healer_goes_on(
    store: Store, run: str, tmp_path: Path
) -> None:
    keys = job_keys(store, run)
    own = [
        keyspace.client("a"),
        keyspace.client_holder("a"),
        keyspace.client_events("a"),
        "flq:worker:a_00",
    ]
    spoil(store.control.redis, *keys, *own)
    healer = Healer(store, tmp_path, immediate=True)
    healer.tick()
    rq_cleanup.sweep(store)
    healer.tick()

    # The queue was removed before the new attempt was put into it.
    assert store.control.rounds.jobs(run, 0)["a"]["attempt"] == 2
    assert store.control.workers.living() == []
    assert store.control.clients.get("a") == {}
    assert store.control.events.last(keyspace.client_events("a")) is None
    assert f"rq:job:{keys[0].removeprefix('rq:job:')}" in removed(store, run)
    assert not store.control.redis.exists(*own[3:])
    newest = dispatch.tickets(store, run, 0)["a"].job
    assert newest in dispatch.queued(store, keyspace.client_queue("a"))


def test_a_queue_of_a_wrong_type_stops_no_round_from_opening(store: Store, tmp_path: Path) -> None:
    store.control.leases.hold(keyspace.client_holder("a"), "t", 60, {})
    spoil(store.control.redis, f"rq:queue:{keyspace.client_queue('a')}")
    state = runs.start_run(store, "r", loading.load("mnist-3v7", ("round.cohort=1",), {}), 1)
    lifecycle.advance(store, state.run_id)
    assert store.control.rounds.get(state.run_id, 0) is not None
    Healer(store, tmp_path, immediate=True).tick()

    newest = dispatch.tickets(store, state.run_id, 0)["a"].job
    assert newest in dispatch.queued(store, keyspace.client_queue("a"))


def test_lists_and_sums_of_a_wrong_type_hold_up_no_process(store: Store, tmp_path: Path) -> None:
    hand = ManualRun(store, tmp_path, "ab", 1000, "redis.unmerged_bytes=5000")
    keys = [
        keyspace.results(hand.run),
        keyspace.partial(hand.run),
        keyspace.admitted(hand.run, "a"),
    ]
    spoil(store.data.redis, *keys, keyspace.taken(hand.run, 1))
    hand.update("a", bound=5000)
    hand.update("b", bound=1 << 40)

    assert hand.work() == "committed: 2 of 2 updates in"
    assert {keyspace.results(hand.run), keyspace.partial(hand.run)} <= removed(store, hand.run)
    spoil(store.data.redis, *keys)
    controls.cancel(store, "by-hand")
    Healer(store, tmp_path).heal(hand.run)
    assert store.data.results.count(hand.run) == 0
