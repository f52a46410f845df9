"""
The healer: the only repairer. Once a second, one at a time by a lease, it looks for what died.

Jobs whose worker is dead get a new attempt; elements held by a dead aggregator go back to the
results list; time is counted; models the data server lost come back from checkpoints; ``advance``
is called; what comes after a run has ended is recorded and removed. Everything it does is a
compare-and-set, so a second one at work does no harm.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
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
    rq_cleanup,
    stalled_clients,
)
from fl_queue.coordinator.rounds import lifecycle
from fl_queue.coordinator.rounds.runs import current_config
from fl_queue.errors import CheckpointError, ConfigError
from fl_queue.models import retention
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import identifiers, job_origins, virtual_clients
from fl_queue.store import RoundState, RunState, Store, batches, classify, complaint, keyspace
from fl_queue.store.jobs import dead_jobs, dispatch
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.strategies.base import state_manifest

log = logging.getLogger(__name__)

LEASE_S = 4.0
NO_EFFECT = "finished without effect"
#: Reasons that the next attempt is likely to end with, too.
_ITS_OWN = ("failed", NO_EFFECT)
#: Attempts after which a job that keeps failing is tried again less and less often.
QUICK_ATTEMPTS = 5
LONGEST_PAUSE_S = 30.0
SWEPT_S = 30.0
#: A look that takes longer than this extends the lease, and notes who is there, on its way.
GO_ON_S = 1.0
#: A healer without a checkpoint that is needed gives way for so long, and no more often than that.
GIVE_WAY_S = 3.0
GIVE_WAY_EVERY_S = 20.0
PRUNED = "superseded and removed before the evaluator came to it; start another evaluator, or raise model.keep_versions"


class Healer:
    """
    Repairs all runs.

    Args:
        state_dir: Where this machine's checkpoints are.
        hurry: An operator asks: what looks dead is tried again now, without any grace or pause.
    """

    def __init__(self, store: Store, state_dir: Path, hurry: bool = False) -> None:
        self.store = store
        self.state_dir = state_dir
        self.hurry = hurry
        self.done: list[str] = []
        self.token = secrets.token_hex(8)
        self.watch = dead_jobs.JobMonitor(store, 0.0, 0.0) if hurry else dead_jobs.JobMonitor(store)
        self._stalled = stalled_clients.StallDetector(store)
        self._missed = missed_updates.MissedUpdates(store)
        self._dead_since: dict[str, float] = {}
        self._resting = resting_runs.RestingRuns(store)
        #: Run -> when its evaluations were looked at.
        self._evaluations_at: dict[str, float] = {}
        self._swept_at = self._tidied_at = 0.0
        self._may_restore = True
        self._enrolments = enrolment.EnrolmentMonitor(store)
        #: Whether the lease is held, and when that was written last.
        self._is_ours = False
        self._held_at = 0.0
        self._lacks_checkpoint = False
        #: When this healer may hold the lease again, after it gave way to another.
        self._back_at = -GIVE_WAY_EVERY_S

    def tick(self) -> None:
        """
        One look at every run, unless another healer is at work.

        Raises:
            StoreUnavailable: Try again at the next tick.
        """
        self._tidy_here()
        if time.monotonic() < self._back_at or not self._hold():
            return
        for run in self._resting.awake(list(self.store.control.runs.names().values())):
            try:
                self.heal(run)
            except Exception as exc:
                if classify(exc) is not None:
                    raise
                # One run in trouble (deleted under our hands, say) must not keep us from the others.
                complaint.say(exc, f"run={run} ")
            self._go_on()
            if not self._is_ours:
                return
        if time.monotonic() - self._swept_at > SWEPT_S:
            self._sweep()
            self._swept_at = time.monotonic()
        self._report_unreadable()
        self._give_way()

    def _sweep(self) -> None:
        """What is done now and then, each whatever became of the others."""
        chores: list[Callable[[], None]] = [
            lambda: rq_cleanup.sweep(self.store, self._go_on),
            lambda: deletion.sweep(self.store, self.state_dir),
            self._restore_users,
        ]
        for chore in chores:
            try:
                chore()
            except Exception as exc:
                if classify(exc) is not None:
                    raise
                complaint.say(exc)

    def _report_unreadable(self) -> None:
        """Somebody has written to Redis what cannot be read: the run's events have it, once."""
        for entry, why in self.store.control.unreadable.to_report().items():
            run = keyspace.run_of(entry.key)
            if run is not None:
                event = {"event": "entry_unreadable", "key": entry.key, "of": entry.entry}
                self.store.control.events.add(run, event | {"reason": why})

    def _tidy_here(self) -> None:
        """Each machine's own disk, whoever heals."""
        if time.monotonic() - self._tidied_at > SWEPT_S:
            deletion.sweep_here(self.store, self.state_dir)
            self._enrolments.look()
            self._tidied_at = time.monotonic()

    def _hold(self) -> bool:
        """Take or extend the lease, and note who is there; False when another healer is at work."""
        process = {"process": processes.process_identity(), "pid": os.getpid()}
        self._is_ours = self.store.control.leases.hold(
            keyspace.HEALER, self.token, LEASE_S, process
        )
        if self._is_ours:
            self.store.control.clients.record_heartbeats()
            self._held_at = time.monotonic()
        return self._is_ours

    def _go_on(self) -> None:
        """In the middle of a long look: the lease does not run out, and work is no silence of ours."""
        if self._is_ours and time.monotonic() - self._held_at >= GO_ON_S:
            self._hold()

    def _give_way(self) -> None:
        """
        Let the healer of another machine look, if a model is lost that this one has no checkpoint of.

        With a single machine nobody comes, and this one goes on.
        """
        if not self._lacks_checkpoint:
            return
        self._lacks_checkpoint = False
        if time.monotonic() >= self._back_at + GIVE_WAY_EVERY_S:
            log.warning("another machine's healer may have the checkpoint: it has %g s", GIVE_WAY_S)
            self.leave()
            self._back_at = time.monotonic() + GIVE_WAY_S

    def _restore_users(self) -> None:
        """A server that has restarted may have forgotten the users of enrolled clients."""
        if not self._may_restore:
            return
        try:
            made = enrolment.restore_users(self.store)
        except ConfigError as exc:
            self._may_restore = False
            log.warning("Redis users of enrolled clients are not looked after: %s", exc)
            return
        if made:
            log.warning("Redis users that the server had lost are made again: %s", ", ".join(made))

    def leave(self) -> None:
        """Let another healer take over at once."""
        self.store.control.leases.release(keyspace.HEALER, self.token)

    def heal(self, run: str) -> None:
        """Repair one run, whoever holds the lease; ``done`` then has a line for each repair."""
        self.done.clear()
        state = self.store.control.runs.get(run)
        if state is None:
            return
        if not state.active:
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
            return
        if time.monotonic() - self._evaluations_at.get(run, 0.0) >= resting_runs.EVALUATIONS_S:
            self._evaluations_at[run] = time.monotonic()
            self._heal_evaluations(state)
        current = self.store.control.rounds.newest_open(state)
        if current is not None:
            lifecycle.count_time(self.store, run, current.number)
            self._give_back(run, current)
            failpoints.failpoint("heal.given-back")
            self._restore_model(run, current.base_digest, current.segment, current.download)
            for digest in current.server_state.values():
                self._restore_model(run, digest, current.segment, is_state=True)
            for version in job_origins.versions(current):
                entry = self.store.control.versions.get(run, version)
                download = entry.get("download", "")
                self._restore_model(run, entry.get("digest", ""), current.segment, download)
            self._follow_data_server(run, current)
            self._heal_jobs(run, current)
            self._pass_over(run, current)
            failpoints.failpoint("heal.healed")
        lifecycle.advance(self.store, run)

    def _give_back(self, run: str, current: RoundState) -> None:
        moved = self.store.data.taken.give_back(run, current.fence)
        if moved:
            self._report(run, current, f"{moved} taken updates of a dead aggregator put back")

    def _restore_model(
        self, run: str, digest: str, segment: int, download: str = "", is_state: bool = False
    ) -> bool:
        """Whether a model is on the data server, perhaps from now on."""
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
        except CheckpointError as exc:
            # The round ends by its rule if no machine has it.
            self._lacks_checkpoint = True
            log.error("run=%s %s", run, exc)
            return False
        return True

    def _follow_data_server(self, run: str, current: RoundState) -> None:
        """After the data server lost its content, everybody is asked again (outbox first)."""
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
        # It raises when it is not known of each that it was asked; then the next look asks again.
        self._replace(keyspace.round_jobs(run, current.number), asked)
        self.store.control.rounds.set_data_server(run, current.number, identity)
        self._report(run, current, "the data server restarted: clients asked again")

    def _heal_jobs(self, run: str, current: RoundState) -> None:
        open_jobs = self._unanswered(run, current)
        seen = self.watch.look(open_jobs.values())
        reasons = seen.dead | self._why_again(run, current, seen.finished)
        due = {
            who: ticket
            for who, ticket in open_jobs.items()
            if self._is_due(ticket, reasons.get(ticket.job))
        }
        replaced = self._replace(keyspace.round_jobs(run, current.number), due)
        self._report(
            run,
            current,
            *(
                f"job of {who} {reasons[due[who].job]}: attempt {new.attempt}"
                for who, new in replaced.items()
            ),
        )

    def _unanswered(self, run: str, current: RoundState) -> dict[str, JobTicket]:
        """The newest jobs of those who still have to answer, by whose they are."""
        receipts = self.store.control.receipts.of_round(run, current.number)
        tickets = dispatch.tickets(self.store, run, current.number)
        # The job of somebody who was revoked was dropped with it.
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
        """Job id -> why it is wanted again, of those that have ended though their round is open."""
        left = dispatch.all_awaited(self.store, finished)
        reasons = {
            # The next attempt finds the answer in the outbox, and what was decided.
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

    def _pass_over(self, run: str, current: RoundState) -> None:
        """Nobody waits any more for a client that asked for room and sends nothing."""
        for client, held_s in self._stalled.look(run, current).items():
            event = {"event": "client_stalled", "round": current.number, "client": client}
            log.warning("run=%s client=%s held room for %.0f s", run, client, held_s)
            self.store.control.events.add(run, {**event, "held_s": round(held_s, 1)})

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
            self.store.control.evaluations.set(run, version, {"state": "failed", "reason": PRUNED})
            dispatch.forget(self.store, ticket)

    def _is_due(self, ticket: JobTicket, reason: str | None) -> bool:
        """Whether a dead job is to be tried again now: at once, but slower when it keeps failing."""
        if reason is None:
            self._dead_since.pop(ticket.job, None)
            return False
        since = self._dead_since.setdefault(ticket.job, time.monotonic())
        # Memory that was too little is too little at once again.
        quick = 0 if OUT_OF_MEMORY in reason else QUICK_ATTEMPTS
        slow = max(0, ticket.attempt - quick) if reason.startswith(_ITS_OWN) else 0
        pause_s = min(LONGEST_PAUSE_S, 2.0 ** min(slow, 10) - 1.0)
        return self.hurry or time.monotonic() - since >= pause_s

    def _replace(self, key: str, due: Mapping[str, JobTicket]) -> dict[str, JobTicket]:
        """Publish new attempts; returns field -> new ticket, of those that were."""
        replaced: dict[str, JobTicket] = {}
        for some in batches(due.items()):
            replaced |= dispatch.replace_all(self.store, key, dict(some))
            self._go_on()
            for _, ticket in some:
                self._dead_since.pop(ticket.job, None)
        return replaced

    def _report(self, run: str, current: RoundState, *repairs: str) -> None:
        self.done += repairs
        for what in repairs:
            log.warning("run=%s round=%s healed: %s", run, current.number, what)
        told = [{"event": "healed", "round": current.number, "what": what} for what in repairs]
        self.store.control.events.add_many(run, told)
