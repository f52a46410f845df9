"""The connection to the control server that its parts share, with the reads and writes common to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import redis
from redis.client import Pipeline

from fl_queue.common.safe_json import dumps, printable
from fl_queue.store.batching import ask_many
from fl_queue.store.connection import script
from fl_queue.store.unreadable import Unreadable

#: Longest field that is read of a hash which a worker writes; fl-queue's own are far shorter.
MAX_FIELD_BYTES = 4096


class ControlServer:
    """
    One connection to the control server.

    Args:
        client: A retrying client.
    """

    def __init__(self, client: redis.Redis) -> None:
        self.redis = client
        self.unreadable = Unreadable()
        self._guarded = script(client, "guarded")

    def now(self) -> float:
        """Unix time of the control server, seconds: for records, never for decisions."""
        seconds, micros = cast(tuple[int, int], self.redis.time())
        return seconds + micros / 1e6

    def hash(self, key: str) -> dict[bytes, bytes]:
        """All fields of a hash; empty when it is not there."""
        return cast(dict[bytes, bytes], self.redis.hgetall(key))

    def field(self, key: str, name: str) -> bytes | None:
        """One field of a hash."""
        return cast("bytes | None", self.redis.hget(key, name))

    def string(self, key: str) -> bytes | None:
        """A string; None when it is not there."""
        return cast("bytes | None", self.redis.get(key))

    def short_fields(self, keys: Iterable[str], fields: Sequence[str]) -> list[dict[str, str]]:
        """The given fields of some hashes that are there and not too long, as printable text."""
        asked = list(keys)
        each = [(key, name) for key in asked for name in fields]
        lengths = ask_many(self.redis, each, lambda pipe, item: pipe.hstrlen(*item))
        short: dict[str, list[str]] = {}
        for (key, name), length in zip(each, lengths, strict=True):
            if 0 < length <= MAX_FIELD_BYTES:
                short.setdefault(key, []).append(name)
        found = ask_many(self.redis, short, lambda pipe, key: pipe.hmget(key, short[key]))
        read = {
            key: printable_fields(dict(zip(some, values, strict=True)))
            for (key, some), values in zip(short.items(), found, strict=True)
        }
        return [read.get(key, {}) for key in asked]

    def write_if(self, guard: str, *commands: list[str]) -> bool:
        """Write commands ``[name, key, ...]``, all or none, if the key ``guard`` exists."""
        keys = [guard, *(command[1] for command in commands)]
        return bool(self._guarded(keys=keys, args=[dumps(commands)]))

    def transact(
        self, watched: Iterable[str], body: Callable[[Pipeline], Callable[[], None] | None]
    ) -> bool:
        """
        Compare and set: ``body`` reads under WATCH and returns the writes, or None for nothing to do.

        Returns:
            Whether the writes were made. False also when a watched key was changed meanwhile, or
            the connection broke: read again, and repeat if the change is still needed.
        """
        with self.redis.pipeline() as pipe:
            try:
                pipe.watch(*watched)
                write = body(pipe)
                if write is None:
                    return False
                pipe.multi()
                write()
                pipe.execute()
            except redis.WatchError:
                return False
        return True


def as_text(raw: Mapping[bytes, bytes]) -> dict[str, str]:
    """Decode a hash as Redis returns it."""
    return {
        key.decode(errors="replace"): value.decode(errors="replace") for key, value in raw.items()
    }


def text_of(value: Any) -> str:
    """Return a hash field's value: text unchanged, anything else as JSON."""
    return value if isinstance(value, str) else dumps(value)


def printable_fields(raw: Mapping[str, bytes | None]) -> dict[str, str]:
    """Return fields that a worker wrote, which may hold any bytes, as printable text."""
    return {
        name: printable(value[:MAX_FIELD_BYTES].decode(errors="replace"))
        for name, value in raw.items()
        if value is not None
    }


def number_of(value: Any) -> float | None:
    """Return a reply as a number, or None."""
    return None if value is None else float(value)
