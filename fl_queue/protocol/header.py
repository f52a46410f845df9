"""
What an element says of itself: the fields of a header, their types and ranges, header <-> msgpack.

A header is a map of exactly the fields of ``Header``; ``members`` in a group's only, ``scalars`` where
there are some. Whatever the bytes are, reading one raises ``HeaderError`` and nothing else, and makes no more than the caps allow.
The bytes around a header, and bodies, are ``blob``'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped,unused-ignore]
from blake3 import blake3

from fl_queue.errors import HeaderError
from fl_queue.protocol import header_schema as parsers
from fl_queue.protocol.codecs import int8, topk
from fl_queue.protocol.manifest import MAX_DIMENSIONS
from fl_queue.protocol.records import Sums

#: How parameters may lie in a body, besides ``topk:<fraction>``; see ``protocol/codecs/codec.py``.
CODECS = ("float32", "bfloat16", "int8")
HEADER_KINDS = ("update", "evaluation", "failure", "model", "group")
MAX_HEADER_BYTES = 4 * 1024 * 1024
MAX_TENSORS = 16384
MAX_CHUNKS = 65536
#: Values (map entries and list items) a whole header may hold.
MAX_HEADER_ITEMS = 1 << 18
#: dtype on the wire -> bytes an element; besides these only ``int8x256`` and top-k's are decoded.
_ITEM_BYTES = {"float32": 4, "int64": 8, "bfloat16": 2}
_WIRE_DTYPES = (*_ITEM_BYTES, "int8x256")
_NO_BODY = blake3(b"").hexdigest()


class TensorEntry(NamedTuple):
    """Where one tensor lies in a body; ``offset`` and ``nbytes`` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


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

    client: str
    token: str
    num_examples: int
    metrics: Sums
    train_metrics: Sums
    environment: Mapping[str, Any]
    train_s: float
    body_bytes: int
    body_digest: str
    status: str
    reason: str
    weight: int
    norm: float = 0.0
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """
    What an element says of itself.

    Args:
        kind: ``update``, ``evaluation``, ``failure``, ``model``, or ``group``: the sum of several
            virtual clients' updates.
        run: Run id.
        round: Round it belongs to, 0 to 2**32-1; also in the element's prefix.
        client: Who sends it.
        base_version, base_digest: The version it was trained from or evaluated on.
        token: Random text of this update, the same when it is pushed again.
        num_examples: Examples used this round, counted once.
        metrics, train_metrics: Sums of validation and of training.
        environment: Versions, device, threads; finite numbers only.
        train_s: Seconds it trained.
        reason: Why a ``failure`` failed, at most ``header_schema.MAX_TEXT`` characters.
        manifest: Manifest JSON of a ``model``, else empty.
        tensors: Layout of the body; none for ``evaluation`` and ``failure``.
        codec: How the body is encoded, as ``is_codec`` knows it; any but ``float32`` in an ``update`` only.
        body_bytes, body_digest: Size and BLAKE3 of the body, wherever it travels.
        chunk_bytes: 0 when the body is inline, else the size of each chunk but the last.
        scalars: Numbers that the strategy wants besides; finite.
        members: Of a ``group``, what each update says of itself; in a header of that kind only.
    """

    kind: str
    run: str
    round: int
    client: str
    base_version: int = 0
    base_digest: str = ""
    token: str = ""
    num_examples: int = 0
    metrics: Sums = field(default_factory=dict)
    train_metrics: Sums = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    train_s: float = 0.0
    reason: str = ""
    manifest: str = ""
    tensors: tuple[TensorEntry, ...] = ()
    codec: str = "float32"
    body_bytes: int = 0
    body_digest: str = _NO_BODY
    chunk_bytes: int = 0
    scalars: Mapping[str, float] = field(default_factory=dict)
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
    if dtype not in _ITEM_BYTES:
        raise HeaderError(f"wire dtype {dtype!r} is not one of {', '.join(_WIRE_DTYPES)}")
    return size * _ITEM_BYTES[dtype]


def chunk_count(nbytes: int, chunk_bytes: int) -> int:
    """How many chunks a body of ``nbytes`` has; 0 when it is inline (``chunk_bytes`` 0)."""
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


# --- types and ranges


def _encoding(*choices: str) -> parsers.Parser:
    one_of = parsers.one_of(*choices)

    def parse(name: str, value: Any) -> str:
        is_topk = type(value) is str and topk.is_name(value)
        return str(value) if is_topk else str(one_of(name, value))

    return parse


def _tensors(name: str, value: Any) -> tuple[TensorEntry, ...]:
    if type(value) is not list:
        raise parsers.fail(name, f"is a {type(value).__name__}, not a list")
    if len(value) > MAX_TENSORS:
        raise parsers.fail(name, f"holds more than {MAX_TENSORS} tensors")
    found = tuple(_tensor(f"{name}[{index}]", item) for index, item in enumerate(value))
    if len({entry.name for entry in found}) != len(found):
        raise parsers.fail(name, "a tensor name occurs twice")
    return found


def _tensor(where: str, item: Any) -> TensorEntry:
    if type(item) is not list or len(item) != len(TensorEntry._fields):
        raise parsers.fail(where, f"is not a list of {', '.join(TensorEntry._fields)}")
    name, dtype, shape, offset, nbytes = item
    if type(shape) is not list or len(shape) > MAX_DIMENSIONS:
        raise parsers.fail(
            f"{where}.shape", f"is not a list of at most {MAX_DIMENSIONS} dimensions"
        )
    entry = TensorEntry(
        parsers.text(parsers.MAX_TEXT)(f"{where}.name", name),
        _encoding(*_WIRE_DTYPES)(f"{where}.dtype", dtype),
        tuple(parsers.integer(2**63 - 1)(f"{where}.shape", size) for size in shape),
        parsers.integer(2**63 - 1)(f"{where}.offset", offset),
        parsers.integer(2**63 - 1)(f"{where}.nbytes", nbytes),
    )
    # Python integers: the product cannot overflow into a small number that passes.
    if wire_nbytes(entry.dtype, math.prod(entry.shape)) != entry.nbytes:
        raise parsers.fail(
            where, f"{entry.dtype} of shape {entry.shape} is not {entry.nbytes} bytes"
        )
    return entry


_PARSERS: dict[str, parsers.Parser] = {
    "kind": parsers.one_of(*HEADER_KINDS),
    "run": parsers.identifier(256),
    "round": parsers.integer(2**32 - 1),
    "client": parsers.identifier(256),
    "base_version": parsers.integer(2**63 - 1),
    "base_digest": parsers.digest(or_empty=True),
    "token": parsers.identifier(256),
    "num_examples": parsers.integer(2**63 - 1),
    "metrics": parsers.mapping(finite=False),
    "train_metrics": parsers.mapping(finite=False),
    "environment": parsers.mapping(finite=True),
    "train_s": parsers.positive,
    "reason": parsers.text(parsers.MAX_TEXT),
    "manifest": parsers.text(MAX_HEADER_BYTES),
    "tensors": _tensors,
    "codec": _encoding(*CODECS),
    "body_bytes": parsers.integer(2**63 - 1),
    "body_digest": parsers.digest(or_empty=False),
    "chunk_bytes": parsers.integer(2**32 - 1),
}
#: Fields that are left out when they are empty.
_OPTIONAL = ("members", "scalars")


_MEMBER_PARSERS: dict[str, parsers.Parser] = {
    "status": parsers.one_of("received", "invalid", "failed"),
    "weight": parsers.integer(2**63 - 1),
    "norm": parsers.positive,
    "scalars": parsers.scalars,
} | {item.name: _PARSERS[item.name] for item in fields(GroupMember) if item.name in _PARSERS}


def _members(raw: Any) -> tuple[GroupMember, ...]:
    if type(raw) is not list or not raw:
        raise parsers.fail("members", "is not a list of one or more")
    found = []
    for index, item in enumerate(raw):
        where = f"members[{index}]"
        if type(item) is not dict or item.keys() != _MEMBER_PARSERS.keys():
            raise parsers.fail(where, f"is not a map of {', '.join(_MEMBER_PARSERS)}")
        values = {name: _MEMBER_PARSERS[name](f"{where}.{name}", item[name]) for name in item}
        found.append(GroupMember(**values))
    return tuple(found)


def _parse(raw: Any) -> Header:
    """
    Raises:
        HeaderError: A field is missing, unknown, of another type, or out of range.
    """
    if type(raw) is not dict:
        raise HeaderError(f"header is a {type(raw).__name__}, not a map")
    for name in raw:
        if name not in _PARSERS and name not in _OPTIONAL:
            raise HeaderError(f"header field {str(name)[:64]!r} is unknown")
    for name in _PARSERS:
        if name not in raw:
            raise parsers.fail(name, "is missing")
    members = _members(raw["members"]) if "members" in raw else ()
    scalars = parsers.scalars("scalars", raw["scalars"]) if "scalars" in raw else {}
    values = {name: parse(name, raw[name]) for name, parse in _PARSERS.items()}
    header = Header(**values, scalars=scalars, members=members)
    _check_layout(header)
    return header


def _check_layout(header: Header) -> None:
    if header.kind in ("evaluation", "failure") and (header.tensors or header.body_bytes):
        raise parsers.fail("tensors", f"kind {header.kind!r} has no body")
    if bool(header.members) != (header.kind == "group"):
        raise parsers.fail("members", "goes with kind 'group', and with no other")
    if bool(header.manifest) != (header.kind == "model"):
        raise parsers.fail("manifest", "goes with kind 'model', and with no other")
    if chunk_count(header.body_bytes, header.chunk_bytes) > MAX_CHUNKS:
        raise parsers.fail("chunk_bytes", f"makes more than {MAX_CHUNKS} chunks")
    end = 0
    for entry in sorted(header.tensors, key=lambda entry: (entry.offset, entry.nbytes)):
        if entry.offset < end:
            raise parsers.fail("tensors", f"{entry.name!r} overlaps another tensor")
        end = entry.offset + entry.nbytes
    if end > header.body_bytes:
        raise parsers.fail("tensors", f"end at byte {end} of a body of {header.body_bytes}")
