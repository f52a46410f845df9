"""Clients of a round that have not answered yet."""

from __future__ import annotations

from collections.abc import Mapping

from fl_queue.protocol import virtual_clients
from fl_queue.protocol.records import Receipt
from fl_queue.store import RoundState, Store
from fl_queue.store.jobs import dispatch


def unanswered(
    store: Store, run: str, current: RoundState, receipts: Mapping[str, Receipt], drained: bool
) -> list[str]:
    """
    Clients of the cohort that may still send an answer that counts, in the cohort's order.

    Args:
        drained: Every message that has arrived is processed: revoked clients are left out.
    """
    cohort, groups = current.cohort, current.groups
    # Jobs decide only where a message that is no answer has come in a client's name.
    is_doubtful = any(not receipt.answers for receipt in receipts.values())
    tickets = dispatch.tickets(store, run, current.number) if is_doubtful else {}
    asked = [
        (receipts.get(client), virtual_clients.ticket_of(client, tickets, cohort, groups))
        for client in cohort
    ]
    answers = dispatch.have_answered(store, asked)
    left = [client for client, has in zip(cohort, answers, strict=True) if not has]
    if drained and not groups and left:
        # A client that was revoked meanwhile cannot answer.
        revoked = store.control.enrolments.revoked(left)
        left = [client for client in left if client not in revoked]
    return left
