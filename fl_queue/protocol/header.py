"""
Message header: fields, types and limits, and its msgpack form.

A header is a map of exactly the fields of ``Header``; ``members`` in a group's only, ``scalars`` where
there are some. Whatever the bytes are, reading one raises ``HeaderError`` and nothing else, and makes no more than the caps allow.
``message.py`` has the bytes around a header.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, NamedTuple

import msgpack  # type: ignore[import-untyped,unused-ignore]
from blake3 import blake3

from fl_queue.common import schema
from fl_queue.common.schema import (
    Custom,
    Finite,
    Invalid,
    Length,
    OneOf,
    Pattern,
    PlainData,
    Range,
)
from fl_queue.errors import HeaderError
from fl_queue.protocol.codecs import int8, topk
from fl_queue.protocol.manifest import MAX_DIMENSIONS
from fl_queue.protocol.records import Verdict

#: How parameters may lie in a body, besides ``topk:<fraction>``; see ``protocol/codecs/codec.py``.
CODECS = ("float32", "bfloat16", "int8")
#: How the vector of a secure round lies in a body, by the bits of its ring; see ``secure/ring.py``.
MASKED = ("masked:16", "masked:20", "masked:24", "masked:32", "masked:64")
HEADER_KINDS = (
    "update", "evaluation", "failure", "model", "group", "sums", "keys", "confirm", "unmask",
)  # fmt: skip
MAX_HEADER_BYTES = 4 * 1024 * 1024
MAX_TENSORS = 16384
MAX_CHUNKS = 65536
#: Values (map entries and list items) a whole header may hold.
MAX_HEADER_ITEMS = 1 << 18
#: dtype on the wire -> bytes an element; besides these only ``int8x256`` and top-k's are decoded.
_ITEM_BYTES = {"float32": 4, "int64": 8, "bfloat16": 2, "bytes": 1}
#: Words of a ring -> their bits; they are packed.
_RING_BITS = {f"ring:{name.removeprefix('masked:')}": int(name[7:]) for name in MASKED}
_WIRE_DTYPES = (*_ITEM_BYTES, "int8x256", *_RING_BITS)
_NO_BODY = blake3(b"").hexdigest()


class TensorEntry(NamedTuple):
    """Place of one tensor in a body; ``offset`` and ``nbytes`` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


# Types and limits of fields


def _read_dtype(value: Any) -> str:
    return _read_encoding(value, _WIRE_DTYPES)


def _read_codec(value: Any) -> str:
    return _read_encoding(value, (*CODECS, *MASKED))


def _read_encoding(value: Any, choices: tuple[str, ...]) -> str:
    if type(value) is not str or not (value in choices or topk.is_name(value)):
        raise Invalid(f"is not one of {', '.join(choices)}")
    return value


def _read_digest_or_empty(value: Any) -> str:
    return "" if value == "" and type(value) is str else _IS_DIGEST.read(value)


def _read_scalars(value: Any) -> dict[str, float]:
    found = _IS_FINITE_MAP.read(value)
    if any(type(number) is not float for number in found.values()):
        raise Invalid("holds something else than floating-point numbers")
    return found


def _read_tensors(value: Any) -> tuple[TensorEntry, ...]:
    if type(value) is not list:
        raise Invalid(f"is a {type(value).__name__}, not a list")
    if len(value) > MAX_TENSORS:
        raise Invalid(f"holds more than {MAX_TENSORS} tensors")
    found = []
    for index, item in enumerate(value):
        try:
            found.append(_read_tensor(item))
        except Invalid as exc:
            raise exc.inside(f"[{index}]") from None
    if len({entry.name for entry in found}) != len(found):
        raise Invalid("a tensor name occurs twice")
    return tuple(found)


def _read_tensor(item: Any) -> TensorEntry:
    if type(item) is not list or len(item) != len(TensorEntry._fields):
        raise Invalid(f"is not a list of {', '.join(TensorEntry._fields)}")
    values: list[Any] = []
    for name, read, value in zip(TensorEntry._fields, _TENSOR_READERS, item, strict=True):
        try:
            values.append(read(value))
        except Invalid as exc:
            raise exc.inside(name) from None
    entry = TensorEntry(*values)
    # Python integers: the product cannot overflow into a small number that passes.
    if wire_nbytes(entry.dtype, math.prod(entry.shape)) != entry.nbytes:
        raise Invalid(f"{entry.dtype} of its shape is not {entry.nbytes} bytes")
    return entry


def _read_tensor_shape(value: Any) -> tuple[int, ...]:
    if type(value) is not list or len(value) > MAX_DIMENSIONS:
        raise Invalid(f"is not a list of at most {MAX_DIMENSIONS} dimensions")
    return tuple(map(_SIZE.read, value))


#: Longest text of a field, in characters; a failure report's ``reason`` has to be cut to it.
MAX_TEXT = 4096
#: Values (map entries and list items) one free-form map may hold.
MAX_MAP_ITEMS = 4096
_MAX_NESTING = 4
_SIZE = Range()
_IS_DIGEST = Pattern(re.compile(r"[0-9a-f]{64}"), "64 hexadecimal digits")
_IS_FINITE_MAP = PlainData(MAX_MAP_ITEMS, MAX_TEXT, _MAX_NESTING)
_TENSOR_READERS = (Length(MAX_TEXT).read, _read_dtype, _read_tensor_shape, _SIZE.read, _SIZE.read)

#: Run, client and token: parts of keys, and shown to users.
Identifier = Annotated[str, Length(256, printable=True)]
Size = Annotated[int, _SIZE]
Digest = Annotated[str, _IS_DIGEST]
NonNegative = Annotated[float, Finite(0.0)]
FreeText = Annotated[str, Length(MAX_TEXT)]
Metrics = Annotated[
    Mapping[str, Any], PlainData(MAX_MAP_ITEMS, MAX_TEXT, _MAX_NESTING, finite=False)
]
#: Finite, as it is copied into a receipt, and JSON has no NaN.
Environment = Annotated[Mapping[str, Any], _IS_FINITE_MAP]
Scalars = Annotated[Mapping[str, float], Custom(_read_scalars)]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMember:
    """
    One client's part of a ``group``.

    Args:
        client, token, num_examples, scalars, metrics, train_metrics, environment, train_s,
            body_bytes, body_digest: Those of its own update.
        status: ``received``: it is in the sum; ``invalid`` or ``failed``: it is not.
        reason: Why it is not.
        weight: With which it is in the sum; 0 when it is not.
        norm: L2 norm of its parameters; 0 when it is not in the sum, or nothing is clipped.
    """

    client: Identifier
    token: Identifier
    num_examples: Size
    metrics: Metrics
    train_metrics: Metrics
    environment: Environment
    train_s: NonNegative
    body_bytes: Size
    body_digest: Digest
    status: Annotated[str, OneOf((Verdict.received, Verdict.invalid, Verdict.failed))]
    reason: FreeText
    weight: Size
    norm: NonNegative = 0.0
    scalars: Scalars = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """
    Header of a message.

    Args:
        kind: ``update``, ``evaluation``, ``failure``, ``model``, ``sums`` (words of an analysis), ``group`` (the sum
            of several virtual clients' updates), or in a secure round ``keys``, ``confirm`` and ``unmask``.
        run: Run id.
        round: Round it belongs to, 0 to 2**32-1; also in the element's prefix.
        client: Who sends it.
        base_version, base_digest: The version it was trained from or evaluated on.
        token: Random text of this update, the same when it is pushed again.
        num_examples: Examples used this round, counted once.
        metrics, train_metrics: Sums of validation and of training.
        environment: Versions, device, threads; finite numbers only.
        train_s: NonNegative it trained.
        reason: Why a ``failure`` failed, at most ``MAX_TEXT`` characters.
        manifest: Manifest JSON of a ``model``, else empty.
        tensors: Layout of the body; none for ``evaluation`` and ``failure``.
        codec: How the body is encoded, as ``is_codec`` knows it, or one of ``MASKED``; any but ``float32`` in an
            ``update`` only.
        body_bytes, body_digest: Size and BLAKE3 of the body, wherever it travels.
        chunk_bytes: 0 when the body is inline, else the size of each chunk but the last.
        scalars: Numbers that the strategy wants besides; finite.
        members: Of a ``group``, the headers of its updates; in a header of that kind only.
    """

    kind: Annotated[str, OneOf(HEADER_KINDS)]
    run: Identifier
    round: Annotated[int, Range(0, 2**32 - 1)]
    client: Identifier
    base_version: Size = 0
    base_digest: Annotated[str, Custom(_read_digest_or_empty)] = ""
    token: Identifier = ""
    num_examples: Size = 0
    metrics: Metrics = field(default_factory=dict)
    train_metrics: Metrics = field(default_factory=dict)
    environment: Environment = field(default_factory=dict)
    train_s: NonNegative = 0.0
    reason: FreeText = ""
    manifest: Annotated[str, Length(MAX_HEADER_BYTES)] = ""
    tensors: Annotated[tuple[TensorEntry, ...], Custom(_read_tensors)] = ()
    codec: Annotated[str, Custom(_read_codec)] = "float32"
    body_bytes: Size = 0
    body_digest: Digest = _NO_BODY
    chunk_bytes: Annotated[int, Range(0, 2**32 - 1)] = 0
    scalars: Scalars = field(default_factory=dict)
    members: tuple[GroupMember, ...] = ()


# --- layout


def is_codec(text: str) -> bool:
    """Whether this is how a body may be encoded."""
    return text in CODECS or topk.is_name(text)


def wire_nbytes(dtype: str, size: int) -> int:
    """
    Bytes of a tensor of ``size`` elements on the wire.

    Raises:
        HeaderError: No such wire dtype.
    """
    if dtype == "int8x256":
        return int8.nbytes(size)
    if topk.is_name(dtype):
        return topk.nbytes(dtype, size)
    if dtype in _RING_BITS:
        return -(-size * _RING_BITS[dtype] // 8)
    if dtype not in _ITEM_BYTES:
        raise HeaderError(f"wire dtype {dtype!r} is not one of {', '.join(_WIRE_DTYPES)}")
    return size * _ITEM_BYTES[dtype]


def chunk_count(nbytes: int, chunk_bytes: int) -> int:
    """Number of chunks of a body of ``nbytes`` has; 0 when it is inline (``chunk_bytes`` 0)."""
    return -(-nbytes // chunk_bytes) if chunk_bytes else 0


# --- msgpack


def packed(header: Header) -> bytes:
    """
    A header as msgpack. Headers that differ in digests are as long.

    Raises:
        HeaderError: A field is out of range: what is packed can be unpacked.
    """
    raw = {item.name: _plain(getattr(header, item.name)) for item in fields(Header)}
    for optional in _OPTIONAL:
        if not raw[optional]:
            del raw[optional]
    _parse(raw)
    try:
        found: bytes = msgpack.packb(raw)
    except UnicodeEncodeError as exc:
        raise HeaderError(f"header text is not Unicode: {exc}") from exc
    if len(found) > MAX_HEADER_BYTES:
        raise HeaderError(f"header has {len(found)} bytes, more than {MAX_HEADER_BYTES}")
    return found


def unpacked(packed: memoryview) -> Header:
    """
    A header from bytes from anywhere, which are no more than the caller's cap.

    Raises:
        HeaderError: They are not msgpack, or a field is missing, unknown, of another type, or out of
            range; the message names it.
    """
    return _parse(_unpack(packed))


class _Budget:
    """
    Counts what a header makes while it is unpacked, and refuses duplicate keys.

    A byte of msgpack can become a 64-byte Python object, so the cap in bytes is not enough.
    """

    def __init__(self) -> None:
        self._left = MAX_HEADER_ITEMS

    def items(self, items: list[Any]) -> list[Any]:
        self._left -= len(items) + 1
        if self._left < 0:
            raise HeaderError(f"header holds more than {MAX_HEADER_ITEMS} values")
        return items

    def pairs(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self.items(pairs)
        made = dict(pairs)
        if len(made) != len(pairs):
            raise HeaderError("header has a map with a duplicate key")
        return made


def _unpack(packed: memoryview) -> Any:
    budget = _Budget()
    try:
        return msgpack.unpackb(
            packed,
            object_pairs_hook=budget.pairs,
            list_hook=budget.items,
            strict_map_key=True,
            max_str_len=len(packed),
            max_bin_len=0,
            max_ext_len=0,
            # msgpack allocates an array of the declared length before it reads the items, and
            # bounds that by the header's size only: 8 bytes of memory for each of its bytes.
            max_array_len=MAX_TENSORS,
            max_map_len=1024,
        )
    except ValueError as exc:  # msgpack's exceptions and UnicodeDecodeError derive from it
        raise HeaderError(f"header is not msgpack: {exc or type(exc).__name__}") from exc


def _plain(value: Any) -> Any:
    # Sorted keys: equal headers are equal bytes, whatever order a task filled its metrics in.
    if isinstance(value, Mapping):
        ordered = value if any(type(key) is not str for key in value) else sorted(value)
        return {key: _plain(value[key]) for key in ordered}
    if isinstance(value, GroupMember):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(GroupMember)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


#: Fields that are left out when they are empty.
_OPTIONAL = frozenset({"members", "scalars"})


def _parse(raw: Any) -> Header:
    """
    The header in an unpacked map.

    Raises:
        HeaderError: A field is missing, unknown, of another type, or out of range.
    """
    if type(raw) is not dict:
        raise HeaderError(f"header is a {type(raw).__name__}, not a map")
    if raw.get("members") == []:
        raise fail("members", "is not a list of one or more")
    try:
        header = schema.parse(Header, raw, _OPTIONAL)
    except Invalid as exc:
        if exc.reason == "is unknown":
            # Its name is foreign data: not for the public text.
            raise HeaderError(f"header field {exc.place} is unknown") from None
        raise fail(exc.place, exc.reason) from None
    _check_layout(header)
    return header


def fail(name: str, reason: str) -> HeaderError:
    """An error of a field, to raise. Args: ``reason``: quotes no data, so all of it may be published."""
    return HeaderError(f"header field {name}: {reason}", public=True)


def _check_layout(header: Header) -> None:
    if header.kind in ("evaluation", "failure") and (header.tensors or header.body_bytes):
        raise fail("tensors", f"kind {header.kind!r} has no body")
    if bool(header.members) != (header.kind == "group"):
        raise fail("members", "goes with kind 'group', and with no other")
    if bool(header.manifest) != (header.kind == "model"):
        raise fail("manifest", "goes with kind 'model', and with no other")
    if chunk_count(header.body_bytes, header.chunk_bytes) > MAX_CHUNKS:
        raise fail("chunk_bytes", f"makes more than {MAX_CHUNKS} chunks")
    end = 0
    for entry in sorted(header.tensors, key=lambda entry: (entry.offset, entry.nbytes)):
        if entry.offset < end:
            raise fail("tensors", "one overlaps another")
        end = entry.offset + entry.nbytes
    if end > header.body_bytes:
        raise fail("tensors", f"end at byte {end} of a body of {header.body_bytes}")
