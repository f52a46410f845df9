"""
Leases on the control server: a hash with its holder's token, which expires unless it is extended.

Each is a key of its holder's, written without scripts, which no client may run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import redis
from redis.client import Pipeline

from fl_queue.common import processes
from fl_queue.store import keyspace
from fl_queue.store.control.server import ControlServer, text_of

#: Lifetime of a worker's lease; it is extended every second or two.
LEASE_S = 6.0
#: Field of a worker's lease: id of the job at work, empty when it is idle.
JOB = "job"
#: Fields that are read of a lease: its holder may write any number of them.
LEASE_FIELDS = ("token", "process", "role", "host", "pid", "client", "worker", JOB)
#: Field of a client's hash: its worker was stopped, and did not just vanish.
LEFT = "left"


class Leases:
    """
    Reads and writes of leases.

    Args:
        server: The control server.
    """

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._redis = server.redis

    def hold(self, lease: str, token: str, lifetime_s: float, fields: Mapping[str, Any]) -> bool:
        """
        Take or extend a lease: a hash with the holder's token that expires.

        The lease of a holder that is known to be dead, by ``fields["process"]``, is taken over.

        Returns:
            False when another token holds it.
        """
        if self._try_hold(lease, token, lifetime_s, fields):
            return True
        return self.release_dead(lease) and self._try_hold(lease, token, lifetime_s, fields)

    def _try_hold(
        self, lease: str, token: str, lifetime_s: float, fields: Mapping[str, Any]
    ) -> bool:
        mapping = {"token": token, "lease": "held"}
        mapping |= {key: text_of(value) for key, value in fields.items()}

        def write(pipe: Pipeline) -> None:
            pipe.hset(lease, mapping=cast(dict[Any, Any], mapping))
            pipe.pexpire(lease, int(lifetime_s * 1000))

        return self._if_ours(lease, (None, token.encode()), write)

    def _if_ours(
        self, lease: str, holders: Iterable[bytes | None], write: Callable[[Pipeline], None]
    ) -> bool:
        """Write, if the lease has one of these tokens (None: it is free)."""
        while True:
            with self._redis.pipeline() as pipe:
                try:
                    pipe.watch(lease)
                    if cast("bytes | None", pipe.hget(lease, "token")) not in holders:
                        return False
                    pipe.multi()
                    write(pipe)
                    pipe.execute()
                    return True
                except redis.WatchError:
                    continue  # The lease has changed, or the connection broke: read it again.

    def release_dead(self, lease: str) -> bool:
        """End the leases of a holder that is known to be dead and of its worker; return True if so."""
        holder = self.get(lease)
        if not holder or not processes.is_dead(holder.get("process", "")):
            return False
        token = holder.get("token", "")
        self.release(lease, token)
        if "worker" in holder:
            self.release(keyspace.worker(holder["worker"]), token)
        return True

    def release(self, lease: str, token: str, client: str = "") -> None:
        """Release a lease, if ``token`` holds it. Args: ``client``: the client whose worker was stopped."""

        def write(pipe: Pipeline) -> None:
            pipe.delete(lease)
            if client:
                pipe.hset(keyspace.client(client), LEFT, "1")

        self._if_ours(lease, (token.encode(),), write)

    def get(self, lease: str) -> dict[str, str]:
        """The fields of a lease; empty when it is free."""
        return self.get_many([lease])[0]

    def get_many(self, asked: Iterable[str]) -> list[dict[str, str]]:
        """The fields of several leases, in their order."""
        return self._server.short_fields(asked, LEASE_FIELDS)


def is_held(holder: Mapping[str, str]) -> bool:
    """Whether a lease is held, and its holder's process lives as far as this machine can see."""
    return bool(holder) and not processes.is_dead(holder.get("process", ""))
