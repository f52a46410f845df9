"""Codecs of bodies: layout, what stays as it is, bfloat16, pieces, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fl_queue.aggregation.exact_sum import ExactSum
from fl_queue.aggregation.scales import choose_scales
from fl_queue.errors import MessageError
from fl_queue.protocol import message, tensor_layout
from fl_queue.protocol.codecs import codec, int8
from fl_queue.protocol.header import Header, TensorEntry
from fl_queue.protocol.manifest import Manifest, TensorSpec
from tests.support import exact_sums

MANIFEST = Manifest(
    (
        TensorSpec("empty", (0, 3), "parameter"),
        TensorSpec("mean", (5,), "float_buffer"),
        TensorSpec("n", (), "integer_buffer"),
        TensorSpec("w", (300, 2), "parameter"),
        TensorSpec("x", (), "parameter"),
    )
)
VECTOR = Manifest((TensorSpec("w", (600,), "parameter"),))
LOSSY = ("bfloat16", "int8")
ALL = (*codec.CODECS, "topk:0.25")


def body_of(values: np.ndarray) -> bytearray:
    return tensor_layout.encode_body(VECTOR, {"w": values.astype(np.float32)})


def mixed_body() -> bytearray:
    rng = np.random.default_rng(2)
    tensors = {
        spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in MANIFEST.tensors
    }
    return tensor_layout.encode_body(MANIFEST, tensors | {"n": np.array(2**60 + 1)})


def decoded(name: str, values: np.ndarray, seed: int = 0) -> np.ndarray:
    encoded = codec.encode(name, VECTOR, body_of(values), seed)
    return np.frombuffer(codec.decode(name, VECTOR, encoded), np.float32)


def test_the_layout_of_each_codec() -> None:
    wire = {"float32": 4 * 600, "bfloat16": 2 * 600, "int8x256": 600 + 3 * 4}
    for name, dtype, single in (("bfloat16", "bfloat16", 2), ("int8", "int8x256", 5)):
        assert codec.entries(name, MANIFEST) == (
            TensorEntry("empty", dtype, (0, 3), 0, 0),
            TensorEntry("mean", "float32", (5,), 0, 20),
            TensorEntry("n", "int64", (), 20, 8),
            TensorEntry("w", dtype, (300, 2), 28, wire[dtype]),
            TensorEntry("x", dtype, (), 28 + wire[dtype], single),
        )
        assert codec.encoded_nbytes(name, MANIFEST) == 28 + wire[dtype] + single
        assert codec.wire_nbytes(dtype, 600) == wire[dtype]


def test_float32_is_the_body_itself() -> None:
    body = mixed_body()
    assert codec.entries("float32", MANIFEST) == tensor_layout.entries(MANIFEST)
    assert codec.encode("float32", MANIFEST, body, 0) == body
    assert codec.decode("float32", MANIFEST, body) == body


@pytest.mark.parametrize("name", LOSSY)
def test_buffers_stay_as_they_are(name: str) -> None:
    body = mixed_body()
    found = tensor_layout.views(
        MANIFEST, codec.decode(name, MANIFEST, codec.encode(name, MANIFEST, body, 5))
    )
    given = tensor_layout.views(MANIFEST, body)
    differ = [name for name in given if found[name].tobytes() != given[name].tobytes()]
    assert [name for name in differ if name != "x"] == ["w"]


@pytest.mark.parametrize(
    ("bits", "half"),
    [
        (0x00000000, 0x0000),
        (0x80000000, 0x8000),
        (0x3F800000, 0x3F80),
        (0x3F808000, 0x3F80),  # a tie: to even, down
        (0x3F808001, 0x3F81),
        (0x3F818000, 0x3F82),  # a tie: to even, up
        (0x3F817FFF, 0x3F81),
        (0xBF818000, 0xBF82),
        (0x00000001, 0x0000),
        (0x00018000, 0x0002),  # a denormal
        (0x7F7FFFFF, 0x7F80),  # more than the largest bfloat16
        (0x7F800000, 0x7F80),
        (0xFF800000, 0xFF80),
        (0x7F800001, 0x7FC0),  # NaN by its lower half alone
        (0x7FFFFFFF, 0x7FFF),  # NaN that rounding would make -0
        (0xFFC00000, 0xFFC0),
    ],
)
def test_bfloat16_of(bits: int, half: int) -> None:
    values = np.full(600, bits, np.uint32).view(np.float32)
    encoded = codec.encode("bfloat16", VECTOR, body_of(values), 0)
    assert set(np.frombuffer(encoded, "<u2").tolist()) == {half}
    back = np.frombuffer(codec.decode("bfloat16", VECTOR, encoded), np.uint32)
    assert set(back.tolist()) == {half << 16}


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_exact_sum_still_rejects_what_is_not_finite(name: str, value: float) -> None:
    values = np.full(600, 0.5)
    total = ExactSum(VECTOR, choose_scales(2, 9, {"parameter": 64.0}), 9)
    exact_sums.add(total, {"w": decoded(name, values)}, 1)
    values[400] = value
    with pytest.raises(MessageError, match="'w' holds"):
        exact_sums.add(total, {"w": decoded(name, values)}, 1)
    assert total.count == 1


@pytest.mark.parametrize("name", ALL)
def test_another_length_is_a_blob_error_that_names_the_codec(name: str) -> None:
    encoded = codec.encode(name, MANIFEST, mixed_body(), 0)
    spec = MANIFEST.tensors[3]
    part = codec.split(name, MANIFEST, encoded)["w"]
    out = np.zeros(600, np.float32)
    for wrong in (encoded[:-1], encoded + b"\0", b""):
        with pytest.raises(MessageError, match=f"codec {name}: body has {len(wrong)} bytes"):
            codec.decode(name, MANIFEST, wrong)
    for short in (part[:-1], b""):
        with pytest.raises(MessageError, match=f"codec {name}: tensor 'w' has {len(short)} bytes"):
            codec.decode_tensor(name, spec, short, out)
    with pytest.raises(MessageError, match="body has 1 bytes"):
        codec.encode(name, MANIFEST, b"x", 0)
    assert not out.any()


def test_unknown_codecs_and_dtypes_are_refused() -> None:
    for ask in (codec.entries, codec.encoded_nbytes):
        with pytest.raises(
            MessageError, match=r"codec 'int4' is not one of float32, bfloat16, int8"
        ):
            ask("int4", MANIFEST)
    with pytest.raises(MessageError, match="wire dtype 'int8' is not one of"):
        codec.wire_nbytes("int8", 1)


@pytest.mark.parametrize("name", ALL)
def test_a_tensor_is_decoded_block_by_block(name: str) -> None:
    encoded = codec.encode(name, MANIFEST, mixed_body(), 3)
    whole = tensor_layout.views(MANIFEST, codec.decode(name, MANIFEST, encoded))
    parts = codec.split(name, MANIFEST, encoded)
    for spec in MANIFEST.tensors:
        expected = whole[spec.name].reshape(-1)
        for start, count in ((0, spec.size), (0, 100), (256, 256), (256, 300), (512, 88)):
            if start + count <= spec.size:
                out = np.zeros(count, spec.dtype)
                codec.decode_tensor(name, spec, parts[spec.name], out, start)
                assert out.tobytes() == expected[start : start + count].tobytes()


@pytest.mark.parametrize("name", codec.CODECS)
def test_a_body_is_encoded_and_decoded_without_being_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "_PIECE", 512)
    monkeypatch.setattr(codec, "_STRIDE", 256)
    body = mixed_body()
    pieces = list(codec.encoded_pieces(name, MANIFEST, body, 3))
    encoded = b"".join(pieces)
    assert encoded == codec.encode(name, MANIFEST, body, 3)
    assert len(pieces) == 5  # Two of ``w``, one of each other tensor that has elements.
    whole = tensor_layout.views(MANIFEST, codec.decode(name, MANIFEST, encoded))
    blocks, arrays = (
        codec.DecodedBlocks(name, MANIFEST, encoded),
        codec.LazyDecodedTensors(name, MANIFEST, encoded),
    )
    assert list(arrays) == [spec.name for spec in MANIFEST.tensors]
    for spec in MANIFEST.tensors:
        found = [block.copy() for block in blocks(spec)]
        assert all(block.dtype == spec.dtype for block in found)
        assert b"".join(block.tobytes() for block in found) == whole[spec.name].tobytes()
        array = arrays[spec.name]
        assert (array.dtype, array.shape) == (spec.dtype, spec.shape)
        assert array.tobytes() == whole[spec.name].tobytes()
    assert max(block.size for block in blocks(MANIFEST.tensors[3])) == (
        600 if name == "float32" else 256
    )


def test_what_is_not_encoded_is_not_copied() -> None:
    body = mixed_body()
    spec = MANIFEST.tensors[3]
    view = tensor_layout.views(MANIFEST, body)["w"]
    array = codec.LazyDecodedTensors("float32", MANIFEST, body)["w"]
    assert np.shares_memory(array, view)
    assert not array.flags.writeable
    assert np.shares_memory(next(codec.DecodedBlocks("float32", MANIFEST, body)(spec)), view)
    piece = codec.encode_piece("float32", spec, 0, view.reshape(-1), 0)
    assert np.shares_memory(np.frombuffer(piece, np.float32), view)


@pytest.mark.parametrize("name", ALL)
def test_a_header_has_the_layout_of_its_codec_and_the_codec_of_the_run(name: str) -> None:
    header = Header(
        kind="update",
        run="demo-1",
        round=1,
        client="a",
        tensors=codec.entries(name, MANIFEST),
        codec=name,
        body_bytes=codec.encoded_nbytes(name, MANIFEST),
    )
    found, _ = message.unpack(
        message.pack(replace(header, chunk_bytes=64), None), max_body_bytes=10_000
    )
    codec.check_tensors(name, found, MANIFEST)
    for other in ALL:
        if other != name:
            with pytest.raises(MessageError, match=f"codec {name}, the run wants {other}"):
                codec.check_tensors(other, header, MANIFEST)
            with pytest.raises(MessageError, match=r"tensor 'empty'|tensor 'w'"):
                codec.check_tensors(other, replace(header, codec=other), MANIFEST)
    with pytest.raises(MessageError, match="bytes, the run's has"):
        codec.check_tensors(name, replace(header, body_bytes=header.body_bytes + 1), MANIFEST)
    if name != "float32":
        with pytest.raises(MessageError, match="the run wants float32"):
            message.check_tensors(header, MANIFEST)


def test_loops_are_compiled_for_bodies_that_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(int8, "warm_up", lambda: calls.append("compiled"))
    big = Manifest((TensorSpec("w", (int8.WORTH_COMPILING,), "parameter"),))
    codec.prepare("bfloat16", big)
    codec.prepare("int8", MANIFEST)
    assert not calls
    codec.prepare("int8", big)
    assert calls == ["compiled"]


def test_ranges_that_are_no_pieces_are_refused() -> None:
    spec = VECTOR.tensors[0]
    values = np.zeros(700, np.float32)
    for start, count in ((1, 10), (-256, 10), (512, 89), (768, 0), (0, 601)):
        with pytest.raises(ValueError, match="not a piece of 600"):
            codec.encode_piece("int8", spec, start, values[:count], 0)
        with pytest.raises(ValueError, match="not a piece of 600"):
            codec.decode_tensor("int8", spec, bytes(612), values[:count], start)
    with pytest.raises(ValueError, match="inside a block"):
        codec.encode_piece("int8", spec, 256, values[:300], 0)
    for bad in (np.zeros(256), np.zeros((256, 1), np.float32)):
        with pytest.raises(ValueError, match="is not flat float32"):
            codec.encode_piece("int8", spec, 0, bad, 0)
    with pytest.raises(ValueError, match="not contiguous"):
        codec.decode_tensor("int8", spec, bytes(612), values[::2])


def test_the_seed_and_the_name_decide_how_int8_rounds() -> None:
    twins = Manifest(tuple(TensorSpec(name, (600,), "parameter") for name in "ab"))
    values = np.linspace(-1, 1, 600).astype(np.float32)
    body = tensor_layout.encode_body(twins, {"a": values, "b": values})
    first = codec.encode("int8", twins, body, 1)
    assert codec.encode("int8", twins, body, 1) == first
    assert codec.encode("int8", twins, body, 2) != first
    assert first[:612] != first[612:]
    assert codec.encode("bfloat16", twins, body, 1) == codec.encode("bfloat16", twins, body, 2)
