"""
Detect and delete client-writable keys of a wrong Redis type.

A command on such a key fails as long as the key exists. A results list that is no list, for example, holds
no results that could be lost: it is removed, and the removal is reported.
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

#: Called with the key and its wrong type.
Report = Callable[[str, str], None]
#: Pattern and type of the keys that clients may write, or whose content can be pushed again.
_TYPES = [
    *((key.regex(), key.kind) for key in key_table.KEYS if key.removable),
    *((re.compile(pattern), kind) for pattern, kind in key_table.RQ_PATTERNS),
]


class WrongType(MessageError, redis.ResponseError):
    """A key that only the operator may write has a wrong type; it is not removed automatically."""


def is_wrong_type(error: Any) -> bool:
    """Whether an error means that a key has a wrong type; also as wrapped by a script's error."""
    return isinstance(error, WrongType) or (
        isinstance(error, redis.ResponseError) and "WRONGTYPE" in str(error)
    )


def type_of(key: str) -> str | None:
    """The Redis type that a key should have; None for keys that no client may write."""
    return next((kind for pattern, kind in _TYPES if pattern.fullmatch(key)), None)


def remove_wrong(client: redis.Redis, words: Iterable[Any], report: Report | None) -> bool:
    """
    Remove the keys of a wrong type among the words of a command.

    Returns:
        Whether a key was removed.
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
                continue  # This user may only read.
            found = True
            log.warning("%s was a %s instead of a %s: removed", key, kind, wanted)
            if report is not None:
                report(key, kind)
    return found


def named(error: redis.ResponseError, words: Sequence[Any]) -> redis.ResponseError:
    """The error of a command; if it is about a wrong type, the ``WrongType`` that names the key."""
    if not is_wrong_type(error) or isinstance(error, WrongType):
        return error
    key = next((word for word in words[1:] if str(word).startswith("flq:")), "a key")
    return WrongType(f"{str(key)[:100]} on Redis is of another type than it should be; remove it")
