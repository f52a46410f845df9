"""The checkpointed partial sum of a run's open round, on the data server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import redis

from fl_queue.store import keyspace
from fl_queue.store.connection import script
from fl_queue.store.control.server import as_text


class PartialSum:
    """
    Reads and writes of the record of a partial sum; its body is in chunks.

    Args:
        client: A retrying client of the data server.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._save_partial = script(client, "save_partial")
        self._drop_partial = script(client, "drop_partial")

    def save(
        self,
        run: str,
        fence: int,
        token: str,
        looked_at: int,
        fields: Mapping[str, Any],
    ) -> bool:
        """
        In one step: record a partial sum, and remove the elements it was made of.

        Args:
            looked_at: Elements on our taken list, all of them looked at.
            fields: What ``partial`` returns afterwards; ``nonce`` first, new in each call.

        Returns:
            False when we do not own the taken list any more.
        """
        keys = [keyspace.taken(run, fence), keyspace.owner(run, fence), keyspace.partial(run)]
        args: list[Any] = [token, looked_at]
        for key, value in fields.items():
            args += [key, value]
        return bool(self._save_partial(keys=keys, args=args))

    def get(self, run: str) -> dict[str, str]:
        """Record of the partial sum; empty when there is none."""
        return as_text(cast(dict[bytes, bytes], self._redis.hgetall(keyspace.partial(run))))

    def drop(self, run: str, nonce: str) -> None:
        """Forget the record of a partial sum, unless another one is in its place."""
        self._drop_partial(keys=[keyspace.partial(run)], args=[nonce])
