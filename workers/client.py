"""
The client worker: RQ jobs of one data owner.

It imports no torch: what computes is a training process, see ``site_worker``.
"""

from __future__ import annotations

import importlib
import sys

from fl_queue.client import interruption
from fl_queue.client.site import WorkerSettings
from fl_queue.protocol.records import Purpose
from fl_queue.store import keyspace
from workers import rq_worker, site_worker


def train(run: str, number: int) -> str:
    """RQ job: train on this site's data for a round, or push the update that an earlier attempt trained."""
    return _respond(run, number, Purpose.train)


def evaluate(run: str, number: int) -> str:
    """RQ job: evaluate the newest version on this site's validation data (closing evaluation)."""
    return _respond(run, number, Purpose.evaluate)


def initialise(run: str, number: int) -> str:
    """RQ job: build version 0."""
    return _respond(run, number, Purpose.initialise)


def unmask(run: str, number: int) -> str:
    """RQ job: reveal the shares that take the masks off a secure round's sum, once the site has checked whose."""
    from fl_queue.client import secure_job

    client = WorkerSettings.from_environ().client
    try:
        with interruption.interruptible():
            return secure_job.unmask(run, number, client)
    except interruption.RoundGivenUp as exc:
        return str(exc)


def sums(run: str, number: int) -> str:
    """RQ job: add up this site's rows for a step of an analysis, or push the sums that an earlier attempt made."""
    return _respond(run, number, Purpose.sums)


def tell_facts(run: str, segment: int) -> str:  # codespell:ignore tell
    """RQ job: report the facts of this site's data, for the comparison before round 1."""
    from fl_queue.client import preflight

    return preflight.report_facts(run, segment, site_worker.ask)


def _respond(run: str, number: int, purpose: Purpose) -> str:
    from fl_queue.client import round_job, secure_job

    client = WorkerSettings.from_environ().client
    try:
        with interruption.interruptible():
            return round_job.respond(
                run, number, client, purpose, site_worker.ask, secure_job.respond
            )
    except interruption.RoundGivenUp as exc:
        return str(exc)


def main() -> int:
    """``python -m workers.client``: serve the queue of ``FLQ_SITE_CLIENT``."""
    # Jobs name this module, which runs as ``__main__``: without the import each job would compile it once more.
    importlib.import_module("workers.client")
    client = WorkerSettings.from_environ().client
    return rq_worker.run(keyspace.client_queue(client), site_worker.SiteWorker)


if __name__ == "__main__":
    sys.exit(main())
