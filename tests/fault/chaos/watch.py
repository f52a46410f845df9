"""
What a chaos run sees of its run from outside: state, events, outbox files, leases.

Its connections never retry, and an outage is only remembered: the watcher must not wait for what
the walk has just killed. Nothing is written to Redis here.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fl_queue.store import Control, RoundState, RunState, keyspace
from fl_queue.store.embedded.server_pair import EmbeddedRedis

AWAY = (redis.ConnectionError, redis.TimeoutError)
#: A frozen server keeps a reader this long.
PATIENCE_S = 1.0
LEASES_EVERY_S = 0.25
IN = ("received", "accepted")
#: Elements of so many rounds are kept, to be sent again late.
ROUNDS_KEPT = 4


@dataclass(frozen=True)
class Sign:
    """
    Something that only a working process brings about.

    Args:
        who: Client id, ``aggregator``, ``evaluator``, ``healer``, ``control`` or ``data``.
        how: ``work`` (an event), ``answer`` (a client's update was received), ``new lease`` (a worker
            not seen before), ``lease`` (extended).
        at: Unix time, seconds.
        pid: Holder of the lease.
    """

    who: str
    how: str
    at: float
    pid: int = 0


@dataclass(frozen=True)
class Training:
    """A client began to train: the control server's clock in ms, and what for."""

    at_ms: int
    client: str
    round: int


@dataclass
class Watcher:
    """
    Looks at one run, again and again.

    Args:
        redis: The servers.
        name: Name of the run.
        clients: Ids of all clients.
        is_async: Whether jobs go on over the end of their round.
    """

    redis: EmbeddedRedis
    name: str
    clients: list[str]
    is_async: bool = False
    run: RunState | None = None
    round: RoundState | None = None
    away: set[str] = field(default_factory=set)
    receipts: dict[str, str] = field(default_factory=dict)
    events: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    #: (client, round) -> when it was first seen that it had answered, ms, and by what.
    answered: dict[tuple[str, int], tuple[float, str]] = field(default_factory=dict)
    #: (client, round) -> the element in its outbox.
    kept: dict[tuple[str, int], bytes] = field(default_factory=dict)
    #: Pids of the workers that hold a lease.
    holders: set[int] = field(default_factory=set)
    #: Whether the last look found the control server.
    fresh: bool = False

    def __post_init__(self) -> None:
        self.control = Control(impatient(self.redis.url))
        self.data = impatient(self.redis.blob_url)
        self._streams = {keyspace.client_events(client): "0-0" for client in self.clients}
        self._leases: dict[str, int] = {}
        self._leases_at = 0.0

    def look(self) -> list[Sign]:
        """Read new events and files; return the signs that a process works."""
        self._look_at_outbox()
        signs: list[Sign] = []
        self.fresh = False
        if "control" not in self.away:
            try:
                self._look_at_events(signs)
                self._look_at_leases(signs)
                self.fresh = True
            except AWAY:
                pass
        return signs

    @property
    def active(self) -> bool:
        """Whether the run was being trained when it was last seen."""
        return self.run is not None and self.run.active

    @property
    def rejected(self) -> Counter[str]:
        """Verdict -> updates that were not merged, by the run's events."""
        return Counter(
            event["status"] for _, event in self.events if event["event"] == "update_rejected"
        )

    def moment(self, role: str, who: str) -> str:
        """What a client (or the round, for all others) is doing."""
        if self.away:
            return "Redis away"
        if self.run is None or self.round is None or not (self.active and self.round.open):
            return "between rounds"
        if self.round.purpose != "train":
            return {"initialise": "initialising", "evaluate": "closing evaluation"}[
                self.round.purpose
            ]
        return self._client_moment(who) if role == "client" else self._round_moment()

    def pushing(self) -> bool:
        """Whether some client has an answer in its outbox that has not been received."""
        return any(self._client_moment(client) == "pushing" for client in self.clients)

    def _round_moment(self) -> str:
        done = sum(self.receipts.get(client) in IN for client in self.clients)
        wanted = self.round.quorum if self.is_async and self.round else len(self.clients)
        if done >= wanted:
            return "committing"
        return "collecting" if done else "training"

    def _client_moment(self, client: str) -> str:
        number = self.round.number if self.round else -1
        if self.receipts.get(client) in IN:
            return "received"
        if (client, number) in self.kept:
            return "pushing"
        started = any(
            training.client == client and training.round == number
            for training in self.trainings[-4 * len(self.clients) :]
        )
        return "training" if started else "fetching"

    # Looking

    def _look_at_outbox(self) -> None:
        for path in (self.redis.state_dir / "outbox").glob("*.update"):
            client, run, number = path.name.removesuffix(".update").split("_")
            key = (client, int(number))
            if key in self.kept or self.run is None or run != self.run.run_id:
                continue
            element = _read(path)
            if element is not None:
                self.kept[key] = element
                self.answered.setdefault(key, (time.time() * 1000, "its outbox had the update"))
        for key in [key for key in self.kept if key[1] < self._number() - ROUNDS_KEPT]:
            del self.kept[key]

    def _number(self) -> int:
        return self.run.round if self.run else 0

    def _look_at_events(self, signs: list[Sign]) -> None:
        run_id = self.run.run_id if self.run else self.control.runs.id_of(self.name)
        if run_id is None:
            return
        self._streams.setdefault(keyspace.events(run_id), "0-0")
        for stream, entry, event in self.control.events.read(self._streams, None):
            self._streams[stream] = entry
            at_ms = int(entry.split("-")[0])
            if stream == keyspace.events(run_id):
                signs += self._take_run_event(at_ms, event)
            elif event["event"] == "training" and event["run"] == run_id:
                client = stream.split(":")[2]
                self.trainings.append(Training(at_ms, client, event["round"]))
                signs += [Sign(who, "work", at_ms / 1000) for who in (client, "control", "data")]
        self.run = self.control.runs.get(run_id)
        if self.run is not None and self.run.round >= 0:
            self.round = self.control.rounds.get(run_id, self.run.round)
            receipts = self.control.receipts.of_round(run_id, self.run.round)
            self.receipts = {client: receipt.status for client, receipt in receipts.items()}

    def _take_run_event(self, at_ms: int, event: dict[str, Any]) -> list[Sign]:
        self.events.append((at_ms, event))
        what = event["event"]
        who, answers = ["control"], []
        if what == "update_received":
            self.answered.setdefault(
                (event["client"], event["round"]), (at_ms, "its update was received")
            )
            answers = [Sign(event["client"], "answer", at_ms / 1000)]
            who += ["aggregator", "data"]
        elif what in ("round_committed", "round_evaluated", "round_initialised", "round_abandoned"):
            for client in self.clients if not self.is_async else ():
                self.answered.setdefault((client, event["round"]), (at_ms, "the round had ended"))
            who += ["aggregator", "data"]
        elif what == "version_evaluated":
            who += ["evaluator"]
        elif what == "run_completed":
            # No job is left by which a process could show that it works.
            who += [*self.clients, "aggregator", "evaluator", "data"]
        return [*answers, *(Sign(one, "work", at_ms / 1000) for one in who)]

    def _look_at_leases(self, signs: list[Sign]) -> None:
        now = time.time()
        if now - self._leases_at < LEASES_EVERY_S:
            return
        self._leases_at = now
        holders: set[int] = set()
        keys = [
            *self.control.redis.scan_iter(match=keyspace.worker("*"), count=1000),
            keyspace.HEALER,
        ]
        for key in (raw.decode() if isinstance(raw, bytes) else raw for raw in keys):
            lease, left_ms = self.control.leases.get(key), cast(int, self.control.redis.pttl(key))
            if not lease:
                continue
            pid = int(lease.get("pid", 0))
            holders.add(pid)
            who = (
                "healer"
                if key == keyspace.HEALER
                else lease.get("client") or lease.get("role", "?")
            )
            if key not in self._leases:
                signs.append(Sign(who, "new lease", now, pid))
            elif left_ms > self._leases[key]:
                signs.append(Sign(who, "lease", now, pid))
            self._leases[key] = left_ms
        # A write of another process has come through.
        signs += [Sign("control", sign.how, now) for sign in signs if "lease" in sign.how][:1]
        self.holders = holders


def impatient(url: str) -> redis.Redis:
    """A client that neither retries nor waits for a frozen server."""
    return redis.Redis.from_url(
        url,
        socket_timeout=PATIENCE_S,
        socket_connect_timeout=PATIENCE_S,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
