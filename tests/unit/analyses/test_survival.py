"""Survival curves and the log-rank test: from tables to the result, and what a site refuses. Without Redis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines import KaplanMeierFitter
from lifelines.datasets import load_lung, load_rossi
from lifelines.statistics import multivariate_logrank_test
from lifelines.utils import median_survival_times

from fl_queue.analyses import survival_curves, time_grids
from fl_queue.analyses.base import Limits
from fl_queue.analyses.statistics import Statistics
from fl_queue.errors import DataError, PolicyRefusal
from tests.unit.analyses.test_statistics import result_of, states

NOTHING: dict[str, Any] = {
    "numbers": (), "quantiles": (), "levels": {}, "groups": (), "tables": (), "correlation": (),
}  # fmt: skip


def asked(
    *questions: str, grid: tuple[float, ...], width: float = 0.0, **levels: tuple[str, ...]
) -> Statistics:
    """An analysis with these questions about survival."""
    options = {"survival": questions, "time_grid": grid, "time_width": width, "levels": levels}
    return Statistics(NOTHING | options)


def made_up(rows: int, seed: int) -> pd.DataFrame:
    """Whole months, four of ten rows with the event, and gaps."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "months": rng.integers(0, 60, rows).astype(np.float64),
            "died": (rng.random(rows) < 0.4).astype(np.float64),
            "sex": rng.choice(["F", "M"], rows),
        }
    )
    frame.loc[rng.random(rows) < 0.1, "months"] = np.nan
    return frame


def test_rossi_equals_the_golden() -> None:
    """Arrests of 432 men in a year, at three sites; each week is an interval."""
    rossi = load_rossi()
    sites = [rossi[rossi.index % 3 == site] for site in range(3)]
    found = result_of(asked("week arrest", grid=(0, 52), width=1), sites)
    curve = found["survival"]["week arrest"]
    [group] = curve["groups"]
    assert curve["times"] == list(range(53))
    assert group["survival"][10] == pytest.approx(0.96527778, abs=5e-9)
    assert group["survival"][26] == pytest.approx(0.875, abs=1e-15)
    assert group["survival"][52] == pytest.approx(0.73611111, abs=5e-9)
    assert group["low"][52] == pytest.approx(0.69185972, abs=5e-9)
    assert group["high"][52] == pytest.approx(0.77506318, abs=5e-9)
    assert (group["rows"], sum(group["events"]), group["median"]) == (432, 114, None)


def test_lung_equals_lifelines() -> None:
    """Each day is an interval: curves, errors, intervals, medians, and the log-rank test by sex."""
    lung = load_lung()
    frame = lung.assign(sex=lung["sex"].map({1: "male", 2: "female"}))
    sites = [frame.iloc[:50], frame.iloc[50:160], frame.iloc[160:]]
    analysis = asked(
        "time status", "time status by sex", grid=(1, 1022), width=1, sex=("male", "female")
    )
    found = result_of(analysis, sites)["survival"]
    [group] = found["time status"]["groups"]
    fitted = KaplanMeierFitter().fit(lung["time"], lung["status"])
    times = found["time status"]["times"]
    assert np.allclose(group["survival"], fitted.predict(times), rtol=0, atol=1e-13)
    interval = fitted.confidence_interval_.reindex(times, method="ffill")
    assert np.allclose(group["low"], interval.iloc[:, 0], rtol=0, atol=1e-12)
    assert np.allclose(group["high"], interval.iloc[:, 1], rtol=0, atol=1e-12)
    medians = median_survival_times(fitted.confidence_interval_).to_numpy()[0]
    assert [group["median"], group["median_low"], group["median_high"]] == [310, *medians]
    assert group["survival"][times.index(180)] == pytest.approx(0.72167065, abs=5e-9)
    assert group["survival"][times.index(365)] == pytest.approx(0.40924162, abs=5e-9)
    test = found["time status by sex"]["log_rank"]
    assert test["chi_square"] == pytest.approx(10.3267420, abs=5e-8)
    assert test["degrees_of_freedom"] == 1
    assert test["observed"] == [112, 53]
    assert sum(test["expected"]) == pytest.approx(165)


def test_the_log_rank_test_of_several_groups_equals_lifelines() -> None:
    """Listed levels are compared: other texts and missing cells are not."""
    frame = made_up(400, 0).dropna()
    frame["stage"] = np.random.default_rng(1).choice(["I", "II", "III", "IV"], len(frame))
    levels = ("I", "II", "III", "V")
    analysis = asked("months died by stage", grid=(0, 60), width=1, stage=levels)
    found = result_of(analysis, [frame])["survival"]["months died by stage"]["log_rank"]
    listed = frame[frame["stage"] != "IV"]
    wanted = multivariate_logrank_test(listed["months"], listed["stage"], listed["died"])
    assert found["chi_square"] == pytest.approx(wanted.test_statistic, rel=1e-9)
    assert found["degrees_of_freedom"] == 2


def test_greenwoods_errors() -> None:
    """By hand: of 10 rows one dies, one is lost, and 4 of the remaining 8 die."""
    found = survival_curves.kaplan_meier(
        np.array([1.0, 2.0]), np.array([1, 4, 0]), np.array([1, 0, 4])
    )
    assert found["at_risk"] == [10, 8]
    assert found["survival"] == pytest.approx([0.9, 0.45])
    wanted = [0.9 * np.sqrt(1 / 90), 0.45 * np.sqrt(1 / 90 + 4 / 32)]
    assert found["error"] == pytest.approx(wanted)
    assert (found["median"], found["rows"]) == (2.0, 10)


@pytest.mark.parametrize(
    ("events", "censored"),
    [([[0, 0], [0, 0]], [[0, 5], [0, 5]]), ([[2, 0], [0, 0]], [[1, 0], [0, 0]])],
)
def test_nothing_to_compare(events: Any, censored: Any) -> None:
    """No event, or one group only."""
    assert survival_curves.log_rank(np.array(events), np.array(censored)) is None


def test_a_curve_of_no_rows_and_one_that_ends_at_zero() -> None:
    """Neither divides by zero."""
    none = np.zeros(2, np.int64)
    empty = survival_curves.kaplan_meier(np.array([1.0]), none, none)
    assert (empty["survival"], empty["error"], empty["rows"]) == ([1.0], [0.0], 0)
    all_died = survival_curves.kaplan_meier(np.array([1.0]), np.array([5, 0]), none)
    assert (all_died["survival"], all_died["low"], all_died["median"]) == ([0.0], [0.0], 1.0)


ROW = st.tuples(
    st.one_of(st.just(np.nan), st.integers(0, 40).map(float)),
    st.sampled_from([0.0, 1.0, np.nan]),
    st.sampled_from(["F", "M", "x", None]),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=40), st.data())
def test_the_bits_do_not_depend_on_the_split(rows: list[Any], data: st.DataObject) -> None:
    """Rows in any order at any sites have the words of one table."""
    frame = pd.DataFrame(rows, columns=["months", "died", "sex"])
    analysis = asked("months died", "months died by sex", grid=(0.0, 10.0, 25.0), sex=("F", "M"))
    order = data.draw(st.permutations(range(len(rows))))
    cut = data.draw(st.integers(0, len(rows)))
    sites = [frame.iloc[order[:cut]], frame.iloc[order[cut:]]]
    one, two = (states(analysis, parts)[-1] for parts in ([frame], sites))
    assert np.array_equal(np.delete(one, 1), np.delete(two, 1))


def test_intervals_are_closed_at_their_end() -> None:
    """A time on a point is in the interval that it ends; later ones are at risk throughout."""
    frame = pd.DataFrame({"months": [0, 10, 10.5, 20, 21], "died": [1.0, 1, 1, 0, 1]})
    [group] = result_of(asked("months died", grid=(0, 10, 20)), [frame])["survival"]["months died"][
        "groups"
    ]
    assert (group["at_risk"], group["events"], group["censored"]) == (
        [5, 4, 3],
        [1, 1, 1],
        [0, 0, 1],
    )
    assert group["rows"] == 5


# A site

LIMITS = Limits(min_rows=20, min_cell=10)


def dies_each_month(rows: int, months: int) -> pd.DataFrame:
    """As many rows with the event as without in each month."""
    place = np.arange(rows)
    return pd.DataFrame({"months": place // 2 % months + 1.0, "died": place % 2.0, "sex": "F"})


@pytest.mark.parametrize(
    ("grid", "width", "advice"),
    [
        ((0, 8), 1.0, "intervals of width 1 have too few rows here; 2 would do"),
        (
            (*range(9), 99.0),
            0.0,
            "intervals of task.time_grid have too few rows here; every 2nd point would do",
        ),
        ((8,), 0.0, ""),
        ((0, 2, 8), 0.0, ""),
    ],
)
def test_intervals_of_few_rows_are_refused(
    grid: tuple[float, ...], width: float, advice: str
) -> None:
    """5 events in each of 8 months; the refusal names what would do, and that does."""
    analysis = asked("months died", grid=grid, width=width)
    if not advice:
        assert result_of(analysis, [dies_each_month(80, 8)], LIMITS)["rows"] == 80
        return
    with pytest.raises(PolicyRefusal, match=advice) as refused:
        result_of(analysis, [dies_each_month(80, 8)], LIMITS)
    assert refused.value.public
    wider = asked("months died", grid=grid[::2] if not width else grid, width=2 * width)
    assert result_of(wider, [dies_each_month(80, 8)], LIMITS)["rows"] == 80


def test_a_thin_end_of_a_grid_is_left_out() -> None:
    """The last months have three rows: an earlier last point would do."""
    frame = dies_each_month(240, 12)
    frame.loc[:2, "months"] = 20.0
    frame.loc[3:12, "months"] = [24.0] * 10
    frame["died"] = np.where(frame.index < 13, 0, frame["died"])
    with pytest.raises(PolicyRefusal, match="width 1 have too few rows here; 2 up to 18 would do"):
        result_of(asked("months died", grid=(0, 24), width=1), [frame], LIMITS)
    assert result_of(asked("months died", grid=(0, 18), width=2), [frame], LIMITS)["rows"] == 240


def test_no_width_would_do() -> None:
    """Three events in all."""
    frame = dies_each_month(80, 8)
    frame["died"] = (frame.index < 3).astype(float)
    with pytest.raises(PolicyRefusal, match="at any width up to 8"):
        result_of(asked("months died", grid=(0, 8), width=1), [frame], LIMITS)


def test_small_groups_are_withheld_with_another_one() -> None:
    """They would follow from the curve of all rows; nothing is compared then."""
    frame = dies_each_month(120, 2)
    frame["sex"] = np.where(frame.index < 50, "F", "M")
    frame.loc[116:, "sex"] = None
    analysis = asked("months died by sex", grid=(0, 1, 2), sex=("F", "M"))
    found = result_of(analysis, [frame], LIMITS)["survival"]["months died by sex"]
    assert [(one["level"], one["withheld"], one["rows"]) for one in found["groups"]] == [
        ("F", 1, 0), ("M", 0, 66), ("other", 0, 0), ("missing", 1, 0)
    ]  # fmt: skip
    assert found["log_rank"] is None


def test_an_event_without_a_time_is_not_shown_by_difference() -> None:
    """The mean of the events counts such rows, the curve does not."""
    frame = dies_each_month(120, 2)
    frame.loc[:2, "months"] = np.nan
    analysis = asked("months died", grid=(0, 1, 2))
    with pytest.raises(PolicyRefusal, match="too few rows have died and no months"):
        result_of(analysis, [frame], LIMITS)
    frame.loc[:2, "died"] = np.nan
    assert (
        result_of(analysis, [frame], LIMITS)["survival"]["months died"]["groups"][0]["rows"] == 117
    )


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("months", -1.0, "column months: times are 0 or more"),
        ("died", 2.0, "column died: an event is 1"),
    ],
)
def test_numbers_that_are_no_times_or_events(column: str, value: float, reason: str) -> None:
    """The column is named, and no row of it."""
    frame = dies_each_month(40, 2)
    frame.loc[7, column] = value
    with pytest.raises(DataError, match=reason):
        result_of(asked("months died", grid=(0, 2)), [frame])


@pytest.mark.parametrize(
    ("grid", "width", "points"),
    [
        ((0, 30), 10.0, (0, 10, 20, 30)),
        ((0, 35), 10.0, (0, 10, 20, 30, 35)),
        ((5, 6), 10.0, (5, 6)),
        ((1, 2, 4), 0.0, (1, 2, 4)),
        ((0, 1), 0.1, (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)),
    ],
)
def test_a_width_makes_a_grid(grid: Any, width: float, points: Any) -> None:
    """From the first to the last time, both of them included."""
    assert time_grids.grid_points(grid, width) == points
