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

#: The healer looks every second: a longer silence is an outage or a jump of the clock.
LONGEST_SILENCE_S = 5.0
#: After that, every living client has extended its lease again within this time.
SETTLE_S = 5.0
#: Lifetime of a site's facts; they are read within seconds.
SITE_FACTS_S = 3600
#: Field of a client's hash: why its site has paused it; not there while it has not.
PAUSED = "paused"
#: Field of a client's hash: JSON run id -> ``AwaitedUpdate``; not there while nothing waits.
AWAITED = "awaited"
#: Field of a client's hash: JSON ``DataWait``; not there while it can use the data server.
DATA_WAIT = "data_wait"
#: Field of a client's hash: examples it has.
_EXAMPLES = "num_examples"
#: Fields that are read of a client's hash: its worker may write any number of them.
_CLIENT = (_EXAMPLES, LEFT, PAUSED, AWAITED, DATA_WAIT)
#: Calls of SCAN in one look for clients that are not known yet: the next look goes on.
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
        """Whether, after an outage or a jump of the clock, it is not known yet who is alive."""
        return float(self._redis.hget(keyspace.CLOCK, "settling_s") or 0) > 0

    def register_worker(self, client: str, said: Mapping[str, str] = MappingProxyType({})) -> None:
        """A client's worker has begun, whatever it said when it left. Args: ``said``: as of ``say``."""
        self.set_status(client, {LEFT: "", **said})

    def set_status(self, client: str, said: Mapping[str, str]) -> None:
        """What a client's worker says of its site, by field of its hash; empty: nothing any more."""
        key = keyspace.client(client)
        kept = {name: text for name, text in said.items() if text}
        if kept:
            self._redis.hset(key, mapping=cast(dict[Any, Any], kept))
        if len(kept) < len(said):
            self._redis.hdel(key, *(said.keys() - kept.keys()))

    def record_heartbeats(self) -> None:
        """
        Note who is there: whoever has a lease was heard when it was extended last.

        For the operator's side, as no client may speak for another. The healer calls it once a second;
        a longer silence is an outage or a jump of the clock, after which ``settling`` is true for a while.
        """
        known = {
            client.decode(errors="replace")
            for client in cast(list[bytes], self._redis.zrange(keyspace.CLIENTS, 0, -1))
        }
        asked = sorted(known | self._newcomers())
        # Of another type than a hash, it says that it is there.
        found = ask_many(
            self._redis, asked, lambda pipe, who: pipe.pttl(keyspace.client_holder(who))
        )
        # A lease without an end, or with a late one, says no more than that it is there.
        ages = {
            client: 0.0 if left_ms == -1 else max(0.0, LEASE_S - left_ms / 1000)
            for client, left_ms in zip(asked, found, strict=True)
            if left_ms != -2 and identifiers.is_name(client)
        }
        away = [client for client in asked if client not in ages]
        said = ask_many(self._redis, away, lambda pipe, who: pipe.hget(keyspace.client(who), LEFT))
        left = [who for who, text in zip(away, said, strict=True) if text == b"1"]
        args: list[Any] = [LONGEST_SILENCE_S, SETTLE_S, dumps(ages), *left]
        self._heartbeats(keys=[keyspace.CLIENTS, keyspace.CLOCK], args=args)

    def _newcomers(self) -> set[str]:
        """
        Clients that have a lease, of a part of the server's keys: each look goes on where the last one ended.

        So a look costs the same however many keys somebody has made; with few, it is all of them.
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
        """What a client's worker says of itself."""
        self._redis.hset(
            keyspace.client(client), mapping={key: text_of(value) for key, value in fields.items()}
        )

    def set_site_facts(self, client: str, run: str, text: str) -> None:
        """A client says what it would train on in a run."""
        self._redis.set(keyspace.client_facts(client, run), text, ex=SITE_FACTS_S)

    def site_facts(self, client: str, run: str, longest: int) -> bytes | None:
        """What it said, no more than ``longest`` bytes of it; None: nothing (any more)."""
        text = cast(bytes, self._redis.getrange(keyspace.client_facts(client, run), 0, longest))
        return text or None

    def get(self, client: str) -> dict[str, str]:
        """What a client's worker said of itself, by field of its hash."""
        return self.get_many([client])[0]

    def get_many(self, asked: Iterable[str]) -> list[dict[str, str]]:
        """The same of several, in their order."""
        return self._server.short_fields(map(keyspace.client, asked), _CLIENT)

    def heartbeat_ages(self) -> dict[str, float]:
        """
        Every client ever heard of -> seconds since its last heartbeat.

        Below zero: heard before the control server's clock was set back.
        """
        now = self._server.now()
        raw = cast(
            list[tuple[bytes, float]], self._redis.zrange(keyspace.CLIENTS, 0, -1, withscores=True)
        )
        ages = {client.decode(errors="replace"): now - seen for client, seen in raw}
        # Ids become file names and queue names: what else somebody wrote there is nobody.
        return {client: age for client, age in ages.items() if identifiers.is_name(client)}

    def alive(self, active_s: float) -> list[str]:
        """Clients heard of within ``active_s`` of the control server's clock, and not paused, sorted."""
        heard = self._seen(active_s)
        paused = self.paused(heard)
        return [client for client in heard if client not in paused]

    def alive_paused(self, active_s: float) -> dict[str, str]:
        """Clients heard of within ``active_s`` that their sites have paused -> why, sorted."""
        return self.paused(self._seen(active_s))

    def paused(self, clients: Sequence[str]) -> dict[str, str]:
        """Those of some clients that their sites have paused -> why, in the same order."""
        with self._redis.pipeline(transaction=False) as pipe:
            for client in clients:
                pipe.hget(keyspace.client(client), PAUSED)
            found = cast(list[Any], pipe.execute(raise_on_error=False))
        # Of another type: it says nothing.
        said = {who: raw for who, raw in zip(clients, found, strict=True) if type(raw) is bytes}
        return {
            who: printable(raw[:MAX_FIELD_BYTES].decode(errors="replace"))
            for who, raw in said.items()
        }

    def awaited_update(self, client: str, run: str) -> AwaitedUpdate | None:
        """A client's answer of a run that somebody at its site has to decide on, if it says so."""
        return self.awaited_updates([client], run)[client]

    def awaited_updates(self, clients: Iterable[str], run: str) -> dict[str, AwaitedUpdate | None]:
        """Client -> the same of it."""
        asked = list(clients)
        found = ask_many(
            self._redis, asked, lambda pipe, who: pipe.hget(keyspace.client(who), AWAITED)
        )
        return {who: _awaited(raw, run) for who, raw in zip(asked, found, strict=True)}

    def data_wait(self, client: str) -> DataWait | None:
        """What the job that a client's living worker is at waits for, if it says so."""
        return data_wait(self.get(client), self._leases.get(keyspace.client_holder(client)))

    def _seen(self, active_s: float) -> list[str]:
        return sorted(
            client for client, age in self.heartbeat_ages().items() if -1 < age <= active_s
        )


def data_wait(said: Mapping[str, str], holder: Mapping[str, str]) -> DataWait | None:
    """Args: ``said``: a client's hash; ``holder``: its lease. What an earlier job has said does not count."""
    try:
        found = DataWait.from_json(said.get(DATA_WAIT, ""))
    except MessageError:
        return None
    return found if found.job and found.job == holder.get(JOB) else None


def _awaited(raw: bytes | None, run: str) -> AwaitedUpdate | None:
    try:
        return AwaitedUpdate.all_from_json((raw or b"{}")[:MAX_FIELD_BYTES]).get(run)
    except MessageError:
        return None
