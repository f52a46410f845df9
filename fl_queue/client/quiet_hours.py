"""Quiet hours: spans of a site's day, by its own clock, in which it does not train. No files, no Redis."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from fl_queue.errors import ConfigError

OPTION = "--quiet-hours"
_SPAN = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")
_DAY = 24 * 60


@dataclass(frozen=True)
class Span:
    """
    A part of every day.

    Args:
        start: Its first minute, counted from midnight.
        end: The minute after its last; not after ``start``: it goes over midnight.
    """

    start: int
    end: int

    def holds(self, minute: int) -> bool:
        """Whether a minute of the day, 0 to 1439, is in it."""
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    def __str__(self) -> str:
        return f"{_clock(self.start)}-{_clock(self.end)}"


def parse(text: str) -> Span:
    """
    A span as text: ``08:00-18:00``, or ``22:00-06:00`` over midnight.

    Raises:
        ConfigError: It is none.
    """
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise ConfigError(OPTION, f"{text!r} is not HH:MM-HH:MM; write 08:00-18:00")
    hours, minutes = found.group(1, 3), found.group(2, 4)
    start, end = (60 * int(h) + int(m) for h, m in zip(hours, minutes, strict=True))
    if any(int(minute) > 59 for minute in minutes) or start >= _DAY or end > _DAY:
        raise ConfigError(OPTION, f"{text!r} has a time that no clock shows; use 00:00 to 24:00")
    if start == end:
        raise ConfigError(OPTION, f"{text!r} is no time at all; 00:00-24:00 is the whole day")
    return Span(start, end)


def quiet(spans: Iterable[str], now: datetime) -> Span | None:
    """
    The span that a moment of the site's own time is in; None when it is in none.

    Raises:
        ConfigError: One of them is no span.
    """
    minute = 60 * now.hour + now.minute
    return next((span for span in map(parse, spans) if span.holds(minute)), None)


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"
