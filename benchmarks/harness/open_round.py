"""A run whose round 1 is open, without workers: the benchmark makes the updates and checks them itself."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.harness.federation import servers
from fl_queue.client import outbox
from fl_queue.client.outbox import SendOptions
from fl_queue.config import loading
from fl_queue.coordinator.aggregator.collector import RoundAggregator
from fl_queue.coordinator.aggregator.intake import UpdateIntake
from fl_queue.coordinator.aggregator.open_round import OpenRound
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.protocol import message, signing, tensor_layout
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.protocol.records import Enrolment
from fl_queue.store import Incarnation, RoundState, Store, keyspace

LEASE_S = 3600.0


class SignedRound:
    """
    A run of enrolled clients that has version 0, and round 1 open.

    Args:
        store: Both servers; they must be empty.
        folder: Receives checkpoints.
        keys: Client name -> secret key; all clients are in the cohort.
        size: Parameters of the model.
    """

    def __init__(self, store: Store, folder: Path, keys: Mapping[str, str], size: int) -> None:
        self.store, self.keys = store, keys
        self._folder, self._size = folder, size
        self._manifest = Manifest((TensorSpec("w", (size,), "parameter"),))
        for client in keys:
            store.control.leases.hold(keyspace.client_holder(client), "t", LEASE_S, {})
        overrides = (f"round.cohort={len(keys)}", "security.require_enrolment=true")
        self._config = loading.load("mnist-3v7", overrides, {})
        self.run = runs.start_run(store, "signed", self._config, 2).run_id
        self._advance()
        self._send_version_0()
        RoundAggregator(store, self.run, self.round.number, self._job(), folder).work()
        self._advance()

    @property
    def round(self) -> RoundState:
        """
        The run's newest round.

        Raises:
            RuntimeError: None is open.
        """
        state = self.store.control.runs.get(self.run)
        current = self.store.control.rounds.get(self.run, state.round) if state else None
        if current is None:
            raise RuntimeError(f"run {self.run} has no open round")
        return current

    def element(self, client: str, /, **changes: object) -> bytes:
        """Unsigned update of a client, as one element with its body inline."""
        draw = np.random.default_rng(ord(client[0]))
        body = draw.standard_normal(self._size, "<f4").tobytes()
        header = self._header("update", client, body)
        return message.pack(replace(header, **changes), body)  # type: ignore[arg-type]

    def seal(self, client: str, element: bytes) -> bytes:
        """Sign an element with the key of a client."""
        return signing.seal(element, client, self.keys[client])

    def intake(self) -> UpdateIntake:
        """Claim the round for a new aggregator incarnation."""
        token, number = f"incarnation-{secrets.token_hex(4)}", self.round.number
        fence = self.store.control.rounds.claim(self.run, number, self._job(), token)
        self.store.data.taken.own(self.run, fence, token)
        # No process extends this lease.
        self.store.data.redis.expire(keyspace.owner(self.run, fence), int(LEASE_S))
        incarnation = Incarnation(self.run, number, fence, token)
        current = OpenRound(self.store, incarnation, self.round, self._config)
        made = UpdateIntake(current, self._folder)
        made.resume()
        return made

    def _job(self) -> str:
        jobs = self.store.control.rounds.jobs(self.run, self.round.number)
        return str(jobs["aggregator"]["job"])

    def _advance(self) -> None:
        # Skip the wait for clients that follows a long silence: no lease here ends.
        self.store.control.redis.hset(keyspace.CLOCK, "settling_s", 0)
        lifecycle.advance(self.store, self.run)

    def _send_version_0(self) -> None:
        body, client = bytes(self._manifest.nbytes), self.round.cohort[0]
        header = replace(self._header("model", client, body), manifest=self._manifest.to_json())
        redis = self._config.redis
        options = SendOptions(
            redis.inline_bytes,
            redis.chunk_bytes,
            0,
            lambda element: self.seal(client, element),
            self.round.cohort,
        )
        outbox.push(self.store, header, memoryview(body), options, lambda: False)

    def _header(self, kind: str, client: str, body: bytes) -> Header:
        return Header(
            kind=kind,
            run=self.run,
            round=self.round.number,
            client=client,
            base_version=self.round.base_version,
            base_digest=self.round.base_digest,
            token=f"token-{client}",
            num_examples=4,
            tensors=tensor_layout.entries(self._manifest),
            body_bytes=len(body),
            body_digest=tensor_layout.body_digest(body),
        )


@contextmanager
def signed_round(folder: Path, size: int) -> Iterator[SignedRound]:
    """Open a round of the enrolled clients ``a`` and ``b`` on private servers."""
    pairs = {client: signing.new_key() for client in "ab"}
    keys = {client: secret for client, (secret, _) in pairs.items()}
    with servers() as private, Store.open(private.url, private.blob_url, folder) as store:
        for client, (_, public) in pairs.items():
            store.control.enrolments.write(client, Enrolment(public))
        yield SignedRound(store, folder, keys, size)
