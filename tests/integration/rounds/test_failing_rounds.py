"""Rounds that cannot be ended: tried again, then ended by their rule with the error as the reason."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from fl_queue.coordinator.aggregator import collector
from fl_queue.coordinator.aggregator.collector import RoundAggregator
from fl_queue.coordinator.operations import healer
from fl_queue.coordinator.operations.healer import Healer
from fl_queue.errors import CheckpointError, MergeFailed
from fl_queue.models import checkpoint
from fl_queue.protocol import identifiers
from fl_queue.protocol.records import Receipt
from fl_queue.reporting import diagnosis
from fl_queue.store import Store, keyspace
from fl_queue.store.jobs.rq_types import FLJob
from tests.support.manual_run import ManualRun

SECRET = "patient 4711"
BAD = f"""
from fl_queue.strategies.base import Strategy

class Bad(Strategy):
    def next_model(self, *args, **kwargs):
        raise ZeroDivisionError("{SECRET}")
        yield
"""
ONCE = ("round.max_abandoned=1", "round.deadline_s=600")


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An own strategy that cannot make the next model."""
    (tmp_path / "badstrategy.py").write_text(BAD)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "aggregation.strategy=badstrategy:Bad"


def attempt(hand: ManualRun) -> str:
    """An aggregator's job, and the healer's next one when it fails."""
    number, job = hand.round.number, hand.job()
    try:
        return RoundAggregator(
            hand.store, hand.run, number, job, hand.folder, ("badstrategy:*",)
        ).work()
    except (MergeFailed, CheckpointError) as exc:
        hand.store.control.redis.hset(FLJob.key_for(job), "status", "failed")
        hand.store.control.redis.hset(keyspace.CLOCK, "settling_s", 0)
        Healer(hand.store, hand.folder, immediate=True).heal(hand.run)
        return str(exc)


def all_in(hand: ManualRun) -> None:
    for client in hand.clients:
        hand.update(client)


def pass_deadline(hand: ManualRun) -> None:
    hand.store.control.redis.hset(keyspace.round_(hand.run, 1), "elapsed_s", 601)


def test_an_own_strategys_error_ends_its_round_after_the_deadline(
    store: Store, tmp_path: Path, bad: str
) -> None:
    hand = ManualRun(store, tmp_path, "ab", 100, *ONCE, bad)
    all_in(hand)
    outcomes = [attempt(hand) for _ in range(collector.SAME_FAILURES + 1)]
    why = "ZeroDivisionError; its message is in the aggregator's log"

    # Before its deadline it is tried again: the aggregator's operator may mend it.
    assert outcomes == [why] * (collector.SAME_FAILURES + 1)
    assert f"the next version could not be made, 4 times: {why}" in diagnosis.why_open(
        store, hand.state
    )
    pass_deadline(hand)
    assert attempt(hand) == f"abandoned: it could not be ended, 5 times: {why}"
    assert (hand.state.state, hand.state.reason) == (
        "failed",
        f"it could not be ended, 5 times: {why}",
    )
    assert hand.record.outcome == "abandoned"
    assert hand.leftovers() == {}


def test_the_message_of_an_own_strategys_error_stays_in_the_log(
    store: Store, tmp_path: Path, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    hand = ManualRun(store, tmp_path, "ab", 100, *ONCE, bad)
    all_in(hand)
    with pytest.raises(MergeFailed) as caught:
        RoundAggregator(store, hand.run, 1, hand.job(), tmp_path, ("badstrategy:*",)).work()

    assert SECRET in caplog.text
    # That is what RQ writes to Redis.
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in hand.round.failure


def test_an_error_that_passes_ends_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = ManualRun(store, tmp_path, "ab", 100, *ONCE)
    all_in(hand)
    pass_deadline(hand)
    messages = iter(("one", "two", "one"))

    def broken(*args: object, **kwargs: object) -> None:
        raise ArithmeticError(next(messages))

    with monkeypatch.context() as patch:
        patch.setattr(collector.VersionBuilder, "build_next", broken)
        assert [attempt(hand) for _ in range(3)] == [
            "ArithmeticError: one",
            "ArithmeticError: two",
            "ArithmeticError: one",
        ]
    assert attempt(hand) == "committed: 2 of 2 updates in"


def test_a_base_that_is_nowhere_any_more_ends_its_round(store: Store, tmp_path: Path) -> None:
    hand = ManualRun(store, tmp_path, "ab", 100, *ONCE)
    all_in(hand)
    pass_deadline(hand)
    base = hand.round.base_digest
    for key in store.data.redis.scan_iter(
        match=keyspace.chunk(keyspace.model_blob(hand.run, base), "*")
    ):
        store.data.redis.delete(key)
    for file in checkpoint.checkpoint_folder(tmp_path, hand.run).iterdir():
        file.unlink()
    outcomes = [attempt(hand) for _ in range(collector.SAME_FAILURES)]

    assert "is not on the data server" in outcomes[0]
    assert outcomes[-1].startswith("abandoned: it could not be ended, 3 times: chunk 0 of ")
    assert hand.state.state == "failed"


def test_a_checkpoint_that_cannot_be_written_is_tried_for_as_long_as_it_takes_and_named(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = ManualRun(store, tmp_path, "ab", 100, *ONCE)
    all_in(hand)
    pass_deadline(hand)

    def full(*args: object, **kwargs: object) -> None:
        raise CheckpointError("/disk", "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(collector.VersionBuilder, "build_next", full)
        for _ in range(collector.SAME_FAILURES + 1):
            attempt(hand)
    assert hand.round.open
    assert (
        "the next version could not be made, 4 times: checkpoint /disk: No space left on device"
        in diagnosis.why_open(store, hand.state)
    )
    assert attempt(hand) == "committed: 2 of 2 updates in"


def test_a_client_whose_answers_are_never_taken_is_asked_less_and_less_often(
    store: Store, tmp_path: Path
) -> None:
    hand = ManualRun(store, tmp_path, "ab", 100)
    for _ in range(30):
        ticket = healer.dispatch.tickets(store, hand.run, 1)["a"]
        store.control.redis.hset(FLJob.key_for(ticket.job), "status", "finished")
        # Its element is refused as forged: of another key, for example.
        receipt = Receipt("forged", token="t", reason="not signed by a")
        store.control.receipts.add(hand.run, 1, "a", receipt, 0)
        Healer(store, tmp_path).heal(hand.run)

    # Without a pause: once each time.
    assert healer.dispatch.tickets(store, hand.run, 1)["a"].attempt == healer.QUICK_ATTEMPTS + 1


def test_making_way_for_others_is_no_attempt_that_came_to_nothing(
    store: Store, tmp_path: Path
) -> None:
    # Else the next one after an accident would be made to wait.
    hand = ManualRun(store, tmp_path, "ab", 100)
    other = ManualRun(store, tmp_path, "ab", 100, name="other")
    other.update("a")
    for _ in range(3):
        assert hand.work() == "made way for another round"

    assert store.control.rounds.jobs(hand.run, 1)[identifiers.AGGREGATOR]["attempt"] == 1
