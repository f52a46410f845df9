"""
Deleting a run: every key on both servers, every job, and this machine's checkpoints.

A tombstone stays for a day: what a client sends that slept through all of it is removed, too. The
name is free at once; a run of the same name has another run id and meets nothing of the old one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import cast

from redis.client import Pipeline

from fl_queue.common import safe_json, schema
from fl_queue.common.paths import below
from fl_queue.common.safe_json import dumps
from fl_queue.errors import MessageError, RunStateError
from fl_queue.models import checkpoint, host_cache, update_archive
from fl_queue.protocol import identifiers
from fl_queue.store import RunState, Store, ask_many, keys_like, keyspace, queries, unlink_all
from fl_queue.store.jobs import dispatch
from fl_queue.store.jobs.dispatch import JobTicket

#: How long a tombstone is kept, and for how long everything is looked through again.
TOMBSTONE_S = 24 * 3600.0
LOOKED_AGAIN_S = 600.0


def delete(store: Store, state: RunState, state_dir: Path) -> None:
    """
    Delete a run that is not training. Killed half way, the healer goes on with it.

    Raises:
        RunStateError: It is training; cancel it first.
    """
    run = state.run_id

    def body(pipe: Pipeline) -> Callable[[], None] | None:
        refuse_training(state.name, pipe.hget(keyspace.run(run), "state") == b"training")
        named = pipe.hget(keyspace.RUNS, state.name) == run.encode()
        heirs = {
            origin: [other for other in _heirs(raw) if other != run]
            for origin in state.restored_from
            if (raw := pipe.hget(keyspace.RESTORED, origin))
        }

        def write() -> None:
            if named:
                pipe.hdel(keyspace.RUNS, state.name)
            for origin, others in heirs.items():
                if others:
                    pipe.hset(keyspace.RESTORED, origin, dumps(others))
                else:
                    pipe.hdel(keyspace.RESTORED, origin)
            pipe.zadd(keyspace.DELETED, {run: store.control.now()})

        return write

    watched = [keyspace.RUNS, keyspace.run(run), keyspace.RESTORED]
    while not store.control.transact(watched, body):
        pass
    _remove(store, [run], state_dir)
    store.control.enrolments.pins.forget(run)


def refuse_training(name: str, training: bool) -> None:
    """Refuse to delete a run that is training. Raises RunStateError."""
    if training:
        raise RunStateError(name, f"is training; stop it first with `fl-queue cancel {name}`")


def _heirs(raw: str | bytes) -> list[str]:
    """The runs that were restored from a run. Raises MessageError."""
    found = safe_json.loads(raw, "the runs restored from one")
    if not schema.fits(found, list[str]):
        raise MessageError("not the runs restored from one: no list of run ids")
    return [identifiers.parse_run_id(run) for run in found]


def sweep(store: Store, state_dir: Path) -> None:
    """Remove keys that were written for deleted runs since; forget tombstones after a day."""
    now = store.control.now()
    tombs = _tombs(store)
    _remove(
        store,
        [run for run, deleted_at in tombs.items() if now - deleted_at < LOOKED_AGAIN_S],
        state_dir,
    )
    for run, deleted_at in tombs.items():
        store.data.results.forget(run)
        if now - deleted_at > TOMBSTONE_S:
            store.control.redis.zrem(keyspace.DELETED, run)


def _tombs(store: Store) -> dict[str, float]:
    """Run id -> time of its deletion, without entries that are not valid."""
    found = cast(
        list[tuple[bytes, float]],
        store.control.redis.zrange(keyspace.DELETED, 0, -1, withscores=True),
    )
    # The transaction that writes a tombstone removes the name: a run with a name was not deleted.
    living = set(store.control.runs.names().values())

    def parse(raw: bytes, at: float) -> tuple[str, float]:
        run = identifiers.parse_run_id(raw)
        if run in living:
            raise MessageError(f"run {run} is there, and was not deleted")
        return run, at

    return store.control.unreadable.each(keyspace.DELETED, found, parse)


def sweep_here(store: Store, state_dir: Path) -> None:
    """Remove what this machine keeps of runs that were deleted, wherever, and models it has fetched of runs that are over."""
    for run in _tombs(store):
        forget_here(state_dir, run)
    # Of an unknown run, too: what is missing is fetched once more.
    host_cache.sweep(host_cache.cache_folder(state_dir), partial(queries.is_over, store.control))


def _remove(store: Store, runs: Sequence[str], state_dir: Path) -> None:
    """Remove all that there is of some runs: each server's keys are looked through once for all of them."""
    if not runs:
        return
    # The runs' hashes go first: from then on every script refuses to write for these runs.
    store.control.redis.unlink(*(keyspace.run(run) for run in runs))
    part = runs[0] if len(runs) == 1 else ""
    ours = [
        pattern
        for run in runs
        for pattern in (f"{keyspace.run(run)}:*", keyspace.client_told("*", run), f"rq:*:*_{run}_*")
    ]
    keys = keys_like(store.control.redis, ours, part)
    dispatch.forget_all(store, _tickets(store, runs, keys))
    unlink_all(store.control.redis, keys)
    blobs = [
        pattern
        for run in runs
        for pattern in (
            f"{keyspace.run(run)}:*",
            keyspace.model_blob(run, "*"),
            keyspace.update_blob("*", run, "*"),
            keyspace.partial_blob(run, "*"),
        )
    ]
    unlink_all(store.data.redis, keys_like(store.data.redis, blobs, part))
    for run in runs:
        forget_here(state_dir, run)


def forget_here(state_dir: Path, run: str) -> None:
    """Remove what this machine keeps of a run: checkpoints, accepted updates, fetched models."""
    for folder in (
        checkpoint.checkpoint_folder(state_dir, run),
        below(host_cache.cache_folder(state_dir), run),
    ):
        shutil.rmtree(folder, ignore_errors=True)
    update_archive.forget(state_dir, run)


def _tickets(store: Store, runs: Sequence[str], keys: Sequence[bytes]) -> list[JobTicket]:
    """The newest jobs of some runs. Args: ``keys``: theirs on the control server."""
    of_rounds = [key for key in keys if re.fullmatch(rb"flq:\{[^}]*\}:round:\d+:jobs", key)]
    found = ask_many(store.control.redis, of_rounds, lambda pipe, key: pipe.hgetall(key))
    tickets = []
    for raw in (raw for jobs in found for raw in jobs.values()):
        with suppress(MessageError):  # What is no ticket names no job.
            tickets.append(JobTicket.from_dict(safe_json.loads(raw, "a ticket")))
    for run in runs:
        tickets += dispatch.evaluation_tickets(store, run).values()
    return tickets
