"""
The client worker: train, evaluate or initialise, keep the result in the outbox, push it.

One process a data owner. torch is imported here, in the parent, with one thread and nothing run, so
that forked jobs start at once and safely.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rq.timeouts import JobTimeoutException

from fl_queue.client import (
    approval,
    client_state,
    local_update,
    outbox,
    pausing,
    preflight,
    trust,
    unknown_runs,
    update_message,
)
from fl_queue.client.assignment import ClientJob, DataWaits, RoundEnded, fetch_base
from fl_queue.client.client_state import StoredClientState
from fl_queue.client.progress import Progress, announce, refused, say
from fl_queue.client.site import WorkerSettings
from fl_queue.common import failpoints
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import (
    BlobError,
    ConfigError,
    DataError,
    NoRoom,
    UnknownRun,
)
from fl_queue.models import host_cache, transfer
from fl_queue.protocol import message, virtual_clients
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.header import Header
from fl_queue.protocol.header_schema import MAX_TEXT
from fl_queue.protocol.records import CANNOT, Purpose
from fl_queue.store import AWAITED, REDIS_ERRORS, RoundState, RunState, Store, keyspace, queries
from fl_queue.strategies.base import (
    RESIDUAL,
)
from fl_queue.tasks.base import code_digest
from fl_queue.tasks.error_disclosure import class_name, told
from fl_queue.tasks.logged_metrics import TrainingLog
from fl_queue.training import data_loading, determinism
from workers import keeping, rq_worker

log = logging.getLogger(__name__)

#: Errors that are there until somebody at the site mends something: of its config, its data or its code.
LASTING = (ConfigError, DataError, ImportError, FileNotFoundError, PermissionError)


@dataclass(frozen=True)
class ClientResponse:
    """
    What a client answers with.

    Args:
        header: Without the digest of the body.
        pieces: The body, piece by piece: a large one is never in memory whole.
    """

    header: Header
    pieces: Iterable[Any] = ()


Make = Callable[[ClientJob], ClientResponse]


def train(run: str, number: int) -> str:
    """RQ job: train on this site's data for a round, or push what was trained already."""
    return respond(run, number, WorkerSettings.from_environ().client, make_update)


def evaluate(run: str, number: int) -> str:
    """RQ job: evaluate the newest version on this site's validation data (closing evaluation)."""
    return respond(run, number, WorkerSettings.from_environ().client, make_evaluation)


def initialise(run: str, number: int) -> str:
    """RQ job: make version 0."""
    return respond(run, number, WorkerSettings.from_environ().client, make_initial)


def tell_facts(run: str, segment: int) -> str:
    """RQ job: tell what this site would train on, for the comparison before round 1."""
    return preflight.tell(run, segment)


def respond(run: str, number: int, who: str, make: Make) -> str:
    """
    Answer a round with one element, made once and pushed until it has arrived.

    Args:
        who: Client id, or ``evaluator``.
        make: Makes the element's header and body; not called when the outbox has them.

    Returns:
        What happened, for the log.

    Raises:
        StoreUnavailable: The control server cannot be used; the job is begun again when it can.
    """
    site = WorkerSettings.from_environ()
    store = site.connect()
    tidy(store, site, who)
    current = store.control.round(run, number)
    state = store.control.run(run)
    if (
        state is None
        or current is None
        or queries.is_past(store.control, state, current, number, who)
    ):
        return "the round has ended"
    # In an asynchronous run, a later round may have taken the job over.
    newest = store.control.job(run, max(number, state.round), who)
    if newest.get("job") != os.environ.get("RQ_JOB_ID"):
        return "superseded by a newer attempt"
    job, untrusted = _trusted(store, site, who, state, current, make)
    why = pausing.why_paused(site)
    if untrusted is not None:
        make = _declining(str(untrusted), trust.RoundRefused.__name__ if untrusted.lasts else "")
    # Version 0 takes nothing of a site's data, and a run ends without it.
    elif why and make is not make_initial:
        make = _declining(why)
    try:
        kept = find_or_make(job, make)
    except RoundEnded as exc:
        return str(exc)
    allowed = _allowed(job, *kept) if site.approve else kept
    if allowed is None:
        return "waits for somebody at its site"
    pushed = push(job, *allowed)
    failpoints.failpoint("update.pushed")
    if pushed and site.approve:
        _tell_examples(job, allowed[0])
    outbox.sweep(site.outbox, who, unknown_runs.may_go(store.control, site.state_dir))
    return "pushed" if pushed else "the round ended before it could be pushed"


def _allowed(job: ClientJob, header: Header, body: memoryview) -> tuple[Header, memoryview] | None:
    """
    What may leave of an answer, as somebody at the site has decided; None: nobody has yet.

    The job is over then. Its update is in the outbox, and the healer waits for the decision.
    """
    if not approval.needed(header):
        return header, body
    path = outbox.path_of(job.site.outbox, job.run, job.round.number, job.who)
    found = approval.decision(path, header)
    if found is None:
        approval.mark_pending(path, os.environ["RQ_JOB_ID"])
        log.warning("run=%s client=%s update waits: `fl-queue approve`", job.run, job.who)
        say(lambda: job.store.control.say(job.who, {AWAITED: approval.pending_as_json(job.site)}))
        return None
    if found.approved:
        return header, body
    outbox.write(job.site.outbox, _failure(job, found.reason))
    return _reread(path)


def push(job: ClientJob, header: Header, body: memoryview) -> bool:
    """Push an answer from the outbox; False when its round ended before it could be."""
    redis, current = job.config.redis, job.round
    rivals = [*current.cohort, *(virtual_clients.group(number) for number in range(current.groups))]
    if current.is_async:
        # Those at work now, too: rounds may have gone by.
        state = job.store.control.run(job.run)
        newest = job.store.control.round(job.run, state.round) if state else None
        rivals = sorted({*rivals, *(newest.cohort if newest else ())})
    waiting = DataWaits(job)
    pushed = outbox.push(
        job.store,
        header,
        body,
        redis["inline_bytes"],
        redis["chunk_bytes"],
        job.ended,
        redis["unmerged_bytes"],
        job.site.seal,
        rivals,
        waiting.on,
    )
    waiting.over()
    return pushed


def tidy(store: Store, site: WorkerSettings, who: str) -> None:
    """Remove from this host what no round or run needs any more."""
    outbox.remove_unfinished(site.outbox, who)
    outbox.sweep(site.outbox, who, unknown_runs.may_go(store.control, site.state_dir))
    host_cache.sweep(site.cache, partial(queries.is_over, store.control))
    client_state.sweep(site.client_states, store.control.is_needed)


def find_or_make(job: ClientJob, make: Make) -> tuple[Header, memoryview]:
    """
    An answer from the outbox: the one that is there, else the one that is made now.

    Raises:
        DataError: The outbox does not keep what is written to it.
    """
    path = outbox.path_of(job.site.outbox, job.run, job.round.number, job.who)
    kept = outbox.read(path)
    if kept is not None and not _is_of(job, kept[0]):
        log.warning(
            "run=%s client=%s update of another round %s: not used",
            job.run,
            job.who,
            job.round.number,
        )
        kept = None
    if kept is None:
        _keep(job, make)
        kept = _reread(path)
        failpoints.failpoint("outbox.written")
    return kept


def _is_of(job: ClientJob, header: Header) -> bool:
    """
    Whether an answer starts from what the round starts from.

    A control server that lost its last writes opens a round of the same number once more, perhaps from
    another version.
    """
    wanted = (job.round.base_version, job.round.base_digest)
    return (header.base_version, header.base_digest) == wanted


def _reread(path: Path) -> tuple[Header, memoryview]:
    """What has just been written to the outbox."""
    kept = outbox.read(path, check=False)
    if kept is None:
        raise DataError(str(path), "the outbox does not keep what is written; check the disk")
    return kept


def _keep(job: ClientJob, make: Make) -> None:
    """Make the answer and put it into the outbox; metrics no header can hold make it a failure."""
    failpoints.failpoint("client.started")
    answer = _made(job, make)
    failpoints.failpoint("client.trained")
    try:
        outbox.write(job.site.outbox, answer.header, answer.pieces)
    except BlobError as exc:
        log.exception("run=%s round=%s client=%s failed", job.run, job.round.number, job.who)
        outbox.write(job.site.outbox, _failure(job, told(exc, job.config)))
    # Where an answer waits for somebody's word, so does how much it was made of.
    if not job.site.approve:
        _tell_examples(job, answer.header)


def _tell_examples(job: ClientJob, header: Header) -> None:
    """Have people read how much a client trains on; a control server that is away costs nothing trained."""
    examples = header.num_examples
    if examples and job.is_watched:
        say(lambda: job.store.control.register_client(job.who, {"num_examples": examples}))


def _failure(job: ClientJob, reason: str, cannot: str = "") -> Header:
    """Args: ``cannot``: the kind of error, where another try of this worker would find the same."""
    environment = {CANNOT: cannot} if cannot else {}
    return replace(job.header("failure"), reason=reason[:MAX_TEXT], environment=environment)


def _declining(why: str, cannot: str = "") -> Make:
    """
    The answer of a site that does not train now: the round ends by its rule, and need not wait.

    Args:
        cannot: As of ``_failure``.
    """
    return lambda job: ClientResponse(_failure(job, why, cannot))


def _trusted(
    store: Store, site: WorkerSettings, who: str, state: RunState, current: RoundState, make: Make
) -> tuple[ClientJob, trust.RoundRefused | None]:
    """
    A job whose round, config and model this site believes; or why it refuses it.

    Nothing of a refused config is used: what the refusal needs to be sent is as by default.
    """
    segments, manifest = store.control.config_segments(state.run_id), None
    if not segments:
        raise UnknownRun(state.name, list(store.control.run_names()))
    if current.purpose != "initialise":
        manifest = store.control.manifest(state.run_id)
    asked = trust.Question(who, _purpose(make), state, current, segments, manifest)
    try:
        config = trust.round_config(site, asked)
    except trust.RoundRefused as exc:
        refused(store, site, exc)
        plain = ClientJob(store, site, who, state, current, RunConfig.from_dict({}))
        return plain, exc
    return ClientJob(store, site, who, state, current, config, manifest=manifest), None


def _purpose(make: Make) -> Purpose:
    if make is make_initial:
        return "initialise"
    return "evaluate" if make is make_evaluation else "train"


def _made(job: ClientJob, make: Make) -> ClientResponse:
    try:
        return make(job)
    except (JobTimeoutException, NoRoom, RoundEnded, *REDIS_ERRORS):
        raise  # The state of a server, or of the disk, is no answer of this site.
    # The task is its owner's code and may raise anything. Tried again it would do the same, so it
    # is reported as this client's answer instead of being left to the deadline.
    except Exception as exc:
        if data_loading.is_dataloader_crash(exc):
            raise  # Somebody killed a process that read samples: as if this one had been.
        log.exception("run=%s round=%s client=%s failed", job.run, job.round.number, job.who)
        cannot = class_name(type(exc)) if isinstance(exc, LASTING) else ""
        return ClientResponse(_failure(job, told(exc, job.config), cannot))


def make_update(job: ClientJob) -> ClientResponse:
    """
    Train from the round's base version.

    Raises:
        NoRoom: What comes of it would not fit on the disk.
    """
    keeping.check_room(job)
    task, context, logged = job.task(), job.context(), TrainingLog()
    base = job.base or fetch_base(job)
    strategy = job.strategy()
    kept = keeping.kept(job, strategy, base.manifest)
    residual = kept.state.get(RESIDUAL, {})
    if job.is_watched:
        announce(job, context)
    made = local_update.train_update(
        task,
        base.manifest,
        base.arrays(),
        replace(context, logged=logged),
        on_loaded=base.body.unload,
        on_epoch=Progress(job, logged).on_epoch,
        plan=local_update.ClientStrategy(
            strategy, base.server, kept.state, kept.is_lost, job.round.exponent
        ),
    )
    keeping.keep(job, strategy, made, context, residual)
    encoding = codec.encoding(job.config.update)
    environment = determinism.environment(context.device, code_digest(task), context.threads)
    environment |= {"client_state": kept.note} if kept.note else {}
    header = update_message.build_header(job.header("update"), made, encoding, environment, context)
    return ClientResponse(header, update_message.iter_body(made, encoding, context, residual))


def make_evaluation(job: ClientJob) -> ClientResponse:
    """Evaluate the round's base version, and what is this client's own."""
    task, context = job.task(), job.context()
    base = job.base or fetch_base(job)
    strategy = job.strategy()
    is_own = strategy.personal or base.manifest.private
    kept = keeping.kept(job, strategy, base.manifest) if is_own else StoredClientState()
    plan = local_update.ClientStrategy(strategy, kept=kept.state)
    sums = local_update.evaluate_client(task, base.manifest, base.arrays(), context, plan)
    environment = determinism.environment(context.device, code_digest(task), context.threads)
    environment |= {"client_state": kept.note} if kept.note else {}
    return ClientResponse(replace(job.header("evaluation"), metrics=sums, environment=environment))


def make_initial(job: ClientJob) -> ClientResponse:
    """
    Version 0: built by the task from the run's seed, or the run's initial model.

    Raises:
        ModelMismatch: The initial model has other tensors than the task's model; names one.
    """
    task = job.task()
    manifest, arrays = local_update.initial_model(task, job.config.run["seed"])
    if job.state.initial:
        arrays = transfer.initial_arrays(job.store, job.run, job.state.initial, manifest)
    environment = determinism.environment(job.site.device, code_digest(task), job.site.threads)
    header = update_message.initial_header(job.header("model"), manifest, environment)
    return ClientResponse(
        header, (message.little_endian(arrays[spec.name]) for spec in manifest.tensors)
    )


def main() -> int:
    """``python -m workers.client``: serve the queue of ``FLQ_SITE_CLIENT``."""
    determinism.preload()
    # Jobs name this module, and we run as ``__main__``: without it each would compile it once more.
    importlib.import_module("workers.client")
    client = WorkerSettings.from_environ().client
    return rq_worker.run(keyspace.client_queue(client))


if __name__ == "__main__":
    sys.exit(main())
