"""End a round: build its version, run the commit script, advance the run, remove what the round held."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fl_queue.common import failpoints
from fl_queue.coordinator.aggregator import archiving, round_end, scheduling
from fl_queue.coordinator.aggregator.intake import UpdateIntake
from fl_queue.coordinator.aggregator.open_round import OpenRound
from fl_queue.coordinator.aggregator.ownership import OwnershipLease
from fl_queue.coordinator.aggregator.round_records import RoundRecords
from fl_queue.coordinator.aggregator.secure_intake import UnmaskedRound
from fl_queue.coordinator.aggregator.taken_list import TakenList
from fl_queue.coordinator.aggregator.version_builder import BuiltVersion, VersionBuilder
from fl_queue.coordinator.rounds import lifecycle, panels, statement_signing
from fl_queue.coordinator.rounds.ending import Ending
from fl_queue.errors import AnalysisError, MessageError, OwnershipLost, UnmaskingFailed
from fl_queue.models import initial, retention, update_archive
from fl_queue.models.model_store import ModelStore
from fl_queue.protocol import job_origins
from fl_queue.protocol.panel import Panel
from fl_queue.protocol.records import MAKES_NEXT, Outcome, Purpose, Receipt, RoundRecord
from fl_queue.store import NewVersion, RoundEnd
from fl_queue.strategies.base import Strategy

log = logging.getLogger(__name__)


class RoundCommit:
    """
    Ends one round.

    Args:
        current: The round.
        lease: The aggregator's ownership.
        state_dir: This machine's folder; checkpoints are below it.
    """

    def __init__(self, current: OpenRound, lease: OwnershipLease, state_dir: Path) -> None:
        self._current, self._lease, self._state_dir = current, lease, state_dir
        self._store, self._run, self._number = current.store, current.run, current.number
        chunk_bytes = current.config.redis.chunk_bytes
        #: The sum of a secure round, once its masks are off.
        self._unmasked: UnmaskedRound | None = None
        self._models = ModelStore(current.store, current.run, chunk_bytes, state_dir)

    def close(
        self,
        ending: Ending,
        intake: UpdateIntake,
        builder: VersionBuilder,
        strategy: Strategy | None,
    ) -> str:
        """
        End the round as decided, with a new version where there is one.

        Args:
            ending: How it ends.
            intake: Its updates.
            builder: Builds the version.
            strategy: Computes it; None where no updates are merged.

        Returns:
            The outcome and its reason.

        Raises:
            OwnershipLost: The round was ended by another process.
            CheckpointError: The new version cannot be written; the round stays open.
        """
        intake.receipt_log.rejections.close()
        failpoints.failpoint("round.decided")
        self._current.refresh()
        state, config = self._current.state, self._current.config
        if state.is_async and ending.outcome == Outcome.committed:
            most = config.round.max_staleness
            intake.receipts.update(job_origins.given_up(state, intake.receipts, most))
        is_named = ending.fails or ending.panel is not None
        if ending.outcome == Outcome.abandoned and state.purpose in MAKES_NEXT and not is_named:
            ending = lifecycle.with_cause(ending, intake.receipts)
        elapsed_s = self._current.tick()
        record = round_end.build_record(state, ending, elapsed_s, config, intake.progress)
        if ending.outcome in (Outcome.committed, Outcome.initialised):
            try:
                answer = self._commit(ending, record, intake, builder, strategy)
            # Of the same sums it would be the same again.
            except (AnalysisError, UnmaskingFailed) as exc:
                fails = isinstance(exc, AnalysisError)
                ending = Ending(Outcome.abandoned, exc.reason, fails=fails)
                record = replace(record, outcome=Outcome.abandoned, reason=exc.reason)
                answer = self._end(ending, record, intake.receipts)
        else:
            receipts = round_end.final_receipts(ending, intake.receipts)
            answer = self._end(ending, record, receipts)
        return self._after(ending, record, answer, intake.taken)

    def end_failed(
        self,
        ending: Ending,
        elapsed_s: float,
        receipts: Mapping[str, Receipt],
        taken: TakenList,
    ) -> str:
        """
        End a round whose updates cannot be merged.

        Args:
            ending: How it ends.
            elapsed_s: Counted seconds since it was opened.
            receipts: Client -> receipt, as far as there are any.
            taken: The messages that were taken for it.

        Returns:
            The outcome and its reason.
        """
        record = lifecycle.base_record(self._current.state, ending, elapsed_s, self._current.config)
        record = lifecycle.with_updates(record, receipts)
        return self._after(ending, record, self._end(ending, record, receipts), taken)

    def _commit(
        self,
        ending: Ending,
        record: RoundRecord,
        intake: UpdateIntake,
        builder: VersionBuilder,
        strategy: Strategy | None,
    ) -> str:
        """Build the version and run the commit script; returns its answer."""
        state, config = self._current.state, self._current.config
        incarnation, is_first = self._current.incarnation, ending.outcome == Outcome.initialised
        built = self._build(record, intake, builder, strategy)
        signature = statement_signing.version(
            self._store, self._run, state, built.entry, built.manifest, self._current.config_digest
        )
        failpoints.failpoint("checkpoint.written")
        self._lease.check()
        whole = self._with_version(record, built, intake)
        version = NewVersion(
            built.version,
            built.digest,
            built.download,
            built.manifest if is_first else None,
            built.server_state,
            accepted=round_end.updates_with_state(state, record, intake.manifest, strategy, config),
            signature=signature,
            begins_anew=intake.merger is not None and intake.merger.begins_anew,
            metrics=round_end.declared_metrics(intake.receipts) if is_first else (),
            is_last=built.is_last,
        )
        return self._store.control.rounds.end(
            RoundEnd(
                incarnation,
                call=incarnation.token,
                outcome=Outcome.initialised if is_first else Outcome.committed,
                reason=(self._with_beginning(ending, built) if is_first else ending).reason,
                record=None if is_first else whole,
                receipts=round_end.final_receipts(ending, intake.receipts),
                max_abandoned=config.round.max_abandoned,
                version=version,
                panel=self._first_panel(record),
                survivors=state.secure.survivors if state.secure else "",
            )
        )

    def _first_panel(self, record: RoundRecord) -> Panel | None:
        """The panel of a fit whose first step is committed."""
        config = self._current.config
        is_first = record.purpose == Purpose.sums and self._current.run_state().panel is None
        if config.analysis is None or not config.analysis.is_fit or not is_first:
            return None
        return panels.of_first_step(config, record.cohort, record.accepted)

    def _with_beginning(self, ending: Ending, built: BuiltVersion) -> Ending:
        """Add to the end of the first round which of its tensors came from ``model.initial``."""
        state = self._current.run_state()
        try:
            found = initial.beginning(state.initial, built.manifest)
        except MessageError:
            return ending
        return ending if found is None else replace(ending, reason=f"{ending.reason}, {found}")

    def _build(
        self,
        record: RoundRecord,
        intake: UpdateIntake,
        builder: VersionBuilder,
        strategy: Strategy | None,
    ) -> BuiltVersion:
        if intake.initial is not None:
            return builder.build_initial(*intake.initial)
        if intake.step is not None:
            return builder.build_step(intake.step, self._current.run_state().rounds_wanted)
        merger = intake.required_merger()
        if intake.secure is not None:
            unmasked = intake.secure.unmask(merger, builder.base_tensors(merger.manifest))
            archiving.archive_transcript(self._current, self._state_dir, unmasked.transcript)
            self._unmasked = unmasked
        return builder.build_next(merger, strategy, self._lease.pulse.beat, record)

    def _with_version(
        self, record: RoundRecord, built: BuiltVersion, intake: UpdateIntake
    ) -> RoundRecord:
        """The record of a round with the version that it made."""
        return replace(
            self._with_sums(record, intake),
            version=built.version,
            digest=built.digest,
            server_state=built.server_state,
            left_out=intake.excluded_clients,
            next_exponent=intake.next_exponent,
        )

    def _with_sums(self, record: RoundRecord, intake: UpdateIntake) -> RoundRecord:
        """The record of a secure round with what its sum holds; of another one as it is."""
        unmasked, state = self._unmasked, self._current.state.secure
        if unmasked is None or state is None or intake.secure is None:
            return record
        signed = unmasked.sum
        return replace(
            record,
            validation=dict(signed.validation),
            train=dict(signed.train),
            secure={
                "bits": state.bits,
                "roster": state.roster,
                "survivors": state.survivors,
                "dropped": intake.secure.dropped(),
                "weight": signed.weight,
                "transcript": unmasked.transcript.digest,
            },
        )

    def _end(self, ending: Ending, record: RoundRecord, receipts: Mapping[str, Receipt]) -> str:
        """End the round without a new version; returns the answer of the commit script."""
        self._current.run_state()  # Raises OwnershipLost if the run is gone.
        return lifecycle.end(
            self._store,
            self._current.incarnation,
            self._current.state,
            ending,
            record,
            receipts,
            self._current.config,
        )

    def _after(self, ending: Ending, record: RoundRecord, answer: str, taken: TakenList) -> str:
        """Advance the run and clean up. Args: ``answer``: of the commit script, ``ok`` if the round has ended."""
        if answer != "ok":
            raise OwnershipLost(
                f"run {self._run}: round {self._number} was not ended by us: {answer}"
            )
        log.info("run=%s round=%s %s: %s", self._run, self._number, ending.outcome, ending.reason)
        if ending.panel is not None:
            failpoints.failpoint("panel.shrunk")
        failpoints.failpoint("round.committed")
        for event in round_end.events(record, self._current.config):
            self._store.control.events.add(self._run, event)
        # The next round is opened first: its clients train while this one is cleaned up.
        lifecycle.advance(self._store, self._run)
        failpoints.failpoint("round.advanced")
        self._clean_up(record, taken)
        scheduling.requeue_next_round(self._store, self._run)
        return f"{ending.outcome}: {ending.reason}"

    def _keep_base_part(self) -> None:
        """Have the base part of the version 0 that was committed stay on the data server."""
        manifest = self._store.control.versions.manifest(self._run)
        if manifest is not None and manifest.published is not None:
            self._models.keep_base(manifest.published)

    def _clean_up(self, record: RoundRecord, taken: TakenList) -> None:
        """Remove the messages of the round that has ended, and older rounds and versions."""
        taken.clean_up()
        RoundRecords(self._store, self._run, self._number, self._state_dir).drop(
            self._current.state
        )
        if self._current.state.purpose == Purpose.initialise:
            self._keep_base_part()
        failpoints.failpoint("round.discarded")
        update_archive.keep_only(self._state_dir, self._run, self._number, record.accepted)
        lifecycle.clean_up(self._store, self._run, self._number)
        retention.prune_versions(self._models, self._current.config)
