"""Keep the accepted answers of a round on the aggregator's disk, for ``verify``."""

from __future__ import annotations

from pathlib import Path

from fl_queue.coordinator.aggregator.authentication import AuthenticatedMessage
from fl_queue.coordinator.aggregator.open_round import OpenRound
from fl_queue.models import update_archive
from fl_queue.secure.records import Transcript


def archive(
    current: OpenRound, state_dir: Path, opened: AuthenticatedMessage, body: memoryview
) -> None:
    """Archive one answer with the proof of its sender, where the config asks for that."""
    if not current.config.keeps_answers:
        return
    proof, enrolment = None, opened.enrolment
    if opened.sealed is not None and enrolment is not None:
        proof = update_archive.Proof(opened.sealed, enrolment)
    update_archive.write(state_dir, opened.header, body, current.number, proof)


def archive_transcript(current: OpenRound, state_dir: Path, transcript: Transcript) -> None:
    """
    Archive what takes the masks off a secure round's sum, where the config keeps its masked updates.

    Raises:
        CheckpointError: It cannot be written.
    """
    if current.config.keeps_answers:
        update_archive.write_transcript(
            state_dir, current.run, current.number, transcript.to_bytes()
        )
