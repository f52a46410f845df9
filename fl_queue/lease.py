"""
An aggregator incarnation's ownership of its taken list, kept alive by a thread.
"""

from __future__ import annotations

import threading
from types import TracebackType

from fl_queue.errors import OwnershipLost, StoreUnavailable
from fl_queue.store import Store

EXTEND_S = 1.5


class Lease:
    """Extends an incarnation's lease from a thread, so that a long merge does not lose it."""

    def __init__(self, store: Store, run: str, fence: int, token: str) -> None:
        self._store, self._run, self._fence, self._token = store, run, fence, token
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{run}-{fence}", daemon=True)

    def __enter__(self) -> Lease:
        self._store.data.own(self._run, self._fence, self._token)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Raises OwnershipLost once the lease could not be extended."""
        if self._lost.is_set():
            raise OwnershipLost(
                f"run {self._run}: incarnation {self._fence} was replaced, or the data server restarted"
            )

    def _keep(self) -> None:
        while not self._stop.wait(EXTEND_S):
            try:
                self._store.data.extend(self._run, self._fence, self._token)
            except (OwnershipLost, StoreUnavailable):
                self._lost.set()
                return
