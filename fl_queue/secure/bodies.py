"""
Bodies of the elements of a secure round, byte by byte.

    keys     context 32 | mask key 32 | Ed25519 signature 64 | boxes of r, n x 48 | share hashes, n x 32
    update   ring words | tail | then its trailer:
             commitment 32 | roster digest 32 | boxes of b, m x 48 | share hashes, m x 32
    confirm  Ed25519 signature 64
    unmask   (1 + m) x 32: one share of each holder's own and each neighbour's secret, or 32 bytes 0xff

n: the client's neighbours in the cohort, m: those of them in the roster; both in the order of their ids, as the
shares of ``unmask`` are with the client itself among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from fl_queue.errors import MessageError
from fl_queue.protocol.tensor_layout import Bytes
from fl_queue.secure.boxes import BOX_BYTES, HASH_BYTES
from fl_queue.secure.context import CONTEXT_BYTES
from fl_queue.secure.records import SIGNATURE_BYTES
from fl_queue.secure.shamir import ELEMENT_BYTES

_KEY_BYTES = 32
#: In place of a share whose box did not open, or which does not have its hash: no element of the field.
NO_SHARE = b"\xff" * ELEMENT_BYTES


@dataclass(frozen=True)
class Dealt:
    """
    The shares of one secret as their dealer sends them.

    Args:
        boxes: For each reader 48 bytes, in the order of their ids.
        hashes: For each reader 32 bytes.
    """

    boxes: tuple[bytes, ...]
    hashes: tuple[bytes, ...]

    @staticmethod
    def nbytes(readers: int) -> int:
        """Bytes of the shares for so many readers."""
        return readers * (BOX_BYTES + HASH_BYTES)

    def to_bytes(self) -> bytes:
        """All boxes, then all hashes."""
        return b"".join((*self.boxes, *self.hashes))

    @classmethod
    def from_bytes(cls, raw: Bytes, readers: int) -> Self:
        """Args: ``raw``: of ``nbytes(readers)``."""
        whole, cut = bytes(raw), readers * BOX_BYTES
        return cls(_split(whole[:cut], BOX_BYTES), _split(whole[cut:], HASH_BYTES))


@dataclass(frozen=True)
class KeysBody:
    """
    Body of ``keys``.

    Args:
        context: Of the round as the client sees it, 32 bytes.
        mask_key: Its public mask key, 32 bytes.
        signature: Of ``context.mask_key_statement``, 64 bytes.
        dealt: Shares of its mask secret, for its neighbours in the cohort.
    """

    context: bytes
    mask_key: bytes
    signature: bytes
    dealt: Dealt

    @staticmethod
    def nbytes(neighbours: int) -> int:
        """Bytes of the body of a client with so many neighbours in the cohort."""
        return CONTEXT_BYTES + _KEY_BYTES + SIGNATURE_BYTES + Dealt.nbytes(neighbours)

    def to_bytes(self) -> bytes:
        """The body."""
        return b"".join((self.context, self.mask_key, self.signature, self.dealt.to_bytes()))

    @classmethod
    def from_bytes(cls, raw: Bytes, neighbours: int) -> Self:
        """
        A body from anywhere. Args: ``neighbours``: of its client in the cohort.

        Raises:
            MessageError: It has another size.
        """
        whole = _of_size("keys", raw, cls.nbytes(neighbours))
        context, key, signature, rest = _cut(whole, CONTEXT_BYTES, _KEY_BYTES, SIGNATURE_BYTES)
        return cls(context, key, signature, Dealt.from_bytes(rest, neighbours))


@dataclass(frozen=True)
class UpdateTrailer:
    """
    What follows the masked vector in the body of an ``update``.

    Args:
        commitment: To the self secret b, 32 bytes.
        roster: Digest of the roster under which it was masked, hexadecimal.
        dealt: Shares of b, for its neighbours in the roster.
    """

    commitment: bytes
    roster: str
    dealt: Dealt

    @staticmethod
    def nbytes(neighbours: int) -> int:
        """Bytes of the trailer of a client with so many neighbours in the roster."""
        return 2 * HASH_BYTES + Dealt.nbytes(neighbours)

    def to_bytes(self) -> bytes:
        """The trailer."""
        return b"".join((self.commitment, bytes.fromhex(self.roster), self.dealt.to_bytes()))

    @classmethod
    def from_bytes(cls, raw: Bytes, neighbours: int) -> Self:
        """
        A trailer from anywhere. Args: ``neighbours``: of its client in the roster.

        Raises:
            MessageError: It has another size.
        """
        whole = _of_size("trailer of an update", raw, cls.nbytes(neighbours))
        commitment, roster, rest = _cut(whole, HASH_BYTES, HASH_BYTES)
        return cls(commitment, roster.hex(), Dealt.from_bytes(rest, neighbours))


@dataclass(frozen=True)
class ConfirmBody:
    """Body of ``confirm``. Args: ``signature``: of ``context.confirm_statement``, 64 bytes."""

    signature: bytes

    def to_bytes(self) -> bytes:
        """The body."""
        return self.signature

    @classmethod
    def from_bytes(cls, raw: Bytes) -> Self:
        """A body from anywhere. Raises MessageError when it has another size."""
        return cls(_of_size("confirm", raw, SIGNATURE_BYTES))


@dataclass(frozen=True)
class UnmaskBody:
    """
    Body of ``unmask``.

    Args:
        shares: Of each of the client and its neighbours in the roster, by id, 32 bytes: of its self secret if it
            survived, of its mask secret if not; ``NO_SHARE`` where there is none.
    """

    shares: tuple[bytes, ...]

    @staticmethod
    def nbytes(secrets: int) -> int:
        """Bytes of the body with shares of so many secrets."""
        return secrets * ELEMENT_BYTES

    def to_bytes(self) -> bytes:
        """The body."""
        return b"".join(self.shares)

    @classmethod
    def from_bytes(cls, raw: Bytes, secrets: int) -> Self:
        """
        A body from anywhere. Args: ``secrets``: the client, and its neighbours in the roster.

        Raises:
            MessageError: It has another size.
        """
        whole = _of_size("unmask", raw, cls.nbytes(secrets))
        return cls(_split(whole, ELEMENT_BYTES))


def _of_size(what: str, raw: Bytes, expected: int) -> bytes:
    if len(raw) != expected:
        raise MessageError(f"body of {what} has {len(raw)} bytes, not {expected}")
    return bytes(raw)


def _cut(whole: bytes, *sizes: int) -> Sequence[bytes]:
    """Parts of these sizes, and the rest."""
    parts, start = [], 0
    for size in sizes:
        parts.append(whole[start : start + size])
        start += size
    return (*parts, whole[start:])


def _split(whole: bytes, size: int) -> tuple[bytes, ...]:
    return tuple(whole[start : start + size] for start in range(0, len(whole), size))
