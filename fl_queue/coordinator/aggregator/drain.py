"""
When the results list counts as empty, though somebody goes on pushing.

A round must not close over updates that had come in time. So once it would close but for what still
waits, what waits at that moment is looked at, and what comes later is late. No Redis here.
"""

from __future__ import annotations

import time

#: A busy aggregator asks so often whether the round is due: asking writes to disk.
ASKED_S = 0.5
#: With the quorum in, no longer than this is spent on garbage that had come before the round was due.
LONGEST_S = 3.0


class QueueDrain:
    """Counts down the elements that waited when a round was due."""

    def __init__(self) -> None:
        self._left: int | None = None
        self._wasted_s = 0.0
        self._asked = time.monotonic()

    @property
    def has_begun(self) -> bool:
        return self._left is not None

    def is_to_begin(self) -> bool:
        """Whether it is time to see if the round is due."""
        now = time.monotonic()
        if self.has_begun or now - self._asked < ASKED_S:
            return False
        self._asked = now
        return True

    def begin(self, waiting: int) -> None:
        """The round is due. Args: ``waiting``: elements in the results list."""
        self._left, self._wasted_s = waiting, 0.0

    def looked_at(self, count: int, wasted_s: float) -> None:
        """
        So many more elements were looked at, the oldest first.

        Args:
            wasted_s: How long that took with those that were refused.
        """
        if self._left is not None:
            self._left -= count
            self._wasted_s += wasted_s

    def is_over(self, has_quorum: bool) -> bool:
        """Whether all that waited then has been looked at; with the quorum in, whether enough has."""
        if self._left is None:
            return False
        return self._left <= 0 or (has_quorum and self._wasted_s > LONGEST_S)

    def stop(self) -> None:
        """The round is not due."""
        self._left = None
        self._asked = time.monotonic()
