"""
The keys that one client may write: how many there are of each client, and their removal.

There is no quota in Redis. Both look through all keys of a server, some thousand at a time, so that
others are served in between.
"""

from __future__ import annotations

import re
from collections import Counter

import redis

from fl_queue.protocol import identifiers
from fl_queue.store import keyspace
from fl_queue.store.batching import batches

_SCANNED = 5000
_OWNER = re.compile(rb"flq:(?:worker|client|update):([^:_]+)|rq:[a-z]+::?([^:_]+)_")


def count_keys(client: redis.Redis) -> Counter[str]:
    """Client -> keys of a server that it may have written; only such as have an owner."""
    counts: Counter[str] = Counter()
    for pattern in ("flq:[wcu]*", "rq:*"):
        for key in client.scan_iter(match=pattern, count=_SCANNED):
            owner = _OWNER.match(key)
            if owner is not None:
                counts[(owner[1] or owner[2]).decode(errors="replace")] += 1
    return Counter({who: count for who, count in counts.items() if identifiers.is_name(who)})


def drop_keys(client: redis.Redis, who: str) -> int:
    """Remove the keys that a client may have written, of itself and of its jobs; how many there were."""
    patterns = [
        *(keyspace.client(who), f"{keyspace.client(who)}:*", keyspace.worker(f"{who}_*")),
        *(f"flq:update:{who}:*", keyspace.admitted("*", who), f"rq:*:{who}_*"),
    ]
    gone = 0
    for pattern in patterns:
        for some in batches(client.scan_iter(match=pattern, count=_SCANNED)):
            gone += int(client.unlink(*some))
    return gone
