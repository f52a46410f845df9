"""A client's jobs in secure rounds: the one that trains, and the one that unmasks. Without torch."""

from __future__ import annotations

import os
from dataclasses import replace

from fl_queue.client import outbox, round_job, secure_rounds, sweeping
from fl_queue.client.assignment import ClientJob
from fl_queue.client.progress import refused
from fl_queue.client.site import WorkerSettings
from fl_queue.common import failpoints
from fl_queue.errors import FLQueueError, RoundEnded, RoundRefused
from fl_queue.protocol.records import Purpose


def respond(job: ClientJob, make: round_job.Make, is_declined: bool) -> str:
    """Respond to a secure round: keys first, then the masked update, each made once."""
    try:
        found = secure_rounds.kept(job, outbox.SUFFIX)
        trained = secure_rounds.kept(job, outbox.TRAINED)
        if found is None and trained is None and is_declined:
            make(job)
        elif found is None or found[0].kind == "update":
            waits = _send_masked(job, make, found is None)
            if waits:
                return waits
        found = secure_rounds.kept(job, outbox.SUFFIX)
        if found is None:
            raise RoundEnded(f"round {job.round.number} goes on without", public=True)
        pushed = round_job.push(job, *found)
    except RoundEnded as exc:
        return str(exc)
    failpoints.failpoint("update.pushed")
    sweeping.sweep(job.store, job.site, job.who)
    return "pushed" if pushed else "the round ended before it could be pushed"


def _send_masked(job: ClientJob, make: round_job.Make, is_new: bool) -> str:
    """Send keys, and have the masked update, or a failure, in the outbox; returns why the job ends without it."""
    try:
        part = secure_rounds.SecureRound(job, round_job.push)
        part.send_keys()
        if not is_new:
            return ""
        trained = secure_rounds.kept(job, outbox.TRAINED)
        if trained is None:
            make(part.job)
            trained = secure_rounds.kept(job, outbox.TRAINED)
        if trained is None:
            return ""  # The training has failed: that is in the outbox.
        allowed = round_job.approved(job, *trained) if job.site.approve else trained
        if allowed is None:
            return "waits for a decision at its site"
        if allowed[0].kind == "update":
            part.mask(allowed)
    except secure_rounds.REFUSALS as exc:
        _refuse(job, exc, outbox.SUFFIX if is_new else "")
    return ""


def unmask(run: str, number: int, who: str) -> str:
    """
    Answer a secure round that is being unmasked.

    Returns:
        The outcome, for the log.

    Raises:
        StoreUnavailable: The control server cannot be used; the job is begun again when it can.
    """
    site = WorkerSettings.from_environ()
    store = site.connected()
    current, state = store.control.rounds.get(run, number), store.control.runs.get(run)
    if state is None or current is None or current.secure is None or not current.open:
        return "the round has ended"
    newest = store.control.rounds.job(run, number, who)
    if newest.get("job") != os.environ.get("RQ_JOB_ID"):
        return "superseded by a newer attempt"
    try:
        # Neither a pause nor quiet hours: it takes nothing of the site's data.
        job = replace(
            round_job.trusted_job(store, site, who, state, current, Purpose.train), unmasks=True
        )
    except RoundRefused as exc:
        refused(store, site, exc)
        return str(exc)
    try:
        secure_rounds.SecureRound(job, round_job.push).unmask(is_again=newest.get("attempt", 1) > 1)
    except RoundEnded as exc:
        return str(exc)
    except secure_rounds.REFUSALS as exc:
        _refuse(job, exc, outbox.UNMASK)
        found = secure_rounds.kept(job, outbox.UNMASK)
        return (
            "refused"
            if found is not None and round_job.push(job, *found)
            else "the round has ended"
        )
    return "pushed"


def _refuse(job: ClientJob, why: FLQueueError, suffix: str) -> None:
    """
    Record why this site takes no part in a round any more, and put that into the outbox.

    Args:
        suffix: Of the file; empty: what was sent stays as it is.
    """
    reason = str(why)
    refused(job.store, job.site, RoundRefused(reason))
    if suffix and secure_rounds.kept(job, suffix) is None:
        lasts = isinstance(why, RoundRefused) and why.lasts
        failure = round_job.failure_header(job, reason, RoundRefused.__name__ if lasts else "")
        outbox.write(job.site.outbox, failure, suffix=suffix)
