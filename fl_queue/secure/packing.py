"""Words of a ring <-> bytes on the wire: the low bits of each, little-endian, in whole bytes at the end."""

from __future__ import annotations

from typing import Any

import numpy as np

from fl_queue.protocol.arrays import Octets, Tensor
from fl_queue.protocol.header import wire_nbytes
from fl_queue.protocol.tensor_layout import Bytes, as_bytes

#: Bits whose words are integers of numpy.
_WHOLE = {16: "<u2", 32: "<u4", 64: "<u8"}


def pack(words: Tensor, bits: int) -> Bytes:
    """
    The bytes of words; not copied where they are laid out so already.

    Args:
        words: Flat, uint32 or (64 bits) uint64; of uint32 the upper bits are cut off.
        bits: 16, 20, 24, 32 or 64.
    """
    if bits in _WHOLE:
        return as_bytes(np.ascontiguousarray(words, _WHOLE[bits]))
    quads = _quads(words)
    if bits == 24:
        return as_bytes(np.ascontiguousarray(quads[:, :3]))
    pairs = np.zeros((-(-words.size // 2), 5), np.uint8)
    first, second = quads[::2], quads[1::2]
    pairs[:, :2] = first[:, :2]
    pairs[:, 2] = first[:, 2] & 0x0F
    shifted = _quads((words[1::2] & np.uint32(0xFFFFF)) << np.uint32(4))
    pairs[: len(second), 2] |= shifted[:, 0]
    pairs[: len(second), 3:] = shifted[:, 1:3]
    return as_bytes(pairs.reshape(-1)[: wire_nbytes("ring:20", words.size)])


def unpack(packed: Bytes, bits: int, size: int) -> Tensor:
    """
    Words from their bytes, uint32 or (64 bits) uint64, each below 2**bits.

    Args:
        packed: As many bytes as so many words have.
        bits: As of ``pack``.
        size: How many words.
    """
    if bits in _WHOLE:
        found: Tensor = np.frombuffer(packed, _WHOLE[bits])
        return found.astype(np.uint64 if bits == 64 else np.uint32, copy=False)
    octets = np.frombuffer(packed, np.uint8)
    if bits == 24:
        return _from_quads(octets.reshape(-1, 3))
    whole = np.zeros(5 * -(-size // 2), np.uint8)
    whole[: octets.size] = octets
    pairs = whole.reshape(-1, 5)
    words = np.empty(2 * len(pairs), np.uint32)
    words[::2] = _from_quads(pairs[:, :3]) & np.uint32(0xFFFFF)
    words[1::2] = _from_quads(pairs[:, 2:]) >> np.uint32(4)
    return words[:size]


def _quads(words: Tensor) -> Octets:
    """The four bytes of each word, (words, 4)."""
    plain: np.ndarray[Any, Any] = np.ascontiguousarray(words, "<u4")
    return plain.view(np.uint8).reshape(-1, 4)


def _from_quads(octets: Octets) -> Tensor:
    """Words of their three low bytes, (words, 3)."""
    quads = np.zeros((len(octets), 4), np.uint8)
    quads[:, :3] = octets
    return quads.view("<u4").reshape(-1).astype(np.uint32, copy=False)
