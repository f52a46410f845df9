"""
Whether a thread gets anywhere, as another one sees it: for a watchdog of work that may take hours.

A thread that computes uses the processor; one that waits for something again and again reports progress with
``beat``. One that does neither for long hangs: on a file system that does not answer, on a lock.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback

#: Less processor time than this is none, seconds.
_NOTHING_S = 0.01


class Pulse:
    """Of the thread that makes it."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._beats = 0
        self._seen = (0, self._used_s())
        self._seen_at = time.monotonic()

    def beat(self) -> None:
        """Record progress."""
        self._beats += 1

    def still_s(self) -> float:
        """Seconds without progress, as measured between calls."""
        beats, used_s = self._beats, self._used_s()
        if beats != self._seen[0] or used_s - self._seen[1] > _NOTHING_S:
            self._seen, self._seen_at = (beats, used_s), time.monotonic()
        return time.monotonic() - self._seen_at

    def where(self) -> str:
        """Innermost line of Python that it executes."""
        frame = sys._current_frames().get(self._thread)
        if frame is None:
            return "nowhere"
        at = traceback.extract_stack(frame)[-1]
        return f"{at.name}, line {at.lineno} of {at.filename}"

    def _used_s(self) -> float:
        """Processor time of the thread; of the whole process where the system does not measure threads."""
        if not hasattr(time, "pthread_getcpuclockid"):
            return time.process_time()
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread))
