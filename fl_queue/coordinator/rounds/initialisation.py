"""
Make version 0: ask one worker after the other until one has made it.

The evaluator first, then the eligible clients in the order of the run's seed, then those that reported that
they cannot train. The bits of version 0 do not depend on its maker. A worker stays asked: one that was busy,
or has come back, may still be the first. The round is abandoned, and the run with it, when no further worker
can be asked and none of those asked will answer.
"""

from __future__ import annotations

from collections.abc import Mapping

from fl_queue.common import seeding
from fl_queue.common.safe_json import dumps
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import deadlines, eligibility, statement_signing
from fl_queue.coordinator.rounds.eligibility import EligibleClients
from fl_queue.protocol import identifiers
from fl_queue.protocol.events import MakerAsked
from fl_queue.protocol.records import Purpose, Receipt
from fl_queue.store import RoundState, RunState, Store, keyspace
from fl_queue.store.jobs import dispatch, rq_types
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.store.transactions import rounds as transactions

#: A worker that has not begun after this time is busy with something else: the next one is asked, too.
BUSY_S = 15.0
#: Characters of each worker's reason in the reason of a run that has failed.
_CAUSE = 300


def candidates(
    store: Store, state: RunState, config: RunConfig, found: EligibleClients
) -> list[str]:
    """Workers that can be asked for version 0, in the order in which they are asked."""
    seed, there = config.run.seed, store.control.workers.is_role_alive(identifiers.EVALUATOR)
    may = not eligibility.not_admitted(store, state, config, [identifiers.EVALUATOR])
    first = [identifiers.EVALUATOR] if there and may else []
    if config.is_simulation:
        # All virtual clients are the same processes, with the same code.
        return [*first, *seeding.in_order(seed, 0, found.clients, 1)]
    fit = seeding.in_order(seed, 0, found.clients, len(found.clients))
    return [*first, *fit, *seeding.in_order(seed, 0, found.unable, len(found.unable))]


def ticket(store: Store, state: RunState, config: RunConfig, number: int, who: str) -> JobTicket:
    """The job that asks a worker for version 0."""
    function, queue = rq_types.CLIENT_INITIALISE, keyspace.client_queue(who)
    if who == identifiers.EVALUATOR:
        function, queue = rq_types.INITIALISE, keyspace.EVALUATE_QUEUE
    elif config.is_simulation:
        function, queue = rq_types.POOL_INITIALISE, keyspace.POOL_QUEUE
    longest_s = int(deadlines.longest_job_s(store, state, config, Purpose.initialise))
    return JobTicket(who, function, queue, state.run_id, number, max(1, longest_s))


def ask_next(store: Store, state: RunState, config: RunConfig, current: RoundState) -> bool:
    """
    Ask a further worker for version 0, if the last one will not answer soon.

    Returns:
        Whether a further worker was asked.
    """
    why = why_next(store, state, config, current)
    if not why:
        return False
    found = eligibility.decide(store, state, config, Purpose.initialise)
    if found is None:
        return False
    left = [who for who in candidates(store, state, config, found) if who not in current.makers]
    return bool(left) and _ask(store, state, config, current, left[0], why)


def why_next(store: Store, state: RunState, config: RunConfig, current: RoundState) -> str:
    """Why the worker that was asked last will not answer soon; empty: it may."""
    last = max(current.makers, key=lambda who: (current.makers[who], who))
    receipt = store.control.receipts.of_round(state.run_id, current.number).get(last)
    if receipt is not None:
        return "" if receipt.is_in else f"{last} could not make it"
    job = dispatch.tickets(store, state.run_id, current.number).get(last)
    waited_s = current.elapsed_s - current.makers[last]
    if not deadlines.is_there(store, config, last):
        # Processes of a simulation are started after the run.
        is_pool = config.is_simulation and last != identifiers.EVALUATOR
        return "" if is_pool and waited_s < BUSY_S else f"no worker of {last} is alive"
    if job is None or job.attempt > 1:
        return f"the first attempt of {last} came to nothing"
    if waited_s >= BUSY_S and dispatch.is_queued(store, job):
        return f"{last} is busy with something else"
    if waited_s >= deadlines.deadline_s(store, state, config, Purpose.initialise):
        return f"{last} has not answered within {waited_s:.0f} s"
    return ""


def _ask(
    store: Store, state: RunState, config: RunConfig, current: RoundState, who: str, why: str
) -> bool:
    run, number = state.run_id, current.number
    new = ticket(store, state, config, number, who)
    longest_s = deadlines.deadline_s(store, state, config, Purpose.initialise)
    # Later than the one before, so that their order is recorded.
    asked_at_s = max(current.elapsed_s, max(current.makers.values()) + 0.001)
    asked = {**current.makers, who: round(asked_at_s, 3)}
    if statement_signing.why_not_here(store, run):
        return False
    cohort = sorted(asked)
    vouched = statement_signing.with_cohort(store, run, current, cohort)
    if vouched.why_not:
        return False
    fields = {
        statement_signing.SIGNED: vouched.signed,
        "cohort": dumps(cohort),
        "makers": dumps(asked),
        "deadline_s": str(asked_at_s + longest_s),
    }

    event = MakerAsked(round=number, client=who, reason=why)
    return transactions.extend(store, state, current, fields, [new], event)


def awaited(
    store: Store,
    state: RunState,
    config: RunConfig,
    current: RoundState,
    silent: list[str],
    elapsed_s: float,
) -> list[str]:
    """
    Workers that may still make version 0.

    Args:
        silent: Workers that were asked and have not answered.
        elapsed_s: Counted since the round was opened.
    """
    if elapsed_s - max(current.makers.values()) < config.round.deadline_s:
        return silent  # A worker that is gone may come back.
    here = [who for who in silent if deadlines.is_there(store, config, who)]
    if elapsed_s < current.deadline_s:
        return here
    tickets = dispatch.tickets(store, state.run_id, current.number)
    longest_s = deadlines.longest_job_s(store, state, config, Purpose.initialise)
    return [
        who
        for who in here
        if deadlines.is_at_work(store, tickets.get(who))
        and elapsed_s - current.makers[who] < longest_s
    ]


def refusals(
    store: Store,
    config: RunConfig,
    current: RoundState,
    receipts: Mapping[str, Receipt],
) -> str:
    """Why no worker has made version 0: the answer of each that was asked."""
    lines = []
    for who in sorted(current.makers, key=lambda who: (current.makers[who], who)):
        if who in receipts:
            lines.append(f"{who}: {receipts[who].reason[:_CAUSE]}")
        elif deadlines.is_there(store, config, who):
            lines.append(f"{who}: no answer")
        else:
            lines.append(f"{who}: no answer, and no worker of it is alive")
    return f"no client could make version 0; {'; '.join(lines)}"


def who_is_asked(current: RoundState, receipts: Mapping[str, Receipt]) -> str:
    """The workers that were asked for version 0, and their answers so far, as text."""
    lines = []
    for who in sorted(current.makers, key=lambda who: (current.makers[who], who)):
        receipt = receipts.get(who)
        since_s = max(0.0, current.elapsed_s - current.makers[who])
        if receipt is None:
            lines.append(f"{who} is asked since {since_s:.0f} s")
        else:
            lines.append(f"{who} {'has made it' if receipt.is_in else 'could not'}")
    return f"version 0: {', '.join(lines)}"
