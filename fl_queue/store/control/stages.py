"""What came in each stage of a secure round, on the control server: verdicts, never a key, a share or a box."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple, cast

from fl_queue.common import safe_json
from fl_queue.common.safe_json import dumps
from fl_queue.errors import MessageError
from fl_queue.protocol import identifiers
from fl_queue.protocol.records import Verdict
from fl_queue.store import keyspace
from fl_queue.store.control.server import ControlServer, as_text

#: Kinds of the messages of a secure round beside updates, which have receipts.
KINDS = ("keys", "confirm", "unmask")


@dataclass(frozen=True)
class StageReceipt:
    """Args: ``status``: of a message of one stage; ``reason``: of the status."""

    status: Verdict
    reason: str = ""


class Progress(NamedTuple):
    """
    The fields of a secure round that its clients wait for.

    Args:
        state: Of the round; empty: its keys are gone.
        stage: Of the round.
        roster, survivors, confirmations: Digests; empty: not there yet.
    """

    state: str
    stage: str
    roster: str
    survivors: str
    confirmations: str


class Stages:
    """
    Reads and writes of the stages of secure rounds.

    Args:
        server: The control server.
    """

    def __init__(self, server: ControlServer) -> None:
        self._server = server

    def progress(self, run: str, number: int) -> Progress:
        """How far a round is; asked again and again, so none of its large fields is read."""
        key = keyspace.round_(run, number)
        raw = cast("list[bytes | None]", self._server.redis.hmget(key, *Progress._fields))
        return Progress(*((value or b"").decode(errors="replace") for value in raw))

    def of_round(self, run: str, number: int) -> dict[str, dict[str, StageReceipt]]:
        """Client -> kind of message -> its verdict."""
        key = keyspace.round_stages(run, number)
        raw = as_text(self._server.hash(key))
        read = self._server.unreadable.each(
            key, raw.items(), lambda who, text: (_sender(who), _receipt(text))
        )
        found: dict[str, dict[str, StageReceipt]] = {}
        for (client, kind), receipt in read.items():
            found.setdefault(client, {})[kind] = receipt
        return found

    def add(self, run: str, number: int, client: str, kind: str, receipt: StageReceipt) -> None:
        """Record the verdict on a client's message, if there is such a round."""
        key = keyspace.round_stages(run, number)
        field = f"{client}:{kind}"
        command = ["HSET", key, field, dumps(asdict(receipt))]
        self._server.write_if(keyspace.round_(run, number), command)


def _sender(field: str) -> tuple[str, str]:
    client, _, kind = field.partition(":")
    if kind not in KINDS:
        raise MessageError(f"{field[:64]!r} names no message of a secure round")
    return identifiers.parse_name(client), kind


def _receipt(text: str) -> StageReceipt:
    return safe_json.decode(StageReceipt, text, "a verdict of a secure round")


def received(stages: Mapping[str, Mapping[str, StageReceipt]], kind: str) -> set[str]:
    """Clients whose message of a kind is in."""
    return {
        client
        for client, receipts in stages.items()
        if kind in receipts and receipts[kind].status == Verdict.received
    }
