"""Workers wait for a server that cannot serve: their connection, their jobs, their supervisors."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from fl_queue.client.site import WorkerSettings
from fl_queue.errors import ConfigError, StoreUnavailable, Trouble
from fl_queue.store import fail_fast, outlast, plain_client
from fl_queue.store.connection import connect
from fl_queue.store.embedded.server_pair import EmbeddedRedis, start
from tests.support.proxy import Proxy
from tests.support.server_binaries import chosen_server
from workers.supervisor import Supervisor


@pytest.fixture
def other(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A second pair of servers."""
    with start(tmp_path / "other", server=chosen_server()) as servers:
        yield servers


def demote(servers: EmbeddedRedis) -> None:
    with redis.Redis.from_url(servers.url) as operator:
        operator.execute_command("REPLICAOF", "127.0.0.1", "1")


@pytest.mark.parametrize("is_rqs", [False, True], ids=["ours", "RQ's"])
def test_connections_to_a_demoted_primary_are_closed(
    private_redis: EmbeddedRedis, other: EmbeddedRedis, is_rqs: bool
) -> None:
    with Proxy(private_redis.url) as name:  # What a DNS name is: it leads to the primary of now.
        client = plain_client(name.url, 5.0) if is_rqs else connect(name.url, name.url).control
        client.set("x", "1")
        demote(private_redis)
        name._upstream = Proxy(other.url)._upstream
        if not is_rqs:
            with pytest.raises(StoreUnavailable, match="read-only replica"):
                client.set("x", "2")
        client.set("x", "2")
        client.close()
    with redis.Redis.from_url(other.url) as new:
        assert new.get("x") == b"2"


def test_rqs_connection_waits_for_its_server_also_in_a_transaction(
    private_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    client = plain_client(private_redis.url, 5.0)
    operator = redis.Redis.from_url(private_redis.url)
    operator.config_set("min-replicas-to-write", 1)
    with fail_fast(), pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        client.set("x", "1")
    over = threading.Timer(2.0, lambda: operator.config_set("min-replicas-to-write", 0))
    over.start()
    with caplog.at_level(logging.WARNING), client.pipeline() as pipe:
        pipe.set("x", "1")
        pipe.incr("n")
        assert pipe.execute() == [True, 1]
    over.join()
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 1, "once a minute, not at each try"
    assert "NOREPLICAS" in logged[0]
    assert caplog.records[0].exc_info is None


def test_what_was_watched_is_looked_at_again(private_redis: EmbeddedRedis) -> None:
    client = plain_client(private_redis.url, 5.0)
    operator = redis.Redis.from_url(private_redis.url)
    with client.pipeline() as pipe:
        pipe.watch("x")
        pipe.multi()
        pipe.set("x", "1")
        operator.config_set("min-replicas-to-write", 1)
        with pytest.raises(redis.WatchError):
            pipe.execute()
    operator.config_set("min-replicas-to-write", 0)
    assert client.get("x") is None


@pytest.mark.parametrize("is_rqs", [False, True], ids=["ours", "RQ's"])
def test_a_transaction_ends_where_even_its_end_is_refused_and_can_be_begun_again(
    private_redis: EmbeddedRedis, is_rqs: bool
) -> None:
    url = private_redis.url
    client = plain_client(url, 5.0) if is_rqs else connect(url, url).control
    with redis.Redis.from_url(url) as default:
        default.execute_command("ACL", "SETUSER", "operator", "on", ">x", "~*", "+@all")
    operator = redis.Redis.from_url(url, username="operator", password="x")
    with client.pipeline() as pipe:
        pipe.watch("x")
        pipe.multi()
        pipe.set("x", "1")
        operator.execute_command("ACL", "SETUSER", "default", "-@all", "+ping")
        with fail_fast(), pytest.raises((redis.ResponseError, StoreUnavailable)):
            pipe.execute()
        operator.execute_command("ACL", "SETUSER", "default", "+@all")
        pipe.watch("x")
        assert pipe.get("x") is None
        operator.execute_command("ACL", "SETUSER", "default", "-@all", "+ping")
    operator.execute_command("ACL", "SETUSER", "default", "+@all")
    assert client.get("x") is None
    assert client.connection_pool._in_use_connections == set(), "given back"
    client.close()
    operator.close()


def test_a_job_is_begun_again_for_a_servers_trouble_and_for_nothing_else() -> None:
    tries = []

    def work() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise StoreUnavailable("redis://h", "is full", Trouble.not_now)
        return "done"

    assert outlast(work) == "done"
    assert len(tries) == 3

    def wrong() -> None:
        tries.append(1)
        raise ConfigError("x", "is wrong")

    with pytest.raises(ConfigError):
        outlast(wrong)
    assert len(tries) == 4


@pytest.mark.parametrize(
    ("error", "has_traceback"),
    [
        (redis.ResponseError("MISCONF Redis is configured to save RDB snapshots"), False),
        (StoreUnavailable("redis://elsewhere", "is full", Trouble.not_now), False),
        (KeyError("a fault of the program"), True),
    ],
)
def test_a_supervisor_survives_whatever_a_chore_raises(
    error: Exception, has_traceback: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def tick(self) -> None:
            raise error

        def end(self) -> None:
            raise error

    supervisor = Supervisor("evaluator", WorkerSettings(state_dir=tmp_path))
    supervisor._chores = Broken()  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            supervisor._wait()
        supervisor._try(lambda: supervisor.chores.end())
    assert len(caplog.records) == 1
    assert bool(caplog.records[0].exc_info) == has_traceback
