"""
``advance``: look at a run and publish what is missing.

    open -> collect -> commit | abandon -> open -> ... -> completed | failed

The coordinator is this function, not a process: ``start-round``, the aggregator after a commit, and
the healer call it, race, and repeat it. Every transition is a compare-and-set. What an aggregator
does with an open round is in ``coordinator/aggregator/collector.py``; who repairs what died, in ``coordinator/operations/healer.py``.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import replace

from fl_queue.config import metric_choice
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import (
    in_flight,
    initialisation,
    statement_signing,
    stopping,
    waiting,
)
from fl_queue.coordinator.rounds.ending import Ending
from fl_queue.coordinator.rounds.opening import open_round, top_up
from fl_queue.coordinator.rounds.runs import current_config, set_state
from fl_queue.errors import RunStateError, UnknownVersion
from fl_queue.protocol import identifiers
from fl_queue.protocol.events import RunCompleted, RunFailed
from fl_queue.protocol.records import (
    MAKES_NEXT,
    Mode,
    Outcome,
    Purpose,
    Receipt,
    RoundRecord,
    Verdict,
)
from fl_queue.protocol.state import RunPhase
from fl_queue.store import Incarnation, RoundEnd, RoundState, RunState, Store, keyspace
from fl_queue.store.jobs import dispatch, rq_types
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.store.transactions import runs as transactions

#: Without an aggregator, a round is abandoned only this long after its deadline.
ORPHAN_GRACE_S = 5.0
#: The keys of an ended round stay for so many rounds.
ROUNDS_KEPT = 2

#: Characters of a client's own words in the reason of a round.
_CAUSE = 300


def advance(store: Store, run: str) -> None:
    """
    Do whatever a run needs next: open a round, abandon an orphaned one, publish evaluations, or end.

    Idempotent; any process of the operator may call it at any time.
    """
    state = store.control.runs.get(run)
    if state is None:
        return
    if not state.active:
        _publish_evaluations(store, state, current_config(store, run))
        return
    current = store.control.rounds.newest_open(state)
    if current is not None:
        if current.is_async:
            top_up(store, state, current_config(store, run, current.segment), current)
        elif current.purpose == Purpose.initialise:
            initialisation.ask_next(
                store, state, current_config(store, run, current.segment), current
            )
        _abandon_orphan(store, state, current)
        return
    config = current_config(store, run)
    purpose = _next_purpose(store, state, config)
    if purpose == Purpose.train and (why := _not_reported(store, state, config)):
        set_state(store, state, RunPhase.failed, why, RunFailed)
        return
    # First: clients train while the rest is published.
    if purpose is not None and open_round(store, state, config, purpose):
        advance(store, run)
        return
    _publish_evaluations(store, state, config, is_last=purpose is None or purpose not in MAKES_NEXT)
    if purpose is None:
        _complete(store, state, config)


def _complete(store: Store, state: RunState, config: RunConfig) -> None:
    """End a run that needs nothing more, with its best version as the newest one where the config has that."""
    run, left_out = state.run_id, ""
    if stopping.best_to_restore(store, state, config) is not None:
        if problem := statement_signing.why_not_here(store, run):
            waiting.wait(store, state, config, problem, gives_up=False)
            return
        try:
            stopping.restore_best(store, state, config)
        except (UnknownVersion, RunStateError) as exc:
            left_out = str(exc)
            if _may_be_elsewhere(store, state, config):
                waiting.wait(store, state, config, left_out, gives_up=False)
                return
        else:
            advance(store, run)
            return
    stopped = stopping.why_stop(store, state, config) if config.run.patience else ""
    found = "; ".join(filter(None, (stopped, state.not_evaluated, left_out)))
    set_state(store, state, RunPhase.completed, found, RunCompleted)


def _may_be_elsewhere(store: Store, state: RunState, config: RunConfig) -> bool:
    """Whether to wait for the machine with the run's checkpoints, which may have what this one lacks."""
    if stopping.keeps_checkpoints(store, state, config):
        return False
    waited_s = store.control.runs.count_waiting(state.run_id)
    return waited_s is not None and waited_s < config.round.deadline_s


def closing_rule(
    current: RoundState,
    received: int,
    pending: int,
    elapsed_s: float,
    quorum_at_s: float | None,
    drained: bool,
) -> Ending | None:
    """
    The end of a round, if it ends now; else None.

    All in; or the quorum is in and the grace or the deadline has passed; or the quorum cannot be
    reached, or was not by the deadline with the results list drained. An asynchronous round ends with
    its quorum, the size of its buffer.

    Args:
        received: Valid updates so far.
        pending: Clients of the cohort that have not answered.
        elapsed_s: Counted time since the round opened.
        quorum_at_s: Counted time at which the quorum was reached.
        drained: The results list is empty.
    """
    if current.purpose not in MAKES_NEXT:
        return _closing_without_training(current, received, pending, elapsed_s, drained)
    good = Outcome.committed
    size = len(current.cohort)
    if received >= current.quorum:
        if current.is_async:
            return Ending(good, f"{received} updates in, the buffer is full")
        if pending == 0:
            return Ending(good, f"{received} of {size} updates in")
        if elapsed_s >= current.deadline_s:
            return Ending(good, f"quorum reached, deadline passed: {received} of {size} updates in")
        if quorum_at_s is not None and elapsed_s - quorum_at_s >= current.grace_s:
            return Ending(good, f"quorum reached, grace passed: {received} of {size} updates in")
        return None
    if received + pending < current.quorum:
        return Ending(
            Outcome.abandoned,
            f"{received} of {size} updates in and {pending} pending, quorum {current.quorum} out of reach",
        )
    if elapsed_s >= current.deadline_s and drained:
        return Ending(
            Outcome.abandoned,
            f"{received} of {size} updates in at the deadline of {current.deadline_s:g} s, quorum {current.quorum}",
        )
    return None


def _closing_without_training(
    current: RoundState, received: int, pending: int, elapsed_s: float, drained: bool
) -> Ending | None:
    """
    The end of a round without training.

    The making of version 0 ends with the first usable answer, or when no client is left to ask; the closing
    evaluation ends when every client has answered, or at its deadline.
    """
    if current.purpose == Purpose.initialise:
        if received:
            return Ending(Outcome.initialised, "version 0 is in")
        return (
            None
            if pending or not drained
            else Ending(Outcome.abandoned, "no client could make version 0")
        )
    size = len(current.cohort)
    if pending == 0:
        return Ending(Outcome.evaluated, f"{received} of {size} answers in")
    if elapsed_s >= current.deadline_s and drained:
        late = f"{received} of {size} answers in at the deadline of {current.deadline_s:g} s"
        return Ending(Outcome.evaluated, late)
    return None


def with_cause(ending: Ending, receipts: Mapping[str, Receipt]) -> Ending:
    """Add the first rejection reason to the round's outcome."""
    for client, receipt in sorted(receipts.items()):
        if receipt.status != Verdict.received:
            cause = receipt.reason[:_CAUSE]
            return replace(ending, reason=f"{ending.reason}; {client}: {cause}")
    return ending


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
        missing=[] if current.is_async else list(current.cohort),
        scales=dict(current.scales),
        strategy=config.aggregation.strategy,
        opened_at=current.opened_at,
        elapsed_s=round(elapsed_s, 3),
        config_segment=current.segment,
        population=current.population,
        base_population=current.base_population,
        exponent=current.exponent,
        base_server_state=dict(current.server_state),
        mode=current.mode,
        carried={client: dict(begun) for client, begun in current.carried.items()},
        discount=dict(current.discount),
        ineligible=dict(current.ineligible),
    )


def with_updates(base: RoundRecord, receipts: Mapping[str, Receipt]) -> RoundRecord:
    """The record of a round with its updates. Args: ``base``: from ``base_record``."""
    good = {client: found for client, found in sorted(receipts.items()) if found.is_in}
    bad = {client: found for client, found in sorted(receipts.items()) if not found.is_in}
    is_async = base.mode == Mode.asynchronous
    return replace(
        base,
        accepted={client: found.digest for client, found in good.items()},
        weights={client: found.weight for client, found in good.items()},
        norms={client: found.norm for client, found in good.items() if found.norm is not None},
        clipped=[client for client, found in good.items() if found.clipped],
        state_lost=[client for client, found in good.items() if found.state_lost],
        staleness={client: found.staleness for client, found in good.items() if is_async},
        counted={client: found.counted for client, found in good.items() if is_async},
        rejected={client: f"{found.status}: {found.reason}" for client, found in bad.items()},
        missing=[client for client in base.missing if client not in receipts],
        client_validation={client: dict(found.metrics) for client, found in good.items()},
        keys={client: found.key for client, found in good.items() if found.key},
    )


def count_time(store: Store, run: str, number: int) -> float | None:
    """
    Count time towards a round's deadline; None when it is not open.

    Raises:
        StoreUnavailable: A server is away, the data server too: its outages must not count either.
    """
    store.data.ping()
    return store.control.rounds.count_time(run, number)


def _next_purpose(store: Store, state: RunState, config: RunConfig) -> Purpose | None:
    if state.version is None:
        return Purpose.initialise
    if config.run.purpose == "evaluate":
        return Purpose.evaluate if state.evaluated_version != state.version else None
    if config.analysis is not None:
        return Purpose.sums if state.version < state.rounds_wanted else None
    if state.version < state.rounds_wanted and not stopping.why_stop(store, state, config):
        return Purpose.train
    return (
        Purpose.evaluate if state.evaluated_version != state.version and state.version > 0 else None
    )


def _not_reported(store: Store, state: RunState, config: RunConfig) -> str:
    """
    The reason to fail a run before or after its first round: its clients do not report the metric that it names.

    Checked only then: in a later round the metric may have been reported before.
    """
    if state.version == 0:
        return metric_choice.problem_declared(config, state.metrics)
    if state.version != 1:
        return ""
    return metric_choice.problem(
        config, metric_choice.of_history(store.control.history.records(state.run_id))
    )


# Ending


def _abandon_orphan(store: Store, state: RunState, current: RoundState) -> None:
    """
    Abandon an overdue round without an aggregator and without any update.

    It stays open while there is a message in the results list or a taken list, or a partial sum.
    """
    if current.elapsed_s < current.deadline_s + ORPHAN_GRACE_S:
        return
    run = state.run_id
    if (
        store.data.taken.is_owned(run, current.fence)
        or store.data.results.count(run)
        or store.data.taken.count(run, current.fence)
        or store.data.partial_sum.get(run)
    ):
        return
    config = current_config(store, run, current.segment)
    outcome = Outcome.evaluated if current.purpose == Purpose.evaluate else Outcome.abandoned
    ending = Ending(
        outcome,
        f"no update at the deadline of {current.deadline_s:g} s, and no aggregator at work; start one with `fl-queue worker aggregator`",
    )
    end(
        store,
        Incarnation(run, current.number, current.fence, ""),
        current,
        ending,
        base_record(current, ending, current.elapsed_s, config),
        {},
        config,
    )


def end(
    store: Store,
    incarnation: Incarnation,
    current: RoundState,
    ending: Ending,
    record: RoundRecord,
    receipts: Mapping[str, Receipt],
    config: RunConfig,
) -> str:
    """
    End a round without a new version.

    Args:
        store: Both servers.
        incarnation: The aggregator that ends it; without a token: the newest claim, which no aggregator holds.
        current: The round.
        ending: How it ends.
        record: Of the round.
        receipts: Client -> receipt.
        config: The one in force for it.

    Returns:
        ``ok``, or why it was refused.
    """
    initialises = current.purpose == Purpose.initialise
    return store.control.rounds.end(
        RoundEnd(
            incarnation,
            call=secrets.token_hex(8),
            outcome=ending.outcome,  # type: ignore[arg-type]
            reason=ending.reason,
            record=None if initialises else record,
            receipts=receipts,
            # All clients were asked for version 0: it only needs a task that can be built.
            max_abandoned=1 if initialises or ending.fails else config.round.max_abandoned,
            panel=ending.panel,
            rounds_wanted=_steps_anew(current, config) if ending.panel is not None else None,
        )
    )


def _steps_anew(current: RoundState, config: RunConfig) -> int:
    """The last version that a fit may have whose panel has shrunk: its steps are counted anew."""
    assert config.analysis is not None
    # One step is what shows the analysis that its sites are other ones.
    return current.base_version + 1 + config.analysis.steps


def clean_up(store: Store, run: str, number: int) -> None:
    """
    Remove what an ended round no longer needs: its jobs now, its keys two rounds later.

    In an asynchronous run, jobs that go on stay, and the keys of the rounds that they began in. Nothing is
    removed where a failover has lost the end of the round: it is open once more, or an earlier one is.
    """
    seen = store.control.rounds.glance(run, number)
    if seen is not None and (seen.newest < number or (seen.newest == number and seen.is_open)):
        return
    in_use = in_flight.tickets_in_use(store, run)
    _forget_jobs(store, run, number, in_use, but=identifiers.AGGREGATOR)
    # From the oldest round with keys: the clean-up of an earlier round may have been killed.
    end = min([number - ROUNDS_KEPT + 1, *(ticket.number for ticket in in_use.values())])
    for old in range(store.control.runs.oldest_round(run), end):
        _forget_jobs(store, run, old, in_use)
        store.control.rounds.forget(run, old)


def _forget_jobs(
    store: Store, run: str, number: int, in_use: Collection[str], but: str = ""
) -> None:
    tickets = dispatch.tickets(store, run, number)
    dispatch.forget_all(
        store,
        [ticket for who, ticket in tickets.items() if who != but and ticket.job not in in_use],
    )


# Evaluations


def _publish_evaluations(
    store: Store, state: RunState, config: RunConfig, is_last: bool = False
) -> None:
    """
    Publish the evaluation of every version that is to be scored and has none.

    Args:
        is_last: No version follows the newest: it is scored whatever its number.
    """
    every = config.run.evaluate_every
    if state.version is None or not every or config.analysis is not None:
        return
    due = range(state.version - state.version % every, -1, -every)
    last = [state.version] if is_last and state.version not in due else []
    for version in (*last, *due):
        ticket = JobTicket(
            identifiers.EVALUATOR,
            rq_types.EVALUATE,
            keyspace.EVALUATE_QUEUE,
            state.run_id,
            version,
            3600,
        )
        if not transactions.publish_evaluation(store, ticket) and version in due:
            break  # It has been published, and so have those before it.
