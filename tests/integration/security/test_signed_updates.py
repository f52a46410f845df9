"""Signed elements before a real aggregator: who is believed, and what becomes of what is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fl_queue.coordinator.aggregator import late_updates
from fl_queue.coordinator.operations import verification
from fl_queue.protocol import message, signing, tensor_layout
from fl_queue.protocol.records import Enrolment
from fl_queue.store import Store
from tests.support.manual_run import ManualRun

CLIENTS = ("a", "b")
REQUIRED = "security.require_enrolment=true"


@pytest.fixture
def keys(store: Store) -> dict[str, str]:
    """Secret keys of both clients, which are enrolled."""
    made = {client: signing.new_key() for client in CLIENTS}
    for client, (_, public) in made.items():
        store.control.enrolments.write(client, Enrolment(public, max_examples=1000))
    return {client: secret for client, (secret, _) in made.items()}


@pytest.fixture
def hand(store: Store, tmp_path: Path, keys: dict[str, str]) -> ManualRun:
    return ManualRun(store, tmp_path, CLIENTS, 10, REQUIRED, "round.quorum=1", keys=keys)


def element_of(hand: ManualRun, client: str, /, **changes: Any) -> bytes:
    """An update as it travels, not signed."""
    body = hand.body(client)
    return message.pack(replace(hand.header("update", client, body), **changes), body)


def unsigned(hand: ManualRun) -> bytes:
    return element_of(hand, "a")


def signed_by_another(hand: ManualRun) -> bytes:
    return signing.seal(element_of(hand, "a"), "b", hand.keys["b"])


def signed_with_another_key(hand: ManualRun) -> bytes:
    return signing.seal(element_of(hand, "a"), "a", hand.keys["b"])


def signed_with_a_new_key(hand: ManualRun) -> bytes:
    return signing.seal(element_of(hand, "a"), "a", signing.new_key()[0])


def changed_header(hand: ManualRun) -> bytes:
    honest = element_of(hand, "a")
    envelope = hand.seal("a", honest)[: -len(honest)]
    return envelope + element_of(hand, "a", num_examples=999)


def of_another_run(hand: ManualRun) -> bytes:
    return hand.seal("a", element_of(hand, "a", run="other-123456"))


def of_a_stranger(hand: ManualRun) -> bytes:
    return signing.seal(element_of(hand, "a", client="z"), "z", signing.new_key()[0])


def in_the_name_of_the_evaluator(hand: ManualRun) -> bytes:
    return element_of(hand, "a", client="evaluator")


FORGERIES: dict[str, tuple[Callable[[ManualRun], bytes], str]] = {
    "unsigned": (unsigned, "not signed, in the name of a"),
    "by another": (signed_by_another, "signed by b, in the name of a"),
    "another's key": (signed_with_another_key, "not signed with the key of a"),
    "a new key": (signed_with_a_new_key, "not signed with the key of a"),
    "changed header": (changed_header, "not signed with the key of a"),
    "another run": (of_another_run, "it is of run other-123456"),
    "a stranger": (of_a_stranger, "z is not enrolled"),
    "the evaluator": (in_the_name_of_the_evaluator, "not signed, in the name of evaluator"),
}


def rejections(hand: ManualRun) -> list[dict[str, Any]]:
    streams = {f"flq:{{{hand.run}}}:events": "0-0"}
    found = hand.store.control.events.read(streams, None)
    return [event for _, _, event in found if event["event"] == "update_rejected"]


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_element_neither_blocks_nor_replaces_the_real_one(
    hand: ManualRun, kind: str
) -> None:
    make, reason = FORGERIES[kind]
    intake = hand.intake()
    for _ in range(2):
        hand.store.data.results.push(hand.run, make(hand))
        hand.take(intake, 1)

    assert intake.received() == 0
    assert intake.receipts == {}  # It is no answer: the round waits for the client.
    reasons = [event["reason"] for event in rejections(hand)]
    receipts = hand.store.control.receipts.of_round(hand.run, hand.round.number)
    assert reasons[0] == reason
    if kind not in ("a stranger", "the evaluator"):
        assert {who: receipt.status for who, receipt in receipts.items()} == {"a:forged": "forged"}
        assert len(reasons) == 1  # Once for each client, however many there are.

    hand.update("a")
    hand.take(intake, 1)

    receipts = hand.store.control.receipts.of_round(hand.run, hand.round.number)
    assert intake.received() == 1
    assert receipts["a"].status == "received"
    assert receipts["a"].digest == tensor_layout.body_digest(hand.body("a"))


def test_forgeries_after_the_real_one_change_nothing(hand: ManualRun) -> None:
    intake = hand.intake()
    hand.update("a")
    hand.take(intake, 1)
    before = intake.receipts["a"]
    for make, _ in FORGERIES.values():
        hand.store.data.results.push(hand.run, make(hand))
        hand.take(intake, 1)

    assert intake.receipts == {"a": before}
    assert hand.store.control.receipts.of_round(hand.run, hand.round.number)["a"] == before


def test_an_element_of_an_earlier_round_is_late_and_its_own_receipt_stays(hand: ManualRun) -> None:
    first = hand.seal("a", element_of(hand, "a"))
    for client in CLIENTS:
        hand.update(client)
    hand.work()
    assert hand.round.number == 2
    forged = element_of(hand, "b", round=1)

    intake = hand.intake()
    for element in (first, forged):
        hand.store.data.results.push(hand.run, element)
        hand.take(intake, 1)

    assert intake.receipts == {}
    assert hand.store.control.receipts.of_round(hand.run, 1)["a"].status == "accepted"
    assert hand.store.control.receipts.of_round(hand.run, 1)["b"].status == "accepted"
    assert "not signed, in the name of b" in [event["reason"] for event in rejections(hand)]


def test_forgeries_of_an_ended_run_are_removed(hand: ManualRun) -> None:
    for client in CLIENTS:
        hand.update(client)
    element = element_of(hand, "a")
    hand.store.control.redis.hset(f"flq:{{{hand.run}}}", "state", "cancelled")
    hand.store.data.redis.delete(f"flq:{{{hand.run}}}:results")
    hand.store.data.results.push(hand.run, element)

    assert late_updates.drain(hand.store, hand.state) == 1
    assert hand.store.control.receipts.of_round(hand.run, 1) == {}
    assert rejections(hand)[-1]["reason"] == "not signed, in the name of a"


def test_more_examples_than_enrolled_count_as_so_many(store: Store, tmp_path: Path) -> None:
    secret, public = signing.new_key()
    store.control.enrolments.write("a", Enrolment(public, max_examples=5))
    config = ("model.keep_updates=true", "aggregation.max_examples=50")
    hand = ManualRun(store, tmp_path, CLIENTS, 10, *config, keys={"a": secret})
    hand.update("a")  # It claims 97, and b 98.
    hand.update("b")  # Enrolment is not required of the others.
    hand.work()

    receipts = store.control.receipts.of_round(hand.run, 1)
    assert {who: (r.num_examples, r.weight) for who, r in receipts.items()} == {
        "a": (97, 5), "b": (98, 50),
    }  # fmt: skip
    assert hand.record.weights == {"a": 5, "b": 50}
    (verdict,) = verification.verify(store, hand.state, tmp_path)
    assert verdict.result == "same"


def test_no_round_waits_for_a_client_that_was_revoked(hand: ManualRun) -> None:
    hand.update("b")
    known = hand.store.control.enrolments.get("a")
    assert known is not None
    hand.store.control.enrolments.write("a", replace(known, revoked_at=1.0))
    hand.update("a")

    done = hand.work()

    assert done == "committed: 1 of 2 updates in"
    assert hand.record.accepted.keys() == {"b"}
    assert hand.record.missing == ["a"]
    assert "a is not enrolled any more" in [event["reason"] for event in rejections(hand)]
    # Nor is it selected again, enrolment required or not.
    assert hand.state.reason == (
        "round.cohort wants 2 clients, and 1 may take part; left out: a: it was revoked"
    )


def test_only_the_enrolled_are_selected(store: Store, tmp_path: Path) -> None:
    secret, public = signing.new_key()
    store.control.enrolments.write("b", Enrolment(public))

    hand = ManualRun(store, tmp_path, CLIENTS, 10, REQUIRED, "round.cohort=1.0", keys={"b": secret})

    assert hand.round.cohort == ("b",)


def test_what_a_forged_element_names_is_neither_read_nor_asked_for_nor_removed(
    hand: ManualRun,
) -> None:
    intake = hand.intake()
    jobs = hand.store.control.rounds.jobs(hand.run, hand.round.number)
    header = replace(hand.header("update", "a", hand.body("a")), chunk_bytes=64)
    forged = signing.seal(message.pack(header, None), "a", hand.keys["b"])
    hand.store.data.results.push(hand.run, forged)
    hand.take(intake, 1)

    # Its chunks are not there: had a process looked, the client would have been asked again.
    assert hand.store.control.rounds.jobs(hand.run, hand.round.number) == jobs
    assert intake.taken.headers == []


def test_the_same_update_sealed_again_is_the_same_element(hand: ManualRun) -> None:
    hand.update("a")
    hand.update("a")

    first, second = hand.store.data.redis.lrange(f"flq:{{{hand.run}}}:results", 0, -1)
    assert first == second
