"""
The vector of a secure round: words of an update as integers modulo 2**bits, and their sum.

Values are the parameters in the manifest's order, then extras sorted by name: ``weight * q`` with q as in
``exact_sum``, modulo 2**bits. They are computed in uint32 (up to 32 bits) or uint64; the wire carries the low bits,
little-endian, each tensor in whole bytes. The tail has words of 64 bits whatever ``bits`` is: the weight, float
buffers with the digits below them, and sums of metrics.

Scales are chosen so that no sum of the cohort can leave the signed range, so the sum modulo 2**bits, read as signed
integers, is the sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fl_queue.aggregation import digits
from fl_queue.aggregation.exact_sum import ExactSum, digits_name, first_outside, out_of_range
from fl_queue.aggregation.scales import Scale
from fl_queue.common.seeding import seed_for
from fl_queue.errors import MessageError
from fl_queue.protocol.arrays import Blocks, Int64s, Tensor
from fl_queue.protocol.codecs import int8
from fl_queue.protocol.header import TensorEntry, wire_nbytes
from fl_queue.protocol.manifest import EXTRA, Manifest, TensorSpec
from fl_queue.protocol.records import Sums
from fl_queue.protocol.tensor_layout import Bytes
from fl_queue.secure import sum_metrics
from fl_queue.secure.packing import pack, unpack

BITS = (16, 20, 24, 32, 64)
#: With fewer fractional bits, rounding to nearest would be off to one side over many clients.
_FINE = 20
_STRIDE = 1 << 16
_WEIGHT = "weight"
#: Name of the tail among the tensors of a body.
TAIL = f"{EXTRA}tail"
#: Names of the two sets of metrics: of the model's validation data, and of its training data.
VALIDATION, TRAIN = "validation", "train"


class Words(NamedTuple):
    """
    A vector, before or after masking.

    Args:
        values: Flat, uint32 for up to 32 bits, of which the upper ones mean nothing; else uint64.
        tail: Flat, uint64.
    """

    values: Tensor
    tail: Tensor


@dataclass(frozen=True)
class Accompanying:
    """
    What travels in the tail beside float buffers.

    Args:
        weight: Of the update.
        validation, train: Sums of metrics; empty: none are sent.
    """

    weight: int
    validation: Sums
    train: Sums


@dataclass(frozen=True)
class RingLayout:
    """
    Place of everything in a round's vectors.

    Args:
        sent: Tensors of an update; none in an evaluation round. Integer buffers among them do not travel.
        scales: Quantity -> its fixed-point format.
        w_max: Largest weight.
        bits: One of ``BITS``.
    """

    sent: Manifest
    scales: Mapping[str, Scale]
    w_max: int
    bits: int

    @cached_property
    def values(self) -> tuple[TensorSpec, ...]:
        """Tensors of the values, in order."""
        parameters = [spec for spec in self.sent.tensors if spec.kind == "parameter"]
        extras = sorted(
            (spec for spec in self.sent.tensors if spec.kind == "extra"), key=lambda spec: spec.name
        )
        return (*parameters, *extras)

    @cached_property
    def value_words(self) -> int:
        """Words of the values."""
        return sum(spec.size for spec in self.values)

    @cached_property
    def tail(self) -> tuple[tuple[str, int], ...]:
        """Name and number of words of each part of the tail, in order."""
        parts = [(_WEIGHT, 1)]
        for spec in self.buffers:
            parts.append((spec.name, spec.size))
            if count := self.digits_of(spec):
                parts.append((digits_name(spec.name), count * spec.size))
        return (*parts, (VALIDATION, sum_metrics.WORDS), (TRAIN, sum_metrics.WORDS))

    @cached_property
    def tail_words(self) -> int:
        """Words of the tail."""
        return sum(words for _, words in self.tail)

    @cached_property
    def buffers(self) -> tuple[TensorSpec, ...]:
        """Float buffers, in the manifest's order."""
        return tuple(spec for spec in self.sent.tensors if spec.kind == "float_buffer")

    @property
    def word(self) -> np.dtype[Any]:
        """Type in which values are computed."""
        return np.dtype(np.uint64 if self.bits > 32 else np.uint32)

    @cached_property
    def entries(self) -> tuple[TensorEntry, ...]:
        """Place on the wire of each tensor of the values, and of the tail (``~tail``) behind them."""
        found, offset = [], 0
        for spec in self.values:
            nbytes = wire_nbytes(f"ring:{self.bits}", spec.size)
            found.append(TensorEntry(spec.name, f"ring:{self.bits}", spec.shape, offset, nbytes))
            offset += nbytes
        tail = TensorEntry(TAIL, "ring:64", (self.tail_words,), offset, 8 * self.tail_words)
        return (*found, tail)

    @property
    def nbytes(self) -> int:
        """Bytes of values and tail on the wire."""
        last = self.entries[-1]
        return last.offset + last.nbytes

    def digits_of(self, spec: TensorSpec) -> int:
        """Digits of each element of a float buffer, below its fixed point."""
        scale = self.scales[spec.quantity]
        return digits.count(scale.s, scale.digit)

    def zeros(self) -> Words:
        """A vector of zeros."""
        return Words(np.zeros(self.value_words, self.word), np.zeros(self.tail_words, np.uint64))

    def pieces(self, words: Words) -> Iterator[Bytes]:
        """The bytes of a vector on the wire, piece by piece."""
        start = 0
        for spec in self.values:
            yield pack(words.values[start : start + spec.size], self.bits)
            start += spec.size
        yield pack(words.tail, 64)

    def words_of(self, body: Bytes) -> Words:
        """
        A vector from its bytes on the wire; any bytes are some vector.

        Raises:
            MessageError: They are not ``nbytes``.
        """
        if len(body) != self.nbytes:
            raise MessageError(f"masked vector has {len(body)} bytes, not {self.nbytes}")
        whole = memoryview(body).toreadonly()
        found, start = self.zeros(), 0
        for spec, entry in zip(self.values, self.entries, strict=False):
            part = whole[entry.offset : entry.offset + entry.nbytes]
            found.values[start : start + spec.size] = unpack(part, self.bits, spec.size)
            start += spec.size
        tail = self.entries[-1]
        found.tail[:] = unpack(whole[tail.offset :], 64, self.tail_words)
        return found

    def sent_words(
        self, blocks: Blocks, beside: Accompanying, factor: float = 1.0, seed: int = 0
    ) -> Words:
        """
        An update's vector before it is masked: exactly the integers that a plain round sums.

        Args:
            blocks: Of each tensor of ``sent`` as many elements as it has; see ``exact_sum``.
            beside: Weight and metrics.
            factor: Its parameters count times this, 0 to 1, where the update is clipped.
            seed: Decides the rounding where ``rounds_at_random``; one for each update.

        Raises:
            MessageError: The weight is out of range, or a value is not within its limit.
        """
        if not 1 <= beside.weight <= self.w_max:
            raise MessageError(f"weight {beside.weight} is not 1 to {self.w_max}")
        found, start = self.zeros(), 0
        for spec in self.values:
            part = found.values[start : start + spec.size]
            part[:] = self._quantised(spec, blocks, beside.weight, factor, seed)
            start += spec.size
        tail = [np.array([beside.weight], np.int64)]
        for spec in self.buffers:
            tail += self._summed(spec, blocks, beside.weight, 1.0)
        tail += [sum_metrics.words(sums) for sums in (beside.validation, beside.train)]
        found.tail[:] = np.concatenate(tail).view(np.uint64)
        return found

    def rounds_at_random(self, spec: TensorSpec) -> bool:
        """Whether values of a tensor are rounded up or down at random, so that a mean is not off to one side."""
        return self.bits < 64 and self.scales[spec.quantity].s < _FINE

    def _quantised(
        self, spec: TensorSpec, blocks: Blocks, weight: int, factor: float, seed: int
    ) -> Tensor:
        """``weight * q`` of a tensor of the values, modulo 2**64 or 2**32."""
        if not self.rounds_at_random(spec):
            return next(self._summed(spec, blocks, weight, factor)).astype(self.word)
        scale = self.scales[spec.quantity]
        times = math.ldexp(factor if spec.kind == "parameter" else 1.0, scale.s)
        key, start = seed_for(seed, "ring", spec.name), 0
        found = np.empty(spec.size, self.word)
        for values in blocks(spec):
            for at in range(0, values.size, _STRIDE):
                some = values[at : at + _STRIDE]
                if (bad := first_outside(some, scale.limit)) >= 0:
                    raise out_of_range(spec, some[bad], scale)
                q = int8.rounded(some.astype(np.float64) * times, start, key)
                found[start : start + some.size] = (q * weight).astype(self.word)
                start += some.size
        return found

    def _summed(
        self, spec: TensorSpec, blocks: Blocks, weight: int, factor: float
    ) -> Iterator[Int64s]:
        """A tensor as ``ExactSum`` adds it, and its digits where it has some; flat."""
        total = ExactSum(Manifest((spec,)), self.scales, self.w_max)
        total.add_blocks(blocks, weight, factor=factor)
        pieces = {
            piece_spec.name: piece
            for piece_spec, piece in zip(total.layout.tensors, total.pieces(), strict=True)
        }
        yield pieces.pop(spec.name).reshape(-1)
        yield from (piece.reshape(-1) for piece in pieces.values())


@dataclass(frozen=True)
class SignedSum:
    """
    A sum without masks, read as signed integers.

    Args:
        tensors: Name -> int64 array of ``ExactSum.layout``, but for integer buffers.
        weight: Sum of the weights.
        validation, train: Merged sums of metrics; empty where none were sent.
    """

    tensors: Mapping[str, Int64s]
    weight: int
    validation: Sums
    train: Sums


class RingSum:
    """
    The sum modulo 2**bits of vectors, masked or not, in any order and grouping.

    Args:
        layout: Of the round.

    Attributes:
        words: The sum; masks are taken off in place.
        count: Vectors in it.
    """

    def __init__(self, layout: RingLayout) -> None:
        self.layout = layout
        self.words = layout.zeros()
        self.count = 0

    def add(self, body: Bytes) -> None:
        """
        Add a vector by its bytes on the wire.

        Raises:
            MessageError: They are not as many as the layout has; the sum is as it was.
        """
        layout = self.layout
        if len(body) != layout.nbytes:
            raise MessageError(f"masked vector has {len(body)} bytes, not {layout.nbytes}")
        whole, start = memoryview(body).toreadonly(), 0
        for spec, entry in zip(layout.values, layout.entries, strict=False):
            part = self.words.values[start : start + spec.size]
            part += unpack(
                whole[entry.offset : entry.offset + entry.nbytes], layout.bits, spec.size
            )
            start += spec.size
        tail = self.words.tail
        tail += unpack(whole[layout.entries[-1].offset :], 64, layout.tail_words)
        self.count += 1

    def add_words(self, words: Words, count: int = 1) -> None:
        """Add vectors, or a sum of ``count`` of them."""
        np.add(self.words.values, words.values, out=self.words.values)
        np.add(self.words.tail, words.tail, out=self.words.tail)
        self.count += count

    def merge(self, other: RingSum) -> None:
        """Add another sum of vectors of the same layout."""
        self.add_words(other.words, other.count)

    def pieces(self) -> Iterator[Tensor]:
        """The sum's own body: its values and its tail, little-endian, not copied."""
        for part in self.words:
            yield np.ascontiguousarray(part, part.dtype.newbyteorder("<"))

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return self.words.values.nbytes + self.words.tail.nbytes

    def add_pieces(self, body: Bytes, count: int) -> None:
        """
        Add a sum by the bytes of its pieces; modular, so nothing of its range can be checked.

        Args:
            body: Pieces of a sum of the same layout, one after the other.
            count: Vectors in it.

        Raises:
            MessageError: They are not as many as the layout has.
        """
        if len(body) != self.nbytes:
            raise MessageError(f"partial sum has {len(body)} bytes, not {self.nbytes}")
        whole, cut = memoryview(body), self.words.values.nbytes
        values = np.frombuffer(whole[:cut], self.layout.word.newbyteorder("<"))
        self.add_words(Words(values, np.frombuffer(whole[cut:], "<u8")), count)

    def signed(self) -> SignedSum:
        """The sum as signed integers, once its masks are off."""
        layout, found, start = self.layout, dict[str, Int64s](), 0
        for spec in layout.values:
            words = self.words.values[start : start + spec.size]
            found[spec.name] = _signed(words, layout.bits).reshape(spec.shape)
            start += spec.size
        tail = self.words.tail.view(np.int64)
        parts, start = dict[str, Int64s](), 0
        for name, size in layout.tail:
            parts[name] = tail[start : start + size]
            start += size
        weight = int(parts.pop(_WEIGHT)[0])
        merged = [sum_metrics.sums_of(parts.pop(name), self.count) for name in (VALIDATION, TRAIN)]
        for spec in layout.buffers:
            found[spec.name] = parts.pop(spec.name).reshape(spec.shape)
            if rest := layout.digits_of(spec):
                name = digits_name(spec.name)
                found[name] = parts.pop(name).reshape(rest, spec.size)
        return SignedSum(found, weight, *merged)


def _signed(words: Tensor, bits: int) -> Int64s:
    """Words modulo 2**bits as integers in [-2**(bits-1), 2**(bits-1))."""
    if bits == 64:
        return words.view(np.int64)
    shift = np.uint32(32 - bits)
    return ((words << shift).view(np.int32) >> np.int32(shift)).astype(np.int64)
