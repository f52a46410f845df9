"""
One client's job of a round: have its response made and kept in the outbox, and push it.

A response is made once. An attempt that finds it in the outbox pushes it without training again. What makes it
(``resident``, in this process or another) is asked for it; nothing here imports torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from fl_queue.client import (
    approval,
    client_state,
    outbox,
    pausing,
    sweeping,
    trust,
)
from fl_queue.client.asking import REQUESTS, Ask, answer_of
from fl_queue.client.assignment import ClientJob, DataWaits, fetch_base_part
from fl_queue.client.progress import ProgressEvents, refused, write_best_effort
from fl_queue.client.site import WorkerSettings
from fl_queue.common import failpoints
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import (
    LASTING,
    LocalStorageError,
    NoRoom,
    RoundEnded,
    RoundRefused,
    TrainingLost,
    UnknownRun,
)
from fl_queue.models import host_cache
from fl_queue.protocol import virtual_clients
from fl_queue.protocol.header import MAX_TEXT, Header
from fl_queue.protocol.records import CANNOT, INPUTS, Purpose
from fl_queue.protocol.trainer_messages import Answer, Request
from fl_queue.store import AWAITED, REDIS_ERRORS, RoundState, RunState, Store, queries
from fl_queue.store.jobs.rq_types import TimedOut
from fl_queue.tasks.error_disclosure import failure_of, shown

log = logging.getLogger(__name__)

#: Puts a response to a job into the outbox.
Make = Callable[[ClientJob], None]
#: Responds to a secure round: job, what makes its update or a decline, and whether it is a decline; as ``respond``.
RespondSecure = Callable[[ClientJob, Make, bool], str]


def respond(
    run: str,
    number: int,
    who: str,
    purpose: Purpose,
    ask: Ask,
    secure: RespondSecure | None = None,
) -> str:
    """
    Respond to a round with one element, made once and pushed until it has arrived.

    Args:
        who: Client id, or ``evaluator``.
        purpose: The round's, as the job's function has it.
        ask: Makes it.
        secure: Responds to a secure round; None: it is of a kind that has none.

    Returns:
        The outcome, for the log.

    Raises:
        StoreUnavailable: The control server cannot be used; the job is begun again when it can.
    """
    site = WorkerSettings.from_environ()
    store = site.connected()
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
    job, declines = _accepted_job(store, site, who, state, current, purpose)
    make = declines or asking(ask, purpose)
    if secure is not None and current.secure is not None and purpose == Purpose.train:
        return secure(job, make, declines is not None)
    return _respond_in_clear(job, make)


def _respond_in_clear(job: ClientJob, make: Make) -> str:
    """Have the response made, unless it lies in the outbox, and push it as far as the site lets it leave."""
    try:
        found = find_or_make(job, make)
    except RoundEnded as exc:
        return str(exc)
    allowed = approved(job, *found) if job.site.approve else found
    if allowed is None:
        return "waits for a decision at its site"
    pushed = push(job, *allowed)
    failpoints.failpoint("update.pushed")
    if pushed and job.site.approve:
        _register_examples(job, allowed[0])
    sweeping.sweep(job.store, job.site, job.who)
    return "pushed" if pushed else "the round ended before it could be pushed"


# Trust and pauses: a site may decline a job


def _accepted_job(
    store: Store,
    site: WorkerSettings,
    who: str,
    state: RunState,
    current: RoundState,
    purpose: Purpose,
) -> tuple[ClientJob, Make | None]:
    """A job, and what makes the response of a site that declines; None: it takes part."""
    try:
        job = trusted_job(store, site, who, state, current, purpose)
    except RoundRefused as exc:
        refused(store, site, exc)
        # Nothing of a refused config is used: the refusal is sent with the default options.
        job = ClientJob(store, site, who, state, current, RunConfig.from_dict({}))
        return job, _declining(str(exc), RoundRefused.__name__ if exc.lasts else "")
    why = pausing.why_paused(site)
    # Version 0 takes nothing of a site's data, and a run without version 0 fails.
    declines = bool(why) and purpose != Purpose.initialise
    return job, _declining(why) if declines else None


def trusted_job(
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
    recorded = segments[current.segment]["config"]
    return ClientJob(store, site, who, state, current, config, manifest=manifest, recorded=recorded)


def _declining(why: str, cannot: str = "") -> Make:
    """
    The response of a site that does not train now: the round ends by its rule, without waiting.

    Args:
        cannot: As of ``_failure``.
    """
    return lambda job: _fail(job, why, cannot)


def failure_header(job: ClientJob, reason: str, cannot: str = "") -> Header:
    """
    Header of a failure.

    Args:
        cannot: Class of an error that another attempt of this worker would meet again.
    """
    environment = {CANNOT: cannot} if cannot else {}
    if job.round.inputs:
        environment[INPUTS] = job.round.inputs
    return replace(job.header("failure"), reason=reason[:MAX_TEXT], environment=environment)


def approved(job: ClientJob, header: Header, body: memoryview) -> tuple[Header, memoryview] | None:
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
    outbox.write(job.site.outbox, failure_header(job, found.reason))
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
    sweeping.sweep(store, site, who)
    host_cache.sweep(site.cache, partial(queries.is_over, store.control))
    for kept in (site.client_states, site.fits):
        client_state.sweep(kept, store.control.runs.is_needed)


def find_or_make(job: ClientJob, make: Make) -> tuple[Header, memoryview]:
    """
    A response from the outbox: the one that an earlier attempt left there, else a new one.

    Raises:
        LocalStorageError: The outbox does not keep the file that was written to it.
        TrainingLost: What makes it was lost, and has left nothing there.
        RoundEnded: The round ended meanwhile.
    """
    path = outbox.path_of(job.site.outbox, job.run, job.round.number, job.who)
    found = outbox.read(path)
    if found is not None and not job.is_answered_by(found[0]):
        log.warning(
            "run=%s client=%s update of another round %s: not used",
            job.run,
            job.who,
            job.round.number,
        )
        found = None
    if found is None:
        make(job)
        found = _reread(path)
        # The number of examples is data of the site: with --approve it waits for the decision, too.
        if not job.site.approve:
            _register_examples(job, found[0])
    return found


def _reread(path: Path) -> tuple[Header, memoryview]:
    """The response that has just been written to the outbox."""
    found = outbox.read(path, check=False)
    if found is None:
        raise LocalStorageError(
            str(path), "the outbox does not keep what is written; check the disk"
        )
    return found


def _register_examples(job: ClientJob, header: Header) -> None:
    """Record how many examples a client trains on, for ``status``; an outage loses only this number."""
    examples = header.num_examples
    if examples and job.is_watched:
        register = job.store.control.clients.set_fields
        write_best_effort(lambda: register(job.who, {"num_examples": examples}))


def asking(ask: Ask, purpose: Purpose) -> Make:
    """What has the response to a round made by ``ask``."""
    return partial(_ask, ask=ask, purpose=purpose)


def _ask(job: ClientJob, ask: Ask, purpose: Purpose) -> None:
    """
    Have a response put into the outbox; an error of the task or of the data is one, too.

    Raises:
        NoRoom, RoundEnded, TrainingLost: There is none.
    """
    request = None
    try:
        request = REQUESTS[purpose](job)
        report = ProgressEvents(job).report
        answer = answer_of(job.site, request, ask, report, lambda: fetch_base_part(job))
    except (TimedOut, NoRoom, RoundEnded, *REDIS_ERRORS):
        raise  # The state of a server, or of the disk, is no response of this site.
    except TrainingLost:
        # A process may be lost after it has written the response, and before it could answer.
        if request is None or not _is_written(job, request):
            raise
        return
    # What cannot even be asked for, such as a share that there is not, is this client's response.
    except Exception as exc:
        log.exception("run=%s round=%s client=%s failed", job.run, job.round.number, job.who)
        failure = failure_of(exc, job.config, lasts=isinstance(exc, LASTING))
        answer = Answer(outcome="failed", failure=failure)
    _act_on(job, request, answer)


def _act_on(job: ClientJob, request: Request | None, answer: Answer) -> None:
    """
    Act on an answer: a failure is written here, in place of the response that there is not.

    Raises:
        RoundEnded, TrainingLost: There is nothing to send.
    """
    failure = answer.error
    if answer.outcome == "ended":
        raise RoundEnded(f"round {job.round.number} ended while it was trained for", public=True)
    if answer.outcome == "stale":
        raise TrainingLost("the task's code was edited; a fresh process imports it", public=True)
    if answer.outcome == "lost":
        raise TrainingLost(shown(failure), public=True)
    if answer.outcome == "failed":
        # Of a secure round nothing but the class of an error leaves the site.
        reason = shown(failure) if job.round.secure is None else failure.kind
        _fail(job, reason, failure.kind if failure.lasts else "")
    elif request is None or not _is_written(job, request):
        raise TrainingLost("its process has not written what it was asked for", public=True)


def _is_written(job: ClientJob, request: Request) -> bool:
    """Whether the response to a request is in the outbox."""
    suffix = outbox.TRAINED if request.is_masked else outbox.SUFFIX
    path = outbox.path_of(job.site.outbox, job.run, job.round.number, job.who, suffix)
    found = outbox.read(path)
    if found is None:
        return False
    header = found[0]
    asked = (request.token, request.run, request.round, request.client)
    return (header.token, header.run, header.round, header.client) == asked


def _fail(job: ClientJob, reason: str, cannot: str = "") -> None:
    """Put a failure into the outbox. Args: ``cannot``: as of ``_failure``."""
    outbox.write(job.site.outbox, failure_header(job, reason, cannot))
