"""
Codecs: bodies in fewer bytes on the wire, and back. Lossy, and still the same bits everywhere.

A body is the manifest's tensors one after the other (``protocol/message.py``); an encoded body is the same
tensors in the same order, without gaps, each as its wire dtype has it (all little-endian):

    codec      parameters   one parameter of n elements is
    float32    float32      4n bytes: the body itself
    bfloat16   bfloat16     2n bytes: the upper half of each float32, rounded to nearest even
    int8       int8x256     n + 4 * ceil(n / 256) bytes: for each block of 256 elements (the last
                            may have fewer) its scale as float32, then one int8 an element
    topk:F     topk:F       8 * ceil(F n) bytes: of each block of 2**20 elements the part F that is
                            largest, as indices and values (``protocol/codecs/topk.py``); the rest is zero

Buffers stay as they are in every codec. Integer buffers are counters, of which the maximum counts;
float buffers are statistics such as BatchNorm's: a rounded variance is an error in every later
forward pass that no training corrects, and they are too few to save anything.

int8 rounds at random (``protocol/codecs/int8.py``): the random number of an element is a function of the seed, the
tensor's name and the element's index, so any machine, with or without numba, in pieces or at once,
makes the same bytes.

Encoded bytes from elsewhere may hold anything: a wrong length is a ``MessageError``, and all else
decodes to some float32, which the exact sum's range check accepts or not; top-k's
indices are checked before. int8 makes a block with
NaN or Inf all NaN, so that a broken update is still seen to be broken. No Redis here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from fl_queue.common.seeding import seed_for
from fl_queue.errors import MessageError
from fl_queue.protocol import message, tensor_layout
from fl_queue.protocol.arrays import Octets
from fl_queue.protocol.codecs import int8, topk
from fl_queue.protocol.header import CODECS, Header, TensorEntry, is_codec, wire_nbytes
from fl_queue.protocol.manifest import DTYPES, Manifest, TensorSpec
from fl_queue.protocol.tensor_layout import Bytes, Tensor

#: A piece that is decoded alone begins at a multiple of it, whatever the codec.
BLOCK = int8.BLOCK


#: Codec -> wire dtype of a parameter.
_WIRE = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8x256"}
#: Elements encoded at a time, and decoded: what the exact sum needs of so many stays in a cache.
_PIECE = topk.BLOCK
_STRIDE = 1 << 16
#: Elements bfloat16 works on at a time: what they need then stays in an L2 cache.
_NUMPY_ELEMENTS = 16384

_INF_BITS = np.uint32(0x7F800000)
_MAGNITUDE_BITS = np.uint32(0x7FFFFFFF)


# --- layout


class CodecSettings(Protocol):
    """The fields of ``[update]`` that decide the codec."""

    @property
    def codec(self) -> str:
        """Name of the codec."""

    @property
    def fraction(self) -> float:
        """Part of a tensor's elements that ``topk`` sends."""


def encoding(update: CodecSettings) -> str:
    """The codec of a run's updates, as headers name it. Args: ``update``: the config's section."""
    return topk.name_of(update.fraction) if update.codec == "topk" else update.codec


def wire_dtype(codec: str, spec: TensorSpec) -> str:
    """
    The wire dtype of a tensor: its codec's for a parameter, its own for a buffer.

    Raises:
        MessageError: No such codec.
    """
    if not is_codec(codec):
        raise MessageError(f"codec {codec!r} is not one of {', '.join(CODECS)}, topk:0.01")
    # Top-k's layout depends on its fraction, which its name has: it is the wire dtype, too.
    return _WIRE.get(codec, codec) if spec.kind == "parameter" else DTYPES[spec.kind]


def entries(codec: str, manifest: Manifest) -> tuple[TensorEntry, ...]:
    """
    The layout of an encoded body, as a header carries it; with float32 that of ``tensor_layout.entries``.

    Raises:
        MessageError: No such codec.
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
        MessageError: No such codec.
    """
    return sum(entry.nbytes for entry in entries(codec, manifest))


def check_tensors(codec: str, header: Header, manifest: Manifest) -> None:
    """
    Refuse an update's header that has another codec, or other tensors than the codec makes of the manifest's.

    Raises:
        MessageError: Names the codec, or the first tensor that differs.
    """
    message.check_layout(header, codec, entries(codec, manifest))


def split(codec: str, manifest: Manifest, encoded: Bytes) -> dict[str, memoryview]:
    """
    Tensor name -> its bytes in an encoded body, for ``decode_tensor``; read-only, not copied.

    Raises:
        MessageError: The body is not of the size that codec and manifest give, top-k's indices are
            none, or no such codec.
    """
    layout = entries(codec, manifest)
    _check_nbytes(codec, "body", len(encoded), sum(entry.nbytes for entry in layout))
    whole = memoryview(encoded).toreadonly()
    parts = {e.name: whole[e.offset : e.offset + e.nbytes] for e in layout}
    for entry, spec in zip(layout, manifest.tensors, strict=True):
        if topk.is_name(entry.dtype):
            topk.check(codec, spec.size, _octets(parts[entry.name]))
    return parts


def prepare(codec: str, manifest: Manifest) -> None:
    """Before a process encodes one body: compile the loops for it, if that pays."""
    if codec == "int8" and sum(s.size for s in manifest.tensors) >= int8.WORTH_COMPILING:
        int8.warm_up()


# --- whole bodies


def encode(codec: str, manifest: Manifest, body: Bytes, seed: int) -> bytearray:
    """
    Encode a body.

    Args:
        codec: One of ``CODECS``.
        manifest: The body's tensors.
        body: As ``tensor_layout.encode_body`` lays it out; not modified.
        seed: Decides how int8 rounds; one for each update, and the same when it is made again.

    Raises:
        MessageError: The body is not of the manifest's size, or no such codec.
    """
    parts = split("float32", manifest, body)
    encoded = bytearray(encoded_nbytes(codec, manifest))
    for spec, entry in zip(manifest.tensors, entries(codec, manifest), strict=True):
        values = np.ndarray((spec.size,), _numpy_dtype(spec), parts[spec.name])
        out = np.ndarray((entry.nbytes,), np.uint8, encoded, entry.offset)
        _encode_into(entry.dtype, values, out, 0, _key(seed, spec))
    return encoded


def decode(codec: str, manifest: Manifest, encoded: Bytes) -> bytearray:
    """
    The body that an encoded body stands for.

    Raises:
        MessageError: It is not of the size that codec and manifest give, or no such codec.
    """
    parts = split(codec, manifest, encoded)
    body = bytearray(manifest.nbytes)
    for spec, offset in manifest.offsets():
        out = np.ndarray((spec.size,), _numpy_dtype(spec), body, offset)
        decode_tensor(codec, spec, parts[spec.name], out)
    return body


# --- pieces


def encode_piece(codec: str, spec: TensorSpec, start: int, values: Tensor, seed: int) -> Bytes:
    """
    Encode elements ``start`` on of one tensor; the pieces of a body in order are ``encode``'s bytes.

    Args:
        codec: One of ``CODECS``.
        spec: The tensor.
        start: Index of the first element (C order), a multiple of ``BLOCK``, for
            top-k of ``topk.BLOCK``.
        values: Flat, float32 (an integer buffer: int64); as many as a multiple of that, or up to
            the end of the tensor. Not modified.
        seed: As in ``encode``.

    Returns:
        The bytes; of a tensor that the codec leaves as it is those of ``values``, not copied.

    Raises:
        MessageError: No such codec.
        ValueError: A range or dtype that is not as described.
    """
    dtype = wire_dtype(codec, spec)
    stop = start + values.size
    _check_piece(spec, start, values)
    block = topk.BLOCK if topk.is_name(dtype) else BLOCK
    if start % block or (stop % block and stop != spec.size):
        raise ValueError(f"{spec.name}: a piece ends at {stop}, inside a block of {block}")
    values = np.ascontiguousarray(values)
    if dtype == spec.dtype:
        return tensor_layout.as_bytes(values)
    encoded = bytearray(wire_nbytes(dtype, values.size))
    out = np.ndarray((len(encoded),), np.uint8, encoded)
    _encode_into(dtype, values, out, start, _key(seed, spec))
    return encoded


def encoded_pieces(codec: str, manifest: Manifest, body: Bytes, seed: int = 0) -> Iterator[Bytes]:
    """
    ``encode``'s bytes piece by piece: neither they nor the body need be in memory.

    Raises:
        MessageError: The body is not of the manifest's size, or no such codec.
    """
    for spec, tensor in zip(
        manifest.tensors, tensor_layout.views(manifest, body).values(), strict=True
    ):
        flat = tensor.reshape(-1)
        for start in range(0, spec.size, _PIECE):
            yield encode_piece(codec, spec, start, flat[start : start + _PIECE], seed)


class DecodedBlocks:
    """
    An encoded body as the exact sum takes it: block by block, so that it is never decoded whole.

    Args:
        codec: One of ``CODECS``.
        manifest: The body's tensors.
        encoded: The body.

    Raises:
        MessageError: It is not of the size that codec and manifest give, or no such codec.
    """

    def __init__(self, codec: str, manifest: Manifest, encoded: Bytes) -> None:
        self._codec = codec
        self._parts = split(codec, manifest, encoded)

    def __call__(self, spec: TensorSpec) -> Iterator[Tensor]:
        """A tensor's elements in order, flat; each block is overwritten by the next one."""
        part = self._parts[spec.name]
        if wire_dtype(self._codec, spec) == spec.dtype:
            yield np.ndarray((spec.size,), _numpy_dtype(spec), part)
            return
        block = np.empty(min(spec.size, _STRIDE), _numpy_dtype(spec))
        for start in range(0, spec.size, _STRIDE):
            out = block[: spec.size - start]
            decode_tensor(self._codec, spec, part, out, start)
            yield out


class LazyDecodedTensors(Mapping[str, Tensor]):
    """
    The tensors of an encoded body by name, each decoded when it is asked for, and not kept.

    Args:
        codec, manifest, encoded: As for ``DecodedBlocks``.

    Raises:
        MessageError: The body is not of the size that codec and manifest give, or no such codec.
    """

    def __init__(self, codec: str, manifest: Manifest, encoded: Bytes) -> None:
        self._codec = codec
        self._specs = {spec.name: spec for spec in manifest.tensors}
        self._parts = split(codec, manifest, encoded)

    def __getitem__(self, name: str) -> Tensor:
        """One tensor: float32 or int64, in its shape; a read-only view where nothing is encoded."""
        spec, part = self._specs[name], self._parts[name]
        if wire_dtype(self._codec, spec) == spec.dtype:
            return np.ndarray(spec.shape, _numpy_dtype(spec), part)
        out = np.empty(spec.size, _numpy_dtype(spec))
        decode_tensor(self._codec, spec, part, out)
        return out.reshape(spec.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


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
        MessageError: The bytes are not as many as the tensor has, or no such codec.
        ValueError: A range or dtype that is not as described.
    """
    dtype = wire_dtype(codec, spec)
    _check_nbytes(codec, f"tensor {spec.name!r}", len(encoded), wire_nbytes(dtype, spec.size))
    _check_piece(spec, start, out)
    if not out.flags.c_contiguous:
        raise ValueError(f"{spec.name}: the array to decode into is not contiguous")
    if topk.is_name(dtype):
        topk.decode(dtype, spec.size, _octets(encoded), start, out)
        return
    first, end = wire_nbytes(dtype, start), wire_nbytes(dtype, start + out.size)
    _DECODERS[dtype](np.ndarray((end - first,), np.uint8, encoded, first), out)


def _encode_into(dtype: str, values: Tensor, out: Octets, start: int, key: int) -> None:
    if topk.is_name(dtype):
        topk.encode(dtype, values, out)
    else:
        _ENCODERS[dtype](values, out, start, key)


def _octets(encoded: Bytes) -> Octets:
    return np.frombuffer(encoded, np.uint8)


def _key(seed: int, spec: TensorSpec) -> int:
    return seed_for(seed, "int8", spec.name)


def _check_nbytes(codec: str, what: str, found: int, expected: int) -> None:
    if found != expected:
        raise MessageError(f"codec {codec}: {what} has {found} bytes, not {expected}")


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


def _plain_encode(values: Tensor, out: Octets, start: int, key: int) -> None:
    out[...] = values.view(np.uint8)


def _plain_decode(encoded: Octets, out: Tensor) -> None:
    out.view(np.uint8)[...] = encoded


def _bfloat16_encode(values: Tensor, out: Octets, start: int, key: int) -> None:
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


def _bfloat16_decode(encoded: Octets, out: Tensor) -> None:
    bits, halves = out.view(np.uint32), encoded.view(np.uint16)
    for at in range(0, bits.size, _NUMPY_ELEMENTS):
        block = bits[at : at + _NUMPY_ELEMENTS]
        block[...] = halves[at : at + _NUMPY_ELEMENTS]
        block <<= 16


_ENCODERS: dict[str, Callable[[Tensor, Octets, int, int], None]] = {
    "float32": _plain_encode,
    "int64": _plain_encode,
    "bfloat16": _bfloat16_encode,
    "int8x256": int8.quantise,
}
_DECODERS: dict[str, Callable[[Octets, Tensor], None]] = {
    "float32": _plain_decode,
    "int64": _plain_decode,
    "bfloat16": _bfloat16_decode,
    "int8x256": int8.dequantise,
}
