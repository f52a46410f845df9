"""
The hits of a chaos run: whom each one struck, what it interrupted, and how long it was felt.

A hit is over when the walk has done its part: at the kill, at SIGCONT, or when the restarted server
answers. Its recovery time runs from there to the first sign that the role works again:

client, evaluator   a job begun or answered, or the lease of a new worker (after a stop: or of the
                    stopped one, extended); of a job's process only the work counts, and an answer
                    only of one that was not pushing when it was hit
aggregator          a receipt or the end of a round, or a lease likewise
aggregator's supervisor   the healer's lease, taken or extended
control, data       an event that cannot come about without the server
console             its successor has printed a line, or the run has ended
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from tests.fault.chaos.watch import Sign

#: Parts in which a job is at work; they have no lease.
WORKING = ("horse", "trainer", "fork server")


@dataclass
class Hit:
    """
    One hit that found its victim.

    Args:
        role, part, action: As in the step (``plan``).
        name: Process, as the arena calls it.
        who: By whose signs its recovery is seen.
        moment: What it interrupted.
        at: Unix time, seconds.
        pid: The RQ worker that was struck, or whose child or parent was.
        over_at: When the walk had done its part; None while it lasts.
        recovered_s: From ``over_at`` to the first sign of recovery; None before.
    """

    role: str
    part: str
    action: str
    name: str
    who: str
    moment: str
    at: float = field(default_factory=time.time)
    pid: int = 0
    over_at: float | None = None
    recovered_s: float | None = None

    @property
    def waiting(self) -> bool:
        """Whether a sign of recovery is still to come."""
        return self.over_at is not None and self.recovered_s is None

    @property
    def is_shown_by_work_alone(self) -> bool:
        """Whether no sign of recovery can come once the run has ended: a data server has no lease either."""
        return self.part in WORKING or self.role == "data"

    def take(self, sign: Sign) -> None:
        """Recover, if that is what the sign shows."""
        if self.recovered_s is not None or self.over_at is None or sign.at <= self.over_at:
            return
        if self._is_shown_by(sign):
            self.recovered_s = sign.at - self.over_at

    def _is_shown_by(self, sign: Sign) -> bool:
        if sign.who != self.who:
            return False
        if sign.how == "answer":
            # It may have been on its way before the hit.
            return self.moment != "pushing"
        if sign.how == "work" or self.who in ("healer", "control"):
            return True
        if self.part in WORKING:
            return False
        return sign.how == "new lease" or (self.action == "stop" and sign.pid == self.pid)

    def describe(self) -> str:
        """``stop of the client horse of site-1 (training)``."""
        return f"{self.action} of {self.role} {self.part} {self.name} ({self.moment})"


def table(hits: Sequence[Hit]) -> Table:
    """Hits by role and moment, with the recovery times."""
    made = Table(title="Hits by role and moment", title_justify="left")
    for column in ("role", "hit", "moment"):
        made.add_column(column)
    for column in ("hits", "recovered", "median s", "longest s"):
        made.add_column(column, justify="right")
    groups: dict[tuple[str, str, str], list[Hit]] = {}
    for hit in hits:
        groups.setdefault((f"{hit.role} {hit.part}", hit.action, hit.moment), []).append(hit)
    for (role, action, moment), group in sorted(groups.items()):
        made.add_row(role, action, moment, *_numbers(group))
    made.add_section()
    made.add_row("all", "", "", *_numbers(hits))
    return made


def _numbers(hits: Iterable[Hit]) -> list[str]:
    group = list(hits)
    times_s = [hit.recovered_s for hit in group if hit.recovered_s is not None]
    if not times_s:
        return [str(len(group)), "0", "", ""]
    middle, longest = statistics.median(times_s), max(times_s)
    return [str(len(group)), str(len(times_s)), f"{middle:.2f}", f"{longest:.2f}"]


# Processes that are ours


def children(pid: int) -> list[int]:
    """Pids of a process's children; none when it has ended."""
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def open_child(pid: int, parent: int) -> int | None:
    """
    A descriptor of a process, if it is the child of ``parent``: a pid may be another's by now.
    """
    try:
        descriptor = os.pidfd_open(pid)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if int(fields[1]) == parent and fields[0] != "Z":
        return descriptor
    os.close(descriptor)
    return None


def send(descriptors: Iterable[int], signum: signal.Signals) -> None:
    """Signal those that still live."""
    for descriptor in descriptors:
        try:
            signal.pidfd_send_signal(descriptor, signum)
        except ProcessLookupError:
            continue
