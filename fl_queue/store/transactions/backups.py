"""Transactions of backups: one consistent read of a run, and the write of a restored one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.client import Pipeline

from fl_queue.common.safe_json import dumps
from fl_queue.protocol import identifiers
from fl_queue.protocol.events import Event
from fl_queue.store import Store, as_text, keyspace


@dataclass(frozen=True)
class RunKeys:
    """
    The keys of a run that a backup holds, as Redis returned them at one moment.

    Args:
        state: Fields of the run's hash; empty: there is no such run.
        config, manifest: JSON; None: absent.
        versions, evaluations: Version -> JSON.
        history: JSON records.
    """

    state: Mapping[str, str]
    config: bytes | None
    manifest: bytes | None
    versions: Mapping[str, bytes]
    history: Sequence[bytes]
    evaluations: Mapping[str, bytes]


@dataclass(frozen=True)
class RestoredRun:
    """
    A run to write from a backup. All values are as Redis stores them.

    Args:
        run, name: Its id and its name.
        origins: Run ids under which clients keep state of it.
        event: For its stream.
        accepted: Client -> its newest accepted update.
    """

    run: str
    name: str
    origins: Sequence[str]
    event: Event
    state: Mapping[str, str]
    config: str
    manifest: str
    versions: Mapping[str, str]
    history: Sequence[str]
    late: Mapping[str, Any]
    accepted: Mapping[str, str]
    evaluations: Mapping[str, str]


def read_run(store: Store, run: str) -> RunKeys:
    """Read a run's keys in one transaction."""
    with store.control.redis.pipeline(transaction=True) as pipe:
        pipe.hgetall(keyspace.run(run))
        pipe.get(keyspace.config(run))
        pipe.get(keyspace.manifest(run))
        pipe.hgetall(keyspace.versions(run))
        pipe.lrange(keyspace.history(run), 0, -1)
        pipe.hgetall(keyspace.evaluations(run))
        raw, config, manifest, versions, history, evaluations = pipe.execute()
    return RunKeys(
        {key.decode(): value.decode() for key, value in raw.items()},
        config,
        manifest,
        {key.decode(): text for key, text in versions.items()},
        history,
        {key.decode(): text for key, text in evaluations.items()},
    )


def keep_client_states(store: Store, run: str, version: str) -> bool:
    """
    Record that clients keep their state of a version for its backup.

    Returns:
        False when there is a newer version: for that, clients may have removed the state.
    """
    accepted, key = keyspace.accepted(run), keyspace.run(run)

    def body(pipe: Pipeline) -> Callable[[], None] | None:
        if pipe.hget(key, "version") != version.encode():
            return None
        now = as_text(cast(dict[bytes, bytes], pipe.hgetall(accepted)))
        kept = {keyspace.in_backup(each): now[each] for each in now if identifiers.is_name(each)}

        def write() -> None:
            if kept:
                pipe.hset(accepted, mapping=cast(dict[Any, Any], kept))

        return write

    while not store.control.transact([key], body):
        if store.control.redis.hget(key, "version") != version.encode():
            return False
    return True


def restore_run(store: Store, restored: RestoredRun) -> bool:
    """Write all keys of a restored run; False when its name is taken, or the connection broke."""
    run = restored.run

    def body(pipe: Pipeline) -> Callable[[], None] | None:
        if pipe.hexists(keyspace.RUNS, restored.name):
            return None
        # Clients look here for whether a run's state is still needed.
        heirs = {
            origin: dumps([*json.loads(pipe.hget(keyspace.RESTORED, origin) or b"[]"), run])
            for origin in restored.origins
        }

        def write() -> None:
            pipe.hset(keyspace.RUNS, restored.name, run)
            pipe.set(keyspace.config(run), restored.config)
            pipe.set(keyspace.manifest(run), restored.manifest)
            if restored.history:
                pipe.rpush(keyspace.history(run), *restored.history)
            kept = {keyspace.in_backup(who): text for who, text in restored.accepted.items()}
            hashes: dict[str, Mapping[str, Any]] = {
                keyspace.run(run): restored.state,
                keyspace.versions(run): restored.versions,
                keyspace.late(run): restored.late,
                keyspace.accepted(run): {**restored.accepted, **kept},
                keyspace.evaluations(run): restored.evaluations,
                keyspace.RESTORED: heirs,
            }
            for key, mapping in hashes.items():
                if mapping:
                    pipe.hset(key, mapping=cast(dict[Any, Any], mapping))
            store.control.events.add(run, restored.event, pipe)

        return write

    return store.control.transact([keyspace.RUNS, keyspace.RESTORED], body)
