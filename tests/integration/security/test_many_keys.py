"""However much one client writes of itself, readers and the healer do no more for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_queue.config import loading
from fl_queue.coordinator.operations import enrolment
from fl_queue.coordinator.operations.healer import Healer
from fl_queue.coordinator.rounds import runs
from fl_queue.protocol import identifiers
from fl_queue.protocol.records import Enrolment
from fl_queue.protocol.signing import new_key
from fl_queue.reporting import doctor, run_status
from fl_queue.store import Store, count_keys, keyspace
from fl_queue.store.control import clients
from tests.support.command_counts import counted

MANY = 3_000


def arrive(store: Store, *clients: str) -> None:
    for client in clients:
        fields = {"role": "client", "worker": f"{client}_00", "job": ""}
        for lease in (keyspace.client_holder(client), keyspace.worker(f"{client}_00")):
            store.control.leases.hold(lease, client, 3600, fields)
    store.control.clients.record_heartbeats()


def flood(store: Store, count: int = MANY) -> None:
    """What mallory's Redis user may write: leases, fields of its hash and lease, events, a queue."""
    with store.control.redis.pipeline(transaction=False) as pipe:
        for number in range(count):
            pipe.hset(keyspace.worker(f"mallory_{number}"), "role", "client")
            pipe.xadd(keyspace.client_events("mallory"), {"event": "{}"})
        garbage = {f"f{number}": "x" * 50 for number in range(count)}
        for key in (keyspace.client("mallory"), keyspace.client_holder("mallory")):
            pipe.hset(key, mapping=garbage)
        pipe.rpush("rq:queue:flq-client-mallory", *garbage)
        pipe.execute()


def test_readers_cost_no_more_for_a_client_with_many_keys(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive(store, "a", "mallory")
    runs.start_run(store, "demo", loading.load("mnist-3v7", environ={}), 1)
    healer, control = Healer(store, tmp_path), store.control
    readers = {
        "role_alive": lambda: control.workers.is_role_alive(identifiers.AGGREGATOR),
        "living_workers": control.workers.living,
        "status": lambda: run_status.statuses(store, run_status.living_runs(store)),
        "clients": lambda: run_status.clients(store),
        "record": control.clients.record_heartbeats,
        "tick": healer.tick,
    }

    def costs() -> dict[str, int]:
        found = {}
        for name, read in readers.items():
            read()
            with counted(store, monkeypatch) as cost:
                read()
            found[name] = cost.commands
        return found

    before = costs()
    flood(store)
    after = costs()

    # A few more SCAN, and a few leases of mallory's, each time that a process asks for a role.
    assert {name for name in before if after[name] > before[name] + 50} == set()
    assert len([w for w in control.workers.living() if w["client"] == "mallory"]) <= 4


def test_no_more_than_known_fields_of_a_length_is_fetched(store: Store) -> None:
    arrive(store, "mallory")
    flood(store, 10)
    store.control.redis.hset(
        keyspace.client("mallory"), mapping={"num_examples": "7", clients.PAUSED: "x" * 100_000}
    )

    assert store.control.clients.get("mallory") == {"num_examples": "7"}
    assert set(store.control.leases.get(keyspace.client_holder("mallory"))) == {
        "token",
        "role",
        "worker",
    }


def test_a_look_at_a_part_of_the_keys_finds_all_clients_in_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "SCANNED", 50)
    monkeypatch.setattr(clients, "_SCANS_A_LOOK", 2)
    flood(store, 1_000)
    fields = {"role": "client"}
    for client in ("a", "b"):
        store.control.leases.hold(keyspace.client_holder(client), client, 3600, fields)

    for _ in range(1_000):
        store.control.clients.record_heartbeats()
        if {"a", "b", "mallory"} <= set(store.control.clients.heartbeat_ages()):
            break
    # Whom we know is looked at each time.
    store.control.leases.release(keyspace.client_holder("a"), "a", "a")
    store.control.clients.record_heartbeats()

    assert set(store.control.clients.heartbeat_ages()) == {"b", "mallory"}


def test_the_doctor_names_whose_keys_they_are_and_revoke_removes_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.entries, "MANY_KEYS", 500)
    store.control.enrolments.write("mallory", Enrolment(new_key()[1]))
    arrive(store, "mallory", "mallory-2")
    flood(store, 600)
    store.data.redis.set(keyspace.chunk(keyspace.update_blob("mallory", "r-1a2b3c", "0"), 0), "x")
    store.data.redis.set(keyspace.admitted("r-1a2b3c", "mallory"), "1")

    (found,) = doctor.entries.many_keys(store)
    assert found.what.startswith("client mallory has 60")
    done = enrolment.revoke(store, "mallory", use_acl=False)

    assert any(line.startswith("its keys are removed from Redis: 60") for line in done), done
    counts = [count_keys(server) for server in store.each_server()]
    assert [count["mallory"] for count in counts] == [0, 0]
    assert counts[0]["mallory-2"] > 0
    assert list(store.data.redis.scan_iter("*mallory*")) == []


def test_events_are_read_by_the_batch_and_no_further_than_they_went(store: Store) -> None:
    stream = keyspace.client_events("a")
    with store.control.redis.pipeline(transaction=False) as pipe:
        for number in range(2_500):
            pipe.xadd(stream, {"event": f'{{"event":"epoch","epoch":{number}}}'})
        pipe.execute()
    found = []
    for entry in store.control.events.read({stream: "0-0"}, None):
        found.append(entry)
        if len(found) < 4:  # Its writer goes on.
            store.control.redis.xadd(stream, {"event": '{"event":"late"}'})

    assert [event.get("epoch") for _, _, event in found[:2_500]] == list(range(2_500))
    assert len(found) < 2_600
    assert list(store.control.events.read({stream: found[-1][1]}, 1)) == []
