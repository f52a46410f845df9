"""Results lists on the data server: messages as clients push them, and the channel that announces them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import cast

import redis

from fl_queue.errors import StoreUnavailable
from fl_queue.store import keyspace
from fl_queue.store.batching import ask_many
from fl_queue.store.connection import Servers, connection_errors

#: Longest run id that is read from the channel: any user who may publish there may send more.
_MAX_RUN_ID_BYTES = 100

log = logging.getLogger(__name__)


class Results:
    """
    Reads and writes of results lists.

    Args:
        servers: The connections to both servers.
    """

    def __init__(self, servers: Servers) -> None:
        self._redis = servers.data
        self._once = servers.once
        self._blocking = servers.blocking

    def push(self, run: str, element: bytes) -> None:
        """
        Append one element to the results list, without a retry: RPUSH is not idempotent.

        Raises:
            StoreUnavailable: It may or may not have arrived; push it again under the same token.
        """
        self._once.rpush(keyspace.results(run), element)
        # Only for speed: the aggregator also looks once a second.
        with suppress(StoreUnavailable):
            self._once.publish(keyspace.ARRIVALS, run)

    def count(self, run: str) -> int:
        """Elements in the results list."""
        return cast(int, self._redis.llen(keyspace.results(run)))

    def counts(self, runs: Iterable[str]) -> list[int]:
        """Messages in the results lists of some runs, in their order."""
        return ask_many(self._redis, runs, lambda pipe, run: pipe.llen(keyspace.results(run)))

    def peek(self, run: str) -> bytes | None:
        """The oldest element of the results list, which stays there."""
        return cast("bytes | None", self._redis.lindex(keyspace.results(run), 0))

    def remove(self, run: str, element: bytes) -> None:
        """Remove an element whose round has ended; sent again it finds nothing, or a copy as late."""
        self._redis.lrem(keyspace.results(run), 1, cast(str, element))

    def forget(self, run: str) -> None:
        """Remove the results list of a run that has been deleted."""
        self._redis.unlink(keyspace.results(run))

    def doorbell(self) -> Doorbell:
        """Subscribe to the arrivals of elements."""
        return Doorbell(self._blocking)


class Doorbell:
    """
    Subscription to the arrivals of elements, by run.

    Only for speed: the aggregator also looks once a second. A client that publishes 34 MB makes Redis close the
    connection; the wait is then longer, and the subscription is made again.

    Args:
        client: A client without a timeout and without retries.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._channel: redis.client.PubSub | None = None
        self._listen()

    def __enter__(self) -> Doorbell:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._channel is not None:
            self._channel.close()

    def _listen(self) -> bool:
        """Whether the subscription exists; make it if necessary."""
        if self._channel is None:
            channel = self._client.pubsub(ignore_subscribe_messages=True)
            try:
                with connection_errors(self._client):
                    channel.subscribe(keyspace.ARRIVALS)
            except StoreUnavailable as exc:
                self._lose(channel, exc)
                return False
            self._channel = channel
        return True

    def _lose(self, channel: redis.client.PubSub, exc: StoreUnavailable) -> None:
        self._channel = None
        channel.close()
        log.warning("arrivals are not announced now, they are looked for once a second: %s", exc)

    def wait(self, timeout_s: float) -> str | None:
        """Run id of an element that has arrived; None after ``timeout_s`` without one."""
        until = time.monotonic() + timeout_s
        if self._listen() and self._channel is not None:
            channel = self._channel
            try:
                return self._received(channel, until)
            except StoreUnavailable as exc:
                self._lose(channel, exc)
        # A client that breaks the subscription all the time causes no busy loop.
        time.sleep(max(0.0, until - time.monotonic()))
        return None

    def _received(self, channel: redis.client.PubSub, until: float) -> str | None:
        while True:
            left_s = max(0.0, until - time.monotonic())
            with connection_errors(self._client):
                message = channel.get_message(timeout=left_s)
            if message is not None:
                return cast(bytes, message["data"])[:_MAX_RUN_ID_BYTES].decode(errors="replace")
            if left_s == 0.0:
                return None
