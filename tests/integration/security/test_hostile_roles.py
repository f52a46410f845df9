"""Hostile jobs in the queue of every role, while a run goes on under an audit hook: nothing of them is done."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fl_queue.cli import cli
from fl_queue.coordinator.operations.healer import Healer
from fl_queue.protocol import identifiers
from fl_queue.store import Store, keyspace
from fl_queue.store.jobs import dispatch, rq_types
from tests.support.checkout import ROOT
from tests.support.federation import Federation, wait_for
from tests.support.hostile_jobs import HASHES, STAMP, call
from tests.support.manual_run import ManualRun

CLIENTS = 1
OWNED = "flq_owned.run"
#: Role -> (name in its jobs' ids, queue, function).
ROLES = {
    "client": ("site-1", keyspace.client_queue("site-1"), rq_types.TRAIN),
    "aggregator": (identifiers.AGGREGATOR, keyspace.AGGREGATE_QUEUE, rq_types.AGGREGATE),
    "evaluator": (identifiers.EVALUATOR, keyspace.EVALUATE_QUEUE, rq_types.EVALUATE),
    "pool": ("group-0", keyspace.POOL_QUEUE, rq_types.POOL_TRAIN),
}


def environment(folder: Path) -> dict[str, str]:
    """Every process of the federation is under the hook."""
    path = f"{ROOT / 'tests/support/audit'}{os.pathsep}{ROOT}"
    return {"PYTHONPATH": path, "FLQ_AUDIT": str(folder / "audit")}


class Unpickled:
    """A process that unpickles it imports, compiles and runs."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("import flq_owned; flq_owned.run()",))


#: What runs code where a job is believed.
CODE: list[dict[str, Any]] = [
    call(OWNED),
    call("os.system", args=["echo flq_owned"]),
    call("builtins.exec", args=["import flq_owned"]),
    call("subprocess.Popen", args=[["echo", "flq_owned"]]),
    call("run", instance="flq_owned"),
    {"data": pickle.dumps((OWNED, None, Unpickled(), {}))},
    {"data": zlib.compress(pickle.dumps(Unpickled()))},
    {"success_callback_name": OWNED},
    {"failure_callback_name": OWNED},
    {"stopped_callback_name": OWNED},
    {"webhooks": json.dumps([{"url": "http://127.0.0.1:1/flq_owned"}])},
    {"meta": pickle.dumps(Unpickled()), "status": "started"},
    {"dependency_ids": json.dumps([OWNED])},
]


def packed(call: list[Any]) -> bytes:
    return zlib.compress(json.dumps(call).encode())


def hostile(role: str, run: str) -> list[dict[str, Any]]:
    """Hashes of jobs of round 3, each with one thing that is nothing for the role's worker."""
    _, queue, function = ROLES[role]
    plain = {"origin": queue, "status": "queued", "timeout": "60", "created_at": STAMP, "enqueued_at": STAMP}  # fmt: skip
    # What is hostile to a client may be just what another role does.
    honest = [
        plain | {"data": packed([own, None, [run, 3], {}])} for own in rq_types.allowed(queue)
    ]
    made = [
        plain | {"data": packed([function, None, [run, 3], {}])} | of_run(changes, run)
        for changes in [*CODE, *(changes for changes, _ in HASHES)]
    ]
    return [job_hash for job_hash in made if job_hash not in honest]


def of_run(changes: dict[str, Any], run: str) -> dict[str, Any]:
    """The same changes, of a run that is there."""
    if "data" not in changes:
        return changes
    try:
        data = zlib.decompress(changes["data"])
    except zlib.error:
        return changes
    return changes | {"data": zlib.compress(data.replace(b"demo-3f2a9c", run.encode()))}


def notes(folder: Path) -> list[dict[str, Any]]:
    """What the hook noted in all processes."""
    return [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def is_ours(note: dict[str, Any]) -> bool:
    """Whether it is what our own processes do, whatever is in Redis."""
    if note["event"] == "began":
        return True
    if note["event"] == "pickle.find_class":
        # numba's cache of compiled loops, files of this machine.
        return any("numba/core" in name for name in note["where"])
    if note["event"] in ("subprocess.Popen", "os.exec"):
        # Supervisors and workers; and how torch's libraries look for others when they are imported.
        looks = any("ctypes/util.py" in name for name in note["where"])
        return "'-m', 'workers." in note["text"] or looks
    return False


def forbidden(folder: Path) -> list[dict[str, Any]]:
    return [note for note in notes(folder) if not is_ours(note)]


ACTS = {
    "pickle.find_class": "import pickle; pickle.loads(pickle.dumps(OSError))",
    "os.system": "import os; os.system('true')",
    "subprocess.Popen": "import subprocess; subprocess.run(['true'])",
    "import": "import flq_owned",
    "compile": "compile('flq_owned', 'x', 'eval')",
    "exec": "exec('flq_owned = 1')",
}


@pytest.mark.parametrize("event", ACTS)
def test_the_hook_sees_what_is_forbidden(tmp_path: Path, event: str) -> None:
    added = {**os.environ, **environment(tmp_path)}
    subprocess.run([sys.executable, "-c", ACTS[event]], env=added, check=True, cwd=tmp_path)

    assert event in {note["event"] for note in forbidden(tmp_path / "audit")}


@pytest.mark.timeout(400)
def test_hostile_jobs_of_every_role_are_reported_and_nothing_of_them_is_done(
    federation: Federation,
) -> None:
    federation.start("pool", "--processes", "1")
    control = federation.store.control
    wait_for("the pool", lambda: len(control.workers.living()) == 4)
    pids = {name: federation.worker_pid(name) for name in federation.processes}
    run = federation.begin("honest", "round.cohort=1", "run.rounds=2", "train.epochs=20")
    thrown = {}
    for role, (who, queue, _) in ROLES.items():
        thrown[role] = hostile(role, run)
        for number, job_hash in enumerate(thrown[role]):
            control.redis.hset(f"rq:job:{who}_{run}_3_{number}", mapping=job_hash)
            control.redis.rpush(f"rq:queue:{queue}", f"{who}_{run}_3_{number}")
        control.redis.set(f"rq:job:{who}_{run}_3_type", "no hash")
        # Two name no run: a client's own stream has them, the log of the others.
        control.redis.rpush(
            f"rq:queue:{queue}", f"{who}_{run}_3_type", b"\xff\xfe", "../x y", "absent"
        )
    control.redis.set("rq:suspended", 1)

    assert federation.finish(run, 150).state == "completed"
    asked = [command(federation, *words) for words in COMMANDS]
    for _, queue, _ in ROLES.values():
        wait_for(
            f"{queue} to be empty", lambda queue=queue: not dispatch.queued(federation.store, queue)
        )  # type: ignore[misc]

    def refused() -> dict[str, int]:
        return {role: len(refusals(federation, run, role)) for role in ROLES}

    expected = {
        role: len(job_hash) + (3 if role == "client" else 1) for role, job_hash in thrown.items()
    }
    wait_for("all events", lambda: refused() == expected)
    assert control.redis.keys("rq:queue:*:intermediate") == []
    assert {name: federation.worker_pid(name) for name in federation.processes} == pids
    assert [code for code in asked if code != 0] == []
    folder = federation.folder / "audit"
    assert forbidden(folder) == []
    began = [" ".join(note["argv"]) for note in notes(folder) if note["event"] == "began"]
    for module in ("workers.client", "workers.aggregator", "workers.evaluator", "workers.pool", "fl_queue status"):  # fmt: skip
        assert any(module in argv for argv in began), module


COMMANDS = (["status", "honest"], ["doctor"])


def command(federation: Federation, *words: str) -> int:
    """A command under the hook; its exit status."""
    line = [
        sys.executable,
        "-m",
        "fl_queue",
        *words,
        "--state-dir",
        str(federation.redis.state_dir),
    ]
    return subprocess.run(
        line, env=federation.environment, capture_output=True, check=False
    ).returncode


def refusals(federation: Federation, run: str, role: str) -> list[str]:
    """Reasons of the events that a role's worker wrote."""
    stream = keyspace.client_events("site-1") if role == "client" else keyspace.events(run)
    whose = "site-1_" if role == "client" else f"{role}-"
    found = federation.store.control.events.read({stream: "0-0"}, None)
    refused = [event for _, _, event in found if event["event"] == "job_refused"]
    return [event["reason"] for event in refused if event["by"].startswith(whose)]


def test_hostile_hashes_in_place_of_a_rounds_jobs_stop_neither_healer_nor_commands(
    store: Store, tmp_path: Path
) -> None:
    hand = ManualRun(store, tmp_path, "ab", 10)
    where = ["--redis-url", store.servers.url, "--blob-url", store.servers.blob_url, "--state-dir", str(tmp_path)]  # fmt: skip
    healer = Healer(store, tmp_path, immediate=True)

    def ask(*words: str) -> Any:
        return CliRunner().invoke(cli, [*words, *where], standalone_mode=False)

    everything: list[Callable[[], Any]] = [
        lambda: ask("status", "by-hand"), lambda: ask("doctor"), lambda: ask("redrive", "by-hand"),
    ]  # fmt: skip
    for number, job_hash in enumerate(
        [*hostile("client", hand.run)[::3], *hostile("aggregator", hand.run)[1::3]]
    ):
        for ticket in dispatch.tickets(store, hand.run, 1).values():
            store.control.redis.delete(f"rq:job:{ticket.job}")
            store.control.redis.hset(f"rq:job:{ticket.job}", mapping=job_hash)
            store.control.redis.xadd(f"rq:results:{ticket.job}", {"exc_string": pickle.dumps(Unpickled())})  # fmt: skip
        healer.heal(hand.run)
        if number % 12 == 0:
            for act in everything:
                assert act().exception is None
    hand.update("a")
    hand.update("b")
    assert hand.work() == "committed: 2 of 2 updates in"
    for words in (["cancel", "by-hand"], ["resume", "by-hand"], ["cancel", "by-hand"], ["delete", "by-hand", "--yes"]):  # fmt: skip
        assert ask(*words).exception is None, words
