"""Columns of a regression's design, and their scale."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fl_queue.analyses import design
from fl_queue.analyses.base import SiteRows
from fl_queue.analyses.design import Design, Feature, Scale
from fl_queue.analyses.families import FAMILIES

STAGE = Feature("stage", ("I", "II", "III"), "II")
TABLE = SiteRows(
    6,
    {
        "age": np.array([30.0, 40.0, np.nan, 50.0, 60.0, 70.0]),
        "years": np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    },
    {"stage": np.array([0, 1, 1, 2, 3, 4]), "died": np.array([0, 1, 1, 1, 0, 1])},
)
DESIGN = Design((Feature("age"), STAGE), "died", ("no", "yes"))


def test_terms_and_columns() -> None:
    """No column for the reference; the first of the others in the config's order."""
    assert [term.name for term in DESIGN.terms] == ["age", "stage: I", "stage: III"]
    assert DESIGN.columns.numbers == ("age",)
    assert DESIGN.columns.categories == {"stage": STAGE.levels, "died": ("no", "yes")}
    weighted = Design((Feature("age"),), "visits", offset="years", weights="weight")
    assert weighted.columns.numbers == ("age", "years", "weight", "visits")
    assert weighted.names == ("age", "visits", "years", "weight")


def test_rows_with_a_gap_are_left_out() -> None:
    """And those with another text than the levels."""
    assert DESIGN.is_whole(TABLE).tolist() == [True, True, False, True, False, False]


def test_encoded_rows() -> None:
    """An intercept, then the scaled columns."""
    scale = Scale(np.array([40.0, 0.0, 0.5, 0.0]), np.array([3, -1, 0, 0]))
    found = design.encoded(DESIGN, scale, TABLE, FAMILIES["logistic"])
    assert found.columns.tolist() == [
        [1.0, -1.25, 2.0, -0.5],
        [1.0, 0.0, 0.0, -0.5],
        [1.0, 1.25, 0.0, 0.5],
    ]
    assert found.target.tolist() == [0.0, 1.0, 1.0]
    assert (found.offset.tolist(), found.weights.tolist()) == ([0.0] * 3, [1.0] * 3)


def test_a_linear_target_is_scaled_less_its_offset() -> None:
    """The offset is in the target then."""
    linear = Design((STAGE,), "age", offset="years")
    scale = Scale(np.array([0.0, 0.0, 29.0]), np.array([0, 0, 1]))
    found = design.encoded(linear, scale, TABLE, FAMILIES["linear"])
    assert found.target.tolist() == [0.0, 4.5, 8.5]
    assert found.offset.tolist() == [0.0] * 3


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_centre_and_power(values: list[float]) -> None:
    """The power is within sqrt(2) of the standard deviation, the centre near the mean in its units."""
    exact = list(map(Fraction, values))
    mean = sum(exact) / len(exact)
    variance = sum((one - mean) ** 2 for one in exact) / len(exact)
    assume(variance > 1e-200)
    found = design.centre_and_power(len(exact), sum(exact), sum(one * one for one in exact))
    assert found is not None
    centre, power = found
    assert Fraction(4) ** power <= 2 * variance < 4 * Fraction(4) ** power
    assert abs(Fraction(centre) - mean) <= Fraction(2) ** (power - 9) + abs(mean) / 2**52


@pytest.mark.parametrize("value", [0, 7, -0.1])
def test_a_constant_column_has_no_scale(value: float) -> None:
    """By its exact moments."""
    exact = Fraction(value)
    assert design.centre_and_power(3, 3 * exact, 3 * exact * exact) is None


def test_a_cell_less_the_centre_is_exact() -> None:
    """Also where the mean is much larger than the standard deviation."""
    rng = np.random.default_rng(1)
    values = (1e9 + rng.normal(size=100)).round(3)
    exact = list(map(Fraction, values.tolist()))
    found = design.centre_and_power(100, sum(exact), sum(one * one for one in exact))
    assert found is not None
    centre, power = found
    z = Scale(np.array([centre]), np.array([power])).scaled(0, values)
    assert [Fraction(one) for one in z.tolist()] == [
        (one - Fraction(centre)) / Fraction(2) ** power for one in exact
    ]
    assert math.sqrt(float(np.mean(z * z))) < math.sqrt(2)


def test_parts_of_dates() -> None:
    """A year is a number, months and weekdays have a column each but for January and Monday."""
    parts = ("year", "month", "weekday")
    dated = Design((Feature("admitted", is_date=True, parts=parts),), "y")
    assert (dated.columns.numbers, dated.columns.dates) == (("admitted", "y"), ("admitted",))
    names = [term.name for term in dated.terms]
    assert names[:3] == ["admitted year", "admitted month: February", "admitted month: March"]
    assert (len(names), names[-1]) == (1 + 11 + 6, "admitted weekday: Sunday")
    # 1969-12-31 (Wednesday), 1970-01-01 (Thursday), 2024-02-29 (Thursday) at noon.
    days = np.array([-1.0, 0.0, 19782.5])
    table = SiteRows(3, {"admitted": days, "y": days}, {})
    found = {
        term.name: dated.column(table, term, np.ones(3, np.bool_)).tolist() for term in dated.terms
    }
    assert found["admitted year"] == [1969.0, 1970.0, 2024.0]
    assert found["admitted month: December"] == [1.0, 0.0, 0.0]
    assert found["admitted month: February"] == [0.0, 0.0, 1.0]
    assert found["admitted weekday: Wednesday"] == [1.0, 0.0, 0.0]
    assert found["admitted weekday: Thursday"] == [0.0, 1.0, 1.0]


def test_gaps_and_other_texts() -> None:
    """Only a missing cell is a gap."""
    assert DESIGN.has_gap(TABLE).tolist() == [False, False, True, False, False, True]
