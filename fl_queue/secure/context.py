"""
The context of a secure round: 32 bytes to which every key, mask, share and signature of it is bound.

Two sites that are shown different models, configs, cohorts or scales have different contexts, so their masks
do not cancel, and their signatures do not pass for each other's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fl_queue.aggregation.scales import Scale
from fl_queue.common.safe_json import dumps
from fl_queue.common.seeding import joined
from fl_queue.protocol.manifest import Manifest

CONTEXT_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class RoundView:
    """
    A secure round as one party sees it. Digests are lower-case hexadecimal.

    Args:
        run, number, purpose: Of the round.
        fetched: Digest of the base version as it was fetched: of its bytes, not a field of the round.
        base_version: Number of that version.
        config: SHA-256 of the recorded segment's JSON.
        layout: See ``layout_digest``.
        bits: Of the ring.
        threshold: Shares that rebuild a secret.
        degree: Neighbours of each client in the cohort's graph.
        min_cohort: Fewest survivors of which the sum may be known.
        run_keys: Client of the cohort -> its public run key, 32 bytes.
    """

    run: str
    number: int
    purpose: str
    fetched: str
    base_version: int
    config: str
    layout: str
    bits: int
    threshold: int
    degree: int
    min_cohort: int
    run_keys: Mapping[str, bytes]

    @property
    def cohort(self) -> tuple[str, ...]:
        """The clients, sorted."""
        return tuple(sorted(self.run_keys))

    def digest(self) -> bytes:
        """The context, 32 bytes; another one for any other field."""
        keys = (part for id_ in self.cohort for part in (id_, self.run_keys[id_].hex()))
        return hashlib.sha256(
            joined(
                "fl-queue secure v1",
                self.run,
                self.number,
                self.purpose,
                self.fetched,
                self.base_version,
                self.config,
                self.layout,
                self.bits,
                self.threshold,
                self.degree,
                self.min_cohort,
                *keys,
            )
        ).digest()


def layout_digest(
    sent: Manifest,
    scales: Mapping[str, Scale],
    w_max: int,
    quorum: int,
    tail: Sequence[tuple[str, int]],
    states: Mapping[str, str],
) -> str:
    """
    SHA-256, hexadecimal, of everything that decides what the numbers of a masked vector mean.

    Args:
        sent: Tensors of an update.
        scales: Quantity -> its fixed-point format.
        w_max: Largest weight.
        quorum: Fewest survivors with which the round may end.
        tail: Name and number of words of each part of the vector's tail, in order.
        states: Name -> digest of each server state that clients fetch.
    """
    text = dumps(
        {
            "sent": sent.to_json(),
            "scales": {name: scale.to_list() for name, scale in scales.items()},
            "w_max": w_max,
            "quorum": quorum,
            "tail": [[name, words] for name, words in tail],
            "states": dict(states),
        }
    )
    return hashlib.sha256(text.encode()).hexdigest()


def text_digest(text: str) -> str:
    """SHA-256 of a text, hexadecimal: that of a recorded segment's JSON is the context's ``config``."""
    return hashlib.sha256(text.encode()).hexdigest()


def run_key_statement(run: str, client: str, key: bytes) -> bytes:
    """The bytes that a client signs for its public run key."""
    return b"".join((b"fl-queue run key v1\0", run.encode(), b"\0", client.encode(), b"\0", key))


def mask_key_statement(context: bytes, client: str, key: bytes) -> bytes:
    """The bytes that a client signs for its public mask key."""
    return b"".join((b"fl-queue mask key v1\0", context, client.encode(), b"\0", key))


def confirm_statement(context: bytes, survivors: str) -> bytes:
    """The bytes that a client signs for a list of survivors. Args: ``survivors``: the record's digest, hexadecimal."""
    return b"".join((b"fl-queue confirm v1\0", context, bytes.fromhex(survivors)))
