"""
Claim a round for an aggregator, and keep the claim alive from a thread.

The thread also watches the aggregator: RQ sets no time limit for its job, and one that hangs would keep its
claim for ever.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from types import TracebackType

from fl_queue.common import failpoints
from fl_queue.common.thread_activity import Pulse
from fl_queue.errors import OwnershipLost
from fl_queue.protocol.events import AggregatorHung, ControlWritesLost
from fl_queue.store import REDIS_ERRORS, Incarnation, Store

log = logging.getLogger(__name__)

EXTEND_S = 1.5
#: An aggregator without progress for this long hangs. A long merge makes progress all the time.
STILL_S = 600.0


def claim_round(store: Store, run: str, number: int, job: str) -> Incarnation | None:
    """
    Claim a round and its taken list, in place of every earlier incarnation.

    Args:
        job: Id of the RQ job that claims it; only the round's newest aggregator job may.

    Returns:
        None: there is nothing to do for this job.
    """
    token = secrets.token_hex(8)
    used = 0
    while fence := store.control.rounds.claim(run, number, job, token, used):
        failpoints.failpoint("aggregator.claimed")
        used = store.data.taken.own(run, fence, token)
        if not used:
            return Incarnation(run, number, fence, token)
        what = f"fence {fence} was given again, {used} was in use"
        log.error("run=%s the control server has lost its last writes: %s", run, what)
        store.control.events.add(run, ControlWritesLost(round=number, what=what))
    return None


class OwnershipLease:
    """
    Extends an incarnation's lease from a thread, so that a long merge does not lose it.

    Ends the process when the thread that made it hangs; the healer issues another attempt.

    Args:
        store: Both servers.
        incarnation: The claim that is extended.
    """

    def __init__(self, store: Store, incarnation: Incarnation) -> None:
        self._store, self._incarnation = store, incarnation
        self.pulse = Pulse()
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._outage: Exception | None = None
        name = f"lease-{incarnation.run}-{incarnation.fence}"
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)

    def __enter__(self) -> OwnershipLease:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """
        Record progress, and check that the claim is still this incarnation's.

        Raises:
            OwnershipLost: Another incarnation has taken over, or the data server restarted.
            StoreUnavailable: The lease could not be extended.
        """
        self.pulse.beat()
        if self._outage is not None:
            raise self._outage
        if self._lost.is_set():
            owner = self._incarnation
            raise OwnershipLost(
                f"run {owner.run}: incarnation {owner.fence} was replaced, or the data server restarted"
            )

    def _keep(self) -> None:
        while not self._stop.wait(EXTEND_S):
            if not self._lost.is_set() and self._outage is None:
                self._extend()
            if (still_s := self.pulse.still_s()) > STILL_S:
                self._end(still_s)

    def _extend(self) -> None:
        owner = self._incarnation
        try:
            self._store.data.taken.extend(owner.run, owner.fence, owner.token)
        except OwnershipLost:
            self._lost.set()
        except REDIS_ERRORS as exc:
            self._outage = exc

    def _end(self, still_s: float) -> None:
        """Record where the aggregator hangs, and kill its process: nothing less ends a hanging thread."""
        where, owner = self.pulse.where(), self._incarnation
        log.error("run=%s hangs since %.0f s in %s: ending", owner.run, still_s, where)
        event = AggregatorHung(round=owner.round, still_s=round(still_s), where=where)
        try:
            self._store.control.events.add(owner.run, event)
        except REDIS_ERRORS as exc:
            log.error("control server: %s", exc)
        os.kill(os.getpid(), signal.SIGKILL)
