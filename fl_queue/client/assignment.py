"""One job of a client: its round, and the model that it starts from."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from fl_queue.client.site import WorkerSettings
from fl_queue.common.files import Mapped
from fl_queue.common.safe_json import dumps, printable
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import (
    ContentMissing,
    FLQueueError,
    ModelMismatch,
    RoundEnded,
    StoreUnavailable,
)
from fl_queue.models.host_cache import HostCache, base_path
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import INPUTS, DataWait
from fl_queue.store import (
    DATA_WAIT,
    REDIS_ERRORS,
    RoundState,
    RunState,
    Store,
    error_log,
    queries,
)
from fl_queue.strategies import get_strategy
from fl_queue.strategies.base import Strategy
from fl_queue.strategies.layouts import state_manifest
from fl_queue.tasks.error_disclosure import disclosed

Fetched = TypeVar("Fetched")

MODEL_WAIT_S = 0.5
_MAX_WHY = 300


class RoundModel(NamedTuple):
    """
    A round's model as this host has received it, in its cache.

    Args:
        manifest: The run's.
        digest: Of the body as it came.
        encoding: Its codec; with any but ``float32`` what is trained from is not quite the version.
        server: What the strategy has clients fetch besides: name -> digest.
        bodies: The files, mapped: they stay in the cache while these live.
    """

    manifest: Manifest
    digest: str
    encoding: str = "float32"
    server: Mapping[str, str] = MappingProxyType({})
    bodies: Sequence[Mapped] = ()


@dataclass(frozen=True)
class ClientJob:
    """
    Round, run and site of one job.

    Args:
        base: The model to start from, when it has been fetched already.
        is_watched: Whether progress is shown; a virtual client's is not.
        manifest: The run's, where it has been read and checked already.
        in_use: Files that its training process opens by name: until the job ends, the cache keeps them.
        recorded: The recorded config of the round, as JSON has it.
        unmasks: Whether it is the job of a secure round that follows the training.
    """

    store: Store
    site: WorkerSettings
    who: str
    state: RunState
    round: RoundState
    config: RunConfig
    base: RoundModel | None = None
    is_watched: bool = True
    manifest: Manifest | None = None
    in_use: list[Mapped] = field(default_factory=list, compare=False)
    recorded: Mapping[str, Any] = field(default_factory=dict, compare=False)
    unmasks: bool = False

    @property
    def run(self) -> str:
        """Run id."""
        return self.state.run_id

    @property
    def cache(self) -> HostCache:
        """Models of the run that this host has fetched."""
        return HostCache(self.store, self.site.cache, self.run, self.config.redis.chunk_bytes)

    def ended(self) -> bool:
        """Whether no response is wanted any more: the round has ended, or a failover lost its opening."""
        control, number = self.store.control, self.round.number
        if queries.has_ended(control, self.run, number, self.who, trains=not self.unmasks):
            return True
        # Opened once more, from another version.
        return control.rounds.base_digest(self.run, number) not in (None, self.round.base_digest)

    def strategy(self) -> Strategy:
        """The run's strategy, without code of the operator's own."""
        return get_strategy(self.config.aggregation.strategy, self.config.strategy)

    def is_answered_by(self, header: Header) -> bool:
        """
        Whether a response starts from the same version as the round, and from the same config and share of the data.

        A control server that lost its last writes opens a round of the same number once more, perhaps from
        another version, or with other clients.
        """
        wanted = (self.round.base_version, self.round.base_digest)
        is_of = self.round.is_of(header.environment.get(INPUTS))
        return is_of and (header.base_version, header.base_digest) == wanted

    def header(self, kind: str) -> Header:
        """A header of this round, under a new token."""
        return Header(
            kind=kind,
            run=self.run,
            round=self.round.number,
            client=self.who,
            base_version=self.round.base_version,
            base_digest=self.round.base_digest,
            token=secrets.token_hex(8),
        )


class DataWaits:
    """Reports on the control server that a job waits for the data server. Args: ``job``: the job."""

    def __init__(self, job: ClientJob) -> None:
        self._job = job
        self._since = 0.0
        self._said = ""

    def on(self, error: FLQueueError) -> None:
        """It waits: a line in the log once a minute, and in the client's hash when the reason changes."""
        job = self._job
        error_log.write(error, f"run={job.run} client={job.who} waits for the data server: ")
        why = printable(disclosed(error))[:_MAX_WHY]
        if not job.is_watched or why == self._said:
            return
        self._said, self._since = why, self._since or round(time.time(), 3)
        wait = DataWait(os.environ.get("RQ_JOB_ID", ""), self._since, why)
        self._write(dumps(asdict(wait)))

    def over(self) -> None:
        """It need not wait any more."""
        if self._said:
            self._said, self._since = "", 0.0
            self._write("")

    def _write(self, text: str) -> None:
        try:
            self._job.store.control.clients.set_status(self._job.who, {DATA_WAIT: text})
        except REDIS_ERRORS as exc:  # It is only shown.
            error_log.write(exc)


def manifest_of(job: ClientJob) -> Manifest:
    """
    The model of the run.

    Raises:
        ModelMismatch: There is none.
    """
    manifest = job.manifest or job.store.control.versions.manifest(job.run)
    if manifest is None:
        raise ModelMismatch(f"run {job.run} has no manifest", public=True)
    return manifest


def encoding_of(job: ClientJob) -> str:
    """Codec of the model that a job starts from, as it is fetched."""
    return str(job.config.model.codec) if job.round.download else "float32"


def fetch_base(job: ClientJob) -> RoundModel:
    """
    The model to start from; waited for while the data server is away or lacks it.

    Raises:
        RoundEnded: The round ended meanwhile.
    """
    manifest = manifest_of(job)
    encoding = encoding_of(job)

    def fetch() -> RoundModel:
        body = job.cache.fetch(
            job.round.fetched,
            codec.encoded_nbytes(encoding, manifest),
            beside=len(job.strategy().fetched),
        )
        server, bodies = _fetch_state(job, manifest)
        return RoundModel(manifest, job.round.fetched, encoding, server, [body, *bodies])

    found = waited_for(job, fetch)
    for body in found.bodies:
        # Its digest was computed; what is read from now on, another process reads.
        body.unload()
    job.in_use.extend(found.bodies)
    return found


def fetch_base_part(job: ClientJob) -> Path:
    """
    File of the run's base part, fetched once by a host; waited for as ``fetch_base`` does.

    Raises:
        RoundEnded: The round ended meanwhile.
        ModelMismatch: The run has no base part.
        DataError: It is not published.
    """
    base = manifest_of(job).base
    if base is None:
        raise ModelMismatch(f"run {job.run} has no base part", public=True)
    waited_for(job, lambda: job.cache.fetch_base(base))
    return base_path(job.site.cache, base)


def waited_for(job: ClientJob, fetch: Callable[[], Fetched]) -> Fetched:
    """What is fetched, once the data server is there and has it. Raises RoundEnded."""
    waiting = DataWaits(job)
    while True:
        try:
            found = fetch()
            waiting.over()
            return found
        except (ContentMissing, StoreUnavailable) as exc:
            waiting.on(exc)
        time.sleep(MODEL_WAIT_S)
        if job.ended():
            waiting.over()
            raise RoundEnded(
                f"round {job.round.number} ended before its model could be read", public=True
            )


def _fetch_state(job: ClientJob, manifest: Manifest) -> tuple[dict[str, str], list[Mapped]]:
    """Digests of the strategy's tensors that clients fetch, where its server has them, and their files."""
    layout, wanted = state_manifest(manifest), job.strategy().fetched
    digests = {name: digest for name, digest in job.round.server_state.items() if name in wanted}
    bodies = [
        job.cache.fetch(digest, layout.nbytes, beside=len(wanted)) for digest in digests.values()
    ]
    return digests, bodies
