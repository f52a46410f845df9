"""
Deadlines of rounds that do not train: the making of version 0, and the closing evaluation.

Neither has a time of its own in the config. Both have at least that of a round (``round.deadline_s``), and
that of a training job (``train.timeout_s``), and the time that a slow line needs for the model. A worker
that is gone is not waited for that long.
"""

from __future__ import annotations

from collections.abc import Mapping

from fl_queue.config.run_config import RunConfig
from fl_queue.protocol import identifiers
from fl_queue.protocol.records import MAKES_NEXT, Purpose
from fl_queue.store import RunState, Store, keyspace
from fl_queue.store.jobs import dispatch
from fl_queue.store.jobs.dispatch import JobTicket

SLOWEST_BYTES_PER_S = 1_000_000
#: No such round is closed earlier, however short the rounds of training are; seconds.
LEAST_S = 120.0
#: The same of a client that is alive and has not begun with the closing evaluation.
LEAST_EVALUATION_S = 60.0


def deadline_s(store: Store, state: RunState, config: RunConfig, purpose: Purpose) -> float:
    """Longest time that a round of a purpose is open, counted; in seconds."""
    if purpose in MAKES_NEXT:
        return float(config.round.deadline_s)
    nbytes = 0
    if purpose == Purpose.evaluate:
        manifest = store.control.versions.manifest(state.run_id)
        nbytes = manifest.initial_nbytes if manifest is not None else 0
    elif state.initial:
        nbytes = 2 * int(state.initial["nbytes"])  # Fetched, and sent back.
    longest = max(LEAST_S, config.round.deadline_s, config.train.timeout_s)
    return float(longest + nbytes / SLOWEST_BYTES_PER_S)


def longest_job_s(store: Store, state: RunState, config: RunConfig, purpose: Purpose) -> float:
    """After how long a job is ended: that of version 0 may have to send a model of unknown size."""
    if purpose != Purpose.initialise:
        return float(config.train.timeout_s)
    largest = float(config.model.max_bytes) / SLOWEST_BYTES_PER_S
    return deadline_s(store, state, config, purpose) + largest


def is_there(store: Store, config: RunConfig, who: str) -> bool:
    """Whether a worker for the jobs of a client or of the evaluator is alive, as far as that is known."""
    if store.control.clients.is_settling():
        return True
    if who == identifiers.EVALUATOR:
        return store.control.workers.is_role_alive(identifiers.EVALUATOR)
    if config.is_simulation:
        return store.control.workers.is_role_alive(identifiers.POOL)
    return bool(store.control.leases.get(keyspace.client_holder(who)))


def is_at_work(store: Store, ticket: JobTicket | None) -> bool:
    """Whether a living worker is at a job."""
    state = dispatch.job_state(store, ticket) if ticket is not None else ""
    worker = state.removeprefix("started by ")
    return worker != state and (
        store.control.workers.is_alive(worker) or store.control.clients.is_settling()
    )


def expected(
    store: Store,
    config: RunConfig,
    silent: list[str],
    tickets: Mapping[str, JobTicket],
    elapsed_s: float,
) -> list[str]:
    """
    Of clients that have not answered the closing evaluation, those that it still waits for.

    Args:
        silent: Who has not answered.
        tickets: Client -> its job, of a round without groups.
        elapsed_s: Counted since the round was opened.
    """
    active_s = config.clients.active_s
    if elapsed_s < active_s or store.control.clients.is_settling():
        return silent
    if config.is_simulation:
        return silent if store.control.workers.is_role_alive(identifiers.POOL) else []
    ages = store.control.clients.heartbeat_ages()
    here = [client for client in silent if client in ages and ages[client] <= active_s]
    if elapsed_s < max(LEAST_EVALUATION_S, config.round.deadline_s):
        return here
    # They have had the time of a round: now only for those that are at it.
    return [client for client in here if is_at_work(store, tickets.get(client))]
