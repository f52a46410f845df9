"""FedAvg, the choice of a strategy, and the weight of an update."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fl_queue.aggregation.exact_sum import ExactSum
from fl_queue.aggregation.scales import Scale
from fl_queue.aggregation.weighting import largest_weight, weight_of
from fl_queue.config.schema import AggregationSection
from fl_queue.errors import ConfigError, MessageError
from fl_queue.protocol import tensor_layout
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.strategies import base as strategy_base
from fl_queue.strategies import get_strategy
from tests.support import exact_sums

MANIFEST = Manifest(
    (
        TensorSpec("bn.num_batches_tracked", (), "integer_buffer"),
        TensorSpec("bn.running_mean", (2,), "float_buffer"),
        TensorSpec("bn.running_var", (2,), "float_buffer"),
        TensorSpec("empty", (0,), "parameter"),
        TensorSpec("noise_var", (2,), "parameter"),
        TensorSpec("w", (2, 3), "parameter"),
    )
)
SCALES = {"parameter": Scale(31, 64.0), "float_buffer": Scale(20, 65536.0)}
AGGREGATION = AggregationSection(weighting="examples", cap=100, max_examples=1000)


def model(value: float, count: int) -> dict[str, np.ndarray]:
    return {
        spec.name: np.full(spec.shape, count if spec.dtype == "int64" else value, spec.dtype)
        for spec in MANIFEST.tensors
    }


def next_model(
    base: dict[str, np.ndarray], *updates: tuple[float, int, int]
) -> dict[str, np.ndarray]:
    total = ExactSum(MANIFEST, SCALES, w_max=1000)
    for value, count, weight in updates:
        exact_sums.add(total, model(value, count), weight)
    return made(MANIFEST, base, total)


def made(manifest: Manifest, base: dict[str, np.ndarray], total: ExactSum) -> dict[str, np.ndarray]:
    blocks = get_strategy("fedavg").next_model(manifest, base, total)
    return tensor_layout.views(manifest, b"".join(block.tobytes() for block in blocks))


def test_the_new_model_is_the_base_plus_the_weighted_mean() -> None:
    new = next_model(model(10.0, 3), (1.0, 5, 1), (-3.0, 9, 3))
    assert new["w"].tolist() == [[8.0] * 3] * 2
    assert new["bn.running_mean"].tolist() == [8.0, 8.0]
    assert new["bn.num_batches_tracked"] == 9
    assert {name: (v.dtype.name, v.shape) for name, v in new.items()} == {
        spec.name: (spec.dtype, spec.shape) for spec in MANIFEST.tensors
    }


def test_variances_are_floored_at_zero_and_nothing_else_is() -> None:
    new = next_model(model(1.0, 0), (-1.5, 0, 1))
    assert new["bn.running_var"].tolist() == [0.0, 0.0]
    assert not np.signbit(new["bn.running_var"]).any()
    assert new["bn.running_mean"].tolist() == [-0.5, -0.5]
    assert new["noise_var"].tolist() == [-0.5, -0.5]


def test_a_variance_of_minus_zero_becomes_zero() -> None:
    assert not np.signbit(next_model(model(-0.0, 0), (-0.0, 0, 1))["bn.running_var"]).any()


def test_the_base_is_not_modified() -> None:
    base = model(10.0, 3)
    for tensor in base.values():
        tensor.flags.writeable = False
    next_model(base, (1.0, 5, 1))
    assert base["w"].tolist() == [[10.0] * 3] * 2


def test_blocks_give_the_bits_of_the_formula() -> None:
    size = 2 * strategy_base.BLOCK + 7
    manifest = Manifest((TensorSpec("w", (size,), "parameter"),))
    rng = np.random.default_rng(2)
    total = ExactSum(manifest, SCALES, w_max=1000)
    for weight in (7, 600):
        exact_sums.add(total, {"w": rng.standard_normal(size).astype(np.float32)}, weight)
    base = rng.standard_normal(size).astype(np.float32)
    mean = next(total.pieces()).astype(np.float64) / 607.0 * 2.0**-31
    new = made(manifest, {"w": base}, total)["w"]
    assert new.tobytes() == (base.astype(np.float64) + mean).astype(np.float32).tobytes()


def test_a_base_of_another_model_is_refused() -> None:
    base = model(1.0, 0) | {"w": np.zeros((3, 2), np.float32)}
    with pytest.raises(MessageError, match="'w' has shape"):
        next_model(base, (1.0, 0, 1))


def test_an_unknown_strategy_names_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        get_strategy("fedmagic")
    assert caught.value.field == "aggregation.strategy"
    assert "fedavg" in caught.value.reason


@pytest.mark.parametrize(
    ("weighting", "examples", "weight", "largest"),
    [
        ("examples", 1, 1, 1000),
        ("examples", 1000, 1000, 1000),
        ("examples", 1001, 1000, 1000),
        ("examples", 2**62, 1000, 1000),
        ("capped", 99, 99, 100),
        ("capped", 101, 100, 100),
        ("uniform", 1000, 1, 1),
    ],
)
def test_weights(weighting: str, examples: int, weight: int, largest: int) -> None:
    aggregation = replace(AGGREGATION, weighting=weighting)
    assert weight_of(aggregation, examples) == weight
    assert largest_weight(aggregation) == largest


@pytest.mark.parametrize("weighting", ["examples", "capped", "uniform"])
@pytest.mark.parametrize("examples", [-1, 0])
def test_a_claim_of_no_examples_is_rejected(weighting: str, examples: int) -> None:
    with pytest.raises(MessageError) as caught:
        weight_of(replace(AGGREGATION, weighting=weighting), examples)
    assert f"num_examples is {examples}" in caught.value.reason


@pytest.mark.parametrize(
    ("weighting", "most", "weight"),
    [("examples", 50, 50), ("examples", 5000, 1000), ("capped", 50, 50), ("uniform", 50, 1)],
)
def test_a_clients_own_maximum_caps_its_weight(weighting: str, most: int, weight: int) -> None:
    assert weight_of(replace(AGGREGATION, weighting=weighting), 10**9, most) == weight


def test_no_weight_is_larger_than_the_largest() -> None:
    aggregation = replace(AGGREGATION, weighting="capped", cap=5000)
    assert weight_of(aggregation, 1000) == largest_weight(aggregation) == 1000
