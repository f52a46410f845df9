"""The round that an aggregator works on: one object that all its parts share, refreshed from Redis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.rounds import statement_signing
from fl_queue.coordinator.rounds.runs import recorded_config
from fl_queue.errors import OwnershipLost
from fl_queue.protocol.records import Purpose, digest_of
from fl_queue.store import Incarnation, RoundState, RunState, Store


class OpenRound:
    """
    An open round with its config. ``refresh`` and ``tick`` replace ``state``; nothing else does.

    Args:
        store: Both servers.
        incarnation: The aggregator's claim on the round.
        state: The round as it was claimed.
        config: The one in force for it.
        config_digest: Digest of the config as it is recorded.
        recorded: The config as it is recorded.
    """

    def __init__(
        self,
        store: Store,
        incarnation: Incarnation,
        state: RoundState,
        config: RunConfig,
        config_digest: str = "",
        recorded: Mapping[str, Any] | None = None,
    ) -> None:
        self.store, self.incarnation = store, incarnation
        self.run, self.number = incarnation.run, incarnation.round
        self.state, self.config, self.config_digest = state, config, config_digest
        self.recorded = recorded or {}
        self.cohort = frozenset(state.cohort)

    @classmethod
    def load(cls, store: Store, incarnation: Incarnation) -> OpenRound:
        """
        Read a round that was claimed.

        Raises:
            OwnershipLost: It is gone.
        """
        run, number = incarnation.run, incarnation.round
        state = store.control.rounds.get(run, number)
        if state is None:
            raise OwnershipLost(f"run {run}: round {number} is gone")
        recorded = recorded_config(store, run, state.segment)
        config = RunConfig.from_dict(recorded)
        return cls(store, incarnation, state, config, digest_of(recorded), recorded)

    def check_signature(self) -> None:
        """
        Check that the operator has signed the round, if its run is signed.

        Raises:
            ModelMismatch: It is not signed, or something else is.
        """
        statement_signing.check_round(self.store, self.run, self.state, self.config_digest)

    def refresh(self) -> None:
        """
        Read the clients that have joined since: only an asynchronous round and the making of version 0 grow.

        Raises:
            ModelMismatch: The new cohort is not signed by the operator.
        """
        if not (self.state.is_async or self.state.purpose == Purpose.initialise):
            return
        state = self.store.control.rounds.get(self.run, self.number)
        if state is None or not state.open:
            return
        if state.cohort != self.state.cohort:
            statement_signing.check_round(self.store, self.run, state, self.config_digest)
            self.cohort = frozenset(state.cohort)
        self.state = state

    def reread(self) -> None:
        """
        Read the round anew.

        Raises:
            OwnershipLost: It has ended.
        """
        state = self.store.control.rounds.get(self.run, self.number)
        if state is None or not state.open:
            raise self._ended()
        self.state = state

    def check_open(self) -> None:
        """
        Check that the round is still open, and claimed by this aggregator.

        Raises:
            OwnershipLost: It has ended, or a failover lost it or the claim.
        """
        if not self.store.control.rounds.is_claimed(self.run, self.number, self.incarnation.token):
            raise self._ended()

    def tick(self) -> float:
        """
        Count the time since the last tick towards the deadline.

        Returns:
            Counted seconds since the round was opened.

        Raises:
            OwnershipLost: The round has ended.
        """
        elapsed_s = self.store.control.rounds.count_time(self.run, self.number)
        if elapsed_s is None:
            raise self._ended()
        # Both change when the data server has lost the updates.
        deadline_s, quorum_at_s = self.store.control.rounds.limits(self.run, self.number)
        self.state = replace(self.state, deadline_s=deadline_s, quorum_at_s=quorum_at_s)
        return elapsed_s

    def record_quorum(self, elapsed_s: float) -> None:
        """Record that the quorum is reached, the first time."""
        if self.state.quorum_at_s is None:
            self.store.control.rounds.set_quorum_at(self.run, self.number, elapsed_s)
            self.state = replace(self.state, quorum_at_s=elapsed_s)

    def run_state(self) -> RunState:
        """
        The state of the round's run.

        Raises:
            OwnershipLost: The run is gone.
        """
        state = self.store.control.runs.get(self.run)
        if state is None:
            raise OwnershipLost(f"run {self.run} is gone")
        return state

    def _ended(self) -> OwnershipLost:
        return OwnershipLost(f"run {self.run}: round {self.number} was ended by another process")
