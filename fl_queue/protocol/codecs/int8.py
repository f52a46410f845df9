"""
float32 <-> blocks of int8: one scale for 256 elements, and rounding up or down at random.

A block is its scale as float32 LE, then one int8 for each element; the last block of a tensor may
have fewer than 256. ``scale = absmax / 127``; an element ``x = value / scale`` becomes ``floor(x)``
or the integer above, the latter with probability ``x - floor(x)`` (to within 2**-24), so that the
mean over many updates is not off to one side. QSGD (Alistarh et al. 2017, arXiv 1610.02132) does so
with the norm of a vector where the largest magnitude of a block stands here.

The random number of element i is output i + 1 of SplitMix64 (Steele, Lea and Flood 2014, "Fast
splittable pseudorandom number generators") begun at a key: a hash of key and i alone, so order,
grouping and machine do not matter. All arithmetic is single float32 operations in a fixed order,
the same in the numba loops and in numpy. No names, no seeds, no checks of sizes here.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fl_queue.common import jit
from fl_queue.protocol.arrays import Float32s, Float64s, Int64s, Octets

#: Elements that share a scale.
BLOCK = 256
#: With fewer elements a process is done before it has imported numba.
WORTH_COMPILING = 8_000_000


_log = logging.getLogger(__name__)

_SCALE_BYTES = 4
_BLOCK_BYTES = _SCALE_BYTES + BLOCK
#: Blocks the numpy paths work on at a time: what they need then stays in an L2 cache.
_NUMPY_BLOCKS = 64

#: No scale is smaller than the smallest normal float32: machines that flush denormals decode the
#: same, and a block of zeros needs no case of its own.
_LEAST_SCALE = np.float32(2.0**-126)
_MOST = np.float32(127.0)
_INF_BITS = np.uint32(0x7F800000)
_MAGNITUDE_BITS = np.uint32(0x7FFFFFFF)
_NAN = np.float32(np.nan)

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_30, _27, _31, _40 = (np.uint64(shift) for shift in (30, 27, 31, 40))
#: The upper 24 bits of a random number, as a float32 in [0, 1), exactly.
_UNIT = np.float32(2.0**-24)


def nbytes(size: int) -> int:
    """Bytes of ``size`` elements: one each, and 4 for each block begun."""
    return size + -(-size // BLOCK) * _SCALE_BYTES


def quantise(values: Float32s, out: Octets, first: int, key: int) -> None:
    """
    Write blocks of int8.

    A block that holds NaN or Inf becomes all NaN (a scale of NaN and zeros): the check of the
    range of what is decoded still sees that something was broken.

    Args:
        values: Flat and contiguous, of any alignment.
        out: ``nbytes(values.size)`` bytes, overwritten.
        first: Index in its tensor of the first value, a multiple of ``BLOCK``.
        key: Of the tensor, 0 to 2**64-1.
    """
    bits, scales = values.view(np.uint32), _scales(out)
    _kernels().quantise(values, bits, out.view(np.int8), scales, first, np.uint64(key))


def dequantise(encoded: Octets, out: Float32s) -> None:
    """
    ``float32(q) * scale`` of every element; bytes of any values give some float32.

    -128, which ``quantise`` never writes, is a number like the others.

    Args:
        encoded: ``nbytes(out.size)`` bytes that begin with a block.
        out: Flat and contiguous, overwritten.
    """
    _kernels().dequantise(encoded.view(np.int8), _scales(encoded), out)


def rounded(values: Float64s, first: int, key: int) -> Int64s:
    """
    Values rounded up or down at random by the same numbers, up with the probability of their fraction.

    Args:
        values: Flat, each within the range of int64.
        first: Index in its tensor of the first value.
        key: Of the tensor, 0 to 2**64-1.
    """
    below = np.floor(values)
    above = _chances(np.uint64(key), first, values.size) < values - below
    return below.astype(np.int64) + above


def warm_up() -> None:
    """
    Compile the loops, or load them from numba's cache: from now on they do the work, before it numpy.

    It takes about as long as numpy takes for ``WORTH_COMPILING`` elements; the bytes are the same.
    """
    _in_use[0] = _compiled()


def _scales(octets: Octets) -> Float32s:
    return np.ndarray((-(-octets.size // _BLOCK_BYTES),), "<f4", octets, 0, (_BLOCK_BYTES,))


class _Kernels(NamedTuple):
    """
    The inner loops, over flat arrays.

    Args:
        quantise: (values, the same as uint32, blocks as int8, their scales, first, key).
        dequantise: (blocks as int8, their scales, out).
    """

    quantise: Callable[[Any, Any, Any, Any, int, np.uint64], None]
    dequantise: Callable[[Any, Any, Any], None]


def _kernels() -> _Kernels:
    return _in_use[0]


@functools.cache
def _compiled() -> _Kernels:
    try:
        return _numba_kernels()
    except ImportError as exc:
        _log.warning("numba cannot be imported (%s): int8 with numpy, far slower", exc)
        return _Kernels(_quantise_numpy, _dequantise_numpy)


def _numba_kernels() -> _Kernels:
    # Views of an element are read-only and, after a header of any length, unaligned.
    flat = "Array({}, 1, 'C', readonly={}, aligned=False)"
    scales = "Array(float32, 1, 'A', readonly={}, aligned=False)"
    quantise = (
        flat.format("float32", True),
        flat.format("uint32", True),
        "int8[::1]",
        scales.format(False),
        "int64",
        "uint64",
    )
    dequantise = (
        flat.format("int8", True),
        scales.format(True),
        flat.format("float32", False),
    )
    return _Kernels(
        *jit.compiled(
            {
                _quantise_loop: f"void({', '.join(quantise)})",
                _dequantise_loop: f"void({', '.join(dequantise)})",
            }
        )
    )


def _quantise_loop(values: Any, bits: Any, blocks: Any, scales: Any, first: Any, key: Any) -> None:
    for block in range(scales.size):
        start, to = block * BLOCK, block * _BLOCK_BYTES + _SCALE_BYTES
        size = min(BLOCK, values.size - start)
        largest, absmax = np.uint32(0), np.float32(0)
        # Two loops, each of one kind of number, are vectorised; one of both is not.
        for i in range(size):
            largest = max(largest, bits[start + i] & _MAGNITUDE_BITS)
        for i in range(size):
            absmax = max(absmax, abs(values[start + i]))
        if largest >= _INF_BITS:
            scales[block] = _NAN
            for i in range(size):
                blocks[to + i] = 0
            continue
        scale = max(absmax / _MOST, _LEAST_SCALE)
        scales[block] = scale
        state = key + np.uint64(first + start) * _GAMMA
        for i in range(size):
            # The scale is rounded: the largest element may come out a little above 127.
            x = min(max(values[start + i] / scale, -_MOST), _MOST)
            below = np.floor(x)
            z = state + np.uint64(i + 1) * _GAMMA
            z = (z ^ (z >> _30)) * _MIX_1
            z = (z ^ (z >> _27)) * _MIX_2
            chance = np.float32(np.int32((z ^ (z >> _31)) >> _40)) * _UNIT
            above = np.float32(1) if chance < x - below else np.float32(0)
            blocks[to + i] = np.int8(np.int32(below + above))


def _dequantise_loop(blocks: Any, scales: Any, out: Any) -> None:
    for block in range(scales.size):
        start, at = block * BLOCK, block * _BLOCK_BYTES + _SCALE_BYTES
        scale = scales[block]
        for i in range(min(BLOCK, out.size - start)):
            out[start + i] = np.float32(blocks[at + i]) * scale


def _quantise_numpy(
    values: Float32s, bits: Any, blocks: Any, scales: Any, first: int, key: np.uint64
) -> None:
    for start in range(0, values.size, _NUMPY_BLOCKS * BLOCK):
        some = values[start : start + _NUMPY_BLOCKS * BLOCK]
        group = np.zeros((-(-some.size // BLOCK), BLOCK), np.float32)
        group.reshape(-1)[: some.size] = some
        scale = np.maximum(np.abs(group).max(axis=1) / _MOST, _LEAST_SCALE)  # (blocks,)
        broken = ~np.isfinite(scale)
        group[broken], scale[broken] = 0, _NAN
        x = np.clip(group / scale[:, None], -_MOST, _MOST)
        below = np.floor(x)
        below += _chances(key, first + start, group.size).reshape(x.shape) < x - below
        below[broken] = 0
        packed = np.empty((group.shape[0], _BLOCK_BYTES), np.int8)
        packed[:, :_SCALE_BYTES] = scale[:, None].view(np.int8)
        packed[:, _SCALE_BYTES:] = below
        at = nbytes(start)
        blocks[at : at + nbytes(some.size)] = packed.reshape(-1)[: nbytes(some.size)]


def _chances(key: np.uint64, first: int, count: int) -> Float32s:
    """The random numbers of ``count`` elements, in [0, 1)."""
    z = key + np.arange(first + 1, first + 1 + count, dtype=np.uint64) * _GAMMA
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return ((z ^ (z >> _31)) >> _40).astype(np.float32) * _UNIT


def _dequantise_numpy(blocks: Any, scales: Float32s, out: Float32s) -> None:
    # Bytes from elsewhere: a scale may be NaN, Inf or too large.
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, scales.size, _NUMPY_BLOCKS):
            scale = scales[start : start + _NUMPY_BLOCKS]
            packed = np.zeros((scale.size, _BLOCK_BYTES), np.int8)
            some = blocks[start * _BLOCK_BYTES :][: packed.size]
            packed.reshape(-1)[: some.size] = some
            group = packed[:, _SCALE_BYTES:] * scale[:, None]
            to = out[start * BLOCK :][: group.size]
            to[...] = group.reshape(-1)[: to.size]


_in_use = [_Kernels(_quantise_numpy, _dequantise_numpy)]
