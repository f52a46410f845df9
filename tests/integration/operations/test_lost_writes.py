"""A control server that comes back without its last writes, as after a failover: nothing wrong comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from fl_queue.client import outbox, round_job
from fl_queue.client.assignment import ClientJob
from fl_queue.client.resident import Resident
from fl_queue.client.site import WorkerSettings
from fl_queue.coordinator.aggregator.collector import RoundAggregator
from fl_queue.coordinator.aggregator.partial_sum import PartialSumStore
from fl_queue.coordinator.aggregator.unanswered_clients import unanswered
from fl_queue.coordinator.aggregator.verdicts import make_receipt
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.coordinator.rounds.ending import Ending
from fl_queue.coordinator.rounds.runs import current_config
from fl_queue.errors import OwnershipLost, RoundEnded
from fl_queue.protocol.events import RunFailed
from fl_queue.protocol.header import Header
from fl_queue.protocol.records import Purpose, Receipt, Verdict
from fl_queue.protocol.state import RunPhase
from fl_queue.store import Store, keyspace, queries
from fl_queue.store.jobs import dispatch
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.store.transactions import runs as transactions
from tests.support.manual_run import ManualRun

Kept = Mapping[bytes, tuple[bytes, int]]


def remember(control: redis.Redis) -> Kept:
    """All that a server holds now: what it is set back to."""
    keys = control.keys()
    return {key: (control.dump(key), max(0, control.pttl(key))) for key in keys}  # type: ignore[misc, union-attr]


def set_back(control: redis.Redis, kept: Kept) -> None:
    """Lose all that was written since."""
    control.flushall()
    for key, (value, left_ms) in kept.items():
        control.restore(key, left_ms, value)


@pytest.fixture
def hand(store: Store, tmp_path: Path) -> ManualRun:
    return ManualRun(store, tmp_path, "ab", 1000)


@pytest.fixture
def digest(store: Store, tmp_path: Path) -> str:
    """Of version 1 of a run that nothing befalls."""
    hand = ManualRun(store, tmp_path / "calm", "ab", 1000)
    for who in "ab":
        hand.update(who)
    hand.work()
    found = hand.state.digest
    for each in (store.control.redis, store.data.redis):
        each.flushall()
    return found


def events(store: Store, run: str, kind: str) -> list[dict[str, Any]]:
    found = store.control.events.read({keyspace.events(run): "0-0"}, None)
    return [event for _, _, event in found if event["event"] == kind]


def test_what_two_incarnations_of_one_fence_took_is_merged_once(
    digest: str, hand: ManualRun, store: Store
) -> None:
    data, run = store.data, hand.run
    before = remember(store.control.redis)
    old = hand.intake()
    for who in "ab":
        hand.update(who)
    hand.take(old, 2)
    set_back(store.control.redis, before)  # The claim is lost.
    elements = data.redis.lrange(keyspace.taken(run, old.incarnation.fence), 0, -1)

    new = hand.intake()

    assert new.incarnation.fence == old.incarnation.fence
    assert data.redis.lrange(keyspace.results(run), 0, -1) == elements  # In one place, all of them.
    assert data.taken.count(run, new.incarnation.fence + 20) == 0
    with pytest.raises(OwnershipLost):
        data.taken.take(run, old.incarnation.fence, old.incarnation.token, 64)
    with pytest.raises(OwnershipLost):
        data.taken.extend(run, old.incarnation.fence, old.incarnation.token)
    with pytest.raises(OwnershipLost):
        old.checkpoint()
    assert data.results.count(run) == 2
    assert hand.work() == "committed: 2 of 2 updates in"
    assert store.control.versions.get(run, 1)["digest"] == digest


def test_an_aggregator_sees_that_claims_were_lost_and_goes_past_them(
    digest: str, hand: ManualRun, store: Store
) -> None:
    before = remember(store.control.redis)
    for who in "ab":
        hand.update(who)
    for _ in range(3):
        last = hand.intake()
    hand.take(last, 1)
    set_back(store.control.redis, before)

    assert hand.work() == "committed: 2 of 2 updates in"

    assert store.control.runs.fence(hand.run) > last.incarnation.fence
    [event] = events(store, hand.run, "control_writes_lost")
    assert f"{last.incarnation.fence} was in use" in event["what"]
    assert store.control.versions.get(hand.run, 1)["digest"] == digest


def test_a_calm_run_sees_no_lost_writes(hand: ManualRun, store: Store) -> None:
    for who in "ab":
        hand.update(who)
    hand.take(hand.intake(), 1)

    hand.work()

    assert events(store, hand.run, "control_writes_lost") == []


def test_a_lost_incarnation_ends_no_round_though_its_fence_is_the_rounds(
    hand: ManualRun, store: Store
) -> None:
    before = remember(store.control.redis)
    old = hand.intake()
    set_back(store.control.redis, before)
    new = hand.intake()
    current = hand.round
    config = current_config(store, hand.run)
    ending = Ending("abandoned", "by a ghost")
    record = lifecycle.base_record(current, ending, 0.0, config)

    def end(token: str) -> str:
        owner = replace(new.incarnation, token=token)
        return lifecycle.end(store, owner, current, ending, record, {}, config)

    assert new.incarnation.fence == old.incarnation.fence
    assert end(old.incarnation.token) == "another aggregator owns the round"
    assert hand.round.open
    assert end(new.incarnation.token) == "ok"


def test_a_sum_of_a_round_that_never_was_is_not_added_to_its_successor(
    hand: ManualRun, store: Store
) -> None:
    intake = hand.intake()
    hand.update("a")
    hand.take(intake, 1)
    intake.checkpoint()
    assert PartialSumStore(store, hand.run).find(1, hand.round.opening)
    # The same round, opened again at another time from another version.
    store.control.redis.hset(keyspace.round_(hand.run, 1), "opened_at", "1.0")

    again = hand.intake()

    assert again.received() == 0
    assert again.merger is not None
    assert again.merger.total.count == 0
    for who in "ab":
        hand.update(who)
    assert hand.work() == "committed: 2 of 2 updates in"
    assert not hand.store.data.partial_sum.get(hand.run)


def test_a_commit_that_is_lost_is_made_again_with_the_same_bits(
    digest: str, hand: ManualRun, store: Store
) -> None:
    for who in "ab":
        hand.update(who)
    job = hand.job()
    before = remember(store.control.redis)
    RoundAggregator(store, hand.run, 1, job, hand.folder).work()
    assert hand.state.version == 1
    set_back(store.control.redis, before)
    assert hand.state.version == 0
    assert store.data.results.count(hand.run) == 0  # They were removed: their round had ended.
    for who in "ab":
        hand.update(who)  # Asked again.

    assert hand.work() == "committed: 2 of 2 updates in"

    assert store.control.versions.get(hand.run, 1)["digest"] == digest


# What processes do that have seen more than the server has now


def two_rounds(hand: ManualRun) -> None:
    """Commit rounds 1 and 2; a further one is open then."""
    for _ in range(2):
        for who in "ab":
            hand.update(who)
        hand.work()


def test_an_aggregator_of_a_lost_round_leaves_the_updates_of_the_open_one_to_that(
    digest: str, hand: ManualRun, store: Store
) -> None:
    before = remember(store.control.redis)
    two_rounds(hand)
    ghost = hand.intake()
    set_back(store.control.redis, before)
    assert (hand.round.number, ghost.incarnation.round) == (1, 3)
    hand.update("a")

    with pytest.raises(OwnershipLost):
        hand.take(ghost, 1)

    assert store.control.receipts.of_round(hand.run, 1) == {}
    hand.update("b")
    assert hand.work() == "committed: 2 of 2 updates in"
    assert store.control.versions.get(hand.run, 1)["digest"] == digest


def test_no_receipt_of_an_ended_round_is_written_to_one_that_is_open(
    hand: ManualRun, store: Store
) -> None:
    # Its client would not be asked any more, and the round would be abandoned.
    late = Receipt("late", token="1", reason="round 1 had ended")

    assert not store.control.receipts.add(hand.run, 1, "a", late, None)
    assert store.control.receipts.of_round(hand.run, 1) == {}
    assert events(store, hand.run, "update_rejected") == []


def test_a_lost_incarnation_writes_no_receipt_though_its_fence_is_the_rounds(
    hand: ManualRun, store: Store
) -> None:
    before = remember(store.control.redis)
    old = hand.intake()
    set_back(store.control.redis, before)
    new = hand.intake()
    header = hand.header("update", "a", hand.body("a"))

    assert new.incarnation.fence == old.incarnation.fence
    for log in (old.receipt_log, new.receipt_log):
        assert store.control.receipts.of_round(hand.run, 1) == {}
        assert store.control.rejections.of_round(hand.run, 1) == {}
        log.write("a", make_receipt(header, Verdict.received, ""), "a", is_first=True)
        log.rejections.count("a", "wrong")
        log.rejections.close()
    assert list(store.control.receipts.of_round(hand.run, 1)) == ["a"]
    assert list(store.control.rejections.of_round(hand.run, 1)) == ["a"]


def test_cleaning_up_after_a_lost_round_leaves_the_open_one_alone(
    digest: str, hand: ManualRun, store: Store
) -> None:
    before = remember(store.control.redis)
    two_rounds(hand)
    set_back(store.control.redis, before)
    job = hand.job()

    for number in (1, 2, 3, 4):
        lifecycle.clean_up(store, hand.run, number)
    store.control.rounds.forget(hand.run, 1)

    assert hand.round.open
    assert dispatch.is_queued(store, dispatch.tickets(store, hand.run, 1)["aggregator"])
    assert hand.job() == job
    for who in "ab":
        hand.update(who)
    assert hand.work() == "committed: 2 of 2 updates in"
    assert store.control.versions.get(hand.run, 1)["digest"] == digest


@pytest.mark.parametrize("field", ["digest", "config_digest"])
def test_no_decision_about_a_lost_version_is_carried_out_on_its_successor(
    hand: ManualRun, store: Store, field: str
) -> None:
    # A round opened by it would train from a version that the run does not have.
    lost = replace(hand.state, **{field: "f" * 64})

    assert not runs.set_state(store, lost, RunPhase.failed, "by a ghost", RunFailed)
    assert hand.state.active
    assert runs.set_state(store, hand.state, RunPhase.failed, "by its own", RunFailed)


def test_a_lost_version_is_neither_to_be_evaluated_nor_is_its_score_that_of_its_successor(
    hand: ManualRun, store: Store
) -> None:
    score, evaluations = {"state": "done", "finished": {"accuracy": 0.5}}, store.control.evaluations

    def publish(version: int) -> bool:
        ticket = JobTicket("evaluator", "workers.evaluator.evaluate", "q", hand.run, version, 60)
        return transactions.publish_evaluation(store, ticket)

    assert not publish(1)
    assert not evaluations.set(hand.run, 1, score, "f" * 64)
    assert not evaluations.set(hand.run, 0, score, "f" * 64)
    assert "job" in evaluations.all(hand.run)[0]
    assert evaluations.set(hand.run, 0, score, hand.state.digest)
    assert evaluations.all(hand.run) == {0: score}


# A client's outbox


def answer(job: ClientJob) -> None:
    made.append(job.round.base_digest)
    outbox.write(job.site.outbox, round_job.failure_header(job, "none"))


made: list[str] = []


def test_an_update_of_a_round_that_never_was_is_not_sent_to_its_successor(
    hand: ManualRun, store: Store, tmp_path: Path
) -> None:
    made.clear()
    site = WorkerSettings(state_dir=tmp_path / "site", client="a")
    job = ClientJob(store, site, "a", hand.state, hand.round, hand.config, is_watched=False)
    lost: Header = replace(job.header("failure"), base_digest="0" * 64)
    outbox.write(site.outbox, lost)

    header, _ = round_job.find_or_make(job, answer)
    again, _ = round_job.find_or_make(job, answer)

    assert header.base_digest == hand.round.base_digest
    assert made == [hand.round.base_digest]  # Once.
    assert again.token == header.token


def opened_again(hand: ManualRun, store: Store, before: Kept) -> None:
    """Open round 1 once more, with a further client that comes first: the data are split in other parts."""
    set_back(store.control.redis, before)
    store.control.leases.hold(keyspace.client_holder("Z"), "t", 60, {})
    hand.advance()


@pytest.fixture
def unopened(store: Store, tmp_path: Path) -> tuple[ManualRun, Kept]:
    """A run whose round 1 is open, and the server's content of before that."""
    hand = ManualRun(store, tmp_path, "ab", 1000, "round.cohort=1.0", ready=False)
    opened = lifecycle.advance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lifecycle, "advance", lambda *_: None)
        hand.work()
        before = remember(store.control.redis)
    opened(store, hand.run)
    return hand, before


def test_an_update_of_another_share_of_the_data_does_not_count_though_its_base_is_the_same(
    unopened: tuple[ManualRun, Kept], store: Store, tmp_path: Path
) -> None:
    made.clear()
    hand, before = unopened
    site = WorkerSettings(state_dir=tmp_path / "site", client="a")
    first = ClientJob(store, site, "a", hand.state, hand.round, hand.config, is_watched=False)
    lost, _ = round_job.find_or_make(first, answer)
    opened_again(hand, store, before)
    again = replace(first, state=hand.state, round=hand.round)
    assert hand.round.base_digest == lost.base_digest
    assert (hand.state.population, hand.state.shares) == (("Z", "a", "b"), 3)

    found, _ = round_job.find_or_make(again, answer)  # From its outbox, or made anew.
    round_job.find_or_make(again, answer)
    body = hand.body("a")
    pushed = replace(hand.header("update", "a", body), environment=lost.environment)
    assert hand.send(pushed, body)
    intake = hand.intake()
    hand.take(intake, 1)

    assert (len(made), found.token != lost.token) == (2, True)
    [receipt] = store.control.receipts.of_round(hand.run, 1).values()
    assert (receipt.status, receipt.reason[:23]) == ("stale", "made for an earlier ope")
    assert "a" in unanswered(store, hand.run, hand.round, intake.receipts, drained=True)


def test_an_update_counts_for_a_round_that_is_opened_again_as_it_was(
    unopened: tuple[ManualRun, Kept], store: Store, tmp_path: Path
) -> None:
    made.clear()
    hand, before = unopened
    site = WorkerSettings(state_dir=tmp_path / "site", client="a")
    job = ClientJob(store, site, "a", hand.state, hand.round, hand.config, is_watched=False)
    round_job.find_or_make(job, answer)
    set_back(store.control.redis, before)
    hand.advance()

    round_job.find_or_make(replace(job, state=hand.state, round=hand.round), answer)

    assert hand.round.opening != job.round.opening
    assert len(made) == 1


# What a client is at when its round is lost


def ghost(hand: ManualRun, store: Store, folder: Path, number: int, base: str) -> ClientJob:
    """A client's job of a round whose opening is lost, which waits for a model that is nowhere."""
    site = WorkerSettings(state_dir=folder / "site", client="a")
    current = replace(hand.round, number=number, base_digest=base, download="")
    return ClientJob(store, site, "a", hand.state, current, hand.config, is_watched=False)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ahead", [0, 2])
def test_a_client_does_not_wait_for_the_model_of_a_round_that_never_was(
    hand: ManualRun, store: Store, tmp_path: Path, ahead: int
) -> None:
    job = ghost(hand, store, tmp_path, 1 + ahead, "0" * 64)

    with pytest.raises(RoundEnded):
        round_job.find_or_make(job, round_job.asking(Resident(job.site).handle, Purpose.train))

    # No failure of its own is sent when the round is opened.
    assert not list(job.site.outbox.glob("*.update"))


def test_the_worker_ends_such_a_job(hand: ManualRun, store: Store) -> None:
    assert queries.has_ended(store.control, hand.run, 2, "a")
    assert not queries.has_ended(store.control, hand.run, 1, "a")


def test_an_update_of_a_round_that_is_not_open_yet_is_refused_and_sent_again_when_it_is(
    digest: str, hand: ManualRun, store: Store, tmp_path: Path
) -> None:
    made.clear()
    job = ghost(hand, store, tmp_path, 2, digest)
    early = replace(job.header("failure"), base_version=1)
    outbox.write(job.site.outbox, early)
    assert hand.send(early, b"")  # Of a round 2 whose opening is lost.
    for who in "ab":
        hand.update(who)

    assert hand.work() == "committed: 2 of 2 updates in"
    round_job.tidy(store, job.site, "a")

    assert store.data.results.count(hand.run) == 0
    [event] = events(store, hand.run, "update_rejected")
    assert event["reason"] == "a: round 2 has not been opened"
    assert (hand.round.number, hand.round.base_digest) == (2, digest)
    again = replace(job, state=hand.state, round=hand.round)
    assert round_job.find_or_make(again, answer)[0] == early
    assert made == []
