"""State of a run and of a round, parsed from their hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from fl_queue.protocol import identifiers
from fl_queue.protocol.panel import Panel
from fl_queue.protocol.records import Mode, Outcome, Purpose
from fl_queue.protocol.secure_state import SecureState
from fl_queue.protocol.state_fields import Fields


class RunPhase(StrEnum):
    """State of a run."""

    #: Rounds are opened and committed.
    training = "training"
    #: All rounds are committed.
    completed = "completed"
    #: It cannot go on; its reason is recorded.
    failed = "failed"
    #: An operator has ended it.
    cancelled = "cancelled"


class RoundPhase(StrEnum):
    """State of a round: ``open``, then its outcome."""

    #: It takes updates.
    open = "open"
    #: Ended with a new version.
    committed = Outcome.committed.value
    #: Ended without a new version.
    abandoned = Outcome.abandoned.value
    #: Ended as the closing evaluation.
    evaluated = Outcome.evaluated.value
    #: Ended with version 0.
    initialised = Outcome.initialised.value
    #: Ended with its run.
    cancelled = Outcome.cancelled.value


@dataclass(frozen=True)
class RunState:
    """
    One run's hash. ``version`` is None before version 0; ``round`` -1 before the first.

    ``reason_at``: when the reason was first found, Unix time; 0: not known.
    ``digest`` is that of the newest version, ``download`` that of its encoded body; '': there is none.
    ``server_state``: name -> digest of what the strategy keeps with that version. ``restored_from``: the
    run it was restored from, what that one was restored from, and so on.
    ``left_out``: client that is alive and may not be selected -> why, as it was decided last.
    ``not_evaluated``: why the newest version has no closing evaluation, and will have none.
    ``config_digest``: of the newest segment of its config.
    ``metrics``: names and directions that the task has declared with version 0, see ``metrics.Declared``.
    ``state_since``: the newest round in which a client had lost its state, or the run went back to an older
    version; what clients keep for the strategy counts from later rounds only. 0: there is none.
    ``counted_from``: the version from which ``run.patience`` counts. ``tags``: name -> version that it
    names, and that is kept. ``panel``: of a fit whose first step is committed.
    """

    name: str
    run_id: str
    state: RunPhase
    reason: str
    version: int | None
    digest: str
    round: int
    rounds_wanted: int
    abandoned: int
    evaluated_version: int | None
    waited_s: float
    segment: int
    population: tuple[str, ...]
    shares: int
    initial: Mapping[str, Any] | None
    created_at: float
    download: str = ""
    reason_at: float = 0.0
    server_state: Mapping[str, str] = field(default_factory=dict)
    restored_from: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    not_evaluated: str = ""
    config_digest: str = ""
    state_since: int = 0
    counted_from: int = 0
    tags: Mapping[str, int] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    panel: Panel | None = None

    @property
    def active(self) -> bool:
        """Whether the run wants something done."""
        return self.state == RunPhase.training


@dataclass(frozen=True)
class RoundState:
    """
    One round's hash, while its keys live.

    ``groups``: jobs of a simulation's cohort, 0: none. ``download``: digest of the base version's encoded
    body; empty when clients fetch the version itself. ``server_state``: name -> digest of the strategy's state
    that belongs to the base version. ``population``: clients the run has seen when it was opened;
    ``base_population``: when that state was made, 0: not known. ``exponent``: as in ``RoundRecord``.
    ``mode``, ``carried``, ``discount``, ``ineligible``: as in ``RoundRecord``. ``failure``: why an aggregator
    could not end it, ``failures`` times running. ``makers``: who was asked
    for version 0 -> when, in counted seconds since the round was opened. ``start``: which beginning of the
    run it belongs to, see ``preflight.start_of``. ``signed``: what the operator has signed of it, as JSON.
    ``secure``: of a secure round; None: updates come in clear. ``inputs``: digest of all that decides what a
    client trains, besides the round's number and base; empty: not recorded.
    """

    number: int
    state: RoundPhase
    purpose: Purpose
    cohort: tuple[str, ...]
    eligible: tuple[str, ...]
    quorum: int
    deadline_s: float
    grace_s: float
    elapsed_s: float
    quorum_at_s: float | None
    opened_at: float
    base_version: int
    base_digest: str
    fence: int
    data_server: str
    w_max: int
    scales: Mapping[str, list[float]]
    segment: int
    reason: str
    groups: int = 0
    download: str = ""
    server_state: Mapping[str, str] = field(default_factory=dict)
    population: int = 0
    base_population: int = 0
    exponent: int = 0
    mode: Mode = Mode.synchronous
    carried: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    discount: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""
    failures: int = 0
    ineligible: Mapping[str, str] = field(default_factory=dict)
    makers: Mapping[str, float] = field(default_factory=dict)
    start: str = ""
    signed: str = ""
    secure: SecureState | None = None
    inputs: str = ""

    @property
    def is_async(self) -> bool:
        """Whether it ends when its buffer is full."""
        return self.mode == Mode.asynchronous

    @property
    def open(self) -> bool:
        """Whether it still takes updates."""
        return self.state == RoundPhase.open

    @property
    def opening(self) -> str:
        """Identity among rounds of this number, as a control server may lose one and open it again."""
        return f"{self.opened_at:.3f} {self.base_digest}"

    def is_of(self, inputs: object) -> bool:
        """
        Whether a response was made from what this opening of the round has clients train from.

        Args:
            inputs: Of the opening that it was made for; None: its sender did not record it.
        """
        return not self.inputs or inputs in (None, self.inputs)

    def progress(self, received: int) -> str:
        """Describe the progress. Args: ``received``: updates that are in."""
        if self.is_async:
            return f"{received} of {self.quorum} updates in the buffer, {len(self.cohort) - received} clients at work"
        return f"{received} of {len(self.cohort)} updates in, quorum {self.quorum}"

    @property
    def fetched(self) -> str:
        """Digest of what clients fetch to start from."""
        return self.download or self.base_digest


@dataclass(frozen=True)
class Glance:
    """
    Fields of a run and one of its rounds that decide whether a job is still needed.

    Args:
        is_training: Whether the run is.
        newest: Its newest round.
        is_async, is_open: Of the round; one whose keys are gone is taken for an open synchronous one.
        is_unmasking: Whether it is a secure round that takes no updates any more.
    """

    is_training: bool
    newest: int
    is_async: bool
    is_open: bool
    is_unmasking: bool = False


def _makers(fields: Fields, cohort: tuple[str, ...]) -> dict[str, float]:
    if fields.text("purpose") != Purpose.initialise:
        return {}
    # A round that was opened before there were several has its cohort alone.
    return fields.of_clients("makers", float) or dict.fromkeys(cohort, 0.0)


def parse_run_state(run: str, raw: Mapping[str, str]) -> RunState:
    """
    A run's state from the fields of its hash, as text.

    Raises:
        MessageError: A field is missing or malformed; names it.
    """
    fields = Fields(f"run {run[:80]!r}: state", raw)
    return RunState(
        name=fields.name("name"),
        run_id=identifiers.parse_run_id(run),
        state=fields.one_of("state", RunPhase),
        reason=fields.text("reason", ""),
        version=fields.whole_or_none("version"),
        digest=fields.digest("digest", ""),
        round=fields.whole("round"),
        rounds_wanted=fields.whole("rounds_wanted"),
        abandoned=fields.whole("abandoned", 0),
        evaluated_version=fields.whole_or_none("evaluated_version"),
        waited_s=fields.number("waited_s", 0),
        segment=fields.whole("segment", 0),
        population=fields.clients("population", "[]"),
        shares=fields.whole("shares", 0),
        initial=fields.json("initial", dict[str, Any]) if raw.get("initial") else None,
        created_at=fields.number("created_at"),
        download=fields.digest("download", ""),
        server_state=fields.digests("server_state"),
        restored_from=fields.runs("restored_from", "[]"),
        left_out=fields.of_clients("left_out", str),
        not_evaluated=fields.text("not_evaluated", ""),
        reason_at=fields.number("reason_at", 0),
        config_digest=fields.digest("config_digest", ""),
        state_since=fields.whole("state_since", 0),
        metrics=tuple(fields.json("metrics", list[str], "[]")),
        counted_from=fields.whole("counted_from", 0),
        tags=fields.json("tags", dict[str, int], "{}"),
        panel=fields.json("panel", dict[str, Any], then=Panel.from_dict)
        if raw.get("panel")
        else None,
    )


def parse_round_state(number: int, raw: Mapping[str, str]) -> RoundState:
    """The state of a run's round from the fields of its hash, as text. Raises MessageError."""
    fields = Fields(f"round {number}: state", raw)
    cohort = fields.clients("cohort")
    return RoundState(
        number=number,
        state=fields.one_of("state", RoundPhase),
        purpose=fields.one_of("purpose", Purpose),
        cohort=cohort,
        eligible=fields.clients("eligible"),
        quorum=fields.whole("quorum"),
        deadline_s=fields.number("deadline_s"),
        grace_s=fields.number("grace_s"),
        elapsed_s=fields.number("elapsed_s", 0),
        quorum_at_s=fields.number_or_none("quorum_at_s"),
        opened_at=fields.number("opened_at"),
        base_version=fields.whole("base_version"),
        base_digest=fields.digest("base_digest"),
        fence=fields.whole("fence", 0),
        data_server=fields.text("data_server", ""),
        w_max=fields.whole("w_max"),
        scales=fields.json("scales", dict[str, list[float]]),
        segment=fields.whole("segment"),
        reason=fields.text("reason", ""),
        groups=fields.whole("groups", 0),
        download=fields.digest("download", ""),
        server_state=fields.digests("server_state"),
        population=fields.whole("population", 0),
        base_population=fields.whole("base_population", 0),
        exponent=fields.whole("exponent", 0),
        mode=fields.one_of("mode", Mode, Mode.synchronous),
        carried=fields.of_clients("carried", dict[str, int]),
        discount=fields.json("discount", dict[str, Any], "{}"),
        failure=fields.text("failure", ""),
        failures=fields.whole("failures", 0),
        ineligible=fields.of_clients("ineligible", str),
        makers=_makers(fields, cohort),
        start=fields.text("start", ""),
        signed=fields.text("signed", ""),
        inputs=fields.digest("inputs", ""),
        secure=SecureState.from_fields(fields),
    )
