"""
Train one config with several seeds and values of fields, one run after the other.

Each is an ordinary run, whose name has its seed and values. Completed runs are not repeated, so an
interrupted sweep continues when it is started again.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from fl_queue.client.site import WorkerSettings
from fl_queue.common.toml_text import value_text
from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig, changed_fields
from fl_queue.coordinator.operations import controls
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.errors import ConfigError, RunFailed
from fl_queue.experiments import launching
from fl_queue.protocol import identifiers
from fl_queue.protocol.state import RunPhase
from fl_queue.reporting import progress
from fl_queue.store import INTERACTIVE, Store, keyspace

_EACH = re.compile(r"([a-z]+\.[A-Za-z_0-9]+)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class SweepRun:
    """
    One run of a sweep.

    Args:
        name: Name of the run.
        settings: Its seed and values, as ``section.key=value``.
        config: The complete config.
    """

    name: str
    settings: tuple[str, ...]
    config: RunConfig


def members(
    source: str, name: str, seeds: int, each: Sequence[str], overrides: tuple[str, ...] = ()
) -> list[SweepRun]:
    """
    List the runs of a sweep, seeds last: ``NAME-s0``, ``NAME-learning-rate-0-1-s0``, ...

    Args:
        source: As for ``loading.load``.
        name: First part of all names.
        seeds: Number of seeds, from ``run.seed`` on.
        each: ``section.key=a,b``: a run for each of these values, and for each combination.
        overrides: For all of them.

    Raises:
        ConfigError: A field or a value that cannot be used, in any of them; or a name; or it is an analysis, which
            has no seed.
    """
    loaded = loading.load(source, overrides)
    if loaded.analysis is not None:
        task = loaded.run.task
        raise ConfigError("run.task", f"{task} trains no model; see `fl-queue {task} --help`")
    first = loaded.run.seed
    choices = [_choices(text) for text in each]
    seen: dict[str, SweepRun] = {}
    # Seeds last, so that those of one setting follow each other.
    chosen = itertools.product(itertools.product(*choices), range(first, first + seeds))
    for settings, seed in chosen:
        given = (*settings, f"run.seed={seed}")
        made = SweepRun(
            "-".join([name, *map(_label, settings), f"s{seed}"]),
            given,
            loading.load(source, (*overrides, *given)),
        )
        identifiers.check_run_name(made.name)
        if made.name in seen:
            raise ConfigError(
                "--set-each", f"two runs would be called {made.name}; leave one of the values out"
            )
        seen[made.name] = made
    return list(seen.values())


def _choices(text: str) -> list[str]:
    """Split ``section.key=a,b`` into ``section.key=a`` and ``section.key=b``."""
    match = _EACH.fullmatch(text)
    field, listed = (match[1], match[2]) if match else ("", "")
    if field == "run.seed" or not match:
        reason = "is what --seeds is for" if match else "is not section.key=value,value"
        raise ConfigError("--set-each", f"{text!r} {reason}, such as train.learning_rate=0.1,0.2")
    try:
        values = [value_text(value) for value in tomllib.loads(f"values = [{listed}]")["values"]]
    except tomllib.TOMLDecodeError:
        values = [value.strip() for value in listed.split(",")]  # Bare words, as --set takes them.
    return [f"{field}={value}" for value in values]


def _label(setting: str) -> str:
    """Make the part of a run's name for a setting: ``learning-rate-0-1``."""
    field, _, value = setting.partition("=")
    words = f"{field.partition('.')[2]}-{value}"
    return re.sub(r"[^A-Za-z0-9]+", "-", words).strip("-")


def check(store: Store, wanted: Sequence[SweepRun]) -> None:
    """
    Refuse a sweep if one of its names is taken by a run with another config.

    Raises:
        ConfigError: One has another config; names the field.
    """
    for member in wanted:
        known = store.control.runs.id_of(member.name)
        if known is None:
            continue
        recorded = runs.current_config(store, known).record()
        for field in changed_fields(recorded, member.config.record()):
            raise ConfigError(
                field,
                f"is another in run {member.name}, which is there already; set it back, or give the "
                "sweep a name of its own with --run",
            )


def sweep(
    ours: ExitStack,
    site: WorkerSettings,
    wanted: Sequence[SweepRun],
    console: Console,
    on_run: Callable[[int, SweepRun, str], None],
) -> tuple[Store, list[str]]:
    """
    Start, continue or wait for each run that is not completed.

    Args:
        ours: Stops the servers and workers that were started for simulations.
        site: URLs of Redis, and this machine's state folder.
        wanted: One or more.
        console: Shows each run's progress.
        on_run: Called before each run with its index, the run, and the action in words.

    Returns:
        Both Redis roles, and the names of the runs that failed.

    Raises:
        ConfigError: A run of that name has another config, or a run cannot be begun.
        WorkerDied: A worker could not start.
        StoreUnavailable: Redis is not reachable.
    """
    launching.start_servers(ours, site, wanted[0].config, stays=True)
    store = ours.enter_context(site.store(INTERACTIVE))
    check(store, wanted)
    virtual = [member.config for member in wanted if member.config.is_simulation]
    if virtual and not all(_is_completed(store, member) for member in wanted):
        launching.start_workers(ours, store, site, virtual, console)
    failed = []
    for index, member in enumerate(wanted):
        try:
            _train(store, member, site.state_dir, console, partial(on_run, index, member))
        except RunFailed as exc:
            console.print(f"{exc}", markup=False, highlight=False, soft_wrap=True)
            failed.append(member.name)
    return store, failed


def _is_completed(store: Store, member: SweepRun) -> bool:
    state = launching.existing_run(store, member.name)
    return state is not None and state.state == RunPhase.completed


def _train(
    store: Store, member: SweepRun, state_dir: Path, console: Console, on_run: Callable[[str], None]
) -> None:
    """Train one run until it is completed and tested. Raises RunFailed."""
    state = launching.existing_run(store, member.name)
    if state is None:
        on_run("begins")
        run = launching.begin(store, member.name, member.config)
    elif state.state == RunPhase.completed:
        on_run(f"is completed at version {state.version}")
        return
    elif state.state in controls.RESUMABLE:
        on_run(f"was {state.state}, goes on from version {state.version or 0}")
        run = state.run_id
        controls.resume(store, run, state_dir)
    else:
        on_run("is training, goes on")
        run = state.run_id
    since = store.control.events.last_id(keyspace.events(run)) if state else "0-0"
    lifecycle.advance(store, run)
    progress.follow(store, run, console, since=since)
    progress.await_evaluations(store, run, console)
    runs.raise_unless_completed(runs.find_run(store, run))
