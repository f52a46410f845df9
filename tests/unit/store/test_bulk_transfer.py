"""Chunks on a real data server: fast, the ordinary way, interrupted, missing, and with no room left."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import redis
from redis.connection import UnixDomainSocketConnection

from fl_queue.errors import ChunksMissing, StoreUnavailable
from fl_queue.store import Store, keyspace
from fl_queue.store.embedded import server_pair
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from tests.support.server_binaries import chosen_server

pytestmark = pytest.mark.timeout(60)

CHUNK = 300_000
BLOB = keyspace.model_blob("run-1", "d1")


class OtherSocket:
    """What another redis-py might have in place of a socket."""

    def __init__(self, sock: Any) -> None:
        self._inner = sock

    def __getattr__(self, name: str) -> Any:
        if name == "recv_into":
            raise AttributeError(name)
        return getattr(self._inner, name)


class OtherConnection(UnixDomainSocketConnection):
    """A connection of a redis-py that looks different inside."""

    def _connect(self) -> Any:
        return OtherSocket(super()._connect())


def use_another_redis_py(store: Store) -> None:
    pool = store.data.redis.connection_pool
    pool.connection_class = OtherConnection
    pool.reset()
    connection = pool.get_connection()
    assert isinstance(connection, OtherConnection)
    pool.release(connection)


@pytest.fixture(params=["fast", "ordinary"])
def either(request: pytest.FixtureRequest, store: Store) -> Store:
    """The data server through each of the two ways."""
    if request.param == "ordinary":
        use_another_redis_py(store)
    return store


@pytest.fixture
def over_tcp(tmp_path: Path) -> Iterator[Store]:
    with server_pair.start(tmp_path / "tcp", server=chosen_server(), tcp=True) as servers:
        made = Store.open(servers.url, servers.blob_url, tmp_path)
        yield made
        made.close()


def pieces(body: bytes) -> list[memoryview]:
    return [memoryview(body)[start : start + CHUNK] for start in range(0, len(body), CHUNK)]


def put(store: Store, body: bytes, **options: Any) -> None:
    store.data.chunks.put(BLOB, pieces(body), 60, **options)


def calls(store: Store, command: str) -> int:
    """How often the data server was asked to do something."""
    stats = store.data.redis.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})
    return int(stats["calls"])


def socket_of(store: Store) -> str:
    return unquote(urlsplit(store.servers.blob_url).path)


def break_connections(store: Store) -> None:
    """As a restarted server or a firewall does."""
    with redis.Redis(unix_socket_path=socket_of(store)) as other:
        other.client_kill_filter(_type="normal", skipme=True)


@pytest.mark.parametrize("nbytes", [0, 1, 10, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 17])
def test_what_was_stored_is_read(either: Store, nbytes: int) -> None:
    body = secrets.token_bytes(nbytes)

    put(either, body)

    assert either.data.chunks.get(BLOB, nbytes, CHUNK) == body
    read = b"".join(map(bytes, either.data.chunks.iterate(BLOB, nbytes, CHUNK)))
    assert read == body


def test_what_was_stored_is_read_over_tcp(over_tcp: Store) -> None:
    body = secrets.token_bytes(20 * CHUNK)

    put(over_tcp, body)

    assert over_tcp.data.chunks.get(BLOB, len(body), CHUNK) == body


def test_each_chunk_is_asked_for_once(store: Store) -> None:
    put(store, bytes(7 * CHUNK))
    before = calls(store, "get"), calls(store, "set")

    put(store, bytes(7 * CHUNK))
    store.data.chunks.get(BLOB, 7 * CHUNK, CHUNK)

    assert (calls(store, "get") - before[0], calls(store, "set") - before[1]) == (7, 7)


def test_a_redis_py_that_looks_different_is_asked_the_ordinary_way(store: Store) -> None:
    use_another_redis_py(store)
    put(store, bytes(7 * CHUNK))
    before = calls(store, "getrange")

    store.data.chunks.get(BLOB, 7 * CHUNK, CHUNK)

    assert calls(store, "getrange") - before == 7


def test_chunks_are_read_in_order_from_the_first_wanted(either: Store) -> None:
    body = secrets.token_bytes(4 * CHUNK + 5)
    put(either, body)
    view, seen = memoryview(bytearray(len(body))), []

    either.data.chunks.read_into(
        BLOB, len(body), CHUNK, view, 2, lambda index, piece: seen.append((index, piece))
    )

    assert seen == [(index, pieces(body)[index]) for index in (2, 3, 4)]
    assert view[: 2 * CHUNK] == bytes(2 * CHUNK)
    read = [bytes(piece) for piece in either.data.chunks.iterate(BLOB, len(body), CHUNK, 3)]
    assert read == pieces(body)[3:]


def shorten(client: redis.Redis, key: str) -> None:
    client.set(key, b"less")


def lengthen(client: redis.Redis, key: str) -> None:
    client.append(key, b"more")


def make_a_list(client: redis.Redis, key: str) -> None:
    client.delete(key)
    client.rpush(key, b"element")


def remove(client: redis.Redis, key: str) -> None:
    client.delete(key)


@pytest.mark.parametrize("harm", [remove, shorten, lengthen, make_a_list])
@pytest.mark.parametrize("index", [0, 2, 3])
def test_a_chunk_that_is_not_as_it_should_be_is_missing(
    either: Store, harm: Callable[[redis.Redis, str], None], index: int
) -> None:
    body = secrets.token_bytes(3 * CHUNK + 5)
    put(either, body)
    harm(either.data.redis, keyspace.chunk(BLOB, index))

    with pytest.raises(ChunksMissing) as caught:
        either.data.chunks.get(BLOB, len(body), CHUNK)

    assert caught.value.index == index
    put(either, body)
    assert either.data.chunks.get(BLOB, len(body), CHUNK) == body


def test_a_reader_that_stops_leaves_no_reply_to_the_next_one(store: Store) -> None:
    put(store, bytes(5 * CHUNK))
    chunks = store.data.chunks.iterate(BLOB, 5 * CHUNK, CHUNK)
    next(chunks)

    with redis.Redis(unix_socket_path=socket_of(store)) as other:
        other.client_pause(300, all=True)
    next(chunks)  # Has come before the pause; the one after it is on its way.
    chunks.close()  # type: ignore[attr-defined]

    assert store.data.redis.get("nothing") is None


def test_a_connection_that_breaks_is_replaced_while_reading(either: Store) -> None:
    body = secrets.token_bytes(6 * CHUNK)
    put(either, body)
    read = bytearray()

    for piece in either.data.chunks.iterate(BLOB, len(body), CHUNK):
        read += piece
        break_connections(either)

    assert read == body


def test_a_connection_that_breaks_is_replaced_while_writing(either: Store) -> None:
    body = secrets.token_bytes(6 * CHUNK)

    def breaking() -> Iterator[memoryview]:
        for piece in pieces(body):
            yield piece
            break_connections(either)

    either.data.chunks.put(BLOB, breaking(), 60)

    assert either.data.chunks.get(BLOB, len(body), CHUNK) == body


def test_two_alternating_buffers_are_enough_to_write(store: Store) -> None:
    body = secrets.token_bytes(6 * CHUNK + 9)
    buffers = itertools.cycle([bytearray(CHUNK), bytearray(CHUNK)])

    def reusing() -> Iterator[memoryview]:
        for piece, buffer in zip(pieces(body), buffers, strict=False):
            buffer[: len(piece)] = piece
            yield memoryview(buffer)[: len(piece)]
            break_connections(store)  # What was sent has to be sent again.

    store.data.chunks.put(BLOB, reusing(), 60)

    assert store.data.chunks.get(BLOB, len(body), CHUNK) == body


def test_an_upload_goes_on_where_it_stopped(store: Store) -> None:
    body = secrets.token_bytes(5 * CHUNK)
    put(store, body)
    remove(store.data.redis, keyspace.chunk(BLOB, 1))
    shorten(store.data.redis, keyspace.chunk(BLOB, 3))
    make_a_list(store.data.redis, keyspace.chunk(BLOB, 4))
    before = calls(store, "set")

    store.data.chunks.put(BLOB, pieces(body), 1000, skip_present=True)

    assert calls(store, "set") - before == 3
    assert store.data.chunks.get(BLOB, len(body), CHUNK) == body
    lives = [store.data.redis.ttl(keyspace.chunk(BLOB, index)) for index in range(5)]
    assert all(900 < life <= 1000 for life in lives)


def test_an_upload_that_goes_on_may_stay_for_ever(store: Store) -> None:
    put(store, bytes(2 * CHUNK))

    store.data.chunks.put(BLOB, pieces(bytes(2 * CHUNK)), None, skip_present=True)

    assert [store.data.redis.ttl(keyspace.chunk(BLOB, index)) for index in (0, 1)] == [-1, -1]


def test_a_server_that_is_gone_is_unavailable(private_redis: EmbeddedRedis, tmp_path: Path) -> None:
    with Store.open(private_redis.url, private_redis.blob_url, tmp_path) as store:
        put(store, bytes(3 * CHUNK))
        chunks = store.data.chunks.iterate(BLOB, 3 * CHUNK, CHUNK)
        next(chunks)
        private_redis.kill("data")

        for use in (
            lambda: list(chunks),
            lambda: store.data.chunks.get(BLOB, 3 * CHUNK, CHUNK),
            lambda: put(store, bytes(3 * CHUNK)),
            lambda: put(store, bytes(3 * CHUNK), skip_present=True),
        ):
            with pytest.raises(StoreUnavailable, match="not reachable"):
                use()


WRITES: dict[str, Callable[[Store], object]] = {
    "chunks": lambda store: put(store, bytes(3 * CHUNK)),
    "chunks, going on": lambda store: put(store, bytes(3 * CHUNK), skip_present=True),
    "push": lambda store: store.data.results.push("run-1", bytes(CHUNK)),
    "identity": lambda store: store.data.identity(),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_full_server_is_unavailable(store: Store, write: str) -> None:
    client = store.data.redis
    store.data.results.push("run-1", b"element")
    client.set("ballast", bytes(1 << 20))
    client.config_set("maxmemory", 1 << 20)
    try:
        with pytest.raises(StoreUnavailable, match="is full"):
            WRITES[write](store)
    finally:
        client.config_set("maxmemory", 0)

    WRITES[write](store)
