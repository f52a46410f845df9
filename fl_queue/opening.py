"""
Opening a round: who may take part, who is selected, and the jobs, in one transaction.

``rounds.advance`` decides that a round is wanted; whoever races it here writes the same or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from redis.client import Pipeline

from fl_queue import (
    dispatch,
    faults,
    flight,
    jobs,
    names,
    preflight,
    sampling,
    simulation,
    staleness,
    waiting,
)
from fl_queue.config import (
    RunConfig,
    buffer_size,
    cohort_size,
    concurrency_size,
    quorum_size,
)
from fl_queue.dispatch import Ticket
from fl_queue.exact import choose_scales
from fl_queue.records import Mode, Purpose, dumps
from fl_queue.runs import is_as_seen, set_state
from fl_queue.store import RoundState, RunState, Store
from fl_queue.strategies import get_strategy, largest_weight

#: The closing evaluation need not be waited for as long as training.
EVALUATION_DEADLINE_S = 60.0
INITIALISE_DEADLINE_S = 120.0
#: Clients of a simulation that an event names: a history of huge cohorts is nobody's log.
NAMED = 9
_ON_CLIENT: dict[Purpose, str] = {
    "train": jobs.TRAIN,
    "evaluate": jobs.CLIENT_EVALUATE,
    "initialise": jobs.CLIENT_INITIALISE,
}
_IN_POOL: dict[Purpose, str] = {
    "train": jobs.POOL_TRAIN,
    "evaluate": jobs.POOL_EVALUATE,
    "initialise": jobs.POOL_INITIALISE,
}


@dataclass(frozen=True)
class _Plan:
    """
    A round that is about to be opened.

    Args:
        cohort: Who is selected, sorted.
        eligible: From whom, as it is recorded.
        shares: How many clients ``eligible`` stands for.
        groups: Into how many jobs a simulation's cohort is cut; 0: a job for each.
        mode: ``async``: of the cohort, those in ``carried`` are at work already.
        buffer: Updates that an asynchronous round merges.
        carried: Client -> the ticket of an earlier round that it is at, and where that began.
    """

    number: int
    purpose: Purpose
    cohort: Sequence[str]
    eligible: Sequence[str]
    shares: int
    groups: int = 0
    mode: Mode = "sync"
    buffer: int = 0
    carried: Mapping[str, tuple[Ticket, flight.Begun]] = field(default_factory=dict)


def open_round(store: Store, state: RunState, config: RunConfig, purpose: Purpose) -> None:
    """Open a run's next round, unless clients are missing or somebody else was faster."""
    alive = _who_is_alive(store, config)
    if alive is None:
        return
    admitted = preflight.admit(store, state, config, alive)
    if purpose != "initialise" or not _evaluator_makes_it(store, config):
        if admitted.problem:
            waiting.wait(store, state, config, admitted.problem)
            return
        alive = admitted.clients
    is_async = purpose == "train" and config.round["mode"] == "async"
    plan, wanted = (_plan_async if is_async else _plan_sync)(store, state, config, purpose, alive)
    if len(plan.cohort) < max(wanted, 1):
        asked = _asked_by(plan, wanted)
        reason = waiting.who_is_missing(config, asked, wanted, len(alive), admitted.left_out())
        missing = max(wanted, 1) - len(plan.cohort)
        waiting.wait_for_clients(store, state, config, reason, missing, _paused(store, config))
        return
    if purpose == "train" and not is_async:
        problem = waiting.too_few(config, len(plan.cohort))
        if problem:
            waiting.wait(store, state, config, problem)
            return
        problem = waiting.no_room(store, state, config, len(plan.cohort))
        if problem:
            set_state(store, state, "failed", problem, "run_failed")
            return
    fields = _round_fields(store, state, config, plan)
    tickets = _tickets(state.run_id, plan, config)

    def body(pipe: Pipeline) -> Callable[[], None] | None:
        if not is_as_seen(pipe, state):
            return None
        return lambda: _write_round(store, pipe, state, plan, fields, tickets)

    # What is taken over must be as it was seen: the healer may have replaced a ticket of it.
    watched = [names.run(state.run_id), names.round_jobs(state.run_id, state.round)]
    if store.control.transact(watched if is_async else watched[:1], body):
        faults.reach("round.opened")


def _who_is_alive(store: Store, config: RunConfig) -> list[str] | None:
    """
    Clients that may be selected, sorted.

    None while that is not known: a cohort of those who happened to be heard first would be another one.
    """
    if simulation.is_simulation(config):
        return simulation.clients(config.clients["count"])
    store.control.hear()
    if store.control.settling():
        return None
    return _admissible(store, config, store.control.alive_clients(config.clients["active_s"]))


def _paused(store: Store, config: RunConfig) -> dict[str, str]:
    """Clients that might be selected if their sites had not paused them -> why."""
    if simulation.is_simulation(config):
        return {}
    found = store.control.paused_clients(config.clients["active_s"])
    return {client: found[client] for client in _admissible(store, config, list(found))}


def _asked_by(plan: _Plan, wanted: int) -> str:
    """The config's field that asks for so many clients."""
    if plan.mode != "async":
        return "round.cohort"
    return "round.buffer" if wanted == plan.buffer else "round.concurrency"


def top_up(store: Store, state: RunState, config: RunConfig, current: RoundState) -> None:
    """
    Have clients that are idle begin in an open asynchronous round, as far as there is room for them.

    In place of those that have answered, and clients that have come. Each trains once from a version.
    """
    run = state.run_id
    found = _who_is_alive(store, config) or []
    alive = preflight.admit(store, state, config, found).clients
    idle = [client for client in alive if client not in current.cohort]
    if not idle:
        return
    working = len(flight.at_work(store, run, current))
    free = min(max(0, concurrency_size(config, len(idle) + working) - working), len(idle))
    chosen = sampling.select_cohort(config.run["seed"], current.number, idle, free)
    if not chosen:
        return
    plan = _Plan(
        current.number,
        "train",
        chosen,
        sorted({*current.eligible, *idle}),
        len(alive),
        mode="async",
    )
    tickets = [ticket for ticket in _tickets(run, plan, config) if ticket.who in chosen]

    def body(pipe: Pipeline) -> Callable[[], None] | None:
        key = names.round_(run, current.number)
        state_now, cohort = cast(list["bytes | None"], pipe.hmget(key, ["state", "cohort"]))
        if state_now != b"open" or tuple(json.loads(cohort or b"[]")) != current.cohort:
            return None
        if not is_as_seen(pipe, state):
            return None
        return lambda: _write_more(store, pipe, state, current, plan, tickets)

    store.control.transact([names.run(run), names.round_(run, current.number)], body)


def _write_more(
    store: Store,
    pipe: Pipeline,
    state: RunState,
    current: RoundState,
    plan: _Plan,
    tickets: list[Ticket],
) -> None:
    run, number = state.run_id, plan.number
    population = [*state.population, *sorted(_newcomers(state, plan))]
    pipe.hset(names.run(run), "population", dumps(population))
    cohort = sorted((*current.cohort, *plan.cohort))
    fields = {"cohort": dumps(cohort), "eligible": dumps(plan.eligible)}
    pipe.hset(names.round_(run, number), mapping=cast(dict[Any, Any], fields))
    for ticket in tickets:
        pipe.hset(names.round_jobs(run, number), ticket.who, ticket.to_json())
        dispatch.publish(ticket, pipe, store.control.redis)
    event = {"event": "clients_joined", "round": number, "clients": list(plan.cohort)}
    store.control.add_event(run, event, pipe)


def _plan_sync(
    store: Store, state: RunState, config: RunConfig, purpose: Purpose, alive: list[str]
) -> tuple[_Plan, int]:
    """A synchronous round, and how many clients it needs."""
    simulated = simulation.is_simulation(config)
    cohort, wanted = _select(store, state, config, purpose, alive)
    plan = _Plan(
        state.round + 1,
        purpose,
        cohort,
        simulation.compact(len(alive)) if simulated else alive,
        len(alive),
        _groups(cohort, config) if simulated else 0,
    )
    return plan, wanted


def _plan_async(
    store: Store, state: RunState, config: RunConfig, purpose: Purpose, alive: list[str]
) -> tuple[_Plan, int]:
    """
    An asynchronous round, and how many clients it needs at work.

    Who is at work goes on; of those that are idle as many begin as there is room for.
    """
    last, tickets = flight.carried(store, state, config.round["max_staleness"])
    carried = {ticket.who: (ticket, flight.begun(last, ticket.who)) for ticket in tickets if last}
    idle = [client for client in alive if client not in carried]
    limit = concurrency_size(config, len(idle) + len(carried))
    free = min(max(0, limit - len(carried)), len(idle))
    chosen = sampling.select_cohort(config.run["seed"], state.round + 1, idle, free)
    buffer = buffer_size(config, limit)
    plan = _Plan(
        state.round + 1,
        purpose,
        sorted((*carried, *chosen)),
        idle,
        len(alive),
        mode="async",
        buffer=buffer,
        carried=carried,
    )
    # The first one decides into how many parts the data is split: not before all are there.
    return plan, buffer if state.shares else max(buffer, limit)


def _select(
    store: Store, state: RunState, config: RunConfig, purpose: Purpose, alive: list[str]
) -> tuple[list[str], int]:
    """The cohort, and how many were wanted."""
    seed = config.run["seed"]
    if purpose != "initialise":
        wanted = cohort_size(config, len(alive))
        chosen = min(wanted, len(alive))
        return sampling.select_cohort(seed, state.round + 1, alive, chosen), wanted
    if _evaluator_makes_it(store, config):
        return [names.EVALUATOR], 1
    return sampling.select_cohort(seed, 0, alive, min(1, len(alive))), 1


def _evaluator_makes_it(store: Store, config: RunConfig) -> bool:
    """Whether version 0 is the evaluator's work."""
    there = store.control.role_alive(names.EVALUATOR)
    return there and bool(_admissible(store, config, [names.EVALUATOR]))


def _admissible(store: Store, config: RunConfig, clients: list[str]) -> list[str]:
    """Those who may be selected: none that was revoked, and none that is not enrolled if that is required."""
    known = store.control.enrolments()
    strangers = not config.security["require_enrolment"]
    return [
        client
        for client in clients
        if (not known[client].revoked_at if client in known else strangers)
    ]


def _groups(cohort: Sequence[str], config: RunConfig) -> int:
    if cohort == [names.EVALUATOR]:
        return 0
    return simulation.group_count(len(cohort), simulation.processes(config))


def _sum_fields(config: RunConfig, plan: _Plan) -> dict[str, str]:
    """The format of the round's exact sum."""
    w_max = largest_weight(config.aggregation)
    strategy = get_strategy(config.aggregation["strategy"], config.strategy)
    ranges = strategy.ranges(config.aggregation)
    limits = {name: span.limit for name, span in ranges.items()}
    finest = {name: span.finest for name, span in ranges.items()}
    size, discount = len(plan.cohort), None
    if plan.mode == "async":
        size = plan.buffer
        discount = staleness.discount(config.round, size, w_max, limits, finest)
        w_max = discount.full(w_max)
    scales = choose_scales(size, w_max, limits, finest)
    return {
        "w_max": str(w_max),
        "scales": dumps({kind: list(scale) for kind, scale in scales.items()}),
        "discount": dumps(discount.to_dict() if discount else {}),
    }


def _quorum(config: RunConfig, plan: _Plan) -> int:
    size = len(plan.cohort)
    if plan.mode == "async":
        return plan.buffer
    # One client makes version 0.
    return size if plan.purpose == "initialise" else quorum_size(config, size)


def _round_fields(store: Store, state: RunState, config: RunConfig, plan: _Plan) -> dict[str, Any]:
    longest = {
        "train": config.round["deadline_s"],
        "evaluate": EVALUATION_DEADLINE_S,
        "initialise": INITIALISE_DEADLINE_S,
    }
    now = f"{store.control.now():.6f}"
    return {
        "state": "open",
        "purpose": plan.purpose,
        "cohort": dumps(plan.cohort),
        "eligible": dumps(plan.eligible),
        "groups": str(plan.groups),
        "mode": plan.mode,
        "carried": dumps({client: begun._asdict() for client, (_, begun) in plan.carried.items()}),
        "quorum": str(_quorum(config, plan)),
        "deadline_s": str(longest[plan.purpose]),
        "grace_s": str(config.round["grace_s"]),
        "opened_at": now,
        "ticked_at": now,
        "elapsed_s": "0",
        "base_version": str(state.version or 0),
        "base_digest": state.digest,
        "server_state": dumps(state.server_state),
        "population": str(_population_count(state, plan)),
        "download": state.download if config.model["codec"] != "float32" else "",
        "fence": "0",
        "data_server": store.data.identity(),
        **_sum_fields(config, plan),
        "segment": str(state.segment),
        "reason": "",
    }


def _newcomers(state: RunState, plan: _Plan) -> set[str]:
    """Clients that the run has not seen before this round."""
    return set(plan.eligible if plan.purpose == "train" else ()) - set(state.population)


def _population_count(state: RunState, plan: _Plan) -> int:
    """How many clients the run has seen, this round's included: ``N`` of some strategies."""
    if plan.groups:
        return plan.shares  # A simulation's are all there, always.
    return len(state.population) + len(_newcomers(state, plan))


def _tickets(run: str, plan: _Plan, config: RunConfig) -> list[Ticket]:
    """A new job for each client or group that has none, and the aggregator's."""
    timeout_s = max(1, int(config.train["timeout_s"]))

    def ticket(who: str) -> Ticket:
        function, queue = _ON_CLIENT[plan.purpose], names.client_queue(who)
        if who == names.EVALUATOR:
            function, queue = jobs.INITIALISE, names.EVALUATE_QUEUE
        return Ticket(who, function, queue, run, plan.number, timeout_s)

    def group_ticket(number: int) -> Ticket:
        function, who = _IN_POOL[plan.purpose], simulation.group(number)
        # One after the other.
        longest_s = timeout_s * len(simulation.members(plan.cohort, plan.groups, number))
        return Ticket(who, function, names.POOL_QUEUE, run, plan.number, longest_s)

    new = [client for client in plan.cohort if client not in plan.carried]
    return [
        *(map(group_ticket, range(plan.groups)) if plan.groups else map(ticket, new)),
        Ticket(names.AGGREGATOR, jobs.AGGREGATE, names.AGGREGATE_QUEUE, run, plan.number, -1),
    ]


def _write_round(
    store: Store,
    pipe: Pipeline,
    state: RunState,
    plan: _Plan,
    fields: Mapping[str, str],
    tickets: list[Ticket],
) -> None:
    run, number = state.run_id, plan.number
    newcomers = _newcomers(state, plan)
    # A client's place in this list is its share of a data set that is split over clients: it keeps
    # the place for the life of the run, and who comes later is appended.
    population = [*state.population, *sorted(newcomers)]
    pipe.hset(
        names.run(run),
        mapping={
            "round": str(number),
            "waited_s": "0",
            "reason": "",
            "population": dumps(population),
        },
    )
    if plan.purpose == "train":
        # How many parts the data has is decided once: who comes later must not move samples around.
        pipe.hsetnx(names.run(run), "shares", plan.shares)
    pipe.hset(names.round_(run, number), mapping=cast(dict[Any, Any], fields))
    for ticket, _ in plan.carried.values():
        pipe.hset(names.round_jobs(run, number), ticket.who, ticket.to_json())
    for ticket in tickets:
        pipe.hset(names.round_jobs(run, number), ticket.who, ticket.to_json())
        dispatch.publish(ticket, pipe, store.control.redis)
    event = {
        "event": "round_opened",
        "round": number,
        "purpose": plan.purpose,
        "clients": len(plan.cohort),
        "cohort": plan.cohort[:NAMED] if plan.groups else plan.cohort,
    }
    if plan.mode == "async":
        event["carried"] = sorted(plan.carried)
    store.control.add_event(run, event, pipe)
