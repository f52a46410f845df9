"""
Write receipts and rejection counts for one aggregator incarnation.

Receipts are only for clients that the run knows, and for the first messages of a kind: any process may make
up names, and send the same message again and again.
"""

from __future__ import annotations

from collections import Counter

from fl_queue.aggregation import group_sum
from fl_queue.common.safe_json import printable
from fl_queue.coordinator.aggregator import rejections
from fl_queue.coordinator.aggregator.late_updates import was_merged
from fl_queue.coordinator.aggregator.open_round import OpenRound
from fl_queue.coordinator.aggregator.rejections import RejectionCounter
from fl_queue.coordinator.aggregator.verdicts import make_receipt
from fl_queue.errors import ForgedMessage
from fl_queue.protocol.header import Header
from fl_queue.protocol.records import Receipt, Verdict
from fl_queue.store.control.stages import StageReceipt

#: Receipts of a client and status in a round: in the client's field, and in that of the status.
_FIELDS = 2


class ReceiptLog:
    """
    The receipts that one incarnation writes.

    Args:
        current: Its round.
    """

    def __init__(self, current: OpenRound) -> None:
        self._current, self._store, self._run = current, current.store, current.run
        self._number, self._claim = current.number, current.incarnation
        self.rejections = RejectionCounter(current.store, current.incarnation)
        state = self._store.control.runs.get(self._run)
        #: Clients outside the cohort that have receipts, too.
        self._known_clients = set(state.population if state is not None else ())
        self._written: Counter[tuple[int, str, str]] = Counter()
        #: Ended round -> its cohort; None when its keys are gone.
        self._ended: dict[int, tuple[str, ...] | None] = {}

    def add_known_client(self, client: str) -> None:
        """Write receipts of an enrolled client, too, though it was never in the run."""
        self._known_clients.add(client)

    def should_write(self, client: str, status: str, number: int | None = None) -> bool:
        """Whether a receipt may be new to the control server; a further one of the same kind is not sent."""
        key = (self._number if number is None else number, client, status)
        self._written[key] += 1
        return self._written[key] <= _FIELDS

    def write(self, client: str, receipt: Receipt, who: str, is_first: bool) -> None:
        """
        Write the receipt of a message of the aggregator's round.

        Args:
            who: The sender that a rejection is counted for; see ``rejections.sender``.
            is_first: Whether no message of this client has been processed yet.
        """
        is_known = client in self._current.cohort or client in self._known_clients
        if not receipt.is_in and not (receipt.status == Verdict.failed and is_first):
            self.rejections.count(who, receipt.reason, "" if is_known else receipt.status)
        if is_known and (receipt.is_in or self.should_write(client, receipt.status)):
            self._write(client, receipt)

    def write_late(
        self, header: Header, who: str, key: str, status: Verdict = Verdict.late, reason: str = ""
    ) -> None:
        """
        Write the receipts of a message whose round has ended; none if a later round has merged it.

        Args:
            who: As in ``write``.
            key: Fingerprint of the key that signed it.
            status: The verdict.
            reason: Why; by default that its round had ended.
        """
        if was_merged(self._store, self._run, header):
            self.rejections.count(who, "it was merged already", "", header.round)
            return
        number = header.round
        cohort = self._cohort_of_ended(number)
        reason = reason or f"round {number} had ended"
        has_receipt = False
        for own, _, _ in group_sum.headers(header):
            if cohort is None:
                self.rejections.count_late(number)
            elif own.client in cohort:
                has_receipt = True
                if self.should_write(own.client, status, number):
                    receipt = make_receipt(own, status, reason, key)
                    self._store.control.receipts.add(self._run, number, own.client, receipt, None)
        self.rejections.count(who, reason, "" if has_receipt else status, number)

    def write_stage(self, header: Header, status: Verdict, reason: str, who: str) -> None:
        """
        Write the verdict on a message of a stage of a secure round, beside updates.

        Args:
            who: As in ``write``.
        """
        is_in, client = status == Verdict.received, header.client
        kind = "unmask" if header.kind == "failure" else header.kind
        if not is_in and status != Verdict.failed:
            self.rejections.count(who, reason, status)
        # What is in, or has failed for good, is not replaced by a message that came once more.
        is_news = status in (Verdict.received, Verdict.failed, Verdict.late)
        if (
            client in self._current.cohort
            and is_news
            and self.should_write(f"{client}:{kind}", status)
        ):
            receipt = StageReceipt(status, printable(reason))
            self._store.control.stages.add(self._run, self._number, client, kind, receipt)

    def write_forged(self, forged: ForgedMessage) -> None:
        """Write that a message in a client's name was not from it; the round still waits for the client."""
        claimed, reason = forged.claimed, forged.reason
        has_receipt = claimed in self._current.cohort
        who = rejections.sender(claimed, forged.signer)
        self.rejections.count(who, reason, "" if has_receipt else Verdict.forged)
        if has_receipt and self.should_write(claimed, Verdict.forged):
            self._write(claimed, Receipt(Verdict.forged, reason))

    def write_group(self, group: str, receipts: dict[str, Receipt]) -> None:
        """Write the receipts of a sum of virtual clients, all at once."""
        if receipts:
            self._store.control.receipts.add_many(
                self._run, self._number, receipts, self._claim.fence, self._claim.token, group
            )

    def _write(self, client: str, receipt: Receipt) -> None:
        """Write a receipt of the aggregator's own round."""
        self._store.control.receipts.add(
            self._run, self._number, client, receipt, self._claim.fence, self._claim.token
        )

    def _cohort_of_ended(self, number: int) -> tuple[str, ...] | None:
        if number not in self._ended:
            ended = self._store.control.rounds.get(self._run, number)
            self._ended[number] = None if ended is None else ended.cohort
        return self._ended[number]
