"""The checkpointed sum of an open round, and the room for updates, on real servers without workers."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fl_queue.client import outbox
from fl_queue.client.outbox import SendOptions
from fl_queue.coordinator.aggregator.partial_sum import PartialSumStore
from fl_queue.coordinator.operations import controls, deletion
from fl_queue.coordinator.operations.healer import Healer
from fl_queue.errors import OwnershipLost
from fl_queue.protocol import operator_key
from fl_queue.protocol.records import RoundRecord
from fl_queue.store import Store, keyspace
from tests.support.federation import wait_for
from tests.support.manual_run import NAME, ManualRun
from tests.support.proxy import Proxy

pytestmark = pytest.mark.timeout(60)

CLIENTS = "abcd"
SIZE = 40_000
#: Updates travel in chunks, and every one of them is checkpointed.
CONFIG = ("redis.inline_bytes=0", "redis.unmerged_bytes=1")


@pytest.fixture
def hand(store: Store, tmp_path: Path) -> ManualRun:
    return ManualRun(store, tmp_path, CLIENTS, SIZE, *CONFIG)


@pytest.fixture
def calm(store: Store, tmp_path: Path) -> RoundRecord:
    """Record of a round 1 that had nothing to checkpoint."""
    hand = ManualRun(store, tmp_path / "calm", CLIENTS, SIZE, "redis.inline_bytes=0")
    for client in CLIENTS:
        hand.update(client)
    hand.work()
    record = hand.record
    controls.cancel(store, NAME)
    deletion.delete(store, hand.state, tmp_path / "calm")
    return record


def saves(store: Store) -> int:
    """Checkpoints that were recorded."""
    return int(store.data.redis.info("commandstats").get("cmdstat_hset", {"calls": 0})["calls"])


def but_for_the_lease(hand: ManualRun) -> dict[str, int]:
    """Nor for who had a turn, which is there as long as the round."""
    passing = (":owner:", ":turns:")
    return {
        key: life
        for key, life in hand.leftovers().items()
        if not any(part in key for part in passing)
    }


# Checkpoints


def test_a_sum_checkpointed_after_every_update_makes_the_same_record(
    calm: RoundRecord, hand: ManualRun, store: Store
) -> None:
    before = saves(store)
    for client in CLIENTS:
        hand.update(client)
    done = hand.work()

    assert done == "committed: 4 of 4 updates in"
    assert saves(store) - before == 4
    assert hand.record == calm


def test_nothing_is_checkpointed_while_all_that_is_to_come_fits(
    store: Store, tmp_path: Path
) -> None:
    bound = 4 * (4 * SIZE + 8)
    hand = ManualRun(store, tmp_path, CLIENTS, SIZE, f"redis.unmerged_bytes={bound}")
    before = saves(store)
    for client in CLIENTS:
        hand.update(client)
    hand.work()

    assert saves(store) == before


def test_after_a_checkpoint_its_updates_are_gone_and_have_made_room(
    hand: ManualRun, store: Store
) -> None:
    intake = hand.intake()
    for client in "ab":
        hand.update(client, bound=3 * (4 * SIZE + 8))
    hand.take(intake, 2)
    assert intake.is_full()
    assert store.data.redis.exists(*[keyspace.admitted(hand.run, client) for client in "ab"]) == 2
    intake.checkpoint()

    assert store.data.taken.count(hand.run, intake.incarnation.fence) == 0
    assert but_for_the_lease(hand) == dict.fromkeys(hand.partial_keys(), -1)


def test_a_newer_sum_replaces_the_older_one(hand: ManualRun) -> None:
    intake = hand.intake()
    for client in CLIENTS[:3]:
        hand.update(client)
        hand.take(intake, 1)
        intake.checkpoint()

    assert but_for_the_lease(hand) == dict.fromkeys(hand.partial_keys(), -1)


def test_an_incarnation_that_goes_on_counts_nothing_twice(
    calm: RoundRecord, hand: ManualRun, store: Store
) -> None:
    first = hand.intake()
    for client in "abc":
        hand.update(client)
    hand.take(first, 2)
    first.checkpoint()
    hand.take(first, 1)  # Taken, merged, and lost with the incarnation.
    second = hand.intake()
    assert second.received() == 2
    assert store.data.results.count(hand.run) == 1
    hand.update("a")  # Pushed again by a client that does not know.
    hand.update("d")

    assert hand.work() == "committed: 4 of 4 updates in"
    assert hand.record == calm
    assert store.control.receipts.of_round(hand.run, 1)["a:duplicate"].status == "duplicate"


def test_what_a_killed_aggregator_left_of_merged_updates_is_removed(
    hand: ManualRun, store: Store
) -> None:
    intake = hand.intake()
    for client in "ab":
        hand.update(client, bound=3 * (4 * SIZE + 8))
    hand.take(intake, 2)
    assert intake.merger is not None
    chunk_bytes = hand.config.redis.chunk_bytes
    sums = PartialSumStore(store, hand.run)
    assert sums.save(intake.incarnation, 2, intake.merger.total, intake.progress, chunk_bytes)
    assert len(but_for_the_lease(hand)) == len(hand.partial_keys()) + 4  # And is killed here.
    hand.intake()

    assert but_for_the_lease(hand) == dict.fromkeys(hand.partial_keys(), -1)


def test_an_older_sum_goes_by_itself_when_its_aggregator_was_killed_before_it_removed_it(
    hand: ManualRun, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def failpoint(point: str) -> None:
        if point == "partial.saved":
            raise Killed

    intake = hand.intake()
    for client in "ab":
        hand.update(client)
    hand.take(intake, 1)
    intake.checkpoint()
    older = hand.partial_keys() - {keyspace.partial(hand.run)}
    hand.take(intake, 1)
    monkeypatch.setattr("fl_queue.common.failpoints.failpoint", failpoint)
    with pytest.raises(Killed):
        intake.checkpoint()

    assert all(0 < store.data.redis.ttl(key) <= 3600 for key in older)
    assert hand.intake().received() == 2
    assert {store.data.redis.ttl(key) for key in hand.partial_keys()} == {-1}


def test_an_incarnation_that_lost_its_taken_list_checkpoints_nothing(
    calm: RoundRecord, hand: ManualRun, store: Store
) -> None:
    old = hand.intake()
    for client in "abc":
        hand.update(client)
    hand.take(old, 1)
    old.checkpoint()
    hand.take(old, 1)
    new = hand.intake()
    hand.take(new, 2)
    before = store.data.partial_sum.get(hand.run)
    with pytest.raises(OwnershipLost):
        old.checkpoint()

    assert store.data.partial_sum.get(hand.run) == before
    assert {store.data.redis.ttl(key) for key in hand.partial_keys()} == {-1}
    assert store.data.taken.count(hand.run, new.incarnation.fence) == 2
    new.checkpoint()
    hand.update("d")
    assert hand.work() == "committed: 4 of 4 updates in"
    assert hand.record == calm


def test_a_checkpoint_sent_again_removes_nothing_more(hand: ManualRun, store: Store) -> None:
    intake = hand.intake()
    for client in "abc":
        hand.update(client)
    hand.take(intake, 3)
    fields = {"nonce": "n", "round": 1}
    for _ in range(2):
        assert store.data.partial_sum.save(
            hand.run, intake.incarnation.fence, intake.incarnation.token, 1, fields
        )

    assert store.data.taken.count(hand.run, intake.incarnation.fence) == 2


def test_all_receipts_outlive_the_incarnation_that_wrote_them(
    hand: ManualRun, store: Store
) -> None:
    first = hand.intake()
    hand.update("a")
    hand.update("a", token="again")
    body = bytes(hand.manifest.nbytes)
    hand.send(replace(hand.header("update", "b", body), base_digest="0" * 64), body)
    hand.send(replace(hand.header("update", "c", body), body_digest="0" * 64), body)
    hand.send(replace(hand.header("failure", "d", b""), tensors=(), reason="no disk"), b"")
    store.data.redis.set(keyspace.chunk(keyspace.model_blob(hand.run, "0" * 64), 0), body, ex=60)
    hand.take(first, 5)
    before = store.control.receipts.of_round(hand.run, 1)
    statuses = {who: receipt.status for who, receipt in before.items()}
    first.checkpoint()
    second = hand.intake()

    assert statuses == {
        "a": "received", "a:duplicate": "duplicate", "b": "stale", "c": "invalid", "d": "failed",
    }  # fmt: skip
    assert store.control.receipts.of_round(hand.run, 1) == before
    assert second.progress.validation == {"a": {"num_examples": 2, "loss_sum": ord("a") / 7}}


# Loss


def test_a_sum_whose_chunks_are_lost_is_asked_for_again(
    calm: RoundRecord, hand: ManualRun, store: Store
) -> None:
    first = hand.intake()
    for client in "ab":
        hand.update(client)
    hand.take(first, 2)
    first.checkpoint()
    store.data.redis.delete(
        keyspace.chunk(
            keyspace.partial_blob(hand.run, store.data.partial_sum.get(hand.run)["digest"]), 0
        )
    )
    second = hand.intake()
    attempts = {who: job["attempt"] for who, job in store.control.rounds.jobs(hand.run, 1).items()}

    assert second.received() == 0
    assert store.control.receipts.of_round(hand.run, 1) == {}
    assert store.data.partial_sum.get(hand.run) == {}
    assert attempts == {**dict.fromkeys(CLIENTS, 2), "aggregator": 1}
    for client in CLIENTS:
        hand.update(client)
    hand.work()
    assert hand.record == calm


def test_a_sum_with_other_bytes_than_its_digest_is_not_used(hand: ManualRun, store: Store) -> None:
    first = hand.intake()
    hand.update("a")
    hand.take(first, 1)
    first.checkpoint()
    key = keyspace.chunk(
        keyspace.partial_blob(hand.run, store.data.partial_sum.get(hand.run)["digest"]), 0
    )
    store.data.redis.setrange(key, 100, b"x")

    assert hand.intake().received() == 0


@pytest.mark.parametrize("forged", [{"weight": "1"}, {"digest": "0" * 64}, {"signature": ""}])
def test_a_sum_that_the_operators_side_did_not_write_is_not_used(
    calm: RoundRecord, hand: ManualRun, store: Store, forged: dict[str, str]
) -> None:
    """Its updates are gone, and their signatures: a process that may write there would make the model."""
    store.state_dir = hand.folder
    operator_key.create(operator_key.place(hand.folder))
    first = hand.intake()
    hand.update("a")
    hand.take(first, 1)
    first.checkpoint()
    assert hand.intake().received() == 1  # What was signed is.
    store.data.redis.hset(keyspace.partial(hand.run), mapping=forged)

    assert hand.intake().received() == 0
    assert store.data.partial_sum.get(hand.run) == {}
    assert store.control.receipts.of_round(hand.run, 1) == {}
    events = [event for _, event in store.control.events.newest(keyspace.events(hand.run), 9)]
    assert [event["event"] for event in events].count("sum_refused") == 1
    for client in CLIENTS:
        hand.update(client)
    hand.work()
    assert hand.record == calm


def test_receipts_are_there_before_the_sum_is_read(
    hand: ManualRun, store: Store, redis_urls: tuple[str, str]
) -> None:
    # Without them the healer has all clients asked again while a large sum is being read.
    first = hand.intake()
    hand.update("a")
    hand.take(first, 1)
    first.checkpoint()
    with Proxy(redis_urls[1]) as proxy, Store(redis_urls[0], proxy.url) as slow:
        proxy.throttle(2e5)
        hand.store = slow
        reading = threading.Thread(target=hand.intake)
        reading.start()
        wait_for(
            "the claim",
            lambda: store.control.runs.fence(hand.run) == first.incarnation.fence + 1,
            10,
        )
        receipts = wait_for("receipts", lambda: store.control.receipts.of_round(hand.run, 1), 10)
        is_reading = reading.is_alive()
        proxy.throttle(0)
        reading.join(10)

    assert (sorted(receipts), is_reading) == (["a"], True)


# What is left


def test_a_sum_is_removed_under_its_own_name_only(hand: ManualRun, store: Store) -> None:
    intake = hand.intake()
    hand.update("a")
    hand.take(intake, 1)
    intake.checkpoint()
    before = store.data.partial_sum.get(hand.run)
    store.data.partial_sum.drop(hand.run, "that-of-an-older-one")

    assert store.data.partial_sum.get(hand.run) == before
    store.data.partial_sum.drop(hand.run, before["nonce"])
    assert store.data.partial_sum.get(hand.run) == {}


@pytest.mark.parametrize("bound", [1, 1 << 30])
def test_nothing_is_left_of_a_round_that_has_ended(
    store: Store, tmp_path: Path, bound: int
) -> None:
    hand = ManualRun(
        store, tmp_path, CLIENTS, SIZE, "redis.inline_bytes=0", f"redis.unmerged_bytes={bound}"
    )
    for client in CLIENTS:
        hand.update(client)
    hand.work()

    assert hand.leftovers() == {}


def test_nothing_is_left_of_a_run_that_was_cancelled(hand: ManualRun, store: Store) -> None:
    intake = hand.intake()
    hand.update("a")
    hand.take(intake, 1)
    intake.checkpoint()
    hand.update("b")
    store.data.admission.admit(hand.run, "c", "never-sent:9", 1 << 30, "ab")
    controls.cancel(store, NAME)
    store.data.taken.disown(hand.run, intake.incarnation.fence)
    Healer(store, hand.folder).heal(hand.run)

    assert hand.leftovers() == {}


def test_nothing_is_left_of_a_run_that_was_deleted(hand: ManualRun, store: Store) -> None:
    intake = hand.intake()
    hand.update("a")
    hand.take(intake, 1)
    intake.checkpoint()
    hand.update("b")
    controls.cancel(store, NAME)
    deletion.delete(store, hand.state, hand.folder)

    assert list(store.data.redis.scan_iter(match=f"*{hand.run}*")) == []


def test_cleaning_up_a_round_leaves_the_sum_of_the_next_one(hand: ManualRun, store: Store) -> None:
    slow = hand.intake()
    for client in CLIENTS:
        hand.update(client)
    hand.take(slow, 4)
    slow.checkpoint()
    assert hand.work().startswith("committed")  # By another one, which opens round 2.
    quick = hand.intake()
    hand.update("a")
    hand.take(quick, 1)
    quick.checkpoint()
    slow.taken.clean_up()

    assert hand.intake().received() == 1


def test_the_sum_of_a_round_that_has_ended_is_no_part_of_the_next_one(
    hand: ManualRun, store: Store
) -> None:
    intake = hand.intake()
    hand.update("a")
    hand.take(intake, 1)
    intake.checkpoint()
    saved = store.data.partial_sum.get(hand.run)
    for client in CLIENTS[1:]:
        hand.update(client)
    hand.work()
    store.data.redis.hset(keyspace.partial(hand.run), mapping=saved)  # Its cleaner was killed.

    assert hand.intake().received() == 0
    assert {job["attempt"] for job in store.control.rounds.jobs(hand.run, 2).values()} == {1}


# Room for updates


def ask(store: Store, client: str, size: int, bound: int, run: str = "r") -> bool:
    """As one of three clients."""
    others = [other for other in "abc" if other != client]
    return store.data.admission.admit(run, client, f"token-{client}:{size}", bound, others)


def test_no_more_is_admitted_than_the_bound_but_one_alone_always_is(store: Store) -> None:
    assert ask(store, "a", 1000, 10)
    assert not ask(store, "b", 1000, 10)
    assert ask(store, "a", 1000, 10)  # It has its permission.
    store.data.admission.release("r", [("a", "token-a:1000"), ("b", "token-b:1000")])
    assert [ask(store, client, 4, 10) for client in "abc"] == [True, True, False]
    assert ask(store, "c", 4, 10, "other")  # Another run has its own bound.


def test_of_many_who_ask_at_the_same_time_no_more_are_admitted(redis_urls: tuple[str, str]) -> None:
    clients, admitted = "abcdefgh", list[str]()

    def work(client: str) -> None:
        others = [other for other in clients if other != client]
        with Store(*redis_urls) as store:
            while len(admitted) < 2:
                if store.data.admission.admit("r", client, f"{client}:4", 8, others):
                    admitted.append(client)
                    return

    threads = [threading.Thread(target=work, args=client) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(admitted) == 2


def test_a_size_reported_by_a_client_counts_as_one_update_at_most(store: Store) -> None:
    store.data.redis.set(keyspace.admitted("r", "a"), f"lie:{10**17}")
    store.data.redis.rpush(keyspace.admitted("r", "b"), "no string")

    assert ask(store, "c", 4, 8)
    store.data.admission.release("r", [("a", "its update"), ("b", "its update")])
    assert [store.data.redis.exists(keyspace.admitted("r", client)) for client in "abc"] == [
        1,
        0,
        1,
    ]


def test_a_permission_that_is_not_extended_ends(store: Store) -> None:
    key = keyspace.admitted("r", "a")
    assert ask(store, "a", 6, 10)
    assert not ask(store, "b", 6, 10)
    assert store.data.redis.ttl(key) > 100
    store.data.redis.expire(key, 1)
    assert ask(store, "a", 6, 10)
    assert store.data.redis.ttl(key) > 100
    store.data.redis.pexpire(key, 1)
    wait_for("its end", lambda: not store.data.redis.exists(key))

    assert ask(store, "b", 6, 10)


def test_clients_wait_for_room_and_go_when_their_round_has_ended(
    hand: ManualRun, store: Store
) -> None:
    body = bytes(hand.manifest.nbytes)
    assert store.data.admission.admit(hand.run, "b", "other:1000000", 1, "a")
    asked = iter([False, False, True])
    options = SendOptions(0, 65536, unmerged_bytes=1, rivals="ab")
    header = hand.header("update", "a", body)
    pushed = outbox.push(store, header, memoryview(body), options, lambda: next(asked))

    assert not pushed
    assert store.data.results.count(hand.run) == 0
    assert list(hand.leftovers()) == [keyspace.admitted(hand.run, "b")]


def test_a_client_that_sends_keeps_its_permission_until_its_update_is_merged(
    hand: ManualRun, store: Store
) -> None:
    hand.update("a", bound=1)

    assert store.data.redis.ttl(keyspace.admitted(hand.run, "a")) > 20 * 3600


def test_no_client_asks_where_there_is_room_for_all(hand: ManualRun, store: Store) -> None:
    hand.update("a", bound=len(CLIENTS) * hand.manifest.nbytes)

    assert not store.data.redis.exists(keyspace.admitted(hand.run, "a"))
