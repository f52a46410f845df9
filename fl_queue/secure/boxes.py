"""
Boxes: shares of a secret, each encrypted by its dealer for one reader; their hashes, and commitments to secrets.

A box is sealed under a key of its own. That of a share of a mask secret is bound to the dealer's mask key, that
of a share of a self secret to its commitment and to the roster: who was shown another roster cannot open it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from fl_queue.errors import MessageError
from fl_queue.protocol import crypto
from fl_queue.secure.shamir import ELEMENT_BYTES

BOX_BYTES = ELEMENT_BYTES + crypto.TAG_BYTES
HASH_BYTES = 32
#: ``key``: of a mask secret r; ``self``: of a self secret b.
Kind = Literal["key", "self"]


@dataclass(frozen=True)
class Box:
    """
    Name of one box: everything that its key is derived from, besides the two run keys.

    Args:
        context: Of the round, 32 bytes.
        kind: Of the secret.
        dealer, reader: Client ids.
        bound: ``bound_to_key`` or ``bound_to_self`` of the dealer's secret.
    """

    context: bytes
    kind: Kind
    dealer: str
    reader: str
    bound: bytes

    def seal(self, shared: bytes, share: bytes) -> bytes:
        """
        A share in its box, 48 bytes.

        Args:
            shared: ``crypto.exchange`` of the two run keys.
            share: 32 bytes; one for each name, ever.
        """
        return crypto.seal(self._key(shared), share, self.context)

    def open(self, shared: bytes, sealed: bytes) -> bytes:
        """
        The share in a box. Args: ``shared``: as for ``seal``.

        Raises:
            MessageError: The box is of another name, round, roster or reader, or damaged.
        """
        try:
            share = crypto.unseal(self._key(shared), sealed, self.context)
        except MessageError:
            raise MessageError(f"bad box of {self.dealer} for {self.reader}") from None
        if len(share) != ELEMENT_BYTES:
            raise MessageError(f"bad box of {self.dealer} for {self.reader}")
        return share

    def share_hash(self, share: bytes) -> bytes:
        """SHA-256 by which a revealed share is known to be the dealer's; it does not depend on ``bound``."""
        return hashlib.sha256(
            b"".join((self._named(b"fl-queue share v1\0"), self.context, share))
        ).digest()

    def _key(self, shared: bytes) -> bytes:
        info = self._named(b"fl-queue box v1\0") + self.bound
        return crypto.derive(shared, self.context, info)

    def _named(self, purpose: bytes) -> bytes:
        parts = (self.kind.encode(), self.dealer.encode(), self.reader.encode())
        return purpose + b"".join(part + b"\0" for part in parts)


def bound_to_key(mask_key: bytes) -> bytes:
    """What boxes of a mask secret are bound to: the dealer's public mask key, as it is signed."""
    return mask_key


def bound_to_self(commitment: bytes, roster: str) -> bytes:
    """What boxes of a self secret are bound to. Args: ``roster``: the record's digest, hexadecimal."""
    return commitment + bytes.fromhex(roster)


def commitment(context: bytes, client: str, secret: bytes) -> bytes:
    """SHA-256 that binds a client to its self secret; a mask secret is bound by its mask key itself."""
    return hashlib.sha256(
        b"".join((b"fl-queue commit v1\0", client.encode(), b"\0", context, secret))
    ).digest()
