"""Two of everything at once on one run: exactly one effect."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.federation import Federation, kill, wait_for

EVALUATOR = False
ROUNDS = ("run.rounds=3", "round.cohort=2")


@pytest.fixture(scope="module", name="federation")
def two_aggregators(federation: Federation) -> Federation:
    federation.start("aggregator-2")
    wait_for("two aggregators", lambda: len(federation.store.control.workers.living()) == 4)
    return federation


def committed_once(federation: Federation, run: str, calm: list[str]) -> None:
    assert federation.finish(run).state == "completed"
    assert federation.free(run) == calm
    rounds = [record.round for record in federation.store.control.history.records(run)]
    assert rounds == sorted(set(rounds))


@pytest.mark.parametrize(
    "stopped",
    [
        "checkpoint.written",
        *(
            pytest.param(point, marks=pytest.mark.slow)
            for point in ("round.decided", "update.taken")
        ),
    ],
)
def test_an_aggregator_that_slept_past_its_lease_changes_nothing(
    federation: Federation, stopped: str
) -> None:
    calm = federation.digests_of("two", *ROUNDS)
    fired = federation.arm(stopped, "stop", "aggregator-")
    run = federation.begin("two", *ROUNDS)
    wait_for(stopped, fired.exists)
    zombie = int(fired.read_text())
    number = federation.round_of(run)
    # Its worker sleeps, too, as with a machine that is suspended: both leases run out.
    worker = _parent(zombie)
    os.kill(worker, signal.SIGSTOP)
    try:
        wait_for(
            "another aggregator to end the round", lambda: federation.round_of(run) > number, 60
        )
        written = _checkpoints(federation, run)
    finally:
        os.kill(zombie, signal.SIGCONT)
        os.kill(worker, signal.SIGCONT)
    committed_once(federation, run, calm)

    assert {
        path: stat for path, stat in _checkpoints(federation, run).items() if path in written
    } == written
    wait_for("nothing left", lambda: not federation.store.data.redis.keys(f"flq:{{{run}}}:*"), 30)


def test_two_aggregators_with_two_healers_and_a_kill(federation: Federation) -> None:
    calm = federation.digests_of("two", *ROUNDS)
    run = federation.begin("two", *ROUNDS)
    federation.reach(run, 1)
    kill(federation.worker_pid("aggregator"))
    federation.reach(run, 2)
    federation.processes["aggregator-2"].kill()
    federation.processes["aggregator-2"].wait()
    federation.start("aggregator-2")

    committed_once(federation, run, calm)
    assert federation.trained(run) == 6


def test_two_start_rounds_at_once_make_one_run(federation: Federation) -> None:
    command = [
        sys.executable,
        "-m",
        "fl_queue",
        "start-round",
        "mnist-3v7",
        "--run",
        "twice",
        "--no-wait",
    ]
    for override in (*ROUNDS, "train.epochs=30"):
        command += ["--set", override]
    command += ["--state-dir", str(federation.redis.state_dir)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in both]
    run = federation.store.control.runs.id_of("twice")
    assert run is not None

    assert sorted(process.returncode for process in both) == [0, 2]
    assert sum("is training" in error for _, error in outputs) == 1
    state = federation.finish(run)
    assert (state.version, [record.outcome for record in federation.store.control.history.records(run)]) == (
        3, ["committed"] * 3 + ["evaluated"],
    )  # fmt: skip


def test_two_workers_of_a_new_client_at_once_are_one(federation: Federation) -> None:
    command = [sys.executable, "-m", "fl_queue", "worker", "client", "--client", "site-9"]
    command += ["--state-dir", str(federation.redis.state_dir)]
    both = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        wait_for("one to be refused", lambda: [p for p in both if p.poll() is not None], 90)
        refused = next(process for process in both if process.poll() is not None)
        assert refused.returncode == 2
        assert refused.stderr is not None
        assert "is served by another worker" in refused.stderr.read()
        serving = next(process for process in both if process is not refused)
        assert serving.poll() is None
        assert "site-9" in federation.store.control.clients.alive(15)
    finally:
        for process in both:
            process.terminate()
            process.communicate(timeout=30)


def _parent(pid: int) -> int:
    """The RQ worker of a work-horse."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _checkpoints(federation: Federation, run: str) -> dict[str, tuple[int, int]]:
    """Checkpoint -> (inode, time of its last change)."""
    folder = federation.redis.state_dir / "checkpoints" / run
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*")}
