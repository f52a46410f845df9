"""The evaluator worker: RQ jobs that score versions on the task's test set, and build version 0."""

from __future__ import annotations

import sys

from fl_queue.client import round_job, scoring_job
from fl_queue.client.resident import Resident
from fl_queue.client.site import WorkerSettings
from fl_queue.protocol import identifiers
from fl_queue.protocol.records import Purpose
from fl_queue.store import keyspace
from fl_queue.training import determinism
from workers import rq_worker


def initialise(run: str, number: int) -> str:
    """RQ job: build version 0."""
    resident = Resident(WorkerSettings.from_environ())
    return round_job.respond(
        run, number, identifiers.EVALUATOR, Purpose.initialise, resident.handle
    )


def evaluate(run: str, version: int) -> str:
    """RQ job: score a version on the test set, and record the result."""
    return scoring_job.score(run, version, Resident(WorkerSettings.from_environ()).handle)


def main() -> int:
    """``python -m workers.evaluator``: serve ``flq-evaluate``."""
    determinism.preload()
    return rq_worker.run(keyspace.EVALUATE_QUEUE)


if __name__ == "__main__":
    sys.exit(main())
