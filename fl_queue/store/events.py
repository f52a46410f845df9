"""
The control server: events of runs and clients, and writes that need a key to be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import redis
from redis.client import Pipeline

from fl_queue.protocol.events import event_of
from fl_queue.protocol.records import dumps
from fl_queue.store import keyspace
from fl_queue.store.batching import ask_many, batches
from fl_queue.store.connection import script
from fl_queue.store.queues import Queues
from fl_queue.store.rejections import EVENTS_KEPT

CLIENT_EVENTS_KEPT = 1_000
#: Entries that share a round trip.
READ_AT_ONCE = 1_000


class Events(Queues):
    """Args: ``client``: a retrying client of the control server."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client)
        self._guarded = script(client, "guarded")

    def add_event(self, run: str, event: Mapping[str, Any], pipe: Pipeline | None = None) -> None:
        """Append to the run's event stream (capped)."""
        if pipe is None:
            self._write_if(keyspace.run(run), event_command(run, event))
        else:
            pipe.execute_command(*event_command(run, event))

    def add_events(self, run: str, events: Iterable[Mapping[str, Any]]) -> None:
        """Append several, at once."""
        for some in batches(events):
            self._write_if(keyspace.run(run), *(event_command(run, event) for event in some))

    def add_client_event(self, client: str, event: Mapping[str, Any]) -> None:
        """Append to a client's own event stream (capped)."""
        self.redis.xadd(
            keyspace.client_events(client),
            {"event": dumps(event)},
            maxlen=CLIENT_EVENTS_KEPT,
            approximate=True,
        )

    def read_events(
        self, streams: Mapping[str, str], block_ms: int | None
    ) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """
        New entries of event streams: (stream key, entry id, event).

        A client's stream may grow faster than it is read: no more is read than the streams held at first.

        Args:
            streams: Key -> id after which to read (``0-0`` from the start).
            block_ms: Wait this long for the first; None: do not wait.
        """
        after = dict(streams)
        if block_ms is not None:
            yield from self._read_some(after, block_ms)
            return
        lasts = dict(zip(after, self._last_ids(after), strict=True))
        while after := {key: at for key, at in after.items() if _number(at) < _number(lasts[key])}:
            found = list(self._read_some(after, None))
            yield from found
            # What was trimmed meanwhile does not come.
            newest = {key: entry for key, entry, _ in found}
            after = {key: newest[key] for key in after if key in newest}

    def _read_some(
        self, after: Mapping[str, str], block_ms: int | None
    ) -> Iterator[tuple[str, str, dict[str, Any]]]:
        found = self.redis.xread(cast(Any, dict(after)), count=READ_AT_ONCE, block=block_ms)
        for key, entries in cast(list[Any], found or []):
            for entry_id, fields in entries:
                yield key.decode(), entry_id.decode(), event_of(fields)

    def newest_events(self, stream: str, count: int) -> list[tuple[str, dict[str, Any]]]:
        """The newest ``count`` entries of a stream, oldest first: (entry id, event)."""
        entries = cast(list[Any], self.redis.xrevrange(stream, count=count))
        return [(key.decode(), event_of(fields)) for key, fields in reversed(entries)]

    def last_event_id(self, stream: str) -> str:
        """Id of the newest entry of a stream; ``0-0`` when there is none."""
        return self._last_ids([stream])[0]

    def _last_ids(self, streams: Iterable[str]) -> list[str]:
        return [entry[0].decode() if entry else "0-0" for entry in self._last(streams)]

    def last_event(self, stream: str) -> dict[str, Any] | None:
        """The newest event of a stream."""
        return self.last_events([stream])[0]

    def last_events(self, streams: Iterable[str]) -> list[dict[str, Any] | None]:
        """The same of several, in their order."""
        return [event_of(entry[1]) if entry else None for entry in self._last(streams)]

    def _last(self, streams: Iterable[str]) -> list[tuple[bytes, dict[bytes, bytes]] | None]:
        """Id and fields of the newest entry of each stream."""
        found = ask_many(self.redis, streams, lambda pipe, key: pipe.xrevrange(key, count=1))
        return [entries[0] if entries else None for entries in found]

    def _write_if(self, guard: str, *commands: list[str]) -> bool:
        """Write commands ``[name, key, ...]``, all or none, if the key ``guard`` exists."""
        keys = [guard, *(command[1] for command in commands)]
        return bool(self._guarded(keys=keys, args=[dumps(commands)]))


def event_command(run: str, event: Mapping[str, Any]) -> list[str]:
    """The command that appends an event to a run's stream."""
    capped = ["MAXLEN", "~", str(EVENTS_KEPT)]
    return ["XADD", keyspace.events(run), *capped, "*", "event", dumps(event)]


def _number(entry: str) -> tuple[int, int]:
    """An entry's id, so that ids can be compared."""
    milliseconds, _, sequence = entry.partition("-")
    return int(milliseconds), int(sequence or 0)
