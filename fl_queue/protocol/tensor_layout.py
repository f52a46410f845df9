"""
Layout of a body: tensors <-> bytes, digests and chunks of bytes.

A body is the manifest's tensors one after the other, without gaps, little-endian, C order. Equal tensors
give equal body bytes. NaN and infinity are not checked here; ``aggregation/exact_sum.py`` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
from blake3 import blake3

from fl_queue.errors import MessageError
from fl_queue.protocol.arrays import Tensor as Tensor
from fl_queue.protocol.header import TensorEntry, chunk_count
from fl_queue.protocol.manifest import Manifest, TensorSpec

Bytes = bytes | bytearray | memoryview

_NUMPY: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "int64": np.dtype("<i8")}


def entries(manifest: Manifest) -> tuple[TensorEntry, ...]:
    """The layout of a body of this manifest, as a header carries it."""
    return tuple(
        TensorEntry(spec.name, spec.dtype, spec.shape, offset, spec.nbytes)
        for spec, offset in manifest.offsets()
    )


def matching(spec: TensorSpec, tensors: Mapping[str, Tensor]) -> Tensor:
    """
    The tensor of that spec, once its dtype and shape are known to be the spec's.

    Raises:
        MessageError: It is missing, no array, or has another dtype or shape.
    """
    tensor = tensors.get(spec.name)
    if tensor is None:
        raise MessageError(f"tensor {spec.name!r} is missing")
    if not isinstance(tensor, np.ndarray):
        raise MessageError(f"tensor {spec.name!r} is a {type(tensor).__name__}, not a numpy array")
    if tensor.dtype != _NUMPY[spec.dtype]:
        raise MessageError(f"tensor {spec.name!r} is {tensor.dtype}, not {spec.dtype}")
    if tensor.shape != spec.shape:
        raise MessageError(f"tensor {spec.name!r} has shape {tensor.shape}, not {spec.shape}")
    return tensor


def little_endian(array: Tensor) -> Tensor:
    """An array of float32 or int64 as it lies in a body; itself on most machines."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def encode_body(manifest: Manifest, tensors: Mapping[str, Tensor]) -> bytearray:
    """
    Lay the tensors out as a body.

    Args:
        manifest: Names, shapes and kinds they must have, exactly.
        tensors: Arrays of float32 or int64, of any strides; copied.

    Raises:
        MessageError: A tensor is missing, unknown, or of another dtype or shape.
    """
    unknown = sorted(tensors.keys() - {spec.name for spec in manifest.tensors})
    if unknown:
        raise MessageError(f"tensor {unknown[0]!r} is not in the manifest")
    found = [matching(spec, tensors) for spec in manifest.tensors]
    body = bytearray(manifest.nbytes)
    for (spec, offset), tensor in zip(manifest.offsets(), found, strict=True):
        _view(spec, body, offset)[...] = tensor
    return body


def views(manifest: Manifest, body: Bytes) -> dict[str, Tensor]:
    """
    The tensors of a body as read-only views of it: no copy, and possibly unaligned.

    Raises:
        MessageError: The body is not of the manifest's size.
    """
    if len(body) != manifest.nbytes:
        raise MessageError(f"body has {len(body)} bytes, the manifest's has {manifest.nbytes}")
    buffer = memoryview(body).toreadonly()
    return {spec.name: _view(spec, buffer, offset) for spec, offset in manifest.offsets()}


def body_digest(body: Bytes) -> str:
    """BLAKE3 of a body, hexadecimal; on one thread, as aggregators share their cores."""
    return blake3(body).hexdigest()


def pieces_digest(pieces: Iterable[Bytes | Tensor]) -> str:
    """The same of a body that comes in pieces."""
    digest = blake3()
    for piece in pieces:
        digest.update(as_bytes(piece))
    return digest.hexdigest()


class Hasher:
    """The digest of a body whose pieces are given one after the other."""

    def __init__(self) -> None:
        self._digest = blake3()

    def update(self, piece: Bytes | Tensor) -> None:
        """Add the next piece."""
        self._digest.update(as_bytes(piece))

    @property
    def digest(self) -> str:
        """Of all pieces so far, hexadecimal."""
        return self._digest.hexdigest()


def as_bytes(piece: Bytes | Tensor) -> memoryview:
    """The bytes of a piece of a body, not copied."""
    view = memoryview(cast(Any, piece))
    # An array without elements cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(b"")


def chunk_slices(nbytes: int, chunk_bytes: int) -> Iterator[slice]:
    """Place of each chunk in the body, in order."""
    for index in range(chunk_count(nbytes, chunk_bytes)):
        yield slice(index * chunk_bytes, min((index + 1) * chunk_bytes, nbytes))


def rechunked(pieces: Iterable[Bytes | Tensor], chunk_bytes: int) -> Iterator[memoryview]:
    """A body that comes in pieces of any size, in chunks; each is memory of its own."""
    chunk = bytearray()
    for piece in pieces:
        view = as_bytes(piece)
        while len(view):
            taken = view[: chunk_bytes - len(chunk)]
            chunk += taken
            view = view[len(taken) :]
            if len(chunk) == chunk_bytes:
                yield memoryview(chunk)
                chunk = bytearray()
    if chunk:
        yield memoryview(chunk)


def _view(spec: TensorSpec, buffer: bytearray | memoryview, offset: int) -> Tensor:
    return np.ndarray(spec.shape, _NUMPY[spec.dtype], buffer=buffer, offset=offset)
