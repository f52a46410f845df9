"""exp, log and the logistic function with the same bits on every machine."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_queue.analyses import elementary
from fl_queue.protocol.arrays import Float64s

Function = Callable[[Float64s], Float64s]

GOLDEN = [
    (elementary.exp, 1.0, "0x1.5bf0a8b14576ap+1"),
    (elementary.exp, -0.5, "0x1.368b2fc6f960ap-1"),
    (elementary.exp, 10.1, "0x1.7c5c09a68d572p+14"),
    (elementary.exp, -37.3, "0x1.23865b7f2b6fep-54"),
    (elementary.log, 2.0, "0x1.62e42fefa39efp-1"),
    (elementary.log, 0.1, "-0x1.26bb1bbb55515p+1"),
    (elementary.log, 1234.5, "0x1.c79436f818745p+2"),
    (elementary.sigmoid, 0.3, "0x1.261d545e46a8bp-1"),
    (elementary.sigmoid, -4.2, "0x1.e41d8f79f1437p-7"),
]


@pytest.mark.parametrize(("function", "value", "expected"), GOLDEN)
def test_golden_bits(function: Function, value: float, expected: str) -> None:
    """Alone, and in arrays of every length up to that of vector instructions."""
    for size in range(1, 20):
        assert {one.hex() for one in function(np.full(size, value)).tolist()} == {expected}


def _check(function: Function, exact: Callable[[mpmath.mpf], mpmath.mpf], value: float) -> None:
    found = float(function(np.array([value]))[0])
    with mpmath.workprec(120):
        error = abs(mpmath.mpf(found) - exact(mpmath.mpf(value)))
        assert error <= mpmath.mpf(math.ulp(found))


@given(st.floats(-700, 700))
def test_exp_is_within_one_unit_in_the_last_place(value: float) -> None:
    """Of the exact value."""
    _check(elementary.exp, mpmath.exp, value)


@given(st.floats(1e-300, 1e300))
def test_log_is_within_one_unit_in_the_last_place(value: float) -> None:
    """Of the exact value."""
    _check(elementary.log, mpmath.log, value)


def test_exp_of_large_numbers() -> None:
    """Without a warning, which the suite turns into an error."""
    found = elementary.exp(np.array([1e9, -1e9, 710.0, -746.0, 0.0]))
    assert found.tolist() == [math.inf, 0.0, math.inf, 0.0, 1.0]
