"""Float buffers of any scale, summed over any number of clients: no bit of them is lost."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fl_queue.aggregation import digits
from fl_queue.aggregation.exact_sum import ExactSum
from fl_queue.aggregation.scales import exact_scale
from fl_queue.aggregation.sum_format import sum_format
from fl_queue.config import loading
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.strategies.fedavg import FedAvg
from fl_queue.tasks.csv_table import PooledTable
from fl_queue.training.model_tensors import load_arrays, manifest_of, views_of
from tests.support import exact_sums

BUFFER = Manifest((TensorSpec("b", (4,), "float_buffer"),))
#: A standardised column's mean and deviation are right to this.
PRECISION = 2e-6
VALUES = st.lists(st.floats(-65536.0, 65536.0, width=32), min_size=4, max_size=4)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(VALUES, st.integers(1, 2**20)), min_size=1, max_size=6),
    st.integers(6, 10**6),
)
def test_the_sum_of_buffers_is_the_rational_sum(
    updates: list[tuple[list[float], int]], cohort: int
) -> None:
    scale = exact_scale(cohort, 2**20, 65536.0)
    total = ExactSum(BUFFER, {"float_buffer": scale}, 2**20)
    for values, weight in updates:
        exact_sums.add(total, {"b": np.array(values, np.float32)}, weight)
    whole, below = total._totals["b"], total._below["b"]
    for i in range(4):
        places = [int(whole[i]), *map(int, below[:, i])]
        found = sum(
            Fraction(place) * Fraction(2) ** -(scale.s + n * scale.digit)
            for n, place in enumerate(places)
        )
        assert found == sum(weight * Fraction(values[i]) for values, weight in updates)


@settings(max_examples=40)
@given(
    st.integers(1, 2**24), st.integers(1, 2**30), st.floats(2.0**-40, 2.0**100), st.integers(-1, 0)
)
def test_no_sum_of_digits_overflows(cohort: int, w_max: int, limit: float, off: int) -> None:
    scale = exact_scale(cohort, w_max, limit)
    largest = np.array([2.0**-scale.s * (0.5 + off * 2.0**-22)] * 4, np.float32)
    total = np.zeros((digits.count(scale.s, scale.digit), 4), np.int64)
    digits.add(total, largest, w_max, scale.s, scale.digit)
    assert cohort * max(abs(int(sums[0])) for sums in total) < 2**63
    assert scale.fits(cohort, w_max)


def merged(
    scales: list[float], clients: int, cohort: int, seed: int
) -> tuple[PooledTable, torch.Tensor]:
    """A table's model after the round that finds its statistics, and all rows together."""
    options = loading.load("csv", (), {})
    model = PooledTable(nn.Linear(len(scales), 2), len(scales))
    manifest = manifest_of(model)
    base = {name: array.copy() for name, array in views_of(model, manifest).items()}
    found = sum_format(options.aggregation, {}, cohort)
    total = ExactSum(manifest, found.scales, found.w_max)
    generator, everything = np.random.default_rng(seed), []
    for _ in range(clients):
        count = int(generator.integers(2, 60))
        table = generator.normal(0.5, 1.0, (count, len(scales))) * np.array(scales)
        rows = torch.from_numpy(table.astype(np.float32))
        everything.append(rows)
        load_arrays(model, manifest, base)
        model.adopt_statistics(rows)
        local = views_of(model, manifest)
        sent = {
            spec.name: np.array(
                local[spec.name] - (spec.kind != "integer_buffer") * base[spec.name]
            )
            for spec in manifest.tensors
        }
        exact_sums.add(total, sent, count)
    body = np.concatenate(
        [b.reshape(-1).astype(np.float64) for b in FedAvg().next_model(manifest, base, total)]
    )
    arrays, start = {}, 0
    for spec in manifest.tensors:
        arrays[spec.name] = body[start : start + spec.size].astype(spec.dtype).reshape(spec.shape)
        start += spec.size
    load_arrays(model, manifest, arrays)
    return model, torch.cat(everything).double()


def check(model: PooledTable, rows: torch.Tensor) -> None:
    mean = model.feature_mean.double()
    deviation = (model.feature_square_mean.double() - mean**2).sqrt()
    true = rows.std(dim=0, correction=0)
    assert float(((mean - rows.mean(dim=0)) / true).abs().max()) < PRECISION
    assert float((deviation / true - 1).abs().max()) < PRECISION
    model.layers = nn.Identity()
    shown = model(rows.float()).double()
    assert float((shown.std(dim=0, correction=0) - 1).abs().max()) < 2 * PRECISION


@settings(max_examples=15)
@given(
    st.lists(st.floats(-8.0, 8.0), min_size=1, max_size=5),
    st.integers(1, 12),
    st.sampled_from([12, 100, 10_000]),
    st.integers(0, 2**31),
)
def test_columns_of_any_scale_are_standardised(
    exponents: list[float], clients: int, cohort: int, seed: int
) -> None:
    check(*merged([10.0**exponent for exponent in exponents], clients, cohort, seed))


@pytest.mark.parametrize(("clients", "cohort"), [(1, 1), (500, 500), (100, 10_000)])
def test_columns_from_the_smallest_to_the_largest_in_one_table(clients: int, cohort: int) -> None:
    check(*merged([1e-8, 1e-4, 1.0, 1e4, 1e8], clients, cohort, 7))
