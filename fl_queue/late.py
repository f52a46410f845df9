"""
Updates that come after their round has ended: recorded, never merged.

While a run is training, its aggregator meets them; once the run has ended, the healer does.
"""

from __future__ import annotations

from fl_queue import blob, group, metrics, names, outbox
from fl_queue.errors import BlobError
from fl_queue.gate import Gate
from fl_queue.header import Header
from fl_queue.records import Receipt, Verdict
from fl_queue.runs import current_config
from fl_queue.store import RunState, Store

#: Elements removed at one go: a healer has other runs to look at.
_AT_ONCE = 100


def receipt_of(header: Header, status: Verdict, reason: str) -> Receipt:
    """What is recorded of an element."""
    received = status == "received"
    return Receipt(
        status=status,
        reason=reason,
        token=header.token,
        digest=header.body_digest,
        num_examples=header.num_examples,
        metrics=metrics.finish(header.metrics) if received else {},
        train_metrics=metrics.finish(header.train_metrics) if received else {},
        environment=header.environment,
        train_s=header.train_s,
        nbytes=header.body_bytes,
    )


def record(store: Store, run: str, header: Header) -> None:
    """Write the receipts of a late element; one that was received in time keeps its own."""
    for own, _, _ in group.headers(header):
        receipt = receipt_of(own, "late", f"round {header.round} had ended")
        if store.control.round(run, header.round) is None:
            store.control.count_late(run, header.round, own.client)
        else:
            store.control.write_receipt(run, header.round, own.client, receipt, None)


def drain(store: Store, state: RunState) -> int:
    """
    Remove what lies in the results list of a run that is not training: all its rounds have ended.

    Each element is recorded before it is removed, so a killed healer leaves nothing unrecorded, and
    what it does twice is done once.

    Returns:
        How many elements were removed.
    """
    removed = 0
    gate: Gate | None = None
    while removed < _AT_ONCE and (element := store.data.peek(state.run_id)) is not None:
        try:
            if gate is None:
                security = current_config(store, state.run_id).security
                gate = Gate(store.control, state.run_id, security["require_enrolment"])
            header = gate.open(element).header
            if header.round > state.round:
                again = store.control.run(state.run_id)
                if again is None or again.active:
                    break  # Somebody has started the run again since we looked.
                raise BlobError(f"{header.client}: round {header.round} has not been opened")
            record(store, state.run_id, header)
            drop_chunks(store, state.run_id, header)
            sent = outbox.permission(header.token, header.body_bytes)
            store.data.dismiss(state.run_id, [(header.client, sent)])
        except BlobError as exc:
            store.control.add_event(state.run_id, rejected_event(state.round, exc.reason))
        store.data.remove(state.run_id, element)
        removed += 1
    return removed


def drop_chunks(store: Store, run: str, header: Header) -> None:
    """Remove the chunks of an element whose round has ended."""
    # By its name alone: chunks of a model, or another client's, cannot be meant.
    if header.chunk_bytes:
        count = blob.chunk_count(header.body_bytes, header.chunk_bytes)
        store.data.drop_chunks(names.update_blob(header.client, run, header.body_digest), count)


def rejected_event(number: int, reason: str) -> dict[str, object]:
    """The event of an element that does not even tell whose it is."""
    return {
        "event": "update_rejected",
        "round": number,
        "client": "?",
        "status": "invalid",
        "reason": reason,
    }
