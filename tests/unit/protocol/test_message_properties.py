"""The wire format under any tensors, and under any damage."""

from __future__ import annotations

import string
from typing import Any

import msgpack
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fl_queue.errors import MessageError
from fl_queue.protocol import message, tensor_layout
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import DTYPES, Manifest, TensorSpec

CAP = 1 << 16
Model = tuple[Manifest, dict[str, np.ndarray]]


@st.composite
def models(draw: st.DrawFn) -> Model:
    names = draw(
        st.lists(st.text(string.ascii_letters + ".é", min_size=1), unique=True, max_size=4)
    )
    specs, tensors = [], {}
    for name in sorted(names):
        kind = draw(st.sampled_from(sorted(DTYPES)))
        shape = draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
        specs.append(TensorSpec(name, shape, kind))
        tensors[name] = draw(npst.arrays(DTYPES[kind], shape))
    return Manifest(tuple(specs)), tensors


def element_of(manifest: Manifest, body: bytes, **changes: Any) -> bytes:
    header = Header(
        kind="update",
        run="demo-3f2a9c",
        round=7,
        client="a",
        tensors=tensor_layout.entries(manifest),
        body_bytes=len(body),
        body_digest=tensor_layout.body_digest(body),
        **changes,
    )
    return message.pack(header, body or None)


def decode(element: bytes, manifest: Manifest) -> dict[str, np.ndarray] | None:
    """Decode as the aggregator does; None for a MessageError. Any other exception fails the test."""
    try:
        message.element_round(element)
        header, body = message.unpack(element, max_header_bytes=CAP, max_body_bytes=CAP)
        message.check_tensors(header, manifest)
        message.check_body(header, body)
        return tensor_layout.views(manifest, body)
    except MessageError:
        return None


@given(models())
def test_any_tensors_come_back_bit_for_bit(model: Model) -> None:
    manifest, tensors = model
    body = bytes(tensor_layout.encode_body(manifest, tensors))
    found = decode(element_of(manifest, body), manifest)
    assert found is not None
    assert {name: (v.shape, v.dtype, v.tobytes()) for name, v in found.items()} == {
        name: (v.shape, v.dtype, v.tobytes()) for name, v in tensors.items()
    }


@given(models())
def test_equal_tensors_are_equal_bytes(model: Model) -> None:
    manifest, tensors = model
    shuffled = {name: np.asfortranarray(tensors[name]) for name in reversed(tensors)}
    shuffled = {name: value.reshape(tensors[name].shape) for name, value in shuffled.items()}
    assert tensor_layout.encode_body(manifest, tensors) == tensor_layout.encode_body(
        manifest, shuffled
    )


MANIFEST = Manifest((TensorSpec("n", (), "integer_buffer"), TensorSpec("w", (2, 1), "parameter")))
ELEMENT = element_of(MANIFEST, bytes(range(16)), metrics={"loss": [0.5, 3]}, train_s=1.5)


def test_a_cut_at_any_byte_is_a_blob_error() -> None:
    assert decode(ELEMENT, MANIFEST) is not None
    for length in range(len(ELEMENT)):
        assert decode(ELEMENT[:length], MANIFEST) is None


def test_a_flip_of_any_bit_raises_nothing_but_blob_error_and_no_body_is_misread() -> None:
    body_start = len(ELEMENT) - 16
    for position in range(len(ELEMENT)):
        for bit in range(8):
            damaged = bytearray(ELEMENT)
            damaged[position] ^= 1 << bit
            found = decode(bytes(damaged), MANIFEST)
            if position >= body_start:
                assert found is None


@given(position=st.integers(0, len(ELEMENT) - 1), value=st.integers(0, 255))
def test_any_byte_anywhere_raises_nothing_but_blob_error(position: int, value: int) -> None:
    damaged = bytearray(ELEMENT)
    damaged[position] = value
    decode(bytes(damaged), MANIFEST)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_blob_error(data: bytes) -> None:
    assert decode(data, MANIFEST) is None
    header = b"FLQ1" + bytes(4) + len(data).to_bytes(4, "little") + data
    assert decode(header, MANIFEST) is None


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(max_examples=300)
@given(name=st.sampled_from(sorted(Header.__dataclass_fields__)), value=PLAIN)
def test_any_value_in_any_field_raises_nothing_but_blob_error(name: str, value: Any) -> None:
    header_bytes = int.from_bytes(ELEMENT[8:12], "little")
    raw = msgpack.unpackb(ELEMENT[12 : 12 + header_bytes])
    packed = msgpack.packb(raw | {name: value})
    prefix = ELEMENT[:8] + len(packed).to_bytes(4, "little")
    decode(prefix + packed + ELEMENT[12 + header_bytes :], MANIFEST)


@given(st.integers(0, 10**6), st.integers(1, 10**5))
def test_chunks_are_contiguous_and_cover_the_body(nbytes: int, chunk_bytes: int) -> None:
    end = 0
    slices = list(tensor_layout.chunk_slices(nbytes, max(chunk_bytes, nbytes // 1000 + 1)))
    for part in slices:
        assert part.start == end < part.stop
        end = part.stop
    assert end == nbytes
