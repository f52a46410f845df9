"""Rounds of virtual clients as they are opened, repaired and explained, without any worker."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fl_queue import (
    config,
    diagnose,
    dispatch,
    names,
    opening,
    rounds,
    runs,
    sampling,
    simulation,
)
from fl_queue.config import RunConfig
from fl_queue.heal import Healer
from fl_queue.records import Manifest, Receipt, TensorSpec
from fl_queue.store import RunState, Store

OVERRIDES = (
    "clients.kind=simulation",
    "clients.count=40",
    "clients.processes=2",
    "round.cohort=10",
)


def simulated(*overrides: str) -> RunConfig:
    return config.load("mnist-3v7", (*OVERRIDES, *overrides), {})


def begin(store: Store, loaded: RunConfig, version: int | None = 0) -> RunState:
    """A run of virtual clients that has that version."""
    state = runs.start_run(store, "many", loaded, 3)
    if version is not None:
        fields = {"version": version, "digest": "0" * 64, "round": version}
        store.control.redis.hset(names.run(state.run_id), mapping=fields)
        manifest = Manifest((TensorSpec("x", (1,), "parameter"),))
        store.control.redis.set(names.manifest(state.run_id), manifest.to_json())
    rounds.advance(store, state.run_id)
    return runs.find_run(store, "many")


def test_a_round_has_the_cohort_of_sites_of_the_same_names_and_a_job_for_each_group(
    store: Store,
) -> None:
    state = begin(store, simulated())
    current = store.control.round(state.run_id, 1)

    assert current is not None
    clients = simulation.clients(40)
    assert list(current.cohort) == sampling.select_cohort(state_seed(store, state), 1, clients, 10)
    assert (current.eligible, current.groups) == (("sim-01..sim-40",), 2)
    assert (state.population, state.shares) == (("sim-01..sim-40",), 40)
    assert sorted(dispatch.tickets(store, state.run_id, 1)) == ["aggregator", "group-0", "group-1"]
    jobs = dispatch.queued(store, names.POOL_QUEUE)
    assert [job.split("_")[0] for job in jobs] == ["group-0", "group-1"]
    assert store.control.client_ids() == {}


def state_seed(store: Store, state: RunState) -> int:
    return int(runs.current_config(store, state.run_id).run["seed"])


def test_without_an_evaluator_version_0_is_made_in_the_pool(store: Store) -> None:
    state = begin(store, simulated(), version=None)
    ticket = dispatch.tickets(store, state.run_id, 0)["group-0"]

    assert (ticket.function, ticket.queue) == (dispatch.POOL_INITIALISE, names.POOL_QUEUE)
    assert state.population == ()


def test_an_evaluator_makes_version_0_of_a_simulation_too(store: Store) -> None:
    store.control.hold(names.worker("e"), "t", 60, {"role": "evaluator"})
    state = begin(store, simulated(), version=None)
    current = store.control.round(state.run_id, 0)

    assert current is not None
    assert (current.cohort, current.groups) == (("evaluator",), 0)


def test_a_group_is_replaced_until_all_its_members_have_answered(
    store: Store, tmp_path: Path
) -> None:
    state = begin(store, simulated())
    run = state.run_id
    current = store.control.round(run, 1)
    assert current is not None
    first, second = (simulation.members(current.cohort, 2, number) for number in (0, 1))
    fence = store.control.claim(run, 1, dispatch.tickets(store, run, 1)["aggregator"].job)
    for client in (*first, *second[:-1]):
        assert store.control.write_receipt(run, 1, client, Receipt("received"), fence)
    for who in ("group-0", "group-1"):
        dispatch.forget(store, dispatch.tickets(store, run, 1)[who])  # Their process has died.

    lines = diagnose.why_open(store, state)
    Healer(store, tmp_path, hurry=True).heal(run)
    attempts = {who: t.attempt for who, t in dispatch.tickets(store, run, 1).items()}

    assert attempts["group-0"] == 1
    assert attempts["group-1"] == 2
    assert any("waiting for group-1: 1 of 5 clients" in line for line in lines)
    assert any("fl-queue worker pool" in line for line in lines)


@pytest.mark.parametrize(
    ("every", "scored"), [(1, [0, 1, 2, 3]), (2, [0, 2, 3]), (0, []), (5, [0, 3])]
)
def test_the_evaluator_scores_every_so_many_versions_and_the_last(
    store: Store, every: int, scored: list[int]
) -> None:
    state = begin(store, simulated(f"run.evaluate_every={every}"))
    key = names.run(state.run_id)
    for version in (1, 2, 3):
        number = runs.find_run(store, "many").round
        store.control.redis.hset(names.round_(state.run_id, number), "state", "committed")
        store.control.redis.hset(key, mapping={"version": version})
        rounds.advance(store, state.run_id)
    store.control.redis.hset(key, "evaluated_version", 3)
    store.control.redis.hset(names.round_(state.run_id, 4), "state", "evaluated")
    rounds.advance(store, state.run_id)

    assert runs.find_run(store, "many").state == "completed"
    assert sorted(dispatch.evaluation_tickets(store, state.run_id)) == scored


def test_a_hundred_thousand_clients_open_a_round_within_two_seconds(store: Store) -> None:
    loaded = simulated("clients.count=100000", "round.cohort=100")
    state = begin(store, loaded)
    store.control.redis.hset(names.round_(state.run_id, 1), "state", "committed")
    best = 60.0
    for _ in range(3):
        state = runs.find_run(store, "many")
        began = time.perf_counter()
        opening.open_round(store, state, loaded, "train")
        best = min(best, time.perf_counter() - began)

    assert runs.find_run(store, "many").round == 4
    assert best < 2.0
    assert store.control.redis.memory_usage(names.run(state.run_id)) < 10_000
