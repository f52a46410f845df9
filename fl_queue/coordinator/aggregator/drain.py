"""
Decide when the results list counts as drained, although messages keep coming.

A round must not close over updates that had come in time. Once it is due, the messages that wait at that
moment are processed first; those that come later are late. No Redis here.
"""

from __future__ import annotations

import time

#: A busy aggregator checks so often that the round is due: each check writes to disk.
CHECK_S = 0.5
#: With the quorum in, no longer than this is spent on messages that are refused.
MAX_WASTED_S = 3.0


class QueueDrain:
    """Counts down the messages that waited when a round was due."""

    def __init__(self) -> None:
        self._left: int | None = None
        self._wasted_s = 0.0
        self._checked_at = time.monotonic()

    @property
    def has_begun(self) -> bool:
        """Whether the waiting messages of a round that is due are being processed."""
        return self._left is not None

    def should_check(self) -> bool:
        """Whether it is time to check that the round is due."""
        now = time.monotonic()
        if self.has_begun or now - self._checked_at < CHECK_S:
            return False
        self._checked_at = now
        return True

    def begin(self, waiting: int) -> None:
        """Start the count: the round is due. Args: ``waiting``: messages in the results list."""
        self._left, self._wasted_s = waiting, 0.0

    def record_processed(self, count: int, wasted_s: float) -> None:
        """
        Count messages that were processed, the oldest first.

        Args:
            wasted_s: Seconds spent on those that were refused.
        """
        if self._left is not None:
            self._left -= count
            self._wasted_s += wasted_s

    def is_over(self, has_quorum: bool) -> bool:
        """Whether all messages that waited are processed; with the quorum in, also after ``MAX_WASTED_S``."""
        if self._left is None:
            return False
        return self._left <= 0 or (has_quorum and self._wasted_s > MAX_WASTED_S)

    def stop(self) -> None:
        """Forget the count: the round is not due."""
        self._left = None
        self._checked_at = time.monotonic()
