"""What the healer and the end of a round cost: round trips must not grow with the clients."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_queue import config, dispatch, names, rounds, runs
from fl_queue.heal import Healer
from fl_queue.jobs import FLJob
from fl_queue.store import Store
from tests.counting import Cost, counted

MANIFEST = '{"aliases":{},"tensors":[{"kind":"parameter","name":"w","shape":[10]}]}'
FEW, MANY = 20, 120


def training(store: Store, clients: int, *overrides: str) -> str:
    """A run in whose round 1 all clients train, each on a living worker."""
    store.control.redis.flushall()
    ids = [f"site-{number:04d}" for number in range(clients)]
    for client in ids:
        for lease in (names.client_holder(client), names.worker(f"{client}_w")):
            store.control.hold(lease, client, 3600, {"role": "client"})
    settings = ("round.cohort=1.0", "run.evaluate_every=0", *overrides)
    run = runs.start_run(store, "many", config.load("mnist-3v7", settings, {}), 3).run_id
    store.control.redis.set(names.manifest(run), MANIFEST)
    begun = {"version": "0", "round": "0", "digest": ""}
    store.control.redis.hset(names.run(run), mapping=begun)  # type: ignore[arg-type]
    rounds.advance(store, run)
    # Nothing of what a test looks at is about the aggregator.
    store.control.redis.hdel(names.round_jobs(run, 1), names.AGGREGATOR)
    for client, ticket in dispatch.tickets(store, run, 1).items():
        said = {"status": "started", "worker_name": f"{client}_w"}
        store.control.redis.hset(FLJob.key_for(ticket.job), mapping=said)  # type: ignore[arg-type]
    store.control.redis.delete(*(f"rq:queue:{names.client_queue(client)}" for client in ids))
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
