"""
Judge each message that an aggregator has taken, and merge the good ones.

``UpdateIntake.process`` takes a message through five steps:

1. sender: the client that signed it is enrolled (``authentication``);
2. signature: made with the key of its enrolment (``authentication``);
3. form: envelope and header are well-formed (``authentication``, ``protocol.message``);
4. wanted: it is for this run, round, cohort and version, and the first one of its client;
5. good: its layout, digest and values are within the limits. Then it is in the sum; metrics that are not
   within theirs are left out.

Every step can be repeated: receipts are rewritten, and messages and the partial sum are removed only by
the owner of the taken list. Refused messages are counted, and the first of a known client have a receipt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fl_queue.aggregation import group_sum
from fl_queue.aggregation.merge import MergedUpdate, UpdateMerger
from fl_queue.coordinator.aggregator import archiving, job_requests, rejections, step_intake
from fl_queue.coordinator.aggregator.authentication import (
    AuthenticatedMessage,
    MessageAuthenticator,
)
from fl_queue.coordinator.aggregator.open_round import OpenRound
from fl_queue.coordinator.aggregator.partial_sum import PartialRoundState, ResumableSum
from fl_queue.coordinator.aggregator.receipts import ReceiptLog
from fl_queue.coordinator.aggregator.secure_intake import SecureIntake
from fl_queue.coordinator.aggregator.secure_stages import SecureStages
from fl_queue.coordinator.aggregator.secure_sum import MaskedSum
from fl_queue.coordinator.aggregator.sum_checkpoint import SumCheckpoint
from fl_queue.coordinator.aggregator.taken_list import TakenList
from fl_queue.coordinator.aggregator.verdicts import make_receipt, with_merged
from fl_queue.errors import ContentMissing, ForgedMessage, MessageError
from fl_queue.protocol import job_origins, message
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.records import INPUTS, Purpose, Receipt, Verdict
from fl_queue.protocol.tensor_layout import Bytes
from fl_queue.secure.round_view import SeenRound, check_bare, fetched_states
from fl_queue.store import RoundState, keyspace, queries
from fl_queue.store.control.stages import KINDS

#: Purpose of a round -> the kind of message it wants.
_WANTED_KIND = {
    Purpose.train: "update",
    Purpose.evaluate: "evaluation",
    Purpose.initialise: "model",
    Purpose.sums: "sums",
}
_DUPLICATE = "an update of this client was received already"
#: A failover has lost the opening of a round, and it was opened once more, after something had changed.
_OTHER_INPUTS = (
    "made for an earlier opening of the round, with another config or other shares of the data"
)


class UpdateIntake:
    """
    The messages of one round, as one incarnation processes them.

    Args:
        current: The round.
        state_dir: This machine's folder; archived updates are below it.
    """

    def __init__(self, current: OpenRound, state_dir: Path) -> None:
        self.store, self.run, self.config = current.store, current.run, current.config
        self.incarnation, self.number = current.incarnation, current.number
        self._current, self._state_dir = current, state_dir
        self.progress = PartialRoundState()
        #: Version 0, in a round that makes it, once a client has sent it.
        self.initial: tuple[Manifest, Bytes] | None = None
        self.taken = TakenList(self.store, self.incarnation)
        self.receipt_log = ReceiptLog(current)
        self._checkpoint = SumCheckpoint(current, self.taken)
        required = self.store.control.enrolments.pins.required(
            self.run, self.config.security.require_enrolment
        )
        self._authenticator = MessageAuthenticator(self.store.control, self.run, required)
        self._body_buffer = bytearray()  # Reused for each update.
        self.manifest = self.store.control.versions.manifest(self.run)
        self.merger = self._new_merger()
        #: The words of a step of an analysis; None in any other round.
        self.step = step_intake.open_step(current, self.manifest, state_dir)
        #: The messages and stages of a secure round; None where updates come in clear.
        self.secure = self._open_secure()
        self._masked = MaskedSum(self.secure) if self.secure is not None else None
        self.stages = (
            SecureStages(current, self.secure, lambda: self.receipts, state_dir)
            if self.secure is not None
            else None
        )

    def _open_secure(self) -> SecureIntake | None:
        state, strategy = self._current.state, self.config.plain_strategy()
        if state.secure is None or self.manifest is None:
            return None
        seen = SeenRound(
            run=self.run,
            round=state,
            recorded=self._current.recorded,
            strategy=strategy,
            manifest=self.manifest,
            fetched=state.fetched,
            states=fetched_states(strategy, state.server_state),
        )
        return SecureIntake(seen)

    def _new_merger(self) -> UpdateMerger | None:
        """The merger of a training round; None where no updates are merged."""
        state = self._current.state
        if self.manifest is None or state.purpose != Purpose.train:
            return None
        return UpdateMerger.of_round(
            self.manifest,
            self.config,
            state.scales,
            state.w_max,
            self._state_dir / "gathered",
            state.discount,
        )

    @property
    def _resumable(self) -> ResumableSum | None:
        """What another incarnation can go on from; None: it takes all messages again."""
        if self._masked is not None:
            return self._masked
        if self.merger is None:
            return self.step
        return self.merger.total if self.merger.is_resumable else None

    @property
    def round(self) -> RoundState:
        """The round as it is now."""
        return self._current.state

    @property
    def receipts(self) -> dict[str, Receipt]:
        """Client -> its receipt, the one that counts."""
        return self.progress.receipts

    @property
    def excluded_clients(self) -> list[str]:
        """Clients whose updates the strategy did not select, once the next model is built."""
        return list(self.merger.left_out) if self.merger is not None else []

    @property
    def next_exponent(self) -> int:
        """Exponent of the next round, where the strategy has one."""
        merger = self.merger
        return merger.strategy.next_exponent(merger.total, self.round.exponent) if merger else 0

    @property
    def can_resume(self) -> bool:
        """Whether another incarnation can go on from a partial sum; else it takes all messages again."""
        return self.merger is None or self.merger.is_resumable

    def received(self) -> int:
        """Count the valid updates so far."""
        return sum(receipt.status == Verdict.received for receipt in self.receipts.values())

    def required_merger(self) -> UpdateMerger:
        """
        The merger of a training round.

        Raises:
            MessageError: The round merges no updates.
        """
        if self.merger is None:
            raise MessageError(f"round {self.number} merges no updates")
        return self.merger

    # Messages

    def process(self, element: bytes) -> bool:
        """
        Decide on the next message of the taken list: the five steps.

        Returns:
            Whether it is in the sum, or in the place of one.
        """
        opened = self._authenticate(element)
        if opened is None:
            return False
        sender = self._sender_of(opened)
        if not self._is_for_this_round(opened, sender):
            return False
        try:
            is_in = self._judge_of(opened.header)(opened, sender)
        except ContentMissing as exc:
            self._ask_for_chunks(opened.header, sender, exc)
            return False
        if is_in:
            self.taken.keep(opened.header)
        else:
            self.taken.refuse(opened.header)
        return is_in

    def _judge_of(self, header: Header) -> Callable[[AuthenticatedMessage, str], bool]:
        """What judges a message of this kind."""
        if header.kind == "group":
            return self._judge_group
        if self.stages is not None and self.stages.judges(header.kind):
            return self._judge_stage
        return self._judge_client

    def _authenticate(self, element: bytes) -> AuthenticatedMessage | None:
        """Steps 1 to 3: sender, signature, form. None: it is refused."""
        try:
            return self._authenticator.open(element)
        except ForgedMessage as exc:
            self.receipt_log.write_forged(exc)
        except MessageError as exc:
            self.receipt_log.rejections.count(rejections.UNKNOWN, exc.reason, Verdict.invalid)
        self.taken.refuse_without_chunks()
        return None

    def _sender_of(self, opened: AuthenticatedMessage) -> str:
        """The name a message is counted under when it is refused."""
        client = opened.header.client
        if opened.enrolment is None:
            return rejections.sender(client)
        self.receipt_log.add_known_client(client)
        return rejections.sender(client, client)

    def _is_for_this_round(self, opened: AuthenticatedMessage, sender: str) -> bool:
        """Whether step 4 begins well: it is for this round, or for a job that this round took over."""
        header = opened.header
        if header.round == self.number or self._is_carried(header):
            return True
        # If our round has ended, its next aggregator decides on the message; a failover may have lost our
        # round, and have the one of the message open.
        self._current.check_open()
        if header.round < self.number:
            self._refuse_past(header, sender, opened.key)
            self.taken.refuse(header)
            return False
        reason = f"{header.client}: round {header.round} has not been opened"
        self.receipt_log.rejections.count(sender, reason, Verdict.invalid)
        self.taken.refuse_without_chunks()
        return False

    def _is_carried(self, header: Header) -> bool:
        """Whether a message answers an earlier round's job that this asynchronous round took over."""
        if header.client not in self.round.carried:
            return False
        return job_origins.begun(self.round, header.client).round == header.round

    def _refuse_past(self, header: Header, sender: str, key: str) -> None:
        """Record a message whose round has ended, or whose job was given up."""
        if header.kind in KINDS:
            return  # The round had enough of them: its client's update counts, or has a verdict of its own.
        age = self.round.base_version - header.base_version
        most = self.config.round.max_staleness
        if self.round.is_async and age > most:
            reason = f"made from version {header.base_version}, {age} versions ago; round.max_staleness = {most}"
            self.receipt_log.write_late(header, sender, key, Verdict.stale, reason)
        else:
            self.receipt_log.write_late(header, sender, key)

    def _ask_for_chunks(self, header: Header, sender: str, missing: ContentMissing) -> None:
        """Refuse a message whose chunks are gone: a new attempt of its job sends them again."""
        # An attempt that has not begun will push them anyway.
        job_requests.ask_again(
            self.store,
            self.run,
            self.round,
            header.client,
            f"lost: {missing.reason}",
            unless_queued=True,
        )
        reason = f"{header.client}: {missing.reason}; asked again"
        self.receipt_log.rejections.count(sender, reason, Verdict.invalid)
        self.taken.refuse_without_chunks()

    def settle(self) -> None:
        """
        Remove the refused messages, and write their counts; all messages on the taken list are processed.

        Raises:
            OwnershipLost: Another incarnation has taken over.
        """
        self.taken.settle()
        self.receipt_log.rejections.flush()
        self._authenticator.forget()

    # Messages of one client

    def _judge_client(self, opened: AuthenticatedMessage, sender: str) -> bool:
        client = opened.header.client
        refused = self._why_unwanted(opened.header)
        receipt = replace(refused or self._accept(opened), key=opened.key)
        is_first = client not in self.receipts
        if client in self._current.cohort:
            self._remember(client, receipt)
        self.receipt_log.write(client, receipt, sender, is_first)
        return receipt.is_in

    def _why_unwanted(self, header: Header) -> Receipt | None:
        """Step 4: the receipt of a message that this round does not want; None: it does."""
        if header.run != self.run:
            return make_receipt(header, Verdict.invalid, f"it is of run {header.run}")
        if header.client not in self._current.cohort:
            reason = f"{header.client} is not in the cohort of round {self.number}"
            return make_receipt(header, Verdict.invalid, reason)
        known = self.receipts.get(header.client)
        if known is not None and known.status == Verdict.received:
            return make_receipt(header, Verdict.duplicate, _DUPLICATE)
        version, digest = queries.base_of(self.store, self.run, self.round, header.client)
        if (header.base_version, header.base_digest) != (version, digest):
            reason = f"made from version {header.base_version}, not {version}"
            return make_receipt(header, Verdict.stale, reason)
        if header.round == self.number and not self.round.is_of(header.environment.get(INPUTS)):
            return make_receipt(header, Verdict.stale, _OTHER_INPUTS)
        if header.kind == "failure":
            return make_receipt(header, Verdict.failed, header.reason)
        if self.secure is not None and (late := self.secure.why_late(header)):
            return make_receipt(header, Verdict.late, late)
        return None

    def _accept(self, opened: AuthenticatedMessage) -> Receipt:
        """
        Step 5: the receipt of a message that is good, or is refused for its content.

        Raises:
            ContentMissing: Its chunks are not on the data server.
        """
        header = opened.header
        try:
            merged = self._merge(opened)
        except MessageError as exc:
            return make_receipt(header, Verdict.invalid, exc.reason)
        # A sum that cannot be used is lost; the update, and what else its client reports, is not.
        header, left_out = group_sum.with_sound_metrics(header)
        self.progress.validation[header.client] = header.metrics
        self.progress.training[header.client] = header.train_metrics
        staleness = self.round.base_version - header.base_version
        receipt = with_merged(make_receipt(header, Verdict.received, left_out), merged)
        return replace(receipt, staleness=staleness)

    def _merge(self, opened: AuthenticatedMessage) -> MergedUpdate:
        header = opened.header
        wanted = _WANTED_KIND[self.round.purpose]
        if header.kind != wanted:
            raise MessageError(f"a {header.kind} came where the round wants a {wanted}")
        if self.secure is not None:
            return self._add_masked(self.secure, opened)
        if header.kind == "update":
            return self._add_update(opened)
        if header.kind == "sums":
            return self._add_words(opened)
        if header.kind == "model":
            self._take_initial(header, opened.body)
        return MergedUpdate(0)

    def _add_update(self, opened: AuthenticatedMessage) -> MergedUpdate:
        """Validate an update, add it to the exact sum, and archive it where the config asks for that."""
        merger, header, enrolment = self.required_merger(), opened.header, opened.enrolment
        merger.check(header)
        body = self._body_of(header, opened.body)
        most = enrolment.max_examples if enrolment is not None else 0
        merged = merger.add(header, body, most, self.round.base_version - header.base_version)
        archiving.archive(self._current, self._state_dir, opened, body)
        return merged

    def _add_masked(self, secure: SecureIntake, opened: AuthenticatedMessage) -> MergedUpdate:
        """Add a masked update to the sum; nothing of it can be judged but its form."""
        header = opened.header
        secure.check_update(header)
        body = self._body_of(header, opened.body)
        secure.add_update(header, body)
        archiving.archive(self._current, self._state_dir, opened, body)
        return MergedUpdate(0)

    def _add_words(self, opened: AuthenticatedMessage) -> MergedUpdate:
        """Validate a site's words, add them to the sum, and archive them where the config asks for that."""
        if self.step is None:
            raise MessageError(f"round {self.number} is no step of an analysis")
        header = opened.header
        self.step.check(header)
        body = self._body_of(header, opened.body)
        self.step.add(header, body)
        archiving.archive(self._current, self._state_dir, opened, body)
        return MergedUpdate(1)

    def _take_initial(self, header: Header, content: memoryview) -> None:
        if self.initial is not None:
            raise MessageError("another client has made version 0 already")
        manifest = message.initial_manifest(header, self.config.model.max_bytes)
        if header.chunk_bytes:
            # The size is only claimed: no memory is reserved before the chunks are there.
            self.store.data.chunks.check(
                keyspace.update_blob(header.client, self.run, header.body_digest),
                header.body_bytes,
                header.chunk_bytes,
            )
        body = self._body_of(header, content)
        message.check_body(header, body)
        if manifest.published and not manifest.published.is_of(body[manifest.nbytes :]):
            raise MessageError("its base part does not have the digest of its manifest")
        step_intake.check_first_state(self.config.analysis, manifest, body)
        self.initial = (manifest, body)

    def _body_of(self, header: Header, content: memoryview) -> memoryview:
        """The body of a message: in the message itself, or read from its chunks."""
        if not header.chunk_bytes:
            return content
        if len(self._body_buffer) != header.body_bytes:
            self._body_buffer = bytearray(header.body_bytes)
        body = memoryview(self._body_buffer)
        self.store.data.chunks.read_into(
            keyspace.update_blob(header.client, self.run, header.body_digest),
            header.body_bytes,
            header.chunk_bytes,
            body,
        )
        return body

    def _remember(self, client: str, receipt: Receipt) -> None:
        """Keep a receipt, if it is the one that counts."""
        known = self.receipts.get(client)
        if known is None or (not known.is_in and (receipt.answers or not known.answers)):
            self.receipts[client] = receipt

    # Stages of a secure round

    def _judge_stage(self, opened: AuthenticatedMessage, sender: str) -> bool:
        """Decide on keys, or on what a client sends in the stage ``unmask`` (steps 4 and 5)."""
        header, secure = opened.header, self.secure
        assert secure is not None
        try:
            self._check_stage(header)
            take = secure.take_keys if header.kind == "keys" else secure.take_answer
            body = self._body_of(header, opened.body)
            message.check_body(header, body)
            status, reason = take(header, body)
        except MessageError as exc:
            status, reason = Verdict.invalid, exc.reason
        self.receipt_log.write_stage(header, status, reason, sender)
        return status == Verdict.received

    def _check_stage(self, header: Header) -> None:
        if header.run != self.run:
            raise MessageError(f"it is of run {header.run}")
        if header.client not in self._current.cohort:
            raise MessageError(f"{header.client} is not in the cohort of round {self.number}")
        base = (self.round.base_version, self.round.base_digest)
        if (header.base_version, header.base_digest) != base:
            raise MessageError(f"made from version {header.base_version}")
        if header.kind != "failure":
            check_bare(header)

    # Sums of several virtual clients

    def _judge_group(self, opened: AuthenticatedMessage, sender: str) -> bool:
        """Decide on the sum of a group's updates (steps 4 and 5): all of them are merged, or none."""
        header = opened.header
        try:
            self._check_group(header)
            duplicates = self._duplicates_in(header)
            receipts = duplicates or self._add_group(header, opened.body)
        except MessageError as exc:
            reason = f"{header.client}: {exc.reason}"
            self.receipt_log.rejections.count(sender, reason, Verdict.invalid)
            return False
        if duplicates:
            reason = "an update of a client in it was received already"
            self.receipt_log.rejections.count(sender, reason)
            receipts = {
                client: receipt
                for client, receipt in duplicates.items()
                if self.receipt_log.should_write(client, receipt.status)
            }
        for client, receipt in receipts.items():
            self._remember(client, receipt)
        self.receipt_log.write_group(header.client, receipts)
        return not duplicates

    def _check_group(self, header: Header) -> None:
        if header.run != self.run:
            raise MessageError(f"it is of run {header.run}")
        base = (self.round.base_version, self.round.base_digest)
        if (header.base_version, header.base_digest) != base:
            raise MessageError(f"made from version {header.base_version}")
        if self.round.purpose != Purpose.train:
            raise MessageError("a group came where the round wants none")
        if not all(self.round.is_of(member.environment.get(INPUTS)) for member in header.members):
            raise MessageError(_OTHER_INPUTS)
        group_sum.check(header, self.round, self.config)

    def _duplicates_in(self, header: Header) -> dict[str, Receipt]:
        """Receipts of members whose update was received before: the sum cannot be merged without them."""
        return {
            own.client: make_receipt(own, Verdict.duplicate, _DUPLICATE)
            for own, _, _ in group_sum.headers(header)
            if own.client in self.receipts and self.receipts[own.client].status == Verdict.received
        }

    def _add_group(self, header: Header, content: memoryview) -> dict[str, Receipt]:
        merger = self.required_merger()
        group_sum.check_layout(header, merger)
        group_sum.add(header, self._body_of(header, content), merger)
        receipts = {}
        members = zip(header.members, group_sum.headers(header), strict=True)
        for member, (own, status, reason) in members:
            merged = merger.added(member.weight, member.norm if member.weight else None)
            receipts[own.client] = with_merged(make_receipt(own, status, reason), merged)
            if status == Verdict.received:
                self.progress.validation[own.client] = own.metrics
                self.progress.training[own.client] = own.train_metrics
        return receipts

    # The partial sum

    def resume(self) -> None:
        """Continue from earlier incarnations: their refusals, and what else there is of them."""
        if self.stages is not None:
            self.stages.resume()
        total = self._resumable
        if total is not None and (found := self._checkpoint.load(total)):
            self.progress = found
            if self._masked is not None:
                self._masked.resume(found.secure)
        for client, receipt in self.store.control.receipts.of_round(self.run, self.number).items():
            if client in self._current.cohort and not receipt.is_in:
                self._remember(client, receipt)

    def is_full(self) -> bool:
        """Whether unmerged updates on the server, and those to come, exceed the room for them."""
        if self._resumable is None:
            return False
        return self._checkpoint.is_due(len(self.round.cohort) - len(self.receipts))

    def checkpoint(self) -> None:
        """
        Put the sum so far on the server in place of its updates, where the sum is all that is needed of them.

        Raises:
            OwnershipLost: Another incarnation has taken over.
        """
        if self._masked is not None:
            self.progress.secure = self._masked.progress()
        if (total := self._resumable) is not None and self.taken.count:
            self._checkpoint.save(total, self.progress)
