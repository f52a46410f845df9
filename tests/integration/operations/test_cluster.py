"""The data server as a Redis Cluster of three real nodes: the data plane, and whole runs."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from fl_queue.errors import ChunksMissing, ConfigError, OwnershipLost, StoreUnavailable
from fl_queue.reporting import doctor
from fl_queue.store import Store, keys_like, keyspace, server_facts, unlink_all
from fl_queue.store.embedded.server_pair import EmbeddedRedis, start
from tests.support.federation import Federation, wait_for
from tests.support.redis_cluster import Cluster, Node
from tests.support.server_binaries import chosen_server

CHUNK, COUNT = 100_000, 30
RUN = "run-1"
BLOB = keyspace.model_blob(RUN, "d1")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, no_process_left: None) -> Iterator[Cluster]:
    """The cluster of all tests that leave it as it was."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def cluster(three: Cluster) -> Cluster:
    three.await_ok()
    three.flush()
    return three


@pytest.fixture
def store(embedded: EmbeddedRedis, cluster: Cluster, tmp_path: Path) -> Iterator[Store]:
    with Store.open(embedded.url, cluster.url, tmp_path) as made:
        yield made


def pieces(body: bytes) -> list[memoryview]:
    return [memoryview(body)[at : at + CHUNK] for at in range(0, len(body), CHUNK)]


@pytest.fixture
def body(store: Store) -> bytes:
    """A blob that is there, with chunks on every node."""
    body = secrets.token_bytes(CHUNK * COUNT - 7)
    store.data.chunks.put(BLOB, pieces(body), 600)
    return body


def read(store: Store, body: bytes) -> bytearray:
    return store.data.chunks.get(BLOB, len(body), CHUNK)


def usable_again(store: Store) -> None:
    """Wait until both clients, with retries and without, have followed what befell the cluster."""
    wait_for("the data server", lambda: _works(store))


def _works(store: Store) -> bool:
    try:
        with suppress(OwnershipLost):
            store.data.taken.take(RUN, 1, "absent")
        return bool(store.data.identity())
    except StoreUnavailable:
        return False


def restart_empty(cluster: Cluster, node: Node, store: Store) -> None:
    node.kill()
    node.start()
    cluster.await_ok()
    usable_again(store)


# Chunks


def test_chunks_lie_on_all_nodes_and_are_read_in_order(
    store: Store, cluster: Cluster, body: bytes
) -> None:
    assert all(node.client.dbsize() > 3 for node in cluster.nodes)
    assert read(store, body) == body
    assert b"".join(map(bytes, store.data.chunks.iterate(BLOB, len(body), CHUNK))) == body


def test_each_chunk_moves_once(store: Store, cluster: Cluster, body: bytes) -> None:
    before = cluster.count("get"), cluster.count("set")

    store.data.chunks.put(BLOB, pieces(body), 600)
    read(store, body)

    assert (cluster.count("get") - before[0], cluster.count("set") - before[1]) == (COUNT, COUNT)


def test_missing_chunks_are_noticed_on_any_node(store: Store, body: bytes) -> None:
    assert not store.data.chunks.are_missing(BLOB, COUNT)

    for index in (0, 11, COUNT - 1):
        store.data.redis.unlink(keyspace.chunk(BLOB, index))
        assert store.data.chunks.are_missing(BLOB, COUNT)
        with pytest.raises(ChunksMissing) as caught:
            read(store, body)
        assert caught.value.index == index
        store.data.chunks.put(BLOB, pieces(body), 600)


def test_an_upload_goes_on_where_it_stopped(store: Store, cluster: Cluster, body: bytes) -> None:
    cluster.nodes[1].client.flushall()
    left = sum(node.client.dbsize() for node in cluster.nodes)
    before = cluster.count("set")

    store.data.chunks.put(BLOB, pieces(body), 600, skip_present=True)

    assert cluster.count("set") - before == COUNT - left > 3
    assert read(store, body) == body


def test_dropped_chunks_are_gone_from_all_nodes(
    store: Store, cluster: Cluster, body: bytes
) -> None:
    store.data.chunks.drop(BLOB, COUNT)

    assert [node.client.dbsize() for node in cluster.nodes] == [0, 0, 0]


def test_a_pattern_is_removed_from_all_nodes(store: Store, cluster: Cluster, body: bytes) -> None:
    unlink_all(store.data.redis, keys_like(store.data.redis, [f"flq:chunk:{RUN}:*"]))

    assert [node.client.dbsize() for node in cluster.nodes] == [0, 0, 0]


# Results and taken lists


def test_elements_go_through_the_lists_of_a_run(store: Store) -> None:
    data = store.data
    for element in (b"1", b"2", b"3"):
        data.results.push(RUN, element)
    data.taken.own(RUN, 1, "one")

    assert (data.results.count(RUN), data.results.peek(RUN)) == (3, b"1")
    assert [data.taken.take(RUN, 1, "one"), data.taken.take(RUN, 1, "one")] == [[b"1"], [b"2"]]
    assert data.taken.count(RUN, 1) == 2
    data.taken.extend(RUN, 1, "one")
    data.taken.discard(RUN, 1, "one", 2)
    assert (data.taken.count(RUN, 1), data.taken.is_owned(RUN, 1)) == (0, True)

    assert data.taken.take(RUN, 1, "one") == [b"3"]
    data.taken.own(RUN, 2, "two")
    assert (data.taken.count(RUN, 2), data.results.count(RUN)) == (0, 1)
    with pytest.raises(OwnershipLost):
        data.taken.extend(RUN, 1, "one")

    assert data.taken.take(RUN, 2, "two") == [b"3"]
    data.taken.disown(RUN, 2)
    assert (data.taken.give_back(RUN, 2), data.results.count(RUN)) == (0, 1)
    data.results.remove(RUN, b"3")
    assert data.taken.own(RUN, 3, "three") == 0
    assert data.taken.take(RUN, 3, "three") == []


def test_an_arrival_is_received_whichever_node_has_the_run(store: Store) -> None:
    with store.data.results.doorbell() as bell:
        for run in ("a-1", "b-1", "c-1", "d-1"):
            store.data.results.push(run, b"element")
            assert bell.wait(5.0) == run


# Identity


def test_the_identity_is_the_same_for_all_clients(
    store: Store, embedded: EmbeddedRedis, cluster: Cluster, tmp_path: Path
) -> None:
    known = store.data.identity()

    with Store.open(embedded.url, cluster.url, tmp_path) as other:
        assert {other.data.identity(), store.data.identity()} == {known}


@pytest.mark.parametrize("number", range(3))
def test_the_identity_changes_when_a_node_loses_its_content(
    store: Store, cluster: Cluster, number: int
) -> None:
    first = store.data.identity()
    restart_empty(cluster, cluster.nodes[number], store)
    second = store.data.identity()
    cluster.nodes[number].client.flushall()
    third = store.data.identity()

    assert len({first, second, third}) == 3
    assert store.data.identity() == third


# Nodes that are away, and slots that move


def test_a_node_that_is_away_is_unavailable_until_it_is_back(
    store: Store, cluster: Cluster, body: bytes
) -> None:
    data, node = store.data, cluster.node_of(keyspace.results(RUN))
    node.kill()
    for use in (
        lambda: read(store, body),
        lambda: data.chunks.put(BLOB, pieces(body), 600),
        lambda: data.chunks.put(BLOB, pieces(body), 600, skip_present=True),
        lambda: data.chunks.are_missing(BLOB, COUNT),
        lambda: data.chunks.drop(BLOB, COUNT),
        lambda: data.results.push(RUN, b"element"),
        lambda: data.taken.take(RUN, 1, "one"),
        lambda: data.taken.count(RUN, 5),
        lambda: data.taken.own(RUN, 1, "one"),
        lambda: data.identity(),
        lambda: data.ping(),
        lambda: unlink_all(data.redis, keys_like(data.redis, ["flq:*"])),
    ):
        with pytest.raises(StoreUnavailable, match=r"redis\+cluster://127.0.0.1"):
            use()
    node.start()
    cluster.await_ok()
    usable_again(store)

    data.chunks.put(BLOB, pieces(body), 600)
    data.results.push(RUN, b"element")
    data.taken.own(RUN, 1, "one")

    assert (read(store, body), data.taken.take(RUN, 1, "one")) == (body, [b"element"])


def test_chunks_are_read_and_written_while_their_slot_moves(
    embedded: EmbeddedRedis, tmp_path: Path
) -> None:
    body, key = secrets.token_bytes(CHUNK * COUNT), keyspace.chunk(BLOB, 0)
    with (
        Cluster(tmp_path / "cluster") as cluster,
        Store.open(embedded.url, cluster.url, tmp_path) as store,
    ):
        store.data.chunks.put(BLOB, pieces(body), 600)
        source = cluster.node_of(key)
        target = next(node for node in cluster.nodes if node is not source)
        slot = source.client.execute_command("CLUSTER KEYSLOT", key)
        target.client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source.id())
        source.client.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target.id())
        source.client.migrate("127.0.0.1", target.port, key, 0, 5000)

        assert read(store, body) == body  # The node answers ASK.

        for node in (target, source):
            node.client.execute_command("CLUSTER SETSLOT", slot, "NODE", target.id())
        assert read(store, body) == body  # It has MOVED.
        store.data.chunks.put(BLOB, pieces(body), 600)
        assert (read(store, body), target.client.exists(key)) == (body, 1)


def test_a_node_that_is_full_is_unavailable(store: Store, cluster: Cluster, body: bytes) -> None:
    node = cluster.node_of(keyspace.results(RUN))
    node.client.config_set("maxmemory", 1 << 20)
    try:
        for use in (
            lambda: store.data.chunks.put(BLOB, pieces(body), 600),
            lambda: store.data.results.push(RUN, b"element"),
        ):
            with pytest.raises(StoreUnavailable, match="is full"):
                use()
        store.data.taken.own(RUN, 1, "one")  # An aggregator can go on, and make room.
    finally:
        node.client.config_set("maxmemory", 0)


def test_a_replica_takes_over(embedded: EmbeddedRedis, tmp_path: Path) -> None:
    body = secrets.token_bytes(CHUNK * COUNT)
    with Cluster(tmp_path / "cluster") as cluster:
        primary = cluster.node_of(keyspace.results(RUN))
        replica, spare = cluster.add_replica(primary), cluster.add_replica(cluster.nodes[0])
        with Store.open(embedded.url, cluster.url, tmp_path) as store:
            before = store.data.identity()
            spare.kill()
            store.data.ping()  # No run needs it.
            primary.kill()
            wait_for("the failover", lambda: replica.client.info("replication")["role"] == "master")
            usable_again(store)

            assert store.data.identity() != before
            store.data.chunks.put(BLOB, pieces(body), 600)
            store.data.results.push(RUN, b"element")
            store.data.taken.own(RUN, 1, "one")
            assert (read(store, body), store.data.taken.take(RUN, 1, "one")) == (body, [b"element"])


# URLs, and the doctor


def test_the_control_server_cannot_be_a_cluster(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match=r"redis\.url: .*redis\.blob_url"):
        Store(cluster.url, "")


def test_a_node_is_not_taken_for_a_plain_server(
    embedded: EmbeddedRedis, cluster: Cluster, tmp_path: Path
) -> None:
    node = f"redis://127.0.0.1:{cluster.nodes[0].port}/0"

    with pytest.raises(StoreUnavailable, match=r"write redis\+cluster://"):
        Store.open(embedded.url, node, tmp_path)
    with pytest.raises(StoreUnavailable, match="name a plain server"):
        Store.open(node, embedded.blob_url, tmp_path)


def test_a_plain_server_is_not_taken_for_a_cluster(tmp_path: Path) -> None:
    with start(tmp_path / "state", server=chosen_server(), tcp=True) as plain:
        url = plain.blob_url.replace("redis://", "redis+cluster://")
        with pytest.raises(StoreUnavailable, match="is no Redis Cluster") as caught:
            Store(plain.url, url)

    assert ":***@" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis+cluster://u:secret@127.0.0.1:1/0", "redis+cluster://u:secret@:x/0"]
)
def test_a_cluster_that_is_nowhere_is_unavailable(embedded: EmbeddedRedis, url: str) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        Store(embedded.url, url)

    assert "secret" not in str(caught.value)
    assert "u:***@" in str(caught.value)


def test_any_node_named_may_be_away_at_the_start(
    embedded: EmbeddedRedis, cluster: Cluster, tmp_path: Path
) -> None:
    url = cluster.url.replace("://", "://127.0.0.1:1,")

    with Store.open(embedded.url, url, tmp_path) as store:
        assert store.data.identity()


def test_the_doctor_looks_at_every_node(
    embedded: EmbeddedRedis, cluster: Cluster, store: Store, tmp_path: Path
) -> None:
    cluster.nodes[1].client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        findings = doctor.examine(embedded.url, cluster.url, tmp_path, None)
    finally:
        cluster.nodes[1].client.config_set("maxmemory-policy", "noeviction")

    assert len(server_facts(store.data.redis, "cluster")) == 3
    failed = [finding.what for finding in findings if finding.level == "FAIL"]
    assert len(failed) == 1
    assert f"node 127.0.0.1:{cluster.nodes[1].port}: maxmemory-policy" in failed[0]


# Whole runs


@dataclass(frozen=True)
class Place:
    """Where a federation finds its servers."""

    url: str
    blob_url: str
    state_dir: Path


def federation_on(place: Place, folder: Path) -> Federation:
    folder.mkdir()
    environment = {"FLQ_REDIS_URL": place.url, "FLQ_REDIS_BLOB_URL": place.blob_url}
    return Federation(cast(EmbeddedRedis, place), folder, 3, environment, forked=True)


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory, no_process_left: None
) -> Iterator[tuple[Federation, Federation, Cluster]]:
    """The same federation on a plain data server and on a cluster."""
    folder = tmp_path_factory.mktemp("places")
    with (
        start(folder / "plain", server=chosen_server()) as plain,
        start(folder / "control", server=chosen_server()) as other,
        Cluster(folder / "cluster") as cluster,
    ):
        made = []
        try:
            for name, url, blob_url in (
                ("on-plain", plain.url, plain.blob_url),
                ("on-cluster", other.url, cluster.url),
            ):
                place = Place(url, blob_url, folder / f"state-{name}")
                made.append(federation_on(place, folder / name))
            yield made[0], made[1], cluster
        finally:
            for federation in made:
                federation.close()


CHUNKED = ("redis.inline_bytes=0",)


@pytest.mark.timeout(240)
def test_a_run_on_a_cluster_has_the_bits_of_one_on_a_plain_server(
    places: tuple[Federation, Federation, Cluster],
) -> None:
    plain, clustered, cluster = places
    before = cluster.count("lmove")

    digests = clustered.digests_of("same", *CHUNKED)

    assert digests == plain.digests_of("same", *CHUNKED)
    assert len(digests) == 4
    assert cluster.count("lmove") - before >= 9


@pytest.mark.timeout(240)
@pytest.mark.parametrize("lists", [True, False])
def test_a_node_that_comes_back_empty_changes_no_bit(
    places: tuple[Federation, Federation, Cluster], lists: bool
) -> None:
    plain, clustered, cluster = places
    name = f"loss-{lists}".lower()
    calm = plain.digests_of(name, *CHUNKED)

    held = clustered.arm("outbox.written", "stop", "site-1_")
    run = clustered.begin(name, *CHUNKED)
    wait_for("a client with its update", held.exists)
    wait_for("two updates", lambda: clustered.store.data.taken.count(run, 9) == 2)
    lists_of = cluster.node_of(keyspace.results(run))
    victim = lists_of if lists else cluster.nodes[cluster.nodes.index(lists_of) - 1]
    victim.kill()
    victim.start()
    os.kill(int(held.read_text()), signal.SIGCONT)

    assert clustered.finish(run, 150).state == "completed"
    assert clustered.trained(run) == 9  # What had been trained was pushed again.
    assert clustered.free(run) == calm
