"""Jobs of an asynchronous round that go on over its end, as the control server records them."""

from __future__ import annotations

from fl_queue.protocol import identifiers
from fl_queue.protocol.job_origins import is_given_up
from fl_queue.protocol.state import RoundPhase
from fl_queue.store import RoundState, RunState, Store
from fl_queue.store.jobs import dispatch
from fl_queue.store.jobs.dispatch import JobTicket


def at_work(store: Store, run: str, current: RoundState) -> dict[str, JobTicket]:
    """Client -> its ticket, of those of a round that have not answered and are not revoked."""
    tickets = dispatch.tickets(store, run, current.number)
    receipts = store.control.receipts.of_round(run, current.number)
    revoked = store.control.enrolments.revoked(current.cohort)
    return {
        client: tickets[client]
        for client in current.cohort
        if client in tickets
        and client not in revoked
        and not dispatch.has_answered(store, receipts.get(client), tickets[client])
    }


def carried(
    store: Store, state: RunState, max_staleness: int
) -> tuple[RoundState | None, list[JobTicket]]:
    """
    Jobs that the next asynchronous round takes over from the run's newest one, which has ended.

    Returns:
        That round, and the tickets that go on; None and none when there is nothing to take over.
    """
    last = store.control.rounds.get(state.run_id, state.round) if state.round >= 1 else None
    if (
        last is None
        or not last.is_async
        or last.state not in (RoundPhase.committed, RoundPhase.abandoned)
    ):
        return None, []
    if last.segment != state.segment:
        return None, []  # The updates to come might be of another kind.
    version = state.version or 0
    return last, [
        ticket
        for client, ticket in at_work(store, state.run_id, last).items()
        if not is_given_up(last, client, version, max_staleness)
    ]


def tickets_in_use(store: Store, run: str) -> dict[str, JobTicket]:
    """Job id -> ticket, of the clients of a run's newest round; empty when it is not asynchronous."""
    state = store.control.runs.get(run)
    if state is None or not state.active or state.round < 0:
        return {}
    current = store.control.rounds.get(run, state.round)
    if current is None or not current.is_async:
        return {}
    found = (
        at_work(store, run, current).values()
        if not current.open
        else dispatch.tickets(store, run, current.number).values()
    )
    return {ticket.job: ticket for ticket in found if ticket.who != identifiers.AGGREGATOR}
