"""
The panel of a fit: the clients whose rows it is about, and those that it has lost.

Text in the run's hash, which redis-cli shows. No Redis here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fl_queue.common import safe_json
from fl_queue.common.safe_json import dumps
from fl_queue.protocol import identifiers


@dataclass(frozen=True)
class Loss:
    """
    A client that is in the panel no more.

    Args:
        client: Client id.
        step: Number of the step that it did not answer.
        round: Number of that step's round.
        at: Time, ISO 8601, UTC.
        reason: Of the loss.
    """

    client: str
    step: int
    round: int
    at: str
    reason: str


@dataclass(frozen=True)
class Panel:
    """
    The clients of all further steps.

    Args:
        clients: Sorted.
        quorum: Fewest that the fit goes on with.
        lost: In the order of their loss.
    """

    clients: tuple[str, ...]
    quorum: int
    lost: tuple[Loss, ...] = ()

    def without(self, lost: Sequence[Loss]) -> Panel:
        """The panel without these."""
        gone = {one.client for one in lost}
        left = tuple(client for client in self.clients if client not in gone)
        return Panel(left, self.quorum, (*self.lost, *lost))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def to_json(self) -> str:
        """JSON with sorted keys."""
        return dumps(self.to_dict())

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Panel:
        """Parse what a run's hash has. Raises MessageError."""
        found = safe_json.record(cls, raw, "a panel")
        for client in (*found.clients, *(one.client for one in found.lost)):
            identifiers.parse_name(client)
        return found
