"""Records of a run's ended rounds on the control server."""

from __future__ import annotations

from typing import cast

from fl_queue.protocol.records import RoundRecord
from fl_queue.store import keyspace
from fl_queue.store.control.server import ControlServer


class History:
    """
    Reads of the history; the commit script appends to it.

    Args:
        server: The control server.
    """

    def __init__(self, server: ControlServer) -> None:
        self._server = server

    def records(self, run: str, last: int = 0) -> list[RoundRecord]:
        """Every ended round, in order; or the ``last`` so many."""
        return [*self._records(run, -last).values()]

    def records_from(self, run: str, place: int) -> tuple[list[RoundRecord], int]:
        """Ended rounds from a place in the history on, and the place behind the last."""
        count = cast(int, self._server.redis.llen(keyspace.history(run)))
        found = self._records(run, place) if place < count else {}
        return [*found.values()], max(count, *(index + 1 for index in found)) if found else count

    def _records(self, run: str, first: int) -> dict[int, RoundRecord]:
        """Place, from ``first`` on, -> the record there."""
        key = keyspace.history(run)
        raw = cast(list[bytes], self._server.redis.lrange(key, first, -1))
        return self._server.unreadable.each(
            key, enumerate(raw, first), lambda place, text: (place, RoundRecord.from_json(text))
        )
