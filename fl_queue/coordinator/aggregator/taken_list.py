"""
Messages that one aggregator incarnation has taken: merged ones stay until the round ends.

Refused ones are removed at once, with their chunks, so that garbage takes no room: their receipt is on the
control server by then, or they have none.
"""

from __future__ import annotations

from fl_queue.common import failpoints
from fl_queue.coordinator.aggregator import late_updates
from fl_queue.coordinator.aggregator.partial_sum import PartialSumStore
from fl_queue.errors import OwnershipLost
from fl_queue.protocol.header import Header
from fl_queue.store import Incarnation, Store, admission


class TakenList:
    """
    The taken list of one incarnation, as far as its messages are processed.

    Args:
        store: Both servers.
        incarnation: The owner of the list.
    """

    def __init__(self, store: Store, incarnation: Incarnation) -> None:
        self._store, self._incarnation = store, incarnation
        self._run = incarnation.run
        #: Processed messages on the list; they are its first ones.
        self.count = 0
        #: Headers of those that stay.
        self.headers: list[Header] = []
        #: Bytes of the bodies of those that stay, and of the largest of them.
        self.lying_bytes = self.largest_bytes = 0
        #: Positions of refused messages, and headers of those whose chunks are removed with them.
        self._refused: list[int] = []
        self._leaving: list[Header] = []

    def keep(self, header: Header) -> None:
        """Keep the next message on the list."""
        self.headers.append(header)
        self.lying_bytes += header.body_bytes
        self.largest_bytes = max(self.largest_bytes, header.body_bytes)
        self.count += 1

    def refuse(self, header: Header) -> None:
        """Mark the next message to be removed with its chunks."""
        self._leaving.append(header)
        self.refuse_without_chunks()

    def refuse_without_chunks(self) -> None:
        """Mark the next message to be removed; chunks it names stay, as they may be another client's."""
        self._refused.append(self.count)
        self.count += 1

    def settle(self) -> None:
        """
        Remove the refused messages; all messages on the list are processed.

        Raises:
            OwnershipLost: Another incarnation has taken over.
        """
        if not self._refused:
            return
        # Messages last: after a kill in between, the next owner finds in them what else to remove.
        self._drop_leaving()
        failpoints.failpoint("update.refused")
        places, owner = self._refused, self._incarnation
        if not self._store.data.taken.refuse(
            self._run, owner.fence, owner.token, self.count, places
        ):
            raise OwnershipLost(f"run {self._run}: incarnation {owner.fence} was replaced")
        failpoints.failpoint("refused.removed")
        self.count -= len(places)
        self._refused = []

    def _drop_leaving(self) -> None:
        if not self._leaving:
            return
        # The same update may have been pushed twice, and one of the two stays.
        blobs = {(header.client, header.body_digest) for header in self.headers}
        tokens = {(header.client, header.token) for header in self.headers}
        for header in self._leaving:
            if (header.client, header.body_digest) not in blobs:
                late_updates.drop_chunks(self._store, self._run, header)
        self._dismiss([h for h in self._leaving if (h.client, h.token) not in tokens])
        self._leaving = []

    def forget(self, number: int) -> None:
        """Drop the chunks of all processed messages: a script has removed them, and the sum has them."""
        self.count = 0
        self._refused = []
        self.drop_chunks(number)

    def drop_chunks(self, number: int = 0) -> None:
        """
        Remove the chunks of all processed messages, and their permissions to send.

        Args:
            number: The round, if it goes on: the clients whose updates stayed have had their turn.
        """
        self._drop_leaving()
        for header in self.headers:
            late_updates.drop_chunks(self._store, self._run, header)
        self._dismiss(self.headers, number)
        self.headers.clear()
        self.lying_bytes = self.largest_bytes = 0

    def clean_up(self) -> None:
        """Remove everything of a round that has ended: messages, chunks, turns, partial sum."""
        # Messages last: after a kill in between, the next owner finds in them what else to remove.
        self.drop_chunks()
        self._store.data.admission.forget_turns(self._run, self._incarnation.round)
        PartialSumStore(self._store, self._run).drop(self._incarnation.round)
        self.discard()

    def discard(self) -> None:
        """Remove the messages of a round that has ended."""
        owner = self._incarnation
        self._store.data.taken.discard(self._run, owner.fence, owner.token, self.count)

    def _dismiss(self, headers: list[Header], number: int = 0) -> None:
        permissions = [(h.client, admission.permission(h.token, h.body_bytes)) for h in headers]
        self._store.data.admission.release(self._run, permissions, number)
