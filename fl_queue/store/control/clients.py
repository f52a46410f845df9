"""Clients on the control server: heartbeats, what their workers report, and what their sites would train on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from fl_queue.common.safe_json import dumps, printable
from fl_queue.errors import MessageError
from fl_queue.protocol import identifiers
from fl_queue.protocol.records import AwaitedUpdate, DataWait
from fl_queue.store import keyspace
from fl_queue.store.batching import ask_many
from fl_queue.store.connection import script
from fl_queue.store.control.leases import JOB, LEASE_S, LEFT, Leases
from fl_queue.store.control.server import MAX_FIELD_BYTES, ControlServer, text_of
from fl_queue.store.control.workers import SCANNED

#: Longest pause between two heartbeat records of the healer; longer: an outage, or a jump of the clock.
MAX_SILENCE_S = 5.0
#: Time in which every living client extends its lease after an outage.
SETTLE_S = 5.0
#: Lifetime of a site's facts; they are read within seconds.
SITE_FACTS_S = 3600
#: Field of a client's hash: reason of a pause by its site; absent otherwise.
PAUSED = "paused"
#: Field of a client's hash: JSON run id -> ``AwaitedUpdate``; absent while no update waits.
AWAITED = "awaited"
#: Field of a client's hash: JSON ``DataWait``; absent while it can use the data server.
DATA_WAIT = "data_wait"
#: Field of a client's hash: its number of examples.
_EXAMPLES = "num_examples"
#: Fields that are read from a client's hash; its worker may write any number of others.
_CLIENT = (_EXAMPLES, LEFT, PAUSED, AWAITED, DATA_WAIT)
#: Calls of SCAN in one search for new clients; the next search goes on from there.
_SCANS_A_LOOK = 20


class Clients:
    """
    Reads and writes of clients.

    Args:
        server: The control server.
        leases: Its leases.
    """

    def __init__(self, server: ControlServer, leases: Leases) -> None:
        self._server, self._leases = server, leases
        self._redis = server.redis
        self._scanned_to = 0
        self._heartbeats = script(server.redis, "heartbeats")

    def is_settling(self) -> bool:
        """Whether the living clients are unknown, after an outage or a jump of the clock."""
        return float(self._redis.hget(keyspace.CLOCK, "settling_s") or 0) > 0

    def register_worker(
        self, client: str, status: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Record the start of a client's worker. Args: ``status``: as of ``set_status``."""
        self.set_status(client, {LEFT: "", **status})

    def set_status(self, client: str, status: Mapping[str, str]) -> None:
        """Record the status of a client's site, by field of its hash; an empty text removes the field."""
        key = keyspace.client(client)
        kept = {name: text for name, text in status.items() if text}
        if kept:
            self._redis.hset(key, mapping=cast(dict[Any, Any], kept))
        if len(kept) < len(status):
            self._redis.hdel(key, *(status.keys() - kept.keys()))

    def record_heartbeats(self) -> None:
        """
        Record the heartbeats of clients: the last extension of each one's lease.

        Only the operator's side may call it. The healer does so once a second; a longer pause is an outage or
        a jump of the clock, after which ``is_settling`` is true for a while.
        """
        known = {
            client.decode(errors="replace")
            for client in cast(list[bytes], self._redis.zrange(keyspace.CLIENTS, 0, -1))
        }
        asked = sorted(known | self._newcomers())
        # A lease of a wrong type still counts as a heartbeat.
        found = ask_many(
            self._redis, asked, lambda pipe, who: pipe.pttl(keyspace.client_holder(who))
        )
        # A lease that never expires, or too late, counts as extended just now.
        ages = {
            client: 0.0 if left_ms == -1 else max(0.0, LEASE_S - left_ms / 1000)
            for client, left_ms in zip(asked, found, strict=True)
            if left_ms != -2 and identifiers.is_name(client)
        }
        away = [client for client in asked if client not in ages]
        found = ask_many(self._redis, away, lambda pipe, who: pipe.hget(keyspace.client(who), LEFT))
        left = [who for who, text in zip(away, found, strict=True) if text == b"1"]
        args: list[Any] = [MAX_SILENCE_S, SETTLE_S, dumps(ages), *left]
        self._heartbeats(keys=[keyspace.CLIENTS, keyspace.CLOCK], args=args)

    def _newcomers(self) -> set[str]:
        """
        Clients with a lease in one part of the server's keys; each call scans the next part.

        So the cost of a call is bounded, whatever the number of keys; with few keys, one call scans all.
        """
        found: set[str] = set()
        for _ in range(_SCANS_A_LOOK):
            self._scanned_to, keys = cast(
                tuple[int, list[bytes]],
                self._redis.scan(
                    self._scanned_to, match=keyspace.client_holder("*"), count=SCANNED
                ),
            )
            found.update(key.decode(errors="replace").split(":")[2] for key in keys)
            if not self._scanned_to:
                break
        return {client for client in found if identifiers.is_name(client)}

    def set_fields(self, client: str, fields: Mapping[str, Any]) -> None:
        """Write fields of a client's hash."""
        self._redis.hset(
            keyspace.client(client), mapping={key: text_of(value) for key, value in fields.items()}
        )

    def set_site_facts(self, client: str, run: str, text: str) -> None:
        """Record the facts that a client reports about its data for a run."""
        self._redis.set(keyspace.client_facts(client, run), text, ex=SITE_FACTS_S)

    def site_facts(self, client: str, run: str, longest: int) -> bytes | None:
        """The recorded facts, at most their first ``longest + 1`` bytes; None: none, or expired."""
        text = cast(bytes, self._redis.getrange(keyspace.client_facts(client, run), 0, longest))
        return text or None

    def get(self, client: str) -> dict[str, str]:
        """The fields of a client's hash."""
        return self.get_many([client])[0]

    def get_many(self, asked: Iterable[str]) -> list[dict[str, str]]:
        """The hashes of several clients, in their order."""
        return self._server.short_fields(map(keyspace.client, asked), _CLIENT)

    def heartbeat_ages(self) -> dict[str, float]:
        """
        Client -> seconds since its last heartbeat; of all known clients.

        Below zero after the control server's clock was set back.
        """
        now = self._server.now()
        raw = cast(
            list[tuple[bytes, float]], self._redis.zrange(keyspace.CLIENTS, 0, -1, withscores=True)
        )
        ages = {client.decode(errors="replace"): now - seen for client, seen in raw}
        # Skip entries that are not valid client ids: ids become file and queue names.
        return {client: age for client, age in ages.items() if identifiers.is_name(client)}

    def alive(self, active_s: float) -> list[str]:
        """Clients with a heartbeat within ``active_s`` on the control server's clock, not paused, sorted."""
        seen = self._seen(active_s)
        paused = self.paused(seen)
        return [client for client in seen if client not in paused]

    def alive_paused(self, active_s: float) -> dict[str, str]:
        """Paused clients with a heartbeat within ``active_s`` -> reason of the pause, sorted."""
        return self.paused(self._seen(active_s))

    def paused(self, clients: Sequence[str]) -> dict[str, str]:
        """Paused clients among ``clients`` -> reason of the pause, in the same order."""
        with self._redis.pipeline(transaction=False) as pipe:
            for client in clients:
                pipe.hget(keyspace.client(client), PAUSED)
            found = cast(list[Any], pipe.execute(raise_on_error=False))
        # Skip hashes of a wrong type.
        reasons = {who: raw for who, raw in zip(clients, found, strict=True) if type(raw) is bytes}
        return {
            who: printable(raw[:MAX_FIELD_BYTES].decode(errors="replace"))
            for who, raw in reasons.items()
        }

    def awaited_updates(self, clients: Iterable[str], run: str) -> dict[str, AwaitedUpdate | None]:
        """Client -> its update that waits for approval."""
        asked = list(clients)
        found = ask_many(
            self._redis, asked, lambda pipe, who: pipe.hget(keyspace.client(who), AWAITED)
        )
        return {who: _awaited(raw, run) for who, raw in zip(asked, found, strict=True)}

    def data_wait(self, client: str) -> DataWait | None:
        """The wait for the data server that the current job of a client reports; None without one."""
        return data_wait(self.get(client), self._leases.get(keyspace.client_holder(client)))

    def _seen(self, active_s: float) -> list[str]:
        return sorted(
            client for client, age in self.heartbeat_ages().items() if -1 < age <= active_s
        )


def data_wait(status: Mapping[str, str], holder: Mapping[str, str]) -> DataWait | None:
    """
    The wait for the data server that a client's current job reports; that of an earlier job is ignored.

    Args:
        status: The client's hash.
        holder: Its lease.
    """
    try:
        found = DataWait.from_json(status.get(DATA_WAIT, ""))
    except MessageError:
        return None
    return found if found.job and found.job == holder.get(JOB) else None


def _awaited(raw: bytes | None, run: str) -> AwaitedUpdate | None:
    try:
        return AwaitedUpdate.all_from_json((raw or b"{}")[:MAX_FIELD_BYTES]).get(run)
    except MessageError:
        return None
