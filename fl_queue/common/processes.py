"""
Whether a process of this machine is dead, for certain, without waiting for its lease to run out; and dying together.

A lease names its holder's process. A process of the same machine (and, for containers,
the same pid namespace) can ask the kernel; any other has to wait for its end.
"""

from __future__ import annotations

import ctypes
import os
import signal
from functools import cache
from pathlib import Path

_PROC = Path("/proc")
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def process_identity(pid: int | None = None) -> str:
    """
    ``boot:namespace:pid:start`` of a process, which no other process ever has.

    Args:
        pid: Default: this process.

    Returns:
        Empty when the kernel does not report it (no ``/proc``): then only leases count.
    """
    pid = pid or os.getpid()
    started = _started(pid)
    return f"{_machine()}:{pid}:{started}" if _machine() and started else ""


def is_dead(process: str) -> bool:
    """Whether the process with that ``identity`` is known to have ended; False when in doubt."""
    machine, _, rest = process.partition(":pid:")
    pid, _, started = rest.partition(":")
    if not rest or f"{machine}:pid" != _machine() or not (pid.isascii() and pid.isdigit()):
        return False
    return _started(int(pid)) != started


@cache
def _machine() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = str((_PROC / "self/ns/pid").readlink()).strip("pid:[]")
    except OSError:
        return ""
    return f"{boot}:{namespace}:pid"


def _started(pid: int) -> str:
    """Start time of a living process in clock ticks since boot; empty for a dead one or a zombie."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def die_with_parent(parent: int, signum: signal.Signals = signal.SIGKILL) -> None:
    """
    Have the kernel send this process a signal when the thread that started it ends, however it ends.

    An orphaned work-horse would train on beside the one that replaces it, and an orphaned worker
    would keep its client's lease.

    Args:
        parent: Pid of the parent, to notice that it ended before this call.
        signum: What is sent.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent ends, in whatever session it is."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """Pids of the children of this process, whichever thread has them; those that have ended, too."""
    found: set[int] = set()
    for task in (_PROC / "self/task").iterdir():
        try:
            found.update(int(pid) for pid in (task / "children").read_text().split())
        except FileNotFoundError:
            # That thread has just ended; a kernel that does not list children has none of these files.
            if not (_PROC / "thread-self/children").exists():
                return _children_by_parent()
    return found


def _children_by_parent() -> set[int]:
    own, found = str(os.getpid()), set()
    for stat in _PROC.glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == own:
            found.add(int(stat.parent.name))
    return found
