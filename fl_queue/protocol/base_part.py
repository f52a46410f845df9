"""
Base part of a model: the tensors that no client trains, named by one digest for the whole run.

Its body is the tensors one after the other by name, little-endian, C order, in the dtypes that the task built
them with. Without torch they are bytes. The digest is of the list of names, dtypes and shapes
and of the bytes, so that two runs with one base have one digest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from blake3 import blake3

from fl_queue.common.safe_json import dumps
from fl_queue.common.schema import Custom, Invalid, OneOf, Pattern, Range
from fl_queue.errors import DataError, MessageError

#: As many as numpy takes.
MAX_DIMENSIONS = 32
#: dtype as safetensors names it -> bytes an element.
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


def read_shape(value: Any) -> tuple[int, ...]:
    """A shape in a record. Raises Invalid."""
    if type(value) is not list or len(value) > MAX_DIMENSIONS:
        raise Invalid(f"is not a list of at most {MAX_DIMENSIONS} dimensions")
    return tuple(map(Range(-(2**63)).read, value))


@dataclass(frozen=True)
class BaseTensor:
    """One tensor of a base part. Args: ``dtype``: a key of ``ITEM_BYTES``."""

    name: str
    dtype: Annotated[str, OneOf(tuple(ITEM_BYTES))]
    shape: Annotated[tuple[int, ...], Custom(read_shape)]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the body."""
        return self.size * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class BasePart:
    """
    Name and layout of a run's base part.

    Args:
        digest: BLAKE3 of the tensors' list and of the body, hexadecimal.
        nbytes: Size of the body.
        tensors: Sorted by name, names unique.
        is_published: Whether sites can fetch it; if not, each has to build it.
    """

    digest: Annotated[str, Pattern(re.compile(r"[0-9a-f]{64}"), "64 hexadecimal digits")]
    nbytes: Annotated[int, Range()]
    tensors: tuple[BaseTensor, ...]
    is_published: bool = True

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.tensors]
        if not names or names != sorted(set(names)):
            raise MessageError("base part: tensor names must be there, unique and sorted")
        if any(tensor.dtype not in ITEM_BYTES for tensor in self.tensors):
            raise MessageError(f"base part: a dtype is not one of {', '.join(ITEM_BYTES)}")
        if any(dimension < 0 for tensor in self.tensors for dimension in tensor.shape):
            raise MessageError("base part: a dimension is negative")
        if self.nbytes != sum(tensor.nbytes for tensor in self.tensors):
            raise MessageError("base part: its size is not that of its tensors")

    @property
    def names(self) -> frozenset[str]:
        """Names of its tensors."""
        return frozenset(tensor.name for tensor in self.tensors)

    @property
    def head(self) -> bytes:
        """Bytes that the digest covers before the body."""
        return head_of(self.tensors)

    def offsets(self) -> Iterable[tuple[BaseTensor, int]]:
        """Each tensor with its byte offset in the body."""
        offset = 0
        for tensor in self.tensors:
            yield tensor, offset
            offset += tensor.nbytes

    def views(self, body: bytes | bytearray | memoryview) -> dict[str, memoryview]:
        """
        The bytes of each tensor: read-only views of the body.

        Raises:
            MessageError: The body is not of this size.
        """
        self.check_size(body)
        whole = memoryview(body).toreadonly()
        return {
            tensor.name: whole[offset : offset + tensor.nbytes] for tensor, offset in self.offsets()
        }

    def check_size(self, body: bytes | bytearray | memoryview) -> None:
        """Raise MessageError unless a body has the size of this base part."""
        if len(body) != self.nbytes:
            raise MessageError(f"base part of {len(body)} bytes, the run's has {self.nbytes}")

    def is_of(self, body: bytes | bytearray | memoryview) -> bool:
        """Whether a body has this digest."""
        return len(body) == self.nbytes and digest_of(self.tensors, [body]) == self.digest


def head_of(tensors: Iterable[BaseTensor]) -> bytes:
    """The list of tensors as the digest covers it."""
    return dumps([asdict(tensor) for tensor in tensors]).encode()


def digest_of(
    tensors: Iterable[BaseTensor], pieces: Iterable[bytes | bytearray | memoryview]
) -> str:
    """The digest of a base part, whose body comes in pieces."""
    digest = blake3(head_of(tensors))
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def missing(base: BasePart) -> DataError:
    """The error of a site that has not the run's base part, and cannot fetch it."""
    why = "not published" if not base.is_published else "cannot be fetched here"
    return DataError(
        f"base part {base.digest[:12]}",
        f"is not at this site and {why}: the task builds other frozen weights; put the weights of the "
        "run where the task reads them, in the same dtype",
        public=True,
    )
