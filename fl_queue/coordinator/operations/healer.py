"""
Recovery loop. Once per second, under a lease, it repairs what dead processes left of each run.

Jobs whose worker is dead get a new attempt; messages held by a dead aggregator return to the results list;
time is counted; models that the data server lost are restored from checkpoints; ``advance`` is called;
updates that come after a run has ended are recorded and removed. Every repair is a compare-and-set, so a
second healer at work does no harm.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fl_queue.common import failpoints, processes
from fl_queue.common.oom_kills import OUT_OF_MEMORY
from fl_queue.coordinator.aggregator import late_updates
from fl_queue.coordinator.aggregator.partial_sum import PartialSumStore
from fl_queue.coordinator.operations import (
    deletion,
    enrolment,
    missed_updates,
    resting_runs,
    stage_answers,
    stalled_clients,
)
from fl_queue.coordinator.rounds import lifecycle
from fl_queue.coordinator.rounds.runs import current_config
from fl_queue.errors import CheckpointError, ConfigError
from fl_queue.models import retention
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import identifiers, job_origins, virtual_clients
from fl_queue.protocol.events import ClientStalled, EntryUnreadable, Healed
from fl_queue.protocol.records import EvaluationState
from fl_queue.store import RoundState, RunState, Store, batches, classify, error_log, keyspace
from fl_queue.store.jobs import dead_jobs, dispatch, rq_cleanup
from fl_queue.store.jobs.dispatch import JobState, JobTicket
from fl_queue.store.jobs.rq_types import TimedOut
from fl_queue.strategies.layouts import state_manifest

log = logging.getLogger(__name__)

LEASE_S = 4.0
NO_EFFECT = "finished without effect"
#: Reasons that the next attempt is likely to end with, too.
_ITS_OWN = (JobState.failed, NO_EFFECT)
#: Attempts after which a job that keeps failing is tried again less and less often.
QUICK_ATTEMPTS = 5
MAX_PAUSE_S = 30.0
SWEPT_S = 30.0
#: A tick that takes longer than this extends the lease, and records heartbeats, in between.
EXTEND_S = 1.0
#: A healer that lacks a needed checkpoint yields for this long, and no more often than that.
YIELD_S = 3.0
YIELD_EVERY_S = 20.0
PRUNED = "superseded and removed before it was evaluated; start another evaluator, or raise model.keep_versions"


class Healer:
    """
    Repairs all runs.

    Args:
        store: Both servers.
        state_dir: This machine's folder; checkpoints are below it.
        immediate: Retry dead jobs now, without any grace or pause: for the commands of an operator.
    """

    def __init__(self, store: Store, state_dir: Path, immediate: bool = False) -> None:
        self.store = store
        self.state_dir = state_dir
        self.immediate = immediate
        self.done: list[str] = []
        self.token = secrets.token_hex(8)
        self.watch = (
            dead_jobs.JobMonitor(store, 0.0, 0.0) if immediate else dead_jobs.JobMonitor(store)
        )
        self._stalled = stalled_clients.StallDetector(store)
        self._missed = missed_updates.MissedUpdates(store)
        self._dead_since: dict[str, float] = {}
        self._resting = resting_runs.RestingRuns(store)
        #: Run -> time of the last look at its evaluations.
        self._evaluations_at: dict[str, float] = {}
        self._swept_at = self._tidied_at = 0.0
        self._may_restore = True
        self._enrolments = enrolment.EnrolmentMonitor(store)
        #: Whether the lease is held, and the time of its last extension.
        self._is_ours = False
        self._held_at = 0.0
        self._lacks_checkpoint = False
        #: Time from which this healer may hold the lease again, after it has yielded.
        self._back_at = -YIELD_EVERY_S

    def tick(self) -> None:
        """
        Repair every run, unless another healer is at work.

        Raises:
            StoreUnavailable: Try again at the next tick.
        """
        self._tidy_here()
        if time.monotonic() < self._back_at or not self._hold():
            return
        for run in self._resting.awake(list(self.store.control.runs.names().values())):
            self._attempt(partial(self.heal, run), f"run={run} ")
            self._extend()
            if not self._is_ours:
                return
        if time.monotonic() - self._swept_at > SWEPT_S:
            self._sweep()
            self._swept_at = time.monotonic()
        self._report_unreadable()
        self._yield_lease()

    def _sweep(self) -> None:
        """Do the occasional chores; an error in one does not keep the others from their turn."""
        self._attempt(lambda: rq_cleanup.sweep(self.store, self._extend))
        self._attempt(lambda: deletion.sweep(self.store, self.state_dir))
        self._attempt(self._restore_users)

    @staticmethod
    def _attempt(work: Callable[[], None], label: str = "") -> None:
        """
        Do one piece of work; log an error in it, so that it does not keep the healer from the rest.

        Raises:
            StoreUnavailable: A server is away: the whole tick ends.
            JobTimeoutException: RQ ends the job in which this runs.
        """
        try:
            work()
        except TimedOut:
            raise
        # Any other error: a run's records are foreign data, and a run may be deleted meanwhile.
        except Exception as exc:
            if classify(exc) is not None:
                raise
            error_log.write(exc, label)

    def _report_unreadable(self) -> None:
        """Add an event for each entry in Redis that cannot be read, once."""
        for entry, why in self.store.control.unreadable.to_report().items():
            run = keyspace.run_of(entry.key)
            if run is not None:
                event = EntryUnreadable(key=entry.key, of=entry.entry, reason=why)
                self.store.control.events.add(run, event)

    def _tidy_here(self) -> None:
        """Clean up this machine's disk, whether it holds the lease or not."""
        if time.monotonic() - self._tidied_at > SWEPT_S:
            deletion.sweep_here(self.store, self.state_dir)
            self._enrolments.look()
            self._tidied_at = time.monotonic()

    def _hold(self) -> bool:
        """Take or extend the lease, and record heartbeats; False when another healer is at work."""
        process = {"process": processes.process_identity(), "pid": os.getpid()}
        self._is_ours = self.store.control.leases.hold(
            keyspace.HEALER, self.token, LEASE_S, process
        )
        if self._is_ours:
            self.store.control.clients.record_heartbeats()
            self._held_at = time.monotonic()
        return self._is_ours

    def _extend(self) -> None:
        """Extend the lease in the middle of a long tick, so that it is not taken for a dead healer's."""
        if self._is_ours and time.monotonic() - self._held_at >= EXTEND_S:
            self._hold()

    def _yield_lease(self) -> None:
        """
        Leave the lease to another machine's healer, if a lost model has no checkpoint on this machine.

        With a single machine no other healer takes it, and this one continues.
        """
        if not self._lacks_checkpoint:
            return
        self._lacks_checkpoint = False
        if time.monotonic() >= self._back_at + YIELD_EVERY_S:
            log.warning("another machine's healer may have the checkpoint: it has %g s", YIELD_S)
            self.leave()
            self._back_at = time.monotonic() + YIELD_S

    def _restore_users(self) -> None:
        """Create the Redis users of enrolled clients again that a server lost when it restarted."""
        if not self._may_restore:
            return
        try:
            made = enrolment.restore_users(self.store)
        except ConfigError as exc:
            self._may_restore = False
            log.warning("Redis users of enrolled clients cannot be restored: %s", exc)
            return
        if made:
            log.warning("Redis users that the server had lost are restored: %s", ", ".join(made))

    def leave(self) -> None:
        """Release the lease, so that another healer takes over at once."""
        self.store.control.leases.release(keyspace.HEALER, self.token)

    def heal(self, run: str) -> None:
        """Repair one run, with or without the lease; ``done`` then has a line for each repair."""
        self.done.clear()
        state = self.store.control.runs.get(run)
        if state is None:
            return
        if not state.active:
            self._clean_up_ended(state)
            return
        if time.monotonic() - self._evaluations_at.get(run, 0.0) >= resting_runs.EVALUATIONS_S:
            self._evaluations_at[run] = time.monotonic()
            self._heal_evaluations(state)
        current = self.store.control.rounds.newest_open(state)
        if current is not None:
            self._heal_round(run, current)
        lifecycle.advance(self.store, run)

    def _heal_round(self, run: str, current: RoundState) -> None:
        """Repair an open round: its time, messages, models and jobs."""
        lifecycle.count_time(self.store, run, current.number)
        self._give_back(run, current)
        failpoints.failpoint("heal.given-back")
        self._restore_models(run, current)
        self._follow_data_server(run, current)
        self._heal_jobs(run, current)
        self._skip_stalled_clients(run, current)
        failpoints.failpoint("heal.healed")

    def _clean_up_ended(self, state: RunState) -> None:
        """Record late updates of a run that is not training, and remove the rest of its rounds."""
        run = state.run_id
        waiting = self._heal_evaluations(state)
        self._stalled.forget(run)
        self._missed.forget(run)
        self.store.data.taken.give_back(run, self.store.control.runs.fence(run))
        late_updates.drain(self.store, state)
        PartialSumStore(self.store, run).drop(state.round)
        self.store.data.admission.forget_turns(run, state.round)
        last = self.store.control.rounds.get(run, state.round)
        self.store.data.admission.forget(run, last.cohort if last else ())
        if not self.store.data.results.count(run):
            self._resting.rest(
                run, resting_runs.EVALUATIONS_S if waiting else resting_runs.LOOK_AT_ALL_S
            )

    def _restore_models(self, run: str, current: RoundState) -> None:
        """Restore the models and the strategy's state that a round's clients fetch."""
        self._restore_model(run, current.base_digest, current.segment, current.download)
        for digest in current.server_state.values():
            self._restore_model(run, digest, current.segment, is_state=True)
        for version in job_origins.versions(current):
            entry = self.store.control.versions.get(run, version)
            download = entry.get("download", "")
            self._restore_model(run, entry.get("digest", ""), current.segment, download)

    def _give_back(self, run: str, current: RoundState) -> None:
        moved = self.store.data.taken.give_back(run, current.fence)
        if moved:
            self._report(run, current, f"{moved} taken updates of a dead aggregator put back")

    def _restore_model(
        self, run: str, digest: str, segment: int, download: str = "", is_state: bool = False
    ) -> bool:
        """Whether a model is on the data server, after restoring it if it was lost."""
        manifest = self.store.control.versions.manifest(run)
        if manifest is None or not digest:
            return False
        config = current_config(self.store, run, segment)
        try:
            models = ModelStore(self.store, run, config.redis.chunk_bytes, self.state_dir)
            layout = state_manifest(manifest) if is_state else manifest
            if models.restore(digest, layout, download, config.model.codec):
                log.warning(
                    "run=%s model %s was not on the data server: restored from its checkpoint",
                    run,
                    digest[:12],
                )
            base = None if is_state else manifest.published
            if base is not None and models.restore_base(base):
                log.warning("run=%s base part was not on the data server: restored", run)
        except CheckpointError as exc:
            # If no machine has the checkpoint, the round ends by its closing rule.
            self._lacks_checkpoint = True
            log.error("run=%s %s", run, exc)
            return False
        return True

    def _follow_data_server(self, run: str, current: RoundState) -> None:
        """Ask all clients again after the data server lost its content; their outboxes have the updates."""
        identity = self.store.data.identity()
        if identity == current.data_server:
            return
        tickets = dispatch.tickets(self.store, run, current.number)
        revoked = self.store.control.enrolments.revoked(tickets)
        asked = {
            who: ticket
            for who, ticket in tickets.items()
            if who != identifiers.AGGREGATOR and who not in revoked
        }
        self._report(run, current, "the data server restarted: clients asked again")
        # It raises if a job was not published for certain; then the next tick asks again.
        self._replace(keyspace.round_jobs(run, current.number), asked)
        self.store.control.rounds.set_data_server(run, current.number, identity)

    def _heal_jobs(self, run: str, current: RoundState) -> None:
        open_jobs = self._unanswered(run, current)
        seen = self.watch.look(open_jobs.values())
        reasons = seen.dead | self._why_again(run, current, seen.finished)
        due = {
            who: ticket
            for who, ticket in open_jobs.items()
            if self._is_due(ticket, reasons.get(ticket.job))
        }
        why = {who: reasons[ticket.job] for who, ticket in due.items()}
        replaced = self._replace(keyspace.round_jobs(run, current.number), due, why)
        # Their events were written with them.
        self._note(run, current, *(dispatch.healed(new, why[who]) for who, new in replaced.items()))

    def _unanswered(self, run: str, current: RoundState) -> dict[str, JobTicket]:
        """Client, group or ``aggregator`` -> its newest job, of those that have not answered."""
        tickets = dispatch.tickets(self.store, run, current.number)
        clients = set(tickets) - {identifiers.AGGREGATOR}
        receipts = stage_answers.of_round(self.store, run, current, clients)
        # The jobs of revoked clients were dropped with them.
        revoked = self.store.control.enrolments.revoked(tickets)
        asked = [
            (who, receipts.get(client), ticket)
            for who, ticket in tickets.items()
            if who not in revoked
            for client in virtual_clients.answerable(who, current.cohort, current.groups)
        ]
        answers = dispatch.have_answered(
            self.store, [(receipt, ticket) for _, receipt, ticket in asked]
        )
        return {
            who: ticket for (who, _, ticket), has in zip(asked, answers, strict=True) if not has
        }

    def _why_again(
        self, run: str, current: RoundState, finished: Sequence[JobTicket]
    ) -> dict[str, str]:
        """Job id -> reason for a new attempt, of jobs that have ended though their round is open."""
        left = dispatch.all_awaited(self.store, finished)
        reasons = {
            # The next attempt finds the update in the outbox, and the decision beside it.
            job: "was waiting for its site, which has decided"
            for job, found in left.items()
            if found is not None and found.decided
        }
        # The aggregator left the round.
        again = {ticket.job for ticket in finished if ticket.who == identifiers.AGGREGATOR}
        others = [
            ticket for ticket in finished if ticket.job not in again and left[ticket.job] is None
        ]
        again |= self._missed.look(run, current, others)
        return reasons | dict.fromkeys(again, NO_EFFECT)

    def _skip_stalled_clients(self, run: str, current: RoundState) -> None:
        """Let other clients send before one that asked for room and sends nothing."""
        for client, held_s in self._stalled.look(run, current).items():
            stalled = ClientStalled(round=current.number, client=client, held_s=round(held_s, 1))
            log.warning("run=%s client=%s held room for %.0f s", run, client, held_s)
            self.store.control.events.add(run, stalled)

    def _heal_evaluations(self, state: RunState) -> bool:
        """Whether versions of a run wait for their evaluation."""
        waiting = dispatch.evaluation_tickets(self.store, state.run_id)
        dead = self.watch.look(waiting.values()).dead
        for version, ticket in waiting.items():
            reason = dead.get(ticket.job)
            if self._is_due(ticket, reason):
                self._heal_evaluation(state, version, ticket, reason or "")
        return bool(waiting)

    def _heal_evaluation(
        self, state: RunState, version: int, ticket: JobTicket, reason: str
    ) -> None:
        run = state.run_id
        entry: dict[str, Any] = self.store.control.versions.all(run).get(version, {})
        if self._restore_model(run, entry.get("digest", ""), state.segment):
            self._replace(keyspace.evaluations(run), {str(version): ticket})
            self.done.append(f"evaluation of version {version}: {reason}")
        elif (state.version or 0) - version >= retention.WAITING_KEPT:
            self.store.control.evaluations.set(
                run, version, {"state": EvaluationState.failed, "reason": PRUNED}
            )
            dispatch.forget(self.store, ticket)

    def _is_due(self, ticket: JobTicket, reason: str | None) -> bool:
        """Whether a dead job is retried now: at once, and after a pause when it keeps failing."""
        if reason is None:
            self._dead_since.pop(ticket.job, None)
            return False
        since = self._dead_since.setdefault(ticket.job, time.monotonic())
        # A job that ran out of memory does so again at once.
        quick = 0 if OUT_OF_MEMORY in reason else QUICK_ATTEMPTS
        slow = max(0, ticket.attempt - quick) if reason.startswith(_ITS_OWN) else 0
        pause_s = min(MAX_PAUSE_S, 2.0 ** min(slow, 10) - 1.0)
        return self.immediate or time.monotonic() - since >= pause_s

    def _replace(
        self, key: str, due: Mapping[str, JobTicket], why: Mapping[str, str] | None = None
    ) -> dict[str, JobTicket]:
        """Publish new attempts; returns field -> new ticket, of those that were published. Args: ``why``: for events."""
        replaced: dict[str, JobTicket] = {}
        for some in batches(due.items()):
            replaced |= dispatch.replace_all(self.store, key, dict(some), why=why or {})
            self._extend()
            for _, ticket in some:
                self._dead_since.pop(ticket.job, None)
        return replaced

    def _note(self, run: str, current: RoundState, *repairs: str) -> None:
        self.done += repairs
        for what in repairs:
            log.warning("run=%s round=%s healed: %s", run, current.number, what)

    def _report(self, run: str, current: RoundState, *repairs: str) -> None:
        self._note(run, current, *repairs)
        events = [Healed(round=current.number, what=what) for what in repairs]
        self.store.control.events.add_many(run, events)
