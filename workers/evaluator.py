"""The evaluator worker: RQ jobs that score versions on the task's test set, and build version 0."""

from __future__ import annotations

import importlib
import sys

from fl_queue.client import interruption
from fl_queue.protocol import identifiers
from fl_queue.protocol.records import Purpose
from fl_queue.store import keyspace
from workers import rq_worker, site_worker


def initialise(run: str, number: int) -> str:
    """RQ job: build version 0."""
    from fl_queue.client import round_job

    try:
        with interruption.interruptible():
            return round_job.respond(
                run, number, identifiers.EVALUATOR, Purpose.initialise, site_worker.ask
            )
    except interruption.RoundGivenUp as exc:
        return str(exc)


def evaluate(run: str, version: int) -> str:
    """RQ job: score a version on the test set, and record the result."""
    from fl_queue.client import scoring_job

    return scoring_job.score(run, version, site_worker.ask)


def main() -> int:
    """``python -m workers.evaluator``: serve ``flq-evaluate``."""
    importlib.import_module(
        "workers.evaluator"
    )  # Jobs name this module, which runs as ``__main__``.
    return rq_worker.run(keyspace.EVALUATE_QUEUE, site_worker.SiteWorker)


if __name__ == "__main__":
    sys.exit(main())
