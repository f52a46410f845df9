"""Chunks on the data server: models, large updates and partial sums in pieces of limited size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import cast

import redis

from fl_queue.errors import ChunksMissing
from fl_queue.store import keyspace
from fl_queue.store.bulk_transfer import read_values, write_values
from fl_queue.store.connection import script

_DROPPED_AT_ONCE = 64


class Chunks:
    """
    Reads and writes of chunks.

    Args:
        client: A retrying client of the data server.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._insist = script(client, "insist")

    def put(
        self,
        name: str,
        pieces: Iterable[memoryview],
        lifetime_s: int | None,
        skip_present: bool = False,
        insist: bool = False,
    ) -> None:
        """
        Store a blob's chunks; repeating it is harmless.

        Args:
            name: Of the blob: ``keyspace.model_blob``, ``update_blob`` or ``partial_blob``.
            pieces: Each must stay as it is until the second one after it is asked for; with
                ``skip_present``, until the end.
            lifetime_s: They expire after this time; None: never (models are removed when superseded).
            skip_present: Go on with an interrupted upload: send only chunks that are not there in
                their length, the others just live on. Not for a blob whose content a reader refused.
            insist: Write even to a full server, as the run cannot go on without these chunks.

        Raises:
            StoreUnavailable: The connection broke; call it again. Or the server is full.
        """
        values = ((keyspace.chunk(name, index), piece) for index, piece in enumerate(pieces))

        def store_anyway(key: str, piece: memoryview) -> None:
            self._insist(keys=[key], args=[cast(str, piece), lifetime_s or 0])

        write_values(
            self._redis,
            self._absent(list(values), lifetime_s) if skip_present else values,
            lifetime_s,
            store_anyway if insist else None,
        )

    def _absent(
        self, values: list[tuple[str, memoryview]], lifetime_s: int | None
    ) -> Iterator[tuple[str, memoryview]]:
        with self._redis.pipeline(transaction=False) as pipe:
            for key, _ in values:
                # First its life is prolonged: what is there after that stays.
                pipe.persist(key) if lifetime_s is None else pipe.expire(key, lifetime_s)
                pipe.strlen(key)
            # An error is that the key holds something else; it is overwritten.
            lengths = pipe.execute(raise_on_error=False)[1::2]
        return (
            value for value, length in zip(values, lengths, strict=True) if length != len(value[1])
        )

    def are_missing(self, name: str, count: int) -> bool:
        """Whether any of a blob's ``count`` chunks is not there."""
        keys = [keyspace.chunk(name, index) for index in range(count)]
        return bool(keys) and cast(int, self._redis.exists(*keys)) < count

    def check(self, name: str, nbytes: int, chunk_bytes: int) -> None:
        """
        Raise unless a blob of ``nbytes`` is there, by the lengths of its chunks; none is read.

        Raises:
            ChunksMissing: A chunk is not there, or has another length than it should.
        """
        starts = range(0, nbytes, chunk_bytes)
        with self._redis.pipeline(transaction=False) as pipe:
            for index in range(len(starts)):
                pipe.strlen(keyspace.chunk(name, index))
            found = pipe.execute(raise_on_error=False)  # An error: it is no string.
        for index, (start, length) in enumerate(zip(starts, found, strict=True)):
            if length != min(chunk_bytes, nbytes - start):
                raise ChunksMissing(name.rpartition(":")[2], index)

    def get(self, name: str, nbytes: int, chunk_bytes: int) -> bytearray:
        """
        Read a blob of ``nbytes`` from its chunks.

        Raises:
            ChunksMissing: A chunk is not there, or has another length than it should.
        """
        body = bytearray(nbytes)
        self.read_into(name, nbytes, chunk_bytes, memoryview(body))
        return body

    def read_into(
        self,
        name: str,
        nbytes: int,
        chunk_bytes: int,
        view: memoryview,
        first: int = 0,
        on_chunk: Callable[[int, memoryview], None] | None = None,
    ) -> None:
        """
        Read a blob's chunks into memory, without a copy on the way.

        Args:
            view: Writable bytes, ``nbytes`` long; chunk i goes to ``i * chunk_bytes``.
            first: Chunks before this one are in the view already, and are not read.
            on_chunk: Called after each with its index and its part of the view, in order.

        Raises:
            ChunksMissing: A chunk is not there, or has another length than it should.
            StoreUnavailable: The connection broke; chunks passed to ``on_chunk`` are in the view.
        """
        chunks = [view[start : start + chunk_bytes] for start in range(0, nbytes, chunk_bytes)]
        for index, piece in self._read(name, first, chunks[first:]):
            if on_chunk is not None:
                on_chunk(index, piece)

    def iterate(
        self, name: str, nbytes: int, chunk_bytes: int, first: int = 0
    ) -> Iterator[memoryview]:
        """
        Read a blob's chunks from ``first`` on, never holding more than one.

        Yields:
            Each chunk, in order; its memory is used again for the next one.

        Raises:
            ChunksMissing: A chunk is not there, or has another length than it should.
            StoreUnavailable: The connection broke.
        """
        buffer = memoryview(bytearray(min(chunk_bytes, nbytes)))
        starts = range(first * chunk_bytes, nbytes, chunk_bytes)
        chunks = [buffer[: min(chunk_bytes, nbytes - start)] for start in starts]
        for _, piece in self._read(name, first, chunks):
            yield piece

    def _read(
        self, name: str, first: int, chunks: list[memoryview]
    ) -> Iterator[tuple[int, memoryview]]:
        keys = (keyspace.chunk(name, first + offset) for offset in range(len(chunks)))
        found = read_values(self._redis, zip(keys, chunks, strict=True))
        for offset, there in enumerate(found):
            if not there:
                raise ChunksMissing(name.rpartition(":")[2], first + offset)
            yield first + offset, chunks[offset]

    def set_lifetime(self, name: str, count: int, lifetime_s: int | None) -> None:
        """A blob's chunks stay from now on for this time; None: until they are dropped."""
        with self._redis.pipeline(transaction=False) as pipe:
            for index in range(count):
                key = keyspace.chunk(name, index)
                pipe.persist(key) if lifetime_s is None else pipe.expire(key, lifetime_s)
            pipe.execute()

    def drop(self, name: str, count: int, all_of_them: bool = True) -> None:
        """
        Remove a blob's chunks.

        Args:
            all_of_them: False where ``count`` is an unchecked claim: it ends at the first gap, and
                chunks behind it expire.
        """
        step = count if all_of_them else _DROPPED_AT_ONCE
        for start in range(0, count, step or 1):
            stop = min(start + step, count)
            found = self._redis.unlink(
                *[keyspace.chunk(name, index) for index in range(start, stop)]
            )
            if not found:
                return
