"""
Whether a process of this machine is dead, for certain, without waiting for its lease to run out.

A lease names its holder's process. Whoever looks at it from the same machine (and, for containers,
the same pid namespace) can ask the kernel; from anywhere else only time tells.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

_PROC = Path("/proc")


def identity(pid: int | None = None) -> str:
    """
    ``boot:namespace:pid:start`` of a process, which no other process ever has.

    Args:
        pid: Default: this process.

    Returns:
        Empty when the kernel does not tell (no ``/proc``): then only leases count.
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
        namespace = os.readlink(_PROC / "self/ns/pid").strip("pid:[]")
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
