"""
A client's users on a server without selectors: each command is sent as the one whose business it is.

On such a server one user that may do all that a client needs could also destroy what others sent (see
``store/acl.py``). Pipelines are always the client's own: nothing else needs one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis
from redis.connection import ConnectionPool

from fl_queue.store import acl


class SplitClient(redis.Redis):
    """A client as its first user; ``others``: purpose -> a client as another user of the same server."""

    others: Mapping[acl.Purpose, redis.Redis] = {}

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute a command as the user for it."""
        other = self.others.get(acl.user_for_command(*_text(args[:2]))) if self.others else None
        if other is not None:
            return other.execute_command(*args, **options)
        return super().execute_command(*args, **options)

    def pool_of(self, command: str, key: str) -> ConnectionPool:
        """The connections for a command, by its user."""
        return self.others.get(acl.user_for_command(command, key), self).connection_pool

    def close(self) -> None:
        """Close the connections of all users."""
        for client in self.others.values():
            client.close()
        super().close()


def _text(args: tuple[Any, ...]) -> list[str]:
    return [arg.decode(errors="replace") if isinstance(arg, bytes) else str(arg) for arg in args]
