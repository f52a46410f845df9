"""
Requests of a worker to its trainer: what one job of a client, or of the evaluator, needs to be computed.

Everything that comes from Redis is read and checked here: the trainer gets plain values, and names of files that
lie in the state folder. Without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from fl_queue.client import job_storage
from fl_queue.client.assignment import ClientJob, RoundModel, fetch_base
from fl_queue.client.client_state import StoredClientState
from fl_queue.client.fits import FitFolder
from fl_queue.client.site import WorkerSettings
from fl_queue.config.run_config import RunConfig
from fl_queue.models.host_cache import hold_base
from fl_queue.models.initial import fetch_initial
from fl_queue.protocol import identifiers, virtual_clients
from fl_queue.protocol.records import Purpose
from fl_queue.protocol.trainer_messages import (
    Answer,
    Call,
    InitialFile,
    KeptState,
    ModelFile,
    Progress,
    Request,
)
from fl_queue.store import RunState

#: Takes what a training reports meanwhile.
Report = Callable[[Progress], None]
#: Has a request computed, in this process or by a trainer. Raises TrainingLost.
Ask = Callable[[Request, Report], Answer]


def place_of(site: WorkerSettings, path: Path) -> str:
    """A file of this machine as a request names it: relative to the state folder."""
    return path.relative_to(site.state_dir).as_posix()


def model_file(site: WorkerSettings, run: str, base: RoundModel) -> ModelFile:
    """A fetched model as a request names it; a base part that is here is the run's from then on."""
    folder = place_of(site, site.cache / run)
    part = base.manifest.base
    there = hold_base(site.cache, run, part) if part is not None else None
    return ModelFile(
        manifest=base.manifest.to_json(),
        place=f"{folder}/{base.digest}",
        codec=base.encoding,
        base=place_of(site, there) if there is not None else None,
        server_state={name: f"{folder}/{digest}" for name, digest in base.server.items()},
    )


def answer_of(
    site: WorkerSettings,
    request: Request,
    ask: Ask,
    report: Report,
    fetch_base_part: Callable[[], Path],
) -> Answer:
    """
    The answer to a request, once more with the run's base part where the trainer has built another one.

    That is also where the file that the request names is damaged.

    Args:
        fetch_base_part: Fetches it, or repairs it; returns its file.
    """
    answer = ask(request, report)
    if answer.outcome != "needs_base" or request.model is None:
        return answer
    base = place_of(site, fetch_base_part())
    return ask(replace(request, model=replace(request.model, base=base)), report)


# A job of a round


def update_request(job: ClientJob) -> Request:
    """
    Train from the round's base version.

    Raises:
        NoRoom: The update would not fit on the disk.
        RoundEnded: The round ended while its model was waited for.
    """
    job_storage.check_room(job)
    base = job.base or fetch_base(job)
    stored = job_storage.load_state(job, job.strategy(), base.manifest)
    return _of_round(job, Call.train, base, stored)


def evaluation_request(job: ClientJob) -> Request:
    """
    Evaluate the round's base version, and the client's personal model where it has one.

    Raises:
        RoundEnded: The round ended while its model was waited for.
    """
    base = job.base or fetch_base(job)
    strategy = job.strategy()
    has_state = strategy.personal or base.manifest.private
    stored = (
        job_storage.load_state(job, strategy, base.manifest) if has_state else StoredClientState()
    )
    return _of_round(job, Call.evaluate, base, stored)


def sums_request(job: ClientJob) -> Request:
    """
    Add up the rows of this site for the step after the round's base version.

    Raises:
        RoundEnded: The round ended while that version was waited for.
    """
    older = [FitFolder(job.site.fits, run, job.who) for run in job.state.restored_from]
    FitFolder(job.site.fits, job.run, job.who).adopt(older)
    return _of_round(job, Call.sums, job.base or fetch_base(job))


def initial_request(job: ClientJob) -> Request:
    """
    Build version 0: of the task, or the run's initial model.

    Raises:
        ContentMissing: The initial model is not on the data server (any more).
    """
    return _of_round(job, Call.initialise)


#: Purpose of a round -> the function that makes a client's request for it.
REQUESTS = MappingProxyType(
    {
        Purpose.train: update_request,
        Purpose.evaluate: evaluation_request,
        Purpose.initialise: initial_request,
        Purpose.sums: sums_request,
    }
)


def _of_round(
    job: ClientJob,
    call: Call,
    base: RoundModel | None = None,
    stored: StoredClientState | None = None,
) -> Request:
    blank = job.header("update")
    return Request(
        call=call,
        run=job.run,
        name=job.state.name,
        segment=job.round.segment,
        config=job.config.to_dict(),
        client=job.who,
        round=job.round.number,
        base_version=blank.base_version,
        base_digest=blank.base_digest,
        token=blank.token,
        # Version 0 is made of no client's share of data.
        share=virtual_clients.share_of(job.who, job.state.population) if base else 0,
        shares=job.config.data.shares or job.state.shares or 1,
        exponent=job.round.exponent,
        inputs=job.round.inputs,
        model=model_file(job.site, job.run, base) if base else None,
        state=_kept(job.site, stored) if stored else KeptState(),
        initial=None if base else _initial(job),
        is_masked=call == Call.train and job.round.secure is not None,
    )


def _kept(site: WorkerSettings, stored: StoredClientState) -> KeptState:
    return KeptState(
        place=place_of(site, stored.place) if stored.place and stored.state else None,
        states=tuple(stored.state),
        note=stored.note,
        is_lost=stored.is_lost,
    )


def _initial(job: ClientJob) -> InitialFile | None:
    if not job.state.initial:
        return None
    path = fetch_initial(job.cache, job.state.initial)
    return InitialFile(place=place_of(job.site, path), record=dict(job.state.initial))


# Other jobs


def facts_request(site: WorkerSettings, state: RunState, config: RunConfig) -> Request:
    """
    Report the facts of this site's data, as of a round's training but for the share: the first of ``data.shares``.

    The config is signed. A client's share, and the number of shares, come from Redis unsigned until there is
    a round: an attacker who chose them could find out how many examples a site has.
    """
    return Request(
        call=Call.facts,
        run=state.run_id,
        name=state.name,
        segment=state.segment,
        config=config.to_dict(),
        client=site.client,
        shares=config.data.shares or 1,
    )


def score_request(
    site: WorkerSettings, state: RunState, config: RunConfig, model: RoundModel
) -> Request:
    """Score a version on the task's test data."""
    return Request(
        call=Call.score,
        run=state.run_id,
        name=state.name,
        segment=state.segment,
        config=config.to_dict(),
        client=identifiers.EVALUATOR,
        model=model_file(site, state.run_id, model),
    )
