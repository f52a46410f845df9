"""
``advance``: look at a run and publish what is missing.

    open -> collect -> commit | abandon -> open -> ... -> completed | failed

The coordinator is this function, not a process: ``start-round``, the aggregator after a commit, and
the healer call it, race, and repeat it. Every transition is a compare-and-set. What an aggregator
does with an open round is in ``collect.py``; who repairs what died, in ``heal.py``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from redis.client import Pipeline

from fl_queue import dispatch, faults, metrics, names, sampling
from fl_queue.config import RunConfig, cohort_size, quorum_size
from fl_queue.dispatch import Ticket
from fl_queue.exact import choose_scales
from fl_queue.records import Kind, Purpose, Receipt, RoundRecord, dumps
from fl_queue.runs import current_config
from fl_queue.store import Control, RoundState, RunState, Store, as_text, parse_run_state
from fl_queue.strategies import largest_weight

#: The closing evaluation need not be waited for as long as training.
EVALUATION_DEADLINE_S = 60.0
INITIALISE_DEADLINE_S = 120.0
#: Without an aggregator, a round is abandoned only this long after its deadline.
ORPHAN_GRACE_S = 5.0
#: Fields of a run that decide what comes next. Less is not enough: a caller that slept would open a
#: second closing evaluation, or complete a run that somebody has continued meanwhile.
_DECIDING = ("round", "version", "evaluated_version", "rounds_wanted", "segment")
#: The keys of an ended round stay for so many rounds.
ROUNDS_KEPT = 2


@dataclass(frozen=True)
class Ending:
    """How a round ends: ``outcome`` and why."""

    outcome: str
    reason: str


def advance(store: Store, run: str) -> None:
    """
    Do whatever a run needs next: open a round, abandon an orphaned one, publish evaluations, or end.

    Idempotent; anybody may call it at any time.
    """
    state = store.control.run(run)
    if state is None:
        return
    _publish_evaluations(store, state)
    if not state.active:
        return
    current = store.control.open_round(state)
    if current is not None:
        _abandon_orphan(store, state, current)
        return
    config = current_config(store, run)
    purpose = _next_purpose(store, state, config)
    if purpose is None:
        _complete(store, state)
    else:
        _open_round(store, state, config, purpose)


def closing_rule(
    current: RoundState,
    received: int,
    pending: int,
    elapsed_s: float,
    quorum_at_s: float | None,
    drained: bool,
) -> Ending | None:
    """
    Whether a round ends now, and how.

    All in; or the quorum is in and the grace or the deadline has passed; or the quorum cannot be
    reached, or was not by the deadline with the results list drained.

    Args:
        received: Valid updates so far.
        pending: Clients of the cohort of whom nothing has come.
        elapsed_s: Counted time since the round opened.
        quorum_at_s: The same when the quorum was reached.
        drained: Nothing waits in the results list.
    """
    good = {"train": "committed", "evaluate": "evaluated", "initialise": "initialised"}[
        current.purpose
    ]
    size = len(current.cohort)
    if received >= current.quorum:
        if pending == 0:
            return Ending(good, f"{received} of {size} updates in")
        if elapsed_s >= current.deadline_s:
            return Ending(good, f"quorum reached, deadline passed: {received} of {size} updates in")
        if quorum_at_s is not None and elapsed_s - quorum_at_s >= current.grace_s:
            return Ending(good, f"quorum reached, grace passed: {received} of {size} updates in")
        return None
    bad = "evaluated" if current.purpose == "evaluate" else "abandoned"
    if received + pending < current.quorum:
        return Ending(
            bad,
            f"{received} of {size} updates in and {pending} pending, quorum {current.quorum} out of reach",
        )
    if elapsed_s >= current.deadline_s and drained:
        return Ending(
            bad,
            f"{received} of {size} updates in at the deadline of {current.deadline_s:g} s, quorum {current.quorum}",
        )
    return None


def base_record(
    current: RoundState, ending: Ending, elapsed_s: float, config: RunConfig
) -> RoundRecord:
    """The record of a round without any update in it."""
    return RoundRecord(
        round=current.number,
        purpose=current.purpose,
        outcome=ending.outcome,  # type: ignore[arg-type]
        reason=ending.reason,
        base_version=current.base_version,
        base_digest=current.base_digest,
        cohort=list(current.cohort),
        eligible=list(current.eligible),
        quorum=current.quorum,
        missing=list(current.cohort),
        scales=dict(current.scales),
        strategy=config.aggregation["strategy"],
        opened_at=current.opened_at,
        elapsed_s=round(elapsed_s, 3),
        config_segment=current.segment,
    )


def count_time(store: Store, run: str, number: int) -> float | None:
    """
    Count time towards a round's deadline; None when it is not open.

    Raises:
        StoreUnavailable: A server is away, the data server too: its outages must not count either.
    """
    store.data.ping()
    return store.control.tick_round(run, number)


def has_ended(control: Control, run: str, number: int) -> bool:
    """Whether a round has ended (or its run is gone, or is not training any more)."""
    state = control.run(run)
    if state is None or not state.active or state.round > number:
        return True
    current = control.round(run, number)
    return current is not None and not current.open


def is_over(control: Control, run: str) -> bool:
    """Whether a run is not training (any more), or is gone."""
    state = control.run(run)
    return state is None or not state.active


# Opening


def _next_purpose(store: Store, state: RunState, config: RunConfig) -> Purpose | None:
    if state.version is None:
        return "initialise"
    stop = config.run["stop_when"]
    if state.version < state.rounds_wanted and not (stop and _stopped(store, state, stop)):
        return "train"
    return "evaluate" if state.evaluated_version != state.version and state.version > 0 else None


def _stopped(store: Store, state: RunState, condition: str) -> bool:
    # Decided by what the clients reported in rounds that are committed, never by the evaluator:
    # its result may come a round later or earlier, and the same config must stop at the same round.
    committed = [
        record
        for record in store.control.history(state.run_id, last=10)
        if record.outcome == "committed"
    ]
    return bool(committed) and metrics.stop_holds(
        condition, metrics.finish(committed[-1].validation)
    )


def _open_round(store: Store, state: RunState, config: RunConfig, purpose: Purpose) -> None:
    number = state.round + 1
    if store.control.settling():
        return  # A cohort of those who happened to be heard first would be another one.
    alive = store.control.alive_clients(config.clients["active_s"])
    if purpose == "initialise":
        cohort, wanted = _initialiser(store, config, alive), 1
    else:
        wanted = cohort_size(config, len(alive))
        cohort = sampling.select_cohort(config.run["seed"], number, alive, min(wanted, len(alive)))
    if len(cohort) < max(wanted, 1):
        _wait_for_clients(store, state, config, len(alive), wanted)
        return
    fields = _round_fields(store, state, config, purpose, alive, cohort)
    tickets = _tickets(state.run_id, number, purpose, cohort, config)

    def body(pipe: Pipeline) -> Callable[[], None] | None:
        if not _is_as_seen(pipe, state):
            return None
        return lambda: _write_round(
            store, pipe, state, number, fields, tickets, alive if purpose == "train" else []
        )

    if store.control.transact([names.run(state.run_id)], body):
        faults.reach("round.opened")


def _is_as_seen(pipe: Pipeline, state: RunState) -> bool:
    """Whether a training run still is where a decision about it began; ``pipe`` watches its hash."""
    raw = as_text(cast(dict[bytes, bytes], pipe.hgetall(names.run(state.run_id))))
    if "state" not in raw:
        return False
    now = parse_run_state(state.run_id, raw)
    return now.active and all(getattr(now, name) == getattr(state, name) for name in _DECIDING)


def _initialiser(store: Store, config: RunConfig, alive: list[str]) -> list[str]:
    if store.control.role_alive(names.EVALUATOR):
        return [names.EVALUATOR]
    return sampling.select_cohort(config.run["seed"], 0, alive, min(1, len(alive)))


def _round_fields(
    store: Store,
    state: RunState,
    config: RunConfig,
    purpose: Purpose,
    alive: list[str],
    cohort: list[str],
) -> dict[str, Any]:
    w_max = largest_weight(config.aggregation)
    limits: dict[Kind, float] = {
        "parameter": config.aggregation["limit"],
        "float_buffer": config.aggregation["buffer_limit"],
    }
    scales = choose_scales(len(cohort), w_max, limits)
    longest = {
        "train": config.round["deadline_s"],
        "evaluate": EVALUATION_DEADLINE_S,
        "initialise": INITIALISE_DEADLINE_S,
    }
    # One client makes version 0.
    quorum = len(cohort) if purpose == "initialise" else quorum_size(config, len(cohort))
    now = f"{store.control.now():.6f}"
    return {
        "state": "open",
        "purpose": purpose,
        "cohort": dumps(cohort),
        "eligible": dumps(alive),
        "quorum": str(quorum),
        "deadline_s": str(longest[purpose]),
        "grace_s": str(config.round["grace_s"]),
        "opened_at": now,
        "ticked_at": now,
        "elapsed_s": "0",
        "base_version": str(state.version or 0),
        "base_digest": state.digest,
        "fence": "0",
        "data_server": store.data.identity(),
        "w_max": str(w_max),
        "scales": dumps({kind: list(scale) for kind, scale in scales.items()}),
        "segment": str(state.segment),
        "reason": "",
    }


def _tickets(
    run: str, number: int, purpose: Purpose, cohort: list[str], config: RunConfig
) -> list[Ticket]:
    function = {
        "train": dispatch.TRAIN,
        "evaluate": dispatch.CLIENT_EVALUATE,
        "initialise": dispatch.CLIENT_INITIALISE,
    }
    timeout_s = max(1, int(config.train["timeout_s"]))
    tickets = []
    for client in cohort:
        if client == names.EVALUATOR:
            tickets.append(
                Ticket(client, dispatch.INITIALISE, names.EVALUATE_QUEUE, run, number, timeout_s)
            )
        else:
            tickets.append(
                Ticket(
                    client, function[purpose], names.client_queue(client), run, number, timeout_s
                )
            )
    tickets.append(
        Ticket(names.AGGREGATOR, dispatch.AGGREGATE, names.AGGREGATE_QUEUE, run, number, -1)
    )
    return tickets


def _write_round(
    store: Store,
    pipe: Pipeline,
    state: RunState,
    number: int,
    fields: Mapping[str, str],
    tickets: list[Ticket],
    newcomers: list[str],
) -> None:
    run = state.run_id
    # A client's place in this list is its share of a data set that is split over clients: it keeps
    # the place for the life of the run, and who comes later is appended.
    population = [*state.population, *sorted(set(newcomers) - set(state.population))]
    pipe.hset(
        names.run(run),
        mapping={
            "round": str(number),
            "waited_s": "0",
            "reason": "",
            "population": dumps(population),
        },
    )
    if newcomers:
        # How many parts the data has is decided once: who comes later must not move samples around.
        pipe.hsetnx(names.run(run), "shares", len(population))
    pipe.hset(names.round_(run, number), mapping=cast(dict[Any, Any], fields))
    for ticket in tickets:
        pipe.hset(names.round_jobs(run, number), ticket.who, ticket.to_json())
        dispatch.publish(ticket, pipe, store.control.redis)
    event = {
        "event": "round_opened",
        "round": number,
        "purpose": fields["purpose"],
        "cohort": [ticket.who for ticket in tickets[:-1]],
    }
    store.control.add_event(run, event, pipe)


def _wait_for_clients(
    store: Store, state: RunState, config: RunConfig, alive: int, wanted: int
) -> None:
    """Nobody to train with: say so, count the time, and fail the run at the deadline."""
    waited_s = store.control.tick_waiting(state.run_id)
    deadline_s = config.round["deadline_s"]
    if alive == 0:
        reason = "no client is alive; start one with `fl-queue worker client --client ID`"
    else:
        reason = f"round.cohort = {wanted}, but {alive} clients are alive; start more workers or lower round.cohort"
    given_up = waited_s is not None and waited_s >= deadline_s
    if given_up:
        reason = f"gave up after {deadline_s:g} s (round.deadline_s): {reason}"
    elif state.reason == reason:
        return
    set_state(
        store,
        state,
        "failed" if given_up else "training",
        reason,
        "run_failed" if given_up else "waiting_for_clients",
    )


# Ending


def _complete(store: Store, state: RunState) -> None:
    set_state(store, state, "completed", "", "run_completed")


def set_state(store: Store, state: RunState, new: str, reason: str, event: str) -> bool:
    """Change a training run's state, if it is still as it was seen; returns whether it was."""

    def body(pipe: Pipeline) -> Callable[[], None] | None:
        if not _is_as_seen(pipe, state):
            return None

        def write() -> None:
            pipe.hset(names.run(state.run_id), mapping={"state": new, "reason": reason})
            store.control.add_event(
                state.run_id, {"event": event, "reason": reason, "version": state.version}, pipe
            )

        return write

    return store.control.transact([names.run(state.run_id)], body)


def _abandon_orphan(store: Store, state: RunState, current: RoundState) -> None:
    """
    Abandon an overdue round that no aggregator works on and for which nothing has come.

    With anything in the results list or a taken list it stays open: abandoning requires both drained.
    """
    if current.elapsed_s < current.deadline_s + ORPHAN_GRACE_S:
        return
    run = state.run_id
    if (
        store.data.owned(run, current.fence)
        or store.data.waiting(run)
        or store.data.held(run, current.fence)
    ):
        return
    config = current_config(store, run, current.segment)
    outcome = "evaluated" if current.purpose == "evaluate" else "abandoned"
    ending = Ending(
        outcome,
        f"no update at the deadline of {current.deadline_s:g} s, and no aggregator at work; start one with `fl-queue worker aggregator`",
    )
    end(
        store,
        state,
        current,
        ending,
        base_record(current, ending, current.elapsed_s, config),
        {},
        config,
        fence=current.fence,
    )


def end(
    store: Store,
    state: RunState,
    current: RoundState,
    ending: Ending,
    record: RoundRecord,
    receipts: Mapping[str, Receipt],
    config: RunConfig,
    fence: int,
) -> str:
    """End a round without a new version; returns ``ok`` or why it was refused."""
    return store.control.end_round(
        state.run_id,
        current.number,
        fence=fence,
        token=secrets.token_hex(8),
        outcome=ending.outcome,  # type: ignore[arg-type]
        reason=ending.reason,
        record=None if current.purpose == "initialise" else record,
        receipts=receipts,
        # Version 0 is not made by trying again: what it needs is a task that can be built.
        max_abandoned=1 if current.purpose == "initialise" else config.round["max_abandoned"],
    )


def clean_up(store: Store, run: str, number: int) -> None:
    """Remove what an ended round no longer needs: its jobs now, its keys two rounds later."""
    _forget_jobs(store, run, number, but=names.AGGREGATOR)
    # From where the last one got to: whoever cleaned up an earlier round may have been killed.
    for old in range(store.control.cleaned(run), number - ROUNDS_KEPT + 1):
        _forget_jobs(store, run, old)
        store.control.forget_round(run, old)


def _forget_jobs(store: Store, run: str, number: int, but: str = "") -> None:
    for who, ticket in dispatch.tickets(store, run, number).items():
        if who != but:
            dispatch.forget(store, ticket)


# Evaluations


def _publish_evaluations(store: Store, state: RunState) -> None:
    """Publish the evaluation of every version that has none, without holding up the next round."""
    run = state.run_id
    if state.version is None:
        return
    known = store.control.evaluations(run)
    for version in range(state.version, -1, -1):
        if version in known:
            break
        ticket = Ticket(
            names.EVALUATOR, dispatch.EVALUATE, names.EVALUATE_QUEUE, run, version, 3600
        )
        store.control.transact([names.evaluations(run)], partial(_evaluation, store, ticket))


def _evaluation(store: Store, ticket: Ticket, pipe: Pipeline) -> Callable[[], None] | None:
    if pipe.hexists(names.evaluations(ticket.run), str(ticket.number)):
        return None

    def write() -> None:
        pipe.hset(names.evaluations(ticket.run), str(ticket.number), ticket.to_json())
        dispatch.publish(ticket, pipe, store.control.redis)

    return write
