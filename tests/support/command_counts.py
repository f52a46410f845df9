"""What work costs the Redis servers: commands, and round trips, whatever the speed of the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from fl_queue.store import Store


@dataclass
class Cost:
    """Args: ``commands``: that the servers ran, in scripts too; ``trips``: sendings that were answered."""

    commands: int = 0
    trips: int = 0


@contextmanager
def counted(store: Store, patch: pytest.MonkeyPatch) -> Iterator[Cost]:
    """Counts until the block is left; no other user of the servers may be at work meanwhile."""
    cost = Cost()
    send: Callable[..., Any] = redis.connection.AbstractConnection.send_packed_command

    def counting(self: Any, *args: Any, **options: Any) -> Any:
        cost.trips += 1
        return send(self, *args, **options)

    before = _commands(store)
    with patch.context() as patched:
        patched.setattr(redis.connection.AbstractConnection, "send_packed_command", counting)
        yield cost
    # Reading the counts is a command of each server, too.
    cost.commands = _commands(store) - before - 2


def _commands(store: Store) -> int:
    servers = store.control.redis, store.data.redis
    return sum(
        int(each["calls"]) for server in servers for each in server.info("commandstats").values()
    )
