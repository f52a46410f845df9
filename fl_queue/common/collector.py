"""
Python's cyclic garbage collector while a process imports what it needs, and while it ends.

Importing makes hundreds of thousands of objects and no garbage. The collector would look at all of them many times,
and once more when the interpreter ends, which is a quarter of the processor time of a short command.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


def start_process() -> None:
    """Pause the collector until ``started``; in a process that runs nothing but our own entry point."""
    gc.disable()
    leave_at_exit()


def started() -> None:
    """Resume the collector; it never looks again at what has been imported until now."""
    gc.freeze()
    gc.enable()


def leave_at_exit() -> None:
    """Collect nothing when the interpreter ends: the system takes back all memory at once."""
    atexit.register(gc.freeze)


@contextmanager
def paused() -> Iterator[None]:
    """Pause the collector around imports; also in a process of a user's own."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
