"""The RQ worker of a pool process: jobs run in the process itself, without a fork."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import Any

from rq import Worker
from rq.utils import now
from rq.worker import WorkerStatus

from fl_queue.client import interruption
from fl_queue.common import failpoints
from fl_queue.common.offspring import Offspring, helpers
from fl_queue.store import complaint, fail_fast
from workers.rq_worker import HEARTBEAT_S, HORSE_NICENESS, FLWorker

log = logging.getLogger(__name__)


class PoolWorker(FLWorker):
    """
    Runs jobs in its own process, without a fork: what one job has loaded, the next one finds.

    A thread extends the leases and looks after the job meanwhile.
    """

    def __init__(self, queues: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(queues, *args, **kwargs)
        self._job: Any = None
        self._ended = threading.Event()

    def work(self, *args: Any, **kwargs: Any) -> bool:
        """Serve the queue, with a thread for the leases."""
        # Like the work-horses of clients: training gives way to leases, merging and restarts.
        os.nice(HORSE_NICENESS)
        signal.signal(signal.SIGUSR1, interruption.on_signal)
        threading.Thread(target=self._look_after, name="leases", daemon=True).start()
        try:
            return bool(super().work(*args, **kwargs))
        finally:
            self._ended.set()

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Write the heartbeat of a transaction only; the thread writes the others."""
        # RQ beats several times a job, each a write to disk; the thread does it now and then.
        if pipeline is not None:
            Worker.heartbeat(self, timeout, pipeline)
            self._name_job(pipeline)

    def handle_execution_ended(self, job: Any, queue: Any, heartbeat_ttl: int) -> None:
        """Note the end in this process alone."""
        job.ended_at = now()

    def execute_job(self, job: Any, queue: Any) -> None:
        """Run a job in this process."""
        failpoints.failpoint("job.popped")
        os.environ["RQ_JOB_ID"] = self._at_work = job.id
        offspring = Offspring()
        try:
            execution = self.prepare_execution(job)
            self._timeout_s, self._forked_at = float(job.timeout), time.monotonic()
            self._job = job
            self.perform_job(job, queue, execution)
        finally:
            self._job, self._at_work = None, ""
            offspring.end(helpers())
        # In this process alone: it is not read from Redis, and each write there is one to disk.
        self._state = WorkerStatus.IDLE

    def _look_after(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            job = self._job
            if job is not None and self._is_overdue():
                log.error("job %s did not end at its timeout: ending with it", job.id)
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                with fail_fast():
                    Worker.heartbeat(self)
                    self._extend()
                    if job is not None and self._is_pointless(job):
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            # Without this thread the worker would be taken for dead.
            except Exception as exc:  # noqa: BLE001
                complaint.log(exc)
