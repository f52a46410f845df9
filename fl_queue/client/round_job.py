"""
One client's job of a round: train, evaluate or initialise, keep the response in the outbox, push it.

A response is made once. An attempt that finds it in the outbox pushes it without training again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fl_queue.client import (
    approval,
    client_state,
    job_storage,
    local_update,
    outbox,
    pausing,
    trust,
    unknown_runs,
    update_message,
)
from fl_queue.client.assignment import ClientJob, DataWaits, fetch_base, fetch_base_part
from fl_queue.client.client_state import StoredClientState
from fl_queue.client.progress import Progress, announce, refused, write_best_effort
from fl_queue.client.site import WorkerSettings
from fl_queue.client.version_zero import version_zero
from fl_queue.common import failpoints
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import (
    ConfigError,
    DataError,
    LocalStorageError,
    MessageError,
    NoRoom,
    RoundEnded,
    RoundRefused,
    UnknownRun,
)
from fl_queue.models import host_cache
from fl_queue.models.initial import initial_arrays
from fl_queue.protocol import virtual_clients
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.header import MAX_TEXT, Header
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import CANNOT, Purpose
from fl_queue.store import AWAITED, REDIS_ERRORS, RoundState, RunState, Store, queries
from fl_queue.store.jobs.rq_types import TimedOut
from fl_queue.strategies.layouts import RESIDUAL
from fl_queue.tasks.base import code_digest
from fl_queue.tasks.error_disclosure import class_name, disclosed
from fl_queue.tasks.logged_metrics import TrainingLog
from fl_queue.training import data_loading
from fl_queue.training.determinism import Compute
from fl_queue.training.optimizers import implementation

log = logging.getLogger(__name__)

#: Errors that last until the site's config, data or code is mended.
LASTING = (
    ConfigError,
    DataError,
    LocalStorageError,
    ImportError,
    FileNotFoundError,
    PermissionError,
)


@dataclass(frozen=True)
class ClientResponse:
    """
    A client's response to a round.

    Args:
        header: Without the digest of the body.
        pieces: The body, piece by piece: a large one is never in memory whole.
    """

    header: Header
    pieces: Iterable[Any] = ()


MakeResponse = Callable[[ClientJob], ClientResponse]


def respond(run: str, number: int, who: str, purpose: Purpose) -> str:
    """
    Respond to a round with one element, made once and pushed until it has arrived.

    Args:
        who: Client id, or ``evaluator``.
        purpose: The round's, as the job's function has it.

    Returns:
        The outcome, for the log.

    Raises:
        StoreUnavailable: The control server cannot be used; the job is begun again when it can.
    """
    site = WorkerSettings.from_environ()
    store = site.connect()
    tidy(store, site, who)
    current = store.control.rounds.get(run, number)
    state = store.control.runs.get(run)
    if (
        state is None
        or current is None
        or queries.is_past(store.control, state, current, number, who)
    ):
        return "the round has ended"
    # In an asynchronous run, a later round may have taken the job over.
    newest = store.control.rounds.job(run, max(number, state.round), who)
    if newest.get("job") != os.environ.get("RQ_JOB_ID"):
        return "superseded by a newer attempt"
    job, make = _accepted_job(store, site, who, state, current, purpose)
    try:
        found = find_or_make(job, make)
    except RoundEnded as exc:
        return str(exc)
    allowed = _approved(job, *found) if site.approve else found
    if allowed is None:
        return "waits for a decision at its site"
    pushed = push(job, *allowed)
    failpoints.failpoint("update.pushed")
    if pushed and site.approve:
        _register_examples(job, allowed[0])
    outbox.sweep(site.outbox, who, unknown_runs.may_go(store.control, site.state_dir))
    return "pushed" if pushed else "the round ended before it could be pushed"


# Trust and pauses: a site may decline a job


def _accepted_job(
    store: Store,
    site: WorkerSettings,
    who: str,
    state: RunState,
    current: RoundState,
    purpose: Purpose,
) -> tuple[ClientJob, MakeResponse]:
    """A job and the function that makes its response; that of a site that declines makes a failure."""
    make = MAKERS[purpose]
    try:
        job = _trusted_job(store, site, who, state, current, purpose)
    except RoundRefused as exc:
        refused(store, site, exc)
        # Nothing of a refused config is used: the refusal is sent with the default options.
        job = ClientJob(store, site, who, state, current, RunConfig.from_dict({}))
        return job, _declining(str(exc), RoundRefused.__name__ if exc.lasts else "")
    why = pausing.why_paused(site)
    # Version 0 takes nothing of a site's data, and a run without version 0 fails.
    if why and purpose != Purpose.initialise:
        make = _declining(why)
    return job, make


def _trusted_job(
    store: Store,
    site: WorkerSettings,
    who: str,
    state: RunState,
    current: RoundState,
    purpose: Purpose,
) -> ClientJob:
    """
    A job whose round, config and model this site trusts.

    Raises:
        RoundRefused: The site does not trust them.
        UnknownRun: The run is gone.
    """
    segments, manifest = store.control.runs.config_segments(state.run_id), None
    if not segments:
        raise UnknownRun(state.name, list(store.control.runs.names()))
    if current.purpose != Purpose.initialise:
        manifest = store.control.versions.manifest(state.run_id)
    asked = trust.Question(who, purpose, state, current, segments, manifest)
    config = trust.round_config(site, asked)
    return ClientJob(store, site, who, state, current, config, manifest=manifest)


def _declining(why: str, cannot: str = "") -> MakeResponse:
    """
    The response of a site that does not train now: the round ends by its rule, without waiting.

    Args:
        cannot: As of ``_failure``.
    """
    return lambda job: ClientResponse(_failure(job, why, cannot))


def _failure(job: ClientJob, reason: str, cannot: str = "") -> Header:
    """
    Header of a failure.

    Args:
        cannot: Class of an error that another attempt of this worker would meet again.
    """
    environment = {CANNOT: cannot} if cannot else {}
    return replace(job.header("failure"), reason=reason[:MAX_TEXT], environment=environment)


def _approved(job: ClientJob, header: Header, body: memoryview) -> tuple[Header, memoryview] | None:
    """
    The response that may leave by the site's decision; None while there is no decision.

    The job is over then. Its update is in the outbox, and the healer waits for the decision.
    """
    if not approval.needed(header):
        return header, body
    path = outbox.path_of(job.site.outbox, job.run, job.round.number, job.who)
    found = approval.decision(path, header)
    if found is None:
        approval.mark_pending(path, os.environ["RQ_JOB_ID"])
        log.warning("run=%s client=%s update waits: `fl-queue approve`", job.run, job.who)
        pending = {AWAITED: approval.pending_as_json(job.site)}
        write_best_effort(lambda: job.store.control.clients.set_status(job.who, pending))
        return None
    if found.approved:
        return header, body
    outbox.write(job.site.outbox, _failure(job, found.reason))
    return _reread(path)


# The outbox: made once, pushed until it has arrived


def push(job: ClientJob, header: Header, body: memoryview) -> bool:
    """Push a response from the outbox; False when its round ended first."""
    redis, current = job.config.redis, job.round
    rivals = [*current.cohort, *(virtual_clients.group(number) for number in range(current.groups))]
    if current.is_async:
        # Rounds may have passed since: the clients of the newest one send, too.
        state = job.store.control.runs.get(job.run)
        newest = job.store.control.rounds.get(job.run, state.round) if state else None
        rivals = sorted({*rivals, *(newest.cohort if newest else ())})
    waiting = DataWaits(job)
    options = outbox.SendOptions(
        redis.inline_bytes,
        redis.chunk_bytes,
        redis.unmerged_bytes,
        job.site.seal,
        rivals,
    )
    pushed = outbox.push(job.store, header, body, options, job.ended, waiting.on)
    waiting.over()
    return pushed


def tidy(store: Store, site: WorkerSettings, who: str) -> None:
    """Remove the files of ended rounds and runs from this host."""
    outbox.remove_unfinished(site.outbox, who)
    outbox.sweep(site.outbox, who, unknown_runs.may_go(store.control, site.state_dir))
    host_cache.sweep(site.cache, partial(queries.is_over, store.control))
    client_state.sweep(site.client_states, store.control.runs.is_needed)


def find_or_make(job: ClientJob, make: MakeResponse) -> tuple[Header, memoryview]:
    """
    A response from the outbox: the one that an earlier attempt left there, else a new one.

    Raises:
        LocalStorageError: The outbox does not keep the file that was written to it.
    """
    path = outbox.path_of(job.site.outbox, job.run, job.round.number, job.who)
    found = outbox.read(path)
    if found is not None and not _is_of_round(job, found[0]):
        log.warning(
            "run=%s client=%s update of another round %s: not used",
            job.run,
            job.who,
            job.round.number,
        )
        found = None
    if found is None:
        _make_and_write(job, make)
        found = _reread(path)
        failpoints.failpoint("outbox.written")
    return found


def _is_of_round(job: ClientJob, header: Header) -> bool:
    """
    Whether a response starts from the same version as the round.

    A control server that lost its last writes opens a round of the same number once more, perhaps from
    another version.
    """
    wanted = (job.round.base_version, job.round.base_digest)
    return (header.base_version, header.base_digest) == wanted


def _reread(path: Path) -> tuple[Header, memoryview]:
    """The response that has just been written to the outbox."""
    found = outbox.read(path, check=False)
    if found is None:
        raise LocalStorageError(
            str(path), "the outbox does not keep what is written; check the disk"
        )
    return found


def _make_and_write(job: ClientJob, make: MakeResponse) -> None:
    """Make the response and put it into the outbox; metrics that no header can hold make it a failure."""
    failpoints.failpoint("client.started")
    response = _make(job, make)
    failpoints.failpoint("client.trained")
    try:
        outbox.write(job.site.outbox, response.header, response.pieces)
    except MessageError as exc:
        log.exception("run=%s round=%s client=%s failed", job.run, job.round.number, job.who)
        outbox.write(job.site.outbox, _failure(job, disclosed(exc, job.config)))
    # The number of examples is data of the site: with --approve it waits for the decision, too.
    if not job.site.approve:
        _register_examples(job, response.header)


def _register_examples(job: ClientJob, header: Header) -> None:
    """Record how many examples a client trains on, for ``status``; an outage loses only this number."""
    examples = header.num_examples
    if examples and job.is_watched:
        register = job.store.control.clients.set_fields
        write_best_effort(lambda: register(job.who, {"num_examples": examples}))


def _make(job: ClientJob, make: MakeResponse) -> ClientResponse:
    try:
        return make(job)
    except (TimedOut, NoRoom, RoundEnded, *REDIS_ERRORS):
        raise  # The state of a server, or of the disk, is no response of this site.
    # The task is its owner's code and may raise anything. Another attempt would meet the same error, so it
    # is this client's response instead of being left to the deadline.
    except Exception as exc:
        if data_loading.is_dataloader_crash(exc):
            raise  # A process that read samples was killed: the same as if this one had been.
        log.exception("run=%s round=%s client=%s failed", job.run, job.round.number, job.who)
        cannot = class_name(type(exc)) if isinstance(exc, LASTING) else ""
        return ClientResponse(_failure(job, disclosed(exc, job.config), cannot))


# The three responses


def make_update(job: ClientJob) -> ClientResponse:
    """
    Train from the round's base version.

    Raises:
        NoRoom: The update would not fit on the disk.
    """
    job_storage.check_room(job)
    task, context, logged = job.task(), job.context(), TrainingLog()
    base = job.base or fetch_base(job)
    strategy = job.strategy()
    stored = job_storage.load_state(job, strategy, base.manifest)
    residual = stored.state.get(RESIDUAL, {})
    if job.is_watched:
        announce(job, context)
    trainer = local_update.ClientTrainer(
        task,
        base.manifest,
        base.arrays(),
        replace(context, logged=logged),
        local_update.ClientStrategy(
            strategy, base.server, stored.state, stored.is_lost, job.round.exponent
        ),
        partial(fetch_base_part, job),
    )
    result = trainer.train(Progress(job, logged).on_epoch, base.body.unload)
    job_storage.write_state(job, strategy, result, context, residual)
    encoding = codec.encoding(job.config.update)
    environment = context.compute.environment(code_digest(task))
    environment |= {"client_state": stored.note} if stored.note else {}
    if (name := job.config.train.optimizer) != "sgd":
        environment["optimizer"] = implementation(name, context.device)
    header = update_message.build_header(
        job.header("update"), result, encoding, environment, context
    )
    return ClientResponse(header, update_message.iter_body(result, encoding, context, residual))


def make_evaluation(job: ClientJob) -> ClientResponse:
    """Evaluate the round's base version, and the client's personal model where it has one."""
    task, context = job.task(), job.context()
    base = job.base or fetch_base(job)
    strategy = job.strategy()
    has_state = strategy.personal or base.manifest.private
    stored = (
        job_storage.load_state(job, strategy, base.manifest) if has_state else StoredClientState()
    )
    plan = local_update.ClientStrategy(strategy, kept=stored.state)
    trainer = local_update.ClientTrainer(
        task, base.manifest, base.arrays(), context, plan, partial(fetch_base_part, job)
    )
    sums = trainer.evaluate()
    environment = context.compute.environment(code_digest(task))
    environment |= {"client_state": stored.note} if stored.note else {}
    return ClientResponse(replace(job.header("evaluation"), metrics=sums, environment=environment))


def make_initial(job: ClientJob) -> ClientResponse:
    """
    Version 0: built by the task from the run's seed, with the run's initial model over it.

    Raises:
        ModelMismatch: The initial model does not fit the task's model; names a tensor.
    """
    task, initial = job.task(), job.state.initial

    def filled(manifest: Manifest, built: Mapping[str, Any]) -> dict[str, Any]:
        return initial_arrays(job.store, job.run, initial or {}, manifest, built)

    made = version_zero(task, job.config.run.seed, filled if initial else None)
    environment = Compute(job.site.device, job.site.threads).environment(code_digest(task))
    header = update_message.initial_header(job.header("model"), made.manifest, environment)
    return ClientResponse(header, made.pieces())


#: Purpose of a round -> the function that makes a client's response to it.
MAKERS: Mapping[Purpose, MakeResponse] = MappingProxyType(
    {
        Purpose.train: make_update,
        Purpose.evaluate: make_evaluation,
        Purpose.initialise: make_initial,
    }
)
