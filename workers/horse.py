"""The work-horse of a job, seen from its worker: its processes are ended with it, and the reason of its end is logged."""

from __future__ import annotations

import logging
from typing import Any

from redis.exceptions import RedisError
from rq import Worker

from fl_queue.common import oom_kills
from fl_queue.common.offspring import Offspring
from fl_queue.store.jobs.dispatch import JobState

log = logging.getLogger(__name__)

#: Begin of RQ's message about a work-horse that ended without a result.
_UNEXPECTED = "Work-horse terminated unexpectedly"
NO_ANSWER = "its process ended without an answer"


class HorseWorker(Worker):
    """RQ's forking worker, for jobs that may start processes, run out of memory, or just end."""

    _horse_status: int | None = None
    _offspring: Offspring | None = None

    def fork_work_horse(self, job: Any, queue: Any) -> None:
        """Fork, and note which processes are there before."""
        self._horse_status, self._killed_by_us = None, False
        self._oom_kills = oom_kills.counts()
        self._offspring = Offspring()
        super().fork_work_horse(job, queue)

    def kill_horse(self, *args: Any, **kwargs: Any) -> None:
        """Kill the work-horse, and note that it was this worker."""
        self._killed_by_us = True
        super().kill_horse(*args, **kwargs)

    def wait_for_horse(self) -> tuple[int | None, int | None, Any]:
        """Wait for the work-horse, and note its exit status."""
        pid, status, usage = super().wait_for_horse()
        self._horse_status = status
        return pid, status, usage

    def maintain_heartbeats(self, job: Any, execution: Any) -> None:
        """Extend the leases, and reap orphans."""
        if self._offspring is not None:
            self._offspring.reap([self.horse_pid])
        super().maintain_heartbeats(job, execution)

    def monitor_work_horse(self, job: Any, queue: Any, execution: Any) -> None:
        """Watch the work-horse, and end the processes that it leaves behind."""
        try:
            super().monitor_work_horse(job, queue, execution)
        finally:
            self._end_offspring(job)
        # RQ passes over a process that ended with 0, whatever it has written.
        if self._horse_status == 0 and self._is_unanswered(job):
            log.warning("job %s: %s", job.id, NO_ANSWER)
            self.handle_job_failure(job, queue=queue, exc_string=NO_ANSWER, execution=execution)

    def handle_job_failure(self, job: Any, *args: Any, **kwargs: Any) -> None:
        """Record a failure, with the reason of the process's end."""
        if str(kwargs.get("exc_string", "")).startswith(_UNEXPECTED):
            kwargs["exc_string"] = self._why_ended()
            log.warning("job %s: %s", job.id, kwargs["exc_string"])
        super().handle_job_failure(job, *args, **kwargs)

    def _why_ended(self) -> str:
        if self._killed_by_us:
            return "it was stopped by its worker"
        return oom_kills.cause_of_end(self._horse_status or 0, self._oom_kills, oom_kills.counts())

    def _end_offspring(self, job: Any) -> None:
        """End what the job's process has started; the process itself, if an error left it."""
        offspring, self._offspring = self._offspring, None
        ended = offspring.end() if offspring is not None else 0
        if ended:
            log.info("job %s left %d processes behind: ended", job.id, ended)

    def _is_unanswered(self, job: Any) -> bool:
        """Whether Redis has a job as one that is at work; no, when it cannot be asked: the healer finds out."""
        try:
            return self.connection.hget(job.key, "status") in (
                JobState.started.encode(),
                JobState.queued.encode(),
            )
        except RedisError:
            return False
