"""
Records that cross a process boundary as JSON: manifests, receipts, round records, events.

Frozen values with ``to_json`` and ``from_json``; a person reads them with redis-cli, so names are
plain and units are in the names. Blobs are in ``protocol/message.py``. No Redis here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from blake3 import blake3

from fl_queue.common import safe_json
from fl_queue.common.safe_json import dumps
from fl_queue.errors import MessageError


class Verdict(StrEnum):
    """Decision about an update: ``received`` until its round ends, then final."""

    #: Merged, or kept to be merged; becomes ``accepted`` when the round is committed.
    received = "received"
    #: In the version that the round made.
    accepted = "accepted"
    #: Of a client whose update is in already.
    duplicate = "duplicate"
    #: Arrived after the round had ended.
    late = "late"
    #: Trained from another version than its round's.
    stale = "stale"
    #: Malformed, or out of limits.
    invalid = "invalid"
    #: The client reported that it could not train.
    failed = "failed"
    #: In the client's name and not sent by it, so it is no evidence about the client.
    forged = "forged"


class Purpose(StrEnum):
    """Purpose of a round."""

    #: Make version 0.
    initialise = "initialise"
    #: Train the newest version.
    train = "train"
    #: Evaluate the newest version on the clients.
    evaluate = "evaluate"
    #: A step of an analysis: each client sends sums over its rows.
    sums = "sums"
    #: Make an older version the newest one; no client takes part.
    restore = "restore"


#: Purposes of rounds in which the answers of a cohort make the next version.
MAKES_NEXT = (Purpose.train, Purpose.sums)


#: Field of an evaluation's environment: 0 where its numbers may be shown only together with those of other clients.
PER_SITE = "per_site"


class Mode(StrEnum):
    """Outcome of a round."""

    #: With its cohort, or at its deadline.
    synchronous = "sync"
    #: With a full buffer.
    asynchronous = "async"


class Outcome(StrEnum):
    """Outcome of a round."""

    #: A version was made.
    committed = "committed"
    #: No version was made, as too few updates came in or they could not be merged.
    abandoned = "abandoned"
    #: The closing evaluation has ended.
    evaluated = "evaluated"
    #: Version 0 was made.
    initialised = "initialised"
    #: The run was cancelled.
    cancelled = "cancelled"
    #: An older version is the newest one again, under a new number.
    restored = "restored"


class EvaluationState(StrEnum):
    """State of an evaluation of a version that has ended."""

    #: With metrics.
    done = "done"
    #: With a reason.
    failed = "failed"


#: In the environment of a failed answer: the class of an error that another attempt would meet, too.
CANNOT = "cannot"

#: In the environment of an update or evaluation: number of the job in its process, from 1.
TRAINER_JOB = "trainer_job"
#: In the environment of a response to a round: ``RoundState.inputs`` of the opening that it was made for.
INPUTS = "inputs"
#: In the environment of version 0: the metrics that the task declares, see ``metrics.Declared.to_record``.
METRICS = "metrics"

#: Scalar of an update, 1: its client has lost what it keeps for the strategy, so the server's state is set to zero.
LOST = "lost"

#: Metrics travel as sums that add up over clients; ``metrics.finish`` turns them into ratios.
Sums = Mapping[str, Any]


def digest_of(value: Any) -> str:
    """BLAKE3 of a value's JSON, hexadecimal: what a config is called by."""
    return blake3(dumps(value).encode()).hexdigest()


@dataclass(frozen=True)
class Receipt:
    """
    Verdict on one update; readable with ``HGETALL flq:{run}:round:<n>:updates``.

    Args:
        status: The verdict.
        reason: Why, for every verdict but ``received`` and ``accepted``; of these which metrics are left out.
        token: The update's own random token (the same when it is pushed again).
        digest: BLAKE3 of its body, hexadecimal.
        num_examples: Examples used this round.
        weight: Its integer weight in the sum; that of fewer examples than it claims, where those are capped.
        norm: L2 norm of its parameters as they came; None where ``aggregation.clip_norm`` is 0.
        clipped: Whether it was scaled down to ``aggregation.clip_norm``.
        staleness: Versions made between the one it was trained from and the one it was merged with.
        counted: What it counts in the divisor of the mean: its weight before it was discounted for staleness.
        metrics: Finished metrics of the client's validation of the base version.
        train_metrics: The same of its training.
        environment: Versions, device, threads, instruction set, task code digest.
        train_s: Seconds it trained, by its own clock.
        nbytes: Bytes of the body.
        key: Fingerprint of the key that signed it; empty: it was not signed.
        state_lost: Whether its client reports the loss of its state for the strategy.
    """

    status: Verdict
    reason: str = ""
    token: str = ""
    digest: str = ""
    num_examples: int = 0
    weight: int = 0
    norm: float | None = None
    clipped: bool = False
    staleness: int = 0
    counted: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    train_metrics: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    train_s: float = 0.0
    nbytes: int = 0
    key: str = ""
    state_lost: bool = False

    @property
    def is_in(self) -> bool:
        """Whether the update is in: merged, or to be merged when its round is committed."""
        return self.status in (Verdict.received, Verdict.accepted)

    @property
    def answers(self) -> bool:
        """Whether it is the client's final answer to the round."""
        return self.is_in or self.status == Verdict.failed

    def to_json(self) -> str:
        """JSON with sorted keys."""
        return dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Receipt:
        """A record from its JSON. Raises MessageError."""
        return safe_json.decode(cls, text, "a receipt")


@dataclass(frozen=True)
class Refusals:
    """
    Refusals of one sender's messages in a round.

    Args:
        count: Elements.
        reason: Why the last one was refused.
    """

    count: int
    reason: str

    def to_json(self) -> str:
        """JSON with sorted keys."""
        return dumps(asdict(self))


@dataclass(frozen=True)
class AwaitedUpdate:
    """
    An update that stays at its site until an operator there has decided.

    Args:
        round: Of its run.
        job: Id of the job that made it, or found it, and has ended.
        since: Unix time of the site, seconds; for display only.
        decided: Whether the next attempt of the job will have something to send.
    """

    round: int
    job: str
    since: float
    decided: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def all_from_json(cls, text: str | bytes) -> dict[str, AwaitedUpdate]:
        """Run id -> its answer. Raises MessageError."""
        raw = safe_json.loads(text, "what a site has to decide")
        if type(raw) is not dict:
            raise MessageError("not what a site has to decide: no map")
        return {
            run: safe_json.record(cls, item, "what a site has to decide")
            for run, item in raw.items()
        }


@dataclass(frozen=True)
class DataWait:
    """
    A client's job that waits for the data server, as its worker reports it.

    Args:
        job: Its id.
        since: Unix time of the site, seconds; for display only.
        why: What the matter is, seen from there.
    """

    job: str
    since: float
    why: str

    @classmethod
    def from_json(cls, text: str) -> DataWait:
        """A record from its JSON. Raises MessageError."""
        return safe_json.decode(cls, text, "what a client waits for")


def updates_in(cohort: Iterable[str], receipts: Mapping[str, Receipt]) -> int:
    """Of how many of a cohort the update is in."""
    return sum(client in receipts and receipts[client].is_in for client in cohort)


@dataclass(frozen=True)
class Enrolment:
    """
    Registration of one client by the operator.

    Args:
        key: Its public Ed25519 key, base64.
        max_examples: More examples in a round count as so many; 0: what the config allows.
        enrolled_at: Unix time of the control server, seconds.
        users: Server (``control``, ``data``) -> name of a Redis user -> the hash of its password; see
            ``clientusers``.
        revoked_at: When it was revoked; 0: it was not.
        serial: Rises with each change, so that an older entry cannot be put back.
        signature: The operator's, of all the rest and the client's id; see ``enrolment_pins``.
    """

    key: str
    max_examples: int = 0
    enrolled_at: float = 0.0
    users: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    revoked_at: float = 0.0
    serial: int = 0
    signature: str = ""

    def to_json(self) -> str:
        """JSON with sorted keys."""
        return dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Enrolment:
        """A record from its JSON. Raises MessageError."""
        return safe_json.decode(cls, text, "an enrolment")


@dataclass(frozen=True)
class RoundRecord:
    """
    One ended round, as the history keeps it permanently: all that decided its outcome.

    Args:
        round: Number, from 1.
        purpose: ``train``, ``evaluate`` for the closing evaluation, or ``restore`` of a run that goes on from
            an older version.
        outcome: ``committed``, ``abandoned``, ``evaluated``, ``cancelled`` or ``restored``.
        reason: Why it ended.
        base_version, base_digest: The version that was trained from, or gone back to.
        version, digest: The version it made; None when it made none.
        cohort: Clients selected, sorted.
        eligible: Clients they were selected from, sorted.
        ineligible: Client that was alive and could not be selected -> why.
        quorum: Accepted updates it needed.
        accepted: Client -> digest of its update: the accepted set.
        weights: Client -> integer weight.
        norms: Client -> L2 norm of its update as it came; empty where ``aggregation.clip_norm`` is 0.
        clipped: Clients whose updates were scaled down to ``aggregation.clip_norm``, sorted.
        capped: Clients that reported more examples than their weight counts (``aggregation.max_examples``, or
            what they are enrolled with), with ``aggregation.weighting = "examples"``, sorted.
        rejected: Client -> verdict and reason, of updates that were not merged.
        missing: Clients of the cohort of whom nothing valid came; none of an asynchronous round.
        left_out: Clients whose update was accepted, and not let in by a robust rule that chooses.
        validation: Merged sums of the clients' validation of the base version.
        client_validation: Client -> its finished metrics on the base version.
        train: Merged sums of training.
        scales: Quantity -> [s, limit] of the exact sum.
        strategy: Its name.
        opened_at: Unix time, seconds, of the control server.
        elapsed_s: Counted duration, seconds.
        config_segment: Index of the config segment that was in force.
        population: Clients the run had seen.
        base_population: Clients it had seen when the base version's server state was made; 0: there is
            none, or it was made before this was recorded.
        base_server_state, server_state: Name -> digest of the strategy's state that belongs to the
            base version and to the one it made.
        mode: ``sync`` or ``async``; the rest is of asynchronous rounds. Their cohort are the clients at
            work, ``eligible`` those that were idle, ``quorum`` the size of the buffer.
        carried: Client -> ``round`` and ``version`` its job began with, of those at work since an
            earlier round.
        staleness: Client -> staleness of its accepted update.
        counted: Client -> what its update counts in the divisor of the mean.
        discount: What staleness does to weights, see ``staleness.Discount``.
        keys: Client -> fingerprint of the key that signed its accepted update; none of unsigned ones.
        exponent, next_exponent: Clients divide what they send by two to this power (q-FedAvg), in this round
            and in the next one.
        state_lost: Clients whose update is accepted and that had lost what they keep for the strategy,
            sorted: its state is zero again from this round on, at the server and at all clients.
        secure: Of a secure round: bits of the ring, digests of roster and survivors, clients of the roster whose
            updates are not in the sum (``dropped``), total weight, and digest of what took the masks off
            (``transcript``); empty: updates came in clear.
    """

    round: int
    purpose: Purpose
    outcome: Outcome
    reason: str
    base_version: int
    base_digest: str
    version: int | None = None
    digest: str | None = None
    cohort: list[str] = field(default_factory=list)
    eligible: list[str] = field(default_factory=list)
    quorum: int = 0
    accepted: dict[str, str] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    clipped: list[str] = field(default_factory=list)
    capped: list[str] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    validation: dict[str, Any] = field(default_factory=dict)
    client_validation: dict[str, dict[str, float]] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, list[float]] = field(default_factory=dict)
    strategy: str = ""
    opened_at: float = 0.0
    elapsed_s: float = 0.0
    config_segment: int = 0
    population: int = 0
    base_population: int = 0
    base_server_state: dict[str, str] = field(default_factory=dict)
    server_state: dict[str, str] = field(default_factory=dict)
    mode: Mode = Mode.synchronous
    carried: dict[str, dict[str, int]] = field(default_factory=dict)
    staleness: dict[str, int] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    exponent: int = 0
    next_exponent: int = 0
    discount: dict[str, Any] = field(default_factory=dict)
    ineligible: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    state_lost: list[str] = field(default_factory=list)
    secure: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """JSON with sorted keys."""
        raw = asdict(self)
        if not self.secure:
            del raw["secure"]  # Releases before secure rounds do not know it.
        return dumps(raw)

    @classmethod
    def from_json(cls, text: str | bytes) -> RoundRecord:
        """A record from its JSON. Raises MessageError."""
        return safe_json.decode(cls, text, "a round's record")
