"""Schedules of the learning rate within a round."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_queue.training.schedules import Schedule


def test_factors_are_those_of_the_formula() -> None:
    assert Schedule("linear", 0.5, 4).factors() == [0.5, 1.0, 1.0, 0.5]
    assert Schedule("constant", 0.25, 4).factors() == [1.0, 1.0, 1.0, 1.0]
    assert Schedule("cosine", 0.0, 2).factors() == pytest.approx([1.0, 0.5])
    assert Schedule("constant", 1.0, 4).factors() == [0.25, 0.5, 0.75, 1.0]
    assert Schedule("linear", 1.0, 2).factors() == [0.5, 1.0]


@given(st.sampled_from(["constant", "linear", "cosine"]), st.floats(0, 1), st.integers(1, 200))
def test_every_step_has_a_part_of_the_rate(kind: str, warmup: float, steps: int) -> None:
    factors = Schedule(kind, warmup, steps).factors()
    rising = round(warmup * steps)

    assert all(0.0 < factor <= 1.0 for factor in factors)
    assert factors[:rising] == sorted(factors[:rising])
    assert factors[rising:] == sorted(factors[rising:], reverse=True)
    assert Schedule(kind, warmup, steps).factor(steps) == (1.0 if kind == "constant" else 0.0)
