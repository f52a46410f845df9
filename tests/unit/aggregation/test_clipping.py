"""The norm of an update and its scaling: the same bits however it comes, and who is judged by whom."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_queue.aggregation import clipping, group_sum
from fl_queue.aggregation.exact_sum import ExactSum
from fl_queue.aggregation.merge import UpdateMerger
from fl_queue.aggregation.scales import Scale
from fl_queue.config import loading
from fl_queue.config.schema import AggregationSection
from fl_queue.errors import ConfigError, MessageError
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.codecs import codec
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.strategies import STRATEGIES, get_strategy
from tests.support import exact_sums
from tests.support import group_updates as groups

SIZE = 2 * clipping.BLOCK + 777
MANIFEST = Manifest(
    (
        TensorSpec("bn.mean", (3,), "float_buffer"),
        TensorSpec("bn.n", (), "integer_buffer"),
        TensorSpec("v", (5, 7), "parameter"),
        TensorSpec("w", (SIZE,), "parameter"),
    )
)
SCALES = {"parameter": Scale(31, 64.0), "float_buffer": Scale(20, 65536.0)}
AGGREGATION = AggregationSection(weighting="examples", cap=100, max_examples=1000, clip_norm=2.5)


def tensors(seed: int = 1, size: float = 1.0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        "bn.mean": draw.normal(0, 100, 3).astype(np.float32),
        "bn.n": np.array(seed, np.int64),
        "v": (size * draw.standard_normal((5, 7))).astype(np.float32),
        "w": (size * draw.standard_normal(SIZE)).astype(np.float32),
    }


def cut(values: dict[str, np.ndarray], *sizes: int) -> Callable[[TensorSpec], Iterable[np.ndarray]]:
    """Each tensor in pieces of these sizes, again and again."""

    def pieces(spec: TensorSpec) -> Iterable[np.ndarray]:
        flat, start, turn = values[spec.name].reshape(-1), 0, 0
        while start < flat.size:
            yield flat[start : start + sizes[turn % len(sizes)]]
            start += sizes[turn % len(sizes)]
            turn += 1

    return pieces


def update(values: dict[str, np.ndarray], encoding: str = "float32") -> tuple[Header, bytes]:
    body = bytes(codec.encode(encoding, MANIFEST, tensor_layout.encode_body(MANIFEST, values), 5))
    header = Header(
        kind="update", run="r", round=1, client="a", num_examples=10, codec=encoding,
        tensors=codec.entries(encoding, MANIFEST), body_bytes=len(body),
        body_digest=tensor_layout.body_digest(body),
    )  # fmt: skip
    return header, body


def merge(encoding: str = "float32", **changes: Any) -> UpdateMerger:
    scales = {kind: list(scale) for kind, scale in SCALES.items()}
    return UpdateMerger(MANIFEST, replace(AGGREGATION, **changes), scales, 1000, encoding)


def bits(total: ExactSum) -> list[bytes]:
    return [piece.tobytes() for piece in total.pieces()]


def test_the_norm_is_that_of_the_parameters() -> None:
    values = tensors()
    squares = (float(v) ** 2 for name in ("v", "w") for v in values[name].reshape(-1))
    found = clipping.l2_norm(MANIFEST, cut(values, SIZE))

    assert found == pytest.approx(math.sqrt(math.fsum(squares)), rel=1e-15)
    values["bn.mean"][:] = 1e6
    assert clipping.l2_norm(MANIFEST, cut(values, SIZE)) == found


def test_the_norm_has_these_bits_on_every_machine() -> None:
    # No library draws them; their squares do not add up exactly, so another order has other bits.
    ramp = (np.arange(SIZE) * 7919 % 10007 - 5000).astype(np.float32) / np.float32(3.0)
    values = tensors() | {"w": ramp, "v": np.full((5, 7), 0.1, np.float32)}

    assert clipping.l2_norm(MANIFEST, cut(values, SIZE)).hex() == NORM


#: Made in plain Python, number by number.
NORM = "0x1.5573f876ebf80p+18"


@pytest.mark.parametrize("sizes", [(1 << 16,), (1000,), (65535, 2), (SIZE - 1, 1)])
def test_pieces_of_any_size_have_the_same_norm(sizes: tuple[int, ...]) -> None:
    values = tensors()

    assert clipping.l2_norm(MANIFEST, cut(values, *sizes)) == clipping.l2_norm(
        MANIFEST, cut(values, SIZE)
    )


@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8"])
def test_a_long_update_counts_as_one_of_the_largest_norm(encoding: str) -> None:
    total = merge(encoding)
    header, body = update(tensors(), encoding)
    added = total.add(header, body)

    # What was received: rounded by the codec, and so of another norm than what was sent.
    received = codec.LazyDecodedTensors(encoding, MANIFEST, body)
    assert added.norm == clipping.l2_norm(MANIFEST, cut(dict(received), SIZE))
    assert added.clipped
    factor = AGGREGATION.clip_norm / added.norm
    wide = received["w"].astype(np.float64) * factor
    assert bits(total.total)[3] == (10 * np.rint(wide * 2.0**31).astype(np.int64)).tobytes()
    mean = exact_sums.mean(total.total, "w"), exact_sums.mean(total.total, "v")
    assert math.hypot(*map(np.linalg.norm, mean)) == pytest.approx(2.5, rel=1e-5)
    # Buffers are no directions: they are as they came.
    assert exact_sums.mean(total.total, "bn.mean") == pytest.approx(received["bn.mean"], rel=1e-5)


def test_a_short_update_and_no_bound_change_no_bit() -> None:
    header, body = update(tensors(size=1e-3))
    plain, short = merge(clip_norm=0.0), merge()
    off, on = plain.add(header, body), short.add(header, body)

    assert bits(plain.total) == bits(short.total)
    assert (off.norm, off.clipped, on.clipped) == (None, False, False)
    assert on.norm == pytest.approx(1e-3 * math.sqrt(SIZE), rel=0.1)


def test_a_rule_that_needs_all_updates_gets_them_scaled(tmp_path: Path) -> None:
    scales = {kind: list(scale) for kind, scale in SCALES.items()}
    strategy = get_strategy("median")
    aggregation = replace(AGGREGATION, weighting="uniform")
    total = UpdateMerger(MANIFEST, aggregation, scales, 1, "float32", strategy, tmp_path)
    values = tensors()
    added = total.add(*update(values))
    base = bytes(MANIFEST.nbytes)
    body = b"".join(tensor_layout.as_bytes(block) for block in total.next_model(base))
    new = tensor_layout.views(MANIFEST, body)["w"]

    assert added.clipped
    assert added.norm is not None
    assert new == pytest.approx(values["w"] * (2.5 / added.norm), abs=1e-8)


def test_metrics_in_a_header_do_not_change_the_clipping() -> None:
    header, body = update(tensors())
    lie = replace(header, metrics={"norm": 0.1}, environment={"norm": 0.1, "clipped": False})

    assert merge().add(lie, body) == merge().add(header, body)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 65.0])
def test_a_value_that_is_refused_takes_the_scaled_ones_out_again(bad: float) -> None:
    total = merge()
    total.add(*update(tensors(2)))
    before = bits(total.total)
    values = tensors()
    values["w"][-1] = bad
    with pytest.raises(MessageError, match="'w' holds"):
        total.add(*update(values))

    assert bits(total.total) == before


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_a_groups_sum_has_the_bits_of_clipping_one_by_one(weighting: str) -> None:
    changes = (
        "clients.kind=simulation", "clients.count=5", "round.cohort=5", "aggregation.clip_norm=1.5",
        f"aggregation.weighting={weighting}",
    )  # fmt: skip
    changed = loading.load("mnist-3v7", changes, {})
    made = group_sum.GroupSum(groups.MANIFEST, changed, groups.ROUND)
    alone, together = (
        UpdateMerger(groups.MANIFEST, changed.aggregation, groups.ROUND.scales, groups.ROUND.w_max)
        for _ in range(2)
    )
    added = []
    for client in groups.FIRST:
        header, body = groups.update(client)
        made.take(header, body)
        added.append(alone.add(header, body))
    common = Header(kind="group", run="many-3f2a9c", round=1, client="group-0")
    header, body = made.element(common)
    group_sum.check(header, groups.ROUND, changed)
    group_sum.add(header, body, together)

    assert groups.bits(together) == groups.bits(alone)
    assert [alone.added(m.weight, m.norm) for m in header.members] == added
    assert any(each.clipped for each in added)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_strategies_that_reckon_with_whole_updates_refuse_a_bound(name: str) -> None:
    uniform = "uniform" if "examples" not in STRATEGIES[name].WEIGHTINGS else "examples"
    overrides = (f"aggregation.strategy={name}", f"aggregation.weighting={uniform}")
    loading.load("mnist-3v7", overrides, {})
    refused = name in ("fednova", "qfedavg", "scaffold", "feddyn")
    if not refused:
        loading.load("mnist-3v7", (*overrides, "aggregation.clip_norm=1"), {})
        return
    with pytest.raises(ConfigError) as caught:
        loading.load("mnist-3v7", (*overrides, "aggregation.clip_norm=1"), {})
    assert caught.value.field == "aggregation.clip_norm"
    assert name in caught.value.reason
    assert "set it to 0" in caught.value.reason
    assert "fedavg" in caught.value.reason


def test_a_bound_below_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="too small"):
        loading.load("mnist-3v7", ("aggregation.clip_norm=-1",), {})
