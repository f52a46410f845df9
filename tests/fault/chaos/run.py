"""
A long run while a seeded walk kills and stops every kind of process, and what must hold after it.

    python -m tests.fault.chaos --minutes 3 --seed 1 [--clients 3] [--mode async]

A federation of real processes trains round after round; the walk (``plan``, ``walk``)
hits its parts and pushes duplicate, late, stale and malformed elements. When the time is up
everything is mended, the run must end by itself, and an undisturbed run of the same name and number
of rounds is made to compare with (``checks``). The exit status is 1 when a check fails; the
folder with all logs is kept then.

Which updates meet in an asynchronous round depends on when they come, so ``--mode async`` compares no bits
with an undisturbed run: each version is made again from what was kept (``verify``), no job is merged twice,
and no client loses what it keeps.

A walk is a function of its seed; how it meets the run is not.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from fl_queue.common.safe_json import dumps
from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.operations import verification
from fl_queue.store import RunState, keyspace
from fl_queue.store.embedded.server_pair import start
from tests.fault.chaos import checks
from tests.fault.chaos.arena import SETTLE_S, Arena
from tests.fault.chaos.hits import table
from tests.fault.chaos.walk import NAME, ROUNDS_A_START, Outcome, Walk, print_progress
from tests.support.federation import QUICK

CONFIG = "mnist-3v7"
WARM = "warm"
EVENTS_SHOWN = 40
#: Findings of one check; they follow from the first ones.
LINES_SHOWN = 5
#: Columns of the table in a file or a pipe.
WIDTH = 110
#: Time for processes to end after everything has been stopped, seconds.
STOPPED_S = 10.0
_MARK = "FLQ_CHAOS"
#: Clients keep something from job to job, of both kinds.
ASYNC = (
    "round.mode=async", "round.cohort=1.0", "round.buffer=2", "round.max_staleness=20",
    "model.keep_updates=true", "model.keep_versions=0", 'model.private=["bias"]',
    "update.codec=topk", "update.fraction=0.1", "update.error_feedback=true",
)  # fmt: skip


def overrides(seed: int, clients: int, mode: str = "sync") -> tuple[str, ...]:
    """
    The config of both runs.

    Nothing may be abandoned: a round that is tried again has another number, so other bits. With an
    odd seed updates travel in chunks, with an even one in the results list itself.
    """
    inline_bytes = 0 if seed % 2 else 1048576
    return (
        *QUICK,
        *(ASYNC if mode == "async" else (f"round.cohort={clients}",)),
        "round.deadline_s=3600",
        "train.epochs=100",
        f"redis.inline_bytes={inline_bytes}",
    )


def run_chaos(
    minutes: float, seed: int, folder: Path, clients: int = 3, mode: str = "sync"
) -> Outcome:
    """
    Walk, mend, compare, and look for what is left.

    Args:
        minutes: Of the walk alone; starting, ending and the undisturbed run come on top.
        seed: Of the walk; not of the training.
        folder: For state and logs; must exist.
        mode: ``round.mode``.
    """
    outcome = Outcome(seed, folder, mode)
    with _marked() as mark:
        with start(folder / "state") as redis:
            print_progress(f"seed {seed}: starting a federation of {clients} clients in {folder}")
            arena = Arena(redis, folder, clients)
            try:
                _walk_and_judge(arena, outcome, minutes)
            finally:
                arena.close()
        outcome.failures += checks.processes_left(mark, folder, STOPPED_S)
    return outcome


@contextmanager
def _marked() -> Iterator[str]:
    """Everything that is started meanwhile carries the mark in its environment."""
    os.environ[_MARK] = secrets.token_hex(8)
    try:
        yield f"{_MARK}={os.environ[_MARK]}"
    finally:
        del os.environ[_MARK]


def _walk_and_judge(arena: Arena, outcome: Outcome, minutes: float) -> None:
    chosen = overrides(outcome.seed, len(arena.clients), outcome.mode)
    loaded = loading.load(CONFIG, chosen)
    warm = arena.repeat(WARM, loaded, 1, 1)
    quiet = checks.common_traces(arena.store.control.redis, [warm])
    walk = Walk(arena, outcome, CONFIG, chosen)
    try:
        walk.run(minutes)
        if walk.ended:
            _judge(arena, walk, outcome, loaded, [warm], quiet)
    finally:
        walk.stop()
        outcome.rejected = walk.watch.rejected
        outcome.events = [
            f"{time.strftime('%H:%M:%S', time.localtime(at_ms / 1000))} {dumps(event)}"
            for at_ms, event in walk.watch.events[-EVENTS_SHOWN:]
        ]


def _judge(
    arena: Arena,
    walk: Walk,
    outcome: Outcome,
    loaded: RunConfig,
    others: list[str],
    quiet: Counter[str],
) -> None:
    control, found = arena.store.control, outcome.failures
    state = walk.watch.run
    if state is None or state.version is None or state.state != "completed":
        found.append(f"the run is {state.state if state else 'not there'}: nothing to compare")
        return
    run, outcome.versions = state.run_id, state.version
    arena.settle(run)
    found += arena.leftovers(run)
    # The name is given free for the calm run: seeds come from the name, not the run id.
    control.redis.hdel(keyspace.RUNS, NAME)
    print_progress(f"calm: the same {state.version} rounds, undisturbed")
    calm = arena.repeat(NAME, loaded, ROUNDS_A_START, state.version // ROUNDS_A_START)
    opened = [event["round"] for _, event in walk.watch.events if event["event"] == "round_opened"]
    history = control.history.records(run)
    undisturbed = control.history.records(calm)
    numbers = [number for number in opened if number]
    for lines in (
        checks.one_record_per_round(numbers, state.round, history),
        checks.nothing_evaluated_twice(history, "the disturbed run"),
        checks.nothing_evaluated_twice(undisturbed, "the calm run"),
        checks.nobody_trained_again(walk.watch.trainings, walk.watch.answered),
        *_merged_as_it_should(arena, state, calm, outcome.mode),
        _traces_left(arena, run, calm, others, quiet),
    ):
        found += lines[:LINES_SHOWN]
        if len(lines) > LINES_SHOWN:
            found.append(f"... and {len(lines) - LINES_SHOWN} more like this")


def _merged_as_it_should(arena: Arena, state: RunState, calm: str, mode: str) -> list[list[str]]:
    """What was merged, and into which versions: those of the calm run, or of the records."""
    control, run = arena.store.control, state.run_id
    history = control.history.records(run)
    if mode == "async":
        verdicts = verification.verify(arena.store, state, arena.redis.state_dir)
        client_events = [event for client in arena.clients for event in arena.client_events(client)]
        return [
            checks.no_job_merged_twice(history),
            checks.versions_made_again(verdicts),
            checks.no_state_missing(client_events, run),
        ]
    return [
        checks.nothing_merged_twice(history, control.history.records(calm), arena.clients),
        checks.same_bits(control.versions.all(run), control.versions.all(calm)),
    ]


def _traces_left(
    arena: Arena, run: str, calm: str, others: list[str], quiet: Counter[str]
) -> list[str]:
    """What is left on the control server when it has had time to be swept."""
    redis = arena.store.control.redis
    until = time.monotonic() + SETTLE_S
    while True:
        left = checks.more_than(
            checks.traces(redis, run), checks.traces(redis, calm), "the calm run"
        )
        left += checks.more_than(
            checks.common_traces(redis, [run, calm, *others]), quiet, "a quiet federation"
        )
        if not left or time.monotonic() > until:
            return left
        time.sleep(1.0)


def print_outcome(outcome: Outcome) -> None:
    """The table on standard output; on a failure, what is needed to find it."""
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table(outcome.hits))
    console.print(
        f"seed {outcome.seed}: {outcome.versions} versions, {len(outcome.hits)} hits, "
        f"{outcome.missed} without a victim; sent {dict(outcome.sent)}, "
        f"rejected {dict(outcome.rejected)}"
    )
    if not outcome.failures:
        console.print("every check holds")
        return
    console.print(f"last events of the run (all logs: {outcome.folder}):", markup=False)
    for line in outcome.events:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    for line in outcome.failures:
        console.print(f"FAILED (seed {outcome.seed}): {line}", markup=False, soft_wrap=True)
