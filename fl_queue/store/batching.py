"""Many commands of one kind in few round trips, each of which may take half a millisecond or more."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import redis
from redis.client import Pipeline

Item = TypeVar("Item")

#: Items of one round trip; more would delay the server's other clients.
AT_ONCE = 500


def batches(items: Iterable[Item], size: int = AT_ONCE) -> Iterator[list[Item]]:
    """The items in lists of ``size``, the last one shorter; lazily."""
    left = iter(items)
    while some := list(islice(left, size)):
        yield some


def ask_many(
    client: redis.Redis, items: Iterable[Item], ask: Callable[[Pipeline, Item], Any]
) -> list[Any]:
    """
    Send one command for each item, in batches.

    Args:
        ask: Adds the item's command to a pipeline.

    Returns:
        The answers, in the order of the items.

    Raises:
        StoreUnavailable: The server cannot be used now.
    """
    answers: list[Any] = []
    for batch in batches(items):
        with client.pipeline(transaction=False) as pipe:
            for item in batch:
                ask(pipe, item)
            answers += pipe.execute()
    return answers


def keys_like(client: redis.Redis, patterns: Iterable[str], part: str = "") -> list[bytes]:
    """
    The keys of a server that match any of the patterns, by one scan of all its keys.

    Args:
        part: Text that all these keys contain, so that the server can filter them.
    """
    wanted = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns))
    found = client.scan_iter(match=f"*{part}*" if part else None, count=1000)
    return [key for key in found if wanted.fullmatch(key.decode(errors="replace"))]


def unlink_all(client: redis.Redis, keys: Iterable[bytes]) -> None:
    """Remove keys, in batches."""
    for some in batches(keys):
        client.unlink(*some)
