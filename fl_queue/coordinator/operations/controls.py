"""
Cancel a run, resume it, retry its failed jobs.

Each is a compare-and-set against concurrent changes by workers, and may be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fl_queue.coordinator.operations.healer import Healer
from fl_queue.coordinator.rounds import lifecycle
from fl_queue.coordinator.rounds.ending import Ending
from fl_queue.coordinator.rounds.runs import at_version, current_config, find_run, set_state
from fl_queue.errors import RunStateError
from fl_queue.protocol.events import RunCancelled
from fl_queue.protocol.records import Outcome, Verdict
from fl_queue.protocol.state import RunPhase
from fl_queue.store import Incarnation, RoundState, RunState, Store
from fl_queue.store.jobs import dispatch, rq_types
from fl_queue.store.transactions import confirmed_changes
from fl_queue.store.transactions import runs as transactions

CANCELLED = "cancelled by an operator"
#: States a run comes back from.
RESUMABLE = (RunPhase.failed, RunPhase.cancelled)


@dataclass(frozen=True)
class Failure:
    """A job that failed: its client, attempt and reason; ``answered`` when no attempt follows."""

    who: str
    attempt: int
    reason: str
    answered: bool = False


def cancel(store: Store, name: str) -> RunState:
    """
    Stop a run: its open round ends as cancelled, clients stop training, the model stays.

    Raises:
        RunStateError: It is not training.
    """
    by = confirmed_changes.new_token()
    while True:
        state = find_run(store, name)
        if not state.active:
            if confirmed_changes.was_made(store, state.run_id, by):
                return state
            raise RunStateError(state.name, f"is {state.state} already; there is nothing to cancel")
        current = store.control.rounds.newest_open(state)
        if current is None:
            done = set_state(store, state, RunPhase.cancelled, CANCELLED, RunCancelled, by)
        else:
            done = _cancel_round(store, state, current)
        if done:
            lifecycle.clean_up(store, state.run_id, state.round)
            return find_run(store, name)


def _cancel_round(store: Store, state: RunState, current: RoundState) -> bool:
    ending = Ending(Outcome.cancelled, CANCELLED)
    config = current_config(store, state.run_id, current.segment)
    receipts = store.control.receipts.of_round(state.run_id, current.number)
    record = replace(
        lifecycle.base_record(current, ending, current.elapsed_s, config),
        missing=[client for client in current.cohort if client not in receipts],
        rejected={
            client: f"{receipts[client].status}: the round was cancelled"
            for client in current.cohort
            if client in receipts
        },
    )
    # Refused when an aggregator has ended the round, or has claimed it, in between.
    owner = Incarnation(state.run_id, current.number, current.fence, "")
    answer = lifecycle.end(store, owner, current, ending, record, {}, config)
    return answer == "ok"


def resume(store: Store, name: str, state_dir: Path) -> tuple[RunState, list[str]]:
    """
    Continue a run from its newest version, and publish its missing jobs at once.

    Args:
        state_dir: This machine's folder; checkpoints are below it, if it has any.

    Returns:
        The run, and a line for each change.

    Raises:
        RunStateError: It is completed.
    """
    done = []
    by = confirmed_changes.new_token()
    while not (state := find_run(store, name)).active:
        if state.state not in RESUMABLE:
            is_model = current_config(store, state.run_id).analysis is None
            more = f"add rounds with `fl-queue start-round CONFIG --run {state.name} --rounds N`"
            more = more if is_model else f"see `fl-queue result {state.name}`"
            raise RunStateError(state.name, f"is {state.state} {at_version(state.version)}; {more}")
        if current_config(store, state.run_id).secure.enabled:
            # Sites forget their run keys when a run ends.
            store.control.runs.forget_site_reports(state.run_id)
        if _reopen(store, state.run_id, by):
            done.append(_continuation(state))
            break
    healer = Healer(store, state_dir, immediate=True)
    healer.heal(state.run_id)
    return find_run(store, name), done + healer.done


def _continuation(state: RunState) -> str:
    if state.version is None:
        return f"was {state.state}: goes on with the making of version 0"
    return f"was {state.state}: training goes on from version {state.version}"


def _reopen(store: Store, run: str, by: str) -> bool:
    """Set a failed or cancelled run to training; False when it is in another state by now."""
    return transactions.reopen(store, run, RESUMABLE, by)


def failures(store: Store, state: RunState) -> list[Failure]:
    """The failed jobs of a run's newest round and of its evaluations, with their reasons."""
    receipts = store.control.receipts.of_round(state.run_id, state.round)
    found = [
        Failure(client, 0, receipt.reason, answered=True)
        for client, receipt in sorted(receipts.items())
        if receipt.status == Verdict.failed
    ]
    tickets = [
        *dispatch.tickets(store, state.run_id, state.round).values(),
        *dispatch.evaluation_tickets(store, state.run_id).values(),
    ]
    for ticket in tickets:
        reason = dispatch.job_state(store, ticket)
        if reason.startswith(dispatch.JobState.failed):
            what = (
                f"{ticket.who} (version {ticket.number})"
                if ticket.function == rq_types.EVALUATE
                else ticket.who
            )
            found.append(Failure(what, ticket.attempt, reason.removeprefix("failed: ")))
    return found


def redrive(store: Store, name: str, state_dir: Path) -> list[Failure]:
    """
    Retry failed jobs now, without the healer's pause before a job that keeps failing.

    A client that reported that it cannot train has answered its round; the next round asks it again.

    Returns:
        The failed jobs.
    """
    state = find_run(store, name)
    found = failures(store, state)
    if any(not failure.answered for failure in found):
        Healer(store, state_dir, immediate=True).heal(state.run_id)
    return found
