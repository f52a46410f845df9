"""
The RQ worker of a data owner or of the evaluator: it talks to Redis, and asks a training process to compute.

It imports no torch, so it is ready at once, and an update that lies in the outbox is pushed without torch. Its
training processes know nothing of Redis. See ``fl_queue/client/trainer/``.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from fl_queue.client import interruption, reload
from fl_queue.client.site import WorkerSettings
from fl_queue.client.trainer import environment
from fl_queue.client.trainer.process import ForkServerProcess
from fl_queue.client.trainer.trainers import Limits, Trainers
from fl_queue.common.own_modules import python_command
from fl_queue.errors import MessageError, TrainingLost
from fl_queue.store import REDIS_ERRORS
from workers import EXIT_REFUSED
from workers.in_process import InProcessWorker
from workers.rq_worker import HEARTBEAT_S

if TYPE_CHECKING:
    from fl_queue.protocol.trainer_messages import Answer, Progress, Request

log = logging.getLogger(__name__)

#: A worker with more memory of its own ends between two jobs, and is started again, bytes.
MAX_WORKER_BYTES = 512 * 2**20
#: Seconds after a job before its trainer is looked at; the next job usually comes first.
_SETTLED_S = 1.0
#: Seconds between two questions whether the runs of idle trainers still are.
_ASK_RUNS_S = 30.0
#: What jobs need beyond a worker that waits: imported by the first one, or once the worker has nothing to do.
_OF_JOBS = ("fl_queue.client.preflight", "fl_queue.client.round_job", "fl_queue.client.scoring_job")
_STATM = Path("/proc/self/statm")

_trainers: list[Trainers] = []


def trainers() -> Trainers:
    """The trainers of this process, made when they are first asked for."""
    # A plain RQ worker forks for each job, and has none: that process gets its own, for its one job.
    if not _trainers:
        _trainers.append(_made(WorkerSettings.from_environ()))
    return _trainers[0]


def _made(site: WorkerSettings) -> Trainers:
    fork_server = ForkServerProcess(
        python_command("-m", "workers.trainer"),
        environment.of_trainers(os.environ, site.threads),
        ranks=max(1, len(site.devices)),
    )
    limits = Limits(site.trainers, site.trainer_jobs, site.most_trainer_bytes)
    reloads = reload.path(site.state_dir, site.client) if site.client else None
    return Trainers(fork_server, limits, reloads)


def ask(request: Request, report: Callable[[Progress], None]) -> Answer:
    """
    Have the trainer of a request's run compute; a fresh one, when the task's file was edited since it was imported.

    Raises:
        TrainingLost: Its process ended, or sent anything but an answer.
        RoundEnded: It had to be killed, as its round has ended.
    """
    answer = _asked(request, report)
    return _asked(request, report) if answer.outcome == "stale" else answer


def _asked(request: Request, report: Callable[[Progress], None]) -> Answer:
    from fl_queue.protocol.trainer_messages import Answer, Progress

    key = (request.run, request.segment)
    body = trainers().ask(
        key,
        os.environ.get("RQ_JOB_ID", ""),
        request.to_dict(),
        lambda values: report(Progress.from_dict(values)),
    )
    try:
        return Answer.from_dict(body)
    except MessageError as exc:
        trainers().end(key)
        raise TrainingLost(f"its training process wrote no answer ({exc})", public=True) from exc


class SiteWorker(InProcessWorker):
    """Asks training processes; ends them when they are not needed."""

    def __init__(self, queues: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(queues, *args, **kwargs)
        self._job_ended_at: float | None = None
        self._asked_at = time.monotonic()
        self._prepares_at = time.monotonic() + HEARTBEAT_S

    def work(self, *args: Any, **kwargs: Any) -> bool:
        """Serve the queue, with a fork server beside it."""
        signal.signal(signal.SIGUSR1, _on_signal)
        # Here, in the main thread: it ends with the thread that started it.
        trainers().start()
        try:
            return super().work(*args, **kwargs)
        finally:
            trainers().close()

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Write the heartbeat of a transaction only; between two jobs, look after the trainers."""
        super().heartbeat(timeout, pipeline)
        if pipeline is None and not self._at_work and time.monotonic() > self._prepares_at:
            self._prepares_at = math.inf
            for module in _OF_JOBS:
                importlib.import_module(module)
        ended_at = self._job_ended_at
        if (
            pipeline is None
            and not self._at_work
            and ended_at is not None
            and time.monotonic() - ended_at > _SETTLED_S
        ):
            trainers().tend(self._is_needed if self._is_time_to_ask() else lambda run: True)

    def after_job(self) -> None:
        """End a worker that has grown, or was upgraded: another one is started, and finds what it needs."""
        self._job_ended_at = time.monotonic()
        if trainers().is_upgraded and not self._stop_requested:
            log.warning("fl-queue was upgraded: another worker follows")
            self._stop_requested = True
        nbytes = _resident_bytes()
        if nbytes > MAX_WORKER_BYTES and not self._stop_requested:
            log.warning("this worker has %d MiB of memory: another one follows", nbytes >> 20)
            self._stop_requested = True

    def beat(self) -> None:
        """Extend the leases, and write the site's status."""
        super().beat()
        self._write_status()
        trainers().reap()

    def _extend(self) -> bool:
        if super()._extend():
            return True
        if not self.birth_date:  # At the start another worker is waited for.
            return False
        # We were asleep for longer than a lease, and another worker serves our client now.
        log.error(
            "client %s is served by another worker (%s): ending", self.site.client, self._holder()
        )
        os._exit(EXIT_REFUSED)

    def _is_time_to_ask(self) -> bool:
        if time.monotonic() - self._asked_at < _ASK_RUNS_S:
            return False
        self._asked_at = time.monotonic()
        return True

    def _is_needed(self, run: str) -> bool:
        """Whether a run goes on; yes, when the control server cannot be asked."""
        with suppress(*REDIS_ERRORS):
            state = self._control.runs.get(run)
            return state is not None and state.active
        return True


def _on_signal(signum: int, frame: FrameType | None) -> None:
    """
    Signal handler of a worker whose job is not wanted any more.

    Raises:
        RoundGivenUp: No trainer is at work, and the job may be interrupted.
    """
    if trainers().is_asking:
        trainers().stop()
    else:
        interruption.on_signal(signum, frame)


def _resident_bytes() -> int:
    try:
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0
