"""
Processes that a job has started: found by descent, and ended with the job.

A process group is not enough: a process that calls ``setsid`` (``start_new_session=True``, torchrun, a daemon)
leaves it. This process adopts orphans, so each process below it becomes its child once its parents have ended.
It needs no privileges.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from operator import attrgetter
from pathlib import Path

from fl_queue.common import processes

log = logging.getLogger(__name__)

#: Processes that start others as fast as they are ended are left alone after so long, with a line in the log.
MAX_END_S = 10.0
_PAUSE_S = 0.01
#: The process that compiles for ``torch.compile``: started once, used by later jobs of the same process.
_COMPILER = b"torch._inductor.compile_worker"
#: Module -> where it has the pid of a process that serves all others.
_OF_PYTHON = {
    "multiprocessing.resource_tracker": "_resource_tracker._pid",
    "multiprocessing.forkserver": "_forkserver._forkserver_pid",
}


class Offspring:
    """
    The processes that are started below this one from now on.

    Children that are there already are left alone (the scheduler of a plain ``rq worker``).

    Args:
        adopt: Whether this process becomes the parent of those whose own parents have ended; else the nearest
            process above it that has done so.
    """

    def __init__(self, adopt: bool = True) -> None:
        if adopt:
            processes.adopt_orphans()
        self._before = processes.children()

    def reap(self, spare: Iterable[int] = ()) -> None:
        """Forget processes that have ended by themselves. Args: ``spare``: pids that other code waits for."""
        for pid in self._there(spare):
            _wait(pid)

    def end(self, spare: Iterable[int] = ()) -> int:
        """
        End all of them, and the processes that they have started.

        Only children are ended: their pids cannot be used again before they have been waited for. Their own children
        become children of this process then, and are ended in the next round.

        Args:
            spare: Pids of children that stay.

        Returns:
            How many were ended that had not ended by themselves.
        """
        spared, ended = set(spare), 0
        until = time.monotonic() + MAX_END_S
        while left := self._there(spared):
            for pid in left:
                if _wait(pid):
                    continue
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                ended += 1
            if time.monotonic() > until:
                log.error("processes that a job has started do not end: %s", sorted(left))
                return ended
            time.sleep(_PAUSE_S)
        return ended

    def _there(self, spared: Iterable[int]) -> set[int]:
        return processes.children() - self._before - set(spared)


def helpers() -> set[int]:
    """Children of this process that serve it and not one job: Python's own, and torch's compiler."""
    found = set()
    for module, place in _OF_PYTHON.items():
        if module in sys.modules:
            found.add(attrgetter(place)(sys.modules[module]))
    for pid in processes.children():
        with suppress(OSError):
            if _COMPILER in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return {pid for pid in found if pid is not None}


def _wait(pid: int) -> bool:
    """Whether a child had ended, and is forgotten now."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True  # Other code in this process has waited for it.
