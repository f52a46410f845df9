"""A run on real servers whose clients and aggregator are the test itself, one step at a time."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fl_queue.client import outbox
from fl_queue.client.outbox import SendOptions
from fl_queue.config import loading
from fl_queue.coordinator.aggregator.collection import TAKEN_AT_ONCE
from fl_queue.coordinator.aggregator.collector import RoundAggregator
from fl_queue.coordinator.aggregator.intake import UpdateIntake
from fl_queue.coordinator.aggregator.open_round import OpenRound
from fl_queue.coordinator.rounds import lifecycle, runs
from fl_queue.protocol import header, signing, tensor_layout
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.protocol.records import RoundRecord
from fl_queue.store import Incarnation, RoundState, RunState, Store, keyspace
from tests.fault.chaos.checks import data_leftovers

NAME = "by-hand"


class ManualRun:
    """
    A run with version 0, and round 1 open.

    Args:
        folder: For checkpoints.
        clients: All of them are in every cohort.
        size: Parameters of the model.
        overrides: Of the config.
        keys: Client -> secret key, of those that sign what they send.
        name: Of the run; `by-hand` unless it is given.
        ready: Stop before version 0 is made, of which the element has been sent, when this is False.
    """

    #: Float buffers of the model, with names before ``n``.
    buffers: tuple[TensorSpec, ...] = ()

    def __init__(
        self,
        store: Store,
        folder: Path,
        clients: Sequence[str],
        size: int,
        *overrides: str,
        keys: Mapping[str, str] | None = None,
        name: str = "",
        ready: bool = True,
    ) -> None:
        self.keys = dict(keys or {})
        self.store, self.folder, self.clients, self.size = store, folder, clients, size
        self.manifest = Manifest(
            (
                *self.buffers,
                TensorSpec("n", (1,), "integer_buffer"),
                TensorSpec("w", (size,), "parameter"),
            )
        )
        for client in clients:
            store.control.leases.hold(keyspace.client_holder(client), "t", 60, {})
        self.config = loading.load("mnist-3v7", (f"round.cohort={len(clients)}", *overrides), {})
        self.run = runs.start_run(store, name or NAME, self.config, 2).run_id
        self.advance()
        body = bytes(self.manifest.nbytes)
        first = self.header("model", self.round.cohort[0], body)
        self.send(replace(first, manifest=self.manifest.to_json()), body)
        if ready:
            self.work()

    @property
    def state(self) -> RunState:
        state = self.store.control.runs.get(self.run)
        assert state is not None
        return state

    @property
    def round(self) -> RoundState:
        current = self.store.control.rounds.get(self.run, self.state.round)
        assert current is not None
        return current

    @property
    def record(self) -> RoundRecord:
        """Of round 1, without its times."""
        history = self.store.control.history.records(self.run)
        record = next(record for record in history if record.round == 1)
        return replace(record, opened_at=0.0, elapsed_s=0.0)

    # Clients

    def header(self, kind: str, client: str, body: bytes, token: str = "") -> Header:
        return Header(
            kind=kind,
            run=self.run,
            round=self.round.number,
            client=client,
            base_version=self.round.base_version,
            base_digest=self.round.base_digest,
            token=token or f"token-{client}",
            num_examples=ord(client),
            metrics={"num_examples": 2, "loss_sum": ord(client) / 7},
            tensors=tensor_layout.entries(self.manifest),
            body_bytes=len(body),
            body_digest=tensor_layout.body_digest(body),
        )

    def send(self, header: Header, body: bytes, bound: int = 0) -> bool:
        """Push an answer as a client does, within a bound of bytes (0: none), until it is there."""
        redis = self.config.redis
        return outbox.push(
            self.store,
            header,
            memoryview(body),
            SendOptions(
                redis.inline_bytes,
                redis.chunk_bytes,
                bound,
                lambda element: self.seal(header.client, element),
                self.round.cohort,
            ),
            lambda: False,
        )

    def seal(self, client: str, element: bytes) -> bytes:
        """An element as its client sends it: signed, if it has a key."""
        secret = self.keys.get(client)
        return element if secret is None else signing.seal(element, client, secret)

    def body(self, client: str) -> bytes:
        """A client's update of the round: the same whenever it is asked."""
        draw = np.random.default_rng([ord(client), self.round.number])
        values = draw.standard_normal(self.size, "<f4")
        return np.array([ord(client)], "<i8").tobytes() + values.tobytes()

    def update(self, client: str, token: str = "", bound: int = 1 << 40) -> None:
        """Push a client's update."""
        body = self.body(client)
        assert self.send(self.header("update", client, body, token), body, bound)

    # Aggregators

    def job(self) -> str:
        """Id of the round's newest aggregator job."""
        job: str = self.store.control.rounds.jobs(self.run, self.round.number)["aggregator"]["job"]
        return job

    def intake(self) -> UpdateIntake:
        """A new incarnation, which owns the round from now on."""
        token = f"incarnation-{secrets.token_hex(4)}"
        fence = self.store.control.rounds.claim(self.run, self.round.number, self.job(), token)
        self.store.data.taken.own(self.run, fence, token)
        # No process extends this lease, and the machine may be slow.
        self.store.data.redis.expire(keyspace.owner(self.run, fence), 60)
        incarnation = Incarnation(self.run, self.round.number, fence, token)
        current = OpenRound(self.store, incarnation, self.round, self.config)
        made = UpdateIntake(current, self.folder)
        made.resume()
        return made

    def take(self, intake: UpdateIntake, count: int) -> None:
        """Take so many elements and look at them."""
        while count:
            elements = self.store.data.taken.take(
                self.run,
                intake.incarnation.fence,
                intake.incarnation.token,
                min(count, TAKEN_AT_ONCE),
            )
            assert elements
            for element in elements:
                intake.process(element)
            intake.settle()
            count -= len(elements)
        intake.receipt_log.rejections.flush(force=True)

    def work(self) -> str:
        """An aggregator's job, until it ends."""
        number = self.round.number
        answer = RoundAggregator(self.store, self.run, number, self.job(), self.folder).work()
        self.advance()
        return answer

    def advance(self) -> None:
        """Open what is due, however slow this machine is: after a long silence rounds wait until each client was seen again."""
        self.store.control.redis.hset(keyspace.CLOCK, "settling_s", 0)
        lifecycle.advance(self.store, self.run)

    # What is there

    def leftovers(self) -> dict[str, int]:
        """Keys on the data server but for models -> seconds they live; -1: for ever."""
        redis = self.store.data.redis
        versions = self.store.control.versions.all(self.run)
        keys = [line.split()[2] for line in data_leftovers(redis, self.run, versions)]
        return {key: redis.ttl(key) for key in keys}

    def partial_keys(self) -> set[str]:
        """What the checkpointed sum consists of."""
        saved = self.store.data.partial_sum.get(self.run)
        chunks = header.chunk_count(int(saved["nbytes"]), int(saved["chunk_bytes"]))
        return {
            keyspace.partial(self.run),
            *(
                keyspace.chunk(keyspace.partial_blob(self.run, saved["digest"]), index)
                for index in range(chunks)
            ),
        }
