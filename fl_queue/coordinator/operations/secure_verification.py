"""The masked updates of a secure round that was committed, summed and unmasked again from what is archived."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from fl_queue.aggregation.merge import UpdateMerger
from fl_queue.aggregation.scales import Scale
from fl_queue.errors import MessageError
from fl_queue.models import update_archive
from fl_queue.models.update_archive import ArchivedUpdate
from fl_queue.protocol import message, tensor_layout
from fl_queue.protocol.records import LOST, RoundRecord
from fl_queue.protocol.tensor_layout import Bytes
from fl_queue.secure import merging, unmasking
from fl_queue.secure.graph import Graph
from fl_queue.secure.records import Transcript
from fl_queue.secure.ring import RingLayout, RingSum
from fl_queue.secure.round_view import masked_entries


class MaskedRound:
    """
    The survivors' masked updates, as far as they are added.

    Nothing of one of them can be read here either: what comes out is their sum, which the version shows, too.

    Args:
        record: Of the round.
        merger: Empty; the sum is added to it.
        state_dir: The aggregator's folder.
        run: Run id.

    Raises:
        DataError: The transcript is not kept.
        MessageError: It is not the recorded one, or a secret in it is another one.
    """

    def __init__(
        self, record: RoundRecord, merger: UpdateMerger, state_dir: Path, run: str
    ) -> None:
        raw = update_archive.read_transcript(state_dir, run, record.round)
        self._record, self._merger = record, merger
        self._transcript = Transcript.from_bytes(raw, record.secure.get("transcript", ""))
        roster = self._transcript.roster
        self._members, self._context = set(roster.clients), roster.context
        self._secrets = unmasking.secrets_of(self._transcript)
        scales = {name: Scale.of(recorded) for name, recorded in record.scales.items()}
        bits = int(record.secure["bits"])
        self._layout = RingLayout(merger.sent, scales, merger.total.w_max, bits)
        self._graph = Graph(record.cohort, self._transcript.degree, self._context)
        self._total = RingSum(self._layout)

    def add(self, client: str, update: ArchivedUpdate) -> None:
        """Add an archived update. Raises MessageError: it is not the one that was frozen."""
        survivor, header = self._transcript.survivors.of(client), update.header
        if survivor is None or survivor.body != header.body_digest:
            raise MessageError(f"{client}: another update was frozen")
        neighbours = len(self._graph.neighbours(client, self._members))
        entries = masked_entries(self._layout, neighbours)
        message.check_layout(header, f"masked:{self._layout.bits}", entries)
        self._total.add(memoryview(update.body)[: self._layout.nbytes])

    def merge(self, base: Bytes) -> None:
        """
        Add the sum to the merger.

        Args:
            base: Body of the base version.

        Raises:
            MessageError: It is out of range, or its weight is not the recorded one.
        """
        signed = merging.unmasked(self._total, self._secrets, self._graph, self._context)
        if signed.weight != self._record.secure.get("weight"):
            raise MessageError(
                f"weight {signed.weight}, recorded {self._record.secure.get('weight')}"
            )
        views = tensor_layout.views(self._merger.manifest, base)
        merging.merge(signed, self._total.count, self._merger, views)
        if self._record.state_lost:
            self._merger.total.add_scalars({LOST: Fraction(len(self._record.state_lost))})
