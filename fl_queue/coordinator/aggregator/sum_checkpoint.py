"""The partial sum of an open round, as one incarnation of its aggregator loads and saves it."""

from __future__ import annotations

from fl_queue.coordinator.aggregator import job_requests
from fl_queue.coordinator.aggregator.open_round import OpenRound
from fl_queue.coordinator.aggregator.partial_sum import (
    PartialRoundState,
    PartialSumStore,
    ResumableSum,
)
from fl_queue.coordinator.aggregator.taken_list import TakenList
from fl_queue.errors import ContentMissing, MessageError, OwnershipLost
from fl_queue.protocol.header import chunk_count
from fl_queue.protocol.records import Verdict
from fl_queue.store import admission, keyspace


class SumCheckpoint:
    """
    Bound the updates that Redis holds for a round, and let another incarnation continue from the sum.

    Args:
        current: The round.
        taken: Messages of this incarnation; a saved sum takes the place of those on the list.
    """

    def __init__(self, current: OpenRound, taken: TakenList) -> None:
        self._store, self._run, self._redis = current.store, current.run, current.config.redis
        self._current, self._taken = current, taken
        self._sums = PartialSumStore(self._store, self._run)
        self._room = self._store.data.admission.room(self._redis.unmerged_bytes)

    def load(self, total: ResumableSum) -> PartialRoundState | None:
        """
        Add the partial sum of earlier incarnations to an empty sum.

        A sum that is lost, or is not signed by the operator, is removed, and all clients are asked again.

        Returns:
            The receipts and metrics of the updates in it; None: nothing was added.
        """
        number = self._current.number
        saved = self._sums.find(number, self._current.state.opening)
        if not saved:
            return None
        if self._sums.is_refused(saved):
            self._begin_anew()
            return None
        found = PartialRoundState.from_json(saved["progress"])
        # Before the sum is read: until then the healer would ask all clients again.
        self._store.control.receipts.restore(self._run, number, found.written)
        try:
            self._sums.load(saved, total)
        except (ContentMissing, MessageError):
            # The data server has lost it. Outboxes have the updates.
            self._sums.drop(number)
            self._begin_anew()
            return None
        self._remove_merged(found)
        return found

    def is_due(self, missing: int) -> bool:
        """
        Whether unmerged updates on the server, and those to come, exceed the room for them.

        Args:
            missing: Clients of the cohort without a receipt.
        """
        lying = self._taken.lying_bytes
        to_come = missing * self._taken.largest_bytes
        # Half: the other half is for updates on their way.
        return lying >= self._room // 2 and lying + to_come > self._room

    def save(self, total: ResumableSum, progress: PartialRoundState) -> None:
        """
        Put the sum on the server in place of the messages on the taken list.

        Raises:
            OwnershipLost: Another incarnation has taken over.
        """
        current = self._current
        progress.written = self._store.control.receipts.of_round(self._run, current.number)
        if not self._sums.save(
            current.incarnation,
            self._taken.count,
            total,
            progress,
            self._redis.chunk_bytes,
            current.state.opening,
        ):
            fence = current.incarnation.fence
            raise OwnershipLost(f"run {self._run}: incarnation {fence} was replaced")
        self._taken.forget(current.number)

    def _begin_anew(self) -> None:
        number = self._current.number
        self._store.control.receipts.forget(self._run, number)
        why = "the checkpointed sum of their updates cannot be used"
        job_requests.ask_all_again(self._store, self._run, number, why)

    def _remove_merged(self, found: PartialRoundState) -> None:
        """Remove the messages of updates in the sum: the writer may have been killed before it did."""
        merged = {
            who: item for who, item in found.receipts.items() if item.status == Verdict.received
        }
        for who, receipt in merged.items():
            if receipt.nbytes > self._redis.inline_bytes:
                count = chunk_count(receipt.nbytes, self._redis.chunk_bytes)
                blob = keyspace.update_blob(who, self._run, receipt.digest)
                self._store.data.chunks.drop(blob, count)
        permissions = (
            (who, admission.permission(receipt.token, receipt.nbytes))
            for who, receipt in merged.items()
        )
        self._store.data.admission.release(self._run, permissions, self._current.number)
