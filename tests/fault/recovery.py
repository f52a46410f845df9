"""
Recovery times by role, measured: ``python -m tests.fault.recovery`` prints a table.

From the kill (for Redis: from the moment it answers again) to the first sign of work going on:

    trainer, fork server, worker, supervisor   the client's next ``training`` event, its round unchanged
    worker with a finished update    the next receipt of that client
    aggregator                       the next fence: an incarnation is taking updates again
    evaluator                        its next evaluation
    control, data                    the next update that is received

Everything runs with default settings on private redis-servers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fl_queue.coordinator.operations import controls
from fl_queue.store import keyspace
from fl_queue.store.embedded.redis_server import Role
from fl_queue.store.embedded.server_pair import start
from tests.support.federation import Federation, children_of, kill, wait_for

ENDLESS = ("train.epochs=1000000", "round.cohort=3", "round.deadline_s=3600")
BUSY = ("run.rounds=100000", "round.cohort=3", "round.deadline_s=3600")


def measure(federation: Federation, repeats: int) -> dict[str, list[float]]:
    """Role -> seconds of each recovery."""
    found: dict[str, list[float]] = {}
    run = federation.begin("endless", *ENDLESS)
    wait_for("training", lambda: federation.trained(run) == 3)
    for what, hit in (
        ("training process", _trainer),
        ("fork server", _fork_server),
        ("worker", _worker),
        ("supervisor and worker", _both),
    ):
        found[what] = [_until_training(federation, run, hit) for _ in range(repeats)]
        _say(what, found[what])
    controls.cancel(federation.store, "endless")
    busy = federation.begin("busy", *BUSY)
    federation.reach(busy, 2)
    found["worker, update in its outbox"] = [
        _until_pushed(federation, busy) for _ in range(repeats)
    ]
    found["aggregator"] = [_until_fence(federation, busy) for _ in range(repeats)]
    found["evaluator"] = [_until_evaluated(federation, busy) for _ in range(repeats)]
    roles: tuple[Role, Role] = ("control", "data")
    for role in roles:
        found[f"{role} Redis"] = [_until_received(federation, busy, role) for _ in range(repeats)]
    controls.cancel(federation.store, "busy")
    return found


def _until_training(federation: Federation, run: str, hit: Callable[[Federation], None]) -> float:
    time.sleep(1.0)
    stream = keyspace.client_events("site-1")
    last = federation.store.control.events.last_id(stream)

    def training() -> bool:
        news = federation.store.control.events.read({stream: last}, None)
        return any((event["event"], event["run"]) == ("training", run) for _, _, event in news)

    return _seconds(lambda: hit(federation), training)


def _trainer(federation: Federation) -> None:
    kill(federation.trainers("site-1")[0])


def _fork_server(federation: Federation) -> None:
    kill(children_of(federation.worker_pid("site-1"))[0])


def _worker(federation: Federation) -> None:
    kill(federation.worker_pid("site-1"))


def _both(federation: Federation) -> None:
    worker = federation.worker_pid("site-1")
    federation.processes["site-1"].kill()
    kill(worker)
    federation.processes["site-1"].wait()
    federation.start("site-1")


def _until_pushed(federation: Federation, run: str) -> float:
    fired = federation.arm("outbox.written", "kill-worker", "site-1_")
    wait_for("an update in the outbox", fired.exists)
    number = federation.round_of(run)

    def received() -> bool:
        return federation.round_of(
            run
        ) > number or "site-1" in federation.store.control.receipts.of_round(run, number)

    return _seconds(lambda: None, received)


def _until_fence(federation: Federation, run: str) -> float:
    time.sleep(3.0)
    federation.arm("update.taken", "stop", "aggregator-")
    fired = federation.faults / "update.taken.fired"
    wait_for("an aggregator at work", fired.exists)
    before = federation.store.control.runs.fence(run)
    return _seconds(
        lambda: kill(federation.worker_pid("aggregator")),
        lambda: federation.store.control.runs.fence(run) > before,
    )


def _until_evaluated(federation: Federation, run: str) -> float:
    time.sleep(1.0)

    def done() -> int:
        values = federation.store.control.evaluations.all(run).values()
        return sum(value.get("state") == "done" for value in values)

    before = done()
    return _seconds(lambda: kill(federation.worker_pid("evaluator")), lambda: done() > before)


def _until_received(federation: Federation, run: str, role: Role) -> float:
    time.sleep(3.0)
    federation.redis.kill(role)
    time.sleep(2.0)
    federation.redis.restart(role)
    last = federation.store.control.events.last_id(keyspace.events(run))

    def received() -> bool:
        news = federation.store.control.events.read({keyspace.events(run): last}, None)
        return any(event["event"] == "update_received" for _, _, event in news)

    return _seconds(lambda: None, received)


def _seconds(hit: Callable[[], None], sign: Callable[[], bool]) -> float:
    started = time.monotonic()
    hit()
    wait_for("recovery", sign)
    return time.monotonic() - started


def _say(what: str, seconds: list[float]) -> None:
    print(
        f"{what}: {', '.join(f'{value:.1f}' for value in seconds)} s", file=sys.stderr, flush=True
    )


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 2)[1] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5, help="kills of each role (5)")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder, start(Path(folder) / "state") as redis:
        federation = Federation(redis, Path(folder))
        try:
            found = measure(federation, repeats)
        finally:
            federation.close()
    table = Table("Killed", "Median s", "Maximum s", title=f"Recovery, {repeats} kills each")
    for what, seconds in found.items():
        table.add_row(what, f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
