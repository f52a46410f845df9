"""The wire format: layout, round trips, and every way an element can lie."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import asdict, fields, replace
from typing import Any

import msgpack
import numpy as np
import pytest

from fl_queue.errors import MessageError
from fl_queue.protocol import message, tensor_layout
from fl_queue.protocol.header import MAX_HEADER_BYTES, MAX_TEXT, GroupMember, Header, chunk_count
from fl_queue.protocol.manifest import Manifest, TensorSpec

MANIFEST = Manifest(
    (
        TensorSpec("bias", (3,), "parameter"),
        TensorSpec("count", (), "integer_buffer"),
        TensorSpec("empty", (0, 2), "parameter"),
        TensorSpec("mean", (1, 2), "float_buffer"),
    )
)
TENSORS = {
    "bias": np.array([1.5, -0.0, np.nan], np.float32),
    "count": np.array(7, np.int64),
    "empty": np.zeros((0, 2), np.float32),
    "mean": np.array([[0.25, np.inf]], np.float32),
}
CAP = 1 << 20


def update(**changes: Any) -> tuple[Header, bytearray]:
    body = tensor_layout.encode_body(MANIFEST, TENSORS)
    header = Header(
        kind="update",
        run="demo-3f2a9c",
        round=3,
        client="hospital-a",
        base_version=2,
        base_digest="0a" * 32,
        token="t",
        num_examples=600,
        metrics={"loss": [1.0, 600]},
        environment={"torch": "2.14", "threads": 2},
        train_s=0.5,
        tensors=tensor_layout.entries(MANIFEST),
        body_bytes=len(body),
        body_digest=tensor_layout.body_digest(body),
    )
    return replace(header, **changes), body


def element_of(raw: Any, body: bytes = b"", number: int = 3) -> bytes:
    """An element with a header that ``pack`` would refuse."""
    packed = raw if isinstance(raw, bytes) else msgpack.packb(raw)
    return (
        b"FLQ1" + number.to_bytes(4, "little") + len(packed).to_bytes(4, "little") + packed + body
    )


def raw_header(**changes: Any) -> dict[str, Any]:
    raw = asdict(update()[0])
    raw["tensors"] = [list(entry) for entry in raw["tensors"]]
    del raw["members"]  # Only in a group's.
    return raw | changes


def member(**changes: Any) -> GroupMember:
    fields = {
        "client": "sim-1",
        "token": "t",
        "num_examples": 5,
        "metrics": {"loss": [1.0, 5]},
        "train_metrics": {},
        "environment": {"torch": "2.14"},
        "train_s": 0.5,
        "body_bytes": 4,
        "body_digest": "0b" * 32,
        "status": "received",
        "reason": "",
        "weight": 5,
        "norm": 1.5,
    }
    return GroupMember(**(fields | changes))


def reason_of(element: bytes) -> str:
    with pytest.raises(MessageError) as caught:
        message.unpack(element, max_body_bytes=CAP)
    return caught.value.reason


# --- bodies


def test_body_has_the_tensors_in_manifest_order_without_gaps() -> None:
    body = tensor_layout.encode_body(MANIFEST, TENSORS)
    expected = b"".join(TENSORS[name].tobytes() for name in ("bias", "count", "empty", "mean"))
    assert bytes(body) == expected
    assert [entry.offset for entry in tensor_layout.entries(MANIFEST)] == [0, 12, 20, 20]


def test_views_are_read_only_and_share_the_body() -> None:
    body = tensor_layout.encode_body(MANIFEST, TENSORS)
    views = tensor_layout.views(MANIFEST, body)
    for name, tensor in TENSORS.items():
        assert views[name].tobytes() == tensor.tobytes()
        assert views[name].shape == tensor.shape
        assert views[name].dtype == tensor.dtype
        assert not views[name].flags.writeable
    body[0:4] = np.float32(9).tobytes()
    assert views["bias"][0] == 9


def test_strides_and_dictionary_order_do_not_change_the_body() -> None:
    manifest = Manifest((TensorSpec("a", (2,), "parameter"), TensorSpec("w", (2, 3), "parameter")))
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    first = {"a": np.ones(2, np.float32), "w": np.ascontiguousarray(weight.T)}
    second = {"w": weight.T, "a": np.ones(4, np.float32)[::2]}
    assert tensor_layout.encode_body(manifest, first) == tensor_layout.encode_body(manifest, second)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"bias": np.zeros(4, np.float32)}, "shape"),
        ({"bias": np.zeros(3, np.float64)}, "float64"),
        ({"bias": np.zeros(3, ">f4")}, ">f4"),
        ({"bias": [0.0, 0.0, 0.0]}, "list"),
        ({"count": np.array(7, np.int32)}, "int32"),
        ({"count": None}, "missing"),
        ({"extra": np.zeros(1, np.float32)}, "not in the manifest"),
    ],
)
def test_tensors_other_than_the_manifests_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(MessageError) as caught:
        tensor_layout.encode_body(MANIFEST, TENSORS | changes)
    assert word in caught.value.reason
    assert repr(next(iter(changes))) in caught.value.reason


def test_views_refuse_a_body_of_another_size() -> None:
    with pytest.raises(MessageError) as caught:
        tensor_layout.views(MANIFEST, bytes(MANIFEST.nbytes - 1))
    assert "27 bytes" in caught.value.reason


def test_check_body_finds_a_changed_byte_and_a_missing_one() -> None:
    header, body = update()
    message.check_body(header, body)
    with pytest.raises(MessageError, match="bytes"):
        message.check_body(header, body[:-1])
    body[5] ^= 1
    with pytest.raises(MessageError) as caught:
        message.check_body(header, body)
    assert header.body_digest in caught.value.reason


@pytest.mark.parametrize(
    "specs",
    [
        MANIFEST.tensors[:-1],
        (*MANIFEST.tensors, TensorSpec("more", (0,), "parameter")),
        (TensorSpec("bias", (3, 1), "parameter"), *MANIFEST.tensors[1:]),
        (TensorSpec("biaz", (3,), "parameter"), *MANIFEST.tensors[1:]),
    ],
)
def test_tensors_of_another_model_are_refused(specs: tuple[TensorSpec, ...]) -> None:
    header, _ = update()
    message.check_tensors(header, MANIFEST)
    with pytest.raises(MessageError, match="the run"):
        message.check_tensors(header, Manifest(specs))


def test_bytes_that_belong_to_no_tensor_are_refused() -> None:
    with pytest.raises(MessageError, match="body of 29 bytes"):
        message.check_tensors(replace(update()[0], body_bytes=29), MANIFEST)


def test_chunks_cover_a_body_exactly() -> None:
    for nbytes, size, count in [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (8, 4, 2), (9, 0, 0)]:
        slices = list(tensor_layout.chunk_slices(nbytes, size))
        assert chunk_count(nbytes, size) == len(slices) == count
        covered = [position for part in slices for position in range(part.start, part.stop)]
        assert covered == (list(range(nbytes)) if size else [])


# --- elements


def test_an_inline_element_comes_back_equal() -> None:
    header, body = update()
    element = message.pack(header, body)
    assert message.element_round(element) == 3
    for form in (element, bytearray(element), memoryview(element)):
        found, inline = message.unpack(form, max_body_bytes=CAP)
        assert found == header
        assert bytes(inline) == bytes(body)
        assert inline.readonly


def test_a_chunked_element_carries_no_body() -> None:
    header, _ = update(chunk_bytes=10)
    found, inline = message.unpack(message.pack(header, None), max_body_bytes=CAP)
    assert found == header
    assert len(inline) == 0


@pytest.mark.parametrize("kind", ["evaluation", "failure"])
def test_an_element_without_tensors_has_the_digest_of_nothing(kind: str) -> None:
    header = Header(kind=kind, run="demo-1", round=1, client="a", reason="out of memory")
    found, inline = message.unpack(message.pack(header, None), max_body_bytes=0)
    assert found == header
    assert found.body_digest == tensor_layout.body_digest(b"")
    assert len(inline) == 0


def test_a_model_carries_its_manifest() -> None:
    header, body = update(kind="model", manifest=MANIFEST.to_json())
    found, _ = message.unpack(message.pack(header, body), max_body_bytes=CAP)
    assert Manifest.from_json(found.manifest) == MANIFEST


def test_equal_headers_pack_to_equal_bytes() -> None:
    one, body = update(metrics={"a": 1, "b": {"c": 1.0, "d": 2.0}})
    other, _ = update(metrics={"b": {"d": 2.0, "c": 1.0}, "a": 1})
    assert message.pack(one, body) == message.pack(other, body)


def test_pack_refuses_a_body_that_is_not_the_headers() -> None:
    header, body = update()
    for other in (body[:-1], None):
        with pytest.raises(MessageError, match="body"):
            message.pack(header, other)
    with pytest.raises(MessageError, match="chunk"):
        message.pack(replace(header, chunk_bytes=10), body)


def test_pack_refuses_a_field_that_unpack_would() -> None:
    for changes, name in [
        ({"reason": "x" * (MAX_TEXT + 1)}, "reason"),
        ({"train_s": 1}, "train_s"),
        ({"num_examples": np.int64(3)}, "num_examples"),
        ({"metrics": {"loss": np.float32(1)}}, "metrics"),
        ({"metrics": {1: 1.0, "a": 2.0}}, "metrics"),
        ({"metrics": {"n": 2**64}}, "metrics"),
    ]:
        with pytest.raises(MessageError, match=f"header field {name}"):
            message.pack(*update(**changes))
    with pytest.raises(MessageError, match="cannot be shown"):
        message.pack(*update(token="\ud800"))


# --- hostile elements


def test_the_size_caps_come_first() -> None:
    header, body = update()
    element = message.pack(header, body)
    with pytest.raises(MessageError, match="more than 27"):
        message.unpack(element, max_body_bytes=27)
    with pytest.raises(MessageError, match="more than 100"):
        message.unpack(element, max_header_bytes=100, max_body_bytes=CAP)
    chunked = message.pack(replace(header, chunk_bytes=10), None)
    with pytest.raises(MessageError, match="more than 27"):
        message.unpack(chunked, max_body_bytes=27)


def test_bytes_after_the_body_are_refused() -> None:
    assert "29 bytes follow" in reason_of(message.pack(*update()) + b"x")
    assert "1 bytes follow" in reason_of(message.pack(update(chunk_bytes=10)[0], None) + b"x")


def test_a_header_shorter_than_its_prefix_is_refused() -> None:
    element = bytearray(message.pack(update(chunk_bytes=10)[0], None))
    element[8] += 1
    assert reason_of(bytes(element)) == "header is cut off"


def test_a_prefix_of_another_round_is_refused() -> None:
    element = bytearray(message.pack(*update()))
    element[4] = 4
    assert "its prefix of round 4" in reason_of(bytes(element))


def test_another_magic_is_refused_by_its_round_already() -> None:
    with pytest.raises(MessageError, match="FLQ1"):
        message.element_round(b"FLQ2" + bytes(20))
    with pytest.raises(MessageError, match="11 bytes"):
        message.element_round(b"FLQ1" + bytes(7))


@pytest.mark.parametrize(
    "name", [item.name for item in fields(Header) if item.name not in ("members", "scalars")]
)
def test_a_missing_field_is_named(name: str) -> None:
    raw = raw_header()
    del raw[name]
    assert name in reason_of(element_of(raw))


def test_an_unknown_field_is_named() -> None:
    assert "weight is unknown" in reason_of(element_of(raw_header(weight=10**6)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "pickle"),
        ("kind", 1),
        ("run", "x" * 257),
        ("run", None),
        ("round", -1),
        ("round", 2**32),
        ("round", 3.0),
        ("round", True),
        ("client", ["a"]),
        ("base_version", -1),
        ("base_digest", "../../etc"),
        ("base_digest", "0A" * 32),
        ("token", 5),
        ("num_examples", 2**63),
        ("num_examples", False),
        ("metrics", []),
        ("metrics", {"a": "x" * 5000}),
        ("metrics", {"a": [[[[[1]]]]]}),
        ("metrics", {"a": [0] * 5000}),
        ("train_metrics", None),
        ("environment", {"a": math.nan}),
        ("train_s", -1.0),
        ("train_s", math.inf),
        ("train_s", 1),
        ("reason", "x" * 4097),
        ("manifest", "{}"),
        ("tensors", {}),
        ("codec", "zip"),
        ("body_bytes", -1),
        ("body_digest", ""),
        ("chunk_bytes", -1),
    ],
)
def test_a_field_of_another_type_or_range_is_named(name: str, value: Any) -> None:
    assert f"header field {name}" in reason_of(element_of(raw_header(**{name: value})))


def test_a_group_names_its_members_and_comes_back_as_it_was() -> None:
    header, body = update(kind="group", members=(member(), member(status="failed", weight=0)))
    found, _ = message.unpack(message.pack(header, body), max_body_bytes=CAP)

    assert found == header


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"members": [{}]}, "members[0]"),
        ({"members": []}, "members"),
        ({"members": {}}, "members"),
        ({"members": [7]}, "members[0]"),
        ({"members": [asdict(member(status="accepted"))]}, "members[0].status"),
        ({"members": [asdict(member(weight=-1))]}, "members[0].weight"),
        ({"members": [asdict(member(body_digest="x"))]}, "members[0].body_digest"),
        ({"members": [asdict(member()), asdict(member()) | {"more": 1}]}, "members[1]"),
        ({"members": [asdict(member())], "kind": "update"}, "members"),
        ({}, "members"),
    ],
)
def test_a_group_without_its_members_is_refused(changes: dict[str, Any], word: str) -> None:
    assert f"field {word}" in reason_of(element_of(raw_header(**({"kind": "group"} | changes))))


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ([["a", "float32", [7], 0]], "list of name"),
        ([["a", "object", [7], 0, 28]], "float32, int64"),
        ([["a", "float64", [3], 0, 24]], "float32, int64"),
        ([["a", "float32", [-7], 0, 28]], "shape"),
        ([["a", "float32", [7.0], 0, 28]], "shape"),
        ([["a", "float32", 7, 0, 28]], "shape"),
        ([["a", "float32", [1] * 33, 0, 4]], "shape"),
        ([["a", "float32", [6], 0, 28]], "28 bytes"),
        ([["a", "float32", [2**62, 4], 0, 0]], "0 bytes"),
        ([["a", "float32", [8], 0, 32]], "byte 32"),
        ([["a", "float32", [1], 28, 4]], "byte 32"),
        ([["a", "float32", [1], -4, 4]], "offset"),
        ([["a", "float32", [2], 0, 8], ["b", "float32", [1], 4, 4]], "overlaps"),
        ([["b", "float32", [1], 4, 4], ["a", "float32", [7], 0, 28]], "overlaps"),
        ([["a", "float32", [1], 0, 4], ["a", "float32", [1], 4, 4]], "twice"),
        ([[5, "float32", [1], 0, 4]], "name"),
    ],
)
def test_a_tensor_that_does_not_add_up_is_refused(tensors: list[Any], word: str) -> None:
    reason = reason_of(element_of(raw_header(tensors=tensors), bytes(28)))
    assert "tensors" in reason
    assert word in reason


def test_an_evaluation_with_a_body_is_refused() -> None:
    assert "has no body" in reason_of(element_of(raw_header(kind="evaluation"), bytes(28)))


def test_a_model_without_a_manifest_is_refused() -> None:
    assert "manifest" in reason_of(element_of(raw_header(kind="model"), bytes(28)))


def test_a_million_tiny_chunks_are_refused() -> None:
    raw = raw_header(body_bytes=1_000_000, chunk_bytes=1)
    assert "chunk_bytes" in reason_of(element_of(raw))


def test_a_duplicate_key_is_refused() -> None:
    pairs = b"".join(msgpack.packb(item) for item in ("kind", "update", "kind", "model"))
    assert "duplicate key" in reason_of(element_of(b"\x82" + pairs))


@pytest.mark.parametrize(
    "packed",
    [b"", b"\xc1", b"\x81\x01\x01", b"\x01\x02", b"\xa2\xff\xff", b"\xc7\x00\xff", b"\x91" * 2000],
)
def test_a_header_that_is_not_msgpack_is_refused(packed: bytes) -> None:
    assert "not msgpack" in reason_of(element_of(packed))


@pytest.mark.parametrize(
    "packed",
    [
        b"\xdd\x00\x3f\xff\xff" * 500 + bytes(MAX_HEADER_BYTES - 2500),
        b"\xdf\x00\x1f\xff\xff" + b"\xa1a\x00" * (MAX_HEADER_BYTES // 3 - 2),
        b"\xdc\x40\x00" * 500 + bytes(MAX_HEADER_BYTES - 1500),
        b"\xdc\x00\xc8" + (b"\xdc\x40\x00" + b"\x80" * 0x4000) * 200,
    ],
)
def test_a_hostile_header_allocates_a_bounded_multiple_of_its_size(packed: bytes) -> None:
    element = element_of(packed)
    tracemalloc.start()
    try:
        reason_of(element)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 12 * MAX_HEADER_BYTES
