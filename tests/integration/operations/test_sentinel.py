"""Servers that Redis Sentinel looks after: found, and followed when another one becomes the primary."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from fl_queue.errors import StoreUnavailable
from fl_queue.reporting import doctor
from fl_queue.store import Store, keyspace, plain_client
from fl_queue.store.sentinel import sentinel_facts
from tests.support.federation import wait_for
from tests.support.redis_sentinel import Process, Sentinels

RUN = "run-1"
SECRET, OWN_SECRET = "open-sesame-4711", "sesame-sentinel-0815"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Sentinels]:
    """Sentinels and servers with passwords of their own, for all tests of one store."""
    with Sentinels(tmp_path_factory.mktemp("watched"), SECRET, OWN_SECRET) as made:
        yield made


@pytest.fixture
def store(watched: Sentinels, tmp_path: Path) -> Iterator[Store]:
    for pair in (watched.control, watched.data):
        watched.restore(pair)
    with Store.open(watched.url(watched.control), watched.url(watched.data), tmp_path) as made:
        yield made


def use(store: Store, body: bytes) -> None:
    """One of each kind of command, on each kind of connection."""
    control, data = store.control, store.data
    assert control.leases.hold("lease", "token", 60, {})  # A transaction.
    control.runs.count_waiting(RUN)  # A script.
    with control.redis.pipeline(transaction=False) as pipe:
        pipe.set("key", "value")
        pipe.get("key")
        assert pipe.execute() == [True, b"value"]
    name = keyspace.model_blob(RUN, "d1")
    data.chunks.put(name, [memoryview(body)], 600)  # Without copies.
    assert data.chunks.get(name, len(body), len(body)) == body
    with data.results.doorbell() as bell:
        data.results.push(RUN, b"element")
        assert bell.wait(5.0) == RUN
    data.results.remove(RUN, b"element")
    assert data.identity()


def works(store: Store, body: bytes) -> bool:
    try:
        use(store, body)
    except StoreUnavailable:
        return False
    return True


def test_every_connection_finds_the_primaries(store: Store, watched: Sentinels) -> None:
    body = secrets.token_bytes(100_000)

    use(store, body)

    assert watched.control.primary.client.exists("lease")
    assert watched.data.primary.client.exists(keyspace.chunk(keyspace.model_blob(RUN, "d1"), 0))
    rq = plain_client(watched.url(watched.control), 10.0)
    assert rq.get("key") == b"value"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "planned"])
def test_a_store_follows_to_the_new_primaries(
    store: Store, watched: Sentinels, killed: bool
) -> None:
    body = secrets.token_bytes(100_000)
    use(store, body)
    rq = plain_client(watched.url(watched.control), 10.0)
    rq.ping()
    before, old = store.data.identity(), watched.control.primary

    for pair in (watched.control, watched.data):
        watched.kill_primary(pair) if killed else watched.fail_over(pair)
    # What is written to the old primary until then is lost: it takes writes for a while.
    wait_for("the store to follow", lambda: works(store, body) and store.data.identity() != before)
    new = next(node for node in watched.control.nodes if node is not old)
    wait_for("RQ's connection to follow", lambda: _set(rq) and new.client.get("by-rq"))


@pytest.mark.timeout(180)
def test_a_connection_that_breaks_while_in_use_is_made_again_at_the_new_primary(
    watched: Sentinels,
) -> None:
    watched.restore(watched.control)
    pool = plain_client(watched.url(watched.control), 10.0).connection_pool
    held = pool.get_connection()
    held.send_command("PING")
    assert held.read_response() == b"PONG"

    watched.kill_primary(watched.control)
    held.disconnect()  # A transaction keeps its connection after an error.

    def role() -> bytes:
        try:
            held.send_command("ROLE")
            return bytes(held.read_response()[0])
        except redis.ConnectionError:
            return b""

    wait_for("the same connection to follow", lambda: role() == b"master", 20.0)
    pool.release(held)


def _set(client: redis.Redis) -> bool:
    try:
        return bool(client.set("by-rq", "1"))
    except redis.RedisError:
        return False


def test_a_client_that_is_several_users_finds_them_all(watched: Sentinels, tmp_path: Path) -> None:
    url, blob_url = watched.url(watched.control), watched.url(watched.data)
    for pair in (watched.control, watched.data):
        watched.restore(pair)
        pair.primary.client.execute_command(
            "ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@read", "+@connection"
        )
    as_reader = tuple(each.replace(f":{SECRET}@", "reader:pw@") for each in (url, blob_url))
    with Store(url, blob_url, {"read": as_reader}) as store:  # type: ignore[dict-item]
        store.control.redis.set("flq:{run-9}", "x")

        assert store.control.redis.get("flq:{run-9}") == b"x"
        users = {entry["user"] for entry in watched.control.primary.client.client_list()}

    assert users >= {"default", "reader"}
    for pair in (watched.control, watched.data):
        pair.primary.client.execute_command("ACL", "DELUSER", "reader")


def test_facts_of_the_sentinels(watched: Sentinels) -> None:
    watched.restore(watched.control)
    url = watched.url(watched.control, ["127.0.0.1:1", f"127.0.0.1:{watched.watchers[0].port}"])

    away, there = sentinel_facts(url)

    assert (away.where, away.primary) == ("127.0.0.1:1", "")
    assert "does not answer" in away.trouble
    assert there.primary == f"127.0.0.1:{watched.control.primary.port}"
    assert (there.trouble, there.replicas, there.others, there.quorum, there.down) == (
        "",
        1,
        2,
        2,
        False,
    )


def test_the_doctor_names_the_primary_and_the_sentinel_that_is_away(
    watched: Sentinels, tmp_path: Path
) -> None:
    for pair in (watched.control, watched.data):
        watched.restore(pair)
    hosts = ["127.0.0.1:1", f"127.0.0.1:{watched.watchers[0].port}"]

    found = doctor.examine(
        watched.url(watched.control, hosts), watched.url(watched.data, hosts), tmp_path, None
    )

    findings = [(each.level, each.what) for each in found if "sentinel" in each.what]
    for role, pair in (("control", watched.control), ("data", watched.data)):
        assert ("OK", f"{role} server: sentinel {hosts[1]}: primary 127.0.0.1:{pair.primary.port}, 1 replicas, 2 other sentinels") in findings  # fmt: skip
        assert any(level == "WARN" and f"{role} server: sentinel 127.0.0.1:1 cannot be asked: does not" in what for level, what in findings)  # fmt: skip
    assert not any(secret in each.what for each in found for secret in (SECRET, OWN_SECRET))


# Mistakes of operators


def test_the_doctor_names_a_sentinels_port(tmp_path: Path) -> None:
    watcher = Process(tmp_path / "sentinel")
    (path := tmp_path / "sentinel.conf").write_text(f"port {watcher.port}\nbind 127.0.0.1\n")
    try:
        watcher.launch(str(path), "--sentinel")
        url = f"redis://127.0.0.1:{watcher.port}/0"
        (found,) = doctor.examine(url, "", tmp_path, None)
    finally:
        watcher.client.close()
        watcher.kill()

    # Neither is it to be started, nor will waiting help.
    assert (found.level, found.trouble, found.fix) == ("FAIL", "wrong_mode", "")
    assert found.what.startswith(f"control server: Redis at {url}")
    assert "is a Redis Sentinel; write redis+sentinel://host:26379" in found.what


def as_control(url: str) -> None:
    with Store(url, "redis://127.0.0.1:1/0") as store:
        store.check()


def as_data(url: str) -> None:
    with Store("redis://127.0.0.1:1/0", url) as store:
        store.data.ping()


@pytest.mark.parametrize("way", [as_control, as_data])
def test_a_mistake_is_reported_in_one_line(watched: Sentinels, way: Callable[[str], None]) -> None:
    good, port = watched.url(watched.control), watched.control.primary.port
    for url, words in {
        good.replace(
            "flq-control", "flq-contorl"
        ): "watches no flq-contorl but flq-control, flq-data",
        good.partition("?")[0]: "give it as sentinel_password in the URL",
        watched.url(watched.control, ["127.0.0.1:1", "127.0.0.1:2"]): (
            "no sentinel knows the primary: 127.0.0.1:1 does not answer"
        ),
        watched.url(watched.control, [f"127.0.0.1:{port}"]): "wants a login",
        good.replace("/flq-control/0", ""): "write redis+sentinel://host:26379",
        good.replace("/0?", "/x?"): "write redis+sentinel://host:26379",
        good + "&passwort=1": "the option 'passwort' of the URL is not known",
    }.items():
        with pytest.raises(StoreUnavailable) as caught:
            way(url)
        text = str(caught.value)
        assert words in text, url
        assert "\n" not in text
        assert SECRET not in text
        assert OWN_SECRET not in text
