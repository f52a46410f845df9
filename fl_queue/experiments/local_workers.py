"""
Workers of a federation on this machine, as processes that end with the one that starts them.

``demo`` starts all it needs, ``start-round`` what a simulation lacks.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fl_queue.client.site import WorkerSettings
from fl_queue.common import files
from fl_queue.common.own_modules import python_command
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import WorkerDied
from fl_queue.protocol import identifiers
from fl_queue.store import Store

READY_S = 120.0
STOP_S = 20.0
#: Time between the two signals that stop a worker cold: a process merges signals it has not seen.
COLD_STOP_S = 0.3


@dataclass(frozen=True)
class LocalWorker:
    """
    A supervisor to start.

    Args:
        role: As for ``fl-queue worker``.
        site: Its options.
        processes: Workers it keeps running.
    """

    role: str
    site: WorkerSettings
    processes: int = 1


@contextmanager
def workers(
    store: Store, wanted: Mapping[str, LocalWorker], logs: Path, console: Console
) -> Iterator[None]:
    """
    Start workers, wait until they are ready, and stop them at the end.

    Args:
        wanted: By name, which is that of its log file.
        logs: Folder, made when missing.

    Raises:
        WorkerDied: One could not start.
    """
    files.folder(logs)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, worker in wanted.items():
            processes[name] = _start(worker, logs / f"{name}.log")
        _await(store, wanted, processes, logs, console)
        yield
    finally:
        _stop(list(processes.values()))


def missing_workers(
    store: Store, config: RunConfig, site: WorkerSettings
) -> dict[str, LocalWorker]:
    """
    List the workers that a simulation needs and that are not alive, by name.

    Args:
        site: Options of these workers.
    """
    wanted = {identifiers.AGGREGATOR: 1, identifiers.POOL: config.processes}
    if config.run.evaluate_every:
        wanted[identifiers.EVALUATOR] = 1
    there = {worker["role"] for worker in store.control.workers.living()}
    return {
        role: LocalWorker(role, site, count) for role, count in wanted.items() if role not in there
    }


def _start(worker: LocalWorker, log: Path) -> subprocess.Popen[bytes]:
    command = python_command("-m", "workers.supervisor", worker.role)
    command += ["--processes", str(worker.processes), "--parent", str(os.getpid())]
    # A log may quote data.
    with files.fresh(log) as file:
        return subprocess.Popen(
            command,
            env={**os.environ, **worker.site.to_environ()},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    # Twice, for a cold stop: at the first signal an idle worker waits for its next poll.
    for _ in range(2):
        for process in processes:
            process.terminate()
        time.sleep(COLD_STOP_S if processes else 0)
    until = time.monotonic() + STOP_S
    for process in processes:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(
    store: Store,
    wanted: Mapping[str, LocalWorker],
    processes: Mapping[str, subprocess.Popen[bytes]],
    logs: Path,
    console: Console,
) -> None:
    until = time.monotonic() + READY_S
    count = sum(worker.processes for worker in wanted.values())
    roles = {worker.role for worker in wanted.values()}
    with console.status("starting workers") as status:
        while True:
            for name, process in processes.items():
                if process.poll() is not None:
                    raise WorkerDied(
                        f"worker {name} ended while starting: {_tail(logs / f'{name}.log')}"
                    )
            ready = sum(worker["role"] in roles for worker in store.control.workers.living())
            status.update(f"starting workers: {ready} of {count}")
            if ready >= count:
                return
            if time.monotonic() > until:
                raise WorkerDied(
                    f"only {ready} of {count} workers were ready after {READY_S:g} s; see {logs}"
                )
            time.sleep(0.1)


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"
