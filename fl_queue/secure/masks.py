"""
Masks: streams of words that are added to a vector before it is sent, and cancel in the sum.

A client adds a self mask, and for each neighbour of the roster a pair mask: the one of the two ids that is
smaller adds it, the other subtracts it. In the sum of all of the roster pair masks are gone. Self masks of the survivors, and
pair masks of those who dropped out, are taken off with the secrets that their neighbours' shares give.

Source:
    Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning" (eprint 2017/281).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fl_queue.errors import MessageError
from fl_queue.protocol import crypto
from fl_queue.protocol.arrays import Tensor
from fl_queue.secure import shamir
from fl_queue.secure.graph import Graph


@dataclass(frozen=True)
class Mask:
    """
    One mask: the keys of its streams, one for each part of a vector, and its sign.

    Args:
        values, tail: 32 bytes each.
        sign: 1: it is added, -1: subtracted.
    """

    values: bytes
    tail: bytes
    sign: int = 1

    def negated(self) -> Mask:
        """The mask that takes this one off."""
        return replace(self, sign=-self.sign)

    def apply_to_values(self, words: Tensor, first: int = 0) -> None:
        """
        Add the mask to a range of a vector's values, in place.

        Args:
            words: Flat and contiguous, uint32 for up to 32 bits, else uint64.
            first: Index in the vector of the first of them.
        """
        _apply(words, self.values, self.sign, first)

    def apply_to_tail(self, words: Tensor) -> None:
        """Add the mask to a whole tail, in place. Args: ``words``: uint64."""
        _apply(words, self.tail, self.sign, 0)


def mask_key(secret: bytes, context: bytes) -> bytes:
    """The secret mask key, X25519, that belongs to a client's mask secret r. Args: ``secret``: 32 bytes."""
    return crypto.derive(secret, context, b"fl-queue mask key v1")


def self_mask(secret: bytes, context: bytes, client: str) -> Mask:
    """The self mask of a masked update. Args: ``secret``: b, 32 bytes."""
    return Mask(*_stream_keys(secret, context, b"fl-queue self mask v1\0", client))


def pair_mask(own_key: bytes, other_key: bytes, context: bytes, own: str, other: str) -> Mask:
    """
    The pair mask of two clients as one of them adds it.

    Args:
        own_key: Secret mask key of ``own``.
        other_key: Public mask key of ``other``.

    Raises:
        MessageError: The other's key is of low order.
    """
    try:
        shared = crypto.exchange(own_key, other_key)
    except MessageError:
        raise MessageError(f"bad key of {other}") from None
    names = "\0".join(sorted((own, other)))
    keys = _stream_keys(shared, context, b"fl-queue pair mask v1\0", names)
    return Mask(*keys, sign=1 if own < other else -1)


def masks_of(
    client: str, key: bytes, secret: bytes, mask_keys: Mapping[str, bytes], context: bytes
) -> list[Mask]:
    """
    All masks that a client adds to its vector.

    Args:
        client: Its id.
        key: Its secret mask key.
        secret: The self secret b of this masked update, 32 bytes.
        mask_keys: Neighbour of the roster -> public mask key.
        context: Of the round.

    Raises:
        MessageError: A neighbour's key is of low order; names it.
    """
    pairs = (pair_mask(key, other, context, client, id_) for id_, other in mask_keys.items())
    return [self_mask(secret, context, client), *pairs]


@dataclass(frozen=True)
class Secrets:
    """
    What unmasking needs: the rebuilt secrets of a frozen round.

    Args:
        survivors: Client -> its self secret b, 32 bytes.
        dropped: Client of the roster that is no survivor -> its mask secret r, 32 bytes.
        mask_keys: Client of the roster -> public mask key, 32 bytes.
    """

    survivors: Mapping[str, bytes]
    dropped: Mapping[str, bytes]
    mask_keys: Mapping[str, bytes]

    def removals(self, graph: Graph, context: bytes) -> list[Mask]:
        """
        The masks to add to the survivors' sum so that nothing but the sum is left.

        Raises:
            MessageError: A survivor's mask key is of low order.
        """
        found = [self_mask(b, context, id_).negated() for id_, b in self.survivors.items()]
        for gone, secret in self.dropped.items():
            key = mask_key(secret, context)
            # As the one who dropped out would have added it: the other's sign is the opposite one.
            found += [
                pair_mask(key, self.mask_keys[other], context, gone, other)
                for other in graph.neighbours(gone, self.survivors.keys())
            ]
        return found


def is_secret_of(secret: bytes, public: bytes, context: bytes) -> bool:
    """Whether a rebuilt mask secret r is that of a public mask key: it is its own commitment."""
    try:
        shamir.from_bytes(secret)
    except MessageError:
        return False
    return crypto.public_half(mask_key(secret, context)) == public


def apply(masks: Iterable[Mask], values: Tensor, tail: Tensor) -> None:
    """Add masks to a whole vector, in place. Args: ``values``, ``tail``: as of ``Mask``."""
    for mask in masks:
        mask.apply_to_values(values)
        mask.apply_to_tail(tail)


def _stream_keys(
    material: bytes, context: bytes, purpose: bytes, names: str
) -> tuple[bytes, bytes]:
    """The keys of the two streams of a mask: of values and of tail."""
    values, tail = (
        crypto.derive(material, context, b"".join((purpose, part, b"\0", names.encode())))
        for part in (b"values", b"tail")
    )
    return values, tail


def _apply(words: Tensor, key: bytes, sign: int, first: int) -> None:
    size = words.dtype.itemsize
    order, at = words.dtype.newbyteorder("<"), 0
    combine = np.add if sign > 0 else np.subtract
    for piece in crypto.keystream(key, first * size, words.size * size):
        stream = np.frombuffer(piece, order)
        part = words[at : at + stream.size]
        combine(part, stream, out=part)
        at += stream.size
