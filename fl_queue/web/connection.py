"""
The store of the page: opened when it is needed, and anew after an outage.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fl_queue.errors import StoreUnavailable
from fl_queue.store import Store


class Connection:
    """
    Args:
        open_store: Opens it; raises StoreUnavailable.
        state_dir: This machine's folder, for checkpoints.
    """

    def __init__(self, open_store: Callable[[], Store], state_dir: Path) -> None:
        self.state_dir = state_dir
        self._open = open_store
        self._store: Store | None = None
        self._lock = threading.Lock()
        self._tried_at, self._trouble = 0.0, StoreUnavailable("", "")

    @contextmanager
    def store(self) -> Iterator[Store]:
        """
        The store. After a failure it is opened again: private servers may be elsewhere by then.

        Raises:
            StoreUnavailable: Not reachable.
        """
        current = self._opened()
        try:
            yield current
        except StoreUnavailable:
            self._forget(current)
            raise
        if not current.is_whole:
            self._forget(current)

    def _forget(self, store: Store) -> None:
        with self._lock:
            # Not closed: other threads may be in the middle of it.
            if self._store is store:
                self._store = None

    def _opened(self) -> Store:
        asked_at = time.monotonic()
        with self._lock:
            if self._store is not None:
                return self._store
            if self._tried_at > asked_at:
                # Somebody tried while we waited: a silent server holds up each thread once, not in turn.
                raise self._same()
            try:
                self._store = self._open()
            except StoreUnavailable as exc:
                self._tried_at, self._trouble = time.monotonic(), exc
                raise
            return self._store

    def _same(self) -> StoreUnavailable:
        return StoreUnavailable(self._trouble.url, self._trouble.reason, self._trouble.trouble)
