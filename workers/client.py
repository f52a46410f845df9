"""
The client worker: RQ jobs of one data owner.

torch is imported in the parent, with one thread and nothing run, so that forked jobs start at once and safely.
"""

from __future__ import annotations

import importlib
import sys

from fl_queue.client import preflight, round_job
from fl_queue.client.resident import Resident
from fl_queue.client.site import WorkerSettings
from fl_queue.protocol.records import Purpose
from fl_queue.store import keyspace
from fl_queue.training import determinism
from workers import rq_worker


def train(run: str, number: int) -> str:
    """RQ job: train on this site's data for a round, or push the update that an earlier attempt trained."""
    return _respond(run, number, Purpose.train)


def evaluate(run: str, number: int) -> str:
    """RQ job: evaluate the newest version on this site's validation data (closing evaluation)."""
    return _respond(run, number, Purpose.evaluate)


def initialise(run: str, number: int) -> str:
    """RQ job: build version 0."""
    return _respond(run, number, Purpose.initialise)


def tell_facts(run: str, segment: int) -> str:  # codespell:ignore tell
    """RQ job: report the facts of this site's data, for the comparison before round 1."""
    return preflight.report_facts(run, segment, Resident(WorkerSettings.from_environ()).handle)


def _respond(run: str, number: int, purpose: Purpose) -> str:
    site = WorkerSettings.from_environ()
    return round_job.respond(run, number, site.client, purpose, Resident(site).handle)


def main() -> int:
    """``python -m workers.client``: serve the queue of ``FLQ_SITE_CLIENT``."""
    determinism.preload()
    # Jobs name this module, which runs as ``__main__``: without the import each job would compile it once more.
    importlib.import_module("workers.client")
    client = WorkerSettings.from_environ().client
    return rq_worker.run(keyspace.client_queue(client))


if __name__ == "__main__":
    sys.exit(main())
