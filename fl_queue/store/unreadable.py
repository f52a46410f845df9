"""
What is in Redis and cannot be read as what it should be: left out, and reported once a process.

Anybody who may write there may write anything. One bad entry must not keep its readers from the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from fl_queue.errors import MessageError

log = logging.getLogger(__name__)

Key = TypeVar("Key")
Value = TypeVar("Value")

#: Entries that are remembered and reported; of more there are as many as somebody cares to write.
MOST = 100


class Entry(NamedTuple):
    """
    An entry that cannot be read.

    Args:
        key: Of Redis.
        entry: Its field, member or place; empty: all of it.
    """

    key: str
    entry: str


class Unreadable:
    """The entries that one connection has met."""

    def __init__(self) -> None:
        #: Entry -> why.
        self.found: dict[Entry, str] = {}
        self._unreported: list[Entry] = []

    def note(self, key: str, entry: object, why: MessageError) -> None:
        """An entry is left out. Args: ``entry``: its field, member or place."""
        text = entry.decode(errors="replace") if isinstance(entry, bytes) else str(entry)
        named = Entry(key[:200], ascii(text[:80])[1:-1])
        if named in self.found or len(self.found) >= MOST:
            return
        self.found[named] = why.reason
        self._unreported.append(named)
        log.warning("%s %s is unreadable and left out: %s", *named, why.reason)

    def each(
        self,
        key: str,
        entries: Iterable[tuple[Any, Any]],
        parse: Callable[[Any, Any], tuple[Key, Value]],
    ) -> dict[Key, Value]:
        """
        What some entries say, without those that cannot be read.

        Args:
            entries: As Redis returns them: field and value.
            parse: Makes an entry of them, or raises ``MessageError``.
        """
        read: dict[Key, Value] = {}
        for field, value in entries:
            try:
                name, found = parse(field, value)
            except MessageError as exc:
                self.note(key, field, exc)
            else:
                read[name] = found
        return read

    def to_report(self) -> Mapping[Entry, str]:
        """What was met since the last call, each once."""
        fresh, self._unreported = self._unreported, []
        return {entry: self.found[entry] for entry in fresh}
