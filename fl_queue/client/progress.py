"""Progress of a client's training: on its terminal, and in its events."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from fl_queue.client.assignment import ClientJob
from fl_queue.client.site import WorkerSettings
from fl_queue.common import escaping
from fl_queue.errors import RoundRefused
from fl_queue.protocol.events import EpochFinished, Event, JobRefusedEvent, TrainingStarted
from fl_queue.store import REDIS_ERRORS, Store, complaint
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.logged_metrics import TrainingLog

log = logging.getLogger(__name__)

MIN_PAUSE_S = 0.5


def announce(job: ClientJob, context: ClientContext) -> None:
    """Print and record that training begins."""
    print(escaping.line(f"run {job.state.name}, round {job.round.number}, client {job.who}"))
    print(
        f"Learning rate {context.learning_rate:g}, epochs {context.epochs}, batch size {context.batch_size}",
        flush=True,
    )
    add_event(
        job,
        TrainingStarted(run=job.run, round=job.round.number, epochs=context.epochs),
    )


class Progress:
    """
    Reports epochs, twice a second at most: each event is a write to disk.

    Args:
        job: The job that trains.
        logged: Numbers that the task logs meanwhile; an epoch's event has the means so far.
    """

    def __init__(self, job: ClientJob, logged: TrainingLog) -> None:
        self.job, self.logged = job, logged
        self._written_at = -MIN_PAUSE_S

    def on_epoch(self, epoch: int, epochs: int, finished: Mapping[str, float]) -> None:
        """Print an epoch's accuracy, and add an event; without numbers where the site approves updates."""
        if not self.job.is_watched:
            return
        if "accuracy" in finished:
            accuracy = finished["accuracy"]
            print(f"Accuracy of model trained at epoch {epoch} : {accuracy:.4f}", flush=True)
        now = time.monotonic()
        if epoch < epochs and now - self._written_at < MIN_PAUSE_S:
            return
        self._written_at = now
        event = EpochFinished(
            run=self.job.run, round=self.job.round.number, epoch=epoch, epochs=epochs
        )
        # With --approve nothing that depends on the data leaves before the site's decision.
        add_event(self.job, event if self.job.site.approve else self._with_metrics(event, finished))

    def _with_metrics(self, event: EpochFinished, finished: Mapping[str, float]) -> EpochFinished:
        accuracy, loss = finished.get("accuracy"), finished.get("loss")
        return replace(event, accuracy=accuracy, loss=loss, logged=self.logged.means())


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
        complaint.log(exc)
