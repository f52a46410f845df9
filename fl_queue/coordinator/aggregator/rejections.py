"""
Count rejections per sender and write them at most once per second, so that rejecting is cheaper than sending.

The counts are in memory until they are written: after a kill up to a second's worth is missing. The first
rejections of each sender have an event each, the rest have one in common, with their number.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

from fl_queue.protocol import identifiers
from fl_queue.protocol.events import Event, UpdateRejected, UpdatesRefused
from fl_queue.protocol.records import Refusals
from fl_queue.store import Incarnation, Store

#: Longest time between two writes, seconds.
FLUSH_S = 1.0
#: Senders that are counted by name in a round; all further ones are ``OTHERS``.
MAX_SENDERS = 64
#: Rejections of a sender in a round that have an event each.
MAX_EVENTS = 5
#: More rejections than this of one sender in a round are no accident.
FLOOD = 100
#: Names for messages without a readable sender, and for senders beyond ``MAX_SENDERS``.
UNKNOWN, OTHERS = "?", "?others"
#: Follows the name in a message where no signature proves it.
CLAIMED = ":claimed"
_MAX_REASON_LENGTH = 200


def sender(claimed: str, signer: str = "") -> str:
    """
    The name a message is counted under: ``<client>`` where a signature proves it, else ``<client>:claimed``.

    Args:
        claimed: The name in it; any text.
        signer: The client that has signed it; empty: none.
    """
    if signer:
        return signer
    return claimed + CLAIMED if identifiers.is_name(claimed) else UNKNOWN


def event(number: int, client: str, status: str, reason: str) -> UpdateRejected:
    """The event of one rejection. Args: ``client``: the name in the message, ``?`` without one."""
    return UpdateRejected(
        round=number, client=client, status=status, reason=reason[:_MAX_REASON_LENGTH]
    )


def total_event(number: int, who: str, refusals: Refusals) -> UpdatesRefused:
    """The event with the number of rejections of a sender."""
    return UpdatesRefused(
        round=number, client=who, count=refusals.count, reason=refusals.reason[:_MAX_REASON_LENGTH]
    )


class RejectionCounter:
    """
    Counts the rejections of one incarnation in its round.

    Args:
        store: Both servers.
        incarnation: The writer.
    """

    def __init__(self, store: Store, incarnation: Incarnation) -> None:
        self._store, self._incarnation = store, incarnation
        self._known = store.control.rejections.of_round(incarnation.run, incarnation.round)
        self._changed: set[str] = set()
        self._late: Counter[int] = Counter()
        self._events: list[Event] = []
        #: Sender -> the number in its last total event.
        self._totals: dict[str, int] = {}
        self._flushed_at = time.monotonic()

    def count(self, who: str, reason: str, status: str = "", number: int | None = None) -> None:
        """
        Count one message.

        Args:
            who: From ``sender``.
            status: Its verdict, if this count is the only record of it; empty: it has a receipt.
            number: The round in the message; None: the aggregator's.
        """
        if who not in self._known and len(self._known) >= MAX_SENDERS:
            who = OTHERS
        before = self._known.get(who, Refusals(0, ""))
        after = replace(before, count=before.count + 1, reason=reason[:_MAX_REASON_LENGTH])
        self._known[who] = after
        self._changed.add(who)
        if status and after.count <= MAX_EVENTS:
            of = self._incarnation.round if number is None else number
            self._events.append(event(of, who.removesuffix(CLAIMED), status, reason))
        if after.count == FLOOD:
            self._add_total(who)

    def count_late(self, number: int) -> None:
        """Count an update of a round whose keys are gone."""
        self._late[number] += 1

    def flush(self, force: bool = False) -> None:
        """Write the new counts and events, once per ``FLUSH_S``. Args: ``force``: now."""
        is_due = force or time.monotonic() - self._flushed_at >= FLUSH_S
        if not is_due or not (self._changed or self._late):
            return
        changed = {who: self._known[who] for who in sorted(self._changed)}
        owner = self._incarnation
        self._store.control.rejections.record(
            owner.run, owner.round, owner.fence, changed, self._late, self._events, owner.token
        )
        self._changed.clear()
        self._late.clear()
        self._events.clear()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        """Write everything, with a total for each sender that has rejections without an event."""
        for who, refusals in sorted(self._known.items()):
            if refusals.count > MAX_EVENTS and self._totals.get(who) != refusals.count:
                self._add_total(who)
        self.flush(force=True)

    def _add_total(self, who: str) -> None:
        refusals = self._known[who]
        self._totals[who] = refusals.count
        self._changed.add(who)
        self._events.append(total_event(self._incarnation.round, who, refusals))
