"""
What one aggregator incarnation has taken for its round: each element judged, the good ones merged.

Whatever is done here can be done again: receipts are rewritten, and elements and the checkpointed
sum are removed only by whoever owns the taken list.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fl_queue import (
    blob,
    dispatch,
    group,
    kept,
    late,
    metrics,
    names,
    outbox,
    partial,
    simulation,
)
from fl_queue.blob import Bytes
from fl_queue.config import RunConfig
from fl_queue.errors import BlobError, ChunksMissing, OwnershipLost
from fl_queue.gate import Forged, Gate
from fl_queue.header import Header
from fl_queue.late import receipt_of
from fl_queue.merge import Merge
from fl_queue.partial import Progress
from fl_queue.records import Manifest, Receipt
from fl_queue.store import RoundState, Store

#: The kind of element each purpose of a round wants.
_WANTED = {"train": "update", "evaluate": "evaluation", "initialise": "model"}


class Intake:
    """
    Args:
        store: Both servers.
        run: Run id.
        current: The round as it was claimed.
        config: The one in force for it.
        fence, token: The incarnation's.
        state_dir: This machine's folder; kept updates are below it.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        current: RoundState,
        config: RunConfig,
        fence: int,
        token: str,
        state_dir: Path,
    ) -> None:
        self.store, self.run, self.round, self.config = store, run, current, config
        self.fence, self.token, self.state_dir = fence, token, state_dir
        self.progress = Progress()
        self.initial: tuple[Manifest, Bytes] | None = None
        #: Elements on the taken list, and the headers of those that have one.
        self.looked_at = 0
        self.headers: list[Header] = []
        self._room = store.data.room(config.redis["unmerged_bytes"])
        required = config.security["require_enrolment"]
        self._gate = Gate(store.control, run, required)
        #: Client -> largest number of examples it was enrolled with; 0: any.
        self._most_examples: dict[str, int] = {}
        self._whole = bytearray()  # The update being looked at; the same memory for each.
        self.manifest = store.control.manifest(run)
        self.merge: Merge | None = None
        if self.manifest is not None and current.purpose == "train":
            self.merge = Merge.of_round(
                self.manifest, config, current.scales, current.w_max, state_dir / "gathered"
            )

    @property
    def number(self) -> int:
        return self.round.number

    @property
    def receipts(self) -> dict[str, Receipt]:
        """Client -> its receipt, the one that counts."""
        return self.progress.receipts

    def received(self) -> int:
        """Valid updates so far."""
        return sum(receipt.status == "received" for receipt in self.receipts.values())

    # Elements

    def look_at(self, element: bytes) -> None:
        """Decide on one element: write its receipt, and add it to the sum if it is good."""
        self.looked_at += 1
        try:
            header, body, enrolment = self._gate.open(element)
            if enrolment is not None:
                self._most_examples[header.client] = enrolment.max_examples
        except Forged as exc:
            self._refuse(exc)
            return
        except BlobError as exc:
            self._reject(exc.reason)
            return
        if header.round > self.number:
            self._check_open()  # When our round has ended, this one is somebody else's.
            self._reject(f"{header.client}: round {header.round} has not been opened")
            return
        self.headers.append(header)
        if header.round < self.number:
            late.record(self.store, self.run, header)
            return
        if header.kind == "group":
            self._look_at_group(header, body)
            return
        receipt = self._judge(header, body)
        if receipt is None:
            # Its chunks are gone: a new attempt of the client's job pushes them again.
            self.ask_again(header.client)
            return
        self._record(header.client, receipt)

    def _look_at_group(self, header: Header, body: memoryview) -> None:
        """Decide on the updates of several virtual clients, which came as their sum: all or none."""
        try:
            self._check_group(header)
            receipts = self._again(header) or self._add_group(header, body)
        except ChunksMissing as exc:
            self._reject(f"{header.client}: {exc.reason}; asked again")
            self.ask_again(header.client)
            return
        except BlobError as exc:
            self._reject(f"{header.client}: {exc.reason}")
            return
        for client, receipt in receipts.items():
            known = self.receipts.get(client)
            if known is None or known.status != "received":
                self.receipts[client] = receipt
        self.store.control.record_receipts(
            self.run, self.number, receipts, self.fence, header.client
        )

    def _check_group(self, header: Header) -> None:
        if header.run != self.run:
            raise BlobError(f"it is of run {header.run}")
        if (header.base_version, header.base_digest) != (
            self.round.base_version,
            self.round.base_digest,
        ):
            raise BlobError(f"made from version {header.base_version}")
        if self.round.purpose != "train":
            raise BlobError("a group came where the round wants none")
        group.check(header, self.round, self.config)

    def _again(self, header: Header) -> dict[str, Receipt]:
        """Receipts of those members of whom an update was received: then the whole sum is of no use."""
        return {
            own.client: receipt_of(
                own, "duplicate", "an update of this client was received already"
            )
            for own, _, _ in group.headers(header)
            if own.client in self.receipts and self.receipts[own.client].status == "received"
        }

    def _add_group(self, header: Header, body: memoryview) -> dict[str, Receipt]:
        assert self.merge is not None
        group.check_layout(header, self.merge)
        group.add(header, self._body(header, body), self.merge)
        receipts = {}
        for member, (own, status, reason) in zip(
            header.members, group.headers(header), strict=True
        ):
            receipts[own.client] = replace(receipt_of(own, status, reason), weight=member.weight)
            if status == "received":
                self.progress.validation[own.client] = own.metrics
                self.progress.training[own.client] = own.train_metrics
        return receipts

    def ask_again(self, who: str) -> None:
        """Publish a new attempt of somebody's job."""
        who = simulation.job_of(who, self.round.cohort, self.round.groups)
        ticket = dispatch.tickets(self.store, self.run, self.number).get(who)
        if ticket is not None:
            dispatch.replace(self.store, names.round_jobs(self.run, self.number), who, ticket)

    def _check_open(self) -> None:
        current = self.store.control.round(self.run, self.number)
        if current is None or not current.open:
            raise OwnershipLost(f"run {self.run}: round {self.number} was ended by somebody else")

    def _record(self, client: str, receipt: Receipt) -> None:
        known = self.receipts.get(client)
        if client in self.round.cohort and (known is None or known.status != "received"):
            self.receipts[client] = receipt
        self.store.control.write_receipt(self.run, self.number, client, receipt, self.fence)

    def _reject(self, reason: str) -> None:
        self.store.control.add_event(self.run, late.rejected_event(self.number, reason))

    def _refuse(self, forged: Forged) -> None:
        """Record what came in a client's name and not from it; the client itself is waited for."""
        who = forged.claimed
        if who not in self.round.cohort:
            self._reject(forged.reason)
            return
        receipt = Receipt("forged", forged.reason)
        self.store.control.write_receipt(self.run, self.number, who, receipt, self.fence)

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
        except ChunksMissing as exc:
            self._reject(f"{header.client}: {exc.reason}; asked again")
            return None
        except BlobError as exc:
            return receipt_of(header, "invalid", exc.reason)

    def _accept(self, header: Header, body: memoryview) -> Receipt:
        wanted = _WANTED[self.round.purpose]
        if header.kind != wanted:
            raise BlobError(f"a {header.kind} came where the round wants a {wanted}")
        metrics.check(header.metrics)
        metrics.check(header.train_metrics)
        most = self._most_examples.get(header.client, 0)
        if most and header.num_examples > most:
            raise BlobError(
                f"num_examples {header.num_examples} is more than the {most} it is enrolled with"
            )
        weight = 0
        if header.kind == "update":
            weight = self._add(header, body)
        elif header.kind == "model":
            self._take_initial(header, body)
        self.progress.validation[header.client] = header.metrics
        self.progress.training[header.client] = header.train_metrics
        return replace(receipt_of(header, "received", ""), weight=weight)

    def _add(self, header: Header, body: memoryview) -> int:
        """Validate an update and add it to the exact sum; returns its weight."""
        assert self.merge is not None
        self.merge.check(header)
        whole = self._body(header, body)
        weight = self.merge.add(header, whole)
        if self.config.model["keep_updates"]:
            kept.write(self.state_dir, header, whole)
        return weight

    def _take_initial(self, header: Header, body: memoryview) -> None:
        manifest = Manifest.from_json(header.manifest)
        blob.check_tensors(header, manifest)
        blob.check_size(manifest, self.config.model["max_bytes"])
        if header.chunk_bytes:
            # No manifest of ours says how large it may be: no memory for what is not there.
            self.store.data.check_chunks(
                names.update_blob(header.client, self.run, header.body_digest),
                header.body_bytes,
                header.chunk_bytes,
            )
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
            names.update_blob(header.client, self.run, header.body_digest),
            header.body_bytes,
            header.chunk_bytes,
            whole,
        )
        return whole

    # The checkpointed sum

    def resume(self) -> None:
        """Go on from the sum an earlier incarnation has checkpointed, if there is one."""
        if self.merge is None:
            return
        saved = partial.find(self.store, self.run, self.number)
        if not saved:
            return
        found = Progress.from_json(saved["progress"])
        # Before the sum is read: meanwhile the healer would have everybody asked again.
        self.store.control.write_receipts(self.run, self.number, found.written)
        try:
            partial.load(self.store, self.run, saved, self.merge.total)
        except BlobError:
            # The data server has lost it. Outboxes have the updates.
            partial.drop(self.store, self.run, self.number)
            self.store.control.forget_receipts(self.run, self.number)
            for client in self.round.cohort:
                self.ask_again(client)
            return
        self.progress = found
        self._forget_merged(found)

    def _forget_merged(self, found: Progress) -> None:
        """Remove what is left of updates in the sum, should its writer have been killed before it did."""
        redis = self.config.redis
        merged = {who: item for who, item in found.receipts.items() if item.status == "received"}
        for who, receipt in merged.items():
            if receipt.nbytes > redis["inline_bytes"]:
                count = blob.chunk_count(receipt.nbytes, redis["chunk_bytes"])
                self.store.data.drop_chunks(names.update_blob(who, self.run, receipt.digest), count)
        self.store.data.dismiss(
            self.run,
            (
                (who, outbox.permission(receipt.token, receipt.nbytes))
                for who, receipt in merged.items()
            ),
            self.number,
        )

    def is_full(self) -> bool:
        """Whether what lies on the server unmerged, and what is to come, is more than it may be."""
        if self.merge is None or not self.merge.is_resumable:
            return False
        size = max((header.body_bytes for header in self.headers), default=0)
        lying = sum(header.body_bytes for header in self.headers)
        to_come = (len(self.round.cohort) - len(self.receipts)) * size
        most = self._room
        # Half: the other half is for updates on their way.
        return lying >= most // 2 and lying + to_come > most

    def checkpoint(self) -> None:
        """
        Put the sum so far on the server in place of its updates, if a sum is what is needed of them.

        Raises:
            OwnershipLost: Another incarnation has taken over.
        """
        if self.merge is None or not self.merge.is_resumable or not self.looked_at:
            return
        self.progress.written = self.store.control.receipts(self.run, self.number)
        if not partial.save(
            self.store,
            self.run,
            self.number,
            self.fence,
            self.token,
            self.looked_at,
            self.merge.total,
            self.progress,
            self.config.redis["chunk_bytes"],
        ):
            raise OwnershipLost(f"run {self.run}: incarnation {self.fence} was replaced")
        self.looked_at = 0
        self._drop_chunks(self.number)

    def clean_up(self) -> None:
        """The round has ended: remove what was taken for it."""
        # Elements last: killed before that, whoever gets them next finds what else to remove.
        self._drop_chunks()
        self.store.data.forget_turns(self.run, self.number)
        partial.drop(self.store, self.run, self.number)
        self.store.data.discard(self.run, self.fence, self.token, self.looked_at)

    def _drop_chunks(self, number: int = 0) -> None:
        """Args: ``number``: the round, if it goes on, and they are in the sum."""
        for header in self.headers:
            late.drop_chunks(self.store, self.run, header)
        for is_late in (False, True):
            self.store.data.dismiss(
                self.run,
                (
                    (header.client, outbox.permission(header.token, header.body_bytes))
                    for header in self.headers
                    if (header.round < self.number) == is_late
                ),
                # A late one is no turn in this round.
                0 if is_late else number,
            )
        self.headers.clear()
