"""
The messages of a secure round, as one incarnation has processed them: keys, masked updates, signatures, shares.

Nothing of one client can be read from them; the sum of the survivors' updates can, once enough shares are there.
No Redis here.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from fl_queue.aggregation.merge import UpdateMerger
from fl_queue.common import failpoints
from fl_queue.errors import MessageError, UnmaskingFailed
from fl_queue.protocol import message, signing
from fl_queue.protocol.header import Header
from fl_queue.protocol.records import LOST, Verdict
from fl_queue.protocol.tensor_layout import Bytes, Tensor
from fl_queue.secure import merging, unmasking
from fl_queue.secure.bodies import (
    NO_SHARE,
    ConfirmBody,
    Dealt,
    KeysBody,
    UnmaskBody,
    UpdateTrailer,
)
from fl_queue.secure.context import confirm_statement
from fl_queue.secure.graph import Graph
from fl_queue.secure.records import (
    Confirmations,
    Inbox,
    Party,
    Roster,
    Survivor,
    Survivors,
    Transcript,
)
from fl_queue.secure.ring import RingSum, SignedSum
from fl_queue.secure.round_view import SeenRound, check_bare, masked_entries
from fl_queue.secure.unmasking import Dealing, Unmasking
from fl_queue.strategies.layouts import check_scalars


class UnmaskedRound(NamedTuple):
    """Args: ``sum``: without masks; ``transcript``: what has taken them off."""

    sum: SignedSum
    transcript: Transcript


class SecureIntake:
    """
    What has come for one round.

    Args:
        seen: The round as the aggregator sees it.

    Attributes:
        keys: Client -> its keys.
        updates: Client -> trailer of its masked update, which is in the sum.
        digests: Client -> digest of that update's body.
        signatures: Client -> its signature over the survivors.
        answers: Client -> its shares.
        failed: Clients that could not answer in the stage ``unmask``.
        roster, survivors: The frozen records; None: not frozen, or not found again yet.
    """

    def __init__(self, seen: SeenRound) -> None:
        self._seen, self._number = seen, seen.round.number
        view = seen.view()
        self.context, self.layout = view.digest(), seen.layout
        self.graph = Graph(view.cohort, view.degree, self.context)
        self._signers, self._threshold = seen.signers, view.threshold
        self.total = RingSum(self.layout)
        self.keys: dict[str, KeysBody] = {}
        self.updates: dict[str, UpdateTrailer] = {}
        self.digests: dict[str, str] = {}
        self.signatures: dict[str, bytes] = {}
        self.answers: dict[str, UnmaskBody] = {}
        self.failed: set[str] = set()
        self.roster: Roster | None = None
        self.survivors: Survivors | None = None
        self._has_lost: set[str] = set()
        self._unmasking: Unmasking | None = None

    # Messages

    def take_keys(self, header: Header, body: Bytes) -> tuple[Verdict, str]:
        """
        Take a client's keys.

        Returns:
            The verdict and its reason.

        Raises:
            MessageError: They are not what the round wants.
        """
        client = header.client
        found = KeysBody.from_bytes(body, len(self.graph.neighbours(client)))
        unmasking.check_keys(found, client, self.context, self._number, self._signer(client))
        if client in self.keys:
            return Verdict.duplicate, "keys of this client were received already"
        if self.roster is not None and self.roster.mask_keys.get(client) != found.mask_key:
            return Verdict.late, "the roster is frozen"
        self.keys[client] = found
        return Verdict.received, ""

    def why_late(self, header: Header) -> str:
        """Why a masked update comes too late; empty: it does not."""
        client = header.client
        if self.roster is not None and client not in self.roster.clients:
            return f"{client} is not in the roster: its keys had not come in time"
        if self.survivors is not None:
            own = self.survivors.of(client)
            if own is None or own.body != header.body_digest:
                return "whose updates are in the sum was decided before it came"
        return ""

    def check_update(self, header: Header) -> None:
        """Check the layout of a masked update, whose body need not be here. Raises MessageError."""
        if self.roster is None:
            raise MessageError("a masked update came before there was a roster")
        check_bare(header)
        check_scalars(self._seen.strategy, header.scalars)
        entries = masked_entries(self.layout, self._neighbours(header.client))
        message.check_layout(header, f"masked:{self.layout.bits}", entries)

    def add_update(self, header: Header, body: Bytes) -> None:
        """
        Add a masked update that ``check_update`` let pass to the sum.

        Raises:
            MessageError: It is damaged, or masked under another roster; nothing was added.
        """
        assert self.roster is not None
        client, cut = header.client, self.layout.nbytes
        message.check_body(header, body)
        whole = memoryview(body)
        trailer = UpdateTrailer.from_bytes(whole[cut:], self._neighbours(client))
        if trailer.roster != self.roster.digest:
            raise MessageError("it is masked under another roster than the round's")
        self.total.add(whole[:cut])
        self.updates[client], self.digests[client] = trailer, header.body_digest
        if LOST in header.scalars:
            self._has_lost.add(client)

    def take_answer(self, header: Header, body: Bytes) -> tuple[Verdict, str]:
        """
        Take what a client sends in the stage ``unmask``: ``confirm``, ``unmask`` or ``failure``.

        Returns, Raises: As of ``take_keys``.
        """
        client = header.client
        if self.roster is None or self.survivors is None:
            raise MessageError("it came before whose updates are in the sum was decided")
        if client not in self.roster.clients:
            return Verdict.late, f"{client} is not in the roster"
        if header.kind == "failure":
            self.failed.add(client)
            return Verdict.failed, header.reason
        taken = self.signatures if header.kind == "confirm" else self.answers
        if client in taken:
            return Verdict.duplicate, "it was received already"
        if header.kind == "confirm":
            self.signatures[client] = self._checked_signature(client, body)
        else:
            holders = self.graph.holders(client, set(self.roster.clients))
            self.answers[client] = UnmaskBody.from_bytes(body, len(holders))
        return Verdict.received, ""

    def _checked_signature(self, client: str, body: Bytes) -> bytes:
        found = ConfirmBody.from_bytes(body).signature
        assert self.survivors is not None
        statement = confirm_statement(self.context, self.survivors.digest)
        signer = self._signer(client)
        if signer and not signing.is_raw_signature(signer, statement, found):
            raise MessageError(f"{client} has signed another list of survivors")
        return found

    def _signer(self, client: str) -> str:
        return (self._signers or {}).get(client, "")

    def _neighbours(self, client: str) -> int:
        """Neighbours of a client in the roster."""
        assert self.roster is not None
        return len(self.graph.neighbours(client, set(self.roster.clients)))

    # Records, as they follow from what has come

    def made_roster(self) -> Roster:
        """The roster of all whose keys have come."""
        parties = (
            Party(id_, self.keys[id_].mask_key, self.keys[id_].signature)
            for id_ in sorted(self.keys)
        )
        return Roster(self.context, tuple(parties))

    def made_survivors(self) -> Survivors:
        """The list of all whose masked updates are in the sum."""
        assert self.roster is not None
        listed = (
            Survivor(id_, self.digests[id_], self.updates[id_].commitment)
            for id_ in sorted(self.updates)
        )
        return Survivors(self.context, self.roster.digest, tuple(listed))

    def made_confirmations(self, needed: int) -> Confirmations:
        """The first signatures over the survivors, as many as are needed."""
        assert self.survivors is not None
        first = dict(list(self.signatures.items())[:needed])
        return Confirmations(self.survivors.digest, first)

    def key_inboxes(self, roster: Roster) -> dict[str, Inbox] | None:
        """The boxes of mask secrets, by reader; None: the keys of a client of the roster are not here."""
        if not self.keys.keys() >= set(roster.clients):
            return None
        dealings = {id_: self._dealing_of_key(id_) for id_ in roster.clients}
        return unmasking.inboxes(self.context, "key", dealings, roster.clients)

    def self_inboxes(self, roster: Roster, survivors: Survivors) -> dict[str, Inbox] | None:
        """The boxes of self secrets, by reader; None: the update of a survivor is not here."""
        if not self.updates.keys() >= set(survivors.clients):
            return None
        dealings = {id_: self._dealing_of_self(id_) for id_ in survivors.clients}
        return unmasking.inboxes(self.context, "self", dealings, roster.clients)

    def _dealing_of_key(self, client: str) -> Dealing:
        return Dealing(self.graph.neighbours(client), self.keys[client].dealt)

    def _dealing_of_self(self, client: str) -> Dealing:
        assert self.roster is not None
        trailer = self.updates[client]
        readers = self.graph.neighbours(client, set(self.roster.clients))
        return Dealing(readers, trailer.dealt, trailer.commitment)

    # What another incarnation goes on from

    def collected(self) -> dict[str, Any]:
        """Everything that has come but the words of the sum, as plain values."""
        return {
            "keys": {id_: body.to_bytes().hex() for id_, body in self.keys.items()},
            "updates": {
                id_: [self.digests[id_], trailer.to_bytes().hex()]
                for id_, trailer in self.updates.items()
            },
            "signatures": {id_: signature.hex() for id_, signature in self.signatures.items()},
            "answers": {id_: body.to_bytes().hex() for id_, body in self.answers.items()},
            "failed": sorted(self.failed),
            "lost": sorted(self._has_lost),
        }

    def restore(self, found: Mapping[str, Any]) -> None:
        """
        Go on from what another incarnation has collected.

        Raises:
            MessageError, KeyError, TypeError, ValueError: It is something else.
        """
        for client, text in found["keys"].items():
            neighbours = len(self.graph.neighbours(client))
            self.keys[client] = KeysBody.from_bytes(bytes.fromhex(text), neighbours)
        for client, (digest, text) in found["updates"].items():
            raw = bytes.fromhex(text)
            # The roster may be known only once all keys are here.
            readers = (len(raw) - UpdateTrailer.nbytes(0)) // Dealt.nbytes(1)
            self.updates[client] = UpdateTrailer.from_bytes(raw, readers)
            self.digests[client] = digest
        for client, text in found["signatures"].items():
            self.signatures[client] = bytes.fromhex(text)
        for client, text in found["answers"].items():
            raw = bytes.fromhex(text)
            self.answers[client] = UnmaskBody.from_bytes(raw, len(raw) // len(NO_SHARE))
        self.failed.update(found["failed"])
        self._has_lost.update(found["lost"])

    # The sum

    def dropped(self) -> list[str]:
        """Clients of the roster whose updates are not in the sum, sorted."""
        if self.roster is None or self.survivors is None:
            return []
        return sorted(set(self.roster.clients) - set(self.survivors.clients))

    def unmasked_by(self) -> Unmasking | None:
        """The answers so far; None: what they are answers to is not here."""
        roster, survivors = self.roster, self.survivors
        if roster is None or survivors is None:
            return None
        if self._unmasking is None:
            listed = set(survivors.clients)
            dropped = set(roster.clients) - listed
            if not (self.updates.keys() >= listed and self.keys.keys() >= dropped):
                return None
            dealings = {id_: self._dealing_of_self(id_) for id_ in listed}
            dealings |= {id_: self._dealing_of_key(id_) for id_ in dropped}
            self._unmasking = Unmasking(self.graph, self._threshold, roster, survivors, dealings)
        for client, body in self.answers.items():
            self._unmasking.take(client, body)
        return self._unmasking

    def unmask(self, merger: UpdateMerger, base: Mapping[str, Tensor]) -> UnmaskedRound:
        """
        Take the masks off the sum, and add it to an empty merger.

        Args:
            base: Tensors of the base version: integer buffers stay as they are in it.

        Raises:
            UnmaskingFailed: A client has sent what it may not.
        """
        found, roster, survivors = self.unmasked_by(), self.roster, self.survivors
        try:
            if found is None or roster is None or survivors is None or not found.is_complete:
                raise MessageError("shares are missing")
            secrets = found.secrets()
            signed = merging.unmasked(self.total, secrets, self.graph, self.context)
            failpoints.failpoint("sum.unmasked")
            merging.merge(signed, self.total.count, merger, base)
        except MessageError as exc:
            raise UnmaskingFailed(
                f"the sum cannot be used: {exc.reason}; a client sent more than it may, or other shares than it dealt"
            ) from exc
        if self._has_lost:
            merger.total.add_scalars({LOST: Fraction(len(self._has_lost))})
        rebuilt = {**secrets.survivors, **secrets.dropped}
        return UnmaskedRound(signed, Transcript(roster, survivors, self.graph.degree, rebuilt))
