"""Rounds of virtual clients as they are opened, repaired and explained, without any worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_queue.aggregation.group_sum import GroupSum
from fl_queue.common import seeding
from fl_queue.common.safe_json import dumps
from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.aggregator import late_updates, verdicts
from fl_queue.coordinator.aggregator.intake import UpdateIntake
from fl_queue.coordinator.aggregator.open_round import OpenRound
from fl_queue.coordinator.operations.healer import Healer
from fl_queue.coordinator.rounds import lifecycle, opening, runs
from fl_queue.protocol import identifiers, message, tensor_layout, virtual_clients
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.protocol.records import Receipt
from fl_queue.reporting import diagnosis
from fl_queue.store import Incarnation, RunState, Store, keyspace
from fl_queue.store.jobs import dispatch, rq_types

OVERRIDES = (
    "clients.kind=simulation",
    "clients.count=40",
    "clients.processes=2",
    "round.cohort=10",
)


def simulated(*overrides: str) -> RunConfig:
    return loading.load("mnist-3v7", (*OVERRIDES, *overrides), {})


def add_version(store: Store, run: str, version: int) -> None:
    """List a version, as a commit does."""
    entry = dumps({"digest": "0" * 64, "round": version})
    store.control.redis.hset(keyspace.versions(run), str(version), entry)


def begin(store: Store, loaded: RunConfig, version: int | None = 0) -> RunState:
    """A run of virtual clients that has that version."""
    state = runs.start_run(store, "many", loaded, 3)
    if version is not None:
        fields = {"version": version, "digest": "0" * 64, "round": version}
        store.control.redis.hset(keyspace.run(state.run_id), mapping=fields)
        manifest = Manifest((TensorSpec("x", (1,), "parameter"),))
        store.control.redis.set(keyspace.manifest(state.run_id), manifest.to_json())
        add_version(store, state.run_id, version)
    lifecycle.advance(store, state.run_id)
    return runs.find_run(store, "many")


def test_a_round_has_the_cohort_of_sites_of_the_same_names_and_a_job_for_each_group(
    store: Store,
) -> None:
    state = begin(store, simulated())
    current = store.control.rounds.get(state.run_id, 1)

    assert current is not None
    clients = virtual_clients.clients(40)
    assert list(current.cohort) == seeding.select_cohort(state_seed(store, state), 1, clients, 10)
    assert (current.eligible, current.groups) == (("sim-01..sim-40",), 2)
    assert (state.population, state.shares) == (("sim-01..sim-40",), 40)
    assert sorted(dispatch.tickets(store, state.run_id, 1)) == ["aggregator", "group-0", "group-1"]
    jobs = dispatch.queued(store, keyspace.POOL_QUEUE)
    assert [job.split("_")[0] for job in jobs] == ["group-0", "group-1"]
    assert store.control.clients.heartbeat_ages() == {}


def state_seed(store: Store, state: RunState) -> int:
    return int(runs.current_config(store, state.run_id).run.seed)


def test_without_an_evaluator_version_0_is_made_in_the_pool(store: Store) -> None:
    state = begin(store, simulated(), version=None)
    (maker,) = set(dispatch.tickets(store, state.run_id, 0)) - {"aggregator"}
    ticket = dispatch.tickets(store, state.run_id, 0)[maker]

    assert maker in virtual_clients.clients(40)
    assert (ticket.function, ticket.queue) == (rq_types.POOL_INITIALISE, keyspace.POOL_QUEUE)
    assert state.population == ()


def test_an_evaluator_makes_version_0_of_a_simulation_too(store: Store) -> None:
    store.control.leases.hold(keyspace.worker("e"), "t", 60, {"role": "evaluator"})
    state = begin(store, simulated(), version=None)
    current = store.control.rounds.get(state.run_id, 0)

    assert current is not None
    assert (current.cohort, current.groups) == (("evaluator",), 0)


def test_a_group_is_replaced_until_all_its_members_have_answered(
    store: Store, tmp_path: Path
) -> None:
    state = begin(store, simulated())
    run = state.run_id
    current = store.control.rounds.get(run, 1)
    assert current is not None
    first, second = (virtual_clients.members(current.cohort, 2, number) for number in (0, 1))
    fence = store.control.rounds.claim(run, 1, dispatch.tickets(store, run, 1)["aggregator"].job)
    for client in (*first, *second[:-1]):
        assert store.control.receipts.add(run, 1, client, Receipt("received"), fence)
    for who in ("group-0", "group-1"):
        dispatch.forget(store, dispatch.tickets(store, run, 1)[who])  # Their process has died.

    lines = diagnosis.why_open(store, state)
    Healer(store, tmp_path, immediate=True).heal(run)
    attempts = {who: t.attempt for who, t in dispatch.tickets(store, run, 1).items()}

    assert attempts["group-0"] == 1
    assert attempts["group-1"] == 2
    assert any("waiting for group-1: 1 of 5 clients" in line for line in lines)
    assert any("fl-queue worker pool" in line for line in lines)


class Arrivals:
    """An open round of virtual clients, what they send, and the aggregator that looks at it."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.run = begin(store, simulated()).run_id
        current = store.control.rounds.get(self.run, 1)
        manifest = store.control.versions.manifest(self.run)
        assert current is not None
        assert manifest is not None
        self.round, self.manifest = current, manifest
        self.config = runs.current_config(store, self.run)
        fence = store.control.rounds.claim(
            self.run, 1, self.ticket(identifiers.AGGREGATOR).job, "t"
        )
        incarnation = Incarnation(self.run, 1, fence, "t")
        self.intake = UpdateIntake(OpenRound(store, incarnation, current, self.config), folder)

    def ticket(self, who: str) -> dispatch.JobTicket:
        return dispatch.tickets(self.store, self.run, 1)[who]

    def members(self, number: int) -> Sequence[str]:
        return virtual_clients.members(self.round.cohort, self.round.groups, number)

    def header(self, kind: str, who: str) -> Header:
        return Header(
            kind=kind,
            run=self.run,
            round=1,
            client=who,
            base_version=self.round.base_version,
            base_digest=self.round.base_digest,
            token=f"token of {who}",
        )

    def start(self, who: str) -> None:
        """A client's job has begun: what is lost of its answer is asked for again."""
        self.store.control.redis.hset(f"rq:job:{self.ticket(who).job}", "status", "started")

    def update(self, client: str) -> tuple[Header, bytes]:
        body = np.float32(int(client[-2:])).tobytes()
        header = replace(
            self.header("update", client),
            num_examples=5,
            tensors=tensor_layout.entries(self.manifest),
            body_bytes=len(body),
            body_digest=tensor_layout.body_digest(body),
        )
        return header, body

    def element(self, number: int) -> tuple[Header, memoryview]:
        total = GroupSum(self.manifest, self.config, self.round)
        for client in self.members(number):
            total.take(*self.update(client))
        return total.element(self.header("group", virtual_clients.group(number)))

    def look_at(self, header: Header, body: bytes | memoryview) -> None:
        self.intake.process(message.pack(header, body))
        self.intake.receipt_log.rejections.flush(force=True)

    def sum(self) -> tuple[bytes, int]:
        assert self.intake.merger is not None
        total = self.intake.merger.total
        return b"".join(piece.tobytes() for piece in total.pieces()), total.count

    def statuses(self) -> dict[str, str]:
        receipts = self.store.control.receipts.of_round(self.run, 1)
        return {client: receipt.status for client, receipt in receipts.items()}

    def events(self) -> list[dict[str, Any]]:
        found = self.store.control.events.read({keyspace.events(self.run): "0-0"}, None)
        return [event for _, _, event in found]


@pytest.fixture
def arrivals(store: Store, tmp_path: Path) -> Arrivals:
    return Arrivals(store, tmp_path)


def test_a_group_is_received_with_a_receipt_for_each_and_one_event(arrivals: Arrivals) -> None:
    arrivals.look_at(*arrivals.element(0))
    arrivals.look_at(*arrivals.element(1))

    receipts = arrivals.store.control.receipts.of_round(arrivals.run, 1)
    assert sorted(receipts) == list(arrivals.round.cohort)
    for client, receipt in receipts.items():
        header, _ = arrivals.update(client)
        wanted = replace(verdicts.make_receipt(header, "received", ""), weight=5, counted=5)
        assert receipt == wanted == arrivals.intake.receipts[client]
    assert arrivals.intake.received() == arrivals.sum()[1] == 10
    came = [event for event in arrivals.events() if event["event"] == "update_received"]
    assert [(event["client"], event["clients"]) for event in came] == [
        ("group-0", 5),
        ("group-1", 5),
    ]


def test_a_group_that_comes_twice_is_counted_once(arrivals: Arrivals) -> None:
    header, body = arrivals.element(0)
    arrivals.look_at(header, body)
    before = arrivals.sum()
    arrivals.look_at(header, body)
    arrivals.look_at(*arrivals.update(arrivals.members(0)[0]))

    assert arrivals.sum() == before
    assert arrivals.intake.received() == 5
    assert arrivals.statuses()[f"{arrivals.members(0)[0]}:duplicate"] == "duplicate"


def test_a_group_with_a_member_that_is_in_adds_nothing(arrivals: Arrivals) -> None:
    first, *rest = arrivals.members(0)
    arrivals.look_at(*arrivals.update(first))
    before = arrivals.sum()
    arrivals.look_at(*arrivals.element(0))

    assert arrivals.sum() == before
    assert set(rest).isdisjoint(arrivals.statuses())
    for client in rest:
        arrivals.look_at(*arrivals.update(client))
    assert arrivals.intake.received() == 5


@pytest.mark.parametrize(
    "change",
    [
        {"client": "group-1"},
        {"client": "group-7"},
        {"run": "other-000000"},
        {"base_digest": "1" * 64},
        {"members": ()},
    ],
)
def test_a_group_that_is_not_this_rounds_is_refused_with_a_reason(
    arrivals: Arrivals, change: dict[str, Any]
) -> None:
    header, body = arrivals.element(0)
    if "members" in change:
        change = {"members": header.members[1:]}
    arrivals.look_at(replace(header, **change), body)

    assert arrivals.statuses() == {}
    assert arrivals.sum()[1] == 0
    assert arrivals.events()[-1]["event"] == "update_rejected"


def test_a_group_whose_chunks_are_gone_is_asked_again(arrivals: Arrivals) -> None:
    header, _ = arrivals.element(1)
    arrivals.start("group-1")
    arrivals.intake.process(message.pack(replace(header, chunk_bytes=65536), None))

    assert arrivals.statuses() == {}
    assert arrivals.ticket("group-1").attempt == 2


def test_the_group_of_a_client_whose_chunks_are_gone_is_asked_again(arrivals: Arrivals) -> None:
    header, _ = arrivals.update(arrivals.members(1)[2])
    arrivals.start("group-1")
    arrivals.intake.process(message.pack(replace(header, chunk_bytes=65536), None))

    assert arrivals.ticket("group-1").attempt == 2
    assert arrivals.ticket("group-0").attempt == 1


def test_a_late_group_is_late_for_each_of_its_clients(arrivals: Arrivals) -> None:
    arrivals.store.control.redis.hset(keyspace.round_(arrivals.run, 1), "state", "committed")
    late_updates.record(arrivals.store, arrivals.run, arrivals.element(0)[0])

    assert arrivals.statuses() == dict.fromkeys(arrivals.members(0), "late")


@pytest.mark.parametrize(
    ("every", "scored"), [(1, [0, 1, 2, 3]), (2, [0, 2, 3]), (0, []), (5, [0, 3])]
)
def test_the_evaluator_scores_every_so_many_versions_and_the_last(
    store: Store, every: int, scored: list[int]
) -> None:
    state = begin(store, simulated(f"run.evaluate_every={every}"))
    key = keyspace.run(state.run_id)
    for version in (1, 2, 3):
        number = runs.find_run(store, "many").round
        store.control.redis.hset(keyspace.round_(state.run_id, number), "state", "committed")
        store.control.redis.hset(key, mapping={"version": version})
        add_version(store, state.run_id, version)
        lifecycle.advance(store, state.run_id)
    store.control.redis.hset(key, "evaluated_version", 3)
    store.control.redis.hset(keyspace.round_(state.run_id, 4), "state", "evaluated")
    lifecycle.advance(store, state.run_id)

    assert runs.find_run(store, "many").state == "completed"
    assert sorted(dispatch.evaluation_tickets(store, state.run_id)) == scored


def test_a_round_of_a_hundred_thousand_clients_opens(store: Store) -> None:
    # The shipped images are too few for so many shares.
    loaded = simulated("clients.count=100000", "round.cohort=100", "data.source=full")
    state = begin(store, loaded)
    store.control.redis.hset(keyspace.round_(state.run_id, 1), "state", "committed")
    best = 600.0
    for _ in range(3):
        state = runs.find_run(store, "many")
        began = time.perf_counter()
        opening.open_round(store, state, loaded, "train")
        best = min(best, time.perf_counter() - began)

    assert runs.find_run(store, "many").round == 4
    assert best < 60.0  # It takes 1 to 2 s on a quiet machine.
    assert store.control.redis.memory_usage(keyspace.run(state.run_id)) < 10_000
