"""int8 blocks: scales, rounding, hostile bytes, and both sets of loops."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from fl_queue.protocol.codecs import int8

MASK = 2**64 - 1
KERNELS = {
    "numba": int8._numba_kernels(),
    "numpy": int8._Kernels(int8._quantise_numpy, int8._dequantise_numpy),
}


@pytest.fixture(params=KERNELS, autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_kernels", lambda: KERNELS[request.param])


def quantised(values: np.ndarray, first: int = 0, key: int = 1) -> np.ndarray:
    out = np.full(int8.nbytes(values.size), 99, np.uint8)
    int8.quantise(values.astype(np.float32), out, first, key)
    return out


def dequantised(encoded: np.ndarray, size: int) -> np.ndarray:
    out = np.full(size, 7.0, np.float32)
    int8.dequantise(encoded, out)
    return out


def split_mix(key: int, index: int) -> int:
    """SplitMix64 in Python's integers: output ``index + 1`` of a generator begun at ``key``."""
    z = (key + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def by_hand(values: np.ndarray, first: int, key: int) -> bytes:
    """The format once more, element by element."""
    encoded = b""
    for start in range(0, values.size, 256):
        block = values[start : start + 256]
        scale = max(np.float32(np.abs(block).max() / np.float32(127)), np.float32(2.0**-126))
        encoded += scale.tobytes()
        for i, value in enumerate(block, first + start):
            x = min(max(np.float32(value / scale), np.float32(-127)), np.float32(127))
            chance = np.float32((split_mix(key, i) >> 40) / 2**24)
            encoded += np.int8(np.floor(x) + (chance < np.float32(x - np.floor(x)))).tobytes()
    return encoded


def test_the_random_numbers_are_those_of_splitmix64() -> None:
    # The first outputs for the seed 1234567, as published at rosettacode.org.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [split_mix(1234567, i) for i in range(3)] == published
    chances = int8._chances(np.uint64(1234567), 0, 3)
    assert chances.tolist() == [(number >> 40) / 2**24 for number in published]


def test_blocks_match_the_format() -> None:
    rng = np.random.default_rng(5)
    values = (rng.standard_normal(1000) * 10.0 ** rng.integers(-42, 30, 1000)).astype(np.float32)
    for key in (0, 2**64 - 1):
        assert quantised(values, 512, key).tobytes() == by_hand(values, 512, key)


def test_the_largest_element_is_127_and_comes_back() -> None:
    for largest in np.random.default_rng(1).lognormal(0, 20, 500).astype(np.float32):
        encoded = quantised(np.array([largest, -largest, 0]))
        assert encoded[4:].view(np.int8).tolist() == [127, -127, 0]
        back = dequantised(encoded, 3)
        assert back[0] == -back[1] == pytest.approx(largest, rel=2e-7)


def test_the_largest_element_is_never_rounded_beyond_127() -> None:
    largest = np.float32(1.00055)
    assert largest / np.float32(largest / np.float32(127)) > 127  # the scale was rounded down
    values = np.tile([largest, -largest], 2**19)
    # So many that some draw the one chance in 2**17 on either side.
    found = quantised(values).reshape(-1, 260)[:, 4:].view(np.int8).reshape(-1)
    assert (found[::2] == 127).all()
    assert (found[1::2] == -127).all()


def test_a_whole_number_of_scales_is_never_rounded() -> None:
    # From this key the first random number is 0.
    encoded = quantised(np.array([127.0, 126.0, 0.0]), key=-0x9E3779B97F4A7C15 & MASK)
    assert split_mix(-0x9E3779B97F4A7C15 & MASK, 0) == 0
    assert encoded[4:].view(np.int8).tolist() == [127, 126, 0]


@pytest.mark.parametrize("value", [0.0, -0.0, 2.0**-149, 2.0**-126])
def test_what_is_too_small_for_a_scale_becomes_zero_or_the_smallest(value: float) -> None:
    encoded = quantised(np.full(256, value))
    assert encoded[:4].view(np.float32)[0] == np.float32(2.0**-126)
    back = dequantised(encoded, 256)
    assert set(back.tolist()) <= ({0.0, 2.0**-126} if value else {0.0})
    assert not np.signbit(back).any()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 100, 255])
def test_a_broken_value_breaks_its_block_and_no_other(value: float, position: int) -> None:
    values = np.ones(600)
    values[256 + position] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoded = quantised(values)
        back = dequantised(encoded, 600)
    assert encoded[260:520].tobytes() == b"\0\0\xc0\x7f" + bytes(256)
    assert np.isnan(back).tolist() == [256 <= i < 512 for i in range(600)]
    assert (back[~np.isnan(back)] == 1.0).all()


def test_any_bytes_decode_to_some_numbers() -> None:
    scales = [np.nan, np.inf, -1.0, 3e38, 2.0**-149, 0.0]
    encoded = np.zeros((6, 260), np.uint8)
    encoded[:, :4] = np.array(scales, np.float32)[:, None].view(np.uint8)
    encoded[:, 4:] = 0x80  # -128
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = dequantised(encoded.reshape(-1), 6 * 256)[::256]
    # The smallest scale is left out: a machine may flush it.
    expected = [np.nan, -np.inf, 128.0, -np.inf, back[4], -0.0]
    np.testing.assert_array_equal(back, np.array(expected, np.float32))


def test_rounding_is_not_off_to_one_side() -> None:
    values = np.linspace(-1.0, 1.0, 256).astype(np.float32)
    seeds = 4000
    total = np.zeros(256)
    for key in range(seeds):
        total += dequantised(quantised(values, key=split_mix(key, 0)), 256)
    scale = 1 / 127
    off = np.abs(total / seeds - values) / scale
    # The standard deviation of one draw is at most half a scale, so of the mean 0.0079 scales.
    assert off.max() < 5 * 0.5 / seeds**0.5
    assert abs((total / seeds - values).mean()) < 5 * 0.5 / (256 * seeds) ** 0.5 * scale


def test_neighbours_in_place_and_in_seed_round_independently() -> None:
    # 0.5 scales: every element is a fair coin.
    values = np.full(256 * 64, 0.5 / 127)
    values[::256] = 1.0
    draws = [quantised(values, key=key).reshape(64, 260)[:, 5:] for key in (3, 4)]
    for one, other in ((draws[0], draws[1]), (draws[0][:, 1:], draws[0][:, :-1])):
        assert abs((one == other).mean() - 0.5) < 5 * 0.5 / one.size**0.5
    assert (draws[0][0] != draws[0][1]).any()


def test_read_only_and_unaligned_bytes_are_taken_as_they_are() -> None:
    values = np.random.default_rng(9).standard_normal(300).astype(np.float32)
    unaligned = np.ndarray((300,), np.float32, b"x" + values.tobytes(), 1)
    expected = quantised(values)
    out = np.zeros(1 + expected.size, np.uint8)
    int8.quantise(unaligned, out[1:], 0, 1)
    assert out[1:].tobytes() == expected.tobytes()
    encoded = np.ndarray((expected.size,), np.uint8, b"x" + expected.tobytes(), 1)
    room = np.ndarray((300,), np.float32, bytearray(1201), 1)
    int8.dequantise(encoded, room)
    assert room.tobytes() == dequantised(expected, 300).tobytes()
    nothing = quantised(values[:0])
    assert (nothing.size, dequantised(nothing, 0).size) == (0, 0)
