"""``fl-queue demo``: a federation of separate processes on this machine, for one run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from fl_queue.client.site import WorkerSettings
from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.errors import ConfigError, RunFailed
from fl_queue.experiments import launching, local_parties, local_workers
from fl_queue.experiments.local_workers import LocalWorker
from fl_queue.models import selection
from fl_queue.protocol import identifiers
from fl_queue.protocol.state import RunPhase
from fl_queue.reporting import model_export, progress, rich_console, rounds_table
from fl_queue.reporting.model_export import ExportRequest
from fl_queue.store import Store
from fl_queue.store.embedded import server_pair

RUN = "demo"
#: Overrides of a demo of secure rounds.
SECURE = ("secure.enabled=true", "security.require_enrolment=true")


@dataclass(frozen=True)
class DemoResult:
    """
    Files that a demo has written.

    Args:
        run: Name of the run.
        version: Number of the model version.
        digest: BLAKE3 of its tensors, hexadecimal.
        model: The model, as safetensors.
        plot: Accuracy and loss by version; empty without matplotlib.
        no_plot: Why there is no plot; empty if there is one.
    """

    run: str
    version: int
    digest: str
    model: str
    plot: str
    no_plot: str


def run(
    clients: int,
    count: int,
    output: Path,
    overrides: tuple[str, ...],
    redis_cli: Callable[[str], str],
    show_table: bool = True,
) -> DemoResult:
    """
    Start servers and workers, train, export and plot the model, and stop all processes.

    Args:
        clients: Client workers, and the cohort.
        count: Rounds to commit.
        output: Folder for the model, the plot and the logs; made when missing.
        redis_cli: URL -> the redis-cli command for that server.
        show_table: Whether to print the rounds as a table.

    Raises:
        RunFailed: The run failed.
        WorkerDied: A worker could not start.
    """
    console = rich_console.console(stderr=True)
    loaded = loading.load("demo", (f"round.cohort={clients}", f"run.rounds={count}", *overrides))
    output.mkdir(parents=True, exist_ok=True)
    state_dir = Path(tempfile.mkdtemp(prefix="flq-demo-"))
    try:
        with server_pair.start(state_dir) as redis, ExitStack() as started:
            console.print(
                f"look inside with: {redis_cli(redis.url)}", highlight=False, soft_wrap=True
            )
            store = Store.open(redis.url, redis.blob_url, state_dir)
            wanted = _workers(store, redis, clients, loaded)
            started.enter_context(local_workers.workers(store, wanted, output / "logs", console))
            state = runs.start_run(store, RUN, loaded, count)
            lifecycle.advance(store, state.run_id)
            progress.follow(store, state.run_id, console, since="0-0")
            progress.await_evaluations(store, state.run_id, console)
            if show_table:
                progress.print_table(store, state.run_id)
            return _write_files(store, state.run_id, output, state_dir)
    finally:
        shutil.rmtree(state_dir, ignore_errors=True)


def _write_files(store: Store, run_id: str, output: Path, state_dir: Path) -> DemoResult:
    state = runs.find_run(store, run_id)
    if state.state == RunPhase.failed or state.version is None:
        raise RunFailed(state.name, f"failed: {state.reason}")
    model, curve = output / "model.safetensors", output / "curve.png"
    done = model_export.export_version(store, state, state_dir, ExportRequest(model))
    plot, no_plot = str(curve), ""
    try:
        rounds_table.plot(
            curve, store.control.history.records(run_id), selection.test_metrics(store, run_id)
        )
    except ConfigError as exc:  # matplotlib is an extra.
        plot, no_plot = "", exc.reason
    return DemoResult(state.name, done.version, done.digest, str(model), plot, no_plot)


def _workers(
    store: Store, redis: server_pair.EmbeddedRedis, clients: int, loaded: RunConfig
) -> dict[str, LocalWorker]:
    """Choose the workers of the demo. Returns: name -> worker."""
    base = launching.with_data(WorkerSettings(redis.url, redis.blob_url, redis.state_dir), [loaded])
    names = [f"site-{number}" for number in range(1, clients + 1)]
    roles = {
        role: LocalWorker(role, base) for role in (identifiers.AGGREGATOR, identifiers.EVALUATOR)
    }
    sites = {name: replace(base, client=name) for name in names}
    if loaded.secure.enabled:
        keys = redis.state_dir / "keys"
        keys.mkdir(mode=0o700)
        # The evaluator makes version 0, and where clients are enrolled it has to be, too.
        evaluator = local_parties.enrol_evaluator(store, base, keys)
        roles[identifiers.EVALUATOR] = LocalWorker(identifiers.EVALUATOR, evaluator)
        sites = local_parties.enrol(store, base, names, keys)
    return roles | {name: LocalWorker("client", site) for name, site in sites.items()}
