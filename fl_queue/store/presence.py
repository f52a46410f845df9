"""
The control server: who is there. Leases, clients, workers, and whether that picture is settled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import redis
from redis.client import Pipeline

from fl_queue.common import processes
from fl_queue.common.safe_json import printable
from fl_queue.errors import MessageError
from fl_queue.protocol import identifiers
from fl_queue.protocol.records import AwaitedUpdate, DataWait, Enrolment, dumps
from fl_queue.store import keyspace
from fl_queue.store.batching import ask_many
from fl_queue.store.connection import script
from fl_queue.store.enrolment_pins import Pins, Ruling
from fl_queue.store.unreadable import Unreadable

#: Lifetime of a worker's lease; it is extended every second or two.
LEASE_S = 6.0
#: The healer looks every second: a longer silence is an outage or a jump of the clock.
LONGEST_SILENCE_S = 5.0
#: After that, everybody living has been heard again within this time.
SETTLE_S = 5.0
#: What a client tells of its data is read within seconds.
TOLD_S = 3600
#: Field of a client's hash: its worker was stopped, and did not just vanish.
_LEFT = "left"
#: Field of a client's hash: why its site has paused it; not there while it has not.
PAUSED = "paused"
#: Field of a client's hash: JSON run id -> ``AwaitedUpdate``; not there while nothing waits.
AWAITED = "awaited"
#: Field of a client's hash: JSON ``DataWait``; not there while it can use the data server.
DATA_WAIT = "data_wait"
#: Field of a worker's lease: id of the job at work, empty when it is idle.
JOB = "job"
#: What ``at_work`` says of a worker whose lease has no such field. No job is called so.
UNNAMED = "?"
#: Of what a worker says of itself no longer field is read; nothing of ours comes near it.
_SAID_BYTES = 4096
#: Field of a client's hash: examples it has.
_EXAMPLES = "num_examples"
#: What is read of a lease, and of a client's hash: whoever holds it may write a million fields.
_LEASE = ("token", "process", "role", "host", "pid", "client", "worker", JOB)
_CLIENT = (_EXAMPLES, _LEFT, PAUSED, AWAITED, DATA_WAIT)
#: Workers of one client that are listed; one serves it, and others have just ended.
_WORKERS_EACH = 4
#: Keys looked at in one call, and calls in one look for clients that nobody knows yet: the next look goes on.
_SCANNED = 5000
_SCANS_A_LOOK = 20


class Presence:
    """Leases, clients and workers. Args: ``client``: a retrying client of the control server."""

    def __init__(self, client: redis.Redis) -> None:
        self.redis = client
        self.unreadable = Unreadable()
        self._scanned_to = 0
        #: What this machine knows of who is enrolled.
        self.pins = Pins()
        self._hear = script(client, "hear")

    def now(self) -> float:
        """Unix time of the control server, seconds: for records, never for decisions."""
        seconds, micros = cast(tuple[int, int], self.redis.time())
        return seconds + micros / 1e6

    def settling(self) -> bool:
        """Whether, after an outage or a jump of the clock, it is not known yet who is alive."""
        return float(self.redis.hget(keyspace.CLOCK, "settling_s") or 0) > 0

    # Leases: a key of its holder each, written without scripts, which no client may run

    def hold(self, lease: str, token: str, lifetime_s: float, fields: Mapping[str, Any]) -> bool:
        """
        Take or extend a lease: a hash with the holder's token that expires.

        A holder that is known to be dead is not waited for (``fields["process"]`` tells).

        Returns:
            False when somebody else holds it.
        """
        if self._try_hold(lease, token, lifetime_s, fields):
            return True
        return self.set_aside(lease) and self._try_hold(lease, token, lifetime_s, fields)

    def _try_hold(
        self, lease: str, token: str, lifetime_s: float, fields: Mapping[str, Any]
    ) -> bool:
        mapping = {"token": token, "lease": "held"}
        mapping |= {key: text_of(value) for key, value in fields.items()}

        def write(pipe: Pipeline) -> None:
            pipe.hset(lease, mapping=cast(dict[Any, Any], mapping))
            pipe.pexpire(lease, int(lifetime_s * 1000))

        return self._if_ours(lease, (None, token.encode()), write)

    def _if_ours(
        self, lease: str, holders: Iterable[bytes | None], write: Callable[[Pipeline], None]
    ) -> bool:
        """Write, if the lease has one of these tokens (None: nobody holds it)."""
        while True:
            with self.redis.pipeline() as pipe:
                try:
                    pipe.watch(lease)
                    if cast("bytes | None", pipe.hget(lease, "token")) not in holders:
                        return False
                    pipe.multi()
                    write(pipe)
                    pipe.execute()
                    return True
                except redis.WatchError:
                    continue  # Somebody was quicker, or the connection broke: look again.

    def set_aside(self, lease: str) -> bool:
        """End the lease of a holder that is known to be dead, and of its worker; whether it was."""
        holder = self.lease(lease)
        if not holder or not processes.is_dead(holder.get("process", "")):
            return False
        token = holder.get("token", "")
        self.release(lease, token)
        if "worker" in holder:
            self.release(keyspace.worker(holder["worker"]), token)
        return True

    def release(self, lease: str, token: str, client: str = "") -> None:
        """Give a lease back, if it is ours. Args: ``client``: whose worker leaves for good."""

        def write(pipe: Pipeline) -> None:
            pipe.delete(lease)
            if client:
                pipe.hset(keyspace.client(client), _LEFT, "1")

        self._if_ours(lease, (token.encode(),), write)

    def lease(self, lease: str) -> dict[str, str]:
        """Who holds a lease; empty when nobody does."""
        return self.leases([lease])[0]

    def leases(self, asked: Iterable[str]) -> list[dict[str, str]]:
        """The same of several, in their order."""
        return self._fields(asked, _LEASE)

    def _fields(self, keys: Iterable[str], fields: Sequence[str]) -> list[dict[str, str]]:
        """Of some hashes those fields that are there and not too long, as text that can be shown."""
        asked = list(keys)
        each = [(key, name) for key in asked for name in fields]
        lengths = ask_many(self.redis, each, lambda pipe, item: pipe.hstrlen(*item))
        short: dict[str, list[str]] = {}
        for (key, name), length in zip(each, lengths, strict=True):
            if 0 < length <= _SAID_BYTES:
                short.setdefault(key, []).append(name)
        found = ask_many(self.redis, short, lambda pipe, key: pipe.hmget(key, short[key]))
        read = {
            key: _said(dict(zip(some, values, strict=True)))
            for (key, some), values in zip(short.items(), found, strict=True)
        }
        return [read.get(key, {}) for key in asked]

    # Workers

    def worker_alive(self, worker: str) -> bool:
        """Whether an RQ worker's lease lives, and its process as far as one can see."""
        return _lives(self.lease(keyspace.worker(worker)))

    def name_job(self, pipe: Pipeline, worker: str, token: str, job: str) -> None:
        """Have a worker's lease name the job at work, as part of a transaction. Args: ``token``: its own."""
        key = keyspace.worker(worker)
        pipe.hset(key, mapping={"token": token, JOB: job})
        pipe.pexpire(key, int(LEASE_S * 1000))

    def at_work(self, worker: str) -> str | None:
        """
        Id of the job that a living worker is at, empty when it is idle, as its lease says.

        Returns:
            None: the worker is dead. ``UNNAMED``: its lease names no jobs, as those of earlier releases.
        """
        return self.all_at_work([worker])[worker]

    def all_at_work(self, workers: Iterable[str]) -> dict[str, str | None]:
        """RQ worker -> the same of it."""
        return {
            worker: lease.get(JOB, UNNAMED) if _lives(lease) else None
            for worker, lease in self.worker_leases(workers).items()
        }

    def worker_leases(self, workers: Iterable[str]) -> dict[str, dict[str, str]]:
        """RQ worker -> its lease; empty when it has none."""
        asked = sorted(set(workers))
        # One command each: the healer asks for everybody in training, once a second.
        found = ask_many(
            self.redis, asked, lambda pipe, name: pipe.hmget(keyspace.worker(name), _LEASE)
        )
        return {
            worker: _said(dict(zip(_LEASE, raw, strict=True)))
            for worker, raw in zip(asked, found, strict=True)
        }

    def role_alive(self, role: str) -> bool:
        """Whether a worker of a role (``aggregator``, ``evaluator``, ``client``) is alive."""
        # As supervisors name theirs, and those that RQ's own command starts: no client may write these keys.
        usual = self._workers_like(f"{role}[-_]*") + self._workers_like("_*")
        if any(worker["role"] == role for worker in self._living(usual)):
            return True
        return any(worker["role"] == role for worker in self.living_workers())

    def living_workers(self) -> list[dict[str, str]]:
        """The leases of all living RQ workers (role, host, pid, client, ...); of each client a few at most."""
        return self._living(self._workers_like("*"))

    def _workers_like(self, pattern: str) -> list[str]:
        """Names of workers that have a lease, sorted; of each client a few at most."""
        found: set[str] = set()
        listed: Counter[str] = Counter()
        for key in self.redis.scan_iter(match=keyspace.worker(pattern), count=_SCANNED):
            name = key.decode(errors="replace").removeprefix(keyspace.worker(""))
            whose, separator, _ = name.partition("_")
            if name not in found and not (separator and whose and listed[whose] >= _WORKERS_EACH):
                found.add(name)
                listed[whose] += 1
        return sorted(found)

    def _living(self, workers: Iterable[str]) -> list[dict[str, str]]:
        found = [_as_worker(name, lease) for name, lease in self.worker_leases(workers).items()]
        return [worker for worker in found if "role" in worker and _lives(worker)]

    # Clients

    def arrive(self, client: str, said: Mapping[str, str] = MappingProxyType({})) -> None:
        """A client's worker has begun, whatever it said when it left. Args: ``said``: as of ``say``."""
        self.say(client, {_LEFT: "", **said})

    def say(self, client: str, said: Mapping[str, str]) -> None:
        """What a client's worker says of its site, by field of its hash; empty: nothing any more."""
        key = keyspace.client(client)
        kept = {name: text for name, text in said.items() if text}
        if kept:
            self.redis.hset(key, mapping=cast(dict[Any, Any], kept))
        if len(kept) < len(said):
            self.redis.hdel(key, *(said.keys() - kept.keys()))

    def hear(self) -> None:
        """
        Note who is there: whoever has a lease was heard when it was extended last.

        For the operator's side, as no client may speak for another. The healer calls it once a second;
        a longer silence is an outage or a jump of the clock, after which ``settling`` is true for a while.
        """
        known = {
            client.decode(errors="replace")
            for client in cast(list[bytes], self.redis.zrange(keyspace.CLIENTS, 0, -1))
        }
        asked = sorted(known | self._newcomers())
        # Of another type than a hash, it says that it is there.
        found = ask_many(
            self.redis, asked, lambda pipe, who: pipe.pttl(keyspace.client_holder(who))
        )
        # A lease without an end, or with a late one, says no more than that it is there.
        ages = {
            client: 0.0 if left_ms == -1 else max(0.0, LEASE_S - left_ms / 1000)
            for client, left_ms in zip(asked, found, strict=True)
            if left_ms != -2 and identifiers.is_name(client)
        }
        away = [client for client in asked if client not in ages]
        said = ask_many(self.redis, away, lambda pipe, who: pipe.hget(keyspace.client(who), _LEFT))
        left = [who for who, text in zip(away, said, strict=True) if text == b"1"]
        args: list[Any] = [LONGEST_SILENCE_S, SETTLE_S, dumps(ages), *left]
        self._hear(keys=[keyspace.CLIENTS, keyspace.CLOCK], args=args)

    def _newcomers(self) -> set[str]:
        """
        Clients that have a lease, of a part of the server's keys: each look goes on where the last one ended.

        So a look costs the same however many keys somebody has made; with few, it is all of them.
        """
        found: set[str] = set()
        for _ in range(_SCANS_A_LOOK):
            self._scanned_to, keys = cast(
                tuple[int, list[bytes]],
                self.redis.scan(
                    self._scanned_to, match=keyspace.client_holder("*"), count=_SCANNED
                ),
            )
            found.update(key.decode(errors="replace").split(":")[2] for key in keys)
            if not self._scanned_to:
                break
        return {client for client in found if identifiers.is_name(client)}

    def register_client(self, client: str, fields: Mapping[str, Any]) -> None:
        """What a client's worker says of itself."""
        self.redis.hset(
            keyspace.client(client), mapping={key: text_of(value) for key, value in fields.items()}
        )

    def tell(self, client: str, run: str, text: str) -> None:
        """A client says what it would train on in a run."""
        self.redis.set(keyspace.client_told(client, run), text, ex=TOLD_S)

    def told(self, client: str, run: str, longest: int) -> bytes | None:
        """What it said, no more than ``longest`` bytes of it; None: nothing (any more)."""
        text = cast(bytes, self.redis.getrange(keyspace.client_told(client, run), 0, longest))
        return text or None

    def sites(self, run: str) -> dict[str, bytes]:
        """Client -> what is recorded of its part in the comparison before round 1."""
        raw = cast(dict[bytes, bytes], self.redis.hgetall(keyspace.sites(run)))
        # Not client ids alone: one field is what most sites tell.
        return {client.decode(errors="replace"): raw[client] for client in sorted(raw)}

    def client(self, client: str) -> dict[str, str]:
        """What a client's worker said of itself, by field of its hash."""
        return self.clients([client])[0]

    def clients(self, asked: Iterable[str]) -> list[dict[str, str]]:
        """The same of several, in their order."""
        return self._fields(map(keyspace.client, asked), _CLIENT)

    def client_ids(self) -> dict[str, float]:
        """
        Every client ever heard of -> seconds since its last heartbeat.

        Below zero: heard before the control server's clock was set back.
        """
        now = self.now()
        raw = cast(
            list[tuple[bytes, float]], self.redis.zrange(keyspace.CLIENTS, 0, -1, withscores=True)
        )
        ages = {client.decode(errors="replace"): now - seen for client, seen in raw}
        # Ids become file names and queue names: what else somebody wrote there is nobody.
        return {client: age for client, age in ages.items() if identifiers.is_name(client)}

    def alive_clients(self, active_s: float) -> list[str]:
        """Clients heard of within ``active_s`` of the control server's clock, and not paused, sorted."""
        heard = self._heard(active_s)
        paused = self.paused(heard)
        return [client for client in heard if client not in paused]

    def paused_clients(self, active_s: float) -> dict[str, str]:
        """Clients heard of within ``active_s`` that their sites have paused -> why, sorted."""
        return self.paused(self._heard(active_s))

    def paused(self, clients: Sequence[str]) -> dict[str, str]:
        """Those of some clients that their sites have paused -> why, in the same order."""
        with self.redis.pipeline(transaction=False) as pipe:
            for client in clients:
                pipe.hget(keyspace.client(client), PAUSED)
            found = cast(list[Any], pipe.execute(raise_on_error=False))
        # Of another type: it says nothing.
        said = {who: raw for who, raw in zip(clients, found, strict=True) if type(raw) is bytes}
        return {
            who: printable(raw[:_SAID_BYTES].decode(errors="replace")) for who, raw in said.items()
        }

    def awaited(self, client: str, run: str) -> AwaitedUpdate | None:
        """A client's answer of a run that somebody at its site has to decide on, if it says so."""
        return self.all_awaited([client], run)[client]

    def all_awaited(self, clients: Iterable[str], run: str) -> dict[str, AwaitedUpdate | None]:
        """Client -> the same of it."""
        asked = list(clients)
        found = ask_many(
            self.redis, asked, lambda pipe, who: pipe.hget(keyspace.client(who), AWAITED)
        )
        return {who: _awaited(raw, run) for who, raw in zip(asked, found, strict=True)}

    def data_wait(self, client: str) -> DataWait | None:
        """What the job that a client's living worker is at waits for, if it says so."""
        return data_wait(self.client(client), self.lease(keyspace.client_holder(client)))

    def _heard(self, active_s: float) -> list[str]:
        return sorted(client for client, age in self.client_ids().items() if -1 < age <= active_s)

    # Enrolment

    def enrolment(self, client: str) -> Enrolment | None:
        """What counts of a client, see ``enrolment_pins``; None when it is not enrolled. Raises ConfigError."""
        text = cast("bytes | None", self.redis.hget(keyspace.ENROLLED, client))
        return self.pins.decide(client, text).enrolment

    def enrolments(self) -> dict[str, Enrolment]:
        """Client -> what counts of it, also of those that were revoked; sorted. Raises ConfigError."""
        found = self.enrolment_rulings()
        return {client: ruling.enrolment for client, ruling in found.items() if ruling.enrolment}

    def enrolment_rulings(self) -> dict[str, Ruling]:
        """Client -> what counts of it, and what is wrong with its entry; sorted. Raises ConfigError."""
        return self.pins.decide_all(self.enrolment_entries())

    def enrolment_entries(self) -> dict[bytes, bytes]:
        """Client -> what is registered of it, as anybody may have written it."""
        return cast(dict[bytes, bytes], self.redis.hgetall(keyspace.ENROLLED))

    def revoked(self, clients: Iterable[str]) -> set[str]:
        """Those of some clients that were revoked. Raises ConfigError."""
        asked = list(clients)
        if not asked:
            return set()
        found = cast(list["bytes | None"], self.redis.hmget(keyspace.ENROLLED, asked))
        rulings = (self.pins.decide(*each).enrolment for each in zip(asked, found, strict=True))
        return {
            client
            for client, known in zip(asked, rulings, strict=True)
            if known is not None and known.revoked_at
        }

    def write_enrolment(self, client: str, enrolment: Enrolment) -> None:
        """Register a client, in place of what was registered of it."""
        self.redis.hset(keyspace.ENROLLED, client, enrolment.to_json())


def _as_worker(name: str, lease: Mapping[str, str]) -> dict[str, str]:
    said = dict(lease) | {"name": name}
    whose, separator, _ = name.partition("_")
    if "role" in said and separator and whose and whose not in identifiers.RESERVED:
        # Written by that client: it is no aggregator, whatever it says.
        said |= {"role": "client", "client": whose}
    return said


def _lives(holder: Mapping[str, str]) -> bool:
    return bool(holder) and not processes.is_dead(holder.get("process", ""))


def data_wait(said: Mapping[str, str], holder: Mapping[str, str]) -> DataWait | None:
    """Args: ``said``: a client's hash; ``holder``: its lease. What an earlier job has said does not count."""
    try:
        found = DataWait.from_json(said.get(DATA_WAIT, ""))
    except MessageError:
        return None
    return found if found.job and found.job == holder.get(JOB) else None


def _awaited(raw: bytes | None, run: str) -> AwaitedUpdate | None:
    try:
        return AwaitedUpdate.all_from_json((raw or b"{}")[:_SAID_BYTES]).get(run)
    except MessageError:
        return None


def _said(raw: Mapping[str, bytes | None]) -> dict[str, str]:
    """What a worker wrote of itself, which may be anything, as text that can be shown."""
    return {
        name: printable(value[:_SAID_BYTES].decode(errors="replace"))
        for name, value in raw.items()
        if value is not None
    }


def as_text(raw: Mapping[bytes, bytes]) -> dict[str, str]:
    """A hash as Redis returns it, decoded."""
    return {
        key.decode(errors="replace"): value.decode(errors="replace") for key, value in raw.items()
    }


def text_of(value: Any) -> str:
    """A hash field's value: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else dumps(value)
