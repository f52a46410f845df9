"""
Updates that come after their round has ended: recorded, never merged.

While a run is training, its aggregator meets them; once the run has ended, the healer does.
"""

from __future__ import annotations

import time

from fl_queue import metrics
from fl_queue.aggregation import group_sum
from fl_queue.common.safe_json import printable
from fl_queue.coordinator.aggregator import rejections
from fl_queue.coordinator.aggregator.authentication import MessageAuthenticator
from fl_queue.coordinator.rounds.runs import current_config
from fl_queue.errors import MessageError
from fl_queue.protocol.header import Header, chunk_count
from fl_queue.protocol.records import LOST, Receipt, Refusals, Verdict
from fl_queue.store import RunState, Store, admission, keyspace

#: Longest time for one run at one go, seconds: a healer has others to look at.
_AT_ONCE_S = 0.5


def receipt_of(header: Header, status: Verdict, reason: str, key: str = "") -> Receipt:
    """What is recorded of an element. Args: ``key``: fingerprint of the key that signed it."""
    received = status == "received"
    return Receipt(
        status=status,
        reason=printable(reason),  # A client may have written it, and a terminal shows it.
        token=header.token,
        digest=header.body_digest,
        num_examples=header.num_examples,
        metrics=metrics.finish(header.metrics) if received else {},
        train_metrics=metrics.finish(header.train_metrics) if received else {},
        environment=header.environment,
        train_s=header.train_s,
        nbytes=header.body_bytes,
        key=key,
        state_lost=LOST in header.scalars,
    )


def record(store: Store, run: str, header: Header, key: str = "") -> None:
    """
    Write the receipts of a late element; one that was received in time keeps its own.

    Args:
        key: Fingerprint of the key that signed it.
    """
    if was_merged(store, run, header):
        return
    current = store.control.rounds.get(run, header.round)
    for own, _, _ in group_sum.headers(header):
        receipt = receipt_of(own, "late", f"round {header.round} had ended", key)
        if current is None:
            store.control.receipts.count_late(run, header.round, own.client)
        elif own.client in current.cohort:
            store.control.receipts.add(run, header.round, own.client, receipt, None)


def was_merged(store: Store, run: str, header: Header) -> bool:
    """Whether a later asynchronous round has merged an update that is pushed once more."""
    begun, state = store.control.rounds.get(run, header.round), store.control.runs.get(run)
    if begun is None or not begun.is_async or state is None:
        return False
    found = (
        store.control.receipts.of_round(run, number).get(header.client)
        for number in range(header.round + 1, state.round + 1)
    )
    return any(known is not None and known.is_in and known.token == header.token for known in found)


def drain(store: Store, state: RunState) -> int:
    """
    Remove what lies in the results list of a run that is not training: all its rounds have ended.

    Each update is recorded before it is removed, so a killed healer leaves nothing unrecorded, and
    what it does twice is done once. Of garbage the first ones have an event, and the rest one event.

    Returns:
        How many elements were removed.
    """
    removed, refused, reason = 0, 0, ""
    gate: MessageAuthenticator | None = None
    until = time.monotonic() + _AT_ONCE_S
    while (
        time.monotonic() < until and (element := store.data.results.peek(state.run_id)) is not None
    ):
        try:
            if gate is None:
                security = current_config(store, state.run_id).security
                said = security["require_enrolment"]
                required = store.control.enrolments.pins.required(state.run_id, said)
                gate = MessageAuthenticator(store.control, state.run_id, required)
            gate.forget()
            opened = gate.open(element)
            header = opened.header
            if header.round > state.round:
                again = store.control.runs.get(state.run_id)
                if again is None or again.active:
                    break  # Somebody has started the run again since we looked.
                raise MessageError(f"{header.client}: round {header.round} has not been opened")
            record(store, state.run_id, header, opened.key)
            drop_chunks(store, state.run_id, header)
            sent = admission.permission(header.token, header.body_bytes)
            store.data.admission.release(state.run_id, [(header.client, sent)])
        except MessageError as exc:
            refused, reason = refused + 1, exc.reason
            if refused <= rejections.TOLD:
                told = rejections.event(state.round, rejections.UNKNOWN, "invalid", reason)
                store.control.events.add(state.run_id, told)
        store.data.results.remove(state.run_id, element)
        removed += 1
    if refused > rejections.TOLD:
        summed = rejections.sum_event(state.round, rejections.UNKNOWN, Refusals(refused, reason))
        store.control.events.add(state.run_id, summed)
    return removed


def drop_chunks(store: Store, run: str, header: Header) -> None:
    """Remove the chunks of an element that is not wanted any more."""
    # By its name alone: chunks of a model, or another client's, cannot be meant.
    if header.chunk_bytes:
        count = chunk_count(header.body_bytes, header.chunk_bytes)
        blob_name = keyspace.update_blob(header.client, run, header.body_digest)
        store.data.chunks.drop(blob_name, count, all_of_them=False)
