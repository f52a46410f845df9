"""
Runs of one config that differ in their seed, and maybe in a few fields: one after the other.

Each is a run like any other, whose name says what is its own. What is done already is not done
again, so a sweep that was cut off goes on when it is begun again.
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
from fl_queue.common.options import toml_value
from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig, changed_fields
from fl_queue.coordinator.operations import controls
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.errors import ConfigError, RunFailed
from fl_queue.experiments import launching
from fl_queue.protocol import identifiers
from fl_queue.reporting import progress
from fl_queue.store import PEOPLE, Store, keyspace

_EACH = re.compile(r"([a-z]+\.[A-Za-z_0-9]+)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class SweepRun:
    """
    One run of a sweep.

    Args:
        name: Of the run.
        settings: What is its own, as ``section.key=value``.
        config: Whole.
    """

    name: str
    settings: tuple[str, ...]
    config: RunConfig


def members(
    source: str, name: str, seeds: int, each: Sequence[str], overrides: tuple[str, ...] = ()
) -> list[SweepRun]:
    """
    The runs of a sweep, seeds last: ``NAME-s0``, ``NAME-learning-rate-0-1-s0``, ...

    Args:
        source: As for ``loading.load``.
        name: What the names of all begin with.
        seeds: So many, from ``run.seed`` on.
        each: ``section.key=a,b``: a run for each of these values, and for each combination.
        overrides: Of all of them.

    Raises:
        ConfigError: A field or a value that cannot be used, in any of them; or a name.
    """
    first = loading.load(source, overrides).run.seed
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
        if not identifiers.is_name(made.name):
            raise ConfigError(
                "--run",
                f"{made.name!r} is not a run name; use letters, digits and dashes, at most 63",
            )
        if made.name in seen:
            raise ConfigError(
                "--set-each", f"two runs would be called {made.name}; leave one of the values out"
            )
        seen[made.name] = made
    return list(seen.values())


def _choices(text: str) -> list[str]:
    """``section.key=a,b`` as ``section.key=a`` and ``section.key=b``."""
    match = _EACH.fullmatch(text)
    field, listed = (match[1], match[2]) if match else ("", "")
    if field == "run.seed" or not match:
        reason = "is what --seeds is for" if match else "is not section.key=value,value"
        raise ConfigError("--set-each", f"{text!r} {reason}, such as train.learning_rate=0.1,0.2")
    try:
        values = [toml_value(value) for value in tomllib.loads(f"values = [{listed}]")["values"]]
    except tomllib.TOMLDecodeError:
        values = [value.strip() for value in listed.split(",")]  # Bare words, as --set takes them.
    return [f"{field}={value}" for value in values]


def _label(setting: str) -> str:
    """What a setting adds to a run's name: ``learning-rate-0-1``."""
    field, _, value = setting.partition("=")
    words = f"{field.partition('.')[2]}-{value}"
    return re.sub(r"[^A-Za-z0-9]+", "-", words).strip("-")


def check(store: Store, wanted: Sequence[SweepRun]) -> None:
    """
    Refuse a sweep of which a run's name belongs to a run with another config.

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
    tell: Callable[[int, SweepRun, str], None],
) -> tuple[Store, list[str]]:
    """
    Have every run done: begun, continued, waited for, or left as it is when it is completed.

    Args:
        ours: Ends what was started: private servers, the workers that simulations lack.
        site: Where Redis and this machine's state are.
        wanted: One or more.
        console: Shows each run's progress.
        tell: Called with the index of a run, the run, and what is about to be done with it.

    Returns:
        Both Redis roles, and the names of the runs that failed.

    Raises:
        ConfigError: A run of that name has another config, or a run cannot be begun.
        WorkerDied: A worker could not start.
        StoreUnavailable: Redis is not reachable.
    """
    launching.start_servers(ours, site, wanted[0].config, stays=True)
    store = ours.enter_context(site.store(PEOPLE))
    check(store, wanted)
    virtual = [member.config for member in wanted if member.config.is_simulation]
    if virtual and not all(_is_completed(store, member) for member in wanted):
        launching.start_workers(ours, store, site, virtual, console)
    failed = []
    for index, member in enumerate(wanted):
        try:
            _do(store, member, site.state_dir, console, partial(tell, index, member))
        except RunFailed as exc:
            console.print(f"{exc}", markup=False, highlight=False, soft_wrap=True)
            failed.append(member.name)
    return store, failed


def _is_completed(store: Store, member: SweepRun) -> bool:
    known = store.control.runs.id_of(member.name)
    state = store.control.runs.get(known) if known else None
    return state is not None and state.state == "completed"


def _do(
    store: Store, member: SweepRun, state_dir: Path, console: Console, tell: Callable[[str], None]
) -> None:
    """One run, until it is completed and tested. Raises RunFailed."""
    known = store.control.runs.id_of(member.name)
    state = store.control.runs.get(known) if known else None
    if state is None:
        tell("begins")
        run = launching.begin(store, member.name, member.config)
    elif state.state == "completed":
        tell(f"is completed at version {state.version}")
        return
    elif state.state in controls.RESUMABLE:
        tell(f"was {state.state}, goes on from version {state.version or 0}")
        run = state.run_id
        controls.resume(store, run, state_dir)
    else:
        tell("is training, goes on")
        run = state.run_id
    since = store.control.events.last_id(keyspace.events(run)) if known else "0-0"
    lifecycle.advance(store, run)
    progress.follow(store, run, console, since=since)
    progress.await_evaluations(store, run, console)
    runs.raise_unless_completed(runs.find_run(store, run))
