"""
The store of the page: opened when it is needed, and anew after an outage.
"""

from __future__ import annotations

import threading
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

    @contextmanager
    def store(self) -> Iterator[Store]:
        """
        The store. After a failure it is opened again: private servers may be elsewhere by then.

        Raises:
            StoreUnavailable: Not reachable.
        """
        with self._lock:
            if self._store is None:
                self._store = self._open()
            current = self._store
        try:
            yield current
        except StoreUnavailable:
            with self._lock:
                # Not closed: other threads may be in the middle of it.
                if self._store is current:
                    self._store = None
            raise
