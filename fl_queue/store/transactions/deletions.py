"""Deletion of runs: the tombstone, and the removal of every key on both servers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import cast

from redis.client import Pipeline

from fl_queue.common import safe_json, schema
from fl_queue.common.safe_json import dumps
from fl_queue.errors import MessageError
from fl_queue.protocol import identifiers
from fl_queue.protocol.state import RunPhase
from fl_queue.store import RunState, Store, ask_many, keys_like, keyspace, unlink_all
from fl_queue.store.jobs import dispatch
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.store.key_table import patterns_of_run


def mark_deleted(store: Store, state: RunState, check: Callable[[bool], None]) -> None:
    """
    Remove a run's name and write its tombstone, in one transaction.

    Args:
        check: Called with whether the run is training; raises to refuse.
    """
    run = state.run_id

    def body(pipe: Pipeline) -> Callable[[], None] | None:
        check(pipe.hget(keyspace.run(run), "state") == RunPhase.training.encode())
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


def _heirs(raw: str | bytes) -> list[str]:
    """Parse the runs that were restored from one. Raises MessageError."""
    found = safe_json.loads(raw, "the runs restored from one")
    if not schema.fits(found, list[str]):
        raise MessageError("not the runs restored from one: no list of run ids")
    return [identifiers.parse_run_id(run) for run in found]


def tombstones(store: Store) -> dict[str, float]:
    """Run id -> when it was deleted; other entries are left out as unreadable."""
    found = cast(
        list[tuple[bytes, float]],
        store.control.redis.zrange(keyspace.DELETED, 0, -1, withscores=True),
    )
    # The transaction that writes the tombstone removes the name: a run that has one was not deleted.
    living = set(store.control.runs.names().values())

    def parse(raw: bytes, at: float) -> tuple[str, float]:
        run = identifiers.parse_run_id(raw)
        if run in living:
            raise MessageError(f"run {run} is there, and was not deleted")
        return run, at

    return store.control.unreadable.each(keyspace.DELETED, found, parse)


def forget_tombstone(store: Store, run: str) -> None:
    """Remove a run's tombstone."""
    store.control.redis.zrem(keyspace.DELETED, run)


def remove_keys(store: Store, runs: Sequence[str]) -> None:
    """Remove every key of some runs, and their jobs; each server's keys are scanned once for all of them."""
    control, data = store.control.redis, store.data.redis
    # The runs' hashes go first: from then on every script refuses to write for these runs.
    control.unlink(*(keyspace.run(run) for run in runs))
    part = runs[0] if len(runs) == 1 else ""
    keys = keys_like(
        control, [each for run in runs for each in patterns_of_run(run, "control")], part
    )
    dispatch.forget_all(store, _tickets(store, runs, keys))
    unlink_all(control, keys)
    blobs = [each for run in runs for each in patterns_of_run(run, "data")]
    unlink_all(data, keys_like(data, blobs, part))


def _tickets(store: Store, runs: Sequence[str], keys: Sequence[bytes]) -> list[JobTicket]:
    """Return the newest jobs of some runs. Args: ``keys``: theirs on the control server."""
    of_rounds = [key for key in keys if re.fullmatch(rb"flq:\{[^}]*\}:round:\d+:jobs", key)]
    found = ask_many(store.control.redis, of_rounds, lambda pipe, key: pipe.hgetall(key))
    tickets = []
    for raw in (raw for jobs in found for raw in jobs.values()):
        with suppress(MessageError):  # An entry that is no ticket names no job.
            tickets.append(JobTicket.from_dict(safe_json.loads(raw, "a ticket")))
    for run in runs:
        tickets += dispatch.evaluation_tickets(store, run).values()
    return tickets
