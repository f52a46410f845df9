"""
A client's part in secure rounds: its keys, its masked update, and the shares that it reveals.

What is sent is in the outbox first, on disk, and is sent again as it is. What it depends on is noted in the
client's vault before that, so a process that is killed between any two steps repeats itself or drops out, and never
masks two updates alike. The update in clear stays in the outbox until it is masked, and never leaves.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from fl_queue.aggregation import clipping
from fl_queue.aggregation.weighting import weight_of
from fl_queue.client import client_state, outbox
from fl_queue.client.assignment import ClientJob, RoundModel, fetch_base, waited_for
from fl_queue.client.client_state import AcceptedUpdate
from fl_queue.client.site import WorkerSettings
from fl_queue.common import failpoints, seeding
from fl_queue.errors import ContentMissing, MessageError, RoundEnded, RoundRefused
from fl_queue.protocol import signing, tensor_layout
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.header import Header
from fl_queue.protocol.records import INPUTS
from fl_queue.protocol.secure_state import Stage
from fl_queue.protocol.state import RoundPhase
from fl_queue.secure.boxes import Kind
from fl_queue.secure.context import run_key_statement
from fl_queue.secure.graph import Graph
from fl_queue.secure.policy import Demands, RoundPolicy, Terms
from fl_queue.secure.records import (
    MAX_BYTES,
    SIGNATURE_BYTES,
    Confirmations,
    Inbox,
    Roster,
    Survivors,
)
from fl_queue.secure.ring import Accompanying, Words
from fl_queue.secure.round_view import SeenRound, masked_header
from fl_queue.secure.site_part import SitePart
from fl_queue.secure.vault import Vault
from fl_queue.store import keyspace
from fl_queue.store.control.stages import Progress

log = logging.getLogger(__name__)

FIRST_WAIT_S, MAX_WAIT_S = 0.02, 1.0
#: Sends an element of the outbox; False when the round ended first.
Push = Callable[[ClientJob, Header, memoryview], bool]
Record = TypeVar("Record", Roster, Survivors, Confirmations)
#: Header and body of a file of the outbox.
Kept = tuple[Header, memoryview]


def run_key(site: WorkerSettings, run: str) -> dict[str, str]:
    """
    The client's signed run key of a run, made when there is none, in hexadecimal.

    Raises:
        RoundRefused: The site's peers were changed while the run lasts.
        LocalStorageError: It cannot be kept.
        ConfigError: The site's key or its peers cannot be read.
    """
    peers = site.pinned_peers
    secrets = Vault(site.state_dir, site.client).begin(run, peers.digest if peers else "")
    signature = _signer(site)(run_key_statement(run, site.client, secrets.public))
    failpoints.failpoint("runkey.made")
    return {"key": secrets.public.hex(), "signature": signature.hex()}


def _signer(site: WorkerSettings) -> Callable[[bytes], bytes]:
    """What signs with the site's key; of a site without one, zeros."""
    if site.secrets is None:
        return lambda content: bytes(SIGNATURE_BYTES)
    key = site.signing_key
    return lambda content: signing.raw_signature(key, content)


class SecureRound:
    """
    One job of a client in a secure round.

    Args:
        job: The job.
        push: Sends what lies in the outbox.

    Raises:
        RoundEnded: The round ended while its model was waited for.
        MessageError: The round's fields are no secure round's.
    """

    def __init__(self, job: ClientJob, push: Push) -> None:
        base = job.base or fetch_base(job)
        self.job = replace(job, base=base)
        self._push, self._site = push, job.site
        self._seen = _seen(job, base)
        view = self._seen.view()
        secure, peers = job.config.secure, job.site.pinned_peers
        demands = Demands(
            client=job.who,
            peers=peers.keys if peers is not None else None,
            min_cohort=job.site.min_cohort,
        )
        terms = Terms(
            confirm=secure.confirm, max_corrupt=secure.max_corrupt, max_dropout=secure.max_dropout
        )
        policy = RoundPolicy(demands, terms, view, self._seen.signers)
        self._part = SitePart(Vault(job.site.state_dir, job.who), policy, _signer(job.site))
        self._graph = Graph(view.cohort, view.degree, view.digest())

    # The job that trains

    def send_keys(self) -> None:
        """
        Send the client's keys, made once.

        Raises:
            RoundRefused: A demand of the site failed.
            RoundEnded: The round ended first.
        """
        if self._kept(outbox.KEYS) is None:
            has_roster = bool(self._progress().roster)
            body = self._part.keys(self._seen.run_keys, has_roster).to_bytes()
            self._write(self.job.header("keys"), body, outbox.KEYS)
            failpoints.failpoint("keys.written")
        self._send(outbox.KEYS)
        failpoints.failpoint("keys.pushed")

    def mask(self, trained: Kept) -> None:
        """
        Mask the update that was trained, once there is a roster, and keep it in its place.

        Raises:
            RoundRefused: A demand of the site failed.
            RoundEnded: The round ended first, or goes on without this client.
            MessageError: The update is not within the limits of the round.
        """
        header, body = trained
        roster = self._record(Roster, self._waited(lambda seen: seen.roster))
        if self.job.who not in roster.clients:
            raise RoundEnded(f"round {header.round} goes on without this client", public=True)
        words = self._words(header, body)
        trailer = self._part.mask(roster, words)
        neighbours = self._graph.neighbours(self.job.who, set(roster.clients))
        masked = masked_header(header, self._seen.layout, len(neighbours))
        pieces = [*self._seen.layout.pieces(words), trailer.to_bytes()]
        self._keep_state(header, tensor_layout.pieces_digest(pieces))
        outbox.write(self._site.outbox, masked, pieces, durable=True)
        failpoints.failpoint("update.masked")
        self._path(outbox.TRAINED).unlink(missing_ok=True)

    def _words(self, header: Header, body: memoryview) -> Words:
        """The integers of an update. Raises MessageError, whose text quotes none of them."""
        config, layout = self.job.config, self._seen.layout
        blocks = codec.DecodedBlocks("float32", layout.sent, body)
        weight = weight_of(config.aggregation, header.num_examples)
        is_told = config.secure.metrics == "sums"
        beside = Accompanying(
            weight,
            header.metrics if is_told else {},
            header.train_metrics if is_told else {},
        )
        most, factor = config.aggregation.clip_norm, 1.0
        if most:
            factor = clipping.clip_factor(clipping.l2_norm(layout.sent, blocks), most)
        seed = seeding.seed_for(
            config.run.seed, self.job.state.name, header.round, self.job.who, "ring"
        )
        try:
            return layout.sent_words(blocks, beside, factor, seed)
        except MessageError as exc:
            log.warning("run=%s client=%s %s", self.job.run, self.job.who, exc)
            raise MessageError(
                "the update is not within the limits of the round (aggregation.limit, aggregation.buffer_limit)"
            ) from None

    def _keep_state(self, header: Header, digest: str) -> None:
        """What the client keeps with its update is found under the digest that the round will accept."""
        folder = client_state.ClientStateFolder(
            self._site.client_states, self.job.run, self.job.who
        )
        number = self.job.round.number
        folder.also_of(AcceptedUpdate(number, header.body_digest), AcceptedUpdate(number, digest))

    # The job that unmasks

    def unmask(self, is_again: bool) -> None:
        """
        Sign whose updates are in the sum, and reveal the shares that take its masks off.

        Args:
            is_again: Whether an earlier attempt may have been asked: what the server may have lost is sent again.

        Raises:
            RoundRefused: A demand of the site failed.
            RoundEnded: The round ended first.
        """
        digest = self._waited(lambda seen: seen.survivors)
        roster = self._record(Roster, self._progress().roster)
        survivors = self._record(Survivors, digest)
        update = self._kept(outbox.SUFFIX)
        own = update[0].body_digest if update is not None and update[0].kind == "update" else ""
        if is_again:
            self._send_again()
        confirmations = Confirmations(survivors.digest, {})
        if self.job.config.secure.confirm:
            self._confirm(roster, survivors, own)
            found = self._waited(lambda seen: seen.confirmations)
            confirmations = self._record(Confirmations, found)
        if self._kept(outbox.UNMASK) is None:
            inboxes: dict[Kind, Inbox] = {"self": self._inbox(survivors.digest)}
            # Not waited for where no client dropped out: after a loss it follows from keys that may not come again.
            if survivors.clients != roster.clients:
                inboxes["key"] = self._inbox(roster.digest)
            body = self._part.reveal(roster, survivors, own, confirmations, inboxes).to_bytes()
            self._write(self.job.header("unmask"), body, outbox.UNMASK)
        self._send(outbox.UNMASK)
        failpoints.failpoint("shares.pushed")

    def _confirm(self, roster: Roster, survivors: Survivors, own: str) -> None:
        if self._kept(outbox.CONFIRM) is None:
            body = self._part.confirm(roster, survivors, own).to_bytes()
            self._write(self.job.header("confirm"), body, outbox.CONFIRM)
        self._send(outbox.CONFIRM)
        failpoints.failpoint("confirm.pushed")

    def _send_again(self) -> None:
        """Send what the client has sent in earlier stages."""
        for suffix in (outbox.KEYS, outbox.SUFFIX):
            kept = self._kept(suffix)
            if kept is not None and kept[0].kind != "failure":
                self._send(suffix)

    # Records

    def _progress(self) -> Progress:
        return self.job.store.control.stages.progress(self.job.run, self.job.round.number)

    def _waited(self, wanted: Callable[[Progress], str]) -> str:
        """
        A digest, once the round has it.

        Raises:
            RoundEnded: The round ended first, takes no updates any more, or has another job for this client.
        """
        pause_s = FIRST_WAIT_S
        while True:
            seen = self._progress()
            if found := wanted(seen):
                return found
            is_over = seen.stage == Stage.unmask and not self.job.unmasks
            if seen.state != RoundPhase.open or is_over or self.job.ended():
                raise RoundEnded(f"round {self.job.round.number} goes on without", public=True)
            self._check_newest()
            time.sleep(pause_s)
            pause_s = min(MAX_WAIT_S, 1.5 * pause_s)

    def _record(self, kind: type[Record], digest: str) -> Record:
        """A record, once it is there. Raises RoundEnded; MessageError: it has another digest."""
        raw = self._fetched(keyspace.secure_record(self.job.run, digest))
        return kind.from_bytes(raw, digest)

    def _inbox(self, digest: str) -> Inbox:
        """The boxes for this client. Args: ``digest``: of the record that they go with."""
        raw = self._fetched(keyspace.inbox(self.job.who, self.job.run, digest))
        return Inbox.from_bytes(raw)

    def _fetched(self, key: str) -> bytes:
        """A record, waited for while the data server is away or lacks it. Raises RoundEnded."""

        def fetch() -> bytes:
            found = self.job.store.data.secure_records.get(key, MAX_BYTES)
            if found is None:
                self._check_newest()
                raise ContentMissing(key)
            return found

        return waited_for(self.job, fetch)

    def _check_newest(self) -> None:
        """
        End a job that waits, once there is a newer one: it sends again what the data server has lost.

        What is waited for may follow from that alone, and the newer job waits for this one.

        Raises:
            RoundEnded: There is.
        """
        job = self.job
        newest = job.store.control.rounds.job(job.run, job.round.number, job.who)
        if newest.get("job") != os.environ.get("RQ_JOB_ID"):
            raise RoundEnded("superseded by a newer attempt", public=True)

    # The outbox

    def _path(self, suffix: str) -> Path:
        job = self.job
        return outbox.path_of(self._site.outbox, job.run, job.round.number, job.who, suffix)

    def _kept(self, suffix: str) -> Kept | None:
        return kept(self.job, suffix)

    def _write(self, header: Header, body: bytes, suffix: str) -> None:
        inputs = self.job.round.inputs
        environment = {INPUTS: inputs} if inputs else {}
        whole = replace(header, body_bytes=len(body), environment=environment)
        outbox.write(self._site.outbox, whole, [body], suffix, durable=True)

    def _send(self, suffix: str) -> None:
        found = self._kept(suffix)
        if found is None or not self._push(self.job, *found):
            raise RoundEnded(
                f"round {self.job.round.number} ended before it could be pushed", public=True
            )


def kept(job: ClientJob, suffix: str) -> Kept | None:
    """What lies in the outbox for a job's round; None: nothing, or of another round of its number."""
    path = outbox.path_of(job.site.outbox, job.run, job.round.number, job.who, suffix)
    found = outbox.read(path)
    return found if found is not None and job.is_answered_by(found[0]) else None


def _seen(job: ClientJob, base: RoundModel) -> SeenRound:
    states: Mapping[str, str] = base.server
    return SeenRound(
        run=job.run,
        round=job.round,
        recorded=job.recorded,
        strategy=job.strategy(),
        manifest=base.manifest,
        fetched=base.digest,
        states=states,
    )


#: What ends a client's part in a round, with a sentence that may leave the site.
REFUSALS = (RoundRefused, MessageError)
