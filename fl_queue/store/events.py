"""
The control server: events of runs and clients, and writes that need a key to be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import redis
from redis.client import Pipeline

from fl_queue import names
from fl_queue.entries import event_of
from fl_queue.records import dumps
from fl_queue.store.connect import script
from fl_queue.store.many import batches
from fl_queue.store.queues import Queues
from fl_queue.store.rejections import EVENTS_KEPT

CLIENT_EVENTS_KEPT = 1_000


class Events(Queues):
    """Args: ``client``: a retrying client of the control server."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client)
        self._guarded = script(client, "guarded")

    def add_event(self, run: str, event: Mapping[str, Any], pipe: Pipeline | None = None) -> None:
        """Append to the run's event stream (capped)."""
        if pipe is None:
            self._write_if(names.run(run), event_command(run, event))
        else:
            pipe.execute_command(*event_command(run, event))

    def add_events(self, run: str, events: Iterable[Mapping[str, Any]]) -> None:
        """Append several, at once."""
        for some in batches(events):
            self._write_if(names.run(run), *(event_command(run, event) for event in some))

    def add_client_event(self, client: str, event: Mapping[str, Any]) -> None:
        """Append to a client's own event stream (capped)."""
        self.redis.xadd(
            names.client_events(client),
            {"event": dumps(event)},
            maxlen=CLIENT_EVENTS_KEPT,
            approximate=True,
        )

    def read_events(
        self, streams: Mapping[str, str], block_ms: int | None
    ) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """
        New entries of event streams: (stream key, entry id, event).

        Args:
            streams: Key -> id after which to read (``0-0`` from the start).
            block_ms: Wait this long for the first; None: do not wait.
        """
        for key, entries in cast(
            list[Any], self.redis.xread(cast(Any, dict(streams)), block=block_ms) or []
        ):
            for entry_id, fields in entries:
                yield key.decode(), entry_id.decode(), event_of(fields)

    def newest_events(self, stream: str, count: int) -> list[tuple[str, dict[str, Any]]]:
        """The newest ``count`` entries of a stream, oldest first: (entry id, event)."""
        entries = cast(list[Any], self.redis.xrevrange(stream, count=count))
        return [(key.decode(), event_of(fields)) for key, fields in reversed(entries)]

    def last_event_id(self, stream: str) -> str:
        """Id of the newest entry of a stream; ``0-0`` when there is none."""
        entries = cast(list[Any], self.redis.xrevrange(stream, count=1))
        return entries[0][0].decode() if entries else "0-0"

    def last_event(self, stream: str) -> dict[str, Any] | None:
        """The newest event of a stream."""
        entries = cast(list[Any], self.redis.xrevrange(stream, count=1))
        return event_of(entries[0][1]) if entries else None

    def _write_if(self, guard: str, *commands: list[str]) -> bool:
        """Write commands ``[name, key, ...]``, all or none, if the key ``guard`` exists."""
        keys = [guard, *(command[1] for command in commands)]
        return bool(self._guarded(keys=keys, args=[dumps(commands)]))


def event_command(run: str, event: Mapping[str, Any]) -> list[str]:
    """The command that appends an event to a run's stream."""
    capped = ["MAXLEN", "~", str(EVENTS_KEPT)]
    return ["XADD", names.events(run), *capped, "*", "event", dumps(event)]
