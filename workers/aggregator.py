"""
The aggregator worker: one job a round, which streams updates into the exact sum. Imports no torch.
"""

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
    RQ job: collect and close one round.

    Raises:
        StoreUnavailable: The round stays open; the job is begun again when Redis can be used.
        CheckpointError: The round stays open; the healer issues a new attempt.
        ConfigError: The run is signed, and this machine cannot sign; another one's aggregator may take the job.
    """
    site = WorkerSettings.from_environ()
    store = site.connect()
    statement_signing.check_key(store, run)
    # Each incarnation takes a fence, and only so many fences back are looked for what they hold.
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
    """``python -m workers.aggregator``: serve ``flq-aggregate``."""
    # Compiled before the first fork, so that every job has the kernels ready.
    exact_sum.warm_up()
    importlib.import_module("workers.aggregator")  # Jobs name it, and we run as ``__main__``.
    return rq_worker.run(keyspace.AGGREGATE_QUEUE)


if __name__ == "__main__":
    sys.exit(main())
