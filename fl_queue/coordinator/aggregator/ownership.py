"""
An aggregator incarnation's ownership of its taken list, kept alive by a thread.

The thread watches the incarnation, too: RQ gives an aggregator's job any time, and one that hangs
would be believed for ever.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import TracebackType

from fl_queue.common import failpoints
from fl_queue.common.thread_activity import Pulse
from fl_queue.errors import OwnershipLost
from fl_queue.store import REDIS_ERRORS, Store

log = logging.getLogger(__name__)

EXTEND_S = 1.5
#: An incarnation that gets nowhere for this long hangs. A long merge gets somewhere all the time.
STILL_S = 600.0


def take_over(store: Store, run: str, number: int, job: str, token: str) -> int:
    """
    Own a round and its taken list, in place of every earlier incarnation.

    Args:
        job: Id of the RQ job that does it.
        token: Of the new incarnation.

    Returns:
        Its fence; 0: nothing to do.
    """
    used = 0
    while fence := store.control.rounds.claim(run, number, job, token, used):
        failpoints.failpoint("aggregator.claimed")
        used = store.data.taken.own(run, fence, token)
        if not used:
            return fence
        what = f"fence {fence} was given again, {used} was in use"
        log.error("run=%s the control server has lost its last writes: %s", run, what)
        store.control.events.add(
            run, {"event": "control_writes_lost", "round": number, "what": what}
        )
    return 0


class OwnershipLease:
    """
    Extends an incarnation's lease from a thread, so that a long merge does not lose it.

    Ends the process when the thread that made it hangs; the healer issues another attempt.
    """

    def __init__(self, store: Store, run: str, number: int, fence: int, token: str) -> None:
        self._store, self._run, self._fence, self._token = store, run, fence, token
        self._number = number
        self.pulse = Pulse()
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._outage: Exception | None = None
        self._thread = threading.Thread(target=self._keep, name=f"lease-{run}-{fence}", daemon=True)

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
        """Raises OwnershipLost once the lease is another's, and why it could not be extended otherwise."""
        self.pulse.beat()
        if self._outage is not None:
            raise self._outage
        if self._lost.is_set():
            raise OwnershipLost(
                f"run {self._run}: incarnation {self._fence} was replaced, or the data server restarted"
            )

    def _keep(self) -> None:
        while not self._stop.wait(EXTEND_S):
            if not self._lost.is_set() and self._outage is None:
                self._extend()
            if (still_s := self.pulse.still_s()) > STILL_S:
                self._end(still_s)

    def _extend(self) -> None:
        try:
            self._store.data.taken.extend(self._run, self._fence, self._token)
        except OwnershipLost:
            self._lost.set()
        except REDIS_ERRORS as exc:
            self._outage = exc

    def _end(self, still_s: float) -> None:
        """The incarnation hangs: say where, and end this process as nothing else can."""
        where = self.pulse.where()
        log.error("run=%s hangs since %.0f s in %s: ending", self._run, still_s, where)
        event = {"event": "aggregator_hung", "round": self._number, "still_s": round(still_s)}
        try:
            self._store.control.events.add(self._run, {**event, "where": where})
        except REDIS_ERRORS as exc:
            log.error("control server: %s", exc)
        os.kill(os.getpid(), signal.SIGKILL)
