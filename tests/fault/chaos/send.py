"""
The elements a chaos run pushes besides the clients': duplicate, late, stale, malformed and foreign.
"""

from __future__ import annotations

import random
import secrets
from dataclasses import replace
from typing import cast

from fl_queue.protocol import message
from fl_queue.store import RunState, keyspace
from tests.fault.chaos.plan import Step
from tests.fault.chaos.watch import Watcher


def elements(step: Step, watch: Watcher, state: RunState) -> list[bytes]:
    """
    What a step may send now; nothing when there is no such element at the moment.

    Raises:
        redis.ConnectionError, redis.TimeoutError: The data server is away.
    """
    number, kept = state.round, sorted(watch.kept.items())
    current = [element for (_, of), element in kept if of == number]
    if step.send == "rubbish":
        return [random.Random(step.pick).randbytes(64)]
    if step.send == "late":
        return [element for (_, of), element in kept if of < number]
    if step.send == "duplicate":
        return [*_in_redis(watch, state.run_id), *current]
    if step.send == "stranger":
        return [_changed(element, client="stranger") for element in current]
    return [_changed(element, base_digest="0" * 64) for element in current]


def _in_redis(watch: Watcher, run: str) -> list[bytes]:
    data = watch.data
    taken = sorted(data.scan_iter(match=f"flq:{{{run}}}:taken:*", count=1000))
    lists = [keyspace.results(run).encode(), *taken]
    return [element for key in lists for element in cast(list[bytes], data.lrange(key, 0, -1))]


def _changed(element: bytes, **changes: str) -> bytes:
    header, body = message.unpack(element, max_body_bytes=len(element))
    made = replace(header, token=secrets.token_hex(8), **changes)  # type: ignore[arg-type]
    return message.pack(made, body if len(body) else None)
