"""
What is written of the elements an aggregator looks at: receipts, and counts of what it refuses.

A receipt is for those who are known to the run, and for the first of a kind only: anybody may make up
names, and send the same again and again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from fl_queue.aggregation import group_sum
from fl_queue.coordinator.aggregator import rejections
from fl_queue.coordinator.aggregator.late_updates import receipt_of, was_merged
from fl_queue.coordinator.aggregator.rejections import RejectionCounter
from fl_queue.errors import ForgedMessage
from fl_queue.protocol.header import Header
from fl_queue.protocol.records import Receipt, Verdict
from fl_queue.store import RoundState, Store

#: Receipts of a client and status in a round: in the client's own field, and in that of the status.
_FIELDS = 2


class ReceiptLog:
    """
    Those of one incarnation in its round.

    Args:
        fence: The incarnation's.
    """

    def __init__(self, store: Store, run: str, current: RoundState, fence: int) -> None:
        self._store, self._run, self._number, self._fence = store, run, current.number, fence
        self.rejected = RejectionCounter(store, run, current.number, fence)
        self.cohort = frozenset(current.cohort)
        state = store.control.runs.get(run)
        self._people = {*current.cohort, *(state.population if state is not None else ())}
        self._told: Counter[tuple[int, str, str]] = Counter()
        #: Ended round -> its cohort; None when its keys are gone.
        self._ended: dict[int, tuple[str, ...] | None] = {}

    def know(self, client: str) -> None:
        """An enrolled client: its receipts are written, though it was never in the run."""
        self._people.add(client)

    def follow(self, cohort: Collection[str]) -> None:
        """Clients have joined our round."""
        self.cohort = frozenset(cohort)
        self._people |= self.cohort

    def is_news(self, client: str, status: str, number: int = -1) -> bool:
        """Whether a receipt of this kind may be news to the control server: asking it takes its time."""
        key = (self._number if number < 0 else number, client, status)
        self._told[key] += 1
        return self._told[key] <= _FIELDS

    def write(self, client: str, receipt: Receipt, who: str, is_first: bool) -> None:
        """
        Write what became of an element of our round.

        Args:
            who: As whose it is counted when it is refused; see ``rejections.sender``.
            is_first: Nothing of this client has been answered yet.
        """
        has_one = client in self._people
        if not receipt.is_in and not (receipt.status == "failed" and is_first):
            self.rejected.count(who, receipt.reason, "" if has_one else receipt.status)
        if has_one and (receipt.is_in or self.is_news(client, receipt.status)):
            self._store.control.receipts.add(self._run, self._number, client, receipt, self._fence)

    def write_late(
        self, header: Header, who: str, key: str, status: Verdict = "late", reason: str = ""
    ) -> None:
        """
        The same of an element whose round has ended; none of one that a later round has merged.

        Args:
            key: Fingerprint of the key that signed it.
            status, reason: Another verdict than that its round had ended.
        """
        if was_merged(self._store, self._run, header):
            self.rejected.count(who, "it was merged already", "", header.round)
            return
        number = header.round
        if number not in self._ended:
            ended = self._store.control.rounds.get(self._run, number)
            self._ended[number] = None if ended is None else ended.cohort
        cohort = self._ended[number]
        reason = reason or f"round {number} had ended"
        told = False
        for own, _, _ in group_sum.headers(header):
            if cohort is None:
                self.rejected.count_late(number)
            elif own.client in cohort:
                told = True
                if self.is_news(own.client, status, number):
                    receipt = receipt_of(own, status, reason, key)
                    self._store.control.receipts.add(self._run, number, own.client, receipt, None)
        self.rejected.count(who, reason, "" if told else status, number)

    def write_forged(self, forged: ForgedMessage) -> None:
        """The same of what came in a client's name and not from it; the client itself is waited for."""
        claimed, reason = forged.claimed, forged.reason
        has_one = claimed in self.cohort
        who = rejections.sender(claimed, forged.signer)
        self.rejected.count(who, reason, "" if has_one else "forged")
        if has_one and self.is_news(claimed, "forged"):
            receipt = Receipt("forged", reason)
            self._store.control.receipts.add(self._run, self._number, claimed, receipt, self._fence)
