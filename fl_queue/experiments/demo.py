"""
``fl-queue demo``: a whole federation on this machine, as separate processes, for one run.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from fl_queue.client.site import WorkerSettings
from fl_queue.common import escaping
from fl_queue.config import run_config
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.errors import ConfigError, RunFailed
from fl_queue.experiments import launching, local_workers
from fl_queue.experiments.local_workers import LocalWorker
from fl_queue.models import selection
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import identifiers
from fl_queue.reporting import model_export, progress, rich_console, rounds_table
from fl_queue.store import Store
from fl_queue.store.embedded import server_pair

RUN = "demo"


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
    console = rich_console.console(stderr=True)
    loaded = run_config.load("demo", (f"round.cohort={clients}", f"run.rounds={count}", *overrides))
    output.mkdir(parents=True, exist_ok=True)
    state_dir = Path(tempfile.mkdtemp(prefix="flq-demo-"))
    try:
        with server_pair.start(state_dir) as redis, ExitStack() as started:
            console.print(
                f"look inside with: {cli_line(redis.url)}", highlight=False, soft_wrap=True
            )
            store = Store.open(redis.url, redis.blob_url, state_dir)
            wanted = _workers(redis, clients, loaded)
            started.enter_context(local_workers.workers(store, wanted, output / "logs", console))
            state = runs.start_run(store, RUN, loaded, count)
            lifecycle.advance(store, state.run_id)
            progress.follow(store, state.run_id, console, since="0-0")
            progress.await_evaluations(store, state.run_id, console)
            _finish(store, state.run_id, output, state_dir)
    finally:
        shutil.rmtree(state_dir, ignore_errors=True)


def _finish(store: Store, run_id: str, output: Path, state_dir: Path) -> None:
    progress.print_table(store, run_id)
    state = runs.find_run(store, run_id)
    if state.state == "failed" or state.version is None:
        raise RunFailed(state.name, f"failed: {state.reason}")
    config = runs.current_config(store, run_id)
    models = ModelStore(store, run_id, config.redis["chunk_bytes"], state_dir)
    model = output / "model.safetensors"
    model_export.export_version(models, state, config, state.version, model)
    print(f"model: {model}")
    try:
        curve = output / "curve.png"
        rounds_table.plot(
            curve, store.control.history.records(run_id), selection.test_metrics(store, run_id)
        )
        print(f"plot:  {curve}")
    except ConfigError as exc:
        print(f"no plot: {escaping.line(exc.reason)}")


def _workers(
    redis: server_pair.EmbeddedRedis, clients: int, loaded: run_config.RunConfig
) -> dict[str, LocalWorker]:
    """What the demo starts, by name."""
    base = launching.with_data(WorkerSettings(redis.url, redis.blob_url, redis.state_dir), [loaded])
    sites = [f"site-{number}" for number in range(1, clients + 1)]
    roles = {
        role: LocalWorker(role, base) for role in (identifiers.AGGREGATOR, identifiers.EVALUATOR)
    }
    return roles | {site: LocalWorker("client", replace(base, client=site)) for site in sites}
