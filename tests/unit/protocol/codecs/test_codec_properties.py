"""Codecs: error bounds, the same bytes in pieces and by both loops, and no bytes that break them."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fl_queue.errors import MessageError
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.codecs import codec, int8
from fl_queue.protocol.manifest import Manifest, TensorSpec

CODECS = st.sampled_from((*codec.CODECS, "topk:0.1", "topk:1"))
SEEDS = st.integers(0, 2**63 - 1)
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
SIZES = st.integers(0, 800)
NUMPY = int8._Kernels(int8._quantise_numpy, int8._dequantise_numpy)
int8.warm_up()


def vector(size: int) -> Manifest:
    return Manifest((TensorSpec("w", (size,), "parameter"),))


def arrays(elements: st.SearchStrategy[float] = FINITE) -> st.SearchStrategy[np.ndarray]:
    return npst.arrays(np.float32, SIZES, elements=elements)


def round_trip(name: str, values: np.ndarray, seed: int) -> np.ndarray:
    manifest = vector(values.size)
    encoded = codec.encode(name, manifest, values.tobytes(), seed)
    assert len(encoded) == codec.encoded_nbytes(name, manifest)
    return np.frombuffer(codec.decode(name, manifest, encoded), np.float32)


@given(arrays(st.floats(-(2.0**126), 2.0**126, width=32, allow_subnormal=False)))
def test_bfloat16_is_within_2_to_the_minus_8(values: np.ndarray) -> None:
    back = round_trip("bfloat16", values, 0).astype(np.float64)
    assert (np.abs(back - values) <= 2.0**-8 * np.abs(values.astype(np.float64))).all()
    assert round_trip("bfloat16", back.astype(np.float32), 0).tolist() == back.tolist()


@given(arrays(st.floats(-(2.0**126), 2.0**126, width=32)), SEEDS)
def test_int8_is_within_one_scale(values: np.ndarray, seed: int) -> None:
    back = round_trip("int8", values, seed).astype(np.float64)
    for start in range(0, values.size, codec.BLOCK):
        block = values[start : start + codec.BLOCK].astype(np.float64)
        scale = max(np.abs(block).max() / 127, 2.0**-126)
        # Three float32 roundings: of the scale, the quotient and the product.
        allowed = scale * (1 + 127 * 3 * 2.0**-24)
        assert np.abs(back[start : start + codec.BLOCK] - block).max() <= allowed


@given(SIZES, st.integers(-119, 127), SEEDS)
def test_int8_keeps_whole_multiples_of_its_scale(size: int, power: int, seed: int) -> None:
    unit = np.float32(2.0 ** (power - 7))  # a normal number, as every scale is
    values = np.resize(np.arange(-127, 128), size).astype(np.float32) * unit
    values[:: codec.BLOCK] = 127 * unit
    assert round_trip("int8", values, seed).tolist() == values.tolist()


@given(
    st.sampled_from(codec.CODECS),
    npst.arrays(np.uint32, SIZES),
    SEEDS,
    st.lists(st.integers(1, 3), max_size=3),
)
def test_pieces_are_the_whole(name: str, bits: np.ndarray, seed: int, blocks: list[int]) -> None:
    manifest = vector(bits.size)
    spec, values = manifest.tensors[0], bits.view(np.float32)
    encoded = codec.encode(name, manifest, values.tobytes(), seed)
    cuts = [0, *np.minimum(np.cumsum(blocks, dtype=int) * codec.BLOCK, bits.size), bits.size]
    ranges = [(a, b) for a, b in itertools.pairwise(cuts) if a % codec.BLOCK == 0]
    pieces = [codec.encode_piece(name, spec, a, values[a:b], seed) for a, b in ranges]
    assert b"".join(pieces) == encoded
    out = np.zeros(bits.size, np.float32)
    for a, b in ranges:
        codec.decode_tensor(name, spec, encoded, out[a:b], a)
    assert out.tobytes() == bytes(codec.decode(name, manifest, encoded))


@given(npst.arrays(np.uint32, SIZES), SEEDS, st.integers(0, 2**40).map(lambda n: n * codec.BLOCK))
def test_numpy_makes_the_bits_of_numba(bits: np.ndarray, key: int, first: int) -> None:
    values = bits.view(np.float32)
    fast = np.zeros(int8.nbytes(bits.size), np.uint8)
    slow = fast.copy()
    int8.quantise(values, fast, first, key)
    with np.errstate(all="raise", under="ignore"):
        NUMPY.quantise(values, bits, slow.view(np.int8), int8._scales(slow), first, np.uint64(key))
    assert fast.tobytes() == slow.tobytes()


@given(npst.arrays(np.uint8, st.integers(0, 800)))
def test_any_bytes_decode_to_the_same_numbers_by_both(encoded: np.ndarray) -> None:
    size = sum(1 for i in range(encoded.size) if i % 260 >= 4)
    encoded = encoded[: int8.nbytes(size)]
    fast, slow = np.zeros(size, np.float32), np.zeros(size, np.float32)
    int8.dequantise(encoded, fast)
    NUMPY.dequantise(encoded.view(np.int8), int8._scales(encoded), slow)
    # Not bytes: the sign of a NaN is the machine's.
    np.testing.assert_array_equal(fast, slow)


@given(CODECS, st.binary(max_size=1500), SIZES)
def test_any_bytes_decode_or_are_a_blob_error(name: str, encoded: bytes, size: int) -> None:
    manifest = Manifest(
        (TensorSpec("n", (), "integer_buffer"), TensorSpec("w", (size,), "parameter"))
    )
    try:
        body = codec.decode(name, manifest, encoded)
    except MessageError:
        assert len(encoded) != codec.encoded_nbytes(name, manifest)
    else:
        assert len(body) == manifest.nbytes
        assert tensor_layout.views(manifest, body)["n"].tobytes() == encoded[:8]
