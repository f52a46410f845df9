"""
Messages between a worker and the trainer that computes for it: request, progress, answer.

Plain data, nothing pickled: a task's own code runs in the trainer, so an answer is as foreign as the bytes of
another machine. Tensors are files in the worker's state folder, named relative to it. The folders themselves, and
the code that may be loaded, are options of the trainer's start and in no request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from fl_queue.common import safe_json
from fl_queue.common.schema import Length, Pattern, PlainData, Range
from fl_queue.errors import TrainingLost
from fl_queue.protocol import site_facts
from fl_queue.protocol.header import (
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    MAX_TEXT,
    Identifier,
    Metrics,
    Size,
)

#: Levels, and values of all tables, of a run's config.
_CONFIG_DEPTH, _CONFIG_ITEMS, _CONFIG_TEXT = 16, 1 << 16, 1 << 20
#: Largest number of an event.
_MOST = 2**53
_NAME = r"[^/\0]{1,255}"

#: Relative to the state folder, its parts as ``paths.below`` takes them.
Place = Annotated[
    str, Pattern(re.compile(rf"{_NAME}(/{_NAME}){{0,7}}"), "a path in the state folder")
]
Line = Annotated[str, Length(MAX_TEXT)]
Config = Annotated[Mapping[str, Any], PlainData(_CONFIG_ITEMS, _CONFIG_TEXT, _CONFIG_DEPTH)]
Numbers = Annotated[Mapping[str, float], PlainData(256, 128, 1)]


class Call(StrEnum):
    """What a trainer is asked for."""

    #: Facts of the site's data, for the comparison before round 1.
    facts = "facts"
    #: Version 0.
    initialise = "initialise"
    #: An update of the round's version.
    train = "train"
    #: Sums over the client's rows, for the next step of an analysis.
    sums = "sums"
    #: Metrics of the round's version on the client's validation data.
    evaluate = "evaluate"
    #: Metrics of a version on the task's test data.
    score = "score"


class _Message:
    """A message as plain values, and read from such."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def from_dict(cls, raw: Any) -> Self:
        """
        A message from what another process has sent.

        Raises:
            MessageError: A field is missing, unknown, of another type, or out of its limits; names it.
        """
        return safe_json.record(cls, raw, f"a trainer's {cls.__name__.lower()}")


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """
    The version that a request is about.

    Args:
        manifest: The run's, as JSON.
        place: Its body.
        codec: How the body is encoded.
        base: The run's base part, where this host has fetched it.
        server_state: What the strategy has clients fetch besides: name -> place.
    """

    manifest: Annotated[str, Length(MAX_HEADER_BYTES)]
    place: Place
    codec: Annotated[str, Length(64)] = "float32"
    base: Place | None = None
    server_state: Mapping[str, Place] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class KeptState:
    """
    The client state that a client starts from: of its newest accepted update, as the control server names it.

    Args:
        place: Its folder; None: there is none.
        states: Names of those that count.
        note: Its description in the receipt; empty: this run's clients keep nothing.
        is_lost: Whether the strategy's part should have been there.
    """

    place: Place | None = None
    states: tuple[Annotated[str, Length(256)], ...] = ()
    note: Line = ""
    is_lost: bool = False


@dataclass(frozen=True, kw_only=True)
class InitialFile:
    """
    The model that version 0 is to have (``model.initial``).

    Args:
        place: Its body: the tensors one after the other.
        record: The run's record of it: of each tensor, name, dtype and shape.
    """

    place: Place
    record: Annotated[Mapping[str, Any], PlainData(8 * MAX_TENSORS, MAX_TEXT, 6)]


@dataclass(frozen=True, kw_only=True)
class Request(_Message):
    """
    One thing that a worker asks a trainer for.

    Args:
        call: What.
        run: Run id.
        name: Name of the run.
        segment: Of the run's config; with the run it decides which trainer is asked.
        config: The run's, as ``RunConfig.to_dict`` has it.
        client: Client id, or ``evaluator``.
        round: Its number; 0: version 0.
        base_version, base_digest, token: For the header of the response.
        share, shares: The client's share of a data set that is split over clients, from 0, and their number.
        exponent: Of the round.
        inputs: As of ``RoundState``, for the header of the response.
        model: The version; None where there is none yet.
        state: What the client has kept.
        initial: Where version 0 begins; None: the task's model is fresh.
        is_masked: Whether the update is masked before it leaves: it is kept under another name.
    """

    call: Call
    run: Identifier
    name: Identifier
    segment: Size = 0
    config: Config
    client: Identifier
    round: Annotated[int, Range(0, 2**32 - 1)] = 0
    base_version: Size = 0
    base_digest: Annotated[str, Length(64)] = ""
    token: Identifier = ""
    share: Size = 0
    shares: Size = 1
    exponent: int = 0
    inputs: Annotated[str, Length(64)] = ""
    model: ModelFile | None = None
    state: KeptState = field(default_factory=KeptState)
    initial: InitialFile | None = None
    is_masked: bool = False


@dataclass(frozen=True, kw_only=True)
class Progress(_Message):
    """
    How far a training is.

    Args:
        epoch: The one that has ended, from 1; 0: the training begins.
        epochs: How many there are.
        finished: Finished validation metrics; empty without validation data.
        logged: Means of what the task has logged so far.
    """

    epoch: Size
    epochs: Size
    finished: Numbers = field(default_factory=dict)
    logged: Numbers = field(default_factory=dict)

    @classmethod
    def of_epoch(
        cls, epoch: int, epochs: int, found: Mapping[str, float], logged: Mapping[str, float]
    ) -> Self:
        """
        An ended epoch: of what a task reports, that which its event has, within the event's limits.

        Args:
            epoch, epochs: Whole numbers from 1.
            found: Any number of metrics, under any names.
            logged: As ``TrainingLog.means`` has it, which is bounded.
        """
        finished = {
            name: found[name]
            for name in ("accuracy", "loss")
            if name in found and -_MOST <= found[name] <= _MOST
        }
        return cls(
            epoch=min(epoch, _MOST), epochs=min(epochs, _MOST), finished=finished, logged=logged
        )


@dataclass(frozen=True, kw_only=True)
class Failure:
    """
    An error of a trainer, without its text, which is in the log of the site.

    Args:
        kind: Name of its class.
        field: The config's field that it names; empty: none.
        public: What of its text may leave the site: words of the config, and numbers.
        is_whole: Whether that is all of its text.
        line: Line of the task's own code that it comes from; empty: none.
        lasts: Whether another attempt would meet it.
    """

    kind: Annotated[str, Length(64)]
    field: Annotated[str, Length(256)] = ""
    public: Line = ""
    is_whole: bool = False
    line: Annotated[str, Length(256)] = ""
    lasts: bool = False


@dataclass(frozen=True, kw_only=True)
class Answer(_Message):
    """
    What came of a request.

    Args:
        outcome: ``done``: a round's response is in the outbox; ``ended``: the round has, and there is none;
            ``failed``: of which the site informs the run; ``lost``: another attempt may succeed;
            ``needs_base``: it is to be asked once more, with the run's base part; ``stale``: the task's file was
            edited after the process had imported it, which ends: a fresh one is to be asked.
        num_examples: Training samples of an update.
        metrics: Sums of a ``score``.
        facts: Of the site.
        failure: The error, where it failed or is lost.
    """

    outcome: Literal["done", "ended", "failed", "lost", "needs_base", "stale"]
    num_examples: Size = 0
    metrics: Metrics = field(default_factory=dict)
    facts: Annotated[Mapping[str, str], PlainData(site_facts.MOST + 1, site_facts.LONGEST, 1)] = (
        field(default_factory=dict)
    )
    failure: Failure | None = None

    @property
    def error(self) -> Failure:
        """The error of an answer that is not ``done``; of one without, that its process was lost."""
        return self.failure or Failure(kind=TrainingLost.__name__)
