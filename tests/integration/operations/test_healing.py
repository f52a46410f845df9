"""What the healer repairs and removes, on real servers and without workers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fl_queue.common import processes
from fl_queue.config import loading
from fl_queue.coordinator.aggregator import round_records
from fl_queue.coordinator.operations import controls, deletion, healer
from fl_queue.coordinator.operations.healer import Healer
from fl_queue.coordinator.rounds import lifecycle, opening, runs
from fl_queue.errors import RunStateError, StoreUnavailable
from fl_queue.protocol import message
from fl_queue.protocol.events import RunCompleted, Unreadable
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.protocol.records import Receipt
from fl_queue.reporting import diagnosis
from fl_queue.store import RunState, Store, keyspace
from fl_queue.store.jobs import dead_jobs, dispatch, rq_cleanup, rq_types
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.store.jobs.rq_types import FLJob


def state_of(store: Store, run: str) -> RunState:
    state = store.control.runs.get(run)
    assert state is not None
    return state


def keys(store: Store, run: str) -> list[bytes]:
    servers = store.control.redis, store.data.redis
    return [
        key for server in servers for key in server.scan_iter(count=1000)
        if run.encode() in key
    ]  # fmt: skip


def dead_process() -> str:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = processes.process_identity(child.pid)
    child.kill()
    child.wait()
    return identity


def test_the_lease_of_a_dead_process_is_set_aside_with_its_workers(store: Store) -> None:
    control, holder = store.control, keyspace.client_holder("b")
    fields = {"process": dead_process(), "worker": "old"}
    control.leases.hold(holder, "old", 60, fields)
    control.leases.hold(keyspace.worker("old"), "old", 60, fields)

    assert control.leases.hold(
        holder, "new", 60, {"process": processes.process_identity(), "worker": "new"}
    )
    assert control.leases.get(keyspace.worker("old")) == {}
    assert not control.leases.hold(holder, "third", 60, {})  # The new one lives.


@pytest.mark.parametrize("moved_s", [-60, 60])
def test_after_a_silence_or_a_clock_set_back_no_cohort_is_chosen_and_no_client_is_declared_dead(
    store: Store, moved_s: float
) -> None:
    control = store.control
    control.leases.hold(keyspace.client_holder("a"), "a", 60, {})
    control.clients.record_heartbeats()
    loaded = loading.load("mnist-3v7", ("round.cohort=1.0",), {})
    run = runs.start_run(store, "silent", loaded, 1).run_id
    control.redis.hincrbyfloat(keyspace.CLOCK, "ticked_at", moved_s)
    control.clients.record_heartbeats()  # The first time since.
    lifecycle.advance(store, run)
    assert (control.clients.is_settling(), state_of(store, run).round) == (True, -1)

    ticket = JobTicket("a", rq_types.TRAIN, keyspace.client_queue("a"), run, 1, 60)
    control.redis.hset(
        FLJob.key_for(ticket.job), mapping={"status": "started", "worker_name": "gone"}
    )
    watch = dead_jobs.JobMonitor(store, 0.0)
    assert watch.verdict(ticket) is None

    control.redis.hset(keyspace.CLOCK, "settling_s", 0)
    assert watch.verdict(ticket) == "its worker is dead"
    lifecycle.advance(store, run)
    assert state_of(store, run).round == 0


def test_clients_are_alive_by_their_leases_and_not_by_their_own_entries(store: Store) -> None:
    control = store.control
    for client, lifetime_s in (("a", 6), ("old", 2), ("left", 6), ("gone", 6), ("liar", 9999)):
        control.leases.hold(keyspace.client_holder(client), client, lifetime_s, {})
    control.redis.hset("flq:client:../x:holder", "token", "t")
    control.clients.record_heartbeats()
    control.leases.release(keyspace.client_holder("left"), "left", "left")
    control.leases.release(keyspace.client_holder("gone"), "gone")
    control.clients.record_heartbeats()

    ages = control.clients.heartbeat_ages()
    assert sorted(ages) == ["a", "gone", "liar", "old"]
    assert ages["liar"] < 3 < ages["old"] < 9
    control.clients.register_worker("left")
    assert control.clients.get("left") == {}


def test_a_clock_that_was_set_back_keeps_no_dead_client_alive(store: Store) -> None:
    store.control.redis.zadd(keyspace.CLIENTS, {"gone": store.control.now() + 3600})
    store.control.redis.zadd(keyspace.CLIENTS, {"../../etc/x": store.control.now()})

    assert store.control.clients.alive(15) == []


def test_late_updates_of_a_run_that_has_ended_are_recorded_and_removed(
    store: Store, run: str, tmp_path: Path
) -> None:
    controls.cancel(store, "lawful")
    late = Header(kind="failure", run=run, round=0, client="a", token="t", reason="slept")
    for element in (
        b"rubbish",
        message.pack(late, None),
        message.pack(replace(late, round=99), None),
    ):
        store.data.results.push(run, element)
    Healer(store, tmp_path).heal(run)

    assert store.data.results.count(run) == 0
    assert store.control.receipts.of_round(run, 0)["a"].status == "late"
    events = store.control.events.read({keyspace.events(run): "0-0"}, None)
    rejected = [event["reason"] for _, _, event in events if event["event"] == "update_rejected"]
    assert len(rejected) == 3


def test_the_elements_of_a_cancelled_runs_aggregator_do_not_stay(
    store: Store, run: str, tmp_path: Path
) -> None:
    fence = store.control.rounds.claim(
        run, 0, store.control.rounds.jobs(run, 0)["aggregator"]["job"]
    )
    store.data.results.push(
        run, message.pack(Header(kind="failure", run=run, round=0, client="a", token="t"), None)
    )
    store.data.taken.own(run, fence, "t")
    store.data.taken.take(run, fence, "t")
    store.data.redis.delete(keyspace.owner(run, fence))  # Its aggregator has died.
    controls.cancel(store, "lawful")
    Healer(store, tmp_path).heal(run)

    assert store.data.taken.count(run, fence) + store.data.results.count(run) == 0


def test_a_new_incarnation_forgets_receipts_whose_elements_come_back(
    store: Store, run: str
) -> None:
    job = store.control.rounds.jobs(run, 0)["aggregator"]["job"]
    fence = store.control.rounds.claim(run, 0, job)
    refused = Receipt("failed", token="1", reason='no "status":"received"')
    store.control.receipts.add(run, 0, "a", refused, fence)
    store.control.receipts.add(run, 0, "b", Receipt("received", token="2"), fence)
    store.control.rounds.claim(run, 0, job)

    # That of a refused one does not come back.
    assert store.control.receipts.of_round(run, 0) == {"a": refused}


def test_a_data_server_that_lost_everything_has_all_asked_again_with_time_to_answer(
    store: Store, run: str, tmp_path: Path
) -> None:
    before = store.control.rounds.get(run, 0)
    assert before is not None
    fence = store.control.rounds.claim(
        run, 0, store.control.rounds.jobs(run, 0)["aggregator"]["job"]
    )
    store.control.receipts.add(run, 0, "a", Receipt("failed", token="1", reason="no"), fence)
    store.data.redis.flushall()
    Healer(store, tmp_path).heal(run)
    after = store.control.rounds.get(run, 0)
    assert after is not None

    assert store.control.rounds.jobs(run, 0)["a"]["attempt"] == 2
    assert (after.data_server != before.data_server, after.deadline_s - before.deadline_s) == (
        True,
        30.0,
    )


def test_time_does_not_count_while_the_data_server_is_away(
    store: Store, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Store(store.servers.url, "unix:///nowhere.sock")
    store.control.redis.hincrbyfloat(keyspace.round_(run, 0), "ticked_at", -2)
    with pytest.raises(Exception, match="not reachable"):
        lifecycle.count_time(away, run, 0)
    found = store.control.rounds.get(run, 0)
    away.close()

    assert found is not None
    assert found.elapsed_s == 0


def test_an_evaluation_whose_model_is_gone_is_given_up(
    store: Store, run: str, tmp_path: Path
) -> None:
    control = store.control.redis
    manifest = Manifest((TensorSpec("w", (2,), "parameter"),))
    control.set(keyspace.manifest(run), manifest.to_json())
    newest = healer.retention.WAITING_KEPT
    for version in range(newest + 1):
        control.hset(
            keyspace.versions(run), str(version), f'{{"digest":"{version:064d}","round":{version}}}'
        )
        ticket = JobTicket(
            "evaluator", rq_types.EVALUATE, keyspace.EVALUATE_QUEUE, run, version, 60
        )
        control.hset(keyspace.evaluations(run), str(version), ticket.to_json())
    control.hset(keyspace.run(run), mapping={"version": newest, "digest": f"{newest:064d}"})
    Healer(store, tmp_path, immediate=True).heal(run)
    found = store.control.evaluations.all(run)

    assert found[0] == {"state": "failed", "reason": healer.PRUNED}
    assert "job" in found[1]  # Its checkpoint may be on another machine.


def test_nothing_is_written_to_a_deleted_run_and_what_comes_of_it_is_removed(
    store: Store, run: str, tmp_path: Path
) -> None:
    with pytest.raises(RunStateError, match="fl-queue cancel lawful"):
        deletion.delete(store, state_of(store, run), tmp_path)
    controls.cancel(store, "lawful")
    state = state_of(store, run)
    records = round_records.folder_of(tmp_path, run)
    records.mkdir(parents=True)
    deletion.delete(store, state, tmp_path)
    assert keys(store, run) == []
    assert not records.exists()

    store.control.events.add(run, Unreadable(reason="ghost"))
    store.control.evaluations.set(run, 1, {"state": "done"})
    store.control.rounds.set_quorum_at(run, 0, 1.0)
    store.control.rounds.set_data_server(run, 0, "x")
    assert keys(store, run) == []

    store.data.results.push(run, b"from a client that slept")
    assert keys(store, run) != []
    deletion.sweep(store, tmp_path)
    assert keys(store, run) == []
    assert store.control.redis.zcard(keyspace.DELETED) == 1

    # Hours later there is no looking through all keys any more, but a sleeper may still push.
    store.control.redis.zincrby(keyspace.DELETED, -2 * deletion.LOOKED_AGAIN_S, run)
    store.data.results.push(run, b"from a client that slept for hours")
    deletion.sweep(store, tmp_path)
    assert keys(store, run) == []

    store.control.redis.zincrby(keyspace.DELETED, -2 * deletion.TOMBSTONE_S, run)
    deletion.sweep(store, tmp_path)
    assert store.control.redis.zcard(keyspace.DELETED) == 0


def test_a_deletion_that_was_killed_is_finished_by_the_healer(
    store: Store, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controls.cancel(store, "lawful")
    state = state_of(store, run)
    with monkeypatch.context() as patch:
        patch.setattr(deletion, "_remove", lambda *arguments: None)
        deletion.delete(store, state, tmp_path)
    assert store.control.runs.id_of("lawful") is None
    Healer(store, tmp_path).tick()

    assert keys(store, run) == []


def test_names_of_jobs_that_no_longer_exist_leave_rqs_lists(store: Store, run: str) -> None:
    control, queue = store.control.redis, keyspace.client_queue("a")
    living = store.control.rounds.jobs(run, 0)["a"]["job"]
    for registry in ("finished", "failed", "wip"):
        control.zadd(f"rq:{registry}:{queue}", {f"{living}:1": 1, "gone:1": 1})
    control.rpush(f"rq:queue:{queue}:intermediate", "gone", living)
    control.sadd("rq:workers", "rq:worker:gone")
    rq_cleanup.sweep(store)

    for registry in ("finished", "failed", "wip"):
        assert control.zrange(f"rq:{registry}:{queue}", 0, -1) == [f"{living}:1".encode()]
    assert control.lrange(f"rq:queue:{queue}:intermediate", 0, -1) == [living.encode()]
    assert not control.exists("rq:workers")


def test_a_replaced_job_leaves_nothing_even_if_the_healer_is_killed(
    store: Store, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = JobTicket.from_dict(store.control.rounds.jobs(run, 0)["a"])
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "forget_all", lambda *arguments: None)
        new = dispatch.replace(store, keyspace.round_jobs(run, 0), "a", old)
    assert new is not None

    assert 0 < store.control.redis.ttl(FLJob.key_for(old.job)) <= rq_types.RESULT_TTL_S
    assert store.control.redis.ttl(FLJob.key_for(new.job)) == -1


def test_a_late_update_of_a_round_long_gone_is_counted(
    store: Store, run: str, tmp_path: Path
) -> None:
    controls.cancel(store, "lawful")
    store.control.rounds.forget(run, 0)
    late = Header(kind="failure", run=run, round=0, client="a", token="t", reason="slept")
    store.data.results.push(run, message.pack(late, None))
    Healer(store, tmp_path).heal(run)

    assert store.control.receipts.late_counts(run) == {0: 1}
    last = store.control.events.last(keyspace.events(run))
    assert last is not None
    assert (last["status"], last["client"]) == ("late", "a")


def test_a_caller_that_slept_opens_no_second_evaluation_and_completes_no_continued_run(
    store: Store, run: str
) -> None:
    control = store.control.redis
    control.hset(keyspace.round_(run, 0), "state", "committed")
    control.hset(keyspace.run(run), mapping={"version": 1, "digest": "0" * 64})
    before = state_of(store, run)
    control.hset(
        keyspace.run(run), "evaluated_version", 1
    )  # Another process has ended the evaluation.
    opening.open_round(store, before, runs.current_config(store, run), "evaluate")
    assert state_of(store, run).round == 0

    seen = state_of(store, run)
    control.hset(keyspace.run(run), "rounds_wanted", 5)  # Another process has continued the run.
    assert not runs.set_state(store, seen, "completed", "", RunCompleted)
    assert state_of(store, run).active


def test_a_bad_element_in_a_clients_name_leaves_it_waited_for_and_its_job_watched(
    store: Store, run: str, tmp_path: Path
) -> None:
    fence = store.control.rounds.claim(
        run, 0, store.control.rounds.jobs(run, 0)["aggregator"]["job"]
    )
    store.control.receipts.add(run, 0, "a", Receipt("stale", token="1", reason="old"), fence)
    assert any(
        line.startswith("waiting for a: ")
        for line in diagnosis.why_open(store, state_of(store, run))
    )

    job = store.control.rounds.jobs(run, 0)["a"]["job"]
    store.control.redis.hset(FLJob.key_for(job), mapping={"status": "started", "worker_name": "x"})
    healer = Healer(store, tmp_path)
    healer.heal(run)
    assert store.control.rounds.jobs(run, 0)["a"]["attempt"] == 2
    assert any("its worker is dead" in line for line in healer.done)
    healer.heal(run)
    assert healer.done == []  # What was done the last time, not all a healer ever did.


def test_a_new_attempt_is_never_seen_without_its_reason(
    store: Store, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StoreUnavailable("redis://control", "no answer")

    job = store.control.rounds.jobs(run, 0)["a"]["job"]
    store.control.redis.hset(FLJob.key_for(job), "status", "failed")
    # The healer comes no further than the new attempt.
    monkeypatch.setattr(dispatch, "forget_all", away)

    with pytest.raises(StoreUnavailable):
        Healer(store, tmp_path).heal(run)

    assert store.control.rounds.jobs(run, 0)["a"]["attempt"] == 2
    events = store.control.events.read({keyspace.events(run): "0-0"}, None)
    [healed] = [event["what"] for _, _, event in events if event["event"] == "healed"]
    assert healed.startswith("job of a failed: ")
    assert healed.endswith(": attempt 2")
