"""
The control server: who is there. Leases, clients, workers, and whether that picture is settled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import redis

from fl_queue import liveness, names
from fl_queue.records import Enrolment, dumps
from fl_queue.store.connect import script

#: Leases are extended every second or two: a longer silence is an outage or a jump of the clock.
LONGEST_SILENCE_S = 5.0
#: After that, everybody living has been heard again within this time.
SETTLE_S = 5.0


class Presence:
    """Leases, clients and workers. Args: ``client``: a retrying client of the control server."""

    def __init__(self, client: redis.Redis) -> None:
        self.redis = client
        self._hold = script(client, "hold")
        self._release = script(client, "release")

    def now(self) -> float:
        """Unix time of the control server, seconds: for records, never for decisions."""
        seconds, micros = cast(tuple[int, int], self.redis.time())
        return seconds + micros / 1e6

    def settling(self) -> bool:
        """Whether, after an outage or a jump of the clock, it is not known yet who is alive."""
        return float(self.redis.hget(names.CLOCK, "settling_s") or 0) > 0

    # Leases

    def hold(
        self, lease: str, token: str, lifetime_s: float, fields: Mapping[str, Any], client: str = ""
    ) -> bool:
        """
        Take or extend a lease; with ``client``, also record its heartbeat.

        A holder that is known to be dead is not waited for (``fields["process"]`` tells).

        Returns:
            False when somebody else holds it.
        """
        if self._try_hold(lease, token, lifetime_s, fields, client):
            return True
        return self.set_aside(lease) and self._try_hold(lease, token, lifetime_s, fields, client)

    def _try_hold(
        self, lease: str, token: str, lifetime_s: float, fields: Mapping[str, Any], client: str
    ) -> bool:
        args: list[Any] = [token, int(lifetime_s * 1000), client, LONGEST_SILENCE_S, SETTLE_S]
        for key, value in {"lease": "held", **fields}.items():
            args += [key, text_of(value)]
        return bool(self._hold(keys=[lease, names.CLIENTS, names.CLOCK], args=args))

    def set_aside(self, lease: str) -> bool:
        """End the lease of a holder that is known to be dead, and of its worker; whether it was."""
        holder = self.lease(lease)
        if not holder or not liveness.is_dead(holder.get("process", "")):
            return False
        self.release(lease, holder["token"])
        if "worker" in holder:
            self.release(names.worker(holder["worker"]), holder["token"])
        return True

    def release(self, lease: str, token: str, client: str = "") -> None:
        """Give a lease back, if it is ours."""
        self._release(keys=[lease, names.CLIENTS], args=[token, client])

    def lease(self, lease: str) -> dict[str, str]:
        """Who holds a lease; empty when nobody does."""
        return as_text(cast(dict[bytes, bytes], self.redis.hgetall(lease)))

    # Workers

    def worker_alive(self, worker: str) -> bool:
        """Whether an RQ worker's lease lives, and its process as far as one can see."""
        return _lives(self.lease(names.worker(worker)))

    def role_alive(self, role: str) -> bool:
        """Whether a worker of a role (``aggregator``, ``evaluator``, ``client``) is alive."""
        return any(worker.get("role") == role for worker in self.living_workers())

    def living_workers(self) -> list[dict[str, str]]:
        """The leases of all living RQ workers (role, host, pid, client, ...)."""
        found = sorted(self.redis.scan_iter(match=names.worker("*"), count=1000))
        workers = [
            {"name": key.decode().removeprefix(names.worker("")), **self.lease(key.decode())}
            for key in found
        ]
        return [worker for worker in workers if "role" in worker and _lives(worker)]

    # Clients

    def register_client(self, client: str, fields: Mapping[str, Any]) -> None:
        """What a client's worker says of itself."""
        self.redis.hset(
            names.client(client), mapping={key: text_of(value) for key, value in fields.items()}
        )

    def client(self, client: str) -> dict[str, str]:
        """A client's hash, as text."""
        return as_text(cast(dict[bytes, bytes], self.redis.hgetall(names.client(client))))

    def client_ids(self) -> dict[str, float]:
        """
        Every client ever heard of -> seconds since its last heartbeat.

        Below zero: heard before the control server's clock was set back.
        """
        now = self.now()
        raw = cast(
            list[tuple[bytes, float]], self.redis.zrange(names.CLIENTS, 0, -1, withscores=True)
        )
        ages = {client.decode(errors="replace"): now - seen for client, seen in raw}
        # Ids become file names and queue names: what else somebody wrote there is nobody.
        return {client: age for client, age in ages.items() if names.is_name(client)}

    def alive_clients(self, active_s: float) -> list[str]:
        """Clients heard of within ``active_s`` of the control server's clock, sorted."""
        return sorted(client for client, age in self.client_ids().items() if -1 < age <= active_s)

    # Enrolment

    def enrolment(self, client: str) -> Enrolment | None:
        """What is registered of a client; None when it never was enrolled."""
        text = cast("bytes | None", self.redis.hget(names.ENROLLED, client))
        return Enrolment.from_json(text) if text else None

    def enrolments(self) -> dict[str, Enrolment]:
        """Client -> what is registered of it, also of those that were revoked; sorted."""
        raw = cast(dict[bytes, bytes], self.redis.hgetall(names.ENROLLED))
        return {client.decode(): Enrolment.from_json(raw[client]) for client in sorted(raw)}

    def revoked(self, clients: Iterable[str]) -> set[str]:
        """Those of some clients that were revoked."""
        asked = list(clients)
        if not asked:
            return set()
        found = cast(list["bytes | None"], self.redis.hmget(names.ENROLLED, asked))
        return {
            client
            for client, text in zip(asked, found, strict=True)
            if text and Enrolment.from_json(text).revoked_at
        }

    def write_enrolment(self, client: str, enrolment: Enrolment) -> None:
        """Register a client, in place of what was registered of it."""
        self.redis.hset(names.ENROLLED, client, enrolment.to_json())


def _lives(holder: Mapping[str, str]) -> bool:
    return bool(holder) and not liveness.is_dead(holder.get("process", ""))


def as_text(raw: Mapping[bytes, bytes]) -> dict[str, str]:
    """A hash as Redis returns it, decoded."""
    return {key.decode(): value.decode() for key, value in raw.items()}


def text_of(value: Any) -> str:
    """A hash field's value: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else dumps(value)
