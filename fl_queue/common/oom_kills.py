"""
Processes that the kernel ended for lack of memory: its counters, read before and after.

The parent of a killed process gets a signal's number and no reason. Privileges are not needed; without readable
counters of the cgroup there is the counter of the whole machine.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

#: Part of the reason of a failed job; the healer looks for it.
OUT_OF_MEMORY = "out of memory"
_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_MACHINE = Path("/proc/vmstat")
_MORE = "give it more memory, or train with smaller batches"


def counts() -> dict[str, int]:
    """Counter file -> processes that the kernel has ended for memory: in this cgroup and on the machine."""
    return {
        str(path): count for path in [*_counters(), _MACHINE] if (count := _count(path)) is not None
    }


def cause_of_end(status: int, before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """
    Why a process ended without a response.

    Args:
        status: As ``os.wait4`` returns it.
        before, after: ``counts`` when it was started, and now.
    """
    number = status & 0x7F
    if not number:
        return f"its process ended without an answer, with exit status {status >> 8}"
    if number != signal.SIGKILL:
        return f"its process crashed with signal {number} ({_name(number)})"
    killed = f"its process was killed from outside by signal {int(signal.SIGKILL)}"
    risen = [path for path in after if after[path] > before.get(path, after[path])]
    if any(path != str(_MACHINE) for path in risen):
        return f"{killed}: {OUT_OF_MEMORY} (oom_kill of its cgroup rose); {_MORE}"
    if risen:
        return f"{killed}: {OUT_OF_MEMORY}? (oom_kill of its machine rose); {_MORE}"
    if not after:
        return f"{killed}: {OUT_OF_MEMORY}? (no counter of the kernel can be read here)"
    return f"{killed}; the kernel has ended nothing for memory meanwhile"


def _counters() -> Iterator[Path]:
    """Candidate files of this cgroup's counter: version 2, version 1, and their paths in a container."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        below = path.lstrip("/")
        if not controllers:
            yield from _with_root(_CGROUPS, below, "memory.events")
        elif "memory" in controllers.split(","):
            yield from _with_root(_CGROUPS / "memory", below, "memory.oom_control")


def _with_root(root: Path, below: str, name: str) -> Iterator[Path]:
    # In a container the path may be the host's, and the root is its own group.
    here = root / below / name
    yield here if here.exists() else root / name


def _count(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
    except (OSError, ValueError, IndexError):
        return None


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
