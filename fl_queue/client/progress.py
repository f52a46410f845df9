"""Progress of a client's training: on its terminal, and in its events."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace

from fl_queue.client.assignment import ClientJob
from fl_queue.client.site import WorkerSettings
from fl_queue.common import escaping
from fl_queue.errors import RoundRefused
from fl_queue.protocol.events import EpochFinished, Event, JobRefusedEvent, TrainingStarted
from fl_queue.protocol.trainer_messages import Progress
from fl_queue.store import REDIS_ERRORS, Store, error_log

log = logging.getLogger(__name__)

MIN_PAUSE_S = 0.5


class ProgressEvents:
    """
    Progress of one job's training: on the terminal, and as events, twice a second at most, as each is a write to disk.

    Args:
        job: The job that trains.
    """

    def __init__(self, job: ClientJob) -> None:
        self.job = job
        self._written_at = -MIN_PAUSE_S

    def report(self, progress: Progress) -> None:
        """Print and record that training begins, or that an epoch has ended."""
        if not self.job.is_watched:
            return
        if progress.epoch:
            self._on_epoch(progress)
        else:
            self._announce(progress.epochs)

    def _announce(self, epochs: int) -> None:
        job, config = self.job, self.job.config
        rate = config.learning_rate(max(job.round.number, 1))
        print(escaping.line(f"run {job.state.name}, round {job.round.number}, client {job.who}"))
        print(
            f"Learning rate {rate:g}, epochs {epochs}, batch size {config.train.batch_size}",
            flush=True,
        )
        add_event(job, TrainingStarted(run=job.run, round=job.round.number, epochs=epochs))

    def _on_epoch(self, progress: Progress) -> None:
        """Print an epoch's accuracy, and add an event; without numbers where the site approves updates."""
        epoch, epochs, finished = progress.epoch, progress.epochs, progress.finished
        if "accuracy" in finished:
            accuracy = finished["accuracy"]
            print(f"Accuracy of model trained at epoch {epoch} : {accuracy:.4f}", flush=True)
        now = time.monotonic()
        if epoch < epochs and now - self._written_at < MIN_PAUSE_S:
            return
        self._written_at = now
        job = self.job
        event = EpochFinished(run=job.run, round=job.round.number, epoch=epoch, epochs=epochs)
        # With --approve nothing that depends on the data leaves before the site's decision; in a secure round
        # nothing of it leaves in clear.
        is_bare = job.site.approve or job.round.secure is not None
        add_event(job, event if is_bare else _with_metrics(event, progress))


def _with_metrics(event: EpochFinished, progress: Progress) -> EpochFinished:
    accuracy, loss = progress.finished.get("accuracy"), progress.finished.get("loss")
    return replace(event, accuracy=accuracy, loss=loss, logged=dict(progress.logged))


def add_event(job: ClientJob, event: Event) -> None:
    """Add an event to the client's stream."""
    write_best_effort(lambda: job.store.control.events.add_of_client(job.who, event))


def refused(store: Store, site: WorkerSettings, why: RoundRefused) -> None:
    """Record that this site refuses a job: in its log, and in its client's events."""
    log.warning("client=%s refused: %s", site.client, why)
    job = os.environ.get("RQ_JOB_ID", "")
    event = JobRefusedEvent(job=job, reason=str(why), by=site.worker)
    if site.client:
        write_best_effort(lambda: store.control.events.add_of_client(site.client, event))


def write_best_effort(write: Callable[[], None]) -> None:
    """Write a value that is only shown; an outage of the control server does not stop the training."""
    try:
        write()
    except REDIS_ERRORS as exc:
        error_log.write(exc)
