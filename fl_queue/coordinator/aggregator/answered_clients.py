"""Whose answer to a round is in, and whose is not."""

from __future__ import annotations

from collections.abc import Mapping

from fl_queue.protocol import virtual_clients
from fl_queue.protocol.records import Receipt
from fl_queue.store import RoundState, Store
from fl_queue.store.jobs import dispatch


def silent(
    store: Store, run: str, current: RoundState, receipts: Mapping[str, Receipt], drained: bool
) -> list[str]:
    """
    Those of the cohort who have not answered, or may still answer better, in its order.

    Args:
        drained: Whether all that has arrived has been looked at: then those who were revoked do not count.
    """
    cohort, groups = current.cohort, current.groups
    # Jobs decide only where an element that answers nothing has come in a client's name.
    is_doubtful = any(not receipt.answers for receipt in receipts.values())
    tickets = dispatch.tickets(store, run, current.number) if is_doubtful else {}
    asked = [
        (receipts.get(client), virtual_clients.ticket_of(client, tickets, cohort, groups))
        for client in cohort
    ]
    answers = dispatch.have_answered(store, asked)
    left = [client for client, has in zip(cohort, answers, strict=True) if not has]
    if drained and not groups and left:
        # Nobody waits for an answer of a client that was revoked meanwhile.
        revoked = store.control.enrolments.revoked(left)
        left = [client for client in left if client not in revoked]
    return left
