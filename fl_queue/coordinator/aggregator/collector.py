"""
An aggregator's work on one open round: take what arrives, close the round, commit.

One ``RoundAggregator`` is one incarnation: it holds a fence on the control server and a taken list on the
data server, and everything it does is refused once another one has replaced it. What it has merged
is not removed before the round has ended.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fl_queue.common import failpoints
from fl_queue.config.run_config import RunConfig, too_few_for
from fl_queue.coordinator.aggregator import answered_clients, round_end, scheduling
from fl_queue.coordinator.aggregator.drain import QueueDrain
from fl_queue.coordinator.aggregator.intake import UpdateIntake
from fl_queue.coordinator.aggregator.ownership import OwnershipLease, take_over
from fl_queue.coordinator.aggregator.version_builder import BuiltVersion, VersionBuilder, why_not
from fl_queue.coordinator.rounds import (
    deadlines,
    initialisation,
    lifecycle,
    opening,
    statement_signing,
)
from fl_queue.coordinator.rounds.lifecycle import Ending, closing_rule
from fl_queue.coordinator.rounds.runs import recorded_config
from fl_queue.errors import (
    CheckpointError,
    ConfigError,
    MergeFailed,
    OwnershipLost,
    StoreUnavailable,
)
from fl_queue.models import retention, update_archive
from fl_queue.protocol import identifiers, job_origins
from fl_queue.protocol.records import Receipt, RoundRecord, digest_of
from fl_queue.store import REDIS_ERRORS, Doorbell, Store, keyspace
from fl_queue.store.jobs import dispatch
from fl_queue.store.jobs.rq_types import TimedOut
from fl_queue.strategies import load_strategy
from fl_queue.strategies.base import Strategy

log = logging.getLogger(__name__)

#: Longest wait for an element; the closing rule and our ownership are looked at in between.
WAIT_S = 1.0
#: Elements taken at one go; of what is refused no more lies on the taken list.
TAKEN_AT_ONCE = 64
#: The same error so often is taken for the round's own: after its deadline it ends with it.
SAME_FAILURES = 3


class RoundAggregator:
    """
    One incarnation on one round.

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
        self.store, self.run, self.number, self.job = store, run, number, job
        self.state_dir = state_dir
        self.token = secrets.token_hex(8)
        self.strategy_allow = strategy_allow
        self.strategy: Strategy | None = None
        #: Why this worker cannot merge the round at all.
        self.refused = ""
        self._is_loaded = False

    def work(self) -> str:
        """
        Collect until the round ends, then advance the run.

        Returns:
            What happened, for the log.

        Raises:
            OwnershipLost: Another incarnation has taken over; nothing was lost.
            CheckpointError: The new version cannot be written; the round stays open.
            MergeFailed: Something else is wrong; the round stays open until its deadline.
        """
        self.fence = take_over(self.store, self.run, self.number, self.job, self.token)
        if not self.fence:
            lifecycle.advance(self.store, self.run)
            return "nothing to do"
        with OwnershipLease(
            self.store, self.run, self.number, self.fence, self.token
        ) as self.lease:
            try:
                self._load()
                ending = self._collect()
                if ending is None:
                    return self._make_way()
                return self._close(ending)
            except (OwnershipLost, TimedOut, *REDIS_ERRORS):
                raise
            except CheckpointError as exc:
                self._tell_checkpoint(exc)
                raise
            # An own strategy is its owner's code and may raise anything, each time it is tried.
            except Exception as exc:
                log.exception("run=%s round=%s cannot be ended", self.run, self.number)
                return self._fail(exc)
            finally:
                self._leave()

    def _load(self) -> None:
        current = self.store.control.rounds.get(self.run, self.number)
        if current is None:
            raise OwnershipLost(f"run {self.run}: round {self.number} is gone")
        self.round = current
        recorded = recorded_config(self.store, self.run, current.segment)
        self.config, self.config_digest = RunConfig.from_dict(recorded), digest_of(recorded)
        statement_signing.check_round(self.store, self.run, current, self.config_digest)
        self.quorum_at_s = current.quorum_at_s
        self.drain = QueueDrain()
        self.intake = UpdateIntake(
            self.store, self.run, current, self.config, self.fence, self.token, self.state_dir
        )
        began = time.monotonic()
        self.intake.resume()
        self.turn = scheduling.Turn(self.store, self.run, time.monotonic() - began)
        self._is_loaded = True
        self.maker = VersionBuilder(self.store, self.run, current, self.config, self.state_dir)
        if self.intake.merge is not None:
            self._load_strategy()
            self.maker.prepare(self.intake.merge.manifest)

    def _load_strategy(self) -> None:
        name = self.config.aggregation["strategy"]
        try:
            self.strategy = load_strategy(name, self.config.strategy, self.strategy_allow)
        except ConfigError as exc:
            # Every further try would find the same: the round says so.
            self.refused = str(exc)
        else:
            self.refused = too_few_for(name, self.strategy, self.round.quorum)

    # Collecting

    def _collect(self) -> Ending | None:
        """Take elements until the closing rule holds; None to make way for a waiting round."""
        with self.store.data.results.doorbell() as bell:
            while True:
                self.lease.check()
                is_over = self.drain.is_over(self.intake.received() >= self.round.quorum)
                if (ending := self._ending(drained=is_over)) is not None:
                    return ending
                if is_over:
                    self.drain.stop()
                # A buffer takes no more than it holds; what is left is for the next round.
                most = 1 if self.round.is_async else TAKEN_AT_ONCE
                if elements := self.store.data.taken.take(self.run, self.fence, self.token, most):
                    self._look_at(elements)
                    if self._can_make_way() and self.turn.is_up():
                        return None
                    continue
                if (ending := self._ending(drained=True)) is not None:
                    return ending
                self.drain.stop()
                self.intake.books.rejected.flush()
                # At once, too: what came for others while nobody listened for it does not ring again.
                if self.turn.is_over(self._holds()) or not self._wait(bell):
                    return None
                self._follow()

    def _can_make_way(self) -> bool:
        """Whether what has been merged comes along; else all is taken first, and again the next time."""
        merge = self.intake.merge
        return not self.drain.has_begun and (merge is None or merge.is_resumable)

    def _holds(self) -> bool:
        return self.intake.received() > 0

    def _look_at(self, elements: Sequence[bytes]) -> None:
        wasted_s = 0.0
        for element in elements:
            failpoints.failpoint("update.taken")
            self.lease.pulse.beat()
            self._follow()
            began = time.monotonic()
            if not self.intake.look_at(element):
                wasted_s += time.monotonic() - began
            failpoints.failpoint("update.received")
            if self.round.is_async and self.intake.received() < self.round.quorum:
                self._top_up()
            if self.intake.is_full():
                self.intake.checkpoint()
        self.intake.settle()
        self.drain.looked_at(len(elements), wasted_s)
        if self.drain.is_to_begin() and self._ending(drained=True) is not None:
            self.drain.begin(self.store.data.results.count(self.run))

    def _follow(self) -> None:
        """See who has joined a round since it was opened: an asynchronous one, or the makers of version 0."""
        grows = self.round.is_async or self.round.purpose == "initialise"
        current = self.store.control.rounds.get(self.run, self.number) if grows else None
        if current is not None and current.open:
            if current.cohort != self.round.cohort:
                statement_signing.check_round(self.store, self.run, current, self.config_digest)
            self.round = self.intake.round = current
            self.intake.books.follow(current.cohort)

    def _top_up(self) -> None:
        """Have an idle client begin where another one has answered, and not wait for the version."""
        state = self.store.control.runs.get(self.run)
        # Where all train at a time only one that has just come is idle, and the healer sees to that.
        if state is not None and state.active and self.config.round["concurrency"] != 1.0:
            opening.top_up(self.store, state, self.config, self.round)
            self._follow()

    def _wait(self, bell: Doorbell) -> bool:
        """Wait for an element of ours; False when another round needs this worker more."""
        until = time.monotonic() + WAIT_S
        while (left_s := until - time.monotonic()) > 0:
            run = bell.wait(left_s)
            if run == self.run:
                return True
            if run is not None and self.turn.is_over(self._holds(), run):
                return False
        return True

    def _ending(self, drained: bool) -> Ending | None:
        if self.refused:
            return Ending("abandoned", self.refused)
        intake = self.intake
        received = intake.received()
        silent = answered_clients.silent(self.store, self.run, self.round, intake.receipts, drained)
        if self.round.purpose != "train":
            return self._ending_without_training(received, silent, drained)
        pending = len(silent)
        if self.round.is_async and received >= self.round.quorum:
            return closing_rule(self.round, received, pending, 0.0, None, drained)
        if not drained and (pending or received < self.round.quorum):
            return None  # Look at all that has arrived before asking the clock.
        if not pending and received >= self.round.quorum:
            # Whatever the clock says: asking it is a write to disk.
            return closing_rule(self.round, received, 0, 0.0, None, drained)
        elapsed_s = self._elapsed()
        if received >= self.round.quorum and self.quorum_at_s is None:
            self.quorum_at_s = elapsed_s
            self.store.control.rounds.set_quorum_at(self.run, self.number, elapsed_s)
        return closing_rule(self.round, received, pending, elapsed_s, self.quorum_at_s, drained)

    def _ending_without_training(
        self, received: int, silent: list[str], drained: bool
    ) -> Ending | None:
        """The same of the making of version 0, and of the closing evaluation."""
        is_first = self.round.purpose == "initialise"
        if not silent and (received or not is_first):
            return closing_rule(self.round, received, 0, 0.0, None, drained)
        if is_first and received:
            return closing_rule(self.round, received, len(silent), 0.0, None, drained)
        if not drained:
            return None
        if is_first and self._ask_another():
            return None
        elapsed_s = self._elapsed()
        state = self.store.control.runs.get(self.run)
        if state is None:
            raise OwnershipLost(f"run {self.run} is gone")
        if is_first:
            left = initialisation.awaited(
                self.store, state, self.config, self.round, silent, elapsed_s
            )
            if not left:
                why = initialisation.refusals(
                    self.store, self.config, self.round, self.intake.receipts
                )
                return Ending("abandoned", why)
            return None
        tickets = dispatch.tickets(self.store, self.run, self.number)
        left = deadlines.expected(self.store, self.config, silent, tickets, elapsed_s)
        return closing_rule(self.round, received, len(left), elapsed_s, None, drained)

    def _ask_another(self) -> bool:
        """Whether somebody else is, or may be, asked for version 0."""
        known, state = self.round.makers, self.store.control.runs.get(self.run)
        if state is not None and state.active:
            initialisation.ask_next(self.store, state, self.config, self.round)
        self._follow()
        return self.round.makers != known or self.store.control.clients.is_settling()

    def _elapsed(self) -> float:
        elapsed_s = self.store.control.rounds.count_time(self.run, self.number)
        if elapsed_s is None:
            raise OwnershipLost(f"run {self.run}: round {self.number} was ended by somebody else")
        # Both are others once the data server has lost the updates that were in.
        deadline_s, self.quorum_at_s = self.store.control.rounds.limits(self.run, self.number)
        if deadline_s != self.round.deadline_s:
            self.round = self.intake.round = replace(self.round, deadline_s=deadline_s)
        return elapsed_s

    # Closing

    def _make_way(self) -> str:
        """Go to the end of the queue, so that another round gets a turn; what was merged comes along."""
        if self.intake.received():
            self.intake.checkpoint()
        self.intake.books.rejected.flush(anyway=True)
        self.store.data.taken.disown(self.run, self.fence)
        ticket = dispatch.tickets(self.store, self.run, self.number).get(identifiers.AGGREGATOR)
        if ticket is not None:
            jobs = keyspace.round_jobs(self.run, self.number)
            dispatch.replace(self.store, jobs, identifiers.AGGREGATOR, ticket, counts=False)
        return "made way for another round"

    def _close(self, ending: Ending) -> str:
        self.intake.books.rejected.close()
        failpoints.failpoint("round.decided")
        self._follow()
        if self.round.is_async and ending.outcome == "committed":
            most = self.config.round["max_staleness"]
            self.intake.receipts.update(
                job_origins.given_up(self.round, self.intake.receipts, most)
            )
        if ending.outcome == "abandoned" and self.round.purpose == "train":
            ending = lifecycle.with_cause(ending, self.intake.receipts)
        elapsed_s, progress = self._elapsed(), self.intake.progress
        record = round_end.record_of(self.round, ending, elapsed_s, self.config, progress)
        if ending.outcome in ("committed", "initialised"):
            answer = self._commit(ending, record)
        else:
            answer = self._end(ending, record, round_end.final(ending, self.intake.receipts))
        return self._after(ending, record, answer)

    def _after(self, ending: Ending, record: RoundRecord, answer: str) -> str:
        """What comes after the script that ended the round. Args: ``answer``: what it said."""
        if answer != "ok":
            raise OwnershipLost(
                f"run {self.run}: round {self.number} was not ended by us: {answer}"
            )
        log.info("run=%s round=%s %s: %s", self.run, self.number, ending.outcome, ending.reason)
        failpoints.failpoint("round.committed")
        for event in round_end.events(record, self.config):
            self.store.control.events.add(self.run, event)
        # The next round is opened first: its clients train while this one is cleaned up.
        lifecycle.advance(self.store, self.run)
        failpoints.failpoint("round.advanced")
        self._clean_up(record)
        scheduling.end(self.store, self.run)
        return f"{ending.outcome}: {ending.reason}"

    def _end(self, ending: Ending, record: RoundRecord, receipts: Mapping[str, Receipt]) -> str:
        """End the round without a new version; what the script said."""
        state = self.store.control.runs.get(self.run)
        if state is None:
            raise OwnershipLost(f"run {self.run} is gone")
        return lifecycle.end(
            self.store,
            state,
            self.round,
            ending,
            record,
            receipts,
            self.config,
            self.fence,
            self.token,
        )

    def _tell_checkpoint(self, exc: CheckpointError) -> None:
        event = {"event": "checkpoint_failed", "round": self.number, "reason": str(exc)}
        self.store.control.events.add(self.run, event)
        self.store.control.rounds.note_failure(self.run, self.number, str(exc))

    def _fail(self, exc: Exception) -> str:
        """
        Something is wrong with what this round is made of: end it after its deadline, when it stays so.

        Raises:
            MergeFailed: It is to be tried again.
        """
        reason = why_not(exc, self.config.aggregation["strategy"])
        count = self.store.control.rounds.note_failure(self.run, self.number, reason)
        elapsed_s = self._elapsed()
        if count < SAME_FAILURES or elapsed_s < self.round.deadline_s:
            raise MergeFailed(reason) from None  # RQ writes the error, and all before it, to Redis.
        outcome = "evaluated" if self.round.purpose == "evaluate" else "abandoned"
        ending = Ending(outcome, f"it could not be ended, {count} times: {reason}")
        receipts = self.intake.receipts if self._is_loaded else {}
        record = lifecycle.base_record(self.round, ending, elapsed_s, self.config)
        record = lifecycle.with_updates(record, receipts)
        return self._after(ending, record, self._end(ending, record, receipts))

    def _commit(self, ending: Ending, record: RoundRecord) -> str:
        first = ending.outcome == "initialised"
        made = self._make(record)
        signature = statement_signing.version(
            self.store, self.run, self.round, made.entry, made.manifest, self.config_digest
        )
        failpoints.failpoint("checkpoint.written")
        self.lease.check()
        whole = replace(
            record,
            version=made.version,
            digest=made.digest,
            server_state=made.server_state,
            left_out=self.intake.left_out,
            next_exponent=self.intake.next_exponent,
        )
        return self.store.control.rounds.end(
            self.run,
            self.number,
            fence=self.fence,
            token=self.token,
            outcome="initialised" if first else "committed",
            reason=ending.reason,
            record=None if first else whole,
            receipts=round_end.final(ending, self.intake.receipts),
            max_abandoned=self.config.round["max_abandoned"],
            version=made.version,
            digest=made.digest,
            download=made.download,
            manifest=made.manifest if first else None,
            server_state=made.server_state,
            keeping=round_end.keeping(
                self.round, record, self.intake.manifest, self.strategy, self.config
            ),
            incarnation=self.token,
            signature=signature,
            begins_anew=self.intake.merge is not None and self.intake.merge.begins_anew,
        )

    def _make(self, record: RoundRecord) -> BuiltVersion:
        if self.intake.initial is not None:
            return self.maker.first(*self.intake.initial)
        assert self.intake.merge is not None
        return self.maker.next(self.intake.merge, self.strategy, self.lease.pulse.beat, record)

    def _clean_up(self, record: RoundRecord) -> None:
        """The round has ended: what was taken for it goes, and what newer rounds superseded."""
        self.intake.clean_up()
        failpoints.failpoint("round.discarded")
        update_archive.keep_only(self.state_dir, self.run, self.number, record.accepted)
        lifecycle.clean_up(self.store, self.run, self.number)
        retention.prune_versions(self.maker.models, self.config)

    def _leave(self) -> None:
        """Give up ownership; anything still on our taken list goes back to the results list."""
        try:
            self.store.data.taken.disown(self.run, self.fence)
        except StoreUnavailable as exc:
            # The lease runs out by itself and the healer moves the elements back.
            log.warning("run=%s round=%s cannot give back: %s", self.run, self.number, exc)
