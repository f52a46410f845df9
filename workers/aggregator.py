"""Aggregator worker: one job per round, which streams updates into the exact sum. Imports no torch."""

from __future__ import annotations

import importlib
import logging
import os
import sys

from fl_queue.aggregation import exact_sum
from fl_queue.client.site import WorkerSettings
from fl_queue.coordinator.aggregator.collector import RoundAggregator
from fl_queue.coordinator.rounds import statement_signing
from fl_queue.errors import OwnershipLost
from fl_queue.store import keyspace
from workers import rq_worker

log = logging.getLogger(__name__)


def aggregate(run: str, number: int) -> str:
    """
    Collect and close one round: the RQ job.

    Raises:
        StoreUnavailable: The round stays open; the job is begun again when Redis can be used.
        CheckpointError: The round stays open; the healer issues a new attempt.
        ConfigError: The run is signed, and this machine cannot sign; an aggregator on another machine can.
    """
    site = WorkerSettings.from_environ()
    store = site.connect()
    statement_signing.check_key(store, run)
    # Before a fence is taken: messages are looked for only a limited number of fences back.
    store.data.probe()
    try:
        return RoundAggregator(
            store,
            run,
            number,
            os.environ["RQ_JOB_ID"],
            site.state_dir,
            site.strategy_allow,
        ).work()
    except OwnershipLost as exc:
        log.warning("%s", exc)
        return "replaced"


def main() -> int:
    """Serve the queue ``flq-aggregate``: ``python -m workers.aggregator``."""
    # Compiled before the first fork, so that the kernels are ready in every job.
    exact_sum.warm_up()
    importlib.import_module("workers.aggregator")  # RQ jobs name it; here it runs as ``__main__``.
    return rq_worker.run(keyspace.AGGREGATE_QUEUE)


if __name__ == "__main__":
    sys.exit(main())
