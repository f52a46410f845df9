"""Job hashes that a worker refuses, for tests that write them straight into Redis."""

from __future__ import annotations

import json
import pickle
import zlib
from typing import Any

from fl_queue.store import keyspace
from fl_queue.store.jobs import rq_types

STAMP = "2026-01-01T00:00:00.000000Z"


class Evil:
    """An object that ends the process which unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('unpickled')",))


def call(
    function: object = rq_types.TRAIN,
    instance: object = None,
    args: object = None,
    kwargs: object = None,
) -> dict[str, Any]:
    """The field of a job's hash with its call, as RQ compresses it."""
    made = [function, instance, ["demo-3f2a9c", 3] if args is None else args, kwargs or {}]
    return {"data": zlib.compress(json.dumps(made).encode())}


#: Fields of a job's hash -> a word of the reason for which it is refused.
HASHES: list[tuple[dict[str, Any], str]] = [
    (call("os.system", args=["demo-3f2a9c", 3]), "no function"),
    (call("eval"), "no function"),
    (call("fl_queue.coordinator.rounds.runs.start_run"), "no function"),
    (call("workers.client.respond"), "no function"),
    (call(rq_types.AGGREGATE), "no function"),
    (call(rq_types.EVALUATE), "no function"),
    (call(rq_types.POOL_TRAIN), "no function"),
    (call(function=7), "no function"),
    (call(function=["os.system"]), "no function"),
    (call(instance={}), "methods"),
    (call(kwargs={"make": 1}), "arguments"),
    (call(args=["demo-3f2a9c"]), "arguments"),
    (call(args=["demo-3f2a9c", 3, 3]), "arguments"),
    (call(args=["demo-3f2a9c", True]), "arguments"),
    (call(args=["demo-3f2a9c", 3.0]), "arguments"),
    (call(args=["demo-3f2a9c", -1]), "arguments"),
    (call(args=["demo-3f2a9c", 2**80]), "arguments"),
    (call(args=["../../etc", 3]), "arguments"),
    (call(args=[["demo-3f2a9c"], 3]), "arguments"),
    (call(args=["other-3f2a9c", 3]), "another run"),
    (call(args=["demo-3f2a9c", 4]), "another run or round"),
    ({"data": pickle.dumps((rq_types.TRAIN, None, Evil(), {}))}, "not compressed"),
    ({"data": zlib.compress(pickle.dumps(Evil()))}, "not JSON"),
    ({"data": zlib.compress(b"[" * 2000)}, "not JSON"),
    ({"data": zlib.compress(b"1" * 2000)}, "not [function"),
    ({"data": zlib.compress(bytes(900_000))}, "more than 2048"),
    ({"data": zlib.compress(b"\xff\xfe")}, "not JSON"),
    ({"data": bytes(10_000_000)}, "more than 1024"),
    ({"status": "owned"}, "status"),
    ({"status": "finished"}, "not queued"),
    ({"status": b"\xff"}, "status is not text"),
    ({"origin": b"\xff"}, "origin is not text"),
    ({"origin": keyspace.AGGREGATE_QUEUE}, "no function"),
    ({"created_at": "yesterday"}, "created_at"),
    ({"enqueued_at": "x" * 1000}, "enqueued_at has 1000"),
    ({"timeout": "-7"}, "timeout"),
    ({"timeout": "9" * 15}, "timeout"),
    ({"timeout": "soon"}, "timeout"),
    ({"success_callback_name": "os.system"}, "success_callback_name"),
    ({"failure_callback_name": "os.system"}, "failure_callback_name"),
    ({"stopped_callback_name": "os.system"}, "stopped_callback_name"),
    ({"webhooks": "[]"}, "webhooks"),
    ({"dependency_ids": "[]"}, "dependency_ids"),
    ({"retries_left": "5"}, "retries_left"),
    ({"repeats_left": "5"}, "repeats_left"),
    ({"rate_limit_key": "k"}, "rate_limit_key"),
    ({"group_id": "g"}, "group_id"),
]
