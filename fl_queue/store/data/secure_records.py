"""Records of secure rounds on the data server: rosters, survivors, confirmations, and the clients' inboxes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import redis

from fl_queue.store.batching import batches

#: Without an aggregator that stores them anew they end after this time; seconds.
LIFETIME_S = 24 * 3600


class SecureRecords:
    """
    Reads and writes of records by their keys: ``keyspace.secure_record`` and ``keyspace.inbox``.

    Args:
        client: A retrying client of the data server.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def put(self, records: Mapping[str, bytes]) -> None:
        """Store records; repeating it is harmless. Args: ``records``: key -> bytes."""
        for some in batches(records.items()):
            with self._redis.pipeline(transaction=False) as pipe:
                for key, raw in some:
                    pipe.set(key, raw, ex=LIFETIME_S)
                pipe.execute()

    def get(self, key: str, most_bytes: int) -> bytes | None:
        """A record, no more than a byte beyond ``most_bytes`` of it; None: it is not there."""
        raw = cast(bytes, self._redis.getrange(key, 0, most_bytes))
        return raw or None

    def drop(self, keys: Iterable[str]) -> None:
        """Remove records."""
        for some in batches(keys):
            with self._redis.pipeline(transaction=False) as pipe:
                for key in some:
                    pipe.delete(key)
                pipe.execute()
