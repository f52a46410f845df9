"""Who makes version 0, one after the other; the closing evaluation without those who are gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fl_queue.common import seeding
from fl_queue.config import loading
from fl_queue.coordinator.aggregator.collector import RoundAggregator
from fl_queue.coordinator.rounds import initialisation, lifecycle, runs
from fl_queue.protocol import identifiers
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.protocol.records import CANNOT
from fl_queue.reporting import diagnosis
from fl_queue.store import Store, keyspace
from fl_queue.store.jobs import dispatch
from fl_queue.store.jobs.rq_types import FLJob
from tests.support.federation import wait_for
from tests.support.manual_run import ManualRun

CLIENTS = ("a", "b", "c")


class First(ManualRun):
    """A run that has no version yet, and whose clients are leases only."""

    def __init__(self, store: Store, folder: Path, *overrides: str, clients: str = "abc") -> None:
        self.keys: dict[str, str] = {}
        self.store, self.folder, self.clients, self.size = store, folder, clients, 2
        self.manifest = Manifest((TensorSpec("w", (2,), "parameter"),))
        for client in clients:
            store.control.leases.hold(keyspace.client_holder(client), "t", 600, {})
        wanted = ("round.cohort=2", "round.quorum=1", *overrides)
        self.config = loading.load("mnist-3v7", wanted, {})
        self.run = runs.start_run(store, "first", self.config, 1).run_id
        self.advance()
        self.order = seeding.in_order(self.config.run.seed, 0, clients, len(clients))

    def count(self, elapsed_s: float) -> None:
        """As if so much time had been counted."""
        key = keyspace.round_(self.run, self.round.number)
        self.store.control.redis.hset(key, "elapsed_s", str(elapsed_s))

    def leave(self, client: str) -> None:
        """As if a client's machine were gone."""
        self.store.control.redis.delete(keyspace.client_holder(client))

    def refuse(self, client: str, reason: str, cannot: str = "") -> None:
        header = replace(self.header("failure", client, b""), tensors=(), reason=reason)
        environment = {CANNOT: cannot} if cannot else {}
        assert self.send(replace(header, environment=environment), b"")

    def make(self, client: str) -> None:
        body = bytes(self.manifest.nbytes)
        header = self.header("model", client, body)
        assert self.send(replace(header, manifest=self.manifest.to_json()), body)

    def asked(self) -> list[str]:
        current = self.store.control.rounds.get(self.run, 0)
        assert current is not None
        return sorted(current.makers, key=lambda who: current.makers[who])

    def events(self, kind: str) -> list[dict[str, object]]:
        found = self.store.control.events.read({keyspace.events(self.run): "0-0"}, None)
        return [event for _, _, event in found if event["event"] == kind]


@pytest.fixture
def first(store: Store, tmp_path: Path) -> First:
    return First(store, tmp_path)


@pytest.fixture(autouse=True)
def calm(store: Store) -> Iterator[None]:
    """However slow this machine is: no silence of it is an outage."""
    stop = threading.Event()

    def settle() -> None:
        while not stop.wait(0.02):
            store.control.redis.hset(keyspace.CLOCK, "settling_s", 0)

    thread = threading.Thread(target=settle)
    thread.start()
    yield
    stop.set()
    thread.join()


def test_the_next_one_is_asked_when_one_could_not(first: First) -> None:
    assert first.asked() == first.order[:1]
    first.refuse(first.order[0], "run.task: no module", "ConfigError")
    collector = RoundAggregator(first.store, first.run, 0, first.job(), first.folder)
    thread = threading.Thread(target=collector.work)
    thread.start()
    wait_for("the second", lambda: first.asked() == first.order[:2])
    first.make(first.order[1])
    thread.join(60)

    assert first.state.version == 0
    (asked,) = first.events("maker_asked")
    assert (asked["client"], asked["reason"]) == (
        first.order[1],
        f"{first.order[0]} could not make it",
    )


def test_the_run_fails_when_all_have_refused_with_the_reason_of_each(first: First) -> None:
    collector = RoundAggregator(first.store, first.run, 0, first.job(), first.folder)
    thread = threading.Thread(target=collector.work)
    thread.start()
    for place, client in enumerate(first.order):
        wait_for("its turn", lambda place=place: first.asked() == first.order[: place + 1])
        assert first.state.active
        first.refuse(client, f"reason of {client}")
    thread.join(60)

    assert first.state.state == "failed"
    reasons = "; ".join(f"{client}: reason of {client}" for client in first.order)
    assert first.state.reason == f"no client could make version 0; {reasons}"


def test_a_maker_whose_machine_is_gone_or_that_is_busy_is_not_waited_for(first: First) -> None:
    first.advance()
    assert first.asked() == first.order[:1]
    first.count(initialisation.BUSY_S)
    first.advance()  # It trains for another run: its job waits in its queue.
    assert first.asked() == first.order[:2]
    first.leave(first.order[1])
    first.advance()
    assert first.asked() == first.order
    reasons = [event["reason"] for event in first.events("maker_asked")]
    assert "is busy" in str(reasons[0])
    assert "no worker of" in str(reasons[1])
    # The first one comes to it after all, and makes it.
    first.make(first.order[0])
    first.work()
    assert first.state.version == 0


def test_a_second_answer_changes_nothing(first: First) -> None:
    first.count(initialisation.BUSY_S)
    first.advance()
    first.make(first.order[1])
    first.make(first.order[0])
    first.work()
    assert first.state.version == 0
    found = first.store.control.receipts.of_round(first.run, 0)
    assert found[first.order[1]].status == "accepted"
    assert found.get(first.order[0]) is None or not found[first.order[0]].is_in


def test_who_is_at_work_has_the_time_of_a_training_and_longer_for_a_large_model(
    store: Store, tmp_path: Path
) -> None:
    first = First(store, tmp_path, "round.deadline_s=7200", "train.timeout_s=60", clients="a")
    assert first.round.deadline_s == 7200
    job = first.store.control.rounds.jobs(first.run, 0)["a"]
    store.control.leases.hold(keyspace.worker("a_1"), "t", 600, {"role": "client"})
    fields = {"status": "started", "worker_name": "a_1"}
    store.control.redis.hset(FLJob.key_for(job["job"]), mapping=fields)
    assert job["timeout_s"] > 7200
    for elapsed_s in (121, 3600, 7300):  # Even past the deadline: it is at it.
        first.count(elapsed_s)
        left = initialisation.awaited(
            store, first.state, first.config, first.round, ["a"], elapsed_s
        )
        assert left == ["a"]
        assert lifecycle.closing_rule(first.round, 0, 1, elapsed_s, None, True) is None
    # A client that has just come is asked, as the first has had its time.
    store.control.leases.hold(keyspace.client_holder("b"), "t", 600, {})
    first.advance()
    assert first.asked() == ["a", "b"]


def test_an_initial_model_adds_the_time_of_a_slow_line(store: Store, tmp_path: Path) -> None:
    first = First(store, tmp_path, "round.deadline_s=7200")
    initial = {"digest": "0" * 64, "nbytes": 10**9, "chunk_bytes": 1, "tensors": []}
    run = runs.start_run(store, "given", first.config, 1, initial).run_id
    lifecycle.advance(store, run)
    current = store.control.rounds.get(run, 0)
    assert current is not None
    assert current.deadline_s == 7200 + 2000


def test_a_lone_maker_that_is_gone_ends_the_run_after_the_time_of_a_round(
    store: Store, tmp_path: Path
) -> None:
    first = First(store, tmp_path, "round.deadline_s=30", clients="a")
    first.leave("a")
    first.count(31)
    first.work()
    assert first.state.state == "failed"
    assert first.state.reason == (
        "no client could make version 0; a: no answer, and no worker of it is alive"
    )


def test_the_evaluator_is_the_first_and_a_client_the_next(store: Store, tmp_path: Path) -> None:
    store.control.leases.hold(keyspace.worker("e"), "t", 600, {"role": "evaluator"})
    first = First(store, tmp_path)
    assert first.asked() == [identifiers.EVALUATOR]
    store.control.redis.delete(keyspace.worker("e"))
    first.advance()
    assert first.asked() == [identifiers.EVALUATOR, first.order[0]]
    first.make(first.order[0])
    first.work()
    assert first.state.version == 0


def test_a_simulation_goes_from_the_evaluator_to_the_pool(store: Store, tmp_path: Path) -> None:
    store.control.leases.hold(keyspace.worker("e"), "t", 600, {"role": "evaluator"})
    store.control.leases.hold(keyspace.worker("p"), "t", 600, {"role": "pool"})
    overrides = ("clients.kind=simulation", "clients.count=5")
    first = First(store, tmp_path, *overrides, clients="")
    store.control.redis.delete(keyspace.worker("e"))
    first.advance()
    virtual = seeding.select_cohort(first.config.run.seed, 0, [f"sim-{n}" for n in range(1, 6)], 1)
    assert first.asked() == [identifiers.EVALUATOR, *virtual]
    ticket = dispatch.tickets(store, first.run, 0)[virtual[0]]
    assert ticket.queue == keyspace.POOL_QUEUE


def test_a_client_that_reported_that_it_cannot_is_asked_last_and_in_no_cohort(first: First) -> None:
    bad, second, third = first.order
    first.refuse(bad, "run.task: no module", "ConfigError")
    first.count(1)
    collector = RoundAggregator(first.store, first.run, 0, first.job(), first.folder)
    thread = threading.Thread(target=collector.work)
    thread.start()
    wait_for("the second", lambda: first.asked() == [bad, second])
    first.make(second)
    thread.join(60)
    wait_for("round 1", lambda: first.state.round == 1)

    assert first.round.cohort == tuple(sorted((second, third)))
    why = first.round.ineligible[bad]
    assert why.startswith("its answer to round 0 was a ConfigError; left out until its worker")
    assert first.state.left_out == {bad: why}
    assert any(
        line == f"left out: {bad}: {why}" for line in diagnosis.why_open(first.store, first.state)
    )


def test_status_shows_which_client_makes_version_0_and_since_when(first: First) -> None:
    first.count(12)
    lines = diagnosis.why_open(first.store, first.state)
    assert f"version 0: {first.order[0]} is asked since 12 s" in lines
    assert runs.describe_state(first.store, first.state).startswith(
        f"is training: making version 0 on {first.order[0]}"
    )


# The closing evaluation


@pytest.fixture
def last(store: Store, tmp_path: Path) -> ManualRun:
    """A run whose only round is committed and whose closing evaluation is about to be opened."""
    hand = ManualRun(store, tmp_path, "ab", 2, "round.quorum=1", "round.deadline_s=30")
    run = {"version": 1, "rounds_wanted": 1, "digest": hand.state.digest}
    store.control.redis.hset(keyspace.run(hand.run), mapping=run)
    store.control.redis.hset(keyspace.round_(hand.run, 1), "state", "committed")
    return hand


def forget(hand: ManualRun, client: str) -> None:
    hand.store.control.redis.delete(keyspace.client_holder(client))
    hand.store.control.redis.zrem(keyspace.CLIENTS, client)


def test_the_closing_evaluation_takes_the_clients_that_are_alive(last: ManualRun) -> None:
    forget(last, "b")
    last.advance()
    assert (last.round.purpose, last.round.cohort) == ("evaluate", ("a",))


def test_without_clients_the_run_completes_and_reports_it(last: ManualRun) -> None:
    forget(last, "a")
    forget(last, "b")
    last.advance()
    assert last.state.state == "completed"
    assert last.state.reason.startswith("no closing evaluation: no client is alive")
    assert "no closing evaluation" in runs.describe_state(last.store, last.state)
    event = last.store.control.events.read({keyspace.events(last.run): "0-0"}, None)
    assert "evaluation_skipped" in [found["event"] for _, _, found in event]


def evaluation(hand: ManualRun, client: str) -> Header:
    return replace(hand.header("evaluation", client, b""), tensors=())


def test_a_slow_site_is_waited_for_past_the_quorum_and_one_that_is_gone_is_not(
    last: ManualRun,
) -> None:
    last.advance()
    assert last.round.deadline_s >= last.config.train.timeout_s
    last.send(evaluation(last, "a"), b"")
    key = keyspace.round_(last.run, last.round.number)
    last.store.control.redis.hset(key, "elapsed_s", "50")  # Later than any grace.
    collector = RoundAggregator(last.store, last.run, last.round.number, last.job(), last.folder)
    thread = threading.Thread(target=collector.work)
    thread.start()
    number = last.round.number
    wait_for("a", lambda: "a" in last.store.control.receipts.of_round(last.run, number))
    assert last.state.active
    last.send(evaluation(last, "b"), b"")
    thread.join(60)
    last.advance()
    assert last.state.state == "completed"
    record = last.store.control.history.records(last.run)[-1]
    assert sorted(record.client_validation) == ["a", "b"]


def test_a_site_that_vanishes_in_the_closing_evaluation_is_not_waited_for(last: ManualRun) -> None:
    last.advance()
    last.send(evaluation(last, "a"), b"")
    forget(last, "b")
    key = keyspace.round_(last.run, last.round.number)
    last.store.control.redis.hset(key, "elapsed_s", "20")
    last.work()
    assert last.state.state == "completed"
    record = last.store.control.history.records(last.run)[-1]
    assert (list(record.client_validation), record.reason) == (["a"], "1 of 2 answers in")


def test_one_failed_answer_ends_no_closing_evaluation(last: ManualRun) -> None:
    last.advance()
    failure = replace(last.header("failure", "a", b""), tensors=(), reason="no")
    last.send(failure, b"")
    last.send(evaluation(last, "b"), b"")
    last.work()
    record = last.store.control.history.records(last.run)[-1]
    assert (list(record.client_validation), record.outcome) == (["b"], "evaluated")
