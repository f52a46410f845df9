"""Time that decides is counted: outages, sleeps and clocks that jump abandon nothing and change no bit."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from fl_queue.coordinator.operations import controls, deletion
from fl_queue.store import keyspace
from fl_queue.store.embedded.redis_server import Role
from tests.support.federation import Federation, kill, wait_for

#: A cohort of all that are alive: it must not shrink to those whose lease is read first.
ALL = ("run.rounds=4", "round.cohort=1.0", "train.epochs=3", "round.deadline_s=20")
#: Python's clocks, shifted by the number in a file: a machine whose clock is set under a running worker.
SHIFT = """
import datetime, os, time
def _offset():
    try:
        return float(open(os.environ["SHIFTED_BY"]).read() or 0)
    except (OSError, ValueError):
        return 0.0
_time = time.time
time.time = lambda: _time() + _offset()
class _Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=_offset())
    @classmethod
    def utcnow(cls):
        return super().utcnow() + datetime.timedelta(seconds=_offset())
datetime.datetime = _Shifted
"""


def environment(folder: Path) -> dict[str, str]:
    """For the federation of this module."""
    (folder / "sitecustomize.py").write_text(SHIFT)
    return {"PYTHONPATH": str(folder), "SHIFTED_BY": str(folder / "shift")}


def shift_workers(federation: Federation, seconds: float) -> None:
    (federation.folder / "shift").write_text(str(seconds))


def undisturbed(federation: Federation, run: str, calm: list[str]) -> None:
    """It ended with the calm bits, and every round had all clients."""
    state = federation.finish(run, 150)
    history = federation.store.control.history.records(run)

    assert state.state == "completed"
    assert federation.free(run) == calm
    assert [record.outcome for record in history] == ["committed"] * 4 + ["evaluated"]
    assert all(record.cohort == federation.clients for record in history)


def attempts(federation: Federation, run: str) -> list[int]:
    """The highest attempt of each client's jobs in the rounds whose keys are still there."""
    state = federation.store.control.runs.get(run)
    assert state is not None
    return [
        job["attempt"]
        for number in range(state.round + 1)
        for job in federation.store.control.rounds.jobs(run, number).values()
    ]


@pytest.mark.parametrize("jump_s", [3700.0, pytest.param(-3700.0, marks=pytest.mark.slow)])
def test_the_clock_of_the_workers_jumps_while_they_train(
    federation: Federation, jump_s: float
) -> None:
    calm = federation.digests_of("clocks", *ALL)
    long = (*ALL, "train.epochs=40", "train.timeout_s=60")
    slow = federation.digests_of("slow-clocks", *long)
    run = federation.begin("slow-clocks", *long)
    wait_for("training", lambda: federation.trained(run) == 2)
    shift_workers(federation, jump_s)
    try:
        undisturbed(federation, run, slow)
    finally:
        shift_workers(federation, 0.0)

    events = federation.store.control.events.read({keyspace.events(run): "0-0"}, None)
    healed = [event for _, _, event in events if event["event"] == "healed"]
    assert set(attempts(federation, run)) == {1}, healed  # Each has the reason of a new attempt.
    assert calm != slow  # Another name and other epochs: the check can fail.


@pytest.mark.parametrize(
    ("moment", "jump_s"),
    [
        ("in a round", 3600.0),
        ("between rounds", -3600.0),
        pytest.param("in a round", -3600.0, marks=pytest.mark.slow),
        pytest.param("between rounds", 3600.0, marks=pytest.mark.slow),
    ],
)
def test_the_clock_of_the_control_server_jumps(
    federation: Federation, jump_s: float, moment: str
) -> None:
    # What such a jump does, seen from inside: every recorded time lies an hour off, and forward all
    # leases run out at once. (The clock itself is the machine's.)
    calm = federation.digests_of("clocks", *ALL)
    run = federation.begin("clocks", *ALL)
    control = federation.store.control.redis
    if moment == "in a round":
        wait_for("round 2", lambda: federation.trained(run) >= 4)
    else:
        kill(federation.worker_pid("aggregator"))  # No round is opened until it is back.
        wait_for(
            "updates",
            lambda: federation.store.data.results.count(run) == 2 or federation.round_of(run) > 1,
        )
    with control.pipeline() as pipe:
        for client in federation.clients:
            pipe.zincrby(keyspace.CLIENTS, -jump_s, client)
        pipe.hincrbyfloat(keyspace.CLOCK, "ticked_at", -jump_s)
        pipe.hincrbyfloat(keyspace.round_(run, federation.round_of(run)), "ticked_at", -jump_s)
        pipe.execute()
    if jump_s > 0:
        leases = [
            *control.keys("flq:worker:*"),
            *control.keys("flq:client:*:holder"),
            keyspace.HEALER,
        ]
        control.delete(*leases)

    undisturbed(federation, run, calm)


@pytest.mark.parametrize(
    ("role", "outage_s"),
    [
        ("control", 10.0),
        pytest.param("control", 60.0, marks=pytest.mark.slow),
        pytest.param("data", 60.0, marks=pytest.mark.slow),
    ],
)
def test_an_outage_longer_than_leases_and_deadline_abandons_nothing(
    federation: Federation, role: Role, outage_s: float
) -> None:
    # The deadline is 20 s; what the outage adds to it is at most 2 s.
    calm = federation.digests_of("clocks", *ALL)
    run = federation.begin("clocks", *ALL)
    federation.reach(run, 2)
    federation.redis.kill(role)
    time.sleep(outage_s)
    federation.redis.restart(role)

    undisturbed(federation, run, calm)


@pytest.mark.parametrize("outage_s", [10.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_an_outage_of_both_while_clients_train_loses_no_finished_training(
    federation: Federation, outage_s: float
) -> None:
    calm = federation.digests_of("clocks", *ALL)
    run = federation.begin("clocks", *ALL)
    federation.reach(run, 1)
    held = federation.arm("client.trained", "stop", "site-1_")
    wait_for("a client that has just trained", held.exists)
    roles: tuple[Role, Role] = ("control", "data")
    for role in roles:
        federation.redis.kill(role)
    _continue(int(held.read_text()))
    time.sleep(outage_s)
    for role in roles:
        federation.redis.restart(role)
    number = federation.round_of(run)
    wait_for("the round to end", lambda: federation.round_of(run) > number)

    # Once each; the event of one that began just before the kill may be lost with the server.
    assert federation.trained_in(run, number) <= len(federation.clients)
    undisturbed(federation, run, calm)


def test_a_deleted_and_recreated_run_meets_no_ghost_of_the_old_one(federation: Federation) -> None:
    calm = federation.digests_of("clocks", *ALL)
    held = federation.arm("outbox.written", "stop", "site-1_")
    old = federation.begin("clocks", *ALL)
    wait_for("an update in the outbox", held.exists)
    # The whole machine of the client sleeps: its worker, too.
    _stop(federation.worker_pid("site-1"))
    controls.cancel(federation.store, "clocks")
    state = federation.store.control.runs.get(old)
    assert state is not None
    deletion.delete(federation.store, state, federation.redis.state_dir)
    new = federation.begin("clocks", *ALL)
    _continue(int(held.read_text()))
    _continue(federation.worker_pid("site-1"))

    undisturbed(federation, new, calm)
    wait_for("the job of the old run to end", lambda: not federation.at_work())
    # What was on its way is swept a little later.
    wait_for("the sweep", lambda: not federation.store.data.redis.keys(f"*{old}*"))
    assert federation.store.control.redis.keys(f"flq:*{old}*") == []
    assert not list((federation.redis.state_dir / "outbox").glob(f"*{old}*"))


def test_a_client_whose_machine_vanishes_does_not_hold_up_its_round(federation: Federation) -> None:
    held = federation.arm("client.started", "kill-supervisor", "site-2_")
    run = federation.begin("vanishing", *ALL, "run.rounds=1", "round.quorum=1", "round.grace_s=1")
    wait_for("site-2 to vanish", held.exists)
    federation.processes["site-2"].wait()
    try:
        assert federation.finish(run).state == "completed"
        record = federation.committed(run)[0]
        assert (list(record.accepted), record.missing) == (["site-1"], ["site-2"])
        assert "quorum reached, grace passed" in record.reason
    finally:
        federation.start("site-2")
        wait_for("site-2", lambda: "site-2" in federation.store.control.clients.alive(15))


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def _continue(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)
