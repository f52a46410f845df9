"""
Deleting a run: every key on both servers, every job, and this machine's checkpoints.

A tombstone stays for a day: what a client sends that slept through all of it is removed, too. The
name is free at once; a run of the same name has another run id and meets nothing of the old one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

from redis.client import Pipeline

from fl_queue import dispatch, kept, models, names
from fl_queue.dispatch import Ticket
from fl_queue.errors import RunStateError
from fl_queue.records import dumps
from fl_queue.store import RunState, Store, unlink_matching

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
        refuse_training(state.name, pipe.hget(names.run(run), "state") == b"training")
        named = pipe.hget(names.RUNS, state.name) == run.encode()
        heirs = {
            origin: [other for other in json.loads(raw) if other != run]
            for origin in state.restored_from
            if (raw := pipe.hget(names.RESTORED, origin))
        }

        def write() -> None:
            if named:
                pipe.hdel(names.RUNS, state.name)
            for origin, others in heirs.items():
                if others:
                    pipe.hset(names.RESTORED, origin, dumps(others))
                else:
                    pipe.hdel(names.RESTORED, origin)
            pipe.zadd(names.DELETED, {run: store.control.now()})

        return write

    watched = [names.RUNS, names.run(run), names.RESTORED]
    while not store.control.transact(watched, body):
        pass
    _remove(store, run, state_dir)


def refuse_training(name: str, training: bool) -> None:
    """Raises RunStateError when a run is training: nobody deletes that by mistake."""
    if training:
        raise RunStateError(name, f"is training; stop it first with `fl-queue cancel {name}`")


def sweep(store: Store, state_dir: Path) -> None:
    """Remove what came of deleted runs since; forget tombstones after a day."""
    now = store.control.now()
    tombs = cast(
        list[tuple[bytes, float]],
        store.control.redis.zrange(names.DELETED, 0, -1, withscores=True),
    )
    for raw, deleted_at in tombs:
        run = raw.decode()
        if now - deleted_at < LOOKED_AGAIN_S:
            _remove(store, run, state_dir)
        store.data.forget_results(run)
        if now - deleted_at > TOMBSTONE_S:
            store.control.redis.zrem(names.DELETED, run)


def _remove(store: Store, run: str, state_dir: Path) -> None:
    # The run's hash goes first: from then on every script refuses to write for this run.
    tickets = _tickets(store, run)
    store.control.redis.unlink(names.run(run))
    for ticket in tickets:
        dispatch.forget(store, ticket)
    for pattern in (f"{names.run(run)}:*", f"rq:*:*_{run}_*"):
        unlink_matching(store.control.redis, pattern)
    blobs = (
        names.model_blob(run, "*"),
        names.update_blob("*", run, "*"),
        names.partial_blob(run, "*"),
    )
    for pattern in (f"{names.run(run)}:*", *blobs):
        unlink_matching(store.data.redis, pattern)
    shutil.rmtree(models.checkpoint_folder(state_dir, run), ignore_errors=True)
    kept.forget(state_dir, run)


def _tickets(store: Store, run: str) -> list[Ticket]:
    found = [
        raw
        for key in store.control.redis.scan_iter(match=f"{names.run(run)}:round:*:jobs", count=1000)
        for raw in cast(dict[bytes, bytes], store.control.redis.hgetall(key)).values()
    ]
    tickets = [Ticket.from_dict(json.loads(raw)) for raw in found]
    return [*tickets, *dispatch.evaluation_tickets(store, run).values()]
