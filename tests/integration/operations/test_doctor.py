"""What ``fl-queue doctor`` finds of real servers that are not fit, each also when the other is away."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from fl_queue.common.redis_url import without_login
from fl_queue.errors import StoreUnavailable
from fl_queue.reporting import doctor
from fl_queue.reporting.doctor import Finding
from fl_queue.store import Store, exposure, keyspace
from fl_queue.store.embedded.server_pair import EmbeddedRedis, start
from tests.conftest import chosen_server
from tests.support.federation import wait_for


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with start(tmp_path / "state", server=chosen_server()) as made:
        yield made


def client_of(servers: EmbeddedRedis, role: str) -> redis.Redis:
    return redis.Redis.from_url(servers.url if role == "control" else servers.blob_url)


def examine(servers: EmbeddedRedis) -> list[Finding]:
    return doctor.examine(servers.url, servers.blob_url, servers.state_dir, None)


def of(found: list[Finding], level: str, words: str) -> list[Finding]:
    return [one for one in found if one.level == level and words in one.what]


def refused(found: list[Finding]) -> int:
    with pytest.raises(StoreUnavailable) as caught:
        doctor.raise_on_failure(found)
    return caught.value.exit_code


def test_fit_servers_take_a_write_and_need_nothing(servers: EmbeddedRedis) -> None:
    found = examine(servers)
    assert len(of(found, "OK", "takes a write and gives it back")) == 2
    assert [one.what for one in found if one.level != "OK" and "server" in one.what] == []
    with client_of(servers, "control") as client:
        assert list(client.scan_iter(match="flq:probe:*")) == []


@pytest.mark.parametrize(("away", "there"), [("data", "control"), ("control", "data")])
def test_one_server_away_hides_nothing_of_the_other(
    servers: EmbeddedRedis, away: str, there: str
) -> None:
    os.kill(servers.pids[away], signal.SIGKILL)
    found = examine(servers)
    assert of(found, "FAIL", f"{away} server: Redis at")[0].trouble == "gone"
    assert of(found, "OK", f"{there} server ")
    assert bool(of(found, "WARN", "no aggregator worker is alive")) == (away == "data")
    assert refused(found) == 5


@pytest.mark.parametrize("role", ["control", "data"])
def test_a_replica_is_named_with_its_primary(servers: EmbeddedRedis, role: str) -> None:
    with client_of(servers, role) as client:
        client.replicaof("127.0.0.1", 1)
        found = examine(servers)
    findings = of(found, "FAIL", f"{role} server")
    assert len(findings) == 1
    assert "is a read-only replica of 127.0.0.1:1, and its link to that is down" in findings[0].what
    # Leases run out where they cannot be renewed: that shows nothing of the workers.
    assert bool(of(found, "WARN", "no aggregator worker is alive")) == (role == "data")
    assert refused(found) == 5


@pytest.mark.parametrize("role", ["control", "data"])
def test_a_server_that_takes_no_writes_is_found_by_writing(
    servers: EmbeddedRedis, role: str
) -> None:
    with client_of(servers, role) as client:
        client.config_set("min-replicas-to-write", 1)
        found = examine(servers)
    findings = of(found, "FAIL", f"{role} server")
    assert len(findings) == 1
    assert "takes no writes: " in findings[0].what
    assert "NOREPLICAS" in findings[0].what
    assert bool(of(found, "WARN", "no aggregator worker is alive")) == (role == "data")
    assert (findings[0].trouble, refused(found)) == ("not_now", 5)


def test_save_points_are_warned_of_before_and_after_one_fails(servers: EmbeddedRedis) -> None:
    with client_of(servers, "control") as client:
        client.config_set("save", "3600 1")
        folder = Path(str(client.config_get("dir")["dir"]))
        assert of(examine(servers), "WARN", "takes no writes after one that failed")
        (folder / str(client.config_get("dbfilename")["dbfilename"])).mkdir()
        client.set("some", "content")
        client.bgsave()
        wait_for("a failed save", lambda: client.info()["rdb_last_bgsave_status"] == "err", 60)
    found = examine(servers)
    assert of(found, "WARN", "its last save of a snapshot failed")
    assert "MISCONF" in of(found, "FAIL", "takes no writes")[0].what


def test_too_few_connections_for_the_clients_are_warned_of(servers: EmbeddedRedis) -> None:
    with Store(servers.url, servers.blob_url) as store:
        for client in "abcdefgh":
            store.control.leases.hold(keyspace.worker(f"{client}_1"), "t", 600, {"role": "client"})
        store.control.redis.config_set("maxclients", 32)
        found = examine(servers)
    findings = of(found, "WARN", "is too few for 8 clients")
    assert len(findings) == 1
    assert "set maxclients 64 or more" in findings[0].fix


def test_a_replica_of_the_control_server_means_that_a_failover_may_lose_writes(
    servers: EmbeddedRedis, tmp_path: Path
) -> None:
    with start(tmp_path / "other", server=chosen_server(), tcp=True) as other:
        with client_of(other, "control") as primary, client_of(servers, "data") as replica:
            where = primary.connection_pool.connection_kwargs
            if "path" in where:
                pytest.skip("these servers listen on no port that a replica could reach")
            replica.config_set("masterauth", where.get("password") or "")
            replica.replicaof(where["host"], where["port"])
            wait_for("the replica", lambda: primary.info()["connected_slaves"] == 1, 60)
        found = examine(other)
    assert of(found, "WARN", "a failover may lose the last ones")


def test_a_service_that_hides_its_settings_is_examined_as_far_as_it_answers(
    servers: EmbeddedRedis,
) -> None:
    for role in ("control", "data"):
        with client_of(servers, role) as client:
            client.acl_setuser("default", enabled=True, nopass=True, keys=["*"], channels=["*"],
                               commands=["+@all", "-config"])  # fmt: skip
    found = examine(servers)
    assert len(of(found, "OK", "takes a write and gives it back")) == 2
    assert of(found, "WARN", "appendfsync ?")
    assert not [one for one in found if one.level == "FAIL"]


def test_a_user_who_may_not_write_the_probe_is_a_finding(servers: EmbeddedRedis) -> None:
    with client_of(servers, "data") as client:
        client.acl_setuser("default", enabled=True, nopass=True, reset_keys=True, keys=["rq:*"],
                           commands=["+@all"])  # fmt: skip
    found = examine(servers)
    assert of(found, "WARN", "this user may not write a key to try it out")
    assert not [one for one in found if one.level == "FAIL"]


def test_a_server_without_a_password_and_with_known_holes_is_warned_of(tmp_path: Path) -> None:
    with start(tmp_path / "state", server=chosen_server(), tcp=True) as servers:
        shut = examine(servers)
        with client_of(servers, "control") as client:
            client.acl_setuser("default", enabled=True, nopass=True)
            open_url = without_login(servers.url)
            version = str(client.info()["redis_version"])
            is_valkey = "valkey_version" in client.info()
        found = doctor.examine(open_url, servers.blob_url, servers.state_dir, None)

    assert of(shut, "WARN", "its default user needs no password") == []
    assert len(of(found, "WARN", "its default user needs no password")) == 1
    known = not is_valkey and exposure.of_version(version) is not None
    assert len(of(found, "WARN", "has known vulnerabilities")) == (2 if known else 0)
