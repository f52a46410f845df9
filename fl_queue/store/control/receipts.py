"""Receipts of updates on the control server: one for each client and status of a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fl_queue.common.safe_json import dumps
from fl_queue.errors import MessageError
from fl_queue.protocol import identifiers
from fl_queue.protocol.records import Receipt, Verdict
from fl_queue.protocol.state_fields import parse_receiver, parse_table, parse_whole
from fl_queue.store import keyspace
from fl_queue.store.connection import script
from fl_queue.store.control.events import EVENTS_KEPT, event_command
from fl_queue.store.control.runs import Runs
from fl_queue.store.control.server import ControlServer

if TYPE_CHECKING:
    from fl_queue.protocol.events import Event


class Receipts:
    """
    Reads and writes of receipts.

    Args:
        server: The control server.
        runs: Its runs.
    """

    def __init__(self, server: ControlServer, runs: Runs) -> None:
        self._server, self._runs = server, runs
        self._receipt = script(server.redis, "receipt")

    def of_round(self, run: str, number: int) -> dict[str, Receipt]:
        """Client (or ``client:status`` of a further update) -> receipt."""
        key = keyspace.round_updates(run, number)
        return self._server.unreadable.each(
            key,
            self._server.hash(key).items(),
            lambda who, text: (parse_receiver(who), Receipt.from_json(text)),
        )

    def count_of_late(self, run: str, number: int) -> int:
        """Receipts of late updates that a round has."""
        return sum(
            receipt.status == Verdict.late for receipt in self.of_round(run, number).values()
        )

    def late_counts(self, run: str) -> dict[int, int]:
        """Round -> updates that came after it had ended."""
        counts = self._server.unreadable.each(
            keyspace.late(run),
            self._server.hash(keyspace.late(run)).items(),
            lambda number, count: (parse_whole(number), parse_whole(count)),
        )
        state = self._runs.get(run)
        for number in range(max(state.round - 2, 0), state.round + 1) if state else ():
            found = self.count_of_late(run, number)
            if found:
                counts[number] = found
        return counts

    def add(
        self,
        run: str,
        number: int,
        client: str,
        receipt: Receipt,
        fence: int | None,
        token: str = "",
    ) -> bool:
        """
        Record the outcome of an update, with an event.

        Args:
            fence, token: As of ``add_many``.

        Returns:
            Whether it was news.
        """
        return bool(self.add_many(run, number, {client: receipt}, fence, token))

    def add_many(
        self,
        run: str,
        number: int,
        receipts: Mapping[str, Receipt],
        fence: int | None,
        token: str = "",
        group: str = "",
    ) -> int:
        """
        Record the outcomes of several updates at once, with events.

        Args:
            receipts: Client -> receipt.
            fence: The writer's, for an open round; None for a round that has ended, of which nothing is
                written to an open one.
            token: Of the writer's claim on an open round; empty: any claim is good.
            group: The pool worker whose updates came as one: one event stands for all received ones.

        Returns:
            How many were news.
        """
        from fl_queue.protocol.events import UpdateReceived

        events = [_event_of(number, client, receipt) for client, receipt in receipts.items()]
        came = [event for event in events if isinstance(event, UpdateReceived)]
        if group and came:
            events = [event for event in events if event not in came]
            events.append(replace(came[0], client=group, clients=len(came), reason=""))
        keys = [
            keyspace.round_(run, number),
            keyspace.round_updates(run, number),
            keyspace.events(run),
        ]
        args: list[Any] = [
            dumps({client: receipt.to_json() for client, receipt in receipts.items()}),
            dumps([dumps(event.to_dict()) for event in events]),
            EVENTS_KEPT,
            "" if fence is None else fence,
            token,
        ]
        return int(self._receipt(keys=keys, args=args))

    def restore(self, run: str, number: int, receipts: Mapping[str, Receipt]) -> None:
        """Write a round's earlier receipts again, under the fields they had."""
        key = keyspace.round_updates(run, number)
        commands = [["HSET", key, who, receipt.to_json()] for who, receipt in receipts.items()]
        self._server.write_if(keyspace.round_(run, number), *commands)

    def forget(self, run: str, number: int) -> None:
        """Remove a round's receipts: its updates have to be pushed again."""
        key, updates = keyspace.round_(run, number), keyspace.round_updates(run, number)
        self._server.write_if(key, ["DEL", updates], ["HDEL", key, "quorum_at_s"])

    def count_late(self, run: str, number: int, client: str) -> None:
        """Count an update of a round whose keys are gone, with an event."""
        from fl_queue.protocol.events import UpdateRejected

        event = UpdateRejected(
            round=number,
            client=client,
            status=Verdict.late,
            reason=f"round {number} had ended long ago",
        )
        self._server.write_if(
            keyspace.run(run),
            ["HINCRBY", keyspace.late(run), str(number), "1"],
            event_command(run, event),
        )

    def accepted(self, run: str, client: str) -> tuple[int, str] | None:
        """
        Round of the job and digest of a client's newest accepted update, where clients keep a state.

        Args:
            client: Or ``keyspace.in_backup`` of one.
        """
        text = self._server.field(keyspace.accepted(run), client)
        found = parse_table(text) if text else None
        if found is None:
            return None
        if type(found.get("round")) is not int:
            raise MessageError(f"not an accepted update of {client}: {str(found)[:64]!r}")
        return found["round"], identifiers.parse_digest(found.get("digest"))


def _event_of(number: int, client: str, receipt: Receipt) -> Event:
    """Return the run's event for an update."""
    from fl_queue.protocol.events import UpdateReceived, UpdateRejected

    if receipt.is_in:
        return UpdateReceived(
            round=number, client=client, staleness=receipt.staleness, reason=receipt.reason
        )
    return UpdateRejected(round=number, client=client, status=receipt.status, reason=receipt.reason)
