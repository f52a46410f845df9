"""
An aggregator's job on one open round: claim it, collect its updates, end it.

One job is one incarnation: it holds a fence on the control server and a taken list on the data server, and
every write of it is refused once another one has replaced it. Merged messages are removed only when the
round has ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from fl_queue.config.consistency import too_few_updates
from fl_queue.coordinator.aggregator import scheduling
from fl_queue.coordinator.aggregator.closing import ClosingDecision
from fl_queue.coordinator.aggregator.collection import UpdateCollection
from fl_queue.coordinator.aggregator.intake import UpdateIntake
from fl_queue.coordinator.aggregator.open_round import OpenRound
from fl_queue.coordinator.aggregator.ownership import OwnershipLease, claim_round
from fl_queue.coordinator.aggregator.round_commit import RoundCommit
from fl_queue.coordinator.aggregator.taken_list import TakenList
from fl_queue.coordinator.aggregator.version_builder import VersionBuilder, failure_reason
from fl_queue.coordinator.rounds import lifecycle
from fl_queue.coordinator.rounds.ending import Ending
from fl_queue.errors import (
    CheckpointError,
    ConfigError,
    MergeFailed,
    OwnershipLost,
    StoreUnavailable,
)
from fl_queue.protocol import identifiers
from fl_queue.protocol.events import CheckpointFailed
from fl_queue.protocol.records import Outcome, Purpose, Receipt
from fl_queue.store import REDIS_ERRORS, Incarnation, Store, keyspace
from fl_queue.store.jobs import dispatch
from fl_queue.store.jobs.rq_types import TimedOut
from fl_queue.strategies import load_strategy
from fl_queue.strategies.base import Strategy

log = logging.getLogger(__name__)

#: After this many equal errors in a row, a round is ended once its deadline has passed.
SAME_FAILURES = 3


class RoundAggregator:
    """
    The aggregator job of one round.

    Args:
        store: Both servers.
        run: Run id.
        number: Round.
        job: Id of the RQ job this is; only the round's newest aggregator job may claim it.
        state_dir: This machine's folder; checkpoints are below it.
        strategy_allow: Own strategies it may load.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        number: int,
        job: str,
        state_dir: Path,
        strategy_allow: Sequence[str] = (),
    ) -> None:
        self._store, self._run, self._number, self._job = store, run, number, job
        self._state_dir, self._strategy_allow = state_dir, strategy_allow

    def work(self) -> str:
        """
        Collect until the round ends, then advance the run.

        Returns:
            A line for the log.

        Raises:
            OwnershipLost: Another incarnation has taken over; nothing was lost.
            CheckpointError: The new version cannot be written; the round stays open.
            MergeFailed: The round cannot be ended for another reason; it stays open until its deadline.
        """
        incarnation = claim_round(self._store, self._run, self._number, self._job)
        if incarnation is None:
            lifecycle.advance(self._store, self._run)
            return "nothing to do"
        with OwnershipLease(self._store, incarnation) as lease:
            try:
                return self._aggregate(OpenRound.load(self._store, incarnation), lease)
            finally:
                self._give_up(incarnation)

    def _aggregate(self, current: OpenRound, lease: OwnershipLease) -> str:
        commit = RoundCommit(current, lease, self._state_dir)
        taken = TakenList(self._store, current.incarnation)
        receipts: Mapping[str, Receipt] = {}
        try:
            current.check_signature()
            began = time.monotonic()
            intake = UpdateIntake(current, self._state_dir)
            taken = intake.taken
            intake.resume()
            # The turn begins here: fetching the base model is a part of it.
            turn = scheduling.Turn(self._store, self._run, time.monotonic() - began)
            receipts = intake.receipts
            builder = VersionBuilder(
                self._store, self._run, current.state, current.config, self._state_dir
            )
            strategy, refusal = None, ""
            if intake.merger is not None:
                strategy, refusal = self._load_strategy(current)
                builder.prepare(intake.merger.manifest)
            closing = ClosingDecision(current, intake, refusal)
            ending = UpdateCollection(current, intake, closing, lease, turn).collect()
            if ending is None:
                return self._yield_worker(intake)
            return commit.close(ending, intake, builder, strategy)
        except (OwnershipLost, TimedOut, *REDIS_ERRORS):
            raise
        except CheckpointError as exc:
            self._record_checkpoint_error(exc)
            raise
        # An own strategy is foreign code and may raise any exception, each time it is tried. RQ's timeout
        # and lost servers are raised above, before it.
        except Exception as exc:
            log.exception("run=%s round=%s cannot be ended", self._run, self._number)
            return self._fail(exc, current, commit, receipts, taken)

    def _load_strategy(self, current: OpenRound) -> tuple[Strategy | None, str]:
        """The round's strategy, and why the round cannot be merged with it (empty: it can)."""
        config = current.config
        name = config.aggregation.strategy
        try:
            strategy = load_strategy(name, config.strategy, self._strategy_allow)
        except ConfigError as exc:
            # Every further attempt fails in the same way: the round ends with this reason.
            return None, str(exc)
        return strategy, too_few_updates(name, strategy, current.state.quorum)

    def _yield_worker(self, intake: UpdateIntake) -> str:
        """Go to the end of the queue, so that another round has this worker; merged updates are handed over."""
        if intake.received():
            intake.checkpoint()
        intake.receipt_log.rejections.flush(force=True)
        self._store.data.taken.disown(self._run, intake.incarnation.fence)
        ticket = dispatch.tickets(self._store, self._run, self._number).get(identifiers.AGGREGATOR)
        if ticket is not None:
            jobs = keyspace.round_jobs(self._run, self._number)
            dispatch.replace(self._store, jobs, identifiers.AGGREGATOR, ticket, counts=False)
        return "made way for another round"

    def _record_checkpoint_error(self, exc: CheckpointError) -> None:
        event = CheckpointFailed(round=self._number, reason=str(exc))
        self._store.control.events.add(self._run, event)
        self._store.control.rounds.note_failure(self._run, self._number, str(exc))

    def _fail(
        self,
        exc: Exception,
        current: OpenRound,
        commit: RoundCommit,
        receipts: Mapping[str, Receipt],
        taken: TakenList,
    ) -> str:
        """
        Record an error that keeps the round from ending; after its deadline the round ends with it.

        Raises:
            MergeFailed: It is to be tried again.
        """
        reason = failure_reason(exc, current.config.aggregation.strategy)
        count = self._store.control.rounds.note_failure(self._run, self._number, reason)
        elapsed_s = current.tick()
        if count < SAME_FAILURES or elapsed_s < current.state.deadline_s:
            raise MergeFailed(reason) from None  # RQ writes the error, and its causes, to Redis.
        outcome = (
            Outcome.evaluated if current.state.purpose == Purpose.evaluate else Outcome.abandoned
        )
        ending = Ending(outcome, f"it could not be ended, {count} times: {reason}")
        return commit.end_failed(ending, elapsed_s, receipts, taken)

    def _give_up(self, incarnation: Incarnation) -> None:
        """Give up ownership; messages that are still on the taken list return to the results list."""
        try:
            self._store.data.taken.disown(self._run, incarnation.fence)
        except StoreUnavailable as exc:
            # The lease ends by itself, and the healer moves the messages back.
            log.warning("run=%s round=%s cannot give back: %s", self._run, self._number, exc)
