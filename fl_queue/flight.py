"""
The clients at work in an asynchronous round: each with the job of this round, or one of an earlier round.

A job goes on over the end of its round: the next one takes its ticket over. So a client's job is wanted
while the run's newest round has its ticket.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fl_queue import dispatch, identifiers
from fl_queue.dispatch import Ticket
from fl_queue.records import Receipt, RoundRecord
from fl_queue.store import RoundState, RunState, Store


class Begun(NamedTuple):
    """Where a client's job began: its round, and the version that is trained from."""

    round: int
    version: int


def begun(current: RoundState, client: str) -> Begun:
    """Where the job began that a client of a round is at."""
    found = current.carried.get(client)
    if found is None:
        return Begun(current.number, current.base_version)
    return Begun(found["round"], found["version"])


def by_job(current: RoundState, accepted: Mapping[str, str]) -> dict[str, tuple[int, str]]:
    """
    What clients call their updates in what they keep: the round of the job, not the one that merged it.

    Args:
        accepted: Client -> digest of its update.

    Returns:
        Client -> round in which its job began, and that digest.
    """
    return {client: (begun(current, client).round, digest) for client, digest in accepted.items()}


def by_job_of(record: RoundRecord) -> dict[str, tuple[int, str]]:
    """The same of a round that was committed, by its record."""
    return {
        client: (record.carried.get(client, {}).get("round", record.round), digest)
        for client, digest in record.accepted.items()
    }


def base_of(store: Store, run: str, current: RoundState, client: str) -> tuple[int, str]:
    """Version and digest that a client's job began with."""
    found = begun(current, client)
    if found.round == current.number:
        return current.base_version, current.base_digest
    return found.version, store.control.version(run, found.version).get("digest", "")


def versions(current: RoundState) -> set[int]:
    """Older versions that clients of a round are training from."""
    return {found["version"] for found in current.carried.values()} - {current.base_version}


def at_work(store: Store, run: str, current: RoundState) -> dict[str, Ticket]:
    """Client -> its ticket, of those of a round that have not answered and are not revoked."""
    tickets = dispatch.tickets(store, run, current.number)
    receipts = store.control.receipts(run, current.number)
    revoked = store.control.revoked(current.cohort)
    return {
        client: tickets[client]
        for client in current.cohort
        if client in tickets
        and client not in revoked
        and not dispatch.has_answered(store, receipts.get(client), tickets[client])
    }


def is_given_up(current: RoundState, client: str, version: int, max_staleness: int) -> bool:
    """Whether a client's job is of no use any more. Args: ``version``: the newest one."""
    return version - begun(current, client).version > max_staleness


def given_up(
    current: RoundState, receipts: Mapping[str, Receipt], max_staleness: int
) -> dict[str, Receipt]:
    """
    Receipts of the clients whose jobs are too old for the version that a round makes: they get new ones.

    Args:
        receipts: What has come of the round.
    """
    version, found = current.base_version + 1, {}
    for client in current.cohort:
        has_answered = client in receipts and receipts[client].answers
        if not has_answered and is_given_up(current, client, version, max_staleness):
            began = begun(current, client).version
            reason = f"at work on version {began} when version {version} was made; round.max_staleness = {max_staleness}"
            found[client] = Receipt("stale", reason)
    return found


def carried(
    store: Store, state: RunState, max_staleness: int
) -> tuple[RoundState | None, list[Ticket]]:
    """
    What the next asynchronous round takes over from the run's newest one, which has ended.

    Returns:
        That round, and the tickets that go on; None and none when there is nothing to take over.
    """
    last = store.control.round(state.run_id, state.round) if state.round >= 1 else None
    if last is None or not last.is_async or last.state not in ("committed", "abandoned"):
        return None, []
    if last.segment != state.segment:
        return None, []  # The updates to come might be of another kind.
    version = state.version or 0
    return last, [
        ticket
        for client, ticket in at_work(store, state.run_id, last).items()
        if not is_given_up(last, client, version, max_staleness)
    ]


def tickets_in_use(store: Store, run: str) -> dict[str, Ticket]:
    """Job id -> ticket, of the clients of a run's newest round; empty when it is not asynchronous."""
    state = store.control.run(run)
    if state is None or not state.active or state.round < 0:
        return {}
    current = store.control.round(run, state.round)
    if current is None or not current.is_async:
        return {}
    found = (
        at_work(store, run, current).values()
        if not current.open
        else dispatch.tickets(store, run, current.number).values()
    )
    return {ticket.job: ticket for ticket in found if ticket.who != identifiers.AGGREGATOR}
