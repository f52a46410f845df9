"""
Codecs: bodies in fewer bytes on the wire, and back. Lossy, and still the same bits everywhere.

A body is the manifest's tensors one after the other (``blob.py``); an encoded body is the same
tensors in the same order, without gaps, each as its wire dtype has it (all little-endian):

    codec      parameters   one parameter of n elements is
    float32    float32      4n bytes: the body itself
    bfloat16   bfloat16     2n bytes: the upper half of each float32, rounded to nearest even
    int8       int8x256     n + 4 * ceil(n / 256) bytes: for each block of 256 elements (the last
                            may have fewer) its scale as float32, then one int8 an element

Buffers stay as they are in every codec. Integer buffers are counters, of which the maximum counts;
float buffers are statistics such as BatchNorm's: a rounded variance is an error in every later
forward pass that no training corrects, and they are too few to save anything.

int8 rounds at random (``int8.py``): the random number of an element is a function of the seed, the
tensor's name and the element's index, so any machine, with or without numba, in pieces or at once,
makes the same bytes.

Encoded bytes from elsewhere may hold anything: a wrong length is a ``BlobError``, and all else
decodes to some float32, which the exact sum's range check accepts or not. int8 makes a block with
NaN or Inf all NaN, so that a broken update is still seen to be broken. No Redis here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_queue import int8
from fl_queue.blob import Bytes, Tensor, TensorEntry
from fl_queue.errors import BlobError
from fl_queue.records import DTYPES, Manifest, TensorSpec
from fl_queue.sampling import seed_for

CODECS = ("float32", "bfloat16", "int8")
#: A piece that is encoded or decoded alone begins at a multiple of it, whatever the codec.
BLOCK = int8.BLOCK

_Octets = npt.NDArray[np.uint8]

#: Codec -> wire dtype of a parameter.
_WIRE = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8x256"}
_ITEM_BYTES = {"float32": 4, "int64": 8, "bfloat16": 2}
#: Elements bfloat16 works on at a time: what they need then stays in an L2 cache.
_NUMPY_ELEMENTS = 16384

_INF_BITS = np.uint32(0x7F800000)
_MAGNITUDE_BITS = np.uint32(0x7FFFFFFF)


# --- layout


def wire_nbytes(dtype: str, size: int) -> int:
    """
    Bytes of a tensor of ``size`` elements on the wire.

    Raises:
        BlobError: No such wire dtype.
    """
    if dtype == "int8x256":
        return int8.nbytes(size)
    if dtype not in _ITEM_BYTES:
        raise BlobError(f"wire dtype {dtype!r} is not one of {', '.join(_DECODERS)}")
    return size * _ITEM_BYTES[dtype]


def wire_dtype(codec: str, spec: TensorSpec) -> str:
    """
    The wire dtype of a tensor: its codec's for a parameter, its own for a buffer.

    Raises:
        BlobError: No such codec.
    """
    if codec not in _WIRE:
        raise BlobError(f"codec {codec!r} is not one of {', '.join(CODECS)}")
    return _WIRE[codec] if spec.kind == "parameter" else DTYPES[spec.kind]


def entries(codec: str, manifest: Manifest) -> tuple[TensorEntry, ...]:
    """
    The layout of an encoded body, as a header carries it; with float32 that of ``blob.entries``.

    Raises:
        BlobError: No such codec.
    """
    found: list[TensorEntry] = []
    offset = 0
    for spec in manifest.tensors:
        dtype = wire_dtype(codec, spec)
        nbytes = wire_nbytes(dtype, spec.size)
        found.append(TensorEntry(spec.name, dtype, spec.shape, offset, nbytes))
        offset += nbytes
    return tuple(found)


def encoded_nbytes(codec: str, manifest: Manifest) -> int:
    """
    Bytes of an encoded body.

    Raises:
        BlobError: No such codec.
    """
    return sum(entry.nbytes for entry in entries(codec, manifest))


def split(codec: str, manifest: Manifest, encoded: Bytes) -> dict[str, memoryview]:
    """
    Tensor name -> its bytes in an encoded body, for ``decode_tensor``; read-only, not copied.

    Raises:
        BlobError: The body is not of the size that codec and manifest give, or no such codec.
    """
    layout = entries(codec, manifest)
    _check_nbytes(codec, "body", len(encoded), sum(entry.nbytes for entry in layout))
    whole = memoryview(encoded).toreadonly()
    return {e.name: whole[e.offset : e.offset + e.nbytes] for e in layout}


# --- whole bodies


def encode(codec: str, manifest: Manifest, body: Bytes, seed: int) -> bytearray:
    """
    Encode a body.

    Args:
        codec: One of ``CODECS``.
        manifest: The body's tensors.
        body: As ``blob.encode_body`` lays it out; not modified.
        seed: Decides how int8 rounds; one for each update, and the same when it is made again.

    Raises:
        BlobError: The body is not of the manifest's size, or no such codec.
    """
    parts = split("float32", manifest, body)
    encoded = bytearray(encoded_nbytes(codec, manifest))
    for spec, entry in zip(manifest.tensors, entries(codec, manifest), strict=True):
        values = np.ndarray((spec.size,), _numpy_dtype(spec), parts[spec.name])
        out = np.ndarray((entry.nbytes,), np.uint8, encoded, entry.offset)
        _ENCODERS[entry.dtype](values, out, 0, _key(seed, spec))
    return encoded


def decode(codec: str, manifest: Manifest, encoded: Bytes) -> bytearray:
    """
    The body that an encoded body stands for.

    Raises:
        BlobError: It is not of the size that codec and manifest give, or no such codec.
    """
    parts = split(codec, manifest, encoded)
    body = bytearray(manifest.nbytes)
    for spec, offset in manifest.offsets():
        out = np.ndarray((spec.size,), _numpy_dtype(spec), body, offset)
        decode_tensor(codec, spec, parts[spec.name], out)
    return body


# --- pieces


def encode_piece(codec: str, spec: TensorSpec, start: int, values: Tensor, seed: int) -> bytearray:
    """
    Encode elements ``start`` on of one tensor; the pieces of a body in order are ``encode``'s bytes.

    Args:
        codec: One of ``CODECS``.
        spec: The tensor.
        start: Index of the first element (C order), a multiple of ``BLOCK``.
        values: Flat, float32 (an integer buffer: int64); as many as a multiple of ``BLOCK``, or up
            to the end of the tensor. Not modified.
        seed: As in ``encode``.

    Raises:
        BlobError: No such codec.
        ValueError: A range or dtype that is not as described.
    """
    dtype = wire_dtype(codec, spec)
    stop = start + values.size
    _check_piece(spec, start, values)
    if stop % BLOCK and stop != spec.size:
        raise ValueError(f"{spec.name}: a piece ends at {stop}, inside a block of {BLOCK}")
    encoded = bytearray(wire_nbytes(dtype, values.size))
    out = np.ndarray((len(encoded),), np.uint8, encoded)
    _ENCODERS[dtype](np.ascontiguousarray(values), out, start, _key(seed, spec))
    return encoded


def decode_tensor(
    codec: str, spec: TensorSpec, encoded: Bytes, out: Tensor, start: int = 0
) -> None:
    """
    Decode ``out.size`` elements of one tensor: so a body is never in memory decoded.

    Args:
        codec: One of ``CODECS``.
        spec: The tensor.
        encoded: All its bytes, as ``split`` gives them.
        out: Flat and contiguous, float32 (an integer buffer: int64); overwritten.
        start: Index of the first element (C order), a multiple of ``BLOCK``.

    Raises:
        BlobError: The bytes are not as many as the tensor has, or no such codec.
        ValueError: A range or dtype that is not as described.
    """
    dtype = wire_dtype(codec, spec)
    _check_nbytes(codec, f"tensor {spec.name!r}", len(encoded), wire_nbytes(dtype, spec.size))
    _check_piece(spec, start, out)
    if not out.flags.c_contiguous:
        raise ValueError(f"{spec.name}: the array to decode into is not contiguous")
    first, end = wire_nbytes(dtype, start), wire_nbytes(dtype, start + out.size)
    _DECODERS[dtype](np.ndarray((end - first,), np.uint8, encoded, first), out)


def _key(seed: int, spec: TensorSpec) -> int:
    return seed_for(seed, "int8", spec.name)


def _check_nbytes(codec: str, what: str, found: int, expected: int) -> None:
    if found != expected:
        raise BlobError(f"codec {codec}: {what} has {found} bytes, not {expected}")


def _check_piece(spec: TensorSpec, start: int, values: Tensor) -> None:
    if start % BLOCK or not 0 <= start <= start + values.size <= spec.size:
        raise ValueError(
            f"{spec.name}: {values.size} elements from {start} are not a piece of {spec.size}"
            f" that begins at a multiple of {BLOCK}"
        )
    if values.ndim != 1 or values.dtype != _numpy_dtype(spec):
        raise ValueError(f"{spec.name}: {values.dtype} {values.shape} is not flat {spec.dtype}")


def _numpy_dtype(spec: TensorSpec) -> np.dtype[Any]:
    return np.dtype(spec.dtype).newbyteorder("<")


# --- as it is, and bfloat16


def _plain_encode(values: Tensor, out: _Octets, start: int, key: int) -> None:
    out[...] = values.view(np.uint8)


def _plain_decode(encoded: _Octets, out: Tensor) -> None:
    out.view(np.uint8)[...] = encoded


def _bfloat16_encode(values: Tensor, out: _Octets, start: int, key: int) -> None:
    bits, halves = values.view(np.uint32), out.view(np.uint16)
    for at in range(0, bits.size, _NUMPY_ELEMENTS):
        block = bits[at : at + _NUMPY_ELEMENTS]
        # Half of the last place that stays, less one when that place is even.
        rounded = block >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += block
        rounded >>= 16
        nan = (block & _MAGNITUDE_BITS) > _INF_BITS
        if nan.any():
            # Rounding could carry a NaN into -0, and cutting could make it Inf: set the quiet bit.
            rounded[nan] = block[nan] >> 16 | 0x40
        halves[at : at + _NUMPY_ELEMENTS] = rounded


def _bfloat16_decode(encoded: _Octets, out: Tensor) -> None:
    bits, halves = out.view(np.uint32), encoded.view(np.uint16)
    for at in range(0, bits.size, _NUMPY_ELEMENTS):
        block = bits[at : at + _NUMPY_ELEMENTS]
        block[...] = halves[at : at + _NUMPY_ELEMENTS]
        block <<= 16


_ENCODERS: dict[str, Callable[[Tensor, _Octets, int, int], None]] = {
    "float32": _plain_encode,
    "int64": _plain_encode,
    "bfloat16": _bfloat16_encode,
    "int8x256": int8.quantise,
}
_DECODERS: dict[str, Callable[[_Octets, Tensor], None]] = {
    "float32": _plain_decode,
    "int64": _plain_decode,
    "bfloat16": _bfloat16_decode,
    "int8x256": int8.dequantise,
}
