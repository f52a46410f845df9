"""Detect dead jobs by RQ's keys and the leases of workers, without RQ's registries."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fl_queue.store import LEASE_S, UNNAMED, Store, ask_many
from fl_queue.store.jobs.dispatch import JobState, JobStatus, JobTicket, failures, queued, statuses
from fl_queue.store.jobs.rq_types import queue

#: Longest time of a job between pop and start (in RQ's intermediate list), or between two lists.
START_GRACE_S = 3.0
#: Within this time a worker extends its lease, or the lease expires.
LEASE_GRACE_S = LEASE_S + 2.0


class Verdicts(NamedTuple):
    """Dead jobs, job id -> reason, and the tickets of finished jobs."""

    dead: dict[str, str]
    finished: list[JobTicket]


@dataclass
class JobMonitor:
    """
    Detects dead jobs, without RQ's registries.

    A job is dead when RQ failed it or lost it, when its worker is dead, or when its worker's lease does
    not name it. A job that may be between two states gets some time on this process's monotonic clock.

    Args:
        start_s: Time for a job to be started once it has left its queue.
        lease_s: Time for a lease to name the started job.
    """

    store: Store
    start_s: float = START_GRACE_S
    lease_s: float = LEASE_GRACE_S
    _suspected: dict[str, float] = field(default_factory=dict)

    def verdict(self, ticket: JobTicket) -> str | None:
        """
        The reason why a job is dead; None while it is alive, or when it has finished.

        Returns:
            A reason for a message: ``its worker is dead``, ``failed: ...``, ``lost``.
        """
        return self.look([ticket]).dead.get(ticket.job)

    def look(self, tickets: Iterable[JobTicket]) -> Verdicts:
        """The verdicts on many jobs, in a few round trips."""
        asked = list(tickets)
        found = statuses(self.store, asked)
        suspects = self._suspects(asked, found)
        dead = {}
        for ticket in asked:
            if ticket.job not in suspects:
                self._suspected.pop(ticket.job, None)
                continue
            reason, grace_s = suspects[ticket.job]
            first_seen = self._suspected.setdefault(ticket.job, time.monotonic())
            if not grace_s or time.monotonic() - first_seen >= grace_s:
                self._suspected.pop(ticket.job, None)
                dead[ticket.job] = reason
        return Verdicts(dead, [each for each in asked if found[each.job].name == JobState.finished])

    def _suspects(
        self, asked: Sequence[JobTicket], found: Mapping[str, JobStatus]
    ) -> dict[str, tuple[str, float]]:
        """Job id -> reason for suspicion, and the seconds after which it is a verdict."""
        by_name: dict[str, list[JobTicket]] = {}
        for ticket in asked:
            by_name.setdefault(found[ticket.job].name, []).append(ticket)
        suspects = self._look_started(by_name.pop(JobState.started, []), found)
        # Popped and not started: its worker was killed in between, or is about to start it.
        for ticket in _not_in_queue(self.store, by_name.pop(JobState.queued, [])):
            suspects[ticket.job] = ("lost between queue and worker", self.start_s)
        failed = by_name.pop(JobState.failed, [])
        for ticket, reason in zip(failed, failures(self.store, failed), strict=True):
            suspects[ticket.job] = (f"failed: {reason}", 0.0)
        by_name.pop(JobState.finished, None)
        for name, tickets in by_name.items():
            grace_s = 0.0 if name else self.start_s
            suspects |= {ticket.job: (name or "lost", grace_s) for ticket in tickets}
        return suspects

    def _look_started(
        self, started: Sequence[JobTicket], found: Mapping[str, JobStatus]
    ) -> dict[str, tuple[str, float]]:
        control = self.store.control
        jobs = control.workers.jobs_of(found[ticket.job].worker for ticket in started)
        at_work = {ticket.job: jobs[found[ticket.job].worker] for ticket in started}
        doubtful = [
            ticket for ticket in started if at_work[ticket.job] not in (ticket.job, UNNAMED)
        ]
        if not doubtful or control.clients.is_settling():
            return {}  # After an outage the leases of living workers have expired, too.
        again = statuses(self.store, doubtful)
        suspects: dict[str, tuple[str, float]] = {}
        for ticket in doubtful:
            job = at_work[ticket.job]
            if job is None:
                suspects[ticket.job] = ("its worker is dead", 0.0)
            elif again[ticket.job] == found[ticket.job]:  # Else it ended between the two reads.
                # RQ's record of its end was lost in an outage, or by a server that lost its last writes.
                what = f"lost: its worker is at {f'job {job}' if job else 'no job'}"
                suspects[ticket.job] = (what, self.lease_s)
        return suspects


def _not_in_queue(store: Store, tickets: Sequence[JobTicket]) -> list[JobTicket]:
    """Tickets of jobs that are not in the queue of their RQ status."""
    connection = store.control.redis
    many = {
        name for name, count in Counter(ticket.queue for ticket in tickets).items() if count > 1
    }
    single = [ticket for ticket in tickets if ticket.queue not in many]
    places = ask_many(
        connection,
        single,
        lambda pipe, ticket: pipe.lpos(queue(ticket.queue, connection).key, ticket.job),
    )
    gone = [ticket for ticket, place in zip(single, places, strict=True) if place is None]
    for name in sorted(many):
        # One LPOS for each job would scan the whole queue each time.
        there = set(queued(store, name))
        gone += [ticket for ticket in tickets if ticket.queue == name and ticket.job not in there]
    return gone
