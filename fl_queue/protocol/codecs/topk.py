"""
Top-k: of each block of 2**20 elements of a tensor the ``k`` of largest magnitude, the rest is zero.

A block of n elements is ``k = ceil(fraction * n)`` indices in the block (uint32, strictly ascending), and
then their k values (float32), all little-endian: 8k bytes. Of two equal magnitudes the smaller index
goes first. Magnitudes are compared as bits, so Inf comes before any number and NaN before Inf: a broken
update is still seen to be broken.

The codec's name, and a tensor's dtype on the wire, is ``topk:<fraction>`` with at most six decimals. What
is not sent should not be lost: see ``feedback``. Bytes from elsewhere may hold anything: indices that
do not ascend, or are beyond the block, are a ``MessageError``, and nothing larger than the tensor is made.

Source:
    Aji and Heafield 2017, arXiv 1704.05021; Stich et al. 2018, arXiv 1809.07599.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fl_queue.errors import MessageError
from fl_queue.protocol.arrays import Float32s, Octets

#: Elements that are looked at together; a piece that is encoded alone begins at a multiple of it.
BLOCK = 1 << 20
#: The smallest fraction that a name can hold.
LEAST = 1e-6


_NAME = re.compile(r"topk:(1|0\.[0-9]{0,5}[1-9])")
_ENTRY_BYTES = 8
_MAGNITUDE_BITS = np.uint32(0x7FFFFFFF)


def name_of(fraction: float) -> str:
    """The codec that keeps this part of the elements, ``LEAST`` to 1, rounded to six decimals."""
    return f"topk:{Decimal(f'{fraction:.6f}').normalize():f}"


def is_name(text: str) -> bool:
    """Whether a text is a codec's name, written as ``name_of`` does."""
    return _NAME.fullmatch(text) is not None


def nbytes(name: str, size: int) -> int:
    """Bytes of ``size`` elements of a tensor from the beginning of a block on."""
    blocks, rest = divmod(size, BLOCK)
    return _ENTRY_BYTES * (blocks * _count(name, BLOCK) + _count(name, rest))


def encode(name: str, values: Float32s, out: Octets) -> None:
    """
    Write the blocks of a tensor, or of a piece of it.

    Args:
        name: The codec.
        values: Flat, from the beginning of a block to the end of one, or of the tensor.
        out: ``nbytes(name, values.size)`` bytes, overwritten.
    """
    at = 0
    for start in range(0, values.size, BLOCK):
        block = values[start : start + BLOCK]
        count = _count(name, block.size)
        chosen = largest(block, count)
        end = at + _ENTRY_BYTES * count
        out[at : at + 4 * count] = chosen.astype("<u4").view(np.uint8)
        out[at + 4 * count : end] = block[chosen].astype("<f4").view(np.uint8)
        at = end


def largest(values: Float32s, count: int) -> npt.NDArray[np.int64]:
    """Indices of the ``count`` values of largest magnitude, ascending; of equals the first ones."""
    magnitudes = np.ascontiguousarray(values).view(np.uint32) & _MAGNITUDE_BITS
    if count >= values.size:
        return np.arange(values.size)
    least = np.partition(magnitudes, values.size - count)[values.size - count]
    above = np.flatnonzero(magnitudes > least)
    equal = np.flatnonzero(magnitudes == least)[: count - above.size]
    return np.sort(np.concatenate([above, equal]))


def check(name: str, size: int, encoded: Octets) -> None:
    """
    Refuse a tensor whose indices are not those of its blocks.

    Args:
        name: The codec.
        size: Elements of the tensor.
        encoded: ``nbytes(name, size)`` bytes.

    Raises:
        MessageError: Indices do not ascend, or one is beyond its block.
    """
    for start, indices, _ in _blocks(name, size, encoded):
        length = min(BLOCK, size - start)
        if (indices[1:] <= indices[:-1]).any() or indices[-1] >= length:
            raise MessageError(f"codec {name}: indices do not ascend below {length}")


def decode(name: str, size: int, encoded: Octets, start: int, out: Float32s) -> None:
    """
    Decode ``out.size`` elements from ``start`` on; those that were not sent are zero.

    Args:
        name, size, encoded: As for ``check``, which let them pass.
        start: Index of the first element.
        out: Flat; overwritten.

    Raises:
        MessageError: ``check`` would not have let them pass.
    """
    out[...] = 0
    stop = start + out.size
    for first, indices, values in _blocks(name, size, encoded):
        if first >= stop or first + BLOCK <= start:
            continue
        low, high = np.searchsorted(indices, [max(start - first, 0), min(stop - first, BLOCK)])
        places = indices[low:high].astype(np.int64) + (first - start)
        if places.size and not 0 <= places.min() <= places.max() < out.size:
            raise MessageError(f"codec {name}: indices do not ascend")
        out[places] = values[low:high]


def _count(name: str, size: int) -> int:
    """Entries of a block of ``size`` elements."""
    share = Fraction(name.partition(":")[2])
    return -(-share.numerator * size // share.denominator)


def _blocks(
    name: str, size: int, encoded: Octets
) -> Iterator[tuple[int, npt.NDArray[np.uint32], Float32s]]:
    """Index of a block's first element, its indices and its values, without a copy."""
    at = 0
    for start in range(0, size, BLOCK):
        count = _count(name, min(BLOCK, size - start))
        middle, end = at + 4 * count, at + _ENTRY_BYTES * count
        yield start, encoded[at:middle].view("<u4"), encoded[middle:end].view("<f4")
        at = end
