"""
Entries of event streams, read as plain data.

Clients write the streams of their own events, so an entry may hold anything: what readers take for
text or a number is that, or the whole entry is ``unreadable``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl_queue.common.safe_json import clean, loads
from fl_queue.errors import MessageError

#: No entry of ours comes near it, but a cohort's.
LONGEST_BYTES = 1 << 20
_TEXT = (
    "event", "run", "client", "status", "reason", "purpose", "what", "key", "by", "job", "state", "of",
)  # fmt: skip
_COUNTS = ("round", "epoch", "epochs", "clients", "rounds")
_NUMBERS = ("accuracy", "loss")
_MOST = 2**53


def event_of(fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """
    The event in an entry: a map with text ``event``, and plain values in which nothing moves a cursor.

    Args:
        fields: Of the entry, as Redis returns them.
    """
    try:
        return _checked(fields.get(b"event"))
    except MessageError as exc:
        return {"event": "unreadable", "reason": exc.reason}


def _checked(text: bytes | None) -> dict[str, Any]:
    if text is None:
        raise MessageError("not an event: it has no field event")
    if len(text) > LONGEST_BYTES:
        raise MessageError(f"not an event: {len(text)} bytes")
    event = clean(loads(text, "an event"), "an event")
    if type(event) is not dict or "event" not in event:
        raise MessageError("not an event: no map with an event")
    for name, value in event.items():
        if not _fits(name, value):
            raise MessageError(f"not an event: field {name[:64]} is {str(value)[:64]!r}")
    return event


def _fits(name: str, value: Any) -> bool:
    if name == "left_out":
        return type(value) is dict and all(type(why) is str for why in value.values())
    if name in _TEXT:
        return type(value) is str
    if name in _COUNTS:
        return type(value) is int and -_MOST <= value <= _MOST
    if name in _NUMBERS:
        return type(value) in (int, float) and -_MOST <= value <= _MOST
    if name == "version":
        return value is None or (type(value) is int and -_MOST <= value <= _MOST)
    if name == "logged":
        return type(value) is dict and all(type(mean) in (int, float) for mean in value.values())
    if name == "cohort":
        return type(value) is list and all(type(client) is str for client in value)
    return True
