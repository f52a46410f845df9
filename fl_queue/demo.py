"""
``fl-queue demo``: a whole federation on this machine, as separate processes, for one run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from fl_queue import checkpoint, config, display, embedded, models, report, rounds, runs, scores
from fl_queue.errors import ConfigError, FLQueueError, RunFailed
from fl_queue.site import Site
from fl_queue.store import Store

READY_S = 120.0
STOP_S = 20.0
#: Time between the two signals that stop a worker cold: a process merges signals it has not seen.
COLD_STOP_S = 0.3
RUN = "demo"


class WorkerDied(FLQueueError):
    """A worker of the demo ended before the run began; the message has its last lines."""


def run(
    clients: int,
    count: int,
    output: Path,
    overrides: tuple[str, ...],
    cli_line: Callable[[str], str],
) -> None:
    """
    Start everything, train, export, plot, and stop everything.

    Args:
        clients: Client workers, and the cohort.
        count: Rounds to commit.
        output: Folder for the model, the plot and the logs; made when missing.
        cli_line: URL -> the redis-cli command into that server.

    Raises:
        RunFailed: The run failed.
        WorkerDied: A worker could not start.
    """
    console = Console(stderr=True)
    loaded = config.load("demo", (f"round.cohort={clients}", f"run.rounds={count}", *overrides))
    logs = output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    state_dir = Path(tempfile.mkdtemp(prefix="flq-demo-"))
    try:
        with embedded.start(state_dir) as redis, _workers(redis, clients, logs) as processes:
            console.print(
                f"look inside with: {cli_line(redis.url)}", highlight=False, soft_wrap=True
            )
            store = Store.open(redis.url, redis.blob_url, state_dir)
            _await_workers(store, processes, clients, logs, console)
            state = runs.start_run(store, RUN, loaded, count)
            rounds.advance(store, state.run_id)
            display.follow(store, state.run_id, console, since="0-0")
            display.await_evaluations(store, state.run_id, console)
            _finish(store, state.run_id, output, state_dir)
    finally:
        shutil.rmtree(state_dir, ignore_errors=True)


def _finish(store: Store, run_id: str, output: Path, state_dir: Path) -> None:
    display.print_table(store, run_id)
    state = runs.find_run(store, run_id)
    if state.state == "failed" or state.version is None:
        raise RunFailed(state.name, f"failed: {state.reason}")
    chunk_bytes = runs.current_config(store, run_id).redis["chunk_bytes"]
    manifest, body = models.load_version(store, run_id, state.version, chunk_bytes, state_dir)
    model = output / "model.safetensors"
    checkpoint.export(
        body,
        manifest,
        model,
        {"run": state.name, "version": str(state.version), "digest": state.digest},
    )
    print(f"model: {model}")
    try:
        curve = output / "curve.png"
        report.plot(curve, store.control.history(run_id), scores.test_metrics(store, run_id))
        print(f"plot:  {curve}")
    except ConfigError as exc:
        print(f"no plot: {exc.reason}")


@contextmanager
def _workers(
    redis: embedded.EmbeddedRedis, clients: int, logs: Path
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The supervisors as child processes, by name; they end with us even when we are killed."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    base = Site(redis.url, redis.blob_url, redis.state_dir)
    try:
        for name in (
            "aggregator",
            "evaluator",
            *(f"site-{number}" for number in range(1, clients + 1)),
        ):
            processes[name] = _start(name, base, logs)
        yield processes
    finally:
        _stop(list(processes.values()))


def _start(name: str, base: Site, logs: Path) -> subprocess.Popen[bytes]:
    role = name if name in ("aggregator", "evaluator") else "client"
    site = Site(base.url, base.blob_url, base.state_dir, name if role == "client" else "")
    command = [sys.executable, "-m", "workers.supervisor", role, "--parent", str(os.getpid())]
    with (logs / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            command,
            env={**os.environ, **site.to_environ()},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    # Twice: once would wait for idle workers to look up, and nothing they do is wanted any more.
    for _ in range(2):
        for process in processes:
            process.terminate()
        time.sleep(COLD_STOP_S)
    until = time.monotonic() + STOP_S
    for process in processes:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_workers(
    store: Store,
    processes: dict[str, subprocess.Popen[bytes]],
    clients: int,
    logs: Path,
    console: Console,
) -> None:
    until = time.monotonic() + READY_S
    with console.status("starting workers") as status:
        while True:
            for name, process in processes.items():
                if process.poll() is not None:
                    raise WorkerDied(
                        f"worker {name} ended while starting: {_tail(logs / f'{name}.log')}"
                    )
            ready = len(store.control.living_workers())
            status.update(f"starting workers: {ready} of {clients + 2}")
            if ready >= clients + 2:
                return
            if time.monotonic() > until:
                raise WorkerDied(
                    f"only {ready} of {clients + 2} workers were ready after {READY_S:g} s; see {logs}"
                )
            time.sleep(0.1)


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
