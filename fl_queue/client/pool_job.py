"""
The pool's job of a round: train a group of virtual clients in this very process.

torch, the task's data and the model are loaded once. Each client is trained as a site would train
it, and its update is in the outbox before the next one begins: a killed process costs its unfinished
clients only.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fl_queue.aggregation.group_sum import GroupSum
from fl_queue.client import client_state, interruption, outbox, trust, unknown_runs
from fl_queue.client.assignment import ClientJob, RoundModel, fetch_base
from fl_queue.client.kept import NOT_KEPT
from fl_queue.client.progress import refused
from fl_queue.client.resident import Resident
from fl_queue.client.round_job import Make, asking, find_or_make, push
from fl_queue.client.site import WorkerSettings
from fl_queue.common import failpoints
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import JobRefused, ModelMismatch, RoundEnded, RoundRefused, TrainingLost
from fl_queue.models import host_cache
from fl_queue.protocol import identifiers, virtual_clients
from fl_queue.protocol.header import Header
from fl_queue.protocol.records import Purpose
from fl_queue.store import RunState, Store, queries
from fl_queue.store.jobs.rq_types import TimedOut
from fl_queue.tasks.error_disclosure import disclosed

log = logging.getLogger(__name__)

#: Pattern of the outbox files of all virtual clients.
_ALL_VIRTUAL = f"{identifiers.VIRTUAL}*"
#: Seconds between two looks whether the round has ended; between two clients.
ASK_S = 0.5
#: Age of an unfinished file that no living process is still writing, seconds.
UNFINISHED_S = 3600.0


@dataclass(frozen=True)
class VirtualClientJob:
    """
    A job's part of a round.

    Args:
        common: What is the same for all its clients.
        clients: Ids of the clients to train.
        attempt: Number of this attempt, from 1.
    """

    common: ClientJob
    clients: Sequence[str]
    attempt: int

    def assignments(self) -> Iterator[ClientJob]:
        """One client's job after the other, until the round has ended."""
        asked_at = time.monotonic()
        for client in self.clients:
            if time.monotonic() - asked_at > ASK_S:
                if self.common.ended():
                    return
                asked_at = time.monotonic()
            yield replace(self.common, who=client)


def respond(run: str, number: int, purpose: Purpose) -> str:
    """
    Respond to a round for a group of clients, one after the other, each response made once.

    Args:
        purpose: The round's, as the job's function has it.

    Returns:
        The outcome, for the log.

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
        return _respond_for_all(group, purpose)
    except interruption.RoundGivenUp as exc:
        return str(exc)
    finally:
        _tidy(run, number)


def _respond_for_all(group: VirtualClientJob, purpose: Purpose) -> str:
    common, done = group.common, 0
    total, make = _sum(group), asking(_resident().handle, purpose)
    for job in group.assignments():
        found = _made(job, make)
        if total is None:
            done += push(job, *found)
            failpoints.failpoint("update.pushed")
        else:
            total.take(*found)
            done += 1
    if total is not None and done == len(group.clients):
        push(common, *total.element(common.header("group")))
        failpoints.failpoint("update.pushed")
    return f"pushed {done} of {len(group.clients)}"


def _made(job: ClientJob, make: Make) -> tuple[Header, memoryview]:
    """One client's response; a process that would train the next one otherwise than a fresh one ends after its job."""
    try:
        with interruption.interruptible():
            return find_or_make(job, make)
    except (TimedOut, TrainingLost):
        _Process.is_spent = True  # A training was broken off anywhere.
        raise
    finally:
        if set(_resident().tidy()) - {NOT_KEPT}:
            _Process.is_spent = True


def is_spent() -> bool:
    """Whether this process is not to have another job."""
    return _Process.is_spent


class _Process:
    """What is so of this process. Args: ``is_spent``: as of the function."""

    is_spent = False


def _sum(group: VirtualClientJob) -> GroupSum | None:
    """
    The sum that the group's updates are added to; None when each update is pushed by itself.

    After a first attempt some updates may have been merged already, and a sum that has them would be refused.
    """
    common = group.common
    if (
        common.round.purpose != Purpose.train
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
    """The clients that a job responds for; a text when there is nothing to do."""
    who = job_id.partition("_")[0]
    state, current = store.control.runs.get(run), store.control.rounds.get(run, number)
    if state is None or not state.active or current is None or not current.open:
        return "the round has ended"
    newest = store.control.rounds.job(run, number, who)
    if newest.get("job") != job_id:
        return "superseded by a newer attempt"
    clients = virtual_clients.answerable(who, current.cohort, current.groups)
    if newest["attempt"] > 1:
        # Clients whose responses have been received are not asked again.
        receipts = store.control.receipts.of_round(run, number)
        clients = [c for c in clients if c not in receipts or not receipts[c].answers]
        for client in clients:
            outbox.remove_unfinished(site.outbox, client)
    try:
        config = _config(store, site, state, current.segment)
    except RoundRefused as exc:
        refused(store, site, exc)
        return str(exc)
    common = ClientJob(store, site, who, state, current, config, is_watched=False)
    if current.purpose != Purpose.initialise:
        try:
            common = replace(common, base=_base(common))
        except (ModelMismatch, RoundEnded) as exc:
            log.warning("run=%s round=%s %s", run, number, exc)
            return disclosed(exc, config)
    return VirtualClientJob(common, clients, newest["attempt"])


# What stays in memory between two jobs


@functools.cache
def _site() -> WorkerSettings:
    return WorkerSettings.from_environ()


@functools.cache
def _store() -> Store:
    return _site().connect()


@functools.cache
def _resident() -> Resident:
    return Resident(_site())


_configs: dict[tuple[str, int, str], RunConfig] = {}
#: More runs than that at a time are unusual; a config is read again then.
_MAX_CONFIGS = 8


def _config(store: Store, site: WorkerSettings, state: RunState, segment: int) -> RunConfig:
    """
    The config of a round, read once.

    Raises:
        RoundRefused: This worker's owner has pinned other configs, or the run has no such segment.
    """
    # By its digest, too: a failover may have lost a segment, and another one has its number.
    key = (state.run_id, segment, state.config_digest)
    if key not in _configs:
        segments = store.control.runs.config_segments(state.run_id)
        found = trust.segment_config(site, state, segments, segment)
        if len(_configs) >= _MAX_CONFIGS:
            _configs.clear()
        _configs[key] = found
    return _configs[key]


_bases: dict[tuple[Any, ...], RoundModel] = {}


def _base(job: ClientJob) -> RoundModel:
    """The round's model, fetched and checked once for all its clients."""
    what = (job.round.fetched, *sorted(job.round.server_state.items()))
    if what not in _bases:
        fetched = fetch_base(job)
        _bases.clear()
        _bases[what] = fetched
    return _bases[what]


@functools.lru_cache(maxsize=1)
def _tidy(run: str, number: int) -> None:
    """Once a round: remove the files of ended rounds and runs from this host."""
    site, control = _site(), _store().control
    outbox.remove_unfinished(site.outbox, _ALL_VIRTUAL, UNFINISHED_S)
    outbox.sweep(site.outbox, _ALL_VIRTUAL, unknown_runs.may_go(control, site.state_dir))
    host_cache.sweep(site.cache, functools.partial(queries.is_over, control))
    client_state.sweep(site.client_states, control.runs.is_needed)
