"""
Clients that train nothing: one process holds their leases and pushes their updates.

They measure the cost of hundreds of clients for servers and workers, which are real.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from blake3 import blake3

from fl_queue.client import outbox
from fl_queue.client.outbox import SendOptions
from fl_queue.coordinator.rounds.runs import current_config
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest
from fl_queue.store import RoundState, Store, keyspace, queries

#: No process extends these leases.
LEASE_S = 3600.0
#: So that the clients are still eligible then.
OVERRIDES = (f"clients.active_s={LEASE_S}",)
_KINDS = {"train": "update", "evaluate": "evaluation"}
_LISTEN_MS = 200


class Fakes:
    """
    Clients without processes: this object holds their leases and sends their answers.

    Args:
        store: Both servers of the federation.
        count: Clients ``fake-0001`` and so on.
    """

    def __init__(self, store: Store, count: int) -> None:
        self.store = store
        self.token = secrets.token_hex(8)
        self.clients = [f"fake-{number + 1:04d}" for number in range(count)]
        self._body = np.zeros(0, np.float32)

    def hold(self) -> None:
        """Take every client's lease."""
        for client in self.clients:
            lease = keyspace.client_holder(client)
            if not self.store.control.leases.hold(lease, self.token, LEASE_S, {}):
                raise RuntimeError(f"another worker serves {client}")

    def leave(self) -> None:
        """Give the leases back: later rounds do not have these clients."""
        for client in self.clients:
            self.store.control.leases.release(keyspace.client_holder(client), self.token, client)

    def answer(self, run: str, number: int, clients: Sequence[str] | None = None) -> None:
        """
        Answer a round for its cohort, one client after the other, as fast as the servers take it.

        Args:
            clients: Only for these.
        """
        current = self.store.control.rounds.get(run, number)
        manifest = self.store.control.versions.manifest(run)
        if current is None or manifest is None or current.purpose not in _KINDS:
            return  # Version 0 is the evaluator's work.
        for client in clients if clients is not None else current.cohort:
            self.push(run, current, *self.element(run, current, manifest, client))

    def push(self, run: str, current: RoundState, header: Header, body: memoryview) -> None:
        """Push an answer as a client does."""
        redis = current_config(self.store, run, current.segment).redis
        outbox.push(
            self.store,
            header,
            body,
            SendOptions(
                redis.inline_bytes,
                redis.chunk_bytes,
                redis.unmerged_bytes,
                rivals=current.cohort,
            ),
            partial(queries.has_ended, self.store.control, run, current.number, header.client),
        )

    def element(
        self, run: str, current: RoundState, manifest: Manifest, client: str
    ) -> tuple[Header, memoryview]:
        """
        A client's answer to a round: header, and body in memory that the next answer uses again.

        Every body is different: equal ones would be the same chunks.
        """
        header = Header(
            kind=_KINDS[current.purpose],
            run=run,
            round=current.number,
            client=client,
            base_version=current.base_version,
            base_digest=current.base_digest,
            token=secrets.token_hex(8),
        )
        if header.kind == "evaluation":
            return header, memoryview(b"")
        if self._body.nbytes != manifest.nbytes:
            self._body = np.full(manifest.nbytes // 4, 0.001, np.float32)
        self._body[0] = int.from_bytes(os.urandom(3), "little") * 2.0**-24
        body = self._body.data.cast("B")
        whole = replace(
            header,
            num_examples=4,
            tensors=tensor_layout.entries(manifest),
            body_bytes=len(body),
            body_digest=blake3(body).hexdigest(),
        )
        return whole, body

    def serve(self, run: str) -> None:
        """Answer every round of a run until it has ended, in a thread of its own."""
        threading.Thread(target=self._serve, args=(run,), name=f"fakes-{run}", daemon=True).start()

    def _serve(self, run: str) -> None:
        stream, last = keyspace.events(run), "0-0"
        while not queries.is_over(self.store.control, run):
            for _, stamp, event in self.store.control.events.read({stream: last}, _LISTEN_MS):
                last = stamp
                if event["event"] == "round_opened":
                    self.answer(run, event["round"])
