"""A real federation for tests: private Redis, supervisors and workers as the CLI starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from fl_queue.config import loading
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.errors import StoreUnavailable
from fl_queue.protocol.records import RoundRecord
from fl_queue.store import RunState, Store, keyspace
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from fl_queue.store.jobs import dispatch
from tests.support import prestarted

Value = TypeVar("Value")
#: Fast rounds: one linear layer on about a hundred images.
QUICK = ("run.rounds=3", "round.cohort=3", "train.epochs=2", "round.deadline_s=60")


def wait_for(what: str, ask: Callable[[], Value], timeout_s: float = 60.0) -> Value:
    """The first true answer; fails the test when there is none in time."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s:g} s for {what}")


class Federation:
    """
    An aggregator, an evaluator and clients on private servers; ``close`` ends them all.

    Args:
        forked: Fork the workers and all they start from a process that has imported what they need, for tests
            that are not about the start of a process; see ``prestarted``.
    """

    def __init__(
        self,
        redis: EmbeddedRedis,
        folder: Path,
        clients: int = 3,
        environment: Mapping[str, str] | None = None,
        allow: str = "",
        data: Path | None = None,
        evaluator: bool = True,
        forked: bool = False,
    ) -> None:
        self._forked = forked
        self.redis, self.folder, self.allow, self.data = redis, folder, allow, data
        self.environment = {
            **os.environ,
            **(environment or {}),
            "FLQ_FAULTS": str(folder / "faults"),
        }
        self.faults = folder / "faults"
        self.faults.mkdir(exist_ok=True)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._calm: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        #: Name of a run -> what its undisturbed runs did.
        self._accounts: dict[str, list[str]] = {}
        self.store = Store.open(redis.url, redis.blob_url, redis.state_dir)
        self.clients = [f"site-{number}" for number in range(1, clients + 1)]
        try:
            for name in ("aggregator", *(["evaluator"] if evaluator else []), *self.clients):
                self.start(name)
            count = len(self.processes)
            wait_for("workers", lambda: len(self.store.control.workers.living()) == count, 120)
        except BaseException:
            self.close()
            raise

    def start(self, name: str, *options: str) -> None:
        """Start a worker as a user would."""
        role = name.partition("-")[0]
        role = role if role in ("aggregator", "evaluator", "pool") else "client"
        command = [sys.executable, "-m", "fl_queue", "worker", role, *options]
        # Tasks of tests have a handful of samples.
        command += ["--client", name, "--min-examples", "1"] if role == "client" else []
        # Own tasks are allowed beside built-in ones, which an option would forbid.
        for allowed in (*self.allow.split(","), "mnist", "csv") if self.allow else ():
            command += ["--task-allow", allowed] if role != "aggregator" else []
        command += ["--data", str(self.data)] if self.data and role != "aggregator" else []
        command += ["--state-dir", str(self.redis.state_dir)]
        with (self.folder / f"{name}.log").open("ab") as log:
            if self._forked:
                self.processes[name] = prestarted.SESSION.popen(command, log, self.environment)
            else:
                self.processes[name] = subprocess.Popen(
                    command, stdout=log, stderr=log, env=self.environment
                )

    def arm(self, point: str, action: str, whose: str = "") -> Path:
        """Have the next such worker that reaches a fault point do something; see ``failpoints``."""
        fired = self.faults / f"{point}.fired"
        fired.unlink(missing_ok=True)
        armed = self.faults / f"{point}.arming"
        armed.write_text(f"{action} {whose}")
        armed.rename(self.faults / point)
        return fired

    def worker_pid(self, name: str) -> int:
        """Pid of the RQ worker below a supervisor."""
        return child_of(self.processes[name].pid)

    def trainers(self, name: str) -> list[int]:
        """Pids of the training processes below a client's or evaluator's worker."""
        below = [pid for one in children_of(self.worker_pid(name)) for pid in children_of(one)]
        # Packages that are imported by the process above them run programs, such as ldconfig.
        return [pid for pid in below if b"workers.trainer" in command_of(pid)]

    def at_work(self) -> dict[str, str]:
        """Client -> the job that its worker's lease names; nothing of idle ones."""
        leases = self.store.control.workers.living()
        return {
            lease["client"]: lease["job"]
            for lease in leases
            if lease.get("client") and lease.get("job")
        }

    def begin(self, name: str, *overrides: str) -> str:
        """Start a quick run, whose versions are scored if there is an evaluator; returns its run id."""
        unscored = () if "evaluator" in self.processes else ("run.evaluate_every=0",)
        loaded = loading.load("mnist-3v7", (*QUICK, *unscored, *overrides))
        state = runs.start_run(self.store, name, loaded, loaded.run.rounds)
        lifecycle.advance(self.store, state.run_id)
        return state.run_id

    def finish(self, run: str, timeout_s: float = 90.0) -> RunState:
        """Wait until a run has ended."""

        def ended() -> RunState | None:
            # After a failover a sentinel may name the old primary for seconds: ask again.
            with suppress(StoreUnavailable):
                state = self.store.control.runs.get(run)
                return state if state is not None and not state.active else None
            return None

        state = wait_for("the run to end", ended, timeout_s)
        assert state is not None
        return state

    def reach(self, run: str, number: int) -> None:
        """Wait until a run is at a round."""

        def there() -> bool:
            state = self.store.control.runs.get(run)
            return state is not None and state.round >= number

        wait_for(f"round {number}", there)

    def digests_of(self, name: str, *overrides: str) -> list[str]:
        """Digests of an undisturbed run of that name; it is run once, and its name given free."""
        known = self._calm.get((name, overrides))
        if known is None:
            run = self.begin(name, *overrides)
            assert self.finish(run).state == "completed"
            self._accounts[name] = self.account(run)
            known = self._calm[name, overrides] = self.free(run)
        return known

    def free(self, run: str) -> list[str]:
        """Digests of a run; its name is free from now on (seeds come from the name, not the run id)."""
        state = self.store.control.runs.get(run)
        assert state is not None
        self.store.control.redis.hdel(keyspace.RUNS, state.name)
        return [entry["digest"] for entry in self.store.control.versions.all(run).values()]

    def account(self, run: str) -> list[str]:
        """Each ended round of a run with all that may decide its bits, a line each."""
        lines = []
        for record in self.store.control.history.records(run):
            jobs = dispatch.tickets(self.store, run, record.round)
            receipts = self.store.control.receipts.of_round(run, record.round)
            facts = {
                "base": (record.base_version, record.base_digest[:8]),
                "made": (record.version, (record.digest or "")[:8]),
                "accepted": {who: digest[:8] for who, digest in record.accepted.items()},
                "weights": record.weights,
                "rejected": record.rejected,
                "eligible": record.eligible,
                "population": record.population,
                "scales": record.scales,
                "attempts": {who: ticket.attempt for who, ticket in jobs.items()},
                "environments": {who: dict(found.environment) for who, found in receipts.items()},
            }
            shown = "; ".join(f"{name} {value}" for name, value in facts.items() if value)
            lines.append(f"round {record.round} {record.outcome}: {record.reason}; {shown}")
        return lines

    def beside_calm(self, run: str) -> str:
        """What a run did beside the last undisturbed one of its name, for an assertion that has failed."""
        state = self.store.control.runs.get(run)
        assert state is not None
        calm = self._accounts.get(state.name, [])
        return "\n".join(("", "undisturbed:", *calm, "this run:", *self.account(run)))

    def client_events(self, client: str) -> list[dict[str, Any]]:
        """Events of a client's worker, oldest first."""
        streams = {keyspace.client_events(client): "0-0"}
        return [event for _, _, event in self.store.control.events.read(streams, None)]

    def trained(self, run: str) -> int:
        """How often clients began to train for a run."""
        return sum(
            event["event"] == "training" and event["run"] == run
            for client in self.clients
            for event in self.client_events(client)
        )

    def trained_in(self, run: str, number: int) -> int:
        """The same in one round."""
        wanted = {"event": "training", "run": run, "round": number}
        return sum(
            event.items() >= wanted.items()
            for client in self.clients
            for event in self.client_events(client)
        )

    def stop(self, name: str) -> None:
        """Stop a worker for good, warm."""
        process = self.processes.pop(name)
        process.terminate()
        process.wait(30)

    def round_of(self, run: str) -> int:
        """The round a run is at."""
        state = self.store.control.runs.get(run)
        assert state is not None
        return state.round

    def committed(self, run: str) -> list[RoundRecord]:
        """Records of the committed rounds."""
        return [
            record
            for record in self.store.control.history.records(run)
            if record.outcome == "committed"
        ]

    def close(self) -> None:
        """Stop every worker."""
        end_processes(self.processes.values())
        self.store.close()


def end_processes(processes: Collection[subprocess.Popen[Any]]) -> None:
    """Stop them all; who does not stop is killed."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def child_of(pid: int) -> int:
    """Pid of the only child of a process, once it has one."""

    return wait_for(f"a child of {pid}", lambda: next(iter(children_of(pid)), 0))


def command_of(pid: int) -> bytes:
    """Command line of a process, its words separated by NUL; empty when it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def children_of(pid: int) -> list[int]:
    """Pids of the children of a process; none when it is dead."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def kill(pid: int) -> None:
    """End a process without a word."""
    os.kill(pid, signal.SIGKILL)
