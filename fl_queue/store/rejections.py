"""
The control server: how many elements a round refused, and from whom.

One field a sender, few of them, and replaced at most once a second: whoever floods a run makes
neither keys nor writes without end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import redis

from fl_queue.common import safe_json
from fl_queue.protocol.records import Refusals, dumps
from fl_queue.store import keyspace
from fl_queue.store.connection import script
from fl_queue.store.presence import Presence, as_text

EVENTS_KEPT = 10_000


class Rejections(Presence):
    """What was refused. Args: ``client``: a retrying client of the control server."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client)
        self._record_rejected = script(client, "rejected")

    def rejected(self, run: str, number: int) -> dict[str, Refusals]:
        """Who -> what of it a round has refused so far."""
        found = cast(dict[bytes, bytes], self.redis.hgetall(keyspace.round_rejected(run, number)))
        return self.unreadable.each(
            keyspace.round_rejected(run, number),
            as_text(found).items(),
            lambda who, text: (safe_json.printable(who[:100]), _refusals(text)),
        )

    def record_rejected(
        self,
        run: str,
        number: int,
        fence: int,
        rejected: Mapping[str, Refusals],
        late: Mapping[int, int],
        events: Sequence[Mapping[str, Any]],
    ) -> bool:
        """
        Write down what an open round has refused.

        Args:
            fence: The writer's.
            rejected: Who -> all that was refused of it in this round; takes the place of what was known.
            late: Round whose keys are gone -> further updates of it that came.
            events: For the run's stream.

        Returns:
            False when the round is somebody else's, or gone.
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
            dumps([dumps(event) for event in events]),
            EVENTS_KEPT,
        ]
        return bool(self._record_rejected(keys=keys, args=args))


def _refusals(text: str) -> Refusals:
    return safe_json.record(
        Refusals, safe_json.loads(text, "a count of refusals"), "a count of refusals"
    )
