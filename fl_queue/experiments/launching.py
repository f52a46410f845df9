"""Start or continue a run from a config, for ``start-round``, the web page and the Python API."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from fl_queue.client.site import WorkerSettings
from fl_queue.config.run_config import RunConfig
from fl_queue.config.task_catalog import TASKS
from fl_queue.coordinator.rounds import branching, lifecycle, runs
from fl_queue.errors import ConfigError, UnknownVersion
from fl_queue.experiments import local_workers
from fl_queue.models import selection
from fl_queue.models.initial import publish_initial
from fl_queue.models.model_store import ModelStore
from fl_queue.store import INTERACTIVE, UPLOADS, RunState, Store, keyspace
from fl_queue.store.embedded import server_pair


@dataclass(frozen=True)
class LaunchedRun:
    """
    A run that was started or continued.

    Args:
        store: Both Redis roles.
        run: Its run id.
        since: Id of the last event before the start.
        is_alone: Whether its servers end with this process.
    """

    store: Store
    run: str
    since: str
    is_alone: bool


def default_run_name(config: str) -> str:
    """Make the name of a run from that of its config."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", Path(config).stem)


def existing_run(store: Store, name: str) -> RunState | None:
    """Find a run by name; None if there is none."""
    known = store.control.runs.id_of(name)
    return store.control.runs.get(known) if known else None


def begin(
    store: Store,
    name: str,
    config: RunConfig,
    count: int | None = None,
    from_version: int | str | None = None,
) -> str:
    """
    Create a run, or continue it from its newest version; ``lifecycle.advance`` opens its round.

    Args:
        count: Rounds of training from here on; None: ``run.rounds``.
        from_version: An older version to go on from, by its number or tag; None: the newest.

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
            path, model = Path(config.model.initial), config.model
            initial = publish_initial(slow, path, config.redis.chunk_bytes, model)
    version = None
    if from_version is not None:
        state = runs.find_run(store, name)
        runs.check_goes_back(state, config)
        version = selection.chosen_version(store, state, config, from_version, best=False)
        check_there(store, state, version, branching.needs_state(config))
    rounds = count or config.run.rounds
    return runs.start_run(store, name, config, rounds, initial, version).run_id


def check_there(store: Store, state: RunState, version: int, with_state: bool = True) -> None:
    """
    Check that a version can be trained from: it is on this machine's disk, or on the data server.

    Args:
        with_state: And what the strategy keeps with it.

    Raises:
        UnknownVersion: There is no such version, or this machine does not find its content.
    """
    config = runs.current_config(store, state.run_id)
    assert store.state_dir is not None  # A command's connection has one.
    models = ModelStore(store, state.run_id, config.redis.chunk_bytes, store.state_dir)
    if not models.is_there(version, with_state):
        raise UnknownVersion(
            state.name,
            version,
            "has been pruned (model.keep_versions), or its checkpoint is on another machine: run this on the "
            "aggregator's, or name its folder with --state-dir",
        )


def launch(
    ours: ExitStack,
    site: WorkerSettings,
    name: str,
    config: RunConfig,
    count: int | None,
    *,
    stays: bool,
    console: Console,
    from_version: int | str | None = None,
) -> LaunchedRun:
    """
    Start or continue a run and open its round; start the servers and workers that a simulation lacks.

    Args:
        ours: Stops those servers and workers.
        site: URLs of Redis, and this machine's state folder.
        count: Rounds of training from here on; None: ``run.rounds``.
        stays: Whether the caller waits until the run ends; else no worker is started.
        from_version: An older version to go on from; None: the newest.

    Raises:
        ConfigError: As ``begin``; or a simulation would need servers that end at once.
        RunStateError: The run is training already, and is no simulation.
        WorkerDied: A worker could not start.
        StoreUnavailable: Redis is not reachable.
    """
    is_alone = start_servers(ours, site, config, stays)
    store = ours.enter_context(site.store(INTERACTIVE))
    since = "0-0"
    if known := store.control.runs.id_of(name):
        since = store.control.events.last_id(keyspace.events(known))
    run = _training(store, name, config)
    if run:
        console.print(f"Run {name} is training: going on with it.", highlight=False, soft_wrap=True)
    run = run or begin(store, name, config, count, from_version)
    if stays and config.is_simulation:
        start_workers(ours, store, site, [config], console)
    lifecycle.advance(store, run)
    return LaunchedRun(store, run, since, is_alone)


def _training(store: Store, name: str, config: RunConfig) -> str | None:
    """Find the id of a simulation that still trains because the process that started it was killed."""
    state = existing_run(store, name)
    if state is None or not state.active or not config.is_simulation:
        return None
    if not runs.current_config(store, state.run_id).is_simulation:
        return None
    return state.run_id


def start_servers(ours: ExitStack, site: WorkerSettings, config: RunConfig, stays: bool) -> bool:
    """
    Start private servers for a simulation without servers; returns whether that was needed.

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
    Let a worker on this machine read the data folders of these configs, with any number of examples.

    If they name the same folder it becomes the worker's own, so another run cannot choose another one.
    """
    site = replace(site, min_examples=1)
    folders = {config.data.dir for config in configs}
    if len(folders) > 1:
        return replace(site, data_from_config=True)
    folder = folders.pop() if folders else ""
    return replace(site, data_dir=str(Path(folder).absolute()) if folder else "")


def allowed(configs: Sequence[RunConfig]) -> tuple[str, ...]:
    """List the tasks that workers for these runs may import: those of the configs, and the built-in ones."""
    own = {code for config in configs for code in config.own_code()}
    return (*sorted(own), *TASKS) if own else ()


def start_workers(
    ours: ExitStack,
    store: Store,
    site: WorkerSettings,
    configs: Sequence[RunConfig],
    console: Console,
) -> None:
    """
    Start the workers that simulations lack.

    Args:
        ours: Stops them.
        configs: Configs of all runs that these workers serve.

    Raises:
        WorkerDied: One could not start.
    """
    # The configs come from the user of this machine, so their data, tasks and strategies are allowed.
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
