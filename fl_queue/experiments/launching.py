"""
Beginning a run from a config, for whoever asks: ``start-round``, the web page, a notebook.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from fl_queue.client.site import WorkerSettings
from fl_queue.config.run_config import RunConfig
from fl_queue.config.task_catalog import TASKS, own_code
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.errors import ConfigError
from fl_queue.experiments import local_workers
from fl_queue.models.initial import publish_initial
from fl_queue.store import PEOPLE, UPLOADS, Store, keyspace
from fl_queue.store.embedded import server_pair


@dataclass(frozen=True)
class LaunchedRun:
    """
    A run that has been begun, or gone on with.

    Args:
        store: Both Redis roles.
        run: Its run id.
        since: Id of the last event before.
        is_alone: Whether its servers end with the one who began it.
    """

    store: Store
    run: str
    since: str
    is_alone: bool


def default_run_name(config: str) -> str:
    """The name of a run that was given none: that of its config, as a run may be called."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", Path(config).stem)


def begin(store: Store, name: str, config: RunConfig, count: int | None = None) -> str:
    """
    Create the run, or continue it from its newest version; ``lifecycle.advance`` opens its round.

    Args:
        count: Rounds to commit from here on; None: ``run.rounds``.

    Returns:
        Its run id.

    Raises:
        ConfigError: The name is not allowed, or the config changes a field that a run keeps.
        RunStateError: The run is training already.
        DataError: ``model.initial`` cannot be read.
    """
    initial = None
    if config.model.initial:
        with store.with_timeouts(UPLOADS) as slow:
            initial = publish_initial(slow, Path(config.model.initial), config.redis.chunk_bytes)
    return runs.start_run(store, name, config, count or config.run.rounds, initial).run_id


def launch(
    ours: ExitStack,
    site: WorkerSettings,
    name: str,
    config: RunConfig,
    count: int | None,
    *,
    stays: bool,
    console: Console,
) -> LaunchedRun:
    """
    Begin or continue a run and open its round; start what a simulation lacks.

    Args:
        ours: Ends what was started: the private servers, the workers.
        site: Where Redis and this machine's state are.
        count: Rounds to commit from here on; None: ``run.rounds``.
        stays: Whether whoever asks stays until the run has ended; else no worker is started.

    Raises:
        ConfigError: As ``begin``; or a simulation would need servers that end at once.
        RunStateError: The run is training already, and is no simulation.
        WorkerDied: A worker could not start.
        StoreUnavailable: Redis is not reachable.
    """
    is_alone = start_servers(ours, site, config, stays)
    store = ours.enter_context(site.store(PEOPLE))
    since = "0-0"
    if known := store.control.runs.id_of(name):
        since = store.control.events.last_id(keyspace.events(known))
    run = _training(store, name, config)
    if run:
        console.print(f"Run {name} is training: going on with it.", highlight=False, soft_wrap=True)
    run = run or begin(store, name, config, count)
    if stays and config.is_simulation:
        start_workers(ours, store, site, [config], console)
    lifecycle.advance(store, run)
    return LaunchedRun(store, run, since, is_alone)


def _training(store: Store, name: str, config: RunConfig) -> str | None:
    """A simulation that is training, because the one who began it was killed: its id."""
    known = store.control.runs.id_of(name)
    state = store.control.runs.get(known) if known else None
    if state is None or not state.active or not config.is_simulation:
        return None
    if not runs.current_config(store, state.run_id).is_simulation:
        return None
    return state.run_id


def start_servers(ours: ExitStack, site: WorkerSettings, config: RunConfig, stays: bool) -> bool:
    """
    Start private servers for a simulation that has none; returns whether that was needed.

    Raises:
        ConfigError: They would end at once.
    """
    if not config.is_simulation or site.url or server_pair.running(site.state_dir):
        return False
    if not stays:
        raise ConfigError(
            "--no-wait",
            "the private servers and workers of this simulation would end with this command; "
            "leave it out, or name servers with FLQ_REDIS_URL",
        )
    ours.enter_context(server_pair.start(site.state_dir))
    return True


def with_data(site: WorkerSettings, configs: Sequence[RunConfig]) -> WorkerSettings:
    """
    A site of whoever begins these runs, which reads the folders that their configs name, of any size.

    Where they agree on one it is the site's own, so that another run on the same servers chooses none.
    """
    site = replace(site, min_examples=1)
    folders = {config.data.dir for config in configs}
    if len(folders) > 1:
        return replace(site, data_from_config=True)
    folder = folders.pop() if folders else ""
    return replace(site, data_dir=str(Path(folder).absolute()) if folder else "")


def allowed(configs: Sequence[RunConfig]) -> tuple[str, ...]:
    """What workers of whoever begins these runs let in: their own tasks, and each built-in one."""
    own = {code for config in configs for code in own_code(config.run.task, config.task)}
    return (*sorted(own), *TASKS) if own else ()


def start_workers(
    ours: ExitStack,
    store: Store,
    site: WorkerSettings,
    configs: Sequence[RunConfig],
    console: Console,
) -> None:
    """
    Start the roles that simulations lack.

    Args:
        ours: Stops them.
        configs: All that these workers will serve.

    Raises:
        WorkerDied: One could not start.
    """
    # Whoever begins the runs names the data, the tasks and the strategies: that lets them in.
    site = with_data(site, configs)
    strategies = {config.aggregation.strategy for config in configs}
    site = replace(
        site,
        allow=allowed(configs),
        strategy_allow=tuple(sorted(name for name in strategies if ":" in name)),
    )
    wanted: dict[str, local_workers.LocalWorker] = {}
    for config in configs:
        for role, worker in local_workers.missing_workers(store, config, site).items():
            if role not in wanted or wanted[role].processes < worker.processes:
                wanted[role] = worker
    ours.enter_context(local_workers.workers(store, wanted, site.state_dir / "logs", console))
