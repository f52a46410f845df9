"""An RQ worker that runs jobs in its own process, without a fork, and looks after them from a thread."""

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

from fl_queue.common import failpoints
from fl_queue.store import error_log, fail_fast
from workers.rq_worker import HEARTBEAT_S, FLWorker

log = logging.getLogger(__name__)


class InProcessWorker(FLWorker):
    """
    Runs jobs in its own process: what one job has loaded, the next one finds.

    A thread extends the leases meanwhile, and sends SIGUSR1 to the process when its job is not wanted any more.
    """

    def __init__(self, queues: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(queues, *args, **kwargs)
        self._job: Any = None
        self._ended = threading.Event()

    def work(self, *args: Any, **kwargs: Any) -> bool:
        """Serve the queue, with a thread for the leases."""
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
        try:
            execution = self.prepare_execution(job)
            self._timeout_s, self._forked_at = float(job.timeout), time.monotonic()
            self._job = job
            self.perform_job(job, queue, execution)
        finally:
            self._job, self._at_work = None, ""
            self.after_job()
        # In this process alone: it is not read from Redis, and each write there is one to disk.
        self._state = WorkerStatus.IDLE

    def after_job(self) -> None:
        """Called after each job, however it has ended."""

    def beat(self) -> None:
        """Extend the leases; called by the thread every two seconds."""
        Worker.heartbeat(self)
        self._extend()

    def _look_after(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            job = self._job
            if job is not None and self._is_overdue():
                log.error("job %s did not end at its timeout: ending with it", job.id)
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                with fail_fast():
                    self.beat()
                    if job is not None and self._is_pointless(job) and job is self._job:
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            # Without this thread the worker would be taken for dead.
            except Exception as exc:  # noqa: BLE001
                error_log.write(exc)
