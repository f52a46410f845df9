"""
One incarnation's taken list, as far as it has been looked at: what stays until its round has ended, and what goes.

What is merged stays. What is refused goes at once, with its chunks, so that garbage takes no room:
its receipt is on the control server by then, or it has none.
"""

from __future__ import annotations

from fl_queue.common import failpoints
from fl_queue.coordinator.aggregator import late_updates
from fl_queue.errors import OwnershipLost
from fl_queue.protocol.header import Header
from fl_queue.store import Store, admission


class TakenList:
    """
    Args:
        fence, token: The incarnation's.
    """

    def __init__(self, store: Store, run: str, fence: int, token: str) -> None:
        self._store, self._run, self._fence, self._token = store, run, fence, token
        #: Elements on the list that were looked at; they are its first ones.
        self.count = 0
        #: Of those that stay.
        self.headers: list[Header] = []
        #: Bytes of their bodies, and of the largest of these.
        self.lying_bytes = self.largest_bytes = 0
        #: Places of those that go, and the headers of those whose sender is who it says.
        self._refused: list[int] = []
        self._leaving: list[Header] = []

    def keep(self, header: Header) -> None:
        """The next element stays."""
        self.headers.append(header)
        self.lying_bytes += header.body_bytes
        self.largest_bytes = max(self.largest_bytes, header.body_bytes)
        self.count += 1

    def refuse(self, header: Header | None) -> None:
        """The next element goes. Args: ``header``: None where its sender may be another: nothing it names is touched."""
        self._refused.append(self.count)
        self.count += 1
        if header is not None:
            self._leaving.append(header)

    def settle(self) -> None:
        """
        Remove what was refused; all elements on the list have been looked at.

        Raises:
            OwnershipLost: Another incarnation has taken over.
        """
        if not self._refused:
            return
        # Elements last: killed before that, whoever gets them next finds what else to remove.
        self._drop_leaving()
        failpoints.failpoint("update.refused")
        places = self._refused
        if not self._store.data.taken.refuse(
            self._run, self._fence, self._token, self.count, places
        ):
            raise OwnershipLost(f"run {self._run}: incarnation {self._fence} was replaced")
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
        """All looked-at elements are off the list, and in the checkpointed sum of a round: their chunks go, too."""
        self.count = 0
        self._refused = []
        self.drop_chunks(number)

    def drop_chunks(self, number: int = 0) -> None:
        """
        Remove the chunks of all elements that were looked at, and their permissions.

        Args:
            number: The round, if it goes on: the clients of those that stayed have had their turn.
        """
        self._drop_leaving()
        for header in self.headers:
            late_updates.drop_chunks(self._store, self._run, header)
        self._dismiss(self.headers, number)
        self.headers.clear()
        self.lying_bytes = self.largest_bytes = 0

    def discard(self) -> None:
        """The round has ended: remove the elements."""
        self._store.data.taken.discard(self._run, self._fence, self._token, self.count)

    def _dismiss(self, headers: list[Header], number: int = 0) -> None:
        permissions = [(h.client, admission.permission(h.token, h.body_bytes)) for h in headers]
        self._store.data.admission.release(self._run, permissions, number)
