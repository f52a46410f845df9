"""
Remove entries in RQ's keys of jobs and workers that ended long ago, or died.

RQ's own maintenance would turn finished jobs into failed ones and run jobs twice; this removes only the names
of jobs that no longer exist. An empty queue is forgotten: its next job adds it again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline
from rq.intermediate_queue import IntermediateQueue
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry

from fl_queue.store import Store, ask_many, batches
from fl_queue.store.jobs.rq_types import queue

log = logging.getLogger(__name__)

_QUEUES, _WORKERS = "rq:queues", "rq:workers"
#: Queues looked at before ``pause`` is called.
QUEUES_AT_ONCE = 500
#: Entries of a queue's list or registry that one sweep looks at.
MOST_A_SWEEP = 1_000


def sweep(store: Store, pause: Callable[[], None] = lambda: None) -> None:
    """
    Remove the entries of jobs and workers that are gone.

    Args:
        pause: Called between batches: there may be ten thousand queues.
    """
    connection = store.control.redis
    for key in (_QUEUES, _WORKERS):
        if connection.type(key) not in (b"set", b"none"):
            connection.delete(key)
    listed = cast(set[bytes], connection.smembers(_QUEUES))
    found = sorted(raw.decode(errors="replace").removeprefix("rq:queue:") for raw in listed)
    for some in batches(found, QUEUES_AT_ONCE):
        sweep_queues(store, some)
        pause()
    _forget_dead_workers(connection)


def sweep_queues(store: Store, queue_names: Iterable[str]) -> None:
    """Clean up some queues, in a few round trips for all of them."""
    connection = store.control.redis
    kinds: dict[str, bytes] = {}
    keys_of: dict[str, list[str]] = {}
    for name in queue_names:
        lists, registries = _keys(name, connection)
        kinds |= dict.fromkeys(lists, b"list") | dict.fromkeys(registries, b"zset")
        keys_of[lists[0]] = [*lists, *registries]
    _mend(connection, kinds)
    # Jobs in the queue itself still run; see ``dead_jobs``.
    looked_at = [(key, kind) for key, kind in kinds.items() if key not in keys_of]
    _forget_jobs(connection, looked_at)
    store.control.queues.forget_idle_queues(_QUEUES, keys_of)


def _keys(name: str, connection: Redis) -> tuple[list[str], list[str]]:
    """The keys of a queue: its lists, itself first, and its registries."""
    rq_queue = queue(name, connection)
    lists = [rq_queue.key, IntermediateQueue.get_intermediate_queue_key(rq_queue.key)]
    registries = (StartedJobRegistry, FinishedJobRegistry, FailedJobRegistry)
    return lists, [registry(queue=rq_queue).key for registry in registries]


def _mend(connection: Redis, kinds: dict[str, bytes]) -> None:
    """Remove keys of another type than RQ's: no worker could go on with them."""
    found = ask_many(connection, kinds, lambda pipe, key: pipe.type(key))
    wrong = [
        key for key, kind in zip(kinds, found, strict=True) if kind not in (kinds[key], b"none")
    ]
    if wrong:
        connection.delete(*wrong)
        log.warning("removed what was of another type than RQ's: %s", ", ".join(wrong))


def _forget_jobs(connection: Redis, keys: list[tuple[str, bytes]]) -> None:
    def read(pipe: Pipeline, item: tuple[str, bytes]) -> Any:
        key, kind = item
        # A client's queue may hold any number: the next sweep goes on where this one removed.
        last = MOST_A_SWEEP - 1
        return pipe.lrange(key, 0, last) if kind == b"list" else pipe.zrange(key, 0, last)

    named = [
        (key, kind, job)
        for (key, kind), jobs in zip(keys, ask_many(connection, keys, read), strict=True)
        for job in jobs
    ]
    exists = ask_many(
        connection, named, lambda pipe, item: pipe.exists(b"rq:job:" + item[2].partition(b":")[0])
    )
    gone = [item for item, there in zip(named, exists, strict=True) if not there]

    def remove(pipe: Pipeline, item: tuple[str, bytes, bytes]) -> Any:
        key, kind, job = item
        return pipe.lrem(key, 0, cast(str, job)) if kind == b"list" else pipe.zrem(key, job)

    ask_many(connection, gone, remove)


def _forget_dead_workers(connection: Redis) -> None:
    listed = list(cast(set[bytes], connection.smembers(_WORKERS)))
    exists = ask_many(connection, listed, lambda pipe, key: pipe.exists(key))
    gone = [key for key, there in zip(listed, exists, strict=True) if not there]
    registries = list(connection.scan_iter(match="rq:workers:*", count=1000)) if gone else []
    for key in gone:
        name = key.removeprefix(b"rq:worker:")
        with connection.pipeline() as pipe:
            pipe.srem(_WORKERS, key)
            for registry in registries:
                pipe.srem(registry, key)
            pipe.delete(b"rq:worker:" + name + b":executions")
            pipe.execute(raise_on_error=False)
