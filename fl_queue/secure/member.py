"""
One client's part in a secure round: its keys, its masked vector, and the shares that it reveals.

Functions of the secrets and records that the caller keeps or has fetched and checked (``policy``); nothing is stored
here, and no secret is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache

from fl_queue.errors import MessageError
from fl_queue.protocol import crypto
from fl_queue.secure import boxes, masks, shamir
from fl_queue.secure.bodies import NO_SHARE, Dealt, KeysBody, UnmaskBody, UpdateTrailer
from fl_queue.secure.boxes import Box, Kind
from fl_queue.secure.context import RoundView, mask_key_statement
from fl_queue.secure.graph import Graph
from fl_queue.secure.records import Inbox, Roster, Survivors
from fl_queue.secure.ring import Words


class Member:
    """
    A client in one round.

    Args:
        client: Its id, of the cohort.
        run_secret: Its secret run key, 32 bytes.
        view: The round as the client sees it.
    """

    def __init__(self, client: str, run_secret: bytes, view: RoundView) -> None:
        self.client, self.context = client, view.digest()
        self.graph = Graph(view.cohort, view.degree, self.context)
        self._run_secret, self._run_keys = run_secret, view.run_keys
        # The same for both kinds of boxes, and for boxes that are sealed and opened.
        self._shared = cache(self._exchanged)

    # Keys

    def keys(self, polynomial: Sequence[int], sign: Callable[[bytes], bytes]) -> KeysBody:
        """
        The body of ``keys``.

        Args:
            polynomial: That of the mask secret r, which is its first coefficient.
            sign: The client's signature of some bytes, 64 bytes.

        Raises:
            MessageError: The run key of a neighbour is of low order; names it.
        """
        public = crypto.public_half(self.mask_key(polynomial))
        signature = sign(mask_key_statement(self.context, self.client, public))
        bound = boxes.bound_to_key(public)
        dealt = self._deal("key", polynomial, self.graph.neighbours(self.client), bound)
        return KeysBody(self.context, public, signature, dealt)

    def mask_key(self, polynomial: Sequence[int]) -> bytes:
        """The secret mask key. Args: ``polynomial``: as of ``keys``."""
        return masks.mask_key(shamir.to_bytes(polynomial[0]), self.context)

    def own_share(self, polynomial: Sequence[int]) -> bytes:
        """The share of its own secret that a client keeps, 32 bytes."""
        return shamir.to_bytes(shamir.share_of(polynomial, self.graph.number(self.client)))

    # The masked vector

    def mask(
        self,
        words: Words,
        polynomial: Sequence[int],
        roster: Roster,
        self_polynomial: Sequence[int],
    ) -> UpdateTrailer:
        """
        Mask a vector in place, and deal shares of its self secret.

        Args:
            words: As ``RingLayout.sent_words`` makes them; masked when this returns.
            polynomial: That of the mask secret r.
            roster: The one that the client has checked and noted.
            self_polynomial: That of the self secret b, drawn for this vector alone; its first coefficient.

        Returns:
            The trailer that follows the vector in the body.

        Raises:
            MessageError: A key of a neighbour is of low order; the vector is as it was.
        """
        secret = shamir.to_bytes(self_polynomial[0])
        keys = roster.mask_keys
        readers = self.graph.neighbours(self.client, keys.keys())
        others = {reader: keys[reader] for reader in readers}
        own = masks.masks_of(self.client, self.mask_key(polynomial), secret, others, self.context)
        commitment = boxes.commitment(self.context, self.client, secret)
        bound = boxes.bound_to_self(commitment, roster.digest)
        dealt = self._deal("self", self_polynomial, readers, bound)
        masks.apply(own, *words)
        return UpdateTrailer(commitment, roster.digest, dealt)

    # Shares

    def shares(
        self,
        roster: Roster,
        survivors: Survivors,
        inboxes: Mapping[Kind, Inbox],
        own: Mapping[bytes, bytes],
    ) -> UnmaskBody:
        """
        The body of ``unmask``: of each survivor the share of b, of each that dropped out the share of r, never both.

        Args:
            roster, survivors: Those that the client has checked.
            inboxes: As fetched; a box in one that does not open, or that has another share than its hash, is no
                share.
            own: Commitment of a secret of its own (the mask key of r) -> the client's share of it.
        """
        keys, found = roster.mask_keys, []
        for dealer in self.graph.holders(self.client, keys.keys()):
            survivor = survivors.of(dealer)
            kind: Kind = "key" if survivor is None else "self"
            committed = keys[dealer] if survivor is None else survivor.commitment
            if dealer == self.client:
                found.append(own.get(committed, NO_SHARE))
                continue
            bound = committed if survivor is None else boxes.bound_to_self(committed, roster.digest)
            box = Box(self.context, kind, dealer, self.client, bound)
            found.append(self._opened(box, inboxes.get(kind)))
        return UnmaskBody(tuple(found))

    def _opened(self, box: Box, inbox: Inbox | None) -> bytes:
        """The share in a box, ``NO_SHARE`` where there is none that fits its hash."""
        parcel = inbox.of(box.dealer) if inbox is not None else None
        if parcel is None:
            return NO_SHARE
        try:
            share = box.open(self._shared(box.dealer), parcel.box)
            shamir.from_bytes(share)
        except MessageError:
            return NO_SHARE
        return share if box.share_hash(share) == parcel.share_hash else NO_SHARE

    def _deal(
        self, kind: Kind, polynomial: Sequence[int], readers: Collection[str], bound: bytes
    ) -> Dealt:
        sealed, hashes = [], []
        for reader in readers:
            share = shamir.to_bytes(shamir.share_of(polynomial, self.graph.number(reader)))
            box = Box(self.context, kind, self.client, reader, bound)
            sealed.append(box.seal(self._shared(reader), share))
            hashes.append(box.share_hash(share))
        return Dealt(tuple(sealed), tuple(hashes))

    def _exchanged(self, other: str) -> bytes:
        try:
            return crypto.exchange(self._run_secret, self._run_keys[other])
        except MessageError:
            raise MessageError(f"bad key of {other}") from None
