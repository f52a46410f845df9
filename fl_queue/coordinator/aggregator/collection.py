"""Collect a round's updates: take messages from the results list until the round is to end."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fl_queue.common import failpoints
from fl_queue.coordinator.aggregator import scheduling
from fl_queue.coordinator.aggregator.closing import ClosingDecision
from fl_queue.coordinator.aggregator.drain import QueueDrain
from fl_queue.coordinator.aggregator.intake import UpdateIntake
from fl_queue.coordinator.aggregator.open_round import OpenRound
from fl_queue.coordinator.aggregator.ownership import OwnershipLease
from fl_queue.coordinator.rounds import opening
from fl_queue.coordinator.rounds.ending import Ending
from fl_queue.store import Doorbell

#: Longest wait for a message; the closing rule and the ownership are checked in between.
WAIT_S = 1.0
#: Messages taken at a time; no more refused ones lie on the taken list.
TAKEN_AT_ONCE = 64


class UpdateCollection:
    """
    The loop of one aggregator over its round's messages.

    Args:
        current: The round.
        intake: Processes the messages.
        closing: Decides when the round ends.
        lease: The aggregator's ownership.
        turn: The round's turn at this worker.
    """

    def __init__(
        self,
        current: OpenRound,
        intake: UpdateIntake,
        closing: ClosingDecision,
        lease: OwnershipLease,
        turn: scheduling.Turn,
    ) -> None:
        self._current, self._intake, self._closing, self._lease = current, intake, closing, lease
        self._store, self._run, self._incarnation = current.store, current.run, current.incarnation
        self._drain = QueueDrain()
        self._turn = turn

    def collect(self) -> Ending | None:
        """
        Process messages until the round is to end.

        Returns:
            None: another round needs this worker first.

        Raises:
            OwnershipLost: Another incarnation has taken over, or the round has ended.
        """
        with self._store.data.results.doorbell() as bell:
            while True:
                self._lease.check()
                is_drained = self._drain.is_over(self._closing.has_quorum())
                if (ending := self._closing.ending(drained=is_drained)) is not None:
                    return ending
                if is_drained:
                    self._drain.stop()
                if elements := self._take():
                    self._process(elements)
                    if self._can_yield() and self._turn.is_up():
                        return None
                    continue
                if (ending := self._closing.ending(drained=True)) is not None:
                    return ending
                self._drain.stop()
                self._intake.receipt_log.rejections.flush()
                # Checked at once, too: messages for other runs that came before the wait ring no bell.
                if self._turn.is_over(self._holds_updates()) or not self._wait(bell):
                    return None
                self._current.refresh()

    def _take(self) -> list[bytes]:
        # An asynchronous round takes no more than its buffer holds: the rest is for the next round.
        most = 1 if self._current.state.is_async else TAKEN_AT_ONCE
        owner = self._incarnation
        return self._store.data.taken.take(self._run, owner.fence, owner.token, most)

    def _can_yield(self) -> bool:
        """Whether merged updates are handed over as a sum; if not, all would be processed again."""
        return not self._drain.has_begun and self._intake.can_resume

    def _holds_updates(self) -> bool:
        return self._intake.received() > 0

    def _process(self, elements: Sequence[bytes]) -> None:
        wasted_s = 0.0
        for element in elements:
            failpoints.failpoint("update.taken")
            self._lease.pulse.beat()
            self._current.refresh()
            began = time.monotonic()
            if not self._intake.process(element):
                wasted_s += time.monotonic() - began
            failpoints.failpoint("update.received")
            if self._current.state.is_async and not self._closing.has_quorum():
                self._top_up()
            if self._intake.is_full():
                self._intake.checkpoint()
        self._intake.settle()
        self._drain.record_processed(len(elements), wasted_s)
        if self._drain.should_check() and self._closing.ending(drained=True) is not None:
            self._drain.begin(self._store.data.results.count(self._run))

    def _top_up(self) -> None:
        """Start an idle client where another one has answered, without waiting for the next version."""
        state = self._store.control.runs.get(self._run)
        config = self._current.config
        # With a concurrency of 1.0 only clients that have just joined are idle; the healer starts them.
        if state is not None and state.active and config.round.concurrency != 1.0:
            opening.top_up(self._store, state, config, self._current.state)
            self._current.refresh()

    def _wait(self, bell: Doorbell) -> bool:
        """Wait for a message of this run; False when another round needs this worker more."""
        until = time.monotonic() + WAIT_S
        while (left_s := until - time.monotonic()) > 0:
            run = bell.wait(left_s)
            if run == self._run:
                return True
            if run is not None and self._turn.is_over(self._holds_updates(), run):
                return False
        return True
