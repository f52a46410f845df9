"""Receipts of messages: what the coordinator records of each update that it has judged."""

from __future__ import annotations

from dataclasses import replace

from fl_queue import metrics
from fl_queue.aggregation.merge import MergedUpdate
from fl_queue.common.safe_json import printable
from fl_queue.protocol.header import Header
from fl_queue.protocol.records import LOST, PER_SITE, Receipt, Verdict


def make_receipt(header: Header, status: Verdict, reason: str, key: str = "") -> Receipt:
    """Build the receipt of a message. Args: ``key``: fingerprint of the key that signed it."""
    received, is_shown = status == Verdict.received, header.environment.get(PER_SITE) != 0
    return Receipt(
        status=status,
        reason=printable(reason),  # A client may have written it, and a terminal shows it.
        token=header.token,
        digest=header.body_digest,
        num_examples=header.num_examples,
        metrics=metrics.finish(header.metrics) if received and is_shown else {},
        train_metrics=metrics.finish(header.train_metrics) if received else {},
        environment=header.environment,
        train_s=header.train_s,
        nbytes=header.body_bytes,
        key=key,
        state_lost=LOST in header.scalars,
    )


def with_merged(receipt: Receipt, merged: MergedUpdate) -> Receipt:
    """The receipt of an update that is in the sum, with its weight and its norm."""
    return replace(
        receipt,
        weight=merged.weight,
        norm=merged.norm,
        clipped=merged.clipped,
        counted=merged.counted,
    )
