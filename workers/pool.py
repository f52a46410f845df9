"""The pool worker: RQ jobs that train the virtual clients of a simulation, a group of clients in each job."""

from __future__ import annotations

import importlib
import sys

from fl_queue.client import pool_job
from fl_queue.protocol.records import Purpose
from fl_queue.store import keyspace
from fl_queue.training import determinism
from workers import pool_worker, rq_worker


def train(run: str, number: int) -> str:
    """RQ job: train the clients of a group for a round, or push the updates that were trained already."""
    return pool_job.respond(run, number, Purpose.train)


def evaluate(run: str, number: int) -> str:
    """RQ job: evaluate the newest version on the validation data of a group (closing evaluation)."""
    return pool_job.respond(run, number, Purpose.evaluate)


def initialise(run: str, number: int) -> str:
    """RQ job: build version 0."""
    return pool_job.respond(run, number, Purpose.initialise)


def main() -> int:
    """``python -m workers.pool``: serve ``flq-pool``."""
    determinism.preload()
    importlib.import_module("workers.pool")  # Jobs name this module, which runs as ``__main__``.
    return rq_worker.run(keyspace.POOL_QUEUE, pool_worker.PoolWorker)


if __name__ == "__main__":
    sys.exit(main())
