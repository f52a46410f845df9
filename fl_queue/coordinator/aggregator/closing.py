"""Decide whether an aggregator's round ends now: the closing rule, applied to what the aggregator knows."""

from __future__ import annotations

import time

from fl_queue.coordinator.aggregator.intake import UpdateIntake
from fl_queue.coordinator.aggregator.open_round import OpenRound
from fl_queue.coordinator.aggregator.unanswered_clients import unanswered
from fl_queue.coordinator.rounds import deadlines, initialisation, panels
from fl_queue.coordinator.rounds.ending import Ending
from fl_queue.coordinator.rounds.lifecycle import closing_rule
from fl_queue.coordinator.rounds.panels import PanelRound
from fl_queue.protocol.records import Outcome, Purpose
from fl_queue.store.jobs import dispatch


class ClosingDecision:
    """
    Decides how and when one round ends.

    Args:
        current: The round.
        intake: Its messages.
        refusal: The reason why this aggregator cannot merge the round at all; empty: it can.
    """

    def __init__(self, current: OpenRound, intake: UpdateIntake, refusal: str = "") -> None:
        self._current, self._intake, self._refusal = current, intake, refusal
        self._store, self._run = current.store, current.run
        self._panel = panels.of_round(current.run_state(), current.state, current.config)

    def has_quorum(self) -> bool:
        """Whether the quorum is received."""
        return self._intake.received() >= self._current.state.quorum

    def ending(self, drained: bool) -> Ending | None:
        """
        The end of the round, if it ends now.

        Args:
            drained: Every message that has arrived is processed.

        Raises:
            OwnershipLost: The round was ended by another process.
        """
        if self._refusal:
            return Ending(Outcome.abandoned, self._refusal)
        purpose, stages = self._current.state.purpose, self._intake.stages
        if stages is not None:
            return stages.ending(drained)
        missing = unanswered(
            self._store, self._run, self._current.state, self._intake.receipts, drained
        )
        if purpose == Purpose.initialise:
            return self._ending_of_initialisation(missing, drained)
        if purpose == Purpose.evaluate:
            return self._ending_of_evaluation(missing, drained)
        if self._panel is not None:
            return self._ending_of_step(self._panel, missing, drained)
        return self._ending_of_training(len(missing), drained)

    def _rule(self, pending: int, elapsed_s: float, drained: bool) -> Ending | None:
        state = self._current.state
        received = self._intake.received()
        return closing_rule(state, received, pending, elapsed_s, state.quorum_at_s, drained)

    def _ending_of_training(self, pending: int, drained: bool) -> Ending | None:
        has_quorum = self.has_quorum()
        if has_quorum and (self._current.state.is_async or not pending):
            # Independent of the time: to count it is a write to disk.
            return self._rule(pending, 0.0, drained)
        if not drained:
            return None  # Messages that have arrived are processed before the time is counted.
        elapsed_s = self._current.tick()
        if has_quorum:
            self._current.record_quorum(elapsed_s)
        return self._rule(pending, elapsed_s, drained)

    def _ending_of_step(
        self, panel: PanelRound, missing: list[str], drained: bool
    ) -> Ending | None:
        if self.has_quorum():
            return self._rule(len(missing), 0.0, drained)
        if not drained:
            return None
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._store.control.now()))
        return panel.ending(self._intake.receipts, missing, self._current.tick(), now)

    def _ending_of_evaluation(self, missing: list[str], drained: bool) -> Ending | None:
        if not missing:
            return self._rule(0, 0.0, drained)
        if not drained:
            return None
        elapsed_s, config = self._current.tick(), self._current.config
        tickets = dispatch.tickets(self._store, self._run, self._current.number)
        left = deadlines.expected(self._store, config, missing, tickets, elapsed_s)
        return self._rule(len(left), elapsed_s, drained)

    def _ending_of_initialisation(self, missing: list[str], drained: bool) -> Ending | None:
        if self._intake.received():
            return self._rule(len(missing), 0.0, drained)
        if not drained or self._ask_another():
            return None
        elapsed_s, state = self._current.tick(), self._current.run_state()
        config, current = self._current.config, self._current.state
        if initialisation.awaited(self._store, state, config, current, missing, elapsed_s):
            return None
        reason = initialisation.refusals(self._store, config, current, self._intake.receipts)
        return Ending(Outcome.abandoned, reason)

    def _ask_another(self) -> bool:
        """Whether a further client is asked, or may be asked, for version 0."""
        known, state = self._current.state.makers, self._store.control.runs.get(self._run)
        if state is not None and state.active:
            initialisation.ask_next(self._store, state, self._current.config, self._current.state)
        self._current.refresh()
        return self._current.state.makers != known or self._store.control.clients.is_settling()
