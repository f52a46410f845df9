"""
The control server: runs, rounds, receipts, history, events, clients and workers.

Reads return frozen values. Writes that decide something are Lua scripts or WATCH transactions, so
callers may race and repeat. RQ's own keys belong to ``store/jobs``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import redis
from redis.client import Pipeline

from fl_queue.store.control.clients import Clients
from fl_queue.store.control.enrolments import Enrolments
from fl_queue.store.control.events import Events
from fl_queue.store.control.history import History
from fl_queue.store.control.leases import Leases
from fl_queue.store.control.queues import Queues
from fl_queue.store.control.receipts import Receipts
from fl_queue.store.control.rejections import Rejections
from fl_queue.store.control.rounds import PUSH_AGAIN_S, Rounds
from fl_queue.store.control.runs import Runs
from fl_queue.store.control.server import ControlServer
from fl_queue.store.control.stages import Stages
from fl_queue.store.control.versions import Evaluations, Versions
from fl_queue.store.control.workers import Workers
from fl_queue.store.enrolment_pins import Pins

__all__ = ["PUSH_AGAIN_S", "Control"]


class Control:
    """
    Every read and write of the control server, by subject.

    Args:
        client: A retrying client.
        pins: This machine's records of enrolled clients; without them the server's entries count.
    """

    def __init__(self, client: redis.Redis, pins: Pins | None = None) -> None:
        server = ControlServer(client)
        self._server = server
        self.redis = client
        self.unreadable = server.unreadable
        self.events = Events(server)
        self.runs = Runs(server)
        self.versions = Versions(server)
        self.evaluations = Evaluations(server)
        self.history = History(server)
        self.receipts = Receipts(server, self.runs)
        self.rejections = Rejections(server)
        self.stages = Stages(server)
        self.rounds = Rounds(server, self.receipts)
        self.leases = Leases(server)
        self.workers = Workers(server)
        self.clients = Clients(server, self.leases)
        self.enrolments = Enrolments(server, pins or Pins())
        self.queues = Queues(server)

    def now(self) -> float:
        """Unix time of the control server, seconds: for records, never for decisions."""
        return self._server.now()

    def transact(
        self, watched: Iterable[str], body: Callable[[Pipeline], Callable[[], None] | None]
    ) -> bool:
        """Compare and set, see ``ControlServer.transact``."""
        return self._server.transact(watched, body)
