"""
The pool worker: trains virtual clients of a simulation, a group of them a job, in this very process.

torch, the task's data and the model are loaded once. Each client is trained as a site would train
it, and its update is in the outbox before the next one begins: a killed process costs its unfinished
clients only.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fl_queue.aggregation.group_sum import GroupSum
from fl_queue.client import client_state, outbox, unknown_runs
from fl_queue.client.assignment import ClientJob, RoundModel, fetch_base
from fl_queue.client.site import WorkerSettings
from fl_queue.common import failpoints
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds.runs import current_config
from fl_queue.errors import ModelMismatch
from fl_queue.models import host_cache
from fl_queue.protocol import identifiers, virtual_clients
from fl_queue.store import Store, keyspace, queries
from fl_queue.store.jobs.rq_types import JobRefused
from fl_queue.tasks.error_disclosure import told
from fl_queue.training import determinism
from workers import pool_worker, rq_worker
from workers.client import (
    Make,
    find_or_make,
    make_evaluation,
    make_initial,
    make_update,
    push,
)

log = logging.getLogger(__name__)

#: Outbox files of any virtual client.
_EVERYBODY = f"{identifiers.VIRTUAL}*"
#: A process asks this often whether its round has ended, between two clients.
ASK_S = 0.5
#: Nobody is still writing a file that was not written to for so long.
UNFINISHED_S = 3600.0


def train(run: str, number: int) -> str:
    """RQ job: train the clients of a group for a round, or push what was trained already."""
    return respond(run, number, make_update)


def evaluate(run: str, number: int) -> str:
    """RQ job: evaluate the newest version on the validation data of a group (closing evaluation)."""
    return respond(run, number, make_evaluation)


def initialise(run: str, number: int) -> str:
    """RQ job: make version 0."""
    return respond(run, number, make_initial)


@dataclass(frozen=True)
class VirtualClientJob:
    """A job's part of a round: what is the same for all its clients, who they are, which attempt."""

    common: ClientJob
    clients: Sequence[str]
    attempt: int

    def assignments(self) -> Iterator[ClientJob]:
        """One after the other, until the round has ended."""
        asked_at = time.monotonic()
        for client in self.clients:
            if time.monotonic() - asked_at > ASK_S:
                if self.common.ended():
                    return
                asked_at = time.monotonic()
            yield replace(self.common, who=client)


def respond(run: str, number: int, make: Make) -> str:
    """
    Answer a round for a group of clients, one after the other, each made once.

    Args:
        make: Makes a client's answer; not called for one whose answer the outbox has.

    Returns:
        What happened, for the log.

    Raises:
        JobRefused: This worker serves a data owner.
        StoreUnavailable: The control server is gone; the healer issues another attempt.
    """
    site, store = _site(), _store()
    if site.client:
        raise JobRefused(f"this worker serves client {site.client}, and trains no virtual ones")
    group = _group(store, site, run, number, os.environ["RQ_JOB_ID"])
    if isinstance(group, str):
        return group
    try:
        return _answer(group, make)
    except pool_worker.RoundGivenUp as exc:
        return str(exc)
    finally:
        _tidy(run, number)


def _answer(group: VirtualClientJob, make: Make) -> str:
    common, done = group.common, 0
    total = _sum(group)
    for job in group.assignments():
        with pool_worker.giving_up():
            kept = find_or_make(job, make)
        if total is None:
            done += push(job, *kept)
            failpoints.failpoint("update.pushed")
        else:
            total.take(*kept)
            done += 1
    if total is not None and done == len(group.clients):
        push(common, *total.element(common.header("group")))
        failpoints.failpoint("update.pushed")
    return f"pushed {done} of {len(group.clients)}"


def _sum(group: VirtualClientJob) -> GroupSum | None:
    """
    What the group's updates are added to; None when each is pushed by itself.

    After a first attempt nobody knows whose updates are in: a sum of them might be of no use.
    """
    common = group.common
    if (
        common.round.purpose != "train"
        or len(group.clients) == 1
        or group.attempt > 1
        or not common.config.premerges
        or common.base is None
    ):
        return None
    return GroupSum(common.base.manifest, common.config, common.round)


def _group(
    store: Store, site: WorkerSettings, run: str, number: int, job_id: str
) -> VirtualClientJob | str:
    """The clients that a job is to answer for; a text when there is nothing to do."""
    who = job_id.partition("_")[0]
    state, current = store.control.run(run), store.control.round(run, number)
    if state is None or not state.active or current is None or not current.open:
        return "the round has ended"
    newest = store.control.job(run, number, who)
    if newest.get("job") != job_id:
        return "superseded by a newer attempt"
    clients = virtual_clients.answerable(who, current.cohort, current.groups)
    if newest["attempt"] > 1:
        # Those whose answers are in need not be asked for them again.
        receipts = store.control.receipts(run, number)
        clients = [c for c in clients if c not in receipts or not receipts[c].answers]
        for client in clients:
            outbox.remove_unfinished(site.outbox, client)
    config = _config(run, current.segment)
    common = ClientJob(store, site, who, state, current, config, is_watched=False)
    if current.purpose != "initialise":
        try:
            common = replace(common, base=_base(common))
        except ModelMismatch as exc:
            log.warning("run=%s round=%s %s", run, number, exc)
            return told(exc, config)
    return VirtualClientJob(common, clients, newest["attempt"])


# What is kept between jobs


@functools.cache
def _site() -> WorkerSettings:
    return WorkerSettings.from_environ()


@functools.cache
def _store() -> Store:
    return _site().connect()


@functools.lru_cache(maxsize=8)
def _config(run: str, segment: int) -> RunConfig:
    return current_config(_store(), run, segment)


_bases: dict[tuple[Any, ...], RoundModel] = {}


def _base(job: ClientJob) -> RoundModel:
    """The round's model, fetched and looked through once for all its clients."""
    what = (job.round.fetched, *sorted(job.round.server_state.items()))
    if what not in _bases:
        fetched = fetch_base(job)
        _bases.clear()
        _bases[what] = fetched
    return _bases[what]


@functools.lru_cache(maxsize=1)
def _tidy(run: str, number: int) -> None:
    """Once a round: remove from this host what no round or run needs any more."""
    site, control = _site(), _store().control
    outbox.remove_unfinished(site.outbox, _EVERYBODY, UNFINISHED_S)
    outbox.sweep(site.outbox, _EVERYBODY, unknown_runs.may_go(control, site.state_dir))
    host_cache.sweep(site.cache, functools.partial(queries.is_over, control))
    client_state.sweep(site.client_states, control.is_needed)


def main() -> int:
    """``python -m workers.pool``: serve ``flq-pool``."""
    determinism.preload()
    importlib.import_module("workers.pool")  # Jobs name it, and we run as ``__main__``.
    return rq_worker.run(keyspace.POOL_QUEUE, pool_worker.PoolWorker)


if __name__ == "__main__":
    sys.exit(main())
