"""The exact sum: the same bits whatever the order, the grouping, and what was taken out again."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fl_queue.aggregation.exact_sum import ExactSum
from fl_queue.aggregation.scales import Scale, choose_scales, exact_scale
from fl_queue.errors import MessageError
from fl_queue.protocol.manifest import Manifest, TensorSpec
from tests.support.exact_sums import add, mean, merge

SPECS = (
    TensorSpec("b", (2,), "float_buffer"),
    TensorSpec("n", (), "integer_buffer"),
    TensorSpec("w", (5,), "parameter"),
)
MANIFEST = Manifest(SPECS)
FLOATS = Manifest((SPECS[0], SPECS[2]))
W_MAX = 2**20
COHORT = 8
SCALES = choose_scales(COHORT, W_MAX, {"parameter": 64.0}) | {
    "float_buffer": exact_scale(COHORT, W_MAX, 65536.0)
}
Update = tuple[dict[str, np.ndarray], int]


def floats(shape: tuple[int, ...], limit: float) -> st.SearchStrategy[np.ndarray]:
    return npst.arrays(np.float32, shape, elements=st.floats(-limit, limit, width=32))


UPDATE = st.tuples(
    st.fixed_dictionaries(
        {
            "b": floats((2,), 65536.0),
            "n": npst.arrays(np.int64, ()),
            "w": floats((5,), 64.0),
        }
    ),
    st.integers(1, W_MAX),
)
UPDATES = st.lists(UPDATE, min_size=1, max_size=COHORT)


def summed(updates: list[Update], manifest: Manifest = MANIFEST) -> ExactSum:
    total = ExactSum(manifest, SCALES, W_MAX)
    for tensors, weight in updates:
        add(total, tensors, weight)
    return total


def bits(total: ExactSum) -> tuple[bytes, ...]:
    means = [mean(total, spec.name).tobytes() for spec in SPECS if spec.kind != "integer_buffer"]
    maxima = [
        total.maximum(spec.name).tobytes() for spec in total.manifest.tensors if spec.name == "n"
    ]
    totals = [piece.tobytes() for piece in total.pieces()]
    return (*means, *maxima, *totals, b"%d %d" % (total.total_weight, total.count))


@given(UPDATES, st.randoms(use_true_random=False), st.integers(1, 4))
def test_any_order_and_grouping_gives_the_same_bits(
    updates: list[Update], random: st.random_module, groups: int
) -> None:
    expected = bits(summed(updates))
    random.shuffle(updates)
    assert bits(summed(updates)) == expected
    partials = [summed(updates[start::groups]) for start in range(groups)]
    random.shuffle(partials)
    merged = ExactSum(MANIFEST, SCALES, W_MAX)
    for partial in partials:
        merge(merged, partial)
    assert bits(merged) == expected


@given(UPDATES, UPDATE)
def test_taking_a_bad_update_out_again_leaves_no_trace(
    updates: list[Update], extra: Update
) -> None:
    total = summed(updates, FLOATS)
    expected = bits(total)
    tensors, weight = extra
    # The last tensor: all before it, and the values before its last, were added by then.
    bad = tensors | {"w": np.append(tensors["w"][:-1], np.float32("nan"))}
    with pytest.raises(MessageError, match="'w' holds nan"):
        add(total, bad, weight)
    assert bits(total) == expected


@given(UPDATE)
def test_the_mean_of_one_update_is_the_update_to_the_resolution(update: Update) -> None:
    total = summed([update])
    for name, kind in (("b", "float_buffer"), ("w", "parameter")):
        off = np.abs(mean(total, name) - update[0][name].astype(np.float64))
        scale = SCALES[kind]
        assert off.max() <= 2.0 ** -(scale.s + 1) + scale.limit * 2.0**-52
    assert total.maximum("n") == update[0]["n"]


@given(UPDATES)
def test_the_mean_is_the_rational_mean_to_the_resolution(updates: list[Update]) -> None:
    total = summed(updates)
    weight = sum(weight for _, weight in updates)
    for name, kind in (("b", "float_buffer"), ("w", "parameter")):
        scale = SCALES[kind]
        allowed = Fraction(2) ** -(scale.s + 1) + Fraction(scale.limit) * Fraction(2) ** -51
        for i, found in enumerate(mean(total, name)):
            true = sum(w * Fraction(float(tensors[name][i])) for tensors, w in updates) / weight
            assert abs(Fraction(float(found)) - true) <= allowed


@given(UPDATES)
def test_integer_buffers_keep_the_maximum(updates: list[Update]) -> None:
    assert int(summed(updates).maximum("n")) == max(int(tensors["n"]) for tensors, _ in updates)


@settings(max_examples=50)
@given(
    cohort=st.integers(1, 40),
    w_max=st.integers(1, 2**40),
    limit=st.floats(2.0**-20, 64.0, width=32),
    sign=st.sampled_from([1.0, -1.0]),
)
def test_a_full_cohort_at_every_limit_does_not_overflow(
    cohort: int, w_max: int, limit: float, sign: float
) -> None:
    manifest = Manifest((TensorSpec("w", (1,), "parameter"),))
    w_max = min(w_max, 2**48 // cohort)
    scales = choose_scales(cohort, w_max, {"parameter": limit})
    total = ExactSum(manifest, scales, w_max)
    extreme = {"w": np.array([sign * limit], np.float32)}
    for _ in range(cohort):
        add(total, extreme, w_max)
    exact = cohort * w_max * round(sign * limit * 2 ** scales["parameter"].s)
    assert -(2**63) <= exact < 2**63
    assert int(total._totals["w"][0]) == exact


@given(
    cohort=st.integers(1, 2**20),
    w_max=st.integers(1, 2**20),
    limit=st.floats(2.0**-10, 64.0),
)
def test_the_scale_is_the_finest_one_that_cannot_overflow(
    cohort: int, w_max: int, limit: float
) -> None:
    w_max = min(w_max, 2**48 // cohort)
    scale: Scale = choose_scales(cohort, w_max, {"parameter": limit})["parameter"]
    assert cohort * w_max * Fraction(limit) * 2**scale.s < 2**63
    if scale.s < 31:
        finer = scale.s + 1
        assert cohort * w_max * (Fraction(limit) * 2**finer + 1) >= 2**63
