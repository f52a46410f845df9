"""What the healer and the end of a round cost: round trips must not grow with the clients."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_queue.config import loading
from fl_queue.coordinator.operations import deletion, resting_runs
from fl_queue.coordinator.operations import healer as healing
from fl_queue.coordinator.operations.healer import Healer
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.protocol import identifiers
from fl_queue.store import Store, keyspace
from fl_queue.store.jobs import dispatch, rq_cleanup, rq_types
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.store.jobs.rq_types import FLJob
from tests.support.command_counts import Cost, counted

MANIFEST = '{"aliases":{},"tensors":[{"kind":"parameter","name":"w","shape":[10]}]}'
FEW, MANY = 20, 120


def training(store: Store, clients: int, *overrides: str) -> str:
    """A run in whose round 1 all clients train, each on a living worker."""
    store.control.redis.flushall()
    ids = [f"site-{number:04d}" for number in range(clients)]
    for client in ids:
        for lease in (keyspace.client_holder(client), keyspace.worker(f"{client}_w")):
            store.control.leases.hold(lease, client, 3600, {"role": "client"})
    settings = ("round.cohort=1.0", "run.evaluate_every=0", *overrides)
    run = runs.start_run(store, "many", loading.load("mnist-3v7", settings, {}), 3).run_id
    store.control.redis.set(keyspace.manifest(run), MANIFEST)
    begun = {"version": "0", "round": "0", "digest": ""}
    store.control.redis.hset(keyspace.run(run), mapping=begun)  # type: ignore[arg-type]
    lifecycle.advance(store, run)
    # Nothing of what a test looks at is about the aggregator.
    store.control.redis.hdel(keyspace.round_jobs(run, 1), identifiers.AGGREGATOR)
    for client, ticket in dispatch.tickets(store, run, 1).items():
        started = {"status": "started", "worker_name": f"{client}_w"}
        store.control.redis.hset(FLJob.key_for(ticket.job), mapping=started)  # type: ignore[arg-type]
    store.control.redis.delete(*(f"rq:queue:{keyspace.client_queue(client)}" for client in ids))
    return run


def tick_cost(store: Store, folder: Path, clients: int, monkeypatch: pytest.MonkeyPatch) -> Cost:
    run = training(store, clients)
    healer = Healer(store, folder)
    healer.tick()  # Scripts are loaded, and what is swept now and then is swept.
    with counted(store, monkeypatch) as cost:
        healer.tick()
    assert {ticket.attempt for ticket in dispatch.tickets(store, run, 1).values()} == {1}
    return cost


def test_a_tick_costs_no_more_round_trips_with_more_clients_in_training(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tick_cost(store, tmp_path, FEW, monkeypatch)
    many = tick_cost(store, tmp_path, MANY, monkeypatch)

    assert many.trips <= few.trips + 3
    # Lease, status and worker of each, and whether it is still there.
    assert many.commands - few.commands <= 4 * (MANY - FEW)


def ended(store: Store, count: int) -> list[str]:
    """Runs whose hashes have the state completed."""
    run = training(store, 1)
    store.control.redis.hset(keyspace.run(run), "state", "completed")
    raw = store.control.redis.hgetall(keyspace.run(run))
    made = [identifiers.new_run_id(f"done-{number}") for number in range(count)]
    for one in made:
        store.control.redis.hset(keyspace.RUNS, one.rpartition("-")[0], one)
        store.control.redis.hset(keyspace.run(one), mapping=raw)
        store.control.redis.set(
            keyspace.config(one), store.control.redis.get(keyspace.config(run)) or b""
        )
    return made


def resting_cost(store: Store, folder: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> Cost:
    ended(store, count)
    healer = Healer(store, folder)
    healer.tick()
    healer.tick()
    with counted(store, monkeypatch) as cost:
        healer.tick()
    return cost


def test_a_completed_run_costs_a_tick_one_read_and_no_round_trip(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = resting_cost(store, tmp_path, FEW, monkeypatch)
    many = resting_cost(store, tmp_path, MANY, monkeypatch)

    assert many.trips == few.trips
    assert many.commands - few.commands == MANY - FEW


def test_what_comes_of_a_run_at_rest_is_seen(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ended(store, 2)
    healer = Healer(store, tmp_path)
    healer.tick()
    store.data.results.push(first, b"late")
    healer.tick()
    assert store.data.results.count(first) == 1  # At rest.
    monkeypatch.setattr(resting_runs, "LOOK_S", 0.0)
    healer.tick()
    assert store.data.results.count(first) == 0

    # The other one is continued: it is looked at again at once.
    store.control.redis.hset(keyspace.run(second), mapping={"state": "training", "round": "-1"})
    before = store.control.runs.get(second)
    healer.tick()
    assert store.control.runs.get(second) != before


def test_a_long_look_is_no_silence_and_keeps_the_lease(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(store, 3)
    healer, other = Healer(store, tmp_path), Healer(store, tmp_path)
    monkeypatch.setattr(healing, "EXTEND_S", 0.0)
    looked: list[str] = []

    def slow(self: Healer, run: str) -> None:
        looked.append(run)
        # As if it had taken 4 s: longer than a lease if there are several, and than a silence.
        store.control.redis.hincrbyfloat(keyspace.CLOCK, "ticked_at", -4)
        store.control.redis.pexpire(keyspace.HEALER, 2000)

    monkeypatch.setattr(Healer, "heal", slow)
    for _ in range(3):
        healer.tick()
        other.tick()
        assert not store.control.clients.is_settling()
    assert len(looked) == 3 * 4
    assert store.control.redis.pttl(keyspace.HEALER) > 2000


def queue_of(store: Store, client: str) -> JobTicket:
    ticket = JobTicket(client, rq_types.TRAIN, keyspace.client_queue(client), "r-1a2b3c", 1, 60)
    with store.control.redis.pipeline() as pipe:
        pipe.multi()
        dispatch.publish(ticket, pipe, store.control.redis)
        pipe.execute()
    return ticket


def test_queues_are_swept_by_the_batch_and_idle_ones_are_forgotten(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis = store.control.redis

    def cost_of(count: int) -> Cost:
        redis.flushall()
        for number in range(count):
            ticket = queue_of(store, f"old-{number}")
            redis.delete(f"rq:queue:{ticket.queue}", FLJob.key_for(ticket.job))
            redis.zadd(f"rq:finished:{ticket.queue}", {ticket.job: 1})
        queue_of(store, "busy")
        rq_cleanup.sweep(store)
        assert redis.smembers("rq:queues") == {b"rq:queue:flq-client-busy"}
        assert redis.keys("rq:finished:*") == []
        for number in range(count):
            redis.sadd("rq:queues", f"rq:queue:flq-client-old-{number}")
        with counted(store, monkeypatch) as cost:
            rq_cleanup.sweep(store)
        return cost

    few, many = cost_of(FEW), cost_of(MANY)
    assert many.trips <= few.trips + 3  # 600 keys do not fit into one batch.
    queue_of(store, "old-1")
    assert b"rq:queue:flq-client-old-1" in redis.smembers("rq:queues")


def test_each_server_is_looked_through_once_however_many_runs_were_deleted(
    store: Store, tmp_path: Path
) -> None:
    def scans() -> int:
        servers = store.control.redis, store.data.redis
        return sum(
            int(server.info("commandstats").get("cmdstat_scan", {"calls": 0})["calls"])
            for server in servers
        )

    for number in range(20):
        run = f"gone-{number:06x}"
        store.control.redis.zadd(keyspace.DELETED, {run: store.control.now()})
        store.control.redis.set(keyspace.config(run), "[]")
        store.data.redis.set(keyspace.chunk(keyspace.update_blob("a", run, "0"), 0), "x")
    before = scans()
    deletion.sweep(store, tmp_path)

    assert scans() - before == 2
    assert [*store.control.redis.scan_iter("*gone*"), *store.data.redis.scan_iter("*gone*")] == []
