"""The task ``statistics`` from tables to its result, without Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes

from fl_queue.analyses import statistics_result
from fl_queue.analyses.base import Limits, SiteRows
from fl_queue.analyses.statistics import Statistics
from fl_queue.errors import DataError, MessageError, PolicyRefusal

LEVELS = {"sex": ("F", "M"), "stage": ("I", "II", "III")}
OPTIONS: dict[str, Any] = {
    "numbers": ("age", "bmi"),
    "quantiles": (0.1, 0.5, 0.9),
    "levels": LEVELS,
    "groups": ("age by sex", "bmi by stage"),
    "tables": ("sex by stage",),
    "correlation": ("age", "bmi"),
}


def table_of(frame: pd.DataFrame, analysis: Statistics) -> SiteRows:
    """A site's rows as an analysis reads them."""
    codes = {}
    for name, levels in analysis.columns.categories.items():
        known = {level: code for code, level in enumerate(levels)}
        codes[name] = np.array(
            [
                len(levels) + 1 if pd.isna(cell) else known.get(cell, len(levels))
                for cell in frame[name]
            ],
            np.int64,
        )
    numbers = {name: frame[name].to_numpy(np.float64) for name in analysis.columns.numbers}
    return SiteRows(len(frame), numbers, codes)


def states(
    analysis: Statistics, sites: Sequence[pd.DataFrame], limits: Limits | None = None
) -> list[np.ndarray]:
    """All states of an analysis over these sites; sums wrap around as the aggregator's do."""
    found = [analysis.initial()]
    for _ in range(analysis.steps):
        layout = analysis.layout(found[-1])
        total = np.zeros(layout.size, np.int64)
        for frame in sites:
            words = analysis.local(found[-1], table_of(frame, analysis), limits or Limits())
            layout.check(words)
            total = total + words
        found.append(analysis.advance(found[-1], total))
    return found


def result_of(
    analysis: Statistics, sites: Sequence[pd.DataFrame], limits: Limits | None = None
) -> Mapping[str, Any]:
    """The result over these sites."""
    found = analysis.result(states(analysis, sites, limits)[-1])
    assert found is not None
    return found


def made_up(rows: int, seed: int) -> pd.DataFrame:
    """A table with gaps, and with texts that the config does not list."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "age": rng.integers(18, 90, rows).astype(np.float64),
            "bmi": rng.normal(25, 4, rows).round(1),
            "sex": rng.choice(["F", "M"], rows),
            "stage": rng.choice(["I", "II", "III", "IV"], rows),
        }
    )
    frame.loc[rng.random(rows) < 0.1, "bmi"] = np.nan
    frame.loc[rng.random(rows) < 0.1, "stage"] = None
    return frame


NUMBER = st.one_of(
    st.just(np.nan),
    st.integers(-50, 50).map(float),
    st.floats(2.0**-20, 2.0**20),
)
ROW = st.tuples(
    NUMBER,
    NUMBER,
    st.sampled_from(["F", "M", "x", None]),
    st.sampled_from(["I", "II", "III", None]),
)


@settings(max_examples=20, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=40), st.data())
def test_the_bits_do_not_depend_on_the_split(rows: list[Any], data: st.DataObject) -> None:
    """Rows in any order at any sites: every state is that of the pooled table but for the number of sites."""
    analysis = Statistics(OPTIONS)
    frame = pd.DataFrame(rows, columns=["age", "bmi", "sex", "stage"])
    pooled = states(analysis, [frame])
    order = data.draw(st.permutations(range(len(rows))))
    at = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    sites = [
        frame.iloc[[row for row in order if at[row] == site]].reset_index(drop=True)
        for site in sorted(set(at))
    ]
    assert len(pooled) == 3
    for step, (one, many) in enumerate(zip(pooled, states(analysis, sites), strict=True)):
        many = many.copy()
        for place in (1, 1 + analysis.first.size)[:step]:
            assert many[place] == len(sites)
            many[place] = 1
        assert (one == many).all()


def test_equal_to_pandas() -> None:
    """On the pooled table, where nothing is withheld."""
    sites = [made_up(rows, seed) for seed, rows in enumerate((180, 90, 231))]
    frame = pd.concat(sites)
    found = result_of(Statistics(OPTIONS), sites)
    assert (found["sites"], found["rows"]) == (3, 501)
    for name in ("age", "bmi"):
        ours, column = found["numbers"][name], frame[name]
        assert (ours["rows"], ours["missing"]) == (column.count(), column.isna().sum())
        assert ours["mean"] == pytest.approx(column.mean(), rel=1e-12)
        assert ours["sd"] == pytest.approx(column.std(), rel=1e-12)
        for quantile in ours["quantiles"]:
            wanted = column.quantile(quantile["quantile"])
            assert quantile["low"] <= wanted <= quantile["high"]
            assert quantile["value"] == pytest.approx(wanted, rel=0.01)
    counted = {one["level"]: one["rows"] for one in found["levels"]["stage"]}
    wanted = frame["stage"].value_counts(dropna=False)
    assert counted == {
        "I": wanted["I"],
        "II": wanted["II"],
        "III": wanted["III"],
        "other": wanted["IV"],
        "missing": frame["stage"].isna().sum(),
    }
    means = frame.groupby("sex")["age"].agg(["mean", "std", "count"])
    for one in found["groups"]["age by sex"][:2]:
        assert one["rows"] == means["count"][one["level"]]
        assert one["mean"] == pytest.approx(means["mean"][one["level"]], rel=1e-12)
        assert one["sd"] == pytest.approx(means["std"][one["level"]], rel=1e-12)
    crossed = pd.crosstab(frame["sex"], frame["stage"])
    assert [row[:3] for row in found["tables"]["sex by stage"]["counts"][:2]] == (
        crossed[["I", "II", "III"]].to_numpy().tolist()
    )
    whole = frame[["age", "bmi"]].dropna()
    assert found["correlation"]["rows"] == len(whole)
    assert np.allclose(found["correlation"]["correlation"], whole.corr(), rtol=0, atol=1e-12)
    assert np.allclose(found["correlation"]["covariance"], whole.cov(), rtol=1e-12)


def test_known_numbers_of_a_known_table() -> None:
    """scikit-learn's diabetes data: what statisticians' programs give."""
    data = load_diabetes(scaled=False, as_frame=True)
    frame = data.data.assign(y=data.target)
    analysis = Statistics(
        {
            **OPTIONS,
            "numbers": ("bmi", "y"),
            "quantiles": (0.25, 0.5, 0.75),
            "levels": {},
            "groups": (),
            "tables": (),
            "correlation": ("bmi", "s1", "s2", "y"),
        }
    )
    found = result_of(analysis, [frame.iloc[:100], frame.iloc[100:150], frame.iloc[150:]])
    assert found["numbers"]["bmi"]["mean"] == 26.37579185520362
    assert found["numbers"]["bmi"]["sd"] == pytest.approx(4.4181215606157735, rel=1e-15)
    assert found["numbers"]["y"]["mean"] == 152.13348416289594
    assert found["numbers"]["y"]["sd"] == pytest.approx(77.09300453299109, rel=1e-15)
    quartiles = found["numbers"]["bmi"]["quantiles"]
    assert [round(one["value"], 1) for one in quartiles] == [23.2, 25.7, 29.2]
    for one, wanted in zip(quartiles, (23.2, 25.7, 29.275), strict=True):
        assert one["low"] <= wanted <= one["high"]
    matrix = found["correlation"]["correlation"]
    assert matrix[0][3] == pytest.approx(0.5864501344746885, abs=1e-15)
    assert matrix[1][2] == pytest.approx(0.8966629578104901, abs=1e-15)


def test_a_large_mean_with_a_small_spread() -> None:
    """Where sums of floating-point squares have lost everything."""
    values = 1e9 + np.random.default_rng(0).normal(0, 1, 1000)
    analysis = Statistics(
        {**OPTIONS, "numbers": ("x",), "quantiles": (), "levels": {}}
        | {"groups": (), "tables": (), "correlation": ()}
    )
    found = result_of(analysis, [pd.DataFrame({"x": values})])
    exact = np.longdouble(values)
    assert found["numbers"]["x"]["sd"] == pytest.approx(float(exact.std(ddof=1)), rel=1e-14)


# What a site withholds

LIMITS = Limits(min_rows=20, min_cell=10)


def test_small_levels_are_withheld_with_another_one() -> None:
    """And whatever would show them: cells of tables, and means of groups."""
    frame = made_up(300, 0)
    frame["stage"] = "I"
    frame.loc[:59, "stage"] = "II"
    frame.loc[290:, "stage"] = "III"
    frame.loc[295:, "stage"] = "II"
    found = result_of(Statistics(OPTIONS), [frame, made_up(200, 1)], LIMITS)
    hidden = {one["level"]: one["withheld"] for one in found["levels"]["stage"]}
    # The rows of III are among the others there, and those are few.
    assert hidden == {"I": 0, "II": 1, "III": 0, "other": 1, "missing": 0}
    assert {one["few"] for one in found["levels"]["stage"]} == {1}
    groups = {one["level"]: one["withheld"] for one in found["groups"]["bmi by stage"]}
    assert groups["other"] == groups["II"] == 1
    table = np.array(found["tables"]["sex by stage"]["withheld"])
    assert table[:2, [1, 3]].min() == 1
    assert "chi_square" not in found["tables"]["sex by stage"]


@pytest.mark.parametrize("is_there", [True, False])
def test_whether_a_rare_text_is_in_a_table_is_not_shown(is_there: bool) -> None:
    """A level of few rows has the answer of a level without any."""
    analysis = Statistics(
        {**OPTIONS, "levels": {"sex": ("F", "M"), "stage": ("I", "Smith")}}
        | {"groups": ("age by stage",), "tables": ()}
    )
    frame = made_up(200, 0)
    frame["stage"] = np.where(np.arange(200) < 90, "I", "II")
    if is_there:
        frame.loc[150, "stage"] = "Smith"
    found = result_of(analysis, [frame], LIMITS)
    assert [(one["rows"], one["withheld"], one["few"]) for one in found["levels"]["stage"]] == [
        (90, 0, 1), (0, 0, 1), (110, 0, 1), (0, 0, 1)
    ]  # fmt: skip
    assert [one["rows"] for one in found["groups"]["age by stage"]] == [90, 0, 110, 0]


def test_every_shown_number_stands_for_many_rows() -> None:
    """No word of a site's vector is a count of few rows."""
    analysis = Statistics(OPTIONS)
    for seed in range(8):
        frame = made_up(60, seed)
        found = states(analysis, [frame], LIMITS)
        words = analysis.local(found[0], table_of(frame, analysis), LIMITS)
        for block in analysis.first.blocks:
            if block.high > 1 and block.low == 0:
                counted = analysis.first.view(words, block.name)
                assert not ((counted > 0) & (counted < LIMITS.min_cell)).any(), block.name
        layout = analysis.second(found[1])
        words = analysis.local(found[1], table_of(frame, analysis), LIMITS)
        for name in ("age", "bmi"):
            counted = layout.view(words, f"cells of {name}")
            assert not ((counted > 0) & (counted < LIMITS.min_cell)).any()


def test_quantiles_of_joined_cells_are_still_brackets() -> None:
    """Wider ones: fewer than ``min_cell`` rows of each site may be counted in another cell."""
    sites = [made_up(300, seed) for seed in range(3)]
    found = result_of(Statistics(OPTIONS), sites, LIMITS)
    frame = pd.concat(sites)
    for name in ("age", "bmi"):
        for quantile in found["numbers"][name]["quantiles"]:
            wanted = frame[name].quantile(quantile["quantile"])
            assert quantile["low"] <= wanted <= quantile["high"]


def test_the_median_of_amounts_that_are_mostly_0() -> None:
    """It is 0, and no number of the same cell that no table holds."""
    asked = {"numbers": ("x",), "quantiles": (0.5,), "levels": {}}
    analysis = Statistics({**OPTIONS, **asked} | {"groups": (), "tables": (), "correlation": ()})
    found = result_of(analysis, [pd.DataFrame({"x": [0.0] * 60 + [*range(40)]})], LIMITS)
    [median] = found["numbers"]["x"]["quantiles"]
    assert median["value"] == 0.0
    assert median["low"] <= 0 < median["high"]


def test_a_correlation_that_shows_few_rows_by_difference_is_withheld() -> None:
    """The sums over all rows of a column, and over those without a gap elsewhere, differ by a few rows."""
    frame = made_up(200, 0)
    frame["bmi"] = np.where(np.arange(200) < 5, np.nan, 24.0 + np.arange(200) % 7)
    found = result_of(Statistics(OPTIONS), [frame], LIMITS)
    assert found["correlation"]["withheld"] == 1
    assert found["correlation"]["correlation"] is None


def test_a_dominated_sum_is_withheld() -> None:
    """The largest row could be computed from it, by the second largest at least."""
    frame = made_up(100, 0)
    frame.loc[3, "bmi"] = 1e7
    limits = Limits(20, 10, dominance=15)
    found = result_of(Statistics(OPTIONS), [frame], limits)
    assert found["numbers"]["bmi"]["withheld"] == 1
    assert found["numbers"]["bmi"]["mean"] is None
    assert found["numbers"]["age"]["withheld"] == 0


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ({"dominance": 15.0}, lambda row: -1e7 if row == 3 else row % 7 - 3),
        ({}, lambda row: float(row < 3)),
        ({}, lambda row: float(row >= 3)),
        ({}, lambda row: 2.0 if row < 4 else float(row % 2)),
        ({}, lambda row: row * 1.5 if row < 6 else 0.0),
    ],
    ids=["outlier below 0", "3 ones", "3 zeros", "4 of a third number", "6 are not 0"],
)
def test_sums_that_show_few_rows(changed: dict[str, Any], value: Any) -> None:
    """All rows are counted, and the numbers, squares or products show what few of them have."""
    frame = made_up(120, 0).assign(bmi=[float(value(row)) for row in range(120)])
    found = result_of(Statistics(OPTIONS), [frame], replace(LIMITS, **changed))
    assert found["numbers"]["bmi"]["withheld"] == 1
    assert found["correlation"]["withheld"] == 1
    assert found["numbers"]["age"]["withheld"] == 0


def test_products_that_are_counts_of_few_rows() -> None:
    """Of two columns of 0 and 1, three rows have both: their sum of products is 3."""
    rows = np.arange(120)
    frame = made_up(120, 0).assign(age=(rows < 43) * 1.0, bmi=(rows >= 40) * 1.0)
    found = result_of(Statistics(OPTIONS), [frame], LIMITS)
    assert found["numbers"]["age"]["withheld"] == found["numbers"]["bmi"]["withheld"] == 0
    assert found["correlation"]["withheld"] == 1
    frame["age"] = (rows < 60) * 1.0
    assert result_of(Statistics(OPTIONS), [frame], LIMITS)["correlation"]["withheld"] == 0


def test_what_is_left_of_a_total_shows_no_row() -> None:
    """A group with one large row is withheld, and not one small group with it: the total would show it."""
    frame = made_up(300, 0).assign(bmi=1.0 + np.arange(300) % 9)
    frame["stage"] = np.repeat(["I", "II", "III"], [100, 30, 170])
    frame.loc[3, "bmi"] = 5000.0
    frame.loc[130:, "bmi"] *= 500
    found = result_of(Statistics(OPTIONS), [frame], Limits(20, 10, 15))
    groups = {one["level"]: one["withheld"] for one in found["groups"]["bmi by stage"]}
    assert groups == {"I": 1, "II": 1, "III": 1, "other": 0, "missing": 0}
    assert found["numbers"]["bmi"]["withheld"] == 0


def test_a_table_of_fewer_rows_than_any_number_may_stand_for() -> None:
    """Their number is shown: a small ``min_rows`` does not lower it."""
    analysis = Statistics(OPTIONS)
    with pytest.raises(PolicyRefusal):
        analysis.local(analysis.initial(), table_of(made_up(9, 0), analysis), Limits(1, 10))


def test_a_site_that_lies_breaks_no_result() -> None:
    """Squares that are none, and counts that contradict each other, each within its limits."""
    analysis = Statistics(OPTIONS)
    state = analysis.initial()
    for _ in range(analysis.steps):
        layout = analysis.layout(state)
        words = np.concatenate(
            [np.full(block.size, block.high, np.int64) for block in layout.blocks]
        )
        layout.view(words, layout.blocks[-1].name)[:] = layout.blocks[-1].low
        for block in layout.blocks:
            if block.name.startswith("squares"):
                layout.view(words, block.name)[:] = block.low
        layout.check(words)
        state = analysis.advance(state, words)
    found = analysis.result(state)
    assert found is not None
    assert found["numbers"]["age"]["sd"] is None


def test_a_table_of_few_rows_is_refused() -> None:
    """Whatever was asked."""
    analysis = Statistics(OPTIONS)
    with pytest.raises(PolicyRefusal, match="fewer rows than its min_rows") as refused:
        analysis.local(analysis.initial(), table_of(made_up(19, 0), analysis), LIMITS)
    assert refused.value.public


def test_a_number_that_cannot_be_summed_names_its_column() -> None:
    """And never the number."""
    analysis = Statistics(OPTIONS)
    frame = made_up(50, 0)
    frame.loc[7, "bmi"] = 1e300
    with pytest.raises(DataError, match="column bmi: values outside") as refused:
        analysis.local(analysis.initial(), table_of(frame, analysis), Limits())
    assert "e+300" not in str(refused.value)


# Foreign words


@pytest.mark.parametrize(
    ("block", "word"),
    [("sites", 2), ("rows", -1), ("withheld of age", 2), ("sum of age", 2**32)],
)
def test_words_outside_of_their_limits_are_refused(block: str, word: int) -> None:
    """Nothing else can be wrong with a vector."""
    analysis = Statistics(OPTIONS)
    words = np.zeros(analysis.first.size, np.int64)
    analysis.first.view(words, block)[0] = word
    with pytest.raises(MessageError, match=block):
        analysis.first.check(words)


def test_a_vector_of_another_size_is_refused() -> None:
    """Its words would mean something else."""
    analysis = Statistics(OPTIONS)
    with pytest.raises(MessageError, match="words, not"):
        analysis.first.check(np.zeros(3, np.int64))
    with pytest.raises(MessageError, match="no step follows"):
        analysis.layout(states(analysis, [made_up(30, 0)])[-1])


def test_levels_beside_those_of_the_config_have_names() -> None:
    """Texts that the config does not list are one level: their names stay at the site."""
    found = result_of(Statistics(OPTIONS), [made_up(100, 0)])
    names = [one["level"] for one in found["levels"]["sex"]]
    assert names == ["F", "M", statistics_result.OTHER, statistics_result.MISSING]


def test_the_result_of_each_site_alone_is_that_of_its_table() -> None:
    """Quantiles lie in the cells of all sites; a site without its second answer has none."""
    analysis = Statistics(OPTIONS)
    sites = [made_up(rows, rows) for rows in (120, 80)]
    all_states = states(analysis, sites)
    for frame in sites:
        answers = [
            analysis.local(state, table_of(frame, analysis), Limits()) for state in all_states[:2]
        ]
        found = analysis.site_result(all_states[-1], answers)
        alone = dict(result_of(analysis, [frame]))
        ages = found["numbers"]["age"]["quantiles"]
        for one in ages:
            assert one["low"] <= frame["age"].quantile(one["quantile"]) <= one["high"]
        for result in (found, alone):
            for number in result["numbers"].values():
                del number["quantiles"]
        assert found == alone
        assert (
            "quantiles" not in analysis.site_result(all_states[-1], answers[:1])["numbers"]["age"]
        )
    with pytest.raises(MessageError, match="not of its step"):
        analysis.site_result(all_states[-1], [answers[1]])
    with pytest.raises(MessageError, match="not of its step"):
        analysis.site_result(all_states[-1], [])


@pytest.mark.parametrize(
    ("count", "to", "shown"), [(12, 5, 10), (13, 5, 15), (5, 10, 10), (4, 10, 0), (7, 0, 7)]
)
def test_a_count_is_rounded_to_the_nearest_multiple_halves_up(
    count: int, to: int, shown: int
) -> None:
    """Worked by hand."""
    assert Limits(round_to=to).rounded(np.array([count])).tolist() == [shown]


def test_a_site_that_rounds_shows_no_exact_count_and_exact_sums() -> None:
    """The result has how far its counts may be from those of the rows."""
    options = {**OPTIONS, "quantiles": ()}
    analysis = Statistics(options)
    sites = [made_up(123, 1), made_up(88, 2)]
    exact = result_of(analysis, sites, Limits(min_cell=3))
    found = result_of(analysis, sites, Limits(min_cell=3, round_to=5))
    assert "counts_within" not in exact
    assert found["counts_within"] == 5.0
    assert (exact["rows"], found["rows"]) == (211, 215)
    assert found["numbers"]["age"]["sum"] == exact["numbers"]["age"]["sum"]
    for ours, wanted in zip(found["levels"]["stage"], exact["levels"]["stage"], strict=True):
        assert ours["rows"] % 5 == 0
        assert abs(ours["rows"] - wanted["rows"]) <= 5
    words = analysis.local(analysis.initial(), table_of(sites[0], analysis), Limits(round_to=5))
    for block in analysis.first.blocks:
        if block.is_count:
            assert not (analysis.first.view(words, block.name) % 5).any()


def test_a_site_that_rounds_shows_no_count_as_a_sum() -> None:
    """The sum of a column of 0 and 1 is the count of 1, and so are its products with others."""
    options = {**OPTIONS, "quantiles": (), "numbers": ("age", "bmi"), "correlation": ("age", "bmi")}
    frame = made_up(200, 4)
    frame["bmi"] = (frame["bmi"] > 25).astype(np.float64)
    found = result_of(Statistics(options), [frame], Limits(min_cell=3, round_to=5))
    assert (found["numbers"]["bmi"]["withheld"], found["numbers"]["bmi"]["sum"]) == (1, 0.0)
    assert found["numbers"]["age"]["withheld"] == 0
    assert found["correlation"]["withheld"] == 1
    assert {one["sum"] for one in found["groups"]["bmi by stage"]} == {0.0}
    shown = result_of(Statistics(options), [frame], Limits(min_cell=3))
    assert shown["numbers"]["bmi"]["withheld"] == shown["correlation"]["withheld"] == 0


def test_a_site_that_rounds_shows_no_count_as_sum_and_squares() -> None:
    """Of 0, 1 and 2 the counts of 1 and of 2 are those of two equations; so it is in a group of a column of more."""
    options = {**OPTIONS, "quantiles": (), "numbers": ("age", "bmi"), "correlation": ()}
    frame = made_up(300, 4)
    frame["age"] = np.arange(300) % 3
    frame.loc[frame["stage"] == "I", "bmi"] = np.arange(int((frame["stage"] == "I").sum())) % 3 + 20
    found = result_of(Statistics(options), [frame], Limits(min_cell=3, round_to=5))
    assert (found["numbers"]["age"]["withheld"], found["numbers"]["age"]["sum"]) == (1, 0.0)
    first, *others = found["groups"]["bmi by stage"]
    assert (first["level"], first["withheld"], first["sum"]) == ("I", 1, 0.0)
    assert found["numbers"]["bmi"]["withheld"] == 0
    assert any(one["sum"] for one in others)


@pytest.mark.parametrize(
    "options", [{"quantiles": (0.5,)}, {"survival": ("age died",), "time_grid": (0.0, 50.0)}]
)
def test_a_site_that_rounds_refuses_what_needs_exact_counts(options: dict[str, Any]) -> None:
    """Before it looks at a row."""
    analysis = Statistics({**OPTIONS, "quantiles": (), **options})
    frame = made_up(100, 3).assign(died=1.0)
    with pytest.raises(PolicyRefusal, match="need exact ones"):
        analysis.local(
            analysis.initial(), table_of(frame, analysis), Limits(min_cell=3, round_to=5)
        )
