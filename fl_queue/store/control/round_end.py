"""The end of a round as the commit script decides it. No Redis here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fl_queue.common.safe_json import dumps
from fl_queue.protocol.panel import Panel
from fl_queue.protocol.records import Outcome, Receipt, RoundRecord
from fl_queue.store import keyspace
from fl_queue.store.control.events import EVENTS_KEPT
from fl_queue.store.incarnation import Incarnation

if TYPE_CHECKING:
    from fl_queue.protocol.manifest import Manifest


@dataclass(frozen=True)
class NewVersion:
    """
    The version that a round commits.

    Args:
        number: Of the version.
        digest: Of the model.
        download: Digest of the encoded body, if clients fetch that.
        manifest: Of the run; None: unchanged.
        server_state: Name -> digest of the strategy's state that belongs to the version.
        accepted: Client that keeps a state -> round of the job and digest of its accepted update.
        signature: The operator's; empty: none.
        begins_anew: Whether the strategy's state is zero again with this version.
        metrics: Names and directions that the task declares; of version 0.
        is_last: Whether the run completes with it, however many were wanted.
    """

    number: int
    digest: str
    download: str = ""
    manifest: Manifest | None = None
    server_state: Mapping[str, str] = field(default_factory=dict)
    accepted: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    signature: str = ""
    begins_anew: bool = False
    metrics: tuple[str, ...] = ()
    is_last: bool = False

    def to_script(self) -> dict[str, Any]:
        """Return the object ``version`` of ``end_round.lua``'s argument."""
        accepted = {
            client: dumps({"round": began, "digest": update})
            for client, (began, update) in self.accepted.items()
        }
        return {
            "number": str(self.number),
            "digest": self.digest,
            "download": self.download,
            "manifest": self.manifest.to_json() if self.manifest else "",
            "server_state": dumps(self.server_state),
            "accepted": accepted,
            "signature": self.signature,
            "begins_anew": self.begins_anew,
            "metrics": dumps(self.metrics) if self.metrics else "",
            "is_last": self.is_last,
        }


@dataclass(frozen=True)
class RoundEnd:
    """
    The outcome of a round, as one call of the commit script decides it.

    Args:
        by: The aggregator that ends the round, or the operator's side with an empty token in place of one.
        call: Token of the call, new in each: repeating the call changes nothing.
        outcome: Of the round.
        reason: Of the outcome; may be empty.
        record: For the history; None: none.
        receipts: Client -> its final receipt.
        max_abandoned: Abandoned rounds in a row at which the run fails.
        version: The new version; None: none.
        panel: Of a fit, from now on; None: as it was.
        rounds_wanted: The last version that the run may have; None: as it was.
        survivors: Of a secure round, digest of those whose updates are in the version; empty: it is none.
    """

    by: Incarnation
    call: str
    outcome: Outcome
    reason: str
    record: RoundRecord | None
    receipts: Mapping[str, Receipt]
    max_abandoned: int
    version: NewVersion | None = None
    panel: Panel | None = None
    rounds_wanted: int | None = None
    survivors: str = ""

    def keys(self) -> list[str]:
        """Return the keys of ``end_round.lua``."""
        run, number = self.by.run, self.by.round
        return [
            keyspace.run(run),
            keyspace.round_(run, number),
            keyspace.round_updates(run, number),
            keyspace.history(run),
            keyspace.events(run),
            keyspace.versions(run),
            keyspace.manifest(run),
            keyspace.accepted(run),
        ]

    def to_script(self) -> str:
        """Return the argument of ``end_round.lua``, JSON."""
        version = self.version.number if self.version else None
        from fl_queue.protocol.events import ROUND_ENDS

        event = ROUND_ENDS[self.outcome](round=self.by.round, reason=self.reason, version=version)
        argument = {
            "round": str(self.by.round),
            "fence": str(self.by.fence),
            "call": self.call,
            "incarnation": self.by.token,
            "outcome": self.outcome,
            "reason": self.reason,
            "record": self.record.to_json() if self.record else "",
            "receipts": {who: receipt.to_json() for who, receipt in self.receipts.items()},
            "event": dumps(event.to_dict()),
            "max_events": EVENTS_KEPT,
            "max_abandoned": self.max_abandoned,
            "panel": self.panel.to_json() if self.panel else "",
            "survivors": self.survivors,
            "rounds_wanted": "" if self.rounds_wanted is None else str(self.rounds_wanted),
        }
        return dumps(argument | ({"version": self.version.to_script()} if self.version else {}))
