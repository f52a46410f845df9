"""
Record updates that come after their round has ended; they are never merged.

While a run is training, its aggregator does this; once the run has ended, the healer does.
"""

from __future__ import annotations

import time

from fl_queue.aggregation import group_sum
from fl_queue.coordinator.aggregator import rejections
from fl_queue.coordinator.aggregator.authentication import (
    AuthenticatedMessage,
    MessageAuthenticator,
)
from fl_queue.coordinator.aggregator.verdicts import make_receipt
from fl_queue.coordinator.rounds.runs import current_config
from fl_queue.errors import MessageError
from fl_queue.protocol.header import Header, chunk_count
from fl_queue.protocol.records import Refusals, Verdict
from fl_queue.store import RunState, Store, admission, keyspace
from fl_queue.store.control.stages import KINDS

#: Longest time for one run in one call, seconds: the healer has other runs to look at.
_MAX_DRAIN_S = 0.5


def record(store: Store, run: str, header: Header, key: str = "") -> None:
    """
    Write the receipts of a late message; an update that was received in time keeps its receipt.

    Args:
        key: Fingerprint of the key that signed it.
    """
    if header.kind in KINDS or was_merged(store, run, header):
        return  # Of a secure round: it had enough of them.
    current = store.control.rounds.get(run, header.round)
    for own, _, _ in group_sum.headers(header):
        receipt = make_receipt(own, Verdict.late, f"round {header.round} had ended", key)
        if current is None:
            store.control.receipts.count_late(run, header.round, own.client)
        elif own.client in current.cohort:
            store.control.receipts.add(run, header.round, own.client, receipt, None)


def was_merged(store: Store, run: str, header: Header) -> bool:
    """Whether a later asynchronous round has merged an update that is pushed once more."""
    origin, state = store.control.rounds.get(run, header.round), store.control.runs.get(run)
    if origin is None or not origin.is_async or state is None:
        return False
    found = (
        store.control.receipts.of_round(run, number).get(header.client)
        for number in range(header.round + 1, state.round + 1)
    )
    return any(known is not None and known.is_in and known.token == header.token for known in found)


class _RunRestarted(Exception):
    """The run is training again: its aggregator processes the rest."""


class _ResultsDrain:
    """Removes the messages of one run that is not training."""

    def __init__(self, store: Store, state: RunState) -> None:
        self._store, self._state, self._run = store, state, state.run_id
        self._authenticator: MessageAuthenticator | None = None
        self._refused, self._reason = 0, ""

    def process(self, element: bytes) -> None:
        """Record a message and remove it. Raises: _RunRestarted."""
        try:
            self._record(self._open(element))
        except MessageError as exc:
            self._count_refused(exc.reason)
        self._store.data.results.remove(self._run, element)

    def _open(self, element: bytes) -> AuthenticatedMessage:
        if self._authenticator is None:
            security = current_config(self._store, self._run).security
            required = self._store.control.enrolments.pins.required(
                self._run, security.require_enrolment
            )
            self._authenticator = MessageAuthenticator(self._store.control, self._run, required)
        self._authenticator.forget()
        return self._authenticator.open(element)

    def _record(self, opened: AuthenticatedMessage) -> None:
        header = opened.header
        if header.round > self._state.round:
            state = self._store.control.runs.get(self._run)
            if state is None or state.active:
                raise _RunRestarted
            raise MessageError(f"{header.client}: round {header.round} has not been opened")
        record(self._store, self._run, header, opened.key)
        drop_chunks(self._store, self._run, header)
        sent = admission.permission(header.token, header.body_bytes)
        self._store.data.admission.release(self._run, [(header.client, sent)])

    def _count_refused(self, reason: str) -> None:
        self._refused, self._reason = self._refused + 1, reason
        if self._refused <= rejections.MAX_EVENTS:
            event = rejections.event(self._state.round, rejections.UNKNOWN, Verdict.invalid, reason)
            self._store.control.events.add(self._run, event)

    def finish(self) -> None:
        """Add one event for all refused messages that have none."""
        if self._refused > rejections.MAX_EVENTS:
            refusals = Refusals(self._refused, self._reason)
            event = rejections.total_event(self._state.round, rejections.UNKNOWN, refusals)
            self._store.control.events.add(self._run, event)


def drain(store: Store, state: RunState) -> int:
    """
    Remove the messages in the results list of a run that is not training: all its rounds have ended.

    Each update is recorded before it is removed, so a kill loses no record, and doing it twice has the
    effect of once. The first refused messages have an event each, the rest have one in common.

    Returns:
        How many messages were removed.
    """
    removed, results = 0, _ResultsDrain(store, state)
    until = time.monotonic() + _MAX_DRAIN_S
    while (
        time.monotonic() < until and (element := store.data.results.peek(state.run_id)) is not None
    ):
        try:
            results.process(element)
        except _RunRestarted:
            break
        removed += 1
    results.finish()
    return removed


def drop_chunks(store: Store, run: str, header: Header) -> None:
    """Remove the chunks of a message that is not needed any more."""
    # Named by client, run and digest: it cannot be a model's chunks, or another client's.
    if header.chunk_bytes:
        count = chunk_count(header.body_bytes, header.chunk_bytes)
        blob_name = keyspace.update_blob(header.client, run, header.body_digest)
        store.data.chunks.drop(blob_name, count, all_of_them=False)
