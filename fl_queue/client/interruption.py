"""
Interrupt a pool process's job once its round has ended.

A job of a data owner is a process of its own, which its worker kills. A pool's job runs in the worker process,
which a signal interrupts, and only while a client is being trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fl_queue.store.jobs.rq_types import TimedOut


class RoundGivenUp(TimedOut):  # type: ignore[misc,unused-ignore]
    """Raised in a pool process's job whose round has ended, at any place of its training."""


class _Interruption:
    """State of this process's signal handler. Args: ``is_allowed``: a client is being trained."""

    is_allowed = False


@contextmanager
def interruptible() -> Iterator[None]:
    """Within this block of a pool process's job, RoundGivenUp is raised once its round has ended."""
    _Interruption.is_allowed = True
    try:
        yield
    finally:
        _Interruption.is_allowed = False


def on_signal(signum: int, frame: FrameType | None) -> None:
    """
    Signal handler of a pool process.

    Raises:
        RoundGivenUp: The process is within ``interruptible``.
    """
    if _Interruption.is_allowed:
        raise RoundGivenUp("the round has ended")
