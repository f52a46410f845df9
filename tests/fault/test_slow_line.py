"""Big values arrive over a line that needs many times a socket's timeout for them, and are sent once."""

from __future__ import annotations

import os
import socket
import time

import pytest
from redis.connection import ConnectionPool

from fl_queue.client import outbox
from fl_queue.errors import StoreUnavailable
from fl_queue.store import INTERACTIVE, Store, keyspace
from fl_queue.store.pace import SLOWEST_BYTES_PER_S, pace
from tests.support.proxy import Proxy

#: Both are scaled down: the line needs five times as long for a value as a socket waits.
TIMEOUT_S = 0.5
NBYTES = 500_000
RATE = 200_000
RUN = "slow-123456"


@pytest.fixture
def body() -> bytes:
    return os.urandom(NBYTES)


def behind(store: Store, proxy: Proxy) -> Store:
    return Store(store.servers.url, f"{proxy.url}?socket_timeout={TIMEOUT_S}")


def test_chunks_and_inline_bodies_arrive_over_a_slow_line(store: Store, body: bytes) -> None:
    name = keyspace.update_blob("a", RUN, "0" * 64)
    with Proxy(store.servers.blob_url) as proxy, behind(store, proxy) as remote:
        proxy.throttle(RATE)

        remote.data.chunks.put(name, [memoryview(body), memoryview(body)], 60)
        remote.data.results.push(RUN, body)

        assert proxy.sent_bytes < 3.5 * NBYTES  # Each once.
    assert store.data.chunks.get(name, 2 * NBYTES, NBYTES) == 2 * body
    assert store.data.results.peek(RUN) == body


def test_a_person_is_not_kept_waiting(store: Store, body: bytes) -> None:
    with Proxy(store.servers.blob_url) as proxy:
        proxy.throttle(RATE / 10)
        url = f"{proxy.url}?socket_timeout={TIMEOUT_S}"
        with (
            Store(store.servers.url, url, timeouts=INTERACTIVE) as remote,
            pytest.raises(StoreUnavailable),
        ):
            remote.data.results.push(RUN, body)


def test_a_connection_waits_longer_only_while_something_big_is_under_way(
    store: Store, body: bytes
) -> None:
    with Store(store.servers.url, f"{store.servers.blob_url}&socket_timeout=3") as remote:
        connection = remote.servers.once.connection_pool.get_connection()
        connection.send_command("SET", "big", body)
        connection.send_command("SET", "large", body)
        needed_s = 2 * NBYTES / SLOWEST_BYTES_PER_S
        assert 3 < connection._sock.gettimeout() - needed_s + 60 < 64
        assert connection.read_response() in (b"OK", "OK")
        assert connection._sock.gettimeout() > 60
        assert connection.read_response() in (b"OK", "OK")
        assert connection._sock.gettimeout() == 3
        remote.servers.once.connection_pool.release(connection)
        assert remote.servers.once.ping()


def test_the_kernel_ends_a_line_that_is_dead() -> None:
    """Nothing answers there: a server that accepts and never reads, whose machine is gone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        pool = ConnectionPool(host="127.0.0.1", port=port, socket_timeout=7)
        pace(pool)
        connection = pool.make_connection()
        connection._sock = socket.create_connection(("127.0.0.1", port))
        connection._expect(1_000_000)
        found = connection._sock.getsockopt
        assert found(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert found(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
        assert connection._sock.gettimeout() > 100
        connection._sock.close()
        connection._sock = None


def test_a_slow_line_is_reported(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons: list[str] = []
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    line = outbox._Line(store, 6_000_000, lambda exc: reasons.append(exc.reason))
    for seconds, arrived in ((10, 4_000), (10, 0), (30, 30_000_000)):
        now[0] += seconds
        assert line.look(arrived, 2_000_000) == 0
    assert reasons == []
    now[0] = 200.0
    assert line.look(1_000_000, 2_000_000) == 200
    assert reasons == [
        "the line is slow, 80 kbit/s: an update of 6.0 MB takes about 10 minutes; see update.codec"
    ]
