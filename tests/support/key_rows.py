"""The rows of the table of keys that a key's name matches."""

from __future__ import annotations

from fl_queue.store.key_table import KEYS, Key


def rows_of(name: str) -> list[Key]:
    """The rows that the name of a key matches; one, of each key of fl-queue."""
    return [key for key in KEYS if key.regex().fullmatch(name)]
