"""
The data server: the results list, taken lists, chunks and models.

It may vanish and come back empty: everything here can be pushed again from an outbox or a
checkpoint. ``identity`` tells when that happened.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import redis

from fl_queue.errors import ChunksMissing, OwnershipLost, StoreUnavailable
from fl_queue.store import keyspace
from fl_queue.store.admission import Admission
from fl_queue.store.bulk_transfer import read_values, write_values
from fl_queue.store.connection import Servers, connection_errors, identity_keys, script
from fl_queue.store.presence import as_text

#: An incarnation that has not extended its lease for this long has lost its taken list.
OWNER_LIFETIME_S = 6.0
#: Earlier incarnations whose taken lists are looked at. One is enough in normal operation: a list
#: of an older one can only be filled by a blocking move sent by a process that was asleep since.
INCARNATIONS_LOOKED_AT = 64
_DROPPED_AT_ONCE = 64
#: Fences from its own on that a new incarnation looks at: a control server that lost its last writes counts
#: to them once more. Each lost claim of an aggregator is one.
_FENCES_LOST = 16
#: Elements taken at one go, past so many bytes no further one is.
TAKEN_BYTES = 256 * 1024
#: Of what somebody has published no more is looked at.
_LONGEST_RUN_ID = 100

log = logging.getLogger(__name__)


class Data(Admission):
    """Every read and write of blobs."""

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers.data)
        self._once = servers.once
        self._blocking = servers.blocking
        self._identity = script(self.redis, "identity")
        self._own = script(self.redis, "own")
        self._give_back = script(self.redis, "give_back")
        self._extend = script(self.redis, "extend")
        self._discard = script(self.redis, "discard")
        self._take = script(self._once, "take")
        self._refuse = script(self.redis, "refuse")
        self._insist = script(self.redis, "insist")
        self._save_partial = script(self.redis, "save_partial")
        self._drop_partial = script(self.redis, "drop_partial")

    def identity(self) -> str:
        """
        Identity of the server process and of its content; of all nodes, if it is a cluster.

        Changes when one restarts (it may have lost data) and when it is flushed.
        """
        return ",".join(
            self._identity(keys=[key], args=[secrets.token_hex(8)]).decode()
            for key in identity_keys(self.redis)
        )

    def ping(self) -> None:
        """Raises StoreUnavailable when the data server does not answer."""
        self.redis.ping()

    def probe(self) -> None:
        """Raises StoreUnavailable when the data server takes no writes now; memory is not asked for."""
        for key in identity_keys(self.redis):
            # A write that changes nothing: these keys never expire.
            self.redis.persist(key)

    # Results and taken lists

    def push(self, run: str, element: bytes) -> None:
        """
        Append one element to the results list, without a retry: RPUSH is not idempotent.

        Raises:
            StoreUnavailable: It may or may not have arrived; push it again under the same token.
        """
        self._once.rpush(keyspace.results(run), element)
        # Only for speed: whoever waits looks once a second anyway.
        with suppress(StoreUnavailable):
            self._once.publish(keyspace.ARRIVALS, run)

    def waiting(self, run: str) -> int:
        """Elements in the results list."""
        return cast(int, self.redis.llen(keyspace.results(run)))

    def peek(self, run: str) -> bytes | None:
        """The oldest element of the results list, which stays there."""
        return cast("bytes | None", self.redis.lindex(keyspace.results(run), 0))

    def remove(self, run: str, element: bytes) -> None:
        """Remove an element whose round has ended; sent again it finds nothing, or a copy as late."""
        self.redis.lrem(keyspace.results(run), 1, cast(str, element))

    def forget_results(self, run: str) -> None:
        """Remove the results list of a run that has been deleted."""
        self.redis.unlink(keyspace.results(run))

    def held(self, run: str, fence: int) -> int:
        """Elements held by the incarnations up to ``fence``."""
        with self.redis.pipeline(transaction=False) as pipe:
            for earlier in _incarnations(fence + 1):
                pipe.llen(keyspace.taken(run, earlier))
            return sum(cast(list[int], pipe.execute()))

    def take(self, run: str, fence: int, token: str, most: int = 1) -> list[bytes]:
        """
        Move the oldest elements of the results list to our taken list and return them.

        A lost reply leaves them on the taken list: the incarnation must end, and the next one gets
        them back.

        Args:
            most: No more than so many, and only the first one may be larger than ``TAKEN_BYTES``.

        Raises:
            StoreUnavailable: The connection broke.
            OwnershipLost: The list is not ours (any more); nothing was moved.
        """
        # Not a blocking move: that waits for one run only, and others may need their aggregator.
        keys = [keyspace.results(run), keyspace.taken(run, fence), keyspace.owner(run, fence)]
        found = self._take(keys=keys, args=[most, TAKEN_BYTES, token])
        if found is None:
            raise OwnershipLost(f"run {run}: incarnation {fence} has lost its taken list")
        return cast(list[bytes], found)

    def refuse(self, run: str, fence: int, token: str, length: int, places: Sequence[int]) -> bool:
        """
        Remove elements of our taken list that are not wanted; idempotent.

        Args:
            length: Elements on it.
            places: Which of them go, from 0.

        Returns:
            False when we do not own the list any more; then nothing was removed.
        """
        keys = [keyspace.taken(run, fence), keyspace.owner(run, fence)]
        return bool(self._refuse(keys=keys, args=[token, length, secrets.token_hex(16), *places]))

    def doorbell(self) -> Doorbell:
        """Listens, from now on, for elements that arrive."""
        return Doorbell(self._blocking)

    def own(self, run: str, fence: int, token: str) -> int:
        """
        Become the owner of ``taken:<fence>``; what other incarnations hold comes back first.

        Returns:
            0; or the highest fence from this one on that somebody has used before: the control server,
            which counts them, has lost its last writes. Then claim again, above that.
        """
        others = range(_incarnations(fence).start, fence + _FENCES_LOST)
        keys = [keyspace.results(run), keyspace.owner(run, fence), *_keys_of(run, others)]
        args: list[Any] = [token, int(OWNER_LIFETIME_S * 1000), fence, others.start]
        return int(self._own(keys=keys, args=args))

    def extend(self, run: str, fence: int, token: str) -> None:
        """
        Extend our lease.

        Raises:
            OwnershipLost: It had run out, or the data server lost it.
        """
        if not self._extend(
            keys=[keyspace.owner(run, fence)], args=[token, int(OWNER_LIFETIME_S * 1000)]
        ):
            raise OwnershipLost(f"run {run}: incarnation {fence} has lost its taken list")

    def owned(self, run: str, fence: int) -> bool:
        """Whether an incarnation's lease lives."""
        return bool(self.redis.exists(keyspace.owner(run, fence)))

    def discard(self, run: str, fence: int, token: str, looked_at: int) -> None:
        """Remove the elements we have looked at, whose rounds have all ended."""
        self._discard(
            keys=[keyspace.taken(run, fence), keyspace.owner(run, fence)],
            args=[token, looked_at, looked_at],
        )

    def save_partial(
        self,
        run: str,
        fence: int,
        token: str,
        looked_at: int,
        fields: Mapping[str, Any],
    ) -> bool:
        """
        In one step: record a partial sum, and remove the elements it was made of.

        Args:
            looked_at: Elements on our taken list, all of them looked at.
            fields: What ``partial`` returns afterwards; ``nonce`` first, new in each call.

        Returns:
            False when we do not own the taken list any more.
        """
        keys = [keyspace.taken(run, fence), keyspace.owner(run, fence), keyspace.partial(run)]
        args: list[Any] = [token, looked_at]
        for key, value in fields.items():
            args += [key, value]
        return bool(self._save_partial(keys=keys, args=args))

    def partial(self, run: str) -> dict[str, str]:
        """What was recorded of the partial sum; empty when there is none."""
        return as_text(cast(dict[bytes, bytes], self.redis.hgetall(keyspace.partial(run))))

    def drop_partial(self, run: str, nonce: str) -> None:
        """Forget the record of a partial sum, unless another one is in its place."""
        self._drop_partial(keys=[keyspace.partial(run)], args=[nonce])

    def disown(self, run: str, fence: int) -> None:
        """Give up our lease: what is left on our taken list goes back to the results list."""
        self.redis.delete(keyspace.owner(run, fence))
        self.give_back(run, fence)

    def give_back(self, run: str, fence: int) -> int:
        """Move what incarnations up to ``fence`` hold without a living owner back to results."""
        return int(self._give_back(keys=[keyspace.results(run), *_pairs(run, fence + 1)]))

    # Chunks

    def put_chunks(
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
            insist: A full server takes them, too: somebody fills it, and without them the run stands still.

        Raises:
            StoreUnavailable: The connection broke; call it again. Or the server is full.
        """
        values = ((keyspace.chunk(name, index), piece) for index, piece in enumerate(pieces))

        def store_anyway(key: str, piece: memoryview) -> None:
            self._insist(keys=[key], args=[cast(str, piece), lifetime_s or 0])

        write_values(
            self.redis,
            self._absent(list(values), lifetime_s) if skip_present else values,
            lifetime_s,
            store_anyway if insist else None,
        )

    def _absent(
        self, values: list[tuple[str, memoryview]], lifetime_s: int | None
    ) -> Iterator[tuple[str, memoryview]]:
        with self.redis.pipeline(transaction=False) as pipe:
            for key, _ in values:
                # First its life is prolonged: what is there after that stays.
                pipe.persist(key) if lifetime_s is None else pipe.expire(key, lifetime_s)
                pipe.strlen(key)
            # An error is that the key holds something else; it is overwritten.
            lengths = pipe.execute(raise_on_error=False)[1::2]
        return (
            value for value, length in zip(values, lengths, strict=True) if length != len(value[1])
        )

    def missing_chunks(self, name: str, count: int) -> bool:
        """Whether any of a blob's ``count`` chunks is not there."""
        keys = [keyspace.chunk(name, index) for index in range(count)]
        return bool(keys) and cast(int, self.redis.exists(*keys)) < count

    def check_chunks(self, name: str, nbytes: int, chunk_bytes: int) -> None:
        """
        Raise unless a blob of ``nbytes`` is there, by the lengths of its chunks; none is read.

        Raises:
            ChunksMissing: A chunk is not there, or has another length than it should.
        """
        starts = range(0, nbytes, chunk_bytes)
        with self.redis.pipeline(transaction=False) as pipe:
            for index in range(len(starts)):
                pipe.strlen(keyspace.chunk(name, index))
            found = pipe.execute(raise_on_error=False)  # An error: it is no string.
        for index, (start, length) in enumerate(zip(starts, found, strict=True)):
            if length != min(chunk_bytes, nbytes - start):
                raise ChunksMissing(name.rpartition(":")[2], index)

    def get_chunks(self, name: str, nbytes: int, chunk_bytes: int) -> bytearray:
        """
        Read a blob of ``nbytes`` from its chunks.

        Raises:
            ChunksMissing: A chunk is not there, or has another length than it should.
        """
        body = bytearray(nbytes)
        self.read_chunks_into(name, nbytes, chunk_bytes, memoryview(body))
        return body

    def read_chunks_into(
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
            StoreUnavailable: The connection broke; what ``on_chunk`` was told is in the view.
        """
        chunks = [view[start : start + chunk_bytes] for start in range(0, nbytes, chunk_bytes)]
        for index, piece in self._read(name, first, chunks[first:]):
            if on_chunk is not None:
                on_chunk(index, piece)

    def iter_chunks(
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
        found = read_values(self.redis, zip(keys, chunks, strict=True))
        for offset, there in enumerate(found):
            if not there:
                raise ChunksMissing(name.rpartition(":")[2], first + offset)
            yield first + offset, chunks[offset]

    def keep_chunks(self, name: str, count: int, lifetime_s: int | None) -> None:
        """A blob's chunks stay from now on for this time; None: until they are dropped."""
        with self.redis.pipeline(transaction=False) as pipe:
            for index in range(count):
                key = keyspace.chunk(name, index)
                pipe.persist(key) if lifetime_s is None else pipe.expire(key, lifetime_s)
            pipe.execute()

    def drop_chunks(self, name: str, count: int, all_of_them: bool = True) -> None:
        """
        Remove a blob's chunks.

        Args:
            all_of_them: False where ``count`` is somebody's claim: it ends where there are none, and
                what should lie behind a gap expires.
        """
        step = count if all_of_them else _DROPPED_AT_ONCE
        for start in range(0, count, step or 1):
            stop = min(start + step, count)
            found = self.redis.unlink(
                *[keyspace.chunk(name, index) for index in range(start, stop)]
            )
            if not found:
                return


class Doorbell:
    """
    Tells whose elements arrive. Args: ``client``: waits as long as it takes, and never retries.

    It is there for speed alone: whoever waits looks once a second anyway. Clients ring it, and one that sends 34 MB
    has Redis close the connection; so without it the wait is only longer, and then it is listened for again.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._channel: redis.client.PubSub | None = None
        self._listen()

    def __enter__(self) -> Doorbell:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._channel is not None:
            self._channel.close()

    def _listen(self) -> bool:
        """Whether it is listened for, perhaps from now on."""
        if self._channel is None:
            channel = self._client.pubsub(ignore_subscribe_messages=True)
            try:
                with connection_errors(self._client):
                    channel.subscribe(keyspace.ARRIVALS)
            except StoreUnavailable as exc:
                self._lose(channel, exc)
                return False
            self._channel = channel
        return True

    def _lose(self, channel: redis.client.PubSub, exc: StoreUnavailable) -> None:
        self._channel = None
        channel.close()
        log.warning("arrivals are not announced now, they are looked for once a second: %s", exc)

    def wait(self, timeout_s: float) -> str | None:
        """Run id of an element that has arrived since we listen; None when there was none in time."""
        until = time.monotonic() + timeout_s
        if self._listen() and self._channel is not None:
            channel = self._channel
            try:
                return self._heard(channel, until)
            except StoreUnavailable as exc:
                self._lose(channel, exc)
        # Whoever cuts it off without end has us look no more often than that.
        time.sleep(max(0.0, until - time.monotonic()))
        return None

    def _heard(self, channel: redis.client.PubSub, until: float) -> str | None:
        while True:
            left_s = max(0.0, until - time.monotonic())
            with connection_errors(self._client):
                message = channel.get_message(timeout=left_s)
            if message is not None:
                return cast(bytes, message["data"])[:_LONGEST_RUN_ID].decode(errors="replace")
            if left_s == 0.0:
                return None


def _incarnations(before: int) -> range:
    return range(max(1, before - INCARNATIONS_LOOKED_AT), before)


def _pairs(run: str, before: int) -> list[str]:
    return _keys_of(run, _incarnations(before))


def _keys_of(run: str, fences: range) -> list[str]:
    return [
        key for fence in fences for key in (keyspace.taken(run, fence), keyspace.owner(run, fence))
    ]
