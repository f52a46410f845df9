"""Outages of Redis while a command follows a run: it waits, and gives up in the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from fl_queue.errors import StoreUnavailable, Trouble

Result = TypeVar("Result")

#: Failovers take a minute or two, a machine that starts again five.
MAX_S = 600.0
RETRY_S = 1.0
#: No waiting mends these.
_LASTING = (Trouble.wrong_mode, Trouble.not_allowed)


class Outages:
    """
    Waits for a server to come back.

    Args:
        report: Called once with a line when a server cannot be used, and once when it can again.
        longest_s: After so long without it, waiting ends.
    """

    def __init__(self, report: Callable[[str], None], longest_s: float = MAX_S) -> None:
        self._report, self._longest_s = report, longest_s
        self._since: float | None = None

    def wait(self, trouble: StoreUnavailable) -> None:
        """
        Wait a moment before the next try.

        Raises:
            StoreUnavailable: It has lasted too long, or will not pass.
        """
        now = time.monotonic()
        if self._since is None:
            if trouble.trouble in _LASTING:
                raise trouble
            self._since = now
            self._report(f"{trouble}; trying on for {self._longest_s / 60:.0f} minutes")
        elif now - self._since >= self._longest_s:
            reason = f"{trouble.reason} (for {now - self._since:.0f} s; giving up)"
            raise StoreUnavailable(trouble.url, reason, trouble.trouble) from trouble
        time.sleep(RETRY_S)

    def over(self) -> None:
        """The server answers."""
        if self._since is not None:
            self._since = None
            self._report("Redis is back")


def ride_out(
    what: Callable[[], Result], report: Callable[[str], None], longest_s: float = MAX_S
) -> Result:
    """
    Do something that may be repeated, until Redis lets it be done.

    Raises:
        StoreUnavailable: As ``Outages.wait``.
    """
    outages = Outages(report, longest_s)
    while True:
        try:
            found = what()
        except StoreUnavailable as exc:
            outages.wait(exc)
        else:
            outages.over()
            return found
