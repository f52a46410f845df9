"""Memory and processor time of running processes, as the kernel tells them under ``/proc``."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

SAMPLE_S = 0.02
#: Depth below a supervisor -> what a process there is.
_LEVELS = ("supervisor", "worker", "horse")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """
    Largest memory of a process, bytes.

    Args:
        resident: High-water mark of all resident pages, those of mapped files and those still shared
            with the process it was forked from among them.
        anonymous: Largest sampled size of the pages that are its own or its parent's, without files.
        grown: The same, beyond what it had when it was seen first: what it allocated itself.
    """

    resident: int = 0
    anonymous: int = 0
    grown: int = 0

    def larger(self, other: Memory) -> Memory:
        """The larger of each."""
        return Memory(
            max(self.resident, other.resident),
            max(self.anonymous, other.anonymous),
            max(self.grown, other.grown),
        )


def children_of(pid: int) -> list[int]:
    """Pids of the children of a process; none when it is dead."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def tree(pid: int, depth: int = 0) -> Iterator[tuple[int, int]]:
    """(pid, depth below the first) of a process and everything below it."""
    yield pid, depth
    for child in children_of(pid):
        yield from tree(child, depth + 1)


def memory_of(pid: int) -> tuple[int, int]:
    """(high-water mark of the resident pages, anonymous pages now), bytes; zeros when it is dead."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    values = dict(line.split(":", 1) for line in lines if line.startswith(("VmHWM", "RssAnon")))
    # A dead process that nobody has waited for has no memory lines.
    return _kib(values.get("VmHWM", "0 kB")), _kib(values.get("RssAnon", "0 kB"))


def _kib(text: str) -> int:
    return int(text.split()[0]) * 1024


def processor_s(pid: int) -> float:
    """Seconds of processor time a process and its waited-for children have used; 0 when dead."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    # The name in brackets may hold spaces; user and system time are fields 14 to 17.
    return sum(int(ticks) for ticks in text.rpartition(")")[2].split()[11:15]) / _TICKS


class Sampler:
    """
    Largest memory of each kind of process while it is entered.

    Args:
        roots: Name of a group -> pids of its supervisors (or servers). The group ``client`` gives
            ``client supervisor``, ``client worker`` and ``client horse``.
    """

    def __init__(self, roots: Mapping[str, list[int]]) -> None:
        self._roots = roots
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)
        self._first: dict[int, int] = {}
        self.peaks: dict[str, Memory] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def peak(self, kind: str) -> Memory:
        """Peaks of a kind of process, such as ``client horse``; zeros when none was seen."""
        return self.peaks.get(kind, Memory())

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            for group, pids in self._roots.items():
                for root in pids:
                    for pid, depth in tree(root):
                        self._note(f"{group} {_LEVELS[min(depth, 2)]}", pid)

    def _note(self, kind: str, pid: int) -> None:
        resident, anonymous = memory_of(pid)
        if resident:
            first = self._first.setdefault(pid, anonymous)
            now = Memory(resident, anonymous, anonymous - first)
            self.peaks[kind] = self.peak(kind).larger(now)
