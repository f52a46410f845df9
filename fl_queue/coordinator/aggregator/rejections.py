"""
What a round refuses, counted by sender instead of written one by one: garbage must not cost us more than its sender.

An aggregator counts in memory and writes at most once a second; what one that is killed had not written
yet is missing. The first of each sender have an event, and the rest one that says how many.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fl_queue.protocol import identifiers
from fl_queue.protocol.records import Refusals
from fl_queue.store import Store

#: Longest time between two writes, seconds.
FLUSH_S = 1.0
#: Senders that are told apart in a round; all further ones are ``OTHERS``.
SENDERS = 64
#: Refusals of a sender in a round that have an event each.
TOLD = 5
#: More than so many of one sender in a round are no accident.
FLOOD = 100
#: Names of those who have none: elements that do not tell, and senders beyond ``SENDERS``.
UNKNOWN, OTHERS = "?", "?others"
#: After the name in an element, where nothing proves it.
CLAIMED = ":claimed"
_LONGEST_REASON = 200


def sender(claimed: str, signer: str = "") -> str:
    """
    Whose an element is counted as: ``<client>`` where its signature says so, else ``<client>:claimed``.

    Args:
        claimed: The name in it; any text.
        signer: Who has signed it.
    """
    if signer:
        return signer
    return claimed + CLAIMED if identifiers.is_name(claimed) else UNKNOWN


def event(number: int, client: str, status: str, reason: str) -> dict[str, Any]:
    """The event of one refused element. Args: ``client``: whose it says it is, ``?`` if it does not."""
    return {
        "event": "update_rejected",
        "round": number,
        "client": client,
        "status": status,
        "reason": reason[:_LONGEST_REASON],
    }


def sum_event(number: int, who: str, refusals: Refusals) -> dict[str, Any]:
    """The event that says how many elements of a sender were refused."""
    return {
        "event": "updates_refused",
        "round": number,
        "client": who,
        "count": refusals.count,
        "reason": refusals.reason[:_LONGEST_REASON],
    }


class RejectionCounter:
    """
    Counts what one incarnation refuses in its round.

    Args:
        fence: The incarnation's.
    """

    def __init__(self, store: Store, run: str, number: int, fence: int) -> None:
        self._store, self._run, self._number, self._fence = store, run, number, fence
        self._known = store.control.rejections.of_round(run, number)
        self._changed: set[str] = set()
        self._late: Counter[int] = Counter()
        self._events: list[Mapping[str, Any]] = []
        self._summed: dict[str, int] = {}
        self._flushed_at = time.monotonic()

    def count(self, who: str, reason: str, status: str = "", number: int = -1) -> None:
        """
        Count one element.

        Args:
            who: As ``sender`` says.
            status: Its verdict, if this is all that is written of it; empty: it has a receipt.
            number: The round it is of; by default ours.
        """
        if who not in self._known and len(self._known) >= SENDERS:
            who = OTHERS
        known = self._known.get(who, Refusals(0, ""))
        made = replace(known, count=known.count + 1, reason=reason[:_LONGEST_REASON])
        self._known[who] = made
        self._changed.add(who)
        if status and made.count <= TOLD:
            of = self._number if number < 0 else number
            self._events.append(event(of, who.removesuffix(CLAIMED), status, reason))
        if made.count == FLOOD:
            self._sum_up(who)

    def count_late(self, number: int) -> None:
        """Count an update of a round whose keys are gone."""
        self._late[number] += 1

    def flush(self, anyway: bool = False) -> None:
        """Write what has not been written, if it is time to. Args: ``anyway``: it is."""
        is_due = anyway or time.monotonic() - self._flushed_at >= FLUSH_S
        if not is_due or not (self._changed or self._late):
            return
        changed = {who: self._known[who] for who in sorted(self._changed)}
        self._store.control.rejections.record(
            self._run, self._number, self._fence, changed, self._late, self._events
        )
        self._changed.clear()
        self._late.clear()
        self._events.clear()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        """The round ends: say how many there were of those who were not told one by one."""
        for who, refusals in sorted(self._known.items()):
            if refusals.count > TOLD and self._summed.get(who) != refusals.count:
                self._sum_up(who)
        self.flush(anyway=True)

    def _sum_up(self, who: str) -> None:
        refusals = self._known[who]
        self._summed[who] = refusals.count
        self._changed.add(who)
        self._events.append(sum_event(self._number, who, refusals))
