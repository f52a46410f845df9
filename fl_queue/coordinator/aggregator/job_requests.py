"""Publish new attempts of clients' jobs, so that updates that were lost are sent again."""

from __future__ import annotations

from fl_queue.protocol import identifiers, virtual_clients
from fl_queue.protocol.events import Healed
from fl_queue.store import RoundState, Store, keyspace
from fl_queue.store.jobs import dispatch


def ask_again(
    store: Store, run: str, current: RoundState, who: str, why: str, unless_queued: bool = False
) -> None:
    """
    Publish a new attempt of a client's job, with an event.

    Args:
        why: What became of its update.
        unless_queued: Not if its last attempt has not begun yet.
    """
    who = virtual_clients.job_of(who, current.cohort, current.groups)
    ticket = dispatch.tickets(store, run, current.number).get(who)
    if ticket is None or (unless_queued and dispatch.is_queued(store, ticket)):
        return
    dispatch.replace(store, keyspace.round_jobs(run, current.number), who, ticket, why=why)


def ask_all_again(store: Store, run: str, number: int, why: str) -> None:
    """
    Publish a new attempt of every client's job in a round, but of revoked clients, with one event.

    Args:
        why: What became of their updates.
    """
    tickets = dispatch.tickets(store, run, number)
    left_out = store.control.enrolments.revoked(tickets) | {identifiers.AGGREGATOR}
    asked = {who: ticket for who, ticket in tickets.items() if who not in left_out}
    if asked:
        # First: a reader of a new attempt finds the reason.
        store.control.events.add(run, Healed(round=number, what=f"{why}: clients asked again"))
    dispatch.replace_all(store, keyspace.round_jobs(run, number), asked)
