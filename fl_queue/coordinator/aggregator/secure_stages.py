"""
The stages of a secure round: keys, updates, unmask. Each ends with a record that is frozen once, for good.

A record is stored before the control server names it, so a reader of its digest finds it. Another incarnation
goes on in the stage that it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fl_queue.common import failpoints
from fl_queue.coordinator.aggregator import job_requests
from fl_queue.coordinator.aggregator.open_round import OpenRound
from fl_queue.coordinator.aggregator.round_records import RoundRecords
from fl_queue.coordinator.aggregator.secure_intake import SecureIntake
from fl_queue.coordinator.aggregator.unanswered_clients import unanswered
from fl_queue.coordinator.rounds.ending import Ending
from fl_queue.coordinator.rounds.lifecycle import closing_rule
from fl_queue.errors import OwnershipLost
from fl_queue.protocol.events import StageBegun
from fl_queue.protocol.records import Outcome, Receipt
from fl_queue.protocol.secure_state import SecureState, Stage
from fl_queue.secure.graph import confirmations_needed
from fl_queue.secure.records import Confirmations, Inbox, Roster, Survivors
from fl_queue.store import keyspace
from fl_queue.store.control.stages import KINDS
from fl_queue.store.jobs import rq_types
from fl_queue.store.jobs.dispatch import JobTicket
from fl_queue.store.transactions import stages as transactions

#: Clients that a reason names.
_NAMED = 8


class SecureStages:
    """
    Decides when a stage of one secure round ends, and freezes what follows from it.

    Args:
        current: The round.
        intake: Its messages.
        receipts: Client -> receipt of its update, or of its failure; filled in as they come.
        state_dir: This machine's folder.
    """

    def __init__(
        self,
        current: OpenRound,
        intake: SecureIntake,
        receipts: Callable[[], Mapping[str, Receipt]],
        state_dir: Path,
    ) -> None:
        self._current, self._intake, self._receipts = current, intake, receipts
        self._store, self._run, self._number = current.store, current.run, current.number
        self._records = RoundRecords(self._store, self._run, self._number, state_dir)
        #: Digests of the records whose inboxes this incarnation has stored.
        self._stored: set[str] = set()
        self._has_asked = False

    @property
    def _state(self) -> SecureState:
        found = self._current.state.secure
        assert found is not None
        return found

    def judges(self, kind: str) -> bool:
        """Whether a message of this kind is one of a stage, beside updates and failures to make them."""
        return kind in KINDS or (kind == "failure" and self._state.stage == Stage.unmask)

    def resume(self) -> None:
        """Find the records that earlier incarnations have frozen."""
        intake, state = self._intake, self._state
        if state.roster and intake.roster is None:
            intake.roster = self._records.find(Roster, state.roster)
        if state.survivors and intake.survivors is None:
            intake.survivors = self._records.find(Survivors, state.survivors)
        if state.confirmations:
            # Which signatures came first is known from this record alone.
            self._records.find(Confirmations, state.confirmations)

    def ending(self, drained: bool) -> Ending | None:
        """
        The end of the round, if it ends now; a stage that is over is followed by the next one.

        Args:
            drained: Every message that has arrived is processed.

        Raises:
            OwnershipLost: The round was ended by another process.
            CheckpointError: A record cannot be written; the stage goes on.
        """
        self._find_lost()
        if self._state.stage == Stage.keys:
            return self._ending_of_keys(drained)
        if self._state.stage == Stage.updates:
            return self._ending_of_updates(drained)
        return self._ending_of_unmask(drained)

    def _find_lost(self) -> None:
        """Make records again that neither server nor disk has, once the messages they follow from are here."""
        intake, state = self._intake, self._state
        if state.roster and intake.roster is None and intake.made_roster().digest == state.roster:
            intake.roster = intake.made_roster()
            self._records.store(intake.roster)
        if intake.roster is not None and state.roster:
            self._store_inboxes(state.roster, lambda roster: intake.key_inboxes(roster))
        survivors = intake.survivors
        if survivors is not None and state.survivors:
            self._store_inboxes(
                state.survivors, lambda roster: intake.self_inboxes(roster, survivors)
            )

    def _store_inboxes(
        self, digest: str, make: Callable[[Roster], Mapping[str, Inbox] | None]
    ) -> None:
        roster = self._intake.roster
        if digest in self._stored or roster is None or (found := make(roster)) is None:
            return
        self._records.store_inboxes(digest, found)
        self._stored.add(digest)

    # Keys

    def _ending_of_keys(self, drained: bool) -> Ending | None:
        intake, state = self._intake, self._current.state
        needed, size = state.quorum, len(state.cohort)
        pending = [who for who in self._unanswered(state.cohort, drained) if who not in intake.keys]
        count = len(intake.keys)
        if not pending and count >= needed:
            self._freeze_roster()
            return None
        if not drained:
            return None
        elapsed_s = self._current.tick()
        if count >= needed and elapsed_s >= self._current.config.secure.keys_s:
            self._freeze_roster()
            return None
        if count + len(pending) < needed:
            reason = f"{count} of {size} clients have sent keys and {len(pending)} are pending; {needed} are needed"
            return Ending(Outcome.abandoned, reason)
        if elapsed_s >= state.deadline_s:
            reason = (
                f"{count} of {size} clients had sent keys at the deadline of {state.deadline_s:g} s; {needed} are "
                f"needed{_of('no keys of', pending)}"
            )
            return Ending(Outcome.abandoned, reason)
        return None

    def _freeze_roster(self) -> None:
        intake = self._intake
        roster = intake.made_roster()
        inboxes = intake.key_inboxes(roster)
        assert inboxes is not None
        self._records.store(roster)
        self._records.store_inboxes(roster.digest, inboxes)
        failpoints.failpoint("roster.stored")
        without = sorted(set(self._current.state.cohort) - set(roster.clients))
        fields = {"stage": Stage.updates, "roster": roster.digest}
        self._freeze("roster", fields, Stage.updates, roster.clients, without)
        failpoints.failpoint("roster.frozen")
        intake.roster = roster
        self._stored.add(roster.digest)

    # Updates

    def _ending_of_updates(self, drained: bool) -> Ending | None:
        intake, state = self._intake, self._current.state
        if intake.roster is None:
            return self._without_record(drained, "the roster")
        received = len(intake.updates)
        pending = self._unanswered(intake.roster.clients, drained)
        in_roster = replace(state, cohort=intake.roster.clients)
        if received >= state.quorum and not pending:
            return self._freeze_survivors()
        if not drained:
            return None
        elapsed_s = self._current.tick()
        if received >= state.quorum:
            self._current.record_quorum(elapsed_s)
            in_roster = replace(in_roster, quorum_at_s=self._current.state.quorum_at_s)
        rule = closing_rule(
            in_roster, received, len(pending), elapsed_s, in_roster.quorum_at_s, drained
        )
        if rule is None or rule.outcome != Outcome.committed:
            return rule
        return self._freeze_survivors()

    def _freeze_survivors(self) -> Ending | None:
        intake, config = self._intake, self._current.config
        survivors, roster = intake.made_survivors(), intake.roster
        assert roster is not None
        if not intake.graph.is_connected(survivors.clients):
            reason = "the survivors are not one part of the graph: the sums of its parts would show"
            return Ending(Outcome.abandoned, reason)
        inboxes = intake.self_inboxes(roster, survivors)
        assert inboxes is not None
        self._records.store(survivors)
        self._records.store_inboxes(survivors.digest, inboxes)
        failpoints.failpoint("survivors.stored")
        without = sorted(set(roster.clients) - set(survivors.clients))
        fields = {
            "stage": Stage.unmask,
            "survivors": survivors.digest,
            "deadline_s": f"{self._current.tick() + config.secure.unmask_s:.3f}",
        }
        tickets = [self._unmask_ticket(client) for client in roster.clients]
        self._freeze("survivors", fields, Stage.unmask, survivors.clients, without, tickets)
        failpoints.failpoint("survivors.frozen")
        intake.survivors = survivors
        self._stored.add(survivors.digest)
        return None

    def _unmask_ticket(self, client: str) -> JobTicket:
        return JobTicket(
            client,
            rq_types.CLIENT_UNMASK,
            keyspace.client_queue(client),
            self._run,
            self._number,
            max(60, int(self._current.config.train.timeout_s)),
        )

    # Unmasking

    def _ending_of_unmask(self, drained: bool) -> Ending | None:
        intake, state = self._intake, self._current.state
        roster, survivors = intake.roster, intake.survivors
        if roster is None or survivors is None:
            return self._without_record(drained, "whose updates are in the sum")
        self._confirm()
        found = intake.unmasked_by()
        if found is not None and found.is_complete:
            reason = f"{len(survivors.clients)} of {len(state.cohort)} updates in"
            return Ending(Outcome.committed, reason)
        if not drained:
            return None
        self._ask_for_lost(roster, survivors)
        elapsed_s = self._current.tick()
        revoked = self._store.control.enrolments.revoked(roster.clients)
        silent = set(roster.clients) - intake.answers.keys() - intake.failed - revoked
        if silent and elapsed_s < self._current.state.deadline_s:
            return None
        return Ending(Outcome.abandoned, self._why_not_unmasked(sorted(silent)))

    def _ask_for_lost(self, roster: Roster, survivors: Survivors) -> None:
        """
        Have what this incarnation lacks sent again, once; an earlier one had it, and the data server has lost it.

        The survivors may have been frozen after the clients were asked again, with jobs that send nothing again.
        """
        keys, updates = self._intake.keys.keys(), self._intake.updates.keys()
        lost = (set(roster.clients) - keys) | (set(survivors.clients) - updates)
        if self._has_asked:
            return
        self._has_asked = True
        for client in sorted(lost):
            why = "lost: its keys or its masked update"
            job_requests.ask_again(self._store, self._run, self._current.state, client, why)

    def _why_not_unmasked(self, silent: Sequence[str]) -> str:
        intake, config = self._intake, self._current.config
        needed = self._signatures_needed
        if needed and len(intake.signatures) < needed:
            signed = len(intake.signatures)
            reason = f"unmasking needs {needed} signatures over whose updates are in, {signed} came"
            return reason + _of("no answer of", silent)
        found = intake.unmasked_by()
        if found is None:
            lost = set(intake.survivors.clients if intake.survivors else ()) - intake.updates.keys()
            lost |= set(intake.dropped()) - intake.keys.keys()
            return "masked updates or keys were lost with the data server" + _of("of", sorted(lost))
        return f"{found.shortage()} within secure.unmask_s = {config.secure.unmask_s:g} s"

    @property
    def _signatures_needed(self) -> int:
        """Signatures over the survivors before any share is revealed; 0: the round goes without."""
        if not self._current.config.secure.confirm:
            return 0
        return confirmations_needed(len(self._current.state.cohort))

    def _confirm(self) -> None:
        """Freeze the signatures over the survivors, once there are enough."""
        needed = self._signatures_needed
        if not needed or self._state.confirmations or len(self._intake.signatures) < needed:
            return
        record = self._intake.made_confirmations(needed)
        self._records.store(record)
        self._freeze("confirmations", {"confirmations": record.digest})

    # Common to all

    def _unanswered(self, clients: Collection[str], drained: bool) -> list[str]:
        """Clients that may still send an update, or a failure."""
        current = replace(self._current.state, cohort=tuple(clients))
        return unanswered(self._store, self._run, current, self._receipts(), drained)

    def _without_record(self, drained: bool, what: str) -> Ending | None:
        """The end of a round of which a record is lost everywhere; it waits for the clients' messages until then."""
        if not drained or self._current.tick() < self._current.state.deadline_s:
            return None
        return Ending(Outcome.abandoned, f"{what} was lost with the data server")

    def _freeze(
        self,
        record: str,
        fields: Mapping[str, str],
        stage: Stage | None = None,
        clients: Sequence[str] = (),
        without: Sequence[str] = (),
        tickets: Sequence[JobTicket] = (),
    ) -> None:
        """Write a record's digest into the round. Raises OwnershipLost: another process has, or the round has ended."""
        event = None
        if stage is not None:
            event = StageBegun(
                round=self._number, stage=stage, clients=len(clients), without=list(without)
            )
        incarnation = self._current.incarnation
        if not transactions.freeze(self._store, incarnation, record, fields, tickets, event):
            raise OwnershipLost(
                f"run {self._run}: round {self._number} is in another process's hands"
            )
        self._current.reread()


def _of(words: str, clients: Sequence[str]) -> str:
    """``; words a, b`` of some clients; empty of none."""
    if not clients:
        return ""
    more = f" and {len(clients) - _NAMED} more" if len(clients) > _NAMED else ""
    return f"; {words} {', '.join(clients[:_NAMED])}{more}"
