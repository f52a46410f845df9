"""
Checkpointed partial sums: the merged updates of an open round, kept on the data server as their sum.

They bound how many updates Redis holds, whatever the size of the cohort, and an aggregator that yields or
dies does not start again from nothing. The sum's chunks are stored first; then one script records the sum
and removes the messages that are in it. The owner of the run's taken list owns this record, too.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, Protocol

from fl_queue.common import failpoints
from fl_queue.common.safe_json import dumps
from fl_queue.errors import DigestMismatch
from fl_queue.protocol import operator_key, tensor_layout
from fl_queue.protocol.events import SumRefused
from fl_queue.protocol.header import chunk_count
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import Receipt, Sums
from fl_queue.protocol.tensor_layout import Bytes, Tensor
from fl_queue.store import Incarnation, Store, keyspace

#: Lifetime of chunks that no record names, because their writer was killed.
_LIFETIME_S = 3600
#: Purpose of the operator's signature of a sum.
_PURPOSE = "partial v1"


class ResumableSum(Protocol):
    """A sum of answers that another incarnation can go on from, such as ``ExactSum``."""

    scalars: dict[str, Fraction]

    @property
    def total_weight(self) -> int:
        """Sum of the weights."""

    @property
    def divisor(self) -> int:
        """Divisor of means."""

    @property
    def count(self) -> int:
        """Answers in it."""

    @property
    def layout(self) -> Manifest:
        """The tensors of the sum's body."""

    def pieces(self) -> Iterable[Bytes | Tensor]:
        """The body."""

    def add_sum(
        self, tensors: Mapping[str, Tensor], weight: int, count: int, divisor: int | None = None
    ) -> None:
        """Add another sum."""

    def add_scalars(self, sums: Mapping[str, Fraction]) -> None:
        """Add weighted sums of scalars."""


@dataclass
class PartialRoundState:
    """
    The receipts and metrics of an open round's updates: everything about them but their sum.

    Args:
        receipts: Client -> its receipt, the one that counts.
        validation: Client -> sums of its validation metrics, of received updates.
        training: Client -> sums of its training metrics, of received updates.
        written: All receipts as the control server has them, of further updates too.
        secure: Of a secure round, what came with its messages beside the words of the sum.
    """

    receipts: dict[str, Receipt] = field(default_factory=dict)
    validation: dict[str, Sums] = field(default_factory=dict)
    training: dict[str, Sums] = field(default_factory=dict)
    written: dict[str, Receipt] = field(default_factory=dict)
    secure: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The state as JSON."""
        return dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> PartialRoundState:
        """Read what ``to_json`` wrote."""
        raw = json.loads(text)
        receipts, written = (
            {who: Receipt(**values) for who, values in raw[key].items()}
            for key in ("receipts", "written")
        )
        return cls(receipts, raw["validation"], raw["training"], written, raw.get("secure", {}))


class PartialSumStore:
    """
    The partial sum of a run; it has one at most.

    Args:
        store: Both servers, and the operator's key if this machine has it: it signs the record.
        run: Run id.
    """

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run = store, run

    def find(self, number: int | None = None, opening: str = "") -> dict[str, str]:
        """
        The record of the partial sum; empty when there is none.

        Args:
            number: Only the sum of this round.
            opening: Only the sum of this opening, see ``RoundState``. After the control server has lost
                writes there may be a sum of the same number, made from another version or in other scales.
        """
        saved = self._store.data.partial_sum.get(self._run)
        if not saved or number not in (None, int(saved["round"])):
            return {}
        return saved if not opening or saved.get("opening") in (opening, "", None) else {}

    def save(
        self,
        incarnation: Incarnation,
        processed: int,
        total: ResumableSum,
        progress: PartialRoundState,
        chunk_bytes: int,
        opening: str = "",
    ) -> bool:
        """
        Checkpoint a round's sum, and remove the messages on the taken list: they are in it, or refused.

        Args:
            incarnation: The owner of the taken list.
            processed: Messages on the list.
            total: The sum.
            progress: The rest of the round's state.
            chunk_bytes: Bytes of a chunk of the sum.
            opening: The round's, see ``RoundState``.

        Returns:
            False when another incarnation owns the taken list; nothing was removed.
        """
        before = self.find()
        digest = tensor_layout.pieces_digest(total.pieces())
        pieces = tensor_layout.rechunked(total.pieces(), chunk_bytes)
        blob = keyspace.partial_blob(self._run, digest)
        self._store.data.chunks.put(blob, pieces, _LIFETIME_S, insist=True)
        failpoints.failpoint("partial.stored")
        fields = self._record(incarnation.round, opening, digest, chunk_bytes, total, progress)
        if before:
            # They end by themselves if this process is killed before it drops them.
            self._keep_chunks(before, _LIFETIME_S)
        fence, token = incarnation.fence, incarnation.token
        if not self._store.data.partial_sum.save(self._run, fence, token, processed, fields):
            if before:
                self._keep_chunks(before, None)  # Another incarnation owns it by now.
            return False
        failpoints.failpoint("partial.saved")
        self._keep_chunks({key: str(value) for key, value in fields.items()}, None)
        if before and before["digest"] != digest:
            self._drop_chunks(before)
        return True

    def _record(
        self,
        number: int,
        opening: str,
        digest: str,
        chunk_bytes: int,
        total: ResumableSum,
        progress: PartialRoundState,
    ) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "nonce": secrets.token_hex(8),
            "round": number,
            "opening": opening,
            "digest": digest,
            "nbytes": total.layout.nbytes,
            "chunk_bytes": chunk_bytes,
            "weight": total.total_weight,
            "divisor": total.divisor,
            "count": total.count,
            "scalars": dumps({name: str(value) for name, value in total.scalars.items()}),
            "progress": progress.to_json(),
        }
        if (key := self._store.control.enrolments.pins.key) is not None:
            fields["signature"] = key.sign(_PURPOSE, self._statement(fields))
        return fields

    def is_refused(self, saved: Mapping[str, str]) -> bool:
        """
        Whether a record was not written by an aggregator of this operator; then it is removed, with an event.

        The updates in a sum are gone, and their signatures with them: without this signature, a process
        that can write to the data server could write the next version. Chunks that a refused record names stay.
        A machine without the operator's key accepts every record.
        """
        key = self._store.control.enrolments.pins.key
        statement, signature = self._statement(saved), saved.get("signature", "")
        if key is None or operator_key.verify(key.public, _PURPOSE, statement, signature):
            return False
        reason = "is not signed by the operator, or was changed: its clients are asked again"
        event = SumRefused(round=int(saved["round"]), reason=reason)
        self._store.control.events.add(self._run, event)
        self._store.data.partial_sum.drop(self._run, saved.get("nonce", ""))
        return True

    def _statement(self, fields: Mapping[str, object]) -> bytes:
        signed = {name: str(value) for name, value in fields.items() if name != "signature"}
        return dumps({**signed, "run": self._run}).encode()

    def load(self, saved: Mapping[str, str], total: ResumableSum) -> None:
        """
        Add the partial sum of a record to ``total``, which is empty.

        Raises:
            ContentMissing: It is not there any more: its clients have to be asked again.
            MessageError: The same, where it is there in part.
        """
        nbytes, chunk_bytes = int(saved["nbytes"]), int(saved["chunk_bytes"])
        # Its writer may have been killed before it did so.
        self._keep_chunks(saved, None)
        blob = keyspace.partial_blob(self._run, saved["digest"])
        body = self._store.data.chunks.get(blob, nbytes, chunk_bytes)
        if tensor_layout.body_digest(body) != saved["digest"]:
            raise DigestMismatch(saved["digest"])
        tensors = tensor_layout.views(total.layout, body)
        if int(saved["count"]):
            total.add_sum(
                tensors,
                int(saved["weight"]),
                int(saved["count"]),
                int(saved.get("divisor", saved["weight"])),
            )
            scalars = json.loads(saved.get("scalars", "{}"))
            total.add_scalars({name: Fraction(text) for name, text in scalars.items()})

    def drop(self, number: int) -> None:
        """
        Remove the partial sum of a round that has ended, or whose sum is lost.

        Args:
            number: Sums of later rounds stay: their aggregator may be at work while an ended round is
                cleaned up.
        """
        saved = self.find()
        if saved and int(saved["round"]) <= number:
            # The record last: after a kill in between, the next clean-up does all of it again.
            self._drop_chunks(saved)
            self._store.data.partial_sum.drop(self._run, saved["nonce"])

    def _keep_chunks(self, saved: Mapping[str, str], lifetime_s: int | None) -> None:
        count = chunk_count(int(saved["nbytes"]), int(saved["chunk_bytes"]))
        blob = keyspace.partial_blob(self._run, saved["digest"])
        self._store.data.chunks.set_lifetime(blob, count, lifetime_s)

    def _drop_chunks(self, saved: Mapping[str, str]) -> None:
        count = chunk_count(int(saved["nbytes"]), int(saved["chunk_bytes"]))
        self._store.data.chunks.drop(keyspace.partial_blob(self._run, saved["digest"]), count)
