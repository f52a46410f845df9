"""
What one aggregator incarnation has taken for its round: each element judged, the good ones merged.

Whatever is done here can be done again: receipts are rewritten, and elements and the checkpointed
sum are removed only by whoever owns the taken list. What is refused is counted (``rejected``); a
receipt of it is for those who are known to the run, and for the first of a kind only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fl_queue import metrics
from fl_queue.aggregation import group_sum
from fl_queue.aggregation.merge import MergedUpdate, UpdateMerger
from fl_queue.config.run_config import RunConfig
from fl_queue.coordinator.aggregator import partial_sum, rejections
from fl_queue.coordinator.aggregator.authentication import (
    AuthenticatedMessage,
    MessageAuthenticator,
)
from fl_queue.coordinator.aggregator.late_updates import receipt_of
from fl_queue.coordinator.aggregator.partial_sum import PartialRoundState
from fl_queue.coordinator.aggregator.receipts import ReceiptLog
from fl_queue.coordinator.aggregator.taken_list import TakenList
from fl_queue.errors import ContentMissing, ForgedMessage, MessageError, OwnershipLost
from fl_queue.models import update_archive
from fl_queue.protocol import header, identifiers, job_origins, message, virtual_clients
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import Receipt
from fl_queue.protocol.tensor_layout import Bytes
from fl_queue.store import RoundState, Store, admission, keyspace, queries
from fl_queue.store.jobs import dispatch

#: The kind of element each purpose of a round wants.
_WANTED = {"train": "update", "evaluate": "evaluation", "initialise": "model"}


class UpdateIntake:
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
        self.progress = PartialRoundState()
        self.initial: tuple[Manifest, Bytes] | None = None
        self.taken = TakenList(store, run, fence, token)
        self.books = ReceiptLog(store, run, current, fence)
        self._room = store.data.admission.room(config.redis["unmerged_bytes"])
        required = store.control.enrolments.pins.required(run, config.security["require_enrolment"])
        self._gate = MessageAuthenticator(store.control, run, required)
        self._whole = bytearray()  # The update being looked at; the same memory for each.
        self.manifest = store.control.versions.manifest(run)
        self.merge: UpdateMerger | None = None
        if self.manifest is not None and current.purpose == "train":
            self.merge = UpdateMerger.of_round(
                self.manifest,
                config,
                current.scales,
                current.w_max,
                state_dir / "gathered",
                current.discount,
            )

    @property
    def number(self) -> int:
        return self.round.number

    @property
    def receipts(self) -> dict[str, Receipt]:
        """Client -> its receipt, the one that counts."""
        return self.progress.receipts

    @property
    def left_out(self) -> list[str]:
        """Clients whose updates the round's rule did not choose, once the next model is made."""
        return list(self.merge.left_out) if self.merge is not None else []

    @property
    def next_exponent(self) -> int:
        """The exponent of the round after this one, of a strategy that has one."""
        merge = self.merge
        return merge.strategy.next_exponent(merge.total, self.round.exponent) if merge else 0

    def received(self) -> int:
        """Valid updates so far."""
        return sum(receipt.status == "received" for receipt in self.receipts.values())

    # Elements

    def look_at(self, element: bytes) -> bool:
        """Decide on the next element: write its receipt, and add it to the sum if it is good."""
        try:
            opened = self._gate.open(element)
        except ForgedMessage as exc:
            self.books.write_forged(exc)
            self.taken.refuse(None)
            return False
        except MessageError as exc:
            self.books.rejected.count(rejections.UNKNOWN, exc.reason, "invalid")
            self.taken.refuse(None)
            return False
        header, enrolment = opened.header, opened.enrolment
        who = rejections.sender(header.client, header.client if enrolment is not None else "")
        if enrolment is not None:
            self.books.know(header.client)
        if header.round == self.number or self._is_carried(header):
            return self._decide(opened, who)
        if header.round > self.number:
            self._check_open()  # When our round has ended, this one is somebody else's.
            reason = f"{header.client}: round {header.round} has not been opened"
            self.books.rejected.count(who, reason, "invalid")
            self.taken.refuse(None)
        else:
            self._refuse_past(header, who, opened.key)
            self.taken.refuse(header)
        return False

    def settle(self) -> None:
        """
        All that lies on the taken list has been looked at: remove what was refused, and count it.

        Raises:
            OwnershipLost: Another incarnation has taken over.
        """
        self.taken.settle()
        self.books.rejected.flush()
        self._gate.forget()

    def _decide(self, opened: AuthenticatedMessage, who: str) -> bool:
        """The same of an element of our round that is from whom it says."""
        header = opened.header
        try:
            look = self._look_at_group if header.kind == "group" else self._look_at_one
            is_in = look(opened, who)
        except ContentMissing as exc:
            # A new attempt of the client's job pushes them again; one that has not begun will, anyway.
            self.ask_again(header.client, unless_queued=True)
            reason = f"{header.client}: {exc.reason}; asked again"
            self.books.rejected.count(who, reason, "invalid")
            self.taken.refuse(None)
            return False
        if is_in:
            self.taken.keep(header)
        else:
            self.taken.refuse(header)
        return is_in

    def _look_at_one(self, opened: AuthenticatedMessage, who: str) -> bool:
        header = opened.header
        receipt = replace(self._judge(opened), key=opened.key)
        is_first = header.client not in self.receipts
        if header.client in self.books.cohort:
            self._remember(header.client, receipt)
        self.books.write(header.client, receipt, who, is_first)
        return receipt.is_in

    # Asynchronous rounds

    def _is_carried(self, header: Header) -> bool:
        """Whether an element answers the job of an earlier round that its client is at."""
        if header.client not in self.round.carried:
            return False
        return job_origins.begun(self.round, header.client).round == header.round

    def _refuse_past(self, header: Header, who: str, key: str) -> None:
        """An element whose round has ended, or whose job was given up. Args: ``key``: as in its receipt."""
        age = self.round.base_version - header.base_version
        most = self.config.round["max_staleness"]
        if self.round.is_async and age > most:
            reason = f"made from version {header.base_version}, {age} versions ago; round.max_staleness = {most}"
            self.books.write_late(header, who, key, "stale", reason)
        else:
            self.books.write_late(header, who, key)

    def _look_at_group(self, opened: AuthenticatedMessage, who: str) -> bool:
        """Decide on the updates of several virtual clients, which came as their sum: all or none."""
        header = opened.header
        try:
            self._check_group(header)
            again = self._again(header)
            receipts = again or self._add_group(header, opened.body)
        except MessageError as exc:
            self.books.rejected.count(who, f"{header.client}: {exc.reason}", "invalid")
            return False
        if again:
            self.books.rejected.count(who, "an update of a client in it was received already")
            receipts = {
                client: receipt
                for client, receipt in again.items()
                if self.books.is_news(client, receipt.status)
            }
        for client, receipt in receipts.items():
            self._remember(client, receipt)
        if receipts:
            self.store.control.receipts.add_many(
                self.run, self.number, receipts, self.fence, header.client
            )
        return not again

    def _check_group(self, header: Header) -> None:
        if header.run != self.run:
            raise MessageError(f"it is of run {header.run}")
        if (header.base_version, header.base_digest) != (
            self.round.base_version,
            self.round.base_digest,
        ):
            raise MessageError(f"made from version {header.base_version}")
        if self.round.purpose != "train":
            raise MessageError("a group came where the round wants none")
        group_sum.check(header, self.round, self.config)

    def _again(self, header: Header) -> dict[str, Receipt]:
        """Receipts of those members of whom an update was received: then the whole sum is of no use."""
        return {
            own.client: receipt_of(
                own, "duplicate", "an update of this client was received already"
            )
            for own, _, _ in group_sum.headers(header)
            if own.client in self.receipts and self.receipts[own.client].status == "received"
        }

    def _add_group(self, header: Header, body: memoryview) -> dict[str, Receipt]:
        assert self.merge is not None
        group_sum.check_layout(header, self.merge)
        group_sum.add(header, self._body(header, body), self.merge)
        receipts = {}
        for member, (own, status, reason) in zip(
            header.members, group_sum.headers(header), strict=True
        ):
            added = self.merge.added(member.weight, member.norm if member.weight else None)
            receipts[own.client] = _with(receipt_of(own, status, reason), added)
            if status == "received":
                self.progress.validation[own.client] = own.metrics
                self.progress.training[own.client] = own.train_metrics
        return receipts

    def ask_again(self, who: str, unless_queued: bool = False) -> None:
        """Publish a new attempt of somebody's job. Args: ``unless_queued``: not if one has not begun yet."""
        who = virtual_clients.job_of(who, self.round.cohort, self.round.groups)
        ticket = dispatch.tickets(self.store, self.run, self.number).get(who)
        if ticket is None or (unless_queued and dispatch.is_queued(self.store, ticket)):
            return
        dispatch.replace(self.store, keyspace.round_jobs(self.run, self.number), who, ticket)

    def _ask_all_again(self) -> None:
        """The same of everybody in the round but the aggregator."""
        tickets = dispatch.tickets(self.store, self.run, self.number)
        out = self.store.control.enrolments.revoked(tickets) | {identifiers.AGGREGATOR}
        asked = {who: ticket for who, ticket in tickets.items() if who not in out}
        dispatch.replace_all(self.store, keyspace.round_jobs(self.run, self.number), asked)

    def _check_open(self) -> None:
        current = self.store.control.rounds.get(self.run, self.number)
        if current is None or not current.open:
            raise OwnershipLost(f"run {self.run}: round {self.number} was ended by somebody else")

    def _remember(self, client: str, receipt: Receipt) -> None:
        """Keep a receipt, if it is the one that counts."""
        known = self.receipts.get(client)
        if known is None or (not known.is_in and (receipt.answers or not known.answers)):
            self.receipts[client] = receipt

    def _judge(self, opened: AuthenticatedMessage) -> Receipt:
        """The receipt of an element of this round; ContentMissing when its chunks are not there."""
        header = opened.header
        known = self.receipts.get(header.client)
        if header.run != self.run:
            return receipt_of(header, "invalid", f"it is of run {header.run}")
        if header.client not in self.books.cohort:
            return receipt_of(
                header, "invalid", f"{header.client} is not in the cohort of round {self.number}"
            )
        if known is not None and known.status == "received":
            return receipt_of(header, "duplicate", "an update of this client was received already")
        version, digest = queries.base_of(self.store, self.run, self.round, header.client)
        if (header.base_version, header.base_digest) != (version, digest):
            return receipt_of(
                header, "stale", f"made from version {header.base_version}, not {version}"
            )
        if header.kind == "failure":
            return receipt_of(header, "failed", header.reason)
        try:
            return self._accept(opened)
        except MessageError as exc:
            return receipt_of(header, "invalid", exc.reason)

    def _accept(self, opened: AuthenticatedMessage) -> Receipt:
        header = opened.header
        wanted = _WANTED[self.round.purpose]
        if header.kind != wanted:
            raise MessageError(f"a {header.kind} came where the round wants a {wanted}")
        metrics.check(header.metrics)
        metrics.check(header.train_metrics)
        added = MergedUpdate(0)
        if header.kind == "update":
            added = self._add(opened)
        elif header.kind == "model":
            if self.initial is not None:
                raise MessageError("another one of those who were asked has made version 0 already")
            self._take_initial(header, opened.body)
        self.progress.validation[header.client] = header.metrics
        self.progress.training[header.client] = header.train_metrics
        staleness = self.round.base_version - header.base_version
        return replace(_with(receipt_of(header, "received", ""), added), staleness=staleness)

    def _add(self, opened: AuthenticatedMessage) -> MergedUpdate:
        """Validate an update and add it to the exact sum."""
        assert self.merge is not None
        header, enrolment = opened.header, opened.enrolment
        self.merge.check(header)
        whole = self._body(header, opened.body)
        most = enrolment.max_examples if enrolment is not None else 0
        added = self.merge.add(header, whole, most, self.round.base_version - header.base_version)
        if self.config.model["keep_updates"]:
            proof = None
            if opened.sealed is not None and enrolment is not None:
                proof = update_archive.Proof(opened.sealed, enrolment)
            update_archive.write(self.state_dir, header, whole, self.number, proof)
        return added

    def _take_initial(self, header: Header, body: memoryview) -> None:
        manifest = message.initial_manifest(header, self.config.model["max_bytes"])
        if header.chunk_bytes:
            # No manifest of ours says how large it may be: no memory for what is not there.
            self.store.data.chunks.check(
                keyspace.update_blob(header.client, self.run, header.body_digest),
                header.body_bytes,
                header.chunk_bytes,
            )
        whole = self._body(header, body)
        message.check_body(header, whole)
        self.initial = (manifest, whole)

    def _body(self, header: Header, body: memoryview) -> memoryview:
        if not header.chunk_bytes:
            return body
        if len(self._whole) != header.body_bytes:
            self._whole = bytearray(header.body_bytes)
        whole = memoryview(self._whole)
        self.store.data.chunks.read_into(
            keyspace.update_blob(header.client, self.run, header.body_digest),
            header.body_bytes,
            header.chunk_bytes,
            whole,
        )
        return whole

    # The checkpointed sum

    def resume(self) -> None:
        """Go on from what earlier incarnations have left: refusals, and a checkpointed sum if there is one."""
        opening = self.round.opening
        if self.merge and (saved := partial_sum.find(self.store, self.run, self.number, opening)):
            if partial_sum.is_refused(
                self.store, self.run, saved, self.store.control.enrolments.pins.key
            ):
                self._begin_anew()
            else:
                self._resume_sum(saved)
        for client, receipt in self.store.control.receipts.of_round(self.run, self.number).items():
            if client in self.books.cohort and not receipt.is_in:
                self._remember(client, receipt)

    def _resume_sum(self, saved: Mapping[str, str]) -> None:
        assert self.merge is not None
        found = PartialRoundState.from_json(saved["progress"])
        # Before the sum is read: meanwhile the healer would have everybody asked again.
        self.store.control.receipts.restore(self.run, self.number, found.written)
        try:
            partial_sum.load(self.store, self.run, saved, self.merge.total)
        except (ContentMissing, MessageError):
            # The data server has lost it. Outboxes have the updates.
            partial_sum.drop(self.store, self.run, self.number)
            self._begin_anew()
            return
        self.progress = found
        self._forget_merged(found)

    def _begin_anew(self) -> None:
        self.store.control.receipts.forget(self.run, self.number)
        self._ask_all_again()

    def _forget_merged(self, found: PartialRoundState) -> None:
        """Remove what is left of updates in the sum, should its writer have been killed before it did."""
        redis = self.config.redis
        merged = {who: item for who, item in found.receipts.items() if item.status == "received"}
        for who, receipt in merged.items():
            if receipt.nbytes > redis["inline_bytes"]:
                count = header.chunk_count(receipt.nbytes, redis["chunk_bytes"])
                self.store.data.chunks.drop(
                    keyspace.update_blob(who, self.run, receipt.digest), count
                )
        self.store.data.admission.release(
            self.run,
            (
                (who, admission.permission(receipt.token, receipt.nbytes))
                for who, receipt in merged.items()
            ),
            self.number,
        )

    def is_full(self) -> bool:
        """Whether what lies on the server unmerged, and what is to come, is more than it may be."""
        if self.merge is None or not self.merge.is_resumable:
            return False
        lying = self.taken.lying_bytes
        to_come = (len(self.round.cohort) - len(self.receipts)) * self.taken.largest_bytes
        most = self._room
        # Half: the other half is for updates on their way.
        return lying >= most // 2 and lying + to_come > most

    def checkpoint(self) -> None:
        """
        Put the sum so far on the server in place of its updates, if a sum is what is needed of them.

        Raises:
            OwnershipLost: Another incarnation has taken over.
        """
        if self.merge is None or not self.merge.is_resumable or not self.taken.count:
            return
        self.progress.written = self.store.control.receipts.of_round(self.run, self.number)
        if not partial_sum.save(
            self.store,
            self.run,
            self.number,
            self.fence,
            self.token,
            self.taken.count,
            self.merge.total,
            self.progress,
            self.config.redis["chunk_bytes"],
            self.round.opening,
            self.store.control.enrolments.pins.key,
        ):
            raise OwnershipLost(f"run {self.run}: incarnation {self.fence} was replaced")
        self.taken.forget(self.number)

    def clean_up(self) -> None:
        """The round has ended: remove what was taken for it."""
        # Elements last: killed before that, whoever gets them next finds what else to remove.
        self.taken.drop_chunks()
        self.store.data.admission.forget_turns(self.run, self.number)
        partial_sum.drop(self.store, self.run, self.number)
        self.taken.discard()


def _with(receipt: Receipt, added: MergedUpdate) -> Receipt:
    return replace(
        receipt, weight=added.weight, norm=added.norm, clipped=added.clipped, counted=added.counted
    )
