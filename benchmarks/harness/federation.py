"""A real federation for a benchmark: private servers, worker processes, and measurements of them."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from fl_queue.client.site import WorkerSettings
from fl_queue.common.own_modules import python_command
from fl_queue.config import loading
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.store import Store, keyspace
from fl_queue.store.embedded import server_pair

ROOT = Path(__file__).parents[2]
#: Own tasks that workers may load.
ALLOWED = ("benchmarks.harness.noop_tasks:*", "benchmarks.harness.timed_task:*")
READY_S = 180.0
SAMPLE_S = 0.02


@dataclass
class Timing:
    """One round, seconds since it was opened. Args: ``period``: until the next one was opened."""

    number: int
    last_update: float
    committed: float
    period: float


@dataclass
class Federation:
    """
    Private servers and workers as separate processes, until the context ends.

    Args:
        clients: Client workers ``site-1`` and so on.
        aggregators: Aggregator workers.
        evaluator: Whether to start one.
        tcp: TCP loopback instead of unix sockets.
        one_server: One server in both roles.
        data: Data folder of every client; None: none.
        trainer_jobs: Jobs of one training process; 0: any number.
    """

    clients: int
    aggregators: int = 1
    evaluator: bool = False
    tcp: bool = False
    one_server: bool = False
    data: Path | None = None
    trainer_jobs: int = 0
    #: Process name -> largest resident memory of the processes of its jobs, bytes.
    peak: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="flq-bench-")
        self.state_dir = Path(self._folder.name)
        self._start_servers()
        self.store = Store.open(self.url, self.blob_url, self.state_dir)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for number in range(self.aggregators):
            self._start(f"aggregator-{number + 1}", "aggregator")
        if self.evaluator:
            self._start("evaluator", "evaluator")
        for number in range(self.clients):
            self._start(f"site-{number + 1}", "client")
        self._await_workers()
        self._done = threading.Event()
        threading.Thread(target=self._sample, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        for _ in range(2):  # The second signal does not wait for a job.
            for process in self.processes.values():
                process.terminate()
            time.sleep(0.3)
        for process in self.processes.values():
            process.wait(30)
        self.store.close()
        self._stop_servers()
        self._folder.cleanup()

    def _start_servers(self) -> None:
        self.redis = server_pair.start(self.state_dir, tcp=self.tcp)
        self.url = self.redis.url
        self.blob_url = self.redis.url if self.one_server else self.redis.blob_url

    def _stop_servers(self) -> None:
        self.redis.stop()

    def _site(self, client: str, folder: Path) -> WorkerSettings:
        return WorkerSettings(
            self.url,
            self.blob_url,
            folder,
            client,
            data_dir=str(self.data or ""),
            allow=(*ALLOWED, "csv"),
            min_examples=1,
            trainer_jobs=self.trainer_jobs,
        )

    def _start(self, name: str, role: str) -> None:
        client = name if role == "client" else ""
        # A folder of its own for each client, as on a machine of its own: each fetches the model.
        site = self._site(client, self.state_dir / name if client else self.state_dir)
        command = python_command("-m", "workers.supervisor", role, "--parent", str(os.getpid()))
        with (Path(self._folder.name) / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env={**os.environ, **site.to_environ(), "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _await_workers(self) -> None:
        until = time.monotonic() + READY_S
        while len(self.store.control.workers.living()) < len(self.processes):
            if time.monotonic() > until:
                raise TimeoutError(f"workers were not ready after {READY_S:g} s")
            time.sleep(0.1)

    def begin(self, name: str, count: int, *overrides: str, task: str = "AddConstant") -> str:
        """Start a run of ``count`` rounds; returns its run id. Args: ``task``: empty: that of ``overrides``."""
        module = "timed_task" if task == "Paced" else "noop_tasks"
        fixed = (
            *([f"run.task=benchmarks.harness.{module}:{task}"] if task else []),
            "run.preflight=off",  # What is measured is rounds.
            f"round.cohort={self.clients}",
            "round.deadline_s=900",
            "model.keep_versions=2",
        )
        loaded = loading.load(None, (*fixed, *overrides))
        state = runs.start_run(self.store, name, loaded, count)
        lifecycle.advance(self.store, state.run_id)
        return state.run_id

    def finish(self, run: str, timeout_s: float = 560.0) -> list[Timing]:
        """``finish_all`` but for the first round, which warms up."""
        return self.finish_all(run, timeout_s)[1:]

    def finish_all(self, run: str, timeout_s: float = 560.0) -> list[Timing]:
        """
        Wait until a run has ended; its committed rounds.

        Raises:
            RuntimeError: It did not complete.
        """
        until = time.monotonic() + timeout_s
        while True:
            state = self.store.control.runs.get(run)
            if state is None or not state.active or time.monotonic() > until:
                break
            time.sleep(0.1)
        if state is None or state.state != "completed":
            raise RuntimeError(f"run {run} did not complete: {state}")
        return timings(self.store, run)

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_S):
            for name, process in self.processes.items():
                for job in _job_processes(process.pid, has_fork_server="aggregator" not in name):
                    self.peak[name] = max(self.peak.get(name, 0), high_water(job))


def timings(store: Store, run: str) -> list[Timing]:
    """The committed rounds of a run, by the stamps of its event stream (milliseconds)."""
    opened: dict[int, float] = {}
    updated: dict[int, float] = {}
    committed: dict[int, float] = {}
    stamps = {"round_opened": opened, "update_received": updated, "round_committed": committed}
    for _, stamp, event in store.control.events.read({keyspace.events(run): "0-0"}, None):
        if event["event"] in stamps:
            stamps[event["event"]][event["round"]] = int(stamp.split("-")[0]) / 1000
    return [
        Timing(
            number,
            updated[number] - opened[number],
            committed[number] - opened[number],
            opened.get(number + 1, committed[number]) - opened[number],
        )
        for number in sorted(committed)
        if number in updated
    ]


def _job_processes(supervisor: int, has_fork_server: bool) -> list[int]:
    """Processes below a supervisor's worker that execute jobs: work-horses, or trainers."""
    parents = children(supervisor)
    if has_fork_server:
        parents = [below for worker in parents for below in children(worker)]
    return [job for parent in parents for job in children(parent)]


def children(pid: int) -> list[int]:
    """Pids of the children of a process; none when it is gone."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def high_water(pid: int) -> int:
    """Largest resident memory of a process so far, bytes; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def cpu_s(pid: int) -> float:
    """Processor seconds of a process so far; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def servers(tcp: bool = False) -> Iterator[server_pair.EmbeddedRedis]:
    """Private servers alone, for what is measured without workers."""
    with (
        tempfile.TemporaryDirectory(prefix="flq-bench-") as folder,
        server_pair.start(Path(folder), tcp=tcp) as redis,
    ):
        yield redis
