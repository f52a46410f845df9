"""
Counts of refused messages on the control server, by round and sender.

One field for each sender, a limited number of them, replaced at most once a second: a flood of messages
causes neither keys nor writes without end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fl_queue.common import safe_json
from fl_queue.common.safe_json import dumps
from fl_queue.protocol.records import Refusals
from fl_queue.store import keyspace
from fl_queue.store.connection import script
from fl_queue.store.control.events import EVENTS_KEPT
from fl_queue.store.control.server import ControlServer, as_text

if TYPE_CHECKING:
    from fl_queue.protocol.events import Event


class Rejections:
    """
    Reads and writes of counts of refused messages.

    Args:
        server: The control server.
    """

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._record_rejected = script(server.redis, "rejected")

    def of_round(self, run: str, number: int) -> dict[str, Refusals]:
        """Sender -> counts of its messages that a round has refused so far."""
        key = keyspace.round_rejected(run, number)
        return self._server.unreadable.each(
            key,
            as_text(self._server.hash(key)).items(),
            lambda who, text: (safe_json.printable(who[:100]), _refusals(text)),
        )

    def record(
        self,
        run: str,
        number: int,
        fence: int,
        rejected: Mapping[str, Refusals],
        late: Mapping[int, int],
        events: Sequence[Event],
        token: str = "",
    ) -> bool:
        """
        Record the counts of an open round.

        Args:
            fence: The writer's.
            rejected: Sender -> counts of this round; they replace the recorded ones.
            late: Round whose keys are gone -> further updates of it that arrived.
            events: For the run's stream.
            token: Of the writer's claim; empty: any claim is good.

        Returns:
            False when another aggregator owns the round, or it is gone.
        """
        keys = [
            keyspace.round_(run, number),
            keyspace.round_rejected(run, number),
            keyspace.run(run),
            keyspace.late(run),
            keyspace.events(run),
        ]
        args: list[Any] = [
            fence,
            dumps({who: refusals.to_json() for who, refusals in rejected.items()}),
            dumps({str(number): str(count) for number, count in late.items()}),
            dumps([dumps(event.to_dict()) for event in events]),
            EVENTS_KEPT,
            token,
        ]
        return bool(self._record_rejected(keys=keys, args=args))


def _refusals(text: str) -> Refusals:
    return safe_json.record(
        Refusals, safe_json.loads(text, "a count of refusals"), "a count of refusals"
    )
