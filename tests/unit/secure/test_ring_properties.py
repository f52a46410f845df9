"""The ring: words on the wire and back, and sums modulo 2**bits that are the integers' own sums at every bound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_queue.aggregation.exact_sum import ExactSum
from fl_queue.aggregation.scales import Scale, choose_scales, exact_scale
from fl_queue.errors import ConfigError, MessageError
from fl_queue.protocol.arrays import Tensor
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.secure import packing, ring
from fl_queue.secure.ring import Accompanying, RingLayout, RingSum, Words

SPECS = (
    TensorSpec("bn.mean", (3,), "float_buffer"),
    TensorSpec("bn.steps", (), "integer_buffer"),
    TensorSpec("w", (5, 3), "parameter"),
    TensorSpec("x", (1,), "parameter"),
    TensorSpec("~dc/w", (5, 3), "extra"),
)
SENT = Manifest(SPECS)
LIMIT = 1.0
METRICS = {"num_examples": 10, "loss_sum": 2.5, "confusion": [[4, 1], [2, 3]]}


def layout(bits: int, cohort: int = 4, w_max: int = 10) -> RingLayout:
    scales = choose_scales(cohort, w_max, {"parameter": LIMIT, "dc": LIMIT}, bits=bits)
    return RingLayout(
        SENT, scales | {"float_buffer": exact_scale(cohort, w_max, 65536.0)}, w_max, bits
    )


class Update:
    """An update's tensors, from a generator or all one value."""

    def __init__(self, seed: int, value: float | None = None) -> None:
        draw = np.random.default_rng(seed)
        self.tensors = {
            spec.name: (draw.uniform(-LIMIT, LIMIT, spec.size) if value is None else np.full(spec.size, value))
            .astype(np.int64 if spec.kind == "integer_buffer" else np.float32)
            for spec in SPECS
        }  # fmt: skip

    def __call__(self, spec: TensorSpec) -> Iterator[Tensor]:
        # In pieces, as an encoded body comes.
        flat = self.tensors[spec.name]
        for start in range(0, flat.size, 4):
            yield flat[start : start + 4]


@given(st.sampled_from(ring.BITS), st.integers(0, 40), st.integers(0, 2**32))
def test_words_are_the_same_after_the_wire(bits: int, size: int, seed: int) -> None:
    draw = np.random.default_rng(seed).integers(0, 2**64, size, np.uint64)
    words = draw if bits == 64 else draw.astype(np.uint32)
    packed = packing.pack(words, bits)

    assert len(packed) == math.ceil(size * bits / 8)
    again = packing.unpack(packed, bits, size)
    assert again.dtype == words.dtype
    assert again.tolist() == [word % 2**bits for word in words.tolist()]


def test_twenty_bits_are_two_values_in_five_bytes() -> None:
    words = np.array([0x12345, 0xABCDE, 0xFFFFF], np.uint32)

    assert bytes(packing.pack(words, 20)).hex() == "4523e1cdab" + "ffff0f"
    assert bytes(packing.pack(words, 24)).hex() == "452301" + "debc0a" + "ffff0f"
    assert bytes(packing.pack(words, 16)).hex() == "4523" + "debc" + "ffff"


@pytest.mark.parametrize("bits", ring.BITS)
@pytest.mark.parametrize("value", [LIMIT, -LIMIT])
def test_the_sum_of_a_whole_cohort_at_its_bound_does_not_leave_the_range(
    bits: int, value: float
) -> None:
    """All clients at the limit with the largest weight: one step finer, the sum would be another number."""
    made = layout(bits)
    total = RingSum(made)
    for _ in range(4):
        words = made.sent_words(Update(0, value), Accompanying(10, METRICS, {}))
        total.add(b"".join(map(bytes, made.pieces(words))))
    found = total.signed()

    scale = made.scales["parameter"]
    assert not Scale(scale.s + 1, LIMIT).fits(4, 10, bits) or scale.s == 31
    assert set(found.tensors["w"].reshape(-1).tolist()) == {int(40 * value * 2**scale.s)}
    assert found.weight == 40
    assert found.validation["num_examples"] == 40


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**32), st.integers(1, 10)), min_size=1, max_size=4))
def test_with_64_bits_the_sum_is_the_plain_one(updates: list[tuple[int, int]]) -> None:
    """In any order, through partial sums, and read back by ``ExactSum``: totals, digits, weight."""
    made = layout(64)
    plain = ExactSum(SENT, made.scales, made.w_max)
    total, half = RingSum(made), RingSum(made)
    for index, (seed, weight) in enumerate(updates):
        update = Update(seed)
        plain.add_blocks(update, weight, factor=0.75)
        words = made.sent_words(update, Accompanying(weight, {}, {}), factor=0.75)
        (total if index % 2 else half).add_words(words)
    again = RingSum(made)
    again.add_pieces(b"".join(piece.tobytes() for piece in half.pieces()), half.count)
    total.merge(again)
    signed = total.signed()

    other = ExactSum(SENT, made.scales, made.w_max)
    base = {"bn.steps": np.array(plain.maximum("bn.steps"))}
    other.add_sum({**signed.tensors, **base}, signed.weight, total.count)
    assert [piece.tolist() for piece in other.pieces()] == [
        piece.tolist() for piece in plain.pieces()
    ]
    assert (other.total_weight, other.count) == (plain.total_weight, plain.count)
    assert (signed.validation, signed.train) == ({}, {})


@pytest.mark.parametrize("bits", [16, 20, 24, 32])
def test_with_fewer_bits_values_are_near_and_the_tail_is_exact(bits: int) -> None:
    made = layout(bits, w_max=1)
    updates = [Update(seed) for seed in range(4)]
    total = RingSum(made)
    for seed, update in enumerate(updates):
        total.add_words(made.sent_words(update, Accompanying(1, METRICS, METRICS), seed=seed))
    found = total.signed()

    step = 2.0 ** -made.scales["parameter"].s
    for name in ("w", "x", "~dc/w"):
        true = sum(update.tensors[name].astype(np.float64) for update in updates)
        assert np.abs(found.tensors[name].reshape(-1) * step - true).max() <= 4 * step
    plain = ExactSum(SENT, made.scales, 1)
    for update in updates:
        plain.add_blocks(update, 1)
    whole = {
        spec.name: piece for spec, piece in zip(plain.layout.tensors, plain.pieces(), strict=True)
    }
    for name in ("bn.mean", "~digits/bn.mean"):
        assert found.tensors[name].tolist() == whole[name].tolist()
    assert found.train["loss_sum"] == 10.0


def test_coarse_values_are_rounded_at_random_and_to_neither_side() -> None:
    spec = TensorSpec("w", (200_000,), "parameter")
    made = RingLayout(Manifest((spec,)), {"parameter": Scale(12, 1.0)}, 1, 16)
    value = np.full(spec.size, 0.3 * 2.0**-12, np.float32)
    words = [
        made.sent_words(lambda _: [value], Accompanying(1, {}, {}), seed=seed).values
        for seed in (1, 1, 2)
    ]

    assert made.rounds_at_random(spec)
    assert np.array_equal(words[0], words[1])
    assert not np.array_equal(words[0], words[2])
    assert set(words[0].tolist()) == {0, 1}
    assert abs(words[0].mean() - 0.3) < 0.006
    fine = RingLayout(Manifest((spec,)), {"parameter": Scale(20, 1.0)}, 1, 32)
    assert not fine.rounds_at_random(spec)
    assert not layout(64).rounds_at_random(SPECS[2])


def test_extras_follow_the_parameters_and_the_tail_all_values() -> None:
    made = layout(32)

    assert [spec.name for spec in made.values] == ["w", "x", "~dc/w"]
    assert [entry.name for entry in made.entries] == ["w", "x", "~dc/w", "~tail"]
    assert [name for name, _ in made.tail] == [
        "weight", "bn.mean", "~digits/bn.mean", "validation", "train",
    ]  # fmt: skip
    assert made.nbytes == 4 * 31 + 8 * made.tail_words
    words = made.zeros()
    words.values[:] = range(31)
    assert made.words_of(b"".join(map(bytes, made.pieces(words)))).values.tolist() == [*range(31)]


def test_a_vector_without_values_has_a_tail_only() -> None:
    made = RingLayout(Manifest(()), {}, 1, 32)
    total = RingSum(made)
    for _ in range(3):
        words = made.sent_words(lambda _: [], Accompanying(1, METRICS, {}))
        total.add(b"".join(map(bytes, made.pieces(words))))

    assert total.signed().validation["accuracy_sum"] == 21


@pytest.mark.parametrize("size", [-1, 1])
def test_a_vector_of_another_size_is_a_documented_error(size: int) -> None:
    made = layout(20)
    total = RingSum(made)

    for refuse in (total.add, made.words_of):
        with pytest.raises(MessageError, match="bytes, not"):
            refuse(bytes(made.nbytes + size))
    with pytest.raises(MessageError, match="bytes, not"):
        total.add_pieces(bytes(total.nbytes + size), 1)
    assert total.count == 0


@pytest.mark.parametrize("bits", [16, 64])
@pytest.mark.parametrize("value", [2.0, math.nan, math.inf])
def test_a_value_beyond_the_limit_and_a_bad_weight_are_refused(bits: int, value: float) -> None:
    made = layout(bits)

    with pytest.raises(MessageError, match=r"holds .*outside"), np.errstate(invalid="ignore"):
        made.sent_words(Update(0, value), Accompanying(1, {}, {}))
    with pytest.raises(MessageError, match="weight 11 is not 1 to 10"):
        made.sent_words(Update(0), Accompanying(11, {}, {}))


@pytest.mark.parametrize(
    ("bits", "limit", "expected"),
    [(32, 64.0, [22, 18, 15]), (24, 1.0, [20, 16, 13]), (16, 1.0, [12, 8, None])],
)
def test_the_room_of_uniform_weights(bits: int, limit: float, expected: list[int | None]) -> None:
    found: list[int | None] = []
    for cohort in (4, 100, 1000):
        with suppress(ConfigError):
            found.append(choose_scales(cohort, 1, {"parameter": limit}, bits=bits)["parameter"].s)
            continue
        found.append(None)

    assert found == expected


def test_a_ring_that_leaves_no_room_for_weights_names_the_ways_out() -> None:
    with pytest.raises(ConfigError) as refused:
        choose_scales(4, 2**20, {"parameter": 64.0}, bits=32)

    assert str(refused.value) == (
        "secure.bits: 32 leaves 2 fractional bits for 4 clients of weight up to 1048576, and 8 are needed;"
        ' set aggregation.weighting = "uniform" or "capped", lower aggregation.limit, or take 64'
    )


def test_words_above_the_ring_mean_nothing() -> None:
    made = layout(24)
    total = RingSum(made)
    zeros = made.zeros()
    total.add_words(Words(zeros.values + np.uint32(0xFF000000), zeros.tail))

    assert not total.signed().tensors["w"].any()
