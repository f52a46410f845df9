"""RQ's queues on the control server, where they change together with the tickets of their jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.client import Pipeline

from fl_queue.store.batching import ask_many
from fl_queue.store.connection import script
from fl_queue.store.control.server import ControlServer


@dataclass(frozen=True)
class Replacement:
    """
    A job that takes the place of another one.

    Args:
        field: Of the hash of tickets.
        old, new: Ids of the two jobs.
        ticket: The new one's, JSON.
        commands: Commands that publish it, each a list ``[name, key, ...]``.
    """

    field: str
    old: str
    new: str
    ticket: str
    commands: Sequence[Sequence[Any]]


class Queues:
    """
    Writes of RQ's queues.

    Args:
        server: The control server.
    """

    def __init__(self, server: ControlServer) -> None:
        self._redis = server.redis
        self._to_end = script(server.redis, "to_end")
        self._replace = script(server.redis, "replace")
        self._forget_idle = script(server.redis, "forget_idle")

    def move_to_front(self, queue: str, job: str) -> None:
        """Move a job to the front of its queue, if it waits there."""
        self._to_end(keys=[queue], args=[job, "LPUSH"])

    def move_to_back(self, queue: str, job: str) -> None:
        """Move a job to the back of its queue, if it waits there."""
        self._to_end(keys=[queue], args=[job, "RPUSH"])

    def replace_jobs(self, tickets: str, wanted: Iterable[Replacement]) -> list[bool]:
        """
        Publish jobs in place of others, each if the other is still the newest of its field.

        Each is decided independently of the others. Repeating it is harmless.

        Args:
            tickets: Key of the hash that holds the newest tickets.

        Returns:
            For each whether the new job is the newest now; False: another process was faster.

        Raises:
            StoreUnavailable: The connection broke, for some of them perhaps too late.
        """

        def ask(pipe: Pipeline, item: Replacement) -> None:
            args: list[Any] = [item.field, item.old, item.new, item.ticket]
            for command in item.commands:
                args += [len(command), *command]
            keys = [tickets, *(command[1] for command in item.commands)]
            self._replace(keys=keys, args=args, client=pipe)

        return [bool(answer) for answer in ask_many(self._redis, wanted, ask)]

    def forget_idle_queues(self, listed: str, keys_of: Mapping[str, Sequence[str]]) -> int:
        """
        Forget queues that hold nothing.

        Args:
            listed: Key of the set of all queues.
            keys_of: Queue -> its keys, itself first.

        Returns:
            How many were forgotten.
        """

        def ask(pipe: Pipeline, keys: Sequence[str]) -> None:
            self._forget_idle(keys=[listed, *keys], client=pipe)

        return sum(ask_many(self._redis, keys_of.values(), ask))
