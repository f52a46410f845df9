"""The page's connection to Redis: opened on first use, and again after an outage."""

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
    A store that is opened on first use, and again after an outage.

    Args:
        open_store: Opens the store; raises StoreUnavailable.
        state_dir: Folder of this machine's state, for checkpoints.
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
        Use the store. After a failure it is opened again: private servers may have moved.

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
            # It is not closed: other threads may be using it.
            if self._store is store:
                self._store = None

    def _opened(self) -> Store:
        asked_at = time.monotonic()
        with self._lock:
            if self._store is not None:
                return self._store
            if self._tried_at > asked_at:
                # Another thread has failed meanwhile: a silent server must not delay the threads in turn.
                raise self._same()
            try:
                self._store = self._open()
            except StoreUnavailable as exc:
                self._tried_at, self._trouble = time.monotonic(), exc
                raise
            return self._store

    def _same(self) -> StoreUnavailable:
        return StoreUnavailable(self._trouble.url, self._trouble.reason, self._trouble.trouble)
