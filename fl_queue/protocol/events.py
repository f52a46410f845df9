"""
Events: what happened to a run or at a client, one class for each kind, and the reading of their streams.

Clients write the streams of their own events, so an entry may hold anything: each field that a class declares
is of its type, or the whole entry is ``unreadable``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

from fl_queue.common import schema
from fl_queue.common.safe_json import clean, loads
from fl_queue.common.schema import Custom, Invalid, Range
from fl_queue.errors import MessageError
from fl_queue.protocol.records import Outcome

#: No entry of ours comes near it, but a cohort's.
MAX_BYTES = 1 << 20
_MOST = 2**53


def _read_number(value: Any) -> float:
    if type(value) not in (int, float) or not -_MOST <= value <= _MOST:
        raise Invalid("is not a number")
    return float(value)


Count = Annotated[int, Range(-_MOST, _MOST)]
Number = Annotated[float, Custom(_read_number)]


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event; a field that has its default is not written."""

    #: Name of the kind, as it is written.
    kind: ClassVar[str] = ""
    #: Token of the command, or name of the worker, behind it; empty: none.
    by: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, with the kind as ``event``."""
        found: dict[str, Any] = {"event": self.kind}
        for each in fields(self):
            value = getattr(self, each.name)
            is_needed = each.default is MISSING and each.default_factory is MISSING
            if is_needed or value not in (each.default, {}):
                found[each.name] = value
        return found


# Of a run


@dataclass(frozen=True, kw_only=True)
class RunCreated(Event):
    """``start-round`` began the run."""

    kind = "run_created"
    rounds: Count


@dataclass(frozen=True, kw_only=True)
class RunContinued(Event):
    """``start-round`` added rounds. ``changed``: config fields with another value."""

    kind = "run_continued"
    rounds: Count
    changed: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class RunRestored(Event):
    """The run was made from a backup. ``of``: run id of the original."""

    kind = "run_restored"
    version: Count | None
    of: str


@dataclass(frozen=True, kw_only=True)
class RunResumed(Event):
    """``resume`` was run."""

    kind = "run_resumed"
    version: Count | None


@dataclass(frozen=True, kw_only=True)
class RunChanged(Event):
    """The state of the run, or its reason, has changed."""

    reason: str
    version: Count | None


@dataclass(frozen=True, kw_only=True)
class RunCompleted(RunChanged):
    """All rounds are committed."""

    kind = "run_completed"


@dataclass(frozen=True, kw_only=True)
class RunFailed(RunChanged):
    """The run cannot go on."""

    kind = "run_failed"


@dataclass(frozen=True, kw_only=True)
class RunCancelled(RunChanged):
    """``cancel`` was run."""

    kind = "run_cancelled"


@dataclass(frozen=True, kw_only=True)
class WaitingForClients(RunChanged):
    """No round can open."""

    kind = "waiting_for_clients"


@dataclass(frozen=True, kw_only=True)
class ClientsLeftOut(Event):
    """Living clients that may not be selected have changed. ``left_out``: client -> reason."""

    kind = "clients_left_out"
    left_out: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class MakerAsked(Event):
    """A further process is asked for version 0."""

    kind = "maker_asked"
    round: Count
    client: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class EvaluationSkipped(Event):
    """The run is complete without a closing evaluation."""

    kind = "evaluation_skipped"
    version: Count | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class SiteDiffers(Event):
    """A site has other facts than most, or reports a problem."""

    kind = "site_differs"
    client: str
    what: str


@dataclass(frozen=True, kw_only=True)
class EnrolmentChanged(Event):
    """The entry of a client is not the operator's."""

    kind = "enrolment_changed"
    client: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class KeyRemoved(Event):
    """A key had a wrong type."""

    kind = "key_removed"
    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class EntryUnreadable(Event):
    """An entry of a key is left out, as it cannot be read. ``of``: its field."""

    kind = "entry_unreadable"
    key: str
    of: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class VersionEvaluated(Event):
    """The evaluator is done with a version."""

    kind = "version_evaluated"
    version: Count
    state: str


# Of a round


@dataclass(frozen=True, kw_only=True)
class RoundOpened(Event):
    """A cohort was chosen. ``carried``: clients at work since an earlier round, of an asynchronous one."""

    kind = "round_opened"
    round: Count
    purpose: str
    clients: Count
    cohort: Sequence[str]
    carried: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class RoundUnsigned(Event):
    """A round was opened without the operator's signature."""

    kind = "round_unsigned"
    round: Count
    reason: str


@dataclass(frozen=True, kw_only=True)
class StageBegun(Event):
    """A secure round is in another stage. ``clients``: in it; ``without``: those of the stage before that are not."""

    kind = "stage_begun"
    round: Count
    stage: str
    clients: Count
    without: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class EndOfRound(Event):
    """A round has ended. ``version``: the one it made."""

    round: Count
    reason: str
    version: Count | None


@dataclass(frozen=True, kw_only=True)
class RoundInitialised(EndOfRound):
    """Version 0 was made."""

    kind = "round_initialised"


@dataclass(frozen=True, kw_only=True)
class RoundCommitted(EndOfRound):
    """A version was made."""

    kind = "round_committed"


@dataclass(frozen=True, kw_only=True)
class RoundEvaluated(EndOfRound):
    """The closing evaluation has ended."""

    kind = "round_evaluated"


@dataclass(frozen=True, kw_only=True)
class RoundAbandoned(EndOfRound):
    """No version was made."""

    kind = "round_abandoned"


@dataclass(frozen=True, kw_only=True)
class RoundCancelled(EndOfRound):
    """The run was cancelled."""

    kind = "round_cancelled"


@dataclass(frozen=True, kw_only=True)
class RoundRestored(EndOfRound):
    """An older version is the newest one again. ``of``: the older one."""

    kind = "round_restored"
    of: Count | None = None


@dataclass(frozen=True, kw_only=True)
class VersionTagged(Event):
    """A version has a name. ``name``: the tag."""

    kind = "version_tagged"
    version: Count
    name: str


@dataclass(frozen=True, kw_only=True)
class VersionUntagged(Event):
    """A name was removed from a version. ``name``: the tag."""

    kind = "version_untagged"
    version: Count
    name: str


#: Outcome of a round -> its event.
ROUND_ENDS: Mapping[Outcome, type[EndOfRound]] = MappingProxyType(
    {
        Outcome.initialised: RoundInitialised,
        Outcome.committed: RoundCommitted,
        Outcome.evaluated: RoundEvaluated,
        Outcome.abandoned: RoundAbandoned,
        Outcome.cancelled: RoundCancelled,
        Outcome.restored: RoundRestored,
    }
)


@dataclass(frozen=True, kw_only=True)
class ClientsJoined(Event):
    """Idle clients began to train in an open asynchronous round."""

    kind = "clients_joined"
    round: Count
    clients: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class UpdateReceived(Event):
    """
    A valid update arrived.

    ``clients``: that of so many, from a pool worker. ``reason``: its metrics that are left out.
    """

    kind = "update_received"
    round: Count
    client: str
    staleness: Count = 0
    clients: Count = 0
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class UpdateRejected(Event):
    """A message is not merged. ``status``: its verdict."""

    kind = "update_rejected"
    round: Count
    client: str
    status: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class UpdatesRefused(Event):
    """Number of rejections of a sender, and the reason of the last one."""

    kind = "updates_refused"
    round: Count
    client: str
    count: Count
    reason: str


@dataclass(frozen=True, kw_only=True)
class WeightsCapped(Event):
    """Clients reported more examples than their weight counts."""

    kind = "weights_capped"
    round: Count
    reason: str


@dataclass(frozen=True, kw_only=True)
class ClientStateLost(Event):
    """An accepted update is of a client that lost its state of the strategy."""

    kind = "client_state_lost"
    round: Count
    reason: str


@dataclass(frozen=True, kw_only=True)
class Healed(Event):
    """A repair of the healer."""

    kind = "healed"
    round: Count
    what: str


@dataclass(frozen=True, kw_only=True)
class CheckpointFailed(Event):
    """The aggregator cannot write its state folder."""

    kind = "checkpoint_failed"
    round: Count
    reason: str


@dataclass(frozen=True, kw_only=True)
class AggregatorHung(Event):
    """An aggregator made no progress and was ended. ``where``: the place in its code."""

    kind = "aggregator_hung"
    round: Count
    still_s: Number
    where: str


@dataclass(frozen=True, kw_only=True)
class ControlWritesLost(Event):
    """The control server came back without its last writes."""

    kind = "control_writes_lost"
    round: Count
    what: str


@dataclass(frozen=True, kw_only=True)
class SumRefused(Event):
    """The partial sum of a round was changed."""

    kind = "sum_refused"
    round: Count
    reason: str


@dataclass(frozen=True, kw_only=True)
class ClientStalled(Event):
    """A client held room on the data server and sent nothing."""

    kind = "client_stalled"
    round: Count
    client: str
    held_s: Number


@dataclass(frozen=True, kw_only=True)
class ClientRevoked(Event):
    """``revoke`` took a client out of its round."""

    kind = "client_revoked"
    round: Count
    client: str


# Of a client


@dataclass(frozen=True, kw_only=True)
class TrainingStarted(Event):
    """The client has started to train."""

    kind = "training"
    run: str
    round: Count
    epochs: Count


@dataclass(frozen=True, kw_only=True)
class EpochFinished(Event):
    """An epoch is finished. ``logged``: means of the numbers that the task logs."""

    kind = "epoch"
    run: str
    round: Count
    epoch: Count
    epochs: Count
    accuracy: Number | None = None
    loss: Number | None = None
    logged: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ClientStateMissing(Event):
    """The state that a client keeps between rounds is lost or damaged."""

    kind = "client_state_missing"
    run: str
    round: Count
    what: str


@dataclass(frozen=True, kw_only=True)
class JobRefusedEvent(Event):
    """A worker refused an entry of its queue."""

    kind = "job_refused"
    job: str
    reason: str
    by: str = field()


@dataclass(frozen=True, kw_only=True)
class Unreadable(Event):
    """An entry of a stream is no event; in its place for readers, not in a stream."""

    kind = "unreadable"
    reason: str


# Reading


@cache
def kinds() -> Mapping[str, type[Event]]:
    """Name of each kind -> its class."""
    found: dict[str, type[Event]] = {}
    todo: list[type[Event]] = [Event]
    while todo:
        made = todo.pop()
        todo += made.__subclasses__()
        if made.kind and made.__module__ == __name__:
            found[made.kind] = made
    return MappingProxyType(found)


@cache
def _hints(kind: str) -> Mapping[str, tuple[Any, ...]]:
    """
    Field -> the types it may have in a kind of event.

    A field that the kind does not declare (one of a newer version, or any of an unknown kind) may have
    each type that some kind declares for it.
    """
    declared: dict[str, tuple[Any, ...]] = {}
    for made in kinds().values():
        for name, hint in _types_of(made).items():
            declared[name] = (*declared.get(name, ()), hint)
    if kind in kinds():
        declared |= {name: (hint,) for name, hint in _types_of(kinds()[kind]).items()}
    return MappingProxyType({**declared, "event": (str,)})


def _types_of(made: type[Event]) -> dict[str, Any]:
    hints = get_type_hints(made, include_extras=True)
    # None stands for a field that is not written.
    return {
        each.name: get_args(hints[each.name])[0] if each.default is None else hints[each.name]
        for each in fields(made)
    }


def event_of(entry: Mapping[bytes, bytes]) -> dict[str, Any]:
    """
    The event in an entry: a map with text ``event``, and plain values in which nothing moves a cursor.

    Args:
        entry: Its fields, as Redis returns them.
    """
    try:
        return _checked(entry.get(b"event"))
    except MessageError as exc:
        return Unreadable(reason=exc.reason).to_dict()


def _checked(text: bytes | None) -> dict[str, Any]:
    if text is None:
        raise MessageError("not an event: it has no field event")
    if len(text) > MAX_BYTES:
        raise MessageError(f"not an event: {len(text)} bytes")
    event = clean(loads(text, "an event"), "an event")
    if type(event) is not dict or "event" not in event:
        raise MessageError("not an event: no map with an event")
    kind = event["event"]
    hints = _hints(kind if type(kind) is str and kind in kinds() else "")
    for name, value in event.items():
        if name in hints and not any(schema.fits(value, hint) for hint in hints[name]):
            raise MessageError(f"not an event: field {name[:64]} is {str(value)[:64]!r}")
    return event
