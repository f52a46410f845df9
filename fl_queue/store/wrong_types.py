"""
Keys that clients may write, and that have become something else than they should be.

A command on such a key fails for as long as the key is there. What is not a list, say, is no results
list and holds nothing that could be lost: it is removed, and reported.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import redis

from fl_queue.errors import MessageError, StoreUnavailable
from fl_queue.store import key_table

log = logging.getLogger(__name__)

#: Called with key and the type it had.
Report = Callable[[str, str], None]
#: Of keys that clients may write, or whose content can be pushed again.
_TYPES = [
    *((key.regex(), key.kind) for key in key_table.KEYS if key.removable),
    *((re.compile(pattern), kind) for pattern, kind in key_table.RQ_PATTERNS),
]


class WrongType(MessageError, redis.ResponseError):
    """A key of the operator's side, which nobody removes, holds something else than it should."""


def is_wrong_type(error: Any) -> bool:
    """Whether an error says that a key holds something else; a script's error wraps it."""
    return isinstance(error, WrongType) or (
        isinstance(error, redis.ResponseError) and "WRONGTYPE" in str(error)
    )


def type_of(key: str) -> str | None:
    """What a key should hold; None of keys that no client may write."""
    return next((kind for pattern, kind in _TYPES if pattern.fullmatch(key)), None)


def remove_wrong(client: redis.Redis, words: Iterable[Any], report: Report | None) -> bool:
    """
    Remove, of the keys among the words of a command, those of a wrong type.

    Returns:
        Whether there was one.
    """
    found = False
    for word in words:
        key = word.decode(errors="replace") if isinstance(word, bytes) else word
        wanted = type_of(key) if isinstance(key, str) else None
        if wanted is None:
            continue
        kind = cast(bytes, client.type(word)).decode()
        if kind not in (wanted, "none"):
            try:
                client.delete(word)
            except StoreUnavailable:
                continue  # This user only reads.
            found = True
            log.warning("%s was a %s instead of a %s: removed", key, kind, wanted)
            if report is not None:
                report(key, kind)
    return found


def said(error: redis.ResponseError, words: Sequence[Any]) -> redis.ResponseError:
    """The error of a command; one that names its key where that is of a wrong type."""
    if not is_wrong_type(error) or isinstance(error, WrongType):
        return error
    key = next((word for word in words[1:] if str(word).startswith("flq:")), "a key")
    return WrongType(f"{str(key)[:100]} on Redis is of another type than it should be; remove it")
