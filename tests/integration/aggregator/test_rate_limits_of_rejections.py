"""Garbage, duplicates and a client that pushes without end: refused at once, counted, named; the round closes in time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from fl_queue.cli import cli
from fl_queue.coordinator.aggregator import rejections
from fl_queue.errors import OwnershipLost
from fl_queue.protocol import message, signing
from fl_queue.protocol.records import Enrolment
from fl_queue.reporting import diagnosis
from fl_queue.store import Store, keyspace
from fl_queue.store.embedded.server_pair import EmbeddedRedis
from tests.support.federation import Federation
from tests.support.manual_run import ManualRun

pytestmark = pytest.mark.timeout(120)

CLIENTS = ("a", "b", "c")
QUICK = ("round.quorum=2", "round.grace_s=0.3")
#: Pushes elements as fast as it can, through a connection of its own, until it is ended.
FLOODER = """
import sys, redis
url, key, path = sys.argv[1:]
element, client = open(path, "rb").read(), redis.Redis.from_url(url)
print("begun", flush=True)
while True:
    with client.pipeline(transaction=False) as pipe:
        for _ in range(50):
            pipe.rpush(key, element)
        pipe.execute(raise_on_error=False)
"""


@pytest.fixture
def keys(store: Store) -> dict[str, str]:
    """Secret keys of all clients, which are enrolled."""
    made = {client: signing.new_key() for client in CLIENTS}
    for client, (_, public) in made.items():
        store.control.enrolments.write(client, Enrolment(public))
    return {client: secret for client, (secret, _) in made.items()}


@pytest.fixture
def hand(store: Store, tmp_path: Path, keys: dict[str, str]) -> ManualRun:
    return ManualRun(store, tmp_path, CLIENTS, 10, *QUICK, keys=keys)


def stale(hand: ManualRun, client: str) -> bytes:
    """A signed element of a client that is no good."""
    body = hand.body(client)
    header = replace(hand.header("update", client, body), base_digest="0" * 64)
    return hand.seal(client, message.pack(header, body))


def push_many(hand: ManualRun, elements: list[bytes]) -> None:
    with hand.store.data.redis.pipeline(transaction=False) as pipe:
        for element in elements:
            pipe.rpush(keyspace.results(hand.run), element)
        pipe.execute()


def written(store: Store) -> int:
    """Entries of event streams and fields of hashes that the control server was given."""
    stats = store.control.redis.info("commandstats")
    return sum(
        int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in ("xadd", "hset")
    )


def events_of(hand: ManualRun, kind: str) -> list[dict[str, object]]:
    found = hand.store.control.events.read({keyspace.events(hand.run): "0-0"}, None)
    return [event for _, _, event in found if event["event"] == kind]


@contextmanager
def flooding(run: str, folder: Path, url: str, element: bytes) -> Iterator[None]:
    """Push an element again and again from a process of its own."""
    path = folder / "element"
    path.write_bytes(element)
    command = [sys.executable, "-c", FLOODER, url, keyspace.results(run), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ))
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        yield
    finally:
        process.kill()
        process.communicate()


# What is refused goes


def test_ten_thousand_elements_of_garbage_cost_few_writes_and_no_room(hand: ManualRun) -> None:
    pieces = [
        b"rubbish",
        b"",
        b"FLQ1" + bytes(60),
        message.pack(replace(hand.header("failure", "c", b""), tensors=()), None)[:-3],
    ]
    body = hand.body("a")
    plain = replace(hand.header("update", "a", body), body_bytes=0, tensors=())
    strangers = [
        message.pack(replace(plain, client=f"stranger-{number}"), None) for number in range(1000)
    ]
    push_many(hand, [*(pieces * 2250), *strangers])
    hand.update("a")
    hand.update("b")
    before = written(hand.store)
    done = hand.work()

    assert done == "committed: quorum reached, grace passed: 2 of 3 updates in"
    assert written(hand.store) - before < 800
    assert len(events_of(hand, "update_rejected")) <= rejections.MAX_EVENTS * (
        rejections.MAX_SENDERS + 1
    )
    counts = hand.store.control.rejections.of_round(hand.run, 1)
    assert sum(refusals.count for refusals in counts.values()) == 10_000
    assert counts["?"].count == 9000
    assert len(counts) == rejections.MAX_SENDERS + 1
    # 1,000 made-up names are no keys: they are counted apart up to a number.
    assert counts[rejections.OTHERS].count == 1000 - (rejections.MAX_SENDERS - 1)
    assert sorted(hand.store.control.receipts.of_round(hand.run, 1)) == ["a", "b"]
    assert {event["client"]: event["count"] for event in events_of(hand, "updates_refused")}[
        "?"
    ] == 9000


def test_a_thousand_duplicates_of_one_client_are_two_receipts_and_a_count(hand: ManualRun) -> None:
    intake = hand.intake()
    hand.update("a")
    (own,) = hand.store.data.redis.lrange(keyspace.results(hand.run), 0, -1)
    push_many(hand, [own] * 1000)
    hand.take(intake, 1)
    before = written(hand.store)
    hand.take(intake, 1000)

    assert written(hand.store) - before < 20
    assert hand.store.data.taken.count(hand.run, intake.incarnation.fence) == 1
    receipts = hand.store.control.receipts.of_round(hand.run, 1)
    assert {who: receipt.status for who, receipt in receipts.items()} == {
        "a": "received", "a:duplicate": "duplicate",
    }  # fmt: skip
    assert hand.store.control.rejections.of_round(hand.run, 1)["a"].count == 1000
    (line,) = diagnosis.floods(hand.store, hand.state)
    assert line.startswith("flood: 1,000 elements were refused in round 1, signed by a; `fl-queue")


def test_what_is_refused_leaves_the_list_and_what_is_merged_stays(hand: ManualRun) -> None:
    intake = hand.intake()
    hand.update("a")
    push_many(hand, [b"one", stale(hand, "c"), b"two"])
    hand.update("b")
    push_many(hand, [b"three"])
    elements = hand.store.data.taken.take(
        hand.run, intake.incarnation.fence, intake.incarnation.token, 10
    )
    for element in elements:
        intake.process(element)
    intake.taken.settle()

    left = hand.store.data.redis.lrange(keyspace.taken(hand.run, intake.incarnation.fence), 0, -1)
    assert (len(elements), left) == (6, [elements[0], elements[4]])
    assert intake.taken.count == 2


def test_elements_are_refused_once_and_by_the_owner_only(hand: ManualRun) -> None:
    old = hand.intake()
    push_many(hand, [b"one", b"two", b"three"])
    hand.store.data.taken.take(hand.run, old.incarnation.fence, old.incarnation.token, 3)
    run, data = hand.run, hand.store.data
    for _ in range(2):  # Sent again after a timeout.
        assert data.taken.refuse(run, old.incarnation.fence, old.incarnation.token, 3, [0, 2])
    assert data.redis.lrange(keyspace.taken(run, old.incarnation.fence), 0, -1) == [b"two"]

    new = hand.intake()
    assert data.results.count(run) == 1
    data.taken.take(run, new.incarnation.fence, new.incarnation.token)
    assert not data.taken.refuse(run, new.incarnation.fence, old.incarnation.token, 1, [0])
    old.process(b"two")
    with pytest.raises(OwnershipLost):
        old.taken.settle()
    assert data.taken.count(run, new.incarnation.fence) == 1


def test_a_refused_update_takes_its_chunks_along_and_a_forged_one_takes_none(
    store: Store, tmp_path: Path, keys: dict[str, str]
) -> None:
    hand = ManualRun(store, tmp_path, CLIENTS, 1000, "redis.inline_bytes=0", keys=keys)
    intake = hand.intake()
    hand.update("a")
    hand.update("a")  # The same one again: it shares chunks with the first.
    hand.update("b")
    body = bytes(hand.manifest.nbytes)
    hand.send(replace(hand.header("update", "c", body), base_digest="0" * 64), body)
    forged = replace(hand.header("update", "b", hand.body("b")), chunk_bytes=65536)
    push_many(hand, [signing.seal(message.pack(forged, None), "b", keys["c"])])
    hand.take(intake, 5)

    left = {key.decode().split(":")[2] for key in store.data.redis.keys("flq:update:*")}
    assert left == {"a", "b"}
    assert intake.received() == 2


def test_receipts_of_what_was_refused_outlive_the_incarnation(hand: ManualRun) -> None:
    first = hand.intake()
    push_many(hand, [stale(hand, "c")])
    body = hand.header("failure", "b", b"")
    hand.send(replace(body, tensors=(), reason="no disk"), b"")
    hand.update("a")
    hand.take(first, 3)
    before = hand.store.control.receipts.of_round(hand.run, 1)
    second = hand.intake()

    assert hand.store.data.results.count(hand.run) == 1  # What was merged comes back.
    assert {who: r.status for who, r in second.receipts.items()} == {"b": "failed", "c": "stale"}
    hand.take(second, 1)
    assert hand.store.control.receipts.of_round(hand.run, 1) == before
    assert hand.store.control.rejections.of_round(hand.run, 1)["c"].count == 1


def test_replays_of_rounds_long_gone_are_late_by_number(hand: ManualRun) -> None:
    hand.update("a")
    hand.update("b")
    (old, _) = hand.store.data.redis.lrange(keyspace.results(hand.run), 0, -1)
    hand.work()
    hand.store.control.rounds.forget(hand.run, 1)
    intake = hand.intake()
    push_many(hand, [old] * 300)
    hand.take(intake, 300)

    assert hand.store.control.receipts.late_counts(hand.run) == {1: 300}
    assert hand.store.control.rejections.of_round(hand.run, 2)["a"].count == 300
    assert len(events_of(hand, "update_rejected")) == rejections.MAX_EVENTS


def test_elements_whose_chunks_are_missing_ask_once_while_the_job_waits(
    store: Store, tmp_path: Path, keys: dict[str, str]
) -> None:
    hand = ManualRun(store, tmp_path, CLIENTS, 1000, "redis.inline_bytes=0", keys=keys)
    intake = hand.intake()
    body = hand.body("a")
    header = replace(hand.header("update", "a", body), chunk_bytes=65536)
    push_many(hand, [hand.seal("a", message.pack(header, None))] * 50)
    job = hand.store.control.rounds.job(hand.run, 1, "a")["job"]
    hand.store.control.redis.hset(f"rq:job:{job}", "status", "finished")
    hand.take(intake, 50)

    assert hand.store.control.rounds.job(hand.run, 1, "a")["attempt"] == 2
    assert hand.store.data.taken.count(hand.run, intake.incarnation.fence) == 0


# A client that pushes without end


def test_a_round_closes_in_time_while_a_client_pushes_without_end(
    hand: ManualRun, redis_urls: tuple[str, str]
) -> None:
    hand.update("a")
    hand.update("b")
    with flooding(hand.run, hand.folder, redis_urls[1], stale(hand, "c")):
        began = time.monotonic()  # Not before: that process imports Redis, which may take as long.
        done = hand.work()
        took_s = time.monotonic() - began
        status = CliRunner().invoke(
            cli, ["status", hand.state.name, "--json"],
            env={"FLQ_REDIS_URL": redis_urls[0], "FLQ_REDIS_BLOB_URL": redis_urls[1]},
        )  # fmt: skip

    assert done == "committed: quorum reached, grace passed: 2 of 3 updates in"
    assert hand.record.accepted.keys() == {"a", "b"}
    assert took_s < 15
    refused = hand.store.control.rejections.of_round(hand.run, 1)["c"]
    assert refused.count >= rejections.FLOOD
    assert "made from version 0" in refused.reason
    (line, *_) = json.loads(status.stdout)["floods"]
    assert f"{refused.count:,} elements were refused in round 1, signed by c" in line
    assert hand.record.rejected["c"].startswith("stale")


def test_a_round_is_closed_on_a_data_server_that_a_client_keeps_full(
    hand: ManualRun, store: Store, redis_urls: tuple[str, str]
) -> None:
    hand.update("a")
    hand.update("b")
    most = int(store.data.redis.info("memory")["used_memory"]) + (4 << 20)
    store.data.redis.config_set("maxmemory", most)
    try:
        with flooding(hand.run, hand.folder, redis_urls[1], os.urandom(20_000)):
            # What is refused is freed again: it stays a little below.
            full = most - (256 << 10)
            while int(store.data.redis.info("memory")["used_memory"]) < full:
                time.sleep(0.01)
            done = hand.work()
            used = int(store.data.redis.info("memory")["used_memory"])
    finally:
        store.data.redis.config_set("maxmemory", 0)

    assert done == "committed: quorum reached, grace passed: 2 of 3 updates in"
    assert used < most + (1 << 20)
    assert hand.store.control.rejections.of_round(hand.run, 1)["?"].count > 100


@pytest.mark.slow  # Whole rounds of real workers, beside a process that takes a core.
@pytest.mark.timeout(300)
def test_real_workers_finish_a_run_that_is_flooded_from_begin_to_end(
    private_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    federation = Federation(private_redis, tmp_path, 3)
    try:
        run = federation.begin("flooded", "run.rounds=3", "round.cohort=3", "train.epochs=1")
        federation.store.data.redis.config_set("maxmemory", 64 << 20)
        with flooding(run, tmp_path, private_redis.blob_url, os.urandom(500)):
            state = federation.finish(run, 240)
        records = federation.committed(run)
    finally:
        federation.close()

    assert (state.state, [len(record.accepted) for record in records]) == ("completed", [3] * 3)
