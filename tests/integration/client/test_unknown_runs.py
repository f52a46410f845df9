"""A control server that does not know a run, or is empty: sites keep what they have of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fl_queue.client import outbox, unknown_runs
from fl_queue.client.site import WorkerSettings
from fl_queue.coordinator.operations import controls, deletion
from fl_queue.protocol.header import Header
from fl_queue.store import Store, keyspace, queries
from workers.background import OutboxCleanup

CLIENT = "a"


@pytest.fixture
def kept(store: Store, run: str, tmp_path: Path) -> Path:
    """A finished update of the run's open round, with an answer that waits for its site beside it."""
    header = Header(kind="failure", run=run, round=0, client=CLIENT, token="t", reason="x")
    path = outbox.write(WorkerSettings(state_dir=tmp_path).outbox, header)
    path.with_suffix(outbox.WAITING).write_text("{}")
    return path


def sweep(store: Store, folder: Path) -> int:
    return outbox.sweep(
        WorkerSettings(state_dir=folder).outbox, CLIENT, unknown_runs.may_go(store.control, folder)
    )


def pass_time(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = unknown_runs.time.time()
    monkeypatch.setattr(unknown_runs.time, "time", lambda: now + seconds)


def test_an_empty_control_server_removes_no_finished_update(
    store: Store, kept: Path, tmp_path: Path, embedded: Any
) -> None:
    chores = OutboxCleanup(
        WorkerSettings(
            url=store.servers.url,
            blob_url=store.servers.blob_url,
            state_dir=tmp_path,
            client=CLIENT,
        )
    )
    store.control.redis.flushall()
    chores.tick()

    assert kept.exists()
    assert kept.with_suffix(outbox.WAITING).exists()


def test_what_is_kept_of_a_run_that_comes_back_is_as_before(
    store: Store, run: str, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown_runs, "GONE_AFTER_S", 15.0)
    hidden = store.control.redis.hgetall(keyspace.run(run))
    store.control.redis.delete(keyspace.run(run))
    assert sweep(store, tmp_path) == 1
    pass_time(monkeypatch, 10)
    assert sweep(store, tmp_path) == 1
    store.control.redis.hset(keyspace.run(run), mapping=hidden)
    assert sweep(store, tmp_path) == 1

    # Of the ten seconds nothing is left.
    store.control.redis.delete(keyspace.run(run))
    assert sweep(store, tmp_path) == 1
    pass_time(monkeypatch, 10)
    assert sweep(store, tmp_path) == 1
    pass_time(monkeypatch, 10)
    assert sweep(store, tmp_path) == 0
    assert not list(kept.parent.iterdir())
    assert not (tmp_path / "unknown-runs.json").exists()


@pytest.mark.parametrize("jump_s", [-3600.0, 90 * 86400.0])
def test_a_clock_that_jumps_ends_no_day_and_a_restart_begins_none(
    store: Store,
    run: str,
    kept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    jump_s: float,
) -> None:
    store.control.redis.delete(keyspace.run(run))
    sweep(store, tmp_path)
    pass_time(monkeypatch, jump_s)
    assert sweep(store, tmp_path) == 1
    counted = json.loads((tmp_path / "unknown-runs.json").read_text())[run]["counted_s"]
    assert 0.0 <= counted <= unknown_runs.MAX_STEP_S

    pass_time(monkeypatch, 5)
    assert sweep(store, tmp_path) == 1  # By another process: nothing is kept in memory.
    again = json.loads((tmp_path / "unknown-runs.json").read_text())[run]["counted_s"]
    assert again == pytest.approx(counted + 5, abs=2)


def test_what_is_kept_of_a_deleted_run_goes_at_once(
    store: Store, run: str, kept: Path, tmp_path: Path
) -> None:
    controls.cancel(store, "lawful")
    state = store.control.runs.get(run)
    assert state is not None
    deletion.delete(store, state, tmp_path / "aggregator")

    assert sweep(store, tmp_path) == 0
    assert not list(kept.parent.iterdir())


def test_a_user_who_may_not_read_tombstones_keeps_what_it_has(
    store: Store, run: str, kept: Path, tmp_path: Path
) -> None:
    server = store.control.redis
    server.execute_command("ACL", "SETUSER", "old", "on", "nopass", "~flq:{*", "+@all")
    connection = server.connection_pool.connection_kwargs
    server.zadd(keyspace.DELETED, {run: 1.0})
    server.delete(keyspace.run(run))
    where = f"unix://old:x@{connection['path']}" if "path" in connection else (
        f"redis://old:x@{connection['host']}:{connection['port']}/0"
    )  # fmt: skip
    try:
        with Store(where, where) as other:
            assert sweep(other, tmp_path) == 1
    finally:
        server.execute_command("ACL", "DELUSER", "old")


def test_whether_a_round_has_ended_is_asked_without_reading_its_clients(
    store: Store, run: str
) -> None:
    store.control.redis.hset(keyspace.run(run), "population", json.dumps(["x" * 60] * 2000))
    before = store.control.redis.info("stats")["total_net_output_bytes"]
    assert not queries.has_ended(store.control, run, 0, CLIENT)
    read = store.control.redis.info("stats")["total_net_output_bytes"] - before

    assert read < 20_000  # INFO's own answer is in it.
