"""
Skip entries in Redis that cannot be parsed, and report each once per process.

Any user with write access may write garbage, and one bad entry must not keep its readers from the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from fl_queue.errors import MessageError

log = logging.getLogger(__name__)

Key = TypeVar("Key")
Value = TypeVar("Value")

#: Limit on the entries to report, as an attacker may write any number of them.
MOST = 100


class Entry(NamedTuple):
    """
    An entry that cannot be parsed.

    Args:
        key: The Redis key.
        entry: Field, member or index in it; empty: the whole key.
    """

    key: str
    entry: str


class Unreadable:
    """The unreadable entries that one connection has met."""

    def __init__(self) -> None:
        #: Entry -> reason.
        self.found: dict[Entry, str] = {}
        self._unreported: list[Entry] = []

    def note(self, key: str, entry: object, why: MessageError) -> None:
        """Note an entry that is skipped. Args: ``entry``: its field, member or index."""
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
        Parse entries; skip and note those that cannot be parsed.

        Args:
            entries: Pairs of field and value, as Redis returns them.
            parse: Returns key and value of an entry, or raises ``MessageError``.
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
        """The entries since the last call, each once."""
        fresh, self._unreported = self._unreported, []
        return {entry: self.found[entry] for entry in fresh}
