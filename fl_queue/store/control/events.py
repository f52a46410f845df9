"""Event streams of runs and clients on the control server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from redis.client import Pipeline

from fl_queue.common.safe_json import dumps
from fl_queue.store import keyspace
from fl_queue.store.batching import ask_many, batches
from fl_queue.store.control.server import ControlServer

if TYPE_CHECKING:
    from fl_queue.protocol.events import Event

#: Events of a run that are kept.
EVENTS_KEPT = 10_000
#: Events of a client that are kept.
CLIENT_EVENTS_KEPT = 1_000
#: Entries that share a round trip.
READ_AT_ONCE = 1_000


class Events:
    """
    Reads and writes of event streams.

    Args:
        server: The control server.
    """

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._redis = server.redis

    def add(self, run: str, event: Event, pipe: Pipeline | None = None) -> None:
        """Append to the run's event stream (capped)."""
        if pipe is None:
            self._server.write_if(keyspace.run(run), event_command(run, event))
        else:
            pipe.execute_command(*event_command(run, event))

    def add_many(self, run: str, events: Iterable[Event]) -> None:
        """Append several, at once."""
        for some in batches(events):
            self._server.write_if(keyspace.run(run), *(event_command(run, event) for event in some))

    def add_of_client(self, client: str, event: Event) -> None:
        """Append to a client's own event stream (capped)."""
        self._redis.xadd(
            keyspace.client_events(client),
            {"event": dumps(event.to_dict())},
            maxlen=CLIENT_EVENTS_KEPT,
            approximate=True,
        )

    def read(
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
        found = self._redis.xread(cast(Any, dict(after)), count=READ_AT_ONCE, block=block_ms)
        for key, entries in cast(list[Any], found or []):
            for entry_id, fields in entries:
                yield key.decode(), entry_id.decode(), _event_of(fields)

    def newest(self, stream: str, count: int) -> list[tuple[str, dict[str, Any]]]:
        """The newest ``count`` entries of a stream, oldest first: (entry id, event)."""
        entries = cast(list[Any], self._redis.xrevrange(stream, count=count))
        return [(key.decode(), _event_of(fields)) for key, fields in reversed(entries)]

    def last_id(self, stream: str) -> str:
        """Id of the newest entry of a stream; ``0-0`` when there is none."""
        return self._last_ids([stream])[0]

    def _last_ids(self, streams: Iterable[str]) -> list[str]:
        return [entry[0].decode() if entry else "0-0" for entry in self._newest_entries(streams)]

    def last(self, stream: str) -> dict[str, Any] | None:
        """The newest event of a stream."""
        return self.last_of_each([stream])[0]

    def last_of_each(self, streams: Iterable[str]) -> list[dict[str, Any] | None]:
        """The newest event of each of several streams, in their order."""
        return [_event_of(entry[1]) if entry else None for entry in self._newest_entries(streams)]

    def _newest_entries(
        self, streams: Iterable[str]
    ) -> list[tuple[bytes, dict[bytes, bytes]] | None]:
        """Id and fields of the newest entry of each stream."""
        found = ask_many(self._redis, streams, lambda pipe, key: pipe.xrevrange(key, count=1))
        return [entries[0] if entries else None for entries in found]


def _event_of(fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    # Fifty classes, which a worker that becomes ready does not need.
    from fl_queue.protocol.events import event_of

    return event_of(fields)


def event_command(run: str, event: Event) -> list[str]:
    """The command that appends an event to a run's stream."""
    capped = ["MAXLEN", "~", str(EVENTS_KEPT)]
    return ["XADD", keyspace.events(run), *capped, "*", "event", dumps(event.to_dict())]


def _number(entry: str) -> tuple[int, int]:
    """An entry's id, so that ids can be compared."""
    milliseconds, _, sequence = entry.partition("-")
    return int(milliseconds), int(sequence or 0)
