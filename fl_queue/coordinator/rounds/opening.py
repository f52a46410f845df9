"""
Open a round: decide on its clients, select the cohort, and publish the jobs in one transaction.

``lifecycle.advance`` decides that a round is wanted; processes that race here write the same or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fl_queue.aggregation.sum_format import sum_format
from fl_queue.common import failpoints, seeding
from fl_queue.common.safe_json import dumps
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import (
    deadlines,
    eligibility,
    exponent,
    in_flight,
    initialisation,
    preflight,
    secure_opening,
    statement_signing,
    waiting,
)
from fl_queue.coordinator.rounds.eligibility import EligibleClients
from fl_queue.coordinator.rounds.plan import (
    RoundPlan,
    plan_async,
    plan_first,
    plan_panel,
    plan_sync,
)
from fl_queue.coordinator.rounds.runs import set_state
from fl_queue.errors import ConfigError
from fl_queue.protocol import identifiers, virtual_clients
from fl_queue.protocol.events import ClientsJoined, Event, RoundOpened, RoundUnsigned, RunFailed
from fl_queue.protocol.panel import Panel
from fl_queue.protocol.records import MAKES_NEXT, Mode, Purpose, digest_of
from fl_queue.protocol.state import RoundPhase, RunPhase
from fl_queue.store import RoundState, RunState, Store, keyspace
from fl_queue.store.jobs import rq_types
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.store.transactions import rounds as transactions
from fl_queue.store.transactions.rounds import RoundOpening

#: Clients of a simulation that an event names: all names of huge cohorts would fill the log.
NAMED = 9
_ON_CLIENT: dict[Purpose, str] = {
    Purpose.train: rq_types.TRAIN,
    Purpose.evaluate: rq_types.CLIENT_EVALUATE,
    Purpose.sums: rq_types.CLIENT_SUMS,
}
_IN_POOL: dict[Purpose, str] = {
    Purpose.train: rq_types.POOL_TRAIN,
    Purpose.evaluate: rq_types.POOL_EVALUATE,
}


def open_round(store: Store, state: RunState, config: RunConfig, purpose: Purpose) -> bool:
    """
    Open a run's next round, unless clients are missing or another process has opened it.

    Returns:
        Whether the run needs no such round after all, and is to be looked at again.
    """
    if purpose == Purpose.evaluate and config.secure.enabled:
        return waiting.go_without_clear_evaluation(store, state)
    found = eligibility.decide(store, state, config, purpose)
    if found is None:
        return False
    if purpose == Purpose.sums and state.panel is not None:
        if _is_panel_there(store, state, config, state.panel, found):
            _write_planned(store, state, config, plan_panel(state, state.panel))
        return False
    makers_left = (
        initialisation.candidates(store, state, config, found)
        if purpose == Purpose.initialise
        else []
    )
    if found.problem and makers_left[:1] != [identifiers.EVALUATOR]:
        waiting.wait(store, state, config, found.problem, fails=found.problem != preflight.WAITING)
        return False
    eligibility.record(store, state, found)
    is_async = purpose == Purpose.train and config.round.mode == "async"
    if purpose == Purpose.initialise:
        plan, wanted = plan_first(state, makers_left, found), 1
    else:
        plan, wanted = (plan_async if is_async else plan_sync)(store, state, config, purpose, found)
    if purpose == Purpose.evaluate and not plan.cohort:
        return waiting.go_without_evaluation(store, state, "; ".join(eligibility.lines(found.out)))
    if purpose != Purpose.evaluate and len(plan.cohort) < max(wanted, 1):
        _wait_for_clients(store, state, config, plan, wanted, found)
        return False
    if purpose in MAKES_NEXT and not is_async and _is_refused(store, state, config, plan):
        return False
    _write_planned(store, state, config, plan)
    return False


def _is_panel_there(
    store: Store, state: RunState, config: RunConfig, panel: Panel, found: EligibleClients
) -> bool:
    """Whether a step of a fit may be opened; with ``task.on_loss = wait`` the run waits for the whole panel."""
    missing = [client for client in panel.clients if client not in found.clients]
    if config.task.get("on_loss") != "wait" or not missing:
        return True
    reason = f"the fit waits for {', '.join(missing[:NAMED])} (task.on_loss = wait)"
    paused = eligibility.paused(store, state, config)
    waiting.wait_for_clients(
        store, state, config, reason, len(missing), paused, len(found.unanswered)
    )
    return False


def _write_planned(store: Store, state: RunState, config: RunConfig, plan: RoundPlan) -> None:
    """Sign a planned round and write it, unless it cannot be signed here or another process was faster."""
    try:
        fields = _round_fields(store, state, config, plan)
    except ConfigError as exc:  # So many clients were not foreseen when the config was read.
        set_state(store, state, RunPhase.failed, str(exc), RunFailed)
        return
    if problem := statement_signing.why_not_here(store, state.run_id):
        waiting.wait(store, state, config, problem, gives_up=False)
        return
    shares = state.shares or (plan.shares if plan.purpose == Purpose.train else 0)
    vouched = statement_signing.of_round(
        store, state, plan.number, fields, plan.population(state), shares
    )
    if vouched.is_refused:
        waiting.wait(store, state, config, vouched.why_not)
        return
    fields[statement_signing.SIGNED] = vouched.signed
    fields["inputs"] = _inputs(state, plan, fields, shares)
    tickets = _tickets(store, state, plan, config)
    opening = _opening(state, plan, fields, tickets, vouched.why_not)
    if transactions.open_round(store, state, opening, takes_over=plan.mode == Mode.asynchronous):
        failpoints.failpoint("round.opened")


def _wait_for_clients(
    store: Store,
    state: RunState,
    config: RunConfig,
    plan: RoundPlan,
    wanted: int,
    found: EligibleClients,
) -> None:
    missing = max(wanted, 1) - len(plan.cohort)
    left_out = "; ".join(eligibility.lines(found.out))
    asked = _asked_by(plan, wanted)
    reason = waiting.missing_clients_reason(config, asked, wanted, len(found.clients), left_out)
    paused = eligibility.paused(store, state, config)
    are_there = len(found.clients) + len(found.unable) >= max(wanted, 1)
    if config.analysis is not None and are_there and not (paused or found.unanswered):
        # Unlike in training, nothing is lost by an end here; the command would wait for ``round.deadline_s``.
        reason = f"too few sites can answer: {reason}; mend them, and start it under another name (--run)"
        set_state(store, state, RunPhase.failed, reason, RunFailed)
        return
    waiting.wait_for_clients(store, state, config, reason, missing, paused, len(found.unanswered))


def _is_refused(store: Store, state: RunState, config: RunConfig, plan: RoundPlan) -> bool:
    """Whether a round of so many clients cannot be; the run waits for more of them, or has failed."""
    problem = waiting.too_few_reason(config, len(plan.cohort))
    if problem:
        waiting.wait(store, state, config, problem)
        return True
    problem = waiting.no_room_reason(store, state, config, len(plan.cohort))
    if problem:
        set_state(store, state, RunPhase.failed, problem, RunFailed)
    return bool(problem)


def _asked_by(plan: RoundPlan, wanted: int) -> str:
    """The config's field that asks for so many clients."""
    if plan.mode != Mode.asynchronous:
        return "round.cohort"
    return "round.buffer" if wanted == plan.buffer else "round.concurrency"


def top_up(store: Store, state: RunState, config: RunConfig, current: RoundState) -> None:
    """
    Have clients that are idle begin in an open asynchronous round, as far as there is room for them.

    In place of those that have answered, and clients that have come. Each trains once from a version.
    """
    run = state.run_id
    found = eligibility.decide(store, state, config, Purpose.train)
    if found is None or found.problem:
        return
    eligibility.record(store, state, found)
    idle = [client for client in found.clients if client not in current.cohort]
    if not idle:
        return
    working = len(in_flight.at_work(store, run, current))
    free = min(max(0, config.concurrency_size(len(idle) + working) - working), len(idle))
    chosen = seeding.select_cohort(config.run.seed, current.number, idle, free)
    if not chosen:
        return
    plan = RoundPlan(
        current.number,
        Purpose.train,
        chosen,
        sorted({*current.eligible, *idle}),
        len(found.clients),
        mode=Mode.asynchronous,
        ineligible={**current.ineligible, **found.out},
    )
    tickets = [ticket for ticket in _tickets(store, state, plan, config) if ticket.who in chosen]
    if statement_signing.why_not_here(store, run):
        return
    cohort = sorted((*current.cohort, *chosen))
    vouched = statement_signing.with_cohort(store, run, current, cohort, plan.population(state))
    if vouched.why_not:
        return  # Nor is it merged: see ``statement_signing.check_round``.

    fields = {
        statement_signing.SIGNED: vouched.signed,
        "cohort": dumps(cohort),
        "eligible": dumps(plan.eligible),
        "ineligible": dumps(plan.ineligible),
    }
    event = ClientsJoined(round=plan.number, clients=list(plan.cohort))
    population = {"population": dumps(plan.population(state))}
    transactions.extend(store, state, current, fields, tickets, event, population)


def _round_fields(
    store: Store, state: RunState, config: RunConfig, plan: RoundPlan
) -> dict[str, Any]:
    now = f"{store.control.now():.6f}"
    rounds = config.round if plan.mode == Mode.asynchronous else None
    # Nothing is summed when version 0 is made, or a version is evaluated by however many.
    updates = (plan.buffer or len(plan.cohort)) if plan.purpose == Purpose.train else 1
    bits = config.ring_bits if plan.purpose == Purpose.train else 64
    format_ = sum_format(config.aggregation, config.strategy, updates, rounds, bits)
    quorum = plan.quorum(config)
    secure = secure_opening.fields(store, state, config, plan.purpose, plan.cohort, quorum)
    return {
        "state": RoundPhase.open,
        "purpose": plan.purpose,
        "cohort": dumps(plan.cohort),
        "eligible": dumps(plan.eligible),
        "ineligible": dumps(plan.ineligible),
        "makers": dumps({who: 0.0 for who in plan.cohort if plan.purpose == Purpose.initialise}),
        "start": preflight.start_of(state),
        "groups": str(plan.groups),
        "mode": plan.mode,
        "carried": dumps({client: begun._asdict() for client, (_, begun) in plan.carried.items()}),
        "quorum": str(quorum),
        "deadline_s": str(deadlines.deadline_s(store, state, config, plan.purpose)),
        "grace_s": str(config.round.grace_s),
        "opened_at": now,
        "ticked_at": now,
        "elapsed_s": "0",
        "base_version": str(state.version or 0),
        "base_digest": state.digest,
        "server_state": dumps(state.server_state),
        "population": str(plan.population_count(state)),
        "base_population": str(_base_population(store, state)),
        "exponent": str(exponent.of_next_round(store, state, config)),
        "download": state.download if config.model.codec != "float32" else "",
        "fence": "0",
        "data_server": store.data.identity(),
        **format_.fields(),
        "segment": str(state.segment),
        "reason": "",
        **secure,
    }


def _inputs(state: RunState, plan: RoundPlan, fields: Mapping[str, str], shares: int) -> str:
    """
    The digest of all that decides what a client trains in a round, besides its number and base.

    A failover may lose the opening of a round. An update that was made for it counts for the next opening, in
    which clients may have come or a config may have changed, only if all of this is the same.
    """
    trained_from = ("segment", "download", "server_state", "exponent", "mode")
    is_first = plan.purpose == Purpose.initialise
    return digest_of(
        {
            **{name: fields[name] for name in trained_from},
            "config": state.config_digest,
            "initial": dict(state.initial or {}) if is_first else {},
            "places": plan.population(state),
            "shares": shares,
        }
    )


def _base_population(store: Store, state: RunState) -> int:
    """Count the clients that the run had seen when the base version's strategy state was made; 0: not known."""
    if not state.server_state:
        return 0
    return int(store.control.versions.get(state.run_id, state.version or 0).get("population", 0))


def _tickets(store: Store, state: RunState, plan: RoundPlan, config: RunConfig) -> list[JobTicket]:
    """A new job for each client or group that has none, and the aggregator's."""
    run, timeout_s = state.run_id, max(1, int(config.train.timeout_s))

    def ticket(who: str) -> JobTicket:
        if plan.purpose == Purpose.initialise:
            return initialisation.ticket(store, state, config, plan.number, who)
        return JobTicket(
            who,
            _ON_CLIENT[plan.purpose],
            keyspace.client_queue(who),
            run,
            plan.number,
            timeout_s,
        )

    def group_ticket(number: int) -> JobTicket:
        function, who = _IN_POOL[plan.purpose], virtual_clients.group(number)
        # One after the other.
        longest_s = timeout_s * len(virtual_clients.members(plan.cohort, plan.groups, number))
        return JobTicket(who, function, keyspace.POOL_QUEUE, run, plan.number, longest_s)

    new = [client for client in plan.cohort if client not in plan.carried]
    return [
        *(map(group_ticket, range(plan.groups)) if plan.groups else map(ticket, new)),
        JobTicket(
            identifiers.AGGREGATOR,
            rq_types.AGGREGATE,
            keyspace.AGGREGATE_QUEUE,
            run,
            plan.number,
            -1,
        ),
    ]


def _opening(
    state: RunState,
    plan: RoundPlan,
    fields: Mapping[str, str],
    tickets: Sequence[JobTicket],
    unsigned: str,
) -> RoundOpening:
    """Return the transaction's content. Args: ``unsigned``: why the round is not signed; empty: it is."""
    opened = RoundOpened(
        round=plan.number,
        purpose=plan.purpose,
        clients=len(plan.cohort),
        cohort=plan.cohort[:NAMED] if plan.groups else plan.cohort,
        carried=sorted(plan.carried) if plan.mode == Mode.asynchronous else None,
    )
    events: list[Event] = [opened]
    if unsigned:
        events.append(RoundUnsigned(round=plan.number, reason=unsigned))
    run_fields = {
        "round": str(plan.number),
        "waited_s": "0",
        "reason": "",
        "not_evaluated": "",
        "population": dumps(plan.population(state)),
    }
    return RoundOpening(
        plan.number,
        run_fields,
        fields,
        tickets,
        [ticket for ticket, _ in plan.carried.values()],
        events,
        plan.shares if plan.purpose == Purpose.train else None,
    )
