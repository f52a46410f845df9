"""
Checkpointed partial sums: what an open round has merged, kept on the data server instead of its updates.

So that Redis holds a bounded number of updates, whatever the cohort, and an aggregator that makes way
or dies does not begin anew. The sum's chunks are stored first; then one script records it and removes
the elements it was made of. Whoever owns the run's taken list owns this record, too.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction

from fl_queue.aggregation.exact_sum import ExactSum
from fl_queue.common import failpoints
from fl_queue.common.safe_json import dumps
from fl_queue.errors import DigestMismatch
from fl_queue.protocol import header, operator_key, tensor_layout
from fl_queue.protocol.operator_key import OperatorKey
from fl_queue.protocol.records import Receipt, Sums
from fl_queue.store import Store, keyspace

#: Of chunks that nothing names, because their writer was killed.
_LIFETIME_S = 3600
#: What the operator's key signs of a sum.
_PURPOSE = "partial v1"


@dataclass
class PartialRoundState:
    """
    What is known of the updates of an open round, besides their sum.

    Args:
        receipts: Client -> its receipt, the one that counts.
        validation, training: Client -> sums of metrics, of those that were received.
        written: All receipts as the control server has them, of further updates too.
    """

    receipts: dict[str, Receipt] = field(default_factory=dict)
    validation: dict[str, Sums] = field(default_factory=dict)
    training: dict[str, Sums] = field(default_factory=dict)
    written: dict[str, Receipt] = field(default_factory=dict)

    def to_json(self) -> str:
        return dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> PartialRoundState:
        raw = json.loads(text)
        receipts, written = (
            {who: Receipt(**values) for who, values in raw[key].items()}
            for key in ("receipts", "written")
        )
        return cls(receipts, raw["validation"], raw["training"], written)


def save(
    store: Store,
    run: str,
    number: int,
    fence: int,
    token: str,
    looked_at: int,
    total: ExactSum,
    progress: PartialRoundState,
    chunk_bytes: int,
    opening: str = "",
    key: OperatorKey | None = None,
) -> bool:
    """
    Checkpoint a round's sum, and remove the elements on the taken list, all of them in it or rejected.

    Args:
        fence, token: Of the incarnation.
        looked_at: Elements on its taken list.
        opening: The round's, see ``RoundState``.
        key: The operator's, which signs the record; None: this machine has none.

    Returns:
        Whether it was done; False when the taken list is not ours any more.
    """
    old = find(store, run)
    digest = tensor_layout.pieces_digest(total.pieces())
    nbytes = total.layout.nbytes
    pieces = tensor_layout.rechunked(total.pieces(), chunk_bytes)
    store.data.chunks.put(keyspace.partial_blob(run, digest), pieces, _LIFETIME_S, insist=True)
    failpoints.failpoint("partial.stored")
    fields = {
        "nonce": secrets.token_hex(8),
        "round": number,
        "opening": opening,
        "digest": digest,
        "nbytes": nbytes,
        "chunk_bytes": chunk_bytes,
        "weight": total.total_weight,
        "divisor": total.divisor,
        "count": total.count,
        "scalars": dumps({name: str(value) for name, value in total.scalars.items()}),
        "progress": progress.to_json(),
    }
    if key is not None:
        fields["signature"] = key.sign(_PURPOSE, _statement(run, fields))
    if old:
        # Should we be killed before we drop them. Whoever reads this sum once more makes them stay.
        _keep_chunks(store, run, old, _LIFETIME_S)
    if not store.data.partial_sum.save(run, fence, token, looked_at, fields):
        if old:
            _keep_chunks(store, run, old, None)  # It is somebody else's by now.
        return False
    failpoints.failpoint("partial.saved")
    _keep_chunks(store, run, {key: str(value) for key, value in fields.items()}, None)
    if old and old["digest"] != digest:
        _drop_chunks(store, run, old)
    return True


def find(store: Store, run: str, number: int | None = None, opening: str = "") -> dict[str, str]:
    """
    The record of a run's checkpointed sum, if it is of this round; empty when there is none.

    Args:
        opening: The round's: of one that the control server has lost there may be a sum, too, made from
            another version or in other scales.
    """
    saved = store.data.partial_sum.get(run)
    if not saved or number not in (None, int(saved["round"])):
        return {}
    return saved if not opening or saved.get("opening") in (opening, "", None) else {}


def is_refused(store: Store, run: str, saved: Mapping[str, str], key: OperatorKey | None) -> bool:
    """
    Whether a record is not what an aggregator of this operator wrote; then it is removed, with an event.

    The updates in a sum are gone, and with them their signatures: without this one, whoever may write to
    the data server would make the next version. Nothing that a refused record names is touched.

    Args:
        key: The operator's; None: this machine has none, and has to believe the record.
    """
    statement, signature = _statement(run, saved), saved.get("signature", "")
    if key is None or operator_key.verify(key.public, _PURPOSE, statement, signature):
        return False
    reason = "is not signed by the operator, or was changed: its clients are asked again"
    event = {"event": "sum_refused", "round": int(saved["round"]), "reason": reason}
    store.control.events.add(run, event)
    store.data.partial_sum.drop(run, saved.get("nonce", ""))
    return True


def _statement(run: str, fields: Mapping[str, object]) -> bytes:
    said = {name: str(value) for name, value in fields.items() if name != "signature"}
    return dumps({**said, "run": run}).encode()


def load(store: Store, run: str, saved: Mapping[str, str], total: ExactSum) -> None:
    """
    Add the checkpointed sum of a record to ``total``, which is empty.

    Raises:
        ContentMissing, MessageError: It is not there any more: its clients have to be asked again.
    """
    nbytes, chunk_bytes = int(saved["nbytes"]), int(saved["chunk_bytes"])
    # Should its writer have been killed before it did so.
    _keep_chunks(store, run, saved, None)
    body = store.data.chunks.get(keyspace.partial_blob(run, saved["digest"]), nbytes, chunk_bytes)
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


def drop(store: Store, run: str, number: int) -> None:
    """
    Remove the checkpointed sum of a round that has ended, or whose sum is lost.

    Args:
        number: Sums of later rounds stay: their aggregator may be at work while an ended round is
            cleaned up.
    """
    saved = find(store, run)
    if saved and int(saved["round"]) <= number:
        # The record last: killed before that, whoever cleans up next does all of it again.
        _drop_chunks(store, run, saved)
        store.data.partial_sum.drop(run, saved["nonce"])


def _keep_chunks(store: Store, run: str, saved: Mapping[str, str], lifetime_s: int | None) -> None:
    count = header.chunk_count(int(saved["nbytes"]), int(saved["chunk_bytes"]))
    store.data.chunks.set_lifetime(keyspace.partial_blob(run, saved["digest"]), count, lifetime_s)


def _drop_chunks(store: Store, run: str, saved: Mapping[str, str]) -> None:
    count = header.chunk_count(int(saved["nbytes"]), int(saved["chunk_bytes"]))
    store.data.chunks.drop(keyspace.partial_blob(run, saved["digest"]), count)
