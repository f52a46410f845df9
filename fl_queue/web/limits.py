"""
Limits on wrong tokens and open pages, for one visitor and for all.

The right token is never refused, also after many wrong ones: an attacker could lock users out otherwise.
The length of a token (``tokens``) protects it from guessing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Scope

log = logging.getLogger(__name__)

#: Wrong tokens without consequences, from one address and from all.
FREE, FREE_IN_TOTAL = 5, 50
#: Earlier wrong tokens are forgotten after this time without another.
FORGOTTEN_S = 900.0
MAX_PAUSE_S = 60.0
#: The longest delay of an answer, and how many are delayed at a time; others are sent at once.
MAX_HOLD_S, HELD = 2.0, 32
_ADDRESSES = 1000
#: Open pages, each of which has a connection: in total, and of one visitor.
STREAMS, STREAMS_OF_ONE = 200, 20


@dataclass
class _Wrong:
    count: int = 0
    at: float = -math.inf

    def add(self, now: float) -> int:
        self.count = self.count + 1 if now - self.at < FORGOTTEN_S else 1
        self.at = now
        return self.count


class Logins:
    """Counts of wrong tokens, by address and in total. Args: ``clock``, ``sleep``: for tests."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._all, self._by_address = _Wrong(), dict[str, _Wrong]()
        self._held = 0

    async def wrong(self, address: str) -> int:
        """
        Count a wrong token, and hold its answer.

        Returns:
            Seconds after which to try again; 0: at once.
        """
        now = self._clock()
        one = self._by_address.pop(address, None) or _Wrong()
        self._by_address[address] = one  # The newest is last.
        if len(self._by_address) > _ADDRESSES:
            del self._by_address[next(iter(self._by_address))]
        count, total = one.add(now), self._all.add(now)
        pause = max(_pause(count - FREE), _pause(total - FREE_IN_TOTAL))
        if pause and count & (count - 1) == 0:
            log.warning("%d wrong tokens from %s, %d in all", count, address or "a proxy", total)
        if pause and self._held < HELD:
            self._held += 1
            try:
                await self._sleep(min(pause, MAX_HOLD_S))
            finally:
                self._held -= 1
        return math.ceil(pause)


class Streams:
    """Counts of open event streams, by visitor."""

    def __init__(self, at_most: int = STREAMS, of_one: int = STREAMS_OF_ONE) -> None:
        self.at_most, self.of_one = at_most, of_one
        self._open: Counter[str] = Counter()

    def refusal(self, who: str) -> tuple[int, str] | None:
        """Find the status and message of a refusal; None if one more stream may be opened."""
        if self._open[who] >= self.of_one:
            return 429, f"{self.of_one} pages of this session are open; close one"
        if self._open.total() >= self.at_most:
            return 503, f"{self.at_most} pages are open, as many as this server takes; try later"
        return None

    def enter(self, who: str) -> None:
        """Count a stream that was opened."""
        self._open[who] += 1

    def leave(self, who: str) -> None:
        """Count a stream that was closed."""
        self._open[who] -= 1
        if not self._open[who]:
            del self._open[who]


def address_of(scope: Scope) -> str:
    """
    Find the address of a request's sender, also behind a proxy on this machine.

    The proxy adds the last entry of the header; earlier ones come from the sender, and may be false.
    """
    peer = str(scope["client"][0]) if scope.get("client") else ""
    if peer and not is_loopback(peer):
        return peer
    forwarded = Headers(scope=scope).get("x-forwarded-for", "").rpartition(",")[2].strip()
    return forwarded[:64] or peer


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _pause(beyond: int) -> float:
    """Compute the pause in seconds after a number of wrong tokens beyond the free ones."""
    return min(0.25 * 2 ** min(beyond, 20), MAX_PAUSE_S) if beyond > 0 else 0.0
