"""The RQ worker of a pool process: torch and the task's data stay in it from one job to the next."""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

from fl_queue.client import interruption, pool_job
from fl_queue.common.offspring import Offspring, helpers
from workers.in_process import InProcessWorker
from workers.rq_worker import HORSE_NICENESS

log = logging.getLogger(__name__)


class PoolWorker(InProcessWorker):
    """Trains in its own process; a round that has ended interrupts the training."""

    _offspring_of_job: Offspring

    def work(self, *args: Any, **kwargs: Any) -> bool:
        """Serve the queue."""
        # Like the trainers of clients: training gives way to leases, merging and restarts.
        os.nice(HORSE_NICENESS)
        signal.signal(signal.SIGUSR1, interruption.on_signal)
        return super().work(*args, **kwargs)

    def execute_job(self, job: Any, queue: Any) -> None:
        """Run a job, and note which processes are there before."""
        self._offspring_of_job = Offspring()
        super().execute_job(job, queue)

    def after_job(self) -> None:
        """End what the job has started; and this worker, when the job has left something that the next one could see."""
        self._offspring_of_job.end(helpers())
        if pool_job.is_spent() and not self._stop_requested:
            log.info("this process has changed in a job: another one follows")
            self._stop_requested = True
