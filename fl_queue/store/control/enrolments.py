"""Enrolments of clients on the control server, as far as this machine's pins confirm them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from fl_queue.protocol.records import Enrolment
from fl_queue.store import keyspace
from fl_queue.store.control.server import ControlServer
from fl_queue.store.enrolment_pins import Pins, Ruling


class Enrolments:
    """
    Reads and writes of enrolments.

    Args:
        server: The control server.
        pins: This machine's records of enrolled clients.
    """

    def __init__(self, server: ControlServer, pins: Pins) -> None:
        self._redis = server.redis
        self.pins = pins

    def get(self, client: str) -> Enrolment | None:
        """The valid enrolment of a client, see ``enrolment_pins``; None when it is not enrolled. Raises ConfigError."""
        text = cast("bytes | None", self._redis.hget(keyspace.ENROLLED, client))
        return self.pins.decide(client, text).enrolment

    def all(self) -> dict[str, Enrolment]:
        """Client -> what counts of it, also of those that were revoked; sorted. Raises ConfigError."""
        found = self.rulings()
        return {client: ruling.enrolment for client, ruling in found.items() if ruling.enrolment}

    def rulings(self) -> dict[str, Ruling]:
        """Client -> what counts of it, and what is wrong with its entry; sorted. Raises ConfigError."""
        return self.pins.decide_all(self.entries())

    def entries(self) -> dict[bytes, bytes]:
        """Client -> its entry on the control server, unverified."""
        return cast(dict[bytes, bytes], self._redis.hgetall(keyspace.ENROLLED))

    def revoked(self, clients: Iterable[str]) -> set[str]:
        """Those of some clients that were revoked. Raises ConfigError."""
        asked = list(clients)
        if not asked:
            return set()
        found = cast(list["bytes | None"], self._redis.hmget(keyspace.ENROLLED, asked))
        rulings = (self.pins.decide(*each).enrolment for each in zip(asked, found, strict=True))
        return {
            client
            for client, known in zip(asked, rulings, strict=True)
            if known is not None and known.revoked_at
        }

    def write(self, client: str, enrolment: Enrolment) -> None:
        """Register a client, in place of what was registered of it."""
        self._redis.hset(keyspace.ENROLLED, client, enrolment.to_json())
