"""
What the hash of a run and that of a round say, as values. No Redis here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from fl_queue.records import Mode, Purpose


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
    ``config_digest``: of the newest segment of its config, as somebody who watches reads it; nobody relies on it.
    """

    name: str
    run_id: str
    state: str
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

    @property
    def active(self) -> bool:
        """Whether the run wants something done."""
        return self.state == "training"


@dataclass(frozen=True)
class RoundState:
    """
    One round's hash, while its keys live.

    ``groups``: jobs of a simulation's cohort, 0: none. ``download``: digest of the base version's encoded
    body; empty when clients fetch the version itself. ``server_state``: name -> digest of the strategy's state
    that belongs to the base version. ``population``: clients the run has seen when it was opened;
    ``base_population``: when that state was made, 0: not known.
    ``mode``, ``carried``, ``discount``, ``ineligible``: as in ``RoundRecord``. ``failure``: why an aggregator
    could not end it, ``failures`` times running. ``makers``: who was asked
    for version 0 -> when, in counted seconds since the round was opened. ``start``: which beginning of the
    run it belongs to, see ``preflight.start_of``. ``signed``: what the operator has signed of it, as JSON.
    """

    number: int
    state: str
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
    mode: Mode = "sync"
    carried: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    discount: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""
    failures: int = 0
    ineligible: Mapping[str, str] = field(default_factory=dict)
    makers: Mapping[str, float] = field(default_factory=dict)
    start: str = ""
    signed: str = ""

    @property
    def is_async(self) -> bool:
        return self.mode == "async"

    @property
    def open(self) -> bool:
        return self.state == "open"

    @property
    def opening(self) -> str:
        """Tells it from another round of this number, which a control server may have lost."""
        return f"{self.opened_at:.3f} {self.base_digest}"

    def progress(self, received: int) -> str:
        """How far it is, in words. Args: ``received``: updates that are in."""
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
    What decides whether a job is wanted still, of a run and one of its rounds.

    Args:
        is_training: Whether the run is.
        newest: Its newest round.
        is_async, is_open: Of the round; one whose keys are gone is taken for an open synchronous one.
    """

    is_training: bool
    newest: int
    is_async: bool
    is_open: bool


def _optional(kind: Callable[[str], Any], text: str | None) -> Any:
    return None if text in (None, "") else kind(cast(str, text))


def _makers(raw: Mapping[str, str]) -> dict[str, float]:
    if raw["purpose"] != "initialise":
        return {}
    # A round that was opened before there were several has its cohort alone.
    asked = json.loads(raw.get("makers", "{}")) or dict.fromkeys(json.loads(raw["cohort"]), 0.0)
    return cast(dict[str, float], asked)


def parse_run_state(run: str, raw: Mapping[str, str]) -> RunState:
    """A run's state from the fields of its hash, as text."""
    return RunState(
        name=raw["name"],
        run_id=run,
        state=raw["state"],
        reason=raw.get("reason", ""),
        version=_optional(int, raw.get("version")),
        digest=raw.get("digest", ""),
        round=int(raw["round"]),
        rounds_wanted=int(raw["rounds_wanted"]),
        abandoned=int(raw.get("abandoned", 0)),
        evaluated_version=_optional(int, raw.get("evaluated_version")),
        waited_s=float(raw.get("waited_s", 0)),
        segment=int(raw.get("segment", 0)),
        population=tuple(json.loads(raw.get("population", "[]"))),
        shares=int(raw.get("shares", 0)),
        initial=_optional(json.loads, raw.get("initial")),
        created_at=float(raw["created_at"]),
        download=raw.get("download", ""),
        server_state=json.loads(raw.get("server_state", "{}")),
        restored_from=tuple(json.loads(raw.get("restored_from", "[]"))),
        left_out=json.loads(raw.get("left_out", "{}")),
        not_evaluated=raw.get("not_evaluated", ""),
        reason_at=float(raw.get("reason_at", 0)),
        config_digest=raw.get("config_digest", ""),
    )


def parse_round_state(number: int, raw: Mapping[str, str]) -> RoundState:
    """The state of a run's round from the fields of its hash, as text."""
    return RoundState(
        number=number,
        state=raw["state"],
        purpose=cast(Purpose, raw["purpose"]),
        cohort=tuple(json.loads(raw["cohort"])),
        eligible=tuple(json.loads(raw["eligible"])),
        quorum=int(raw["quorum"]),
        deadline_s=float(raw["deadline_s"]),
        grace_s=float(raw["grace_s"]),
        elapsed_s=float(raw.get("elapsed_s", 0)),
        quorum_at_s=_optional(float, raw.get("quorum_at_s")),
        opened_at=float(raw["opened_at"]),
        base_version=int(raw["base_version"]),
        base_digest=raw["base_digest"],
        fence=int(raw.get("fence", 0)),
        data_server=raw.get("data_server", ""),
        w_max=int(raw["w_max"]),
        scales=json.loads(raw["scales"]),
        segment=int(raw["segment"]),
        reason=raw.get("reason", ""),
        groups=int(raw.get("groups", 0)),
        download=raw.get("download", ""),
        server_state=json.loads(raw.get("server_state", "{}")),
        population=int(raw.get("population", 0)),
        base_population=int(raw.get("base_population", 0)),
        mode=cast(Mode, raw.get("mode", "sync")),
        carried=json.loads(raw.get("carried", "{}")),
        discount=json.loads(raw.get("discount", "{}")),
        failure=raw.get("failure", ""),
        failures=int(raw.get("failures", 0)),
        ineligible=json.loads(raw.get("ineligible", "{}")),
        makers=_makers(raw),
        start=raw.get("start", ""),
        signed=raw.get("signed", ""),
    )
