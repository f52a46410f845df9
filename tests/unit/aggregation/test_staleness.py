"""Weights of stale updates: integers, the same everywhere, in the range of the exact sum."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from fl_queue.aggregation.exact_sum import ExactSum
from fl_queue.aggregation.scales import Scale, choose_scales
from fl_queue.aggregation.staleness import ONE, StalenessWeights, discount, weights
from fl_queue.config import loading
from fl_queue.config.schema import RoundSection
from fl_queue.errors import ConfigError
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.protocol.tensor_layout import little_endian
from tests.support import exact_sums

LIMITS = {"parameter": 64.0, "float_buffer": 65536.0}
SETTINGS = RoundSection(staleness="polynomial", staleness_exponent=0.5, max_staleness=10)
ASYNC = ("round.mode=async",)


def is_root(value: int, tau: int) -> bool:
    """Whether ``value`` is ONE / sqrt(1 + tau) rounded to the nearest integer, by integers alone."""
    low, high = Fraction(2 * value - 1, 2), Fraction(2 * value + 1, 2)
    return low**2 * (1 + tau) <= ONE**2 <= high**2 * (1 + tau)


def test_the_papers_weights_are_rounded_to_the_nearest_integer() -> None:
    found = weights("polynomial", 0.5, 100)
    assert found[0] == ONE
    assert all(is_root(value, tau) for tau, value in enumerate(found))
    assert not any(is_root(value + 1, tau) for tau, value in enumerate(found))


@pytest.mark.parametrize("exponent", [0.0, 0.3, 1.0, 3.7])
def test_other_exponents_agree_with_floating_point(exponent: float) -> None:
    found = weights("polynomial", exponent, 20)
    wanted = [ONE * math.pow(1 + tau, -exponent) for tau in range(21)]
    assert found == pytest.approx(wanted, abs=0.5 + 1e-6)


def test_constant_weights_do_not_change_and_need_no_room() -> None:
    settings = replace(SETTINGS, staleness="constant")
    made = discount(settings, 8, 1 << 20, LIMITS, {})
    assert made == StalenessWeights(1, (ONE,) * 11)
    assert [made.discounted(7, tau) for tau in (0, 10)] == [7, 7]


@pytest.mark.parametrize("w_max", [1, 1000, 1 << 20])
@pytest.mark.parametrize("updates", [1, 8, 100])
def test_the_unit_is_what_the_range_has_room_for(updates: int, w_max: int) -> None:
    limits = {"parameter": 64.0}
    made = discount(SETTINGS, updates, w_max, limits, {})
    plain = choose_scales(updates, w_max, limits)
    assert choose_scales(updates, made.full(w_max), limits) == plain
    assert made.unit == ONE or choose_scales(updates, 2 * made.full(w_max), limits) != plain
    assert made.unit & (made.unit - 1) == 0


def test_a_discounted_weight_is_within_half_a_unit_and_never_nothing() -> None:
    made = StalenessWeights(4, weights("polynomial", 0.5, 10))
    for examples in (1, 7, 600, 1 << 20):
        for tau in range(11):
            exact = 4 * examples / math.sqrt(1 + tau)
            assert abs(made.discounted(examples, tau) - exact) <= 0.51 + 1e-6 * exact
    assert StalenessWeights(1, weights("polynomial", 10.0, 10)).discounted(1, 10) == 1
    assert StalenessWeights.from_dict(made.to_dict()) == made
    assert StalenessWeights.from_dict({}) is None


def test_the_mean_is_divided_by_what_updates_count_undiscounted() -> None:
    # FedBuff: x += sum s(tau) D / K, so a buffer of stale updates makes a shorter step.
    spec = TensorSpec("w", (3,), "parameter")
    total = ExactSum(Manifest((spec,)), {"parameter": Scale(31, 64.0)}, 8)
    for value, weight in ((1.0, 8), (-2.0, 4)):
        change = little_endian(np.full(3, value, np.float32))
        total.add_blocks(lambda _, change=change: [change], weight, counted=8)
    assert exact_sums.mean(total, "w").tolist() == [0.0, 0.0, 0.0]
    assert (total.total_weight, total.divisor) == (12, 16)
    other = ExactSum(Manifest((spec,)), {"parameter": Scale(31, 64.0)}, 8)
    exact_sums.merge(other, total)
    assert other.divisor == 16


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ((*ASYNC, "round.cohort=4"), "round.cohort"),
        ((*ASYNC, "round.quorum=0.5"), "round.quorum"),
        ((*ASYNC, "round.grace_s=1"), "round.grace_s"),
        (("round.buffer=4",), "round.buffer"),
        (("round.max_staleness=4",), "round.max_staleness"),
        ((*ASYNC, "round.buffer=4", "round.concurrency=3"), "round.buffer"),
        ((*ASYNC, "round.max_staleness=101"), "round.max_staleness"),
        ((*ASYNC, "clients.kind=simulation", "clients.count=4"), "round.mode"),
        *(
            ((*ASYNC, f"aggregation.strategy={name}", *more), "round.mode")
            for name, *more in (
                ("scaffold", "aggregation.weighting=uniform"),
                ("feddyn", "aggregation.weighting=uniform"),
                ("fednova",),
                ("qfedavg", "aggregation.weighting=uniform"),
            )
        ),
    ],
)
def test_what_makes_no_sense_is_refused_when_the_config_is_read(
    overrides: tuple[str, ...], field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loading.load("mnist-3v7", ("round.cohort=1.0", *overrides), {})
    assert caught.value.field == field


@pytest.mark.parametrize(
    "name", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox"]
)
def test_strategies_that_step_along_a_mean_take_stale_updates(name: str) -> None:
    loading.load("mnist-3v7", ("round.cohort=1.0", *ASYNC, f"aggregation.strategy={name}"), {})
