"""Who may be selected for a round, why the others may not, and where it is recorded. Redis, no workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from fl_queue.common import seeding
from fl_queue.config import loading
from fl_queue.coordinator.operations import enrolment
from fl_queue.coordinator.rounds import eligibility, lifecycle, preflight, runs
from fl_queue.errors import ConfigError
from fl_queue.protocol.events import RunCompleted
from fl_queue.reporting import diagnosis, run_status
from fl_queue.store import RunState, Store, keyspace
from tests.support.manual_run import ManualRun


def alive(store: Store, clients: str) -> None:
    for client in clients:
        store.control.leases.hold(keyspace.client_holder(client), "t", 600, {})


def decided(store: Store, *overrides: str, clients: str = "abcd") -> eligibility.EligibleClients:
    """Who may be selected of a run that has just begun."""
    alive(store, clients)
    loaded = loading.load("mnist-3v7", overrides, {})
    state = runs.start_run(store, f"run-{len(store.control.runs.names())}", loaded, 1)
    store.control.clients.record_heartbeats()
    store.control.redis.hset(keyspace.CLOCK, "settling_s", 0)
    found = eligibility.decide(store, state, loaded, "train")
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("include", "exclude", "clients"),
    [
        ([], [], "abcd"),
        (["a", "b"], [], "ab"),
        (["[ab]", "d"], ["a"], "bd"),
        ([], ["?"], ""),
        (["hospital-*"], [], ""),
    ],
)
def test_two_studies_share_a_fleet(
    store: Store, include: Sequence[str], exclude: Sequence[str], clients: str
) -> None:
    overrides = (f"clients.include={list(include)}", f"clients.exclude={list(exclude)}")
    found = decided(store, *overrides)
    assert found.clients == list(clients)
    assert set(found.out) == set("abcd") - set(clients)
    assert all("clients." in why for why in found.out.values())
    # No other client is even asked.
    asked = store.control.redis.keys("rq:queue:flq-client-*")
    assert asked == []


def test_the_other_studys_sites_are_not_asked_what_they_would_train_on(store: Store) -> None:
    for client in "ab":
        store.control.leases.hold(
            keyspace.client_holder(client), "t", 600, {"worker": f"{client}_1"}
        )
    found = decided(store, 'clients.include=["a"]', "run.task=own:Task", clients="")
    assert (found.problem, list(found.out)) == (preflight.WAITING, ["b"])
    assert store.control.redis.keys("rq:queue:flq-client-*") == [b"rq:queue:flq-client-a"]


def test_a_fraction_counts_who_may_take_part(store: Store, tmp_path: Path) -> None:
    alive(store, "cd")
    hand = ManualRun(
        store, tmp_path, "ab", 2, "round.cohort=1.0", 'clients.include=["a", "b", "x"]'
    )
    assert hand.round.cohort == ("a", "b")
    seed, listed = hand.config.run.seed, hand.round.eligible
    assert hand.round.cohort == tuple(seeding.select_cohort(seed, 1, listed, 2))
    assert set(hand.round.ineligible) == {"c", "d"}
    assert set(hand.state.left_out) == {"c", "d"}

    lines = diagnosis.why_open(store, hand.state)
    assert "left out: c, d: it is not in clients.include" in lines
    (c,) = [entry for entry in run_status.clients(store) if entry.client == "c"]
    assert c.left_out == {hand.state.name: "it is not in clients.include"}
    assert "left out of run by-hand" in c.doing
    found = store.control.events.read({keyspace.events(hand.run): "0-0"}, None)
    reasons = [event["left_out"] for _, _, event in found if event["event"] == "clients_left_out"]
    assert reasons == [dict(hand.state.left_out)]
    record = lifecycle.base_record(hand.round, lifecycle.Ending("committed", ""), 0.0, hand.config)
    assert record.ineligible == dict(hand.round.ineligible)


def test_a_late_joiner_without_a_share_is_in_no_cohort(store: Store, tmp_path: Path) -> None:
    hand = ManualRun(store, tmp_path, "ab", 2, "round.cohort=1.0")
    alive(store, "c")
    for client in "ab":
        hand.update(client)
    hand.work()
    assert hand.round.number == 2
    assert hand.round.cohort == ("a", "b")
    why = "there is no share of the data for it: they were split into 2 (data.shares)"
    assert hand.round.ineligible == {"c": why}


def test_data_that_are_each_sites_own_have_a_share_for_all_sites(
    store: Store, tmp_path: Path
) -> None:
    own = ("data.partition=site", "run.task=csv", "task.features=x", "round.cohort=1.0")
    hand = ManualRun(store, tmp_path, "ab", 2, *own)
    alive(store, "c")
    for client in "ab":
        hand.update(client)
    hand.work()
    assert hand.round.cohort == ("a", "b", "c")


def test_who_joins_gets_what_shares_are_left(store: Store, tmp_path: Path) -> None:
    hand = ManualRun(store, tmp_path, "ab", 2, "round.cohort=1.0", "data.shares=3")
    alive(store, "cd")
    for client in "ab":
        hand.update(client)
    hand.work()
    assert (hand.round.cohort, list(hand.round.ineligible)) == (("a", "b", "c"), ["d"])
    assert hand.state.population == ("a", "b", "c")


def test_a_run_that_is_gone_on_with_may_name_others(store: Store) -> None:
    loaded = loading.load("mnist-3v7", ('clients.include=["a"]',), {})
    state = runs.start_run(store, "changing", loaded, 1)
    runs.set_state(store, state, "completed", "", RunCompleted)
    other = loading.load("mnist-3v7", ('clients.exclude=["a"]',), {})
    gone_on: RunState = runs.start_run(store, "changing", other, 1)
    assert runs.current_config(store, gone_on.run_id).clients.exclude == ("a",)


def test_a_client_that_is_not_enrolled_is_left_out_by_the_config(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"clients\.exclude"):
        enrolment.revoke(store, "b", use_acl=False)
