"""Clients that ask for room on the data server and send nothing do not stop the others."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fl_queue.coordinator.operations import stalled_clients
from fl_queue.coordinator.operations.healer import Healer
from fl_queue.coordinator.operations.stalled_clients import StallDetector
from fl_queue.coordinator.rounds import lifecycle
from fl_queue.store import Store, keyspace
from tests.support.federation import wait_for
from tests.support.manual_run import ManualRun

pytestmark = pytest.mark.timeout(60)

SIZE = 1000
UPDATE = 4 * SIZE + 8
#: Claim of a client that wants the room and sends nothing: without an end, as its Redis user may.
CLAIM = f"hostile:{UPDATE}"
ROOM_FOR_ONE = (f"redis.unmerged_bytes={UPDATE}", "round.quorum=2", "round.grace_s=0.0")


@pytest.fixture
def hand(store: Store, tmp_path: Path) -> ManualRun:
    return ManualRun(store, tmp_path, "abc", SIZE, *ROOM_FOR_ONE)


def claim(hand: ManualRun, client: str, what: str = CLAIM) -> None:
    hand.store.data.redis.set(keyspace.admitted(hand.run, client), what)


def look(hand: ManualRun, watch: StallDetector, seconds: float) -> list[str]:
    """Look every two counted seconds; who was passed over."""
    passed = list(watch.look(hand.run, hand.round))
    for _ in range(int(seconds / 2)):
        key = keyspace.round_(hand.run, hand.round.number)
        hand.store.control.redis.hincrbyfloat(key, "elapsed_s", 2.0)
        passed += watch.look(hand.run, hand.round)
    return passed


def turns(hand: ManualRun) -> dict[str, int]:
    found = hand.store.data.redis.hgetall(keyspace.turns(hand.run, hand.round.number))
    return {client.decode(): int(count) for client, count in found.items()}


def ask(store: Store, client: str) -> bool:
    others = [other for other in "abc" if other != client]
    return store.data.admission.admit("r", client, f"{client}:4", 4, others, number=1)


def test_who_had_a_turn_is_behind_those_who_had_none(store: Store) -> None:
    assert ask(store, "a")
    assert not ask(store, "b")
    store.data.admission.skip("r", 1, "a")

    assert ask(store, "a")  # What it sends is not interrupted,
    assert ask(store, "b")  # but no client waits for it.
    assert not ask(store, "c")
    store.data.admission.release("r", [("a", "a:4")], 1)
    assert not ask(store, "a")  # It waits for those with fewer turns,
    store.data.admission.release("r", [("b", "b:4")], 1)
    assert ask(store, "a")  # and no longer.
    # Of two that had turns, the one with fewer does not wait.
    assert ask(store, "b")


def test_a_client_that_never_sends_delays_the_others_for_a_counted_time(
    hand: ManualRun, store: Store
) -> None:
    claim(hand, "a")
    senders = [threading.Thread(target=hand.update, args=(who, "", UPDATE)) for who in "bc"]
    for sender in senders:
        sender.start()
    watch = StallDetector(store)

    assert look(hand, watch, stalled_clients.PATIENCE_S) == []
    assert store.data.results.count(hand.run) == 0
    assert look(hand, watch, 4) == ["a"]
    assert "2 of 3 updates in" in hand.work()
    for sender in senders:
        sender.join()

    assert hand.record.accepted.keys() == {"b", "c"}
    store.control.clients.record_heartbeats()
    store.control.redis.hset(keyspace.CLOCK, "settling_s", 0)  # However slow this machine is.
    lifecycle.advance(store, hand.run)
    assert hand.round.number == 2
    # It has had its time: in the next round it gets none.
    assert look(hand, watch, 2) == ["a"]
    assert turns(hand) == {"a": 1}


def test_time_in_which_no_aggregator_takes_updates_is_no_clients_fault(
    hand: ManualRun, store: Store
) -> None:
    hand.update("b", bound=UPDATE)

    assert look(hand, StallDetector(store), 60) == []


def test_who_has_sent_holds_its_room_until_its_update_is_merged(
    hand: ManualRun, store: Store
) -> None:
    hand.update("b", bound=UPDATE)
    intake = hand.intake()
    hand.take(intake, 1)
    watch = StallDetector(store)

    assert look(hand, watch, 60) == []
    assert turns(hand) == {}
    intake.checkpoint()
    assert turns(hand) == {"b": 1}
    # Its receipt does not entitle it to the room for ever.
    sent = store.control.receipts.of_round(hand.run, hand.round.number)["b"]
    claim(hand, "b", f"{sent.token}:{sent.nbytes}")
    assert hand.store.data.admission.admit(hand.run, "c", f"c:{UPDATE}", UPDATE, "ab", number=1)


def test_a_big_update_has_more_time_but_not_what_its_client_claims(
    store: Store, tmp_path: Path
) -> None:
    hand = ManualRun(store, tmp_path, "abc", 1_000_000, *ROOM_FOR_ONE)
    claim(hand, "a", f"honest:{hand.manifest.nbytes}")
    claim(hand, "b", f"liar:{10**17}")
    watch = StallDetector(store)

    assert look(hand, watch, stalled_clients.PATIENCE_S + 2) == []
    assert look(hand, watch, 4) == ["a"]
    assert look(hand, watch, 6) == ["b"]


def test_the_healer_looks_and_writes_an_event(
    hand: ManualRun, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalled_clients, "PATIENCE_S", 0.0)
    claim(hand, "a")
    healer = Healer(store, tmp_path)

    def stall_events() -> list[dict[str, object]]:
        healer.heal(hand.run)
        events = store.control.events.read({keyspace.events(hand.run): "0-0"}, None)
        return [event for _, _, event in events if event["event"] == "client_stalled"]

    [event] = wait_for("an event", stall_events, 10)
    assert (event["client"], event["round"]) == ("a", 1)
