"""The memory that this process may use: the machine's, or less where its cgroup is limited. No Redis here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")


def usable_bytes(root: Path = _CGROUPS, own: Path = _OWN, meminfo: Path = _MEMINFO) -> int:
    """
    The smallest limit that holds for this process, bytes; 0 where none can be read.

    Args:
        root, own, meminfo: Where the kernel shows cgroups, this process's cgroups, and the machine's memory.
    """
    found = [number for path in _limits(root, own) if (number := _number(path))]
    if total := _total(meminfo):
        found.append(total)
    return min(found, default=0)


def _limits(root: Path, own: Path) -> Iterator[Path]:
    """Files of the limits of this cgroup and those above it: version 2, version 1, and a container's root."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        folder = base / path.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(base):
                yield place / name


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max": no limit.
        return 0


def _total(meminfo: Path) -> int:
    try:
        line = next(
            line for line in meminfo.read_text().splitlines() if line.startswith("MemTotal:")
        )
        return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError, StopIteration):
        return 0
