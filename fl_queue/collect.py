"""
An aggregator's work on one open round: take, validate, add to the exact sum, close.

One ``Collector`` is one incarnation: it holds a fence on the control server and a taken list on the
data server, and everything it does is refused once another one has replaced it. Nothing it has
taken is removed before the round has ended.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from fl_queue import (
    blob,
    checkpoint,
    dispatch,
    faults,
    kept,
    late,
    metrics,
    models,
    names,
    rounds,
    scores,
)
from fl_queue.blob import Bytes, Header, Tensor
from fl_queue.checkpoint import Body
from fl_queue.errors import (
    BlobError,
    CheckpointError,
    ChunksMissing,
    OwnershipLost,
    StoreUnavailable,
)
from fl_queue.files import Mapped
from fl_queue.late import LARGEST_MODEL_BYTES, receipt_of
from fl_queue.merge import Merge
from fl_queue.records import Manifest, Receipt, RoundRecord, Sums
from fl_queue.rounds import Ending, closing_rule
from fl_queue.runs import current_config
from fl_queue.store import Store

log = logging.getLogger(__name__)

#: Longest wait for an element; the closing rule and our ownership are looked at in between.
TAKE_S = 1.0
EXTEND_S = 1.5
#: A round that has had nothing to take for this long gives way to a waiting one.
YIELD_AFTER_S = 2.0


class Lease:
    """Extends an incarnation's lease from a thread, so that a long merge does not lose it."""

    def __init__(self, store: Store, run: str, fence: int, token: str) -> None:
        self._store, self._run, self._fence, self._token = store, run, fence, token
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{run}-{fence}", daemon=True)

    def __enter__(self) -> Lease:
        self._store.data.own(self._run, self._fence, self._token)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Raises OwnershipLost once the lease could not be extended."""
        if self._lost.is_set():
            raise OwnershipLost(
                f"run {self._run}: incarnation {self._fence} was replaced, or the data server restarted"
            )

    def _keep(self) -> None:
        while not self._stop.wait(EXTEND_S):
            try:
                self._store.data.extend(self._run, self._fence, self._token)
            except (OwnershipLost, StoreUnavailable):
                self._lost.set()
                return


class Collector:
    """
    One incarnation on one round.

    Args:
        store: Both servers.
        run: Run id.
        number: Round.
        job: Id of the RQ job this is; only the round's newest aggregator job may claim it.
        state_dir: This machine's folder; checkpoints are below it.
    """

    def __init__(self, store: Store, run: str, number: int, job: str, state_dir: Path) -> None:
        self.store, self.run, self.number, self.job = store, run, number, job
        self.state_dir = state_dir
        self.token = secrets.token_hex(8)
        self.receipts: dict[str, Receipt] = {}
        self.validation: dict[str, Sums] = {}
        self.training: dict[str, Sums] = {}
        self.initial: tuple[Manifest, Bytes] | None = None
        self.base: Mapped | Body | None = None
        self._whole = bytearray()  # The update being looked at; the same memory for each.
        self.looked_at = 0
        self.headers: list[Header] = []
        self.quorum_at_s: float | None = None

    def work(self) -> str:
        """
        Collect until the round ends, then advance the run.

        Returns:
            What happened, for the log.

        Raises:
            OwnershipLost: Another incarnation has taken over; nothing was lost.
            CheckpointError: The new version cannot be written; the round stays open.
        """
        self.fence = self.store.control.claim(self.run, self.number, self.job)
        if not self.fence:
            rounds.advance(self.store, self.run)
            return "nothing to do"
        faults.reach("aggregator.claimed")
        self._load()
        with Lease(self.store, self.run, self.fence, self.token) as self.lease:
            try:
                ending = self._collect()
                if ending is None:
                    return self._make_way()
                return self._close(ending)
            finally:
                self._leave()

    def _load(self) -> None:
        current = self.store.control.round(self.run, self.number)
        if current is None:
            raise OwnershipLost(f"run {self.run}: round {self.number} is gone")
        self.round = current
        self.config = current_config(self.store, self.run, current.segment)
        self.manifest = self.store.control.manifest(self.run)
        self.quorum_at_s = current.quorum_at_s
        if self.manifest is not None and current.purpose == "train":
            self.merge = Merge(
                self.manifest, self.config.aggregation, current.scales, current.w_max
            )
            # Now, while clients train; what is not there yet may be so by the commit.
            with suppress(ChunksMissing, CheckpointError):
                self.base = self._open_base()

    # Collecting

    def _collect(self) -> Ending | None:
        """Take elements until the closing rule holds; None to make way for a waiting round."""
        idle_since = time.monotonic()
        while True:
            self.lease.check()
            ending = self._ending(drained=False)
            if ending is not None:
                return ending
            element = self.store.data.take(self.run, self.fence, TAKE_S)
            if element is not None:
                faults.reach("update.taken")
                self.looked_at += 1
                self._look_at(element)
                faults.reach("update.received")
                idle_since = time.monotonic()
                continue
            ending = self._ending(drained=True)
            if ending is not None:
                return ending
            if time.monotonic() - idle_since > YIELD_AFTER_S and dispatch.waiting(
                self.store, names.AGGREGATE_QUEUE
            ):
                return None

    def _ending(self, drained: bool) -> Ending | None:
        received = sum(receipt.status == "received" for receipt in self.receipts.values())
        tickets = dispatch.tickets(self.store, self.run, self.number) if self._is_doubtful() else {}
        pending = sum(
            not dispatch.has_answered(self.store, self.receipts.get(client), tickets.get(client))
            for client in self.round.cohort
        )
        if not drained and (pending or received < self.round.quorum):
            return None  # Look at all that has arrived before asking the clock.
        elapsed_s = self._elapsed()
        if received >= self.round.quorum and self.quorum_at_s is None:
            self.quorum_at_s = elapsed_s
            self.store.control.set_quorum_at(self.run, self.number, elapsed_s)
        return closing_rule(self.round, received, pending, elapsed_s, self.quorum_at_s, drained)

    def _is_doubtful(self) -> bool:
        """Whether an element that answers nothing has come in a client's name."""
        return any(not receipt.answers for receipt in self.receipts.values())

    def _elapsed(self) -> float:
        elapsed_s = self.store.control.tick_round(self.run, self.number)
        if elapsed_s is None:
            raise OwnershipLost(f"run {self.run}: round {self.number} was ended by somebody else")
        return elapsed_s

    def _look_at(self, element: bytes) -> None:
        """Decide on one element: write its receipt, and add it to the sum if it is good."""
        try:
            header, body = blob.unpack(element, max_body_bytes=LARGEST_MODEL_BYTES)
        except BlobError as exc:
            self._reject(exc.reason)
            return
        if header.round > self.number:
            self._elapsed()  # Raises when our round has ended: then this one is somebody else's.
            self._reject(f"{header.client}: round {header.round} has not been opened")
            return
        self.headers.append(header)
        if header.round < self.number:
            late.record(self.store, self.run, header)
            return
        receipt = self._judge(header, body)
        if receipt is None:
            # Its chunks are gone: a new attempt of the client's job pushes them again.
            self._replace_job(header.client)
            return
        self._record(header.client, receipt)

    def _record(self, client: str, receipt: Receipt) -> None:
        known = self.receipts.get(client)
        if client in self.round.cohort and (known is None or known.status != "received"):
            self.receipts[client] = receipt
        self.store.control.write_receipt(self.run, self.number, client, receipt, self.fence)

    def _reject(self, reason: str) -> None:
        self.store.control.add_event(self.run, late.rejected_event(self.number, reason))

    def _judge(self, header: Header, body: memoryview) -> Receipt | None:
        """The receipt of an element of this round; None when its chunks are not there."""
        known = self.receipts.get(header.client)
        if header.run != self.run:
            return receipt_of(header, "invalid", f"it is of run {header.run}")
        if header.client not in self.round.cohort:
            return receipt_of(
                header, "invalid", f"{header.client} is not in the cohort of round {self.number}"
            )
        if known is not None and known.status == "received":
            return receipt_of(header, "duplicate", "an update of this client was received already")
        if (header.base_version, header.base_digest) != (
            self.round.base_version,
            self.round.base_digest,
        ):
            return receipt_of(
                header,
                "stale",
                f"made from version {header.base_version}, not {self.round.base_version}",
            )
        if header.kind == "failure":
            return receipt_of(header, "failed", header.reason)
        try:
            return self._accept(header, body)
        except ChunksMissing:
            return None
        except BlobError as exc:
            return receipt_of(header, "invalid", exc.reason)

    def _accept(self, header: Header, body: memoryview) -> Receipt:
        wanted = {"train": "update", "evaluate": "evaluation", "initialise": "model"}[
            self.round.purpose
        ]
        if header.kind != wanted:
            raise BlobError(f"a {header.kind} came where the round wants a {wanted}")
        metrics.check(header.metrics)
        metrics.check(header.train_metrics)
        weight = 0
        if header.kind == "update":
            weight = self._add(header, body)
        elif header.kind == "model":
            self._take_initial(header, body)
        self.validation[header.client] = header.metrics
        self.training[header.client] = header.train_metrics
        return replace(receipt_of(header, "received", ""), weight=weight)

    def _add(self, header: Header, body: memoryview) -> int:
        """Validate an update and add it to the exact sum; returns its weight."""
        assert self.manifest is not None
        blob.check_tensors(header, self.manifest)
        whole = self._body(header, body)
        weight = self.merge.add(header, whole)
        if self.config.model["keep_updates"]:
            kept.write(self.state_dir, header, whole)
        return weight

    def _take_initial(self, header: Header, body: memoryview) -> None:
        manifest = Manifest.from_json(header.manifest)
        blob.check_tensors(header, manifest)
        whole = self._body(header, body)
        blob.check_body(header, whole)
        self.initial = (manifest, whole)

    def _body(self, header: Header, body: memoryview) -> memoryview:
        if not header.chunk_bytes:
            return body
        if len(self._whole) != header.body_bytes:
            self._whole = bytearray(header.body_bytes)
        whole = memoryview(self._whole)
        self.store.data.read_chunks_into(
            self.run, header.body_digest, header.body_bytes, header.chunk_bytes, whole
        )
        return whole

    def _replace_job(self, who: str) -> None:
        ticket = dispatch.tickets(self.store, self.run, self.number).get(who)
        if ticket is not None:
            dispatch.replace(self.store, names.round_jobs(self.run, self.number), who, ticket)

    # Closing

    def _make_way(self) -> str:
        """Go to the end of the queue, so that a waiting round gets a turn; what was taken comes along."""
        self.store.data.disown(self.run, self.fence)
        self._replace_job(names.AGGREGATOR)
        return "made way for another round"

    def _close(self, ending: Ending) -> str:
        faults.reach("round.decided")
        record = self._make_record(ending)
        if ending.outcome in ("committed", "initialised"):
            answer = self._commit(ending, record)
        else:
            state = self.store.control.run(self.run)
            if state is None:
                raise OwnershipLost(f"run {self.run} is gone")
            answer = rounds.end(
                self.store,
                state,
                self.round,
                ending,
                record,
                self._final_receipts(ending),
                self.config,
                self.fence,
            )
        if answer != "ok":
            raise OwnershipLost(
                f"run {self.run}: round {self.number} was not ended by us: {answer}"
            )
        log.info("run=%s round=%s %s: %s", self.run, self.number, ending.outcome, ending.reason)
        faults.reach("round.committed")
        # The next round is opened first: its clients train while this one is cleaned up.
        rounds.advance(self.store, self.run)
        faults.reach("round.advanced")
        self._clean_up(record)
        return f"{ending.outcome}: {ending.reason}"

    def _commit(self, ending: Ending, record: RoundRecord) -> str:
        manifest, pieces, version = self._next_model()
        folder = models.checkpoint_folder(self.state_dir, self.run)
        metadata = {"run": self.run, "version": str(version), "round": str(self.number)}
        try:
            with checkpoint.drafted(folder, manifest, pieces, metadata) as draft:
                self._publish(draft)
                faults.reach("model.published")
                draft.keep()
        except CheckpointError as exc:
            event = {"event": "checkpoint_failed", "round": self.number, "reason": str(exc)}
            self.store.control.add_event(self.run, event)
            raise
        faults.reach("checkpoint.written")
        self.lease.check()
        first = ending.outcome == "initialised"
        return self.store.control.end_round(
            self.run,
            self.number,
            fence=self.fence,
            token=self.token,
            outcome="initialised" if first else "committed",
            reason=ending.reason,
            record=None if first else replace(record, version=version, digest=draft.digest),
            receipts=self._final_receipts(ending),
            max_abandoned=self.config.round["max_abandoned"],
            version=version,
            digest=draft.digest,
            manifest=manifest if first else None,
        )

    def _publish(self, draft: checkpoint.Draft) -> None:
        """Send the new version to the data server while the disk takes it for good."""
        with ThreadPoolExecutor(1) as other:
            syncing = other.submit(draft.sync)
            chunk_bytes = self.config.redis["chunk_bytes"]
            models.publish(self.store, self.run, draft.digest, draft.view, chunk_bytes)
            syncing.result()

    def _next_model(self) -> tuple[Manifest, Iterable[Bytes | Tensor], int]:
        if self.initial is not None:
            manifest, body = self.initial
            return manifest, [body], 0
        assert self.manifest is not None
        base = self.base or self._open_base()
        return self.manifest, self.merge.next_model(base.view), self.round.base_version + 1

    def _open_base(self) -> Mapped | Body:
        assert self.manifest is not None
        digest, chunk_bytes = self.round.base_digest, self.config.redis["chunk_bytes"]
        return models.base_body(
            self.store, self.run, digest, self.manifest, chunk_bytes, self.state_dir
        )

    def _final_receipts(self, ending: Ending) -> dict[str, Receipt]:
        if ending.outcome == "abandoned":
            return self.receipts
        return {
            client: replace(receipt, status="accepted") if receipt.status == "received" else receipt
            for client, receipt in self.receipts.items()
        }

    def _make_record(self, ending: Ending) -> RoundRecord:
        good = {
            client: receipt
            for client, receipt in sorted(self.receipts.items())
            if receipt.status == "received"
        }
        bad = {
            client: f"{receipt.status}: {receipt.reason}"
            for client, receipt in sorted(self.receipts.items())
            if receipt.status != "received"
        }
        return replace(
            rounds.base_record(self.round, ending, self._elapsed(), self.config),
            accepted={client: receipt.digest for client, receipt in good.items()},
            weights={client: receipt.weight for client, receipt in good.items()},
            rejected=bad,
            missing=[client for client in self.round.cohort if client not in self.receipts],
            validation=metrics.merge_fitting(self.validation),
            client_validation={client: dict(receipt.metrics) for client, receipt in good.items()},
            train=metrics.merge_fitting(self.training),
        )

    def _clean_up(self, record: RoundRecord) -> None:
        """The round has ended: what was taken for it goes, and what newer rounds superseded."""
        self.store.data.discard(self.run, self.fence, self.token, self.looked_at)
        faults.reach("round.discarded")
        for header in self.headers:
            late.drop_chunks(self.store, self.run, header)
        kept.keep_only(self.state_dir, self.run, self.number, record.accepted)
        rounds.clean_up(self.store, self.run, self.number)
        scores.prune_versions(self.store, self.run, self.config, self.state_dir)

    def _leave(self) -> None:
        """Give up ownership; anything still on our taken list goes back to the results list."""
        try:
            self.store.data.disown(self.run, self.fence)
        except StoreUnavailable as exc:
            # The lease runs out by itself and the healer moves the elements back.
            log.warning(
                "run=%s round=%s could not give up the taken list: %s", self.run, self.number, exc
            )
