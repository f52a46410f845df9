"""Every process killed between any two steps of a round: the run goes on and ends with the same bits."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fl_queue.common import failpoints
from fl_queue.store import keyspace
from fl_queue.store.embedded.redis_server import Role
from tests.fault import test_secure_kills
from tests.fault.chaos.checks import data_leftovers
from tests.support.federation import Federation, wait_for

ROUND = ("run.rounds=1", "round.cohort=2", "train.epochs=1", "run.evaluate_every=0")
SCORED = (*ROUND, "run.evaluate_every=1")
#: What a client's job and its worker pass, in order.
CLIENT = (
    "job.popped", "trainer.forked", "trainer.asked", "client.started", "client.trained", "outbox.written",
    "trainer.answered", "trainer.tidied", "chunks.pushed", "update.pushed",
)  # fmt: skip
#: Those that the worker itself passes, and its fork server; all others are its trainer's.
OF_WORKER = ("job.popped", "trainer.asked", "trainer.answered", "chunks.pushed", "update.pushed")
OF_FORK_SERVER = ("trainer.forked",)
AGGREGATOR = (
    "aggregator.claimed", "update.taken", "update.received", "update.refused", "refused.removed",
    "partial.stored", "partial.saved",
    "round.decided", "model.published", "checkpoint.written", "round.committed", "round.opened",
    "round.advanced", "round.discarded",
)  # fmt: skip
EVALUATOR = ("client.started", "outbox.written", "update.pushed", "version.scored")
#: Of runs with a base part; their test has a federation of its own.
BASE_PART = ("base.written", "base.published", "base.fetched", "round.committed")
#: Of analyses; ``test_sums_kills`` has sites with tables.
SUMS = ("rows.read", "ledger.noted")
#: Of secure rounds, as ``test_secure_kills`` has them; the last two are walked in ``tests/unit/secure/test_vault.py``.
SECURE = (
    *test_secure_kills.AGGREGATOR,
    *(p for _, points in test_secure_kills.OF_SITES for p in points),
)
SWEPT = ("closed.noted", "runkey.deleted")
#: Of fits; as ``test_fit_kills`` has it.
FITS = ("panel.shrunk",)
HEALER = ("heal.given-back", "heal.healed", "heal.replaced")
#: Where a Redis is killed while a process stands still there: before and after each of its writes.
REDIS = [
    ("site-", "client.trained"),
    ("site-", "update.pushed"),
    ("aggregator-", "update.received"),
    ("aggregator-", "partial.saved"),
    ("aggregator-", "checkpoint.written"),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("site-", "outbox.written"),
            ("aggregator-", "update.taken"),
            ("aggregator-", "partial.stored"),
            ("aggregator-", "round.decided"),
            ("aggregator-", "round.committed"),
        )
    ),
]
#: (point, action) of a client, an aggregator; what the suite leaves to `make test-slow` is marked.
CLIENT_CASES = [(point, "kill") for point in CLIENT]
CLIENT_CASES += [("client.trained", "kill-worker"), ("outbox.written", "kill-worker")]
CLIENT_CASES += [("client.started", "kill-parent"), ("outbox.written", "kill-parent")]
CLIENT_CASES += [("outbox.written", "kill-supervisor")]
AGGREGATOR_CASES = [(point, "kill") for point in AGGREGATOR] + [("update.received", "kill-parent")]
#: What a run needs to pass a point at all: updates in chunks, a checkpoint after each of them.
_CHUNKS, _PARTIAL = ("redis.inline_bytes=0",), ("redis.inline_bytes=0", "redis.unmerged_bytes=1")
NEEDED = {"chunks.pushed": _CHUNKS, "partial.stored": _PARTIAL, "partial.saved": _PARTIAL}
#: Points that are passed where a client has sent garbage.
GARBAGE = ("update.refused", "refused.removed")
#: A killed aggregator may leave a sum that no round counts; it expires.
MAX_LIFE_S = 3600
#: From here on the update is in the outbox, and no client trains again.
KEPT = CLIENT[CLIENT.index("outbox.written") :]


def with_slow(
    quick: list[tuple[str, str]], points: tuple[str, ...], actions: tuple[str, ...]
) -> list[Any]:
    """The quick cases, and all others marked as slow."""
    every = [(point, action) for point in points for action in actions]
    # The worker itself reaches these: what kills it is `kill`, and its parent is the supervisor.
    same = [(point, action) for point in OF_WORKER for action in ("kill-parent", "kill-worker")]
    # The parent of a fork server is the worker.
    same += [(point, "kill-parent") for point in OF_FORK_SERVER]
    slow = [case for case in every if case not in quick and case not in same]
    return [*quick, *(pytest.param(*case, marks=pytest.mark.slow) for case in slow)]


def ends_as_if_nothing_had_happened(federation: Federation, run: str) -> None:
    calm = federation.digests_of("points", *ROUND)
    state = federation.finish(run, 120)
    history = federation.store.control.history.records(run)

    assert state.state == "completed"
    assert federation.free(run) == calm
    assert [record.outcome for record in history] == ["committed", "evaluated"]
    assert [record.round for record in history] == [1, 2]
    assert sorted(history[0].accepted) == federation.clients
    wait_for("nothing to be left that stays", lambda: not lasting(federation, run), 20)


def lasting(federation: Federation, run: str) -> list[str]:
    """Keys on the data server that are no model, and do not go by themselves soon."""
    data = federation.store.data.redis
    left = data_leftovers(data, run, federation.store.control.versions.all(run))
    keys = [line.split()[2] for line in left]
    return [key for key in keys if not 0 <= data.ttl(key) <= MAX_LIFE_S]


@pytest.fixture
def calm(federation: Federation) -> list[str]:
    """Run before anything is armed."""
    return federation.digests_of("points", *ROUND)


@pytest.mark.parametrize(
    ("point", "action"),
    with_slow(CLIENT_CASES, CLIENT, ("kill", "kill-parent", "kill-worker", "kill-supervisor")),
)
def test_a_client_killed_at(
    federation: Federation, calm: list[str], point: str, action: str
) -> None:
    fired = federation.arm(point, action, "site-1_")
    run = federation.begin("points", *ROUND, *NEEDED.get(point, ()))
    wait_for(point, fired.exists)
    if action == "kill-supervisor":
        federation.processes["site-1"].wait(10)
        federation.start("site-1")

    ends_as_if_nothing_had_happened(federation, run)
    if point in KEPT:
        assert federation.trained(run) == len(federation.clients)


@pytest.mark.parametrize(
    ("point", "action"), with_slow(AGGREGATOR_CASES, AGGREGATOR, ("kill", "kill-parent"))
)
def test_an_aggregator_killed_at(
    federation: Federation, calm: list[str], point: str, action: str
) -> None:
    fired = federation.arm(point, action, "aggregator-")
    run = federation.begin("points", *ROUND, *NEEDED.get(point, ()))
    if point in GARBAGE:
        federation.store.data.results.push(run, b"garbage")
    wait_for(point, fired.exists)

    ends_as_if_nothing_had_happened(federation, run)
    assert federation.trained(run) == len(federation.clients)


@pytest.mark.parametrize(
    "point",
    [
        "outbox.written",
        "version.scored",
        *(
            pytest.param(point, marks=pytest.mark.slow)
            for point in EVALUATOR
            if point not in ("outbox.written", "version.scored")
        ),
    ],
)
def test_an_evaluator_killed_at(federation: Federation, calm: list[str], point: str) -> None:
    fired = federation.arm(point, "kill-worker", "evaluator-")
    run = federation.begin("points", *SCORED)
    wait_for(point, fired.exists)

    def scored() -> bool:
        found = federation.store.control.evaluations.all(run)
        return [found.get(version, {}).get("state") for version in (0, 1)] == ["done", "done"]

    wait_for("evaluations", scored)
    ends_as_if_nothing_had_happened(federation, run)


@pytest.mark.parametrize("point", HEALER)
def test_a_healer_killed_at(federation: Federation, calm: list[str], point: str) -> None:
    supervisor = federation.processes["aggregator"]
    fired = federation.arm(point, "kill")
    # The healer looks once a second: something must keep the round open for longer.
    held = federation.arm(
        "client.trained", "kill" if point == "heal.replaced" else "stop", "site-1_"
    )
    run = federation.begin("points", *ROUND)
    wait_for(point, fired.exists)
    supervisor.wait(10)
    federation.start("aggregator")
    wait_for("the client", held.exists)
    if point != "heal.replaced":
        os.kill(int(held.read_text()), signal.SIGCONT)

    ends_as_if_nothing_had_happened(federation, run)


@pytest.mark.parametrize("point", ["run.created", "round.opened"])
def test_start_round_killed_at(federation: Federation, calm: list[str], point: str) -> None:
    command = [sys.executable, "-m", "fl_queue", "start-round", "mnist-3v7", "--run", "points"]
    for override in (*ROUND, "round.deadline_s=60"):
        command += ["--set", override]
    fired = federation.arm(point, "kill")
    done = subprocess.run(
        [*command, "--state-dir", str(federation.redis.state_dir)],
        env={**os.environ, "FLQ_FAULTS": str(federation.faults)}, capture_output=True,
    )  # fmt: skip
    wait_for(point, fired.exists)
    if done.returncode != -signal.SIGKILL:  # The healer was faster, and died instead.
        federation.processes["aggregator"].wait(10)
        federation.start("aggregator")
    run = federation.store.control.runs.id_of("points")
    assert run is not None

    ends_as_if_nothing_had_happened(federation, run)


@pytest.mark.parametrize("role", ["control", "data"])
@pytest.mark.parametrize(("whose", "point"), REDIS)
def test_redis_killed_while_a_process_is_at(
    federation: Federation, calm: list[str], whose: str, point: str, role: Role
) -> None:
    fired = federation.arm(point, "stop", whose)
    run = federation.begin("points", *ROUND, *NEEDED.get(point, ()))
    wait_for(point, fired.exists)
    federation.redis.kill(role)
    federation.redis.restart(role)
    os.kill(int(fired.read_text()), signal.SIGCONT)

    ends_as_if_nothing_had_happened(federation, run)
    if (role, point) == ("data", "partial.saved"):
        assert federation.trained(run) == len(federation.clients)


def test_every_point_is_walked_and_every_point_that_is_walked_exists() -> None:
    walked = {*CLIENT, *AGGREGATOR, *EVALUATOR, *HEALER, *BASE_PART, *SUMS, *FITS, *SECURE, *SWEPT}
    walked |= {"run.created"}
    source = "".join(
        path.read_text()
        for folder in ("fl_queue", "workers")
        for path in Path(folder).rglob("*.py")
    )

    assert walked == set(failpoints.POINTS)
    assert set(re.findall(r'failpoint\("([^"]+)"\)', source)) == set(failpoints.POINTS)


def test_points_do_nothing_unless_a_test_sets_them(federation: Federation) -> None:
    federation.arm("run.created", "kill")
    failpoints.failpoint("run.created")  # This process has no FLQ_FAULTS: it lives on.
    (federation.faults / "run.created").unlink()
    assert federation.store.control.redis.exists(keyspace.RUNS) in (0, 1)
