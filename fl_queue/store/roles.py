"""``Store``: the two Redis roles of a deployment, opened and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import redis

from fl_queue.errors import StoreUnavailable, Trouble
from fl_queue.store import keyspace
from fl_queue.store.connection import (
    NO_OTHER_USERS,
    Away,
    OtherUsers,
    check,
    connect,
    report_removed,
    resolve_urls,
)
from fl_queue.store.control import Control
from fl_queue.store.data import Data
from fl_queue.store.enrolment_pins import Pins
from fl_queue.store.facts_of_servers import probe
from fl_queue.store.timeouts import WORKERS, Timeouts

#: A client of a server, of redis-py; packages outside the store only hand it on.
RedisClient = redis.Redis


class Store:
    """
    Both Redis roles.

    Args:
        url: Control server.
        blob_url: Data server; may be the same.
        others: Purpose -> (url, blob_url) as another user, for a client that is several; see ``acl``.
        timeouts: How long an answer is waited for.
        needs_data: Whether the data server has to be there from the beginning.
        state_dir: This machine's folder, where an operator's key may be; None: it is not known.
        operator_key: The operator's key, if not where it is by default.
    """

    def __init__(
        self,
        url: str,
        blob_url: str,
        others: OtherUsers = NO_OTHER_USERS,
        timeouts: Timeouts = WORKERS,
        needs_data: bool = True,
        state_dir: Path | None = None,
        operator_key: Path | None = None,
    ) -> None:
        self._made_of = url, blob_url, others
        self._operator_key = operator_key
        self.state_dir = state_dir
        self.servers = connect(url, blob_url, others, timeouts, needs_data)
        self.control = Control(self.servers.control, Pins(state_dir, operator_key))
        self.data = Data(self.servers)
        report_removed(self.servers, self._report_removed)

    @classmethod
    def open(
        cls,
        url: str,
        blob_url: str,
        state_dir: Path,
        others: OtherUsers = NO_OTHER_USERS,
        timeouts: Timeouts = WORKERS,
        needs_data: bool = True,
        operator_key: Path | None = None,
    ) -> Store:
        """
        Connect, with the private servers of ``state_dir`` when no URL is given, and check them.

        Args:
            needs_data: Whether the data server is checked, too: what only reads runs and rounds can
                do without it.
            operator_key: As of the constructor.

        Raises:
            StoreUnavailable: Not reachable, too old, or no URL and no private servers.
        """
        url, blob_url = resolve_urls(url, blob_url, state_dir)
        store = cls(url, blob_url, others, timeouts, needs_data, state_dir, operator_key)
        if needs_data:
            store.check()
        else:
            check(store.servers.control, store.servers.url)
        return store

    def with_timeouts(self, timeouts: Timeouts) -> Store:
        """The same servers, for work that takes a slow line a while; a context manager, too."""
        return Store(
            *self._made_of, timeouts, state_dir=self.state_dir, operator_key=self._operator_key
        )

    @property
    def is_whole(self) -> bool:
        """Whether there are clients of both servers; not where no node of a cluster answered."""
        return not isinstance(self.servers.data, Away)

    def data_trouble(self) -> str:
        """Why the data server cannot be used, as a line; empty: it can."""
        try:
            check(self.servers.data, self.servers.blob_url)
        except StoreUnavailable as exc:
            return f"data server {exc.url}: {exc.reason}"
        return ""

    def control_trouble(self) -> str:
        """Why the control server takes no writes, as a line; empty: it does, or this user may not try."""
        trouble = probe(self.servers.control, self.servers.url)
        if trouble is None or trouble.trouble is Trouble.not_allowed:
            return ""
        return f"control server {trouble.url}: {trouble.reason}"

    def _report_removed(self, key: str, kind: str) -> None:
        run = keyspace.run_of(key)
        if run is not None:
            from fl_queue.protocol.events import KeyRemoved

            event = KeyRemoved(key=key, reason=f"it had become a {kind}")
            self.control.events.add(run, event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def each_server(self) -> list[redis.Redis]:
        """A client of each server; of one that has both roles one."""
        both = self.servers
        return [both.control] if both.url == both.blob_url else [both.control, both.data]

    def check(self) -> None:
        """
        See that both servers answer and are new enough.

        Raises:
            StoreUnavailable: One does not, or is older than 6.2.
        """
        check(self.servers.control, self.servers.url)
        check(self.servers.data, self.servers.blob_url)

    def close(self) -> None:
        """Close all connections."""
        for client in (
            self.servers.control,
            self.servers.data,
            self.servers.once,
            self.servers.blocking,
        ):
            client.close()
