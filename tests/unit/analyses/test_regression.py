"""Regressions from tables to their results, without Redis: beside statsmodels, and over any split of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.datasets import longley

from fl_queue.analyses.base import Limits
from fl_queue.analyses.regression import Regression
from fl_queue.errors import AnalysisError, DataError, MessageError, PolicyRefusal
from tests.support import regression_tables as tables
from tests.support.regression_tables import (
    BREAST_CANCER,
    DIABETES,
    RANDHIE,
    analysis_of,
    estimates,
    result_of,
    split,
    states,
)


def _made_up(rows: int, seed: int) -> pd.DataFrame:
    """A table with gaps, categories, an exposure and weights."""
    rng = np.random.default_rng(seed)
    age, stage = rng.normal(60, 9, rows).round(1), rng.choice(["I", "II", "III"], rows)
    frame = pd.DataFrame({"age": age, "stage": stage, "crp": rng.gamma(2, 5, rows).round(2)})
    frame["years"] = np.log(rng.uniform(0.5, 4, rows))
    frame["weight"] = rng.uniform(0.5, 3, rows).round(2)
    eta = -3 + 0.04 * age + 0.5 * (stage == "II") - 0.03 * frame["crp"]
    frame["visits"] = rng.poisson(np.exp(eta + frame["years"])).astype(np.float64)
    frame["died"] = np.where(rng.random(rows) < 1 / (1 + np.exp(-eta)), "yes", "no")
    frame["y"] = eta + rng.normal(0, 1, rows)
    frame.loc[rng.random(rows) < 0.1, "age"] = np.nan
    frame.loc[rng.random(rows) < 0.05, "stage"] = None
    return frame


MADE_UP: dict[str, Any] = {
    "columns": {"stage": {"type": "category", "levels": ("I", "II", "III"), "reference": "II"}}
}
FEATURES = ("age", "stage", "crp")


def _dummies(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows without a gap, and their columns as statsmodels takes them."""
    whole = frame.dropna()
    columns = pd.DataFrame(
        {
            "const": 1.0,
            "age": whole["age"],
            "I": (whole["stage"] == "I").astype(float),
            "III": (whole["stage"] == "III").astype(float),
            "crp": whole["crp"],
        }
    )
    return whole, columns


def _check(found: Any, model: Any, robust: Any = None, tolerance: float = 1e-6) -> None:
    beta, errors = estimates(found)
    np.testing.assert_allclose(beta, model.params, rtol=tolerance)
    np.testing.assert_allclose(errors, (model if robust is None else robust).bse, rtol=tolerance)


# Golden numbers


def test_linear_regression_on_diabetes() -> None:
    """In three rounds; sex counts as 1 where the file has 2."""
    frame = tables.diabetes()
    frame["sex"] = frame["sex"].map({1: "f", 2: "m"})
    columns = {"sex": {"levels": ("f", "m")}}
    analysis = analysis_of(DIABETES, columns=columns)
    found = result_of(analysis, split(frame, 3))
    beta, errors = estimates(found)
    assert beta[:3] == pytest.approx([-357.4267866, -0.03636122422, -22.85964809], rel=1e-9)
    assert errors[:3] == pytest.approx([67.05807223, 0.2170414354, 5.835821285], rel=1e-9)
    fit = found["fit"]
    assert fit["r2"] == pytest.approx(0.5177484222, rel=1e-9)
    assert fit["adjusted_r2"] == pytest.approx(0.5065592905, rel=1e-9)
    assert fit["f"] == pytest.approx(46.27243959, rel=1e-9)
    assert fit["log_likelihood"] == pytest.approx(-2385.99286212, rel=1e-9)
    assert fit["aic"] == pytest.approx(4793.985724, rel=1e-9)
    assert fit["bic"] == pytest.approx(4838.990133, rel=1e-9)
    assert fit["sigma2"] == pytest.approx(2932.68163720, rel=1e-9)
    assert (found["steps"], found["rows"], found["degrees_of_freedom"]) == (3, 442, 431)
    for kind, wanted in (("HC0", 63.5844585141), ("HC1", 64.3907489847)):
        robust = analysis_of(DIABETES, columns=columns, robust=kind)
        assert estimates(result_of(robust, [frame]))[1][0] == pytest.approx(wanted, rel=1e-9)


def test_longley() -> None:
    """NIST's certified values of a hard problem."""
    data = longley.load_pandas()
    frame = data.exog.assign(y=data.endog)
    beta, errors = estimates(result_of(analysis_of(tuple(data.exog.columns)), split(frame, 2)))
    assert beta == pytest.approx(
        [
            *(-3482258.63459582, 15.0618722713733, -0.0358191792925910, -2.02022980381683),
            *(-1.03322686717359, -0.0511041056535807, 1829.15146461355),
        ],
        rel=1e-9,
    )
    assert errors == pytest.approx(
        [
            *(890420.383607373, 84.9149257747669, 0.0334910077722432, 0.488399681651699),
            *(0.214274163161675, 0.226073200069370, 455.478499142212),
        ],
        rel=1e-9,
    )


def test_logistic_regression_on_breast_cancer() -> None:
    """In eight rounds."""
    analysis = analysis_of(BREAST_CANCER, family="logistic", target="malignant")
    found = result_of(analysis, split(tables.breast_cancer(), 3))
    beta, errors = estimates(found)
    assert beta[:2] == pytest.approx([-40.73798025, 1.300653352], rel=1e-9)
    assert errors[:2] == pytest.approx([5.070553271, 0.163635032], rel=1e-7)
    fit = found["fit"]
    assert fit["log_likelihood"] == pytest.approx(-80.0319750553, rel=1e-9)
    assert fit["null_log_likelihood"] == pytest.approx(-375.7200027320, rel=1e-9)
    assert fit["pseudo_r2"] == pytest.approx(0.7869903799, rel=1e-9)
    assert (
        found["steps"],
        analysis.one(states(analysis, [tables.breast_cancer()])[-1], "shift"),
    ) == (8, 41)


def test_poisson_regression_on_randhie() -> None:
    """In seven rounds."""
    frame = tables.randhie()
    analysis = analysis_of(RANDHIE, family="poisson", target="mdvis")
    found = result_of(analysis, split(frame, 2))
    columns = sm.add_constant(frame[list(RANDHIE)])
    family = sm.families.Poisson()
    _check(found, sm.GLM(frame["mdvis"], columns, family=family).fit(tol=1e-14, maxiter=100))
    fit = found["fit"]
    assert fit["log_likelihood"] == pytest.approx(-62419.58856445, rel=1e-9)
    assert fit["deviance"] == pytest.approx(83934.23786047, rel=1e-9)
    assert fit["pearson"] == pytest.approx(126713.75798762, rel=1e-9)
    assert found["steps"] == 7


# Beside statsmodels


@pytest.mark.parametrize("robust", ["", "HC0", "HC1"])
@pytest.mark.parametrize("family", ["linear", "logistic", "poisson"])
def test_categories_and_robust_errors(family: str, robust: str) -> None:
    """Coefficients, errors, and how well they fit."""
    frame = _made_up(900, 7)
    target = {"linear": "y", "logistic": "died", "poisson": "visits"}[family]
    classes = "no, yes" if family == "logistic" else ""
    analysis = analysis_of(
        FEATURES, family=family, target=target, classes=classes, robust=robust, **MADE_UP
    )
    found = result_of(analysis, split(frame, 4))
    # statsmodels' logistic and Poisson models have no n / (n - p) in HC1.
    whole, columns = _dummies(frame.drop(columns=[] if target == "y" else ["y"]))
    y = (whole["died"] == "yes").astype(float) if classes else whole[target]
    kinds = {"logistic": sm.families.Binomial, "poisson": sm.families.Poisson}
    if family == "linear":
        model = sm.OLS(y, columns).fit()
        other = model.get_robustcov_results(robust) if robust else None
    else:
        glm = sm.GLM(y, columns, family=kinds[family]())
        model = glm.fit(tol=1e-14, maxiter=100)
        other = glm.fit(tol=1e-14, maxiter=100, cov_type=robust) if robust else None
    if robust == "HC1" and family != "linear":
        errors = estimates(found)[1]
        factor = np.sqrt(len(whole) / (len(whole) - 5))
        np.testing.assert_allclose(errors, other.bse * factor, rtol=1e-6)
        return
    _check(found, model, other)
    assert found["fit"]["log_likelihood"] == pytest.approx(model.llf, rel=1e-9)
    assert found["fit"]["aic"] == pytest.approx(model.aic, rel=1e-9)
    assert (found["rows"], found["dropped"]) == (len(whole), 900 - len(whole))
    if family == "poisson":
        assert found["fit"]["deviance"] == pytest.approx(model.deviance, rel=1e-9)
        assert found["fit"]["null_log_likelihood"] == pytest.approx(model.llnull, rel=1e-9)
    if not robust:
        wald = (other or model).wald_test(np.eye(5)[2:4], use_f=False, scalar=True)
        (test,) = found["categories"]
        assert test["column"] == "stage"
        assert test["chi_square"] == pytest.approx(wald.statistic, rel=1e-6)


@pytest.mark.parametrize("family", ["linear", "logistic", "poisson"])
def test_offset_and_weights(family: str) -> None:
    """As statsmodels' offset and var_weights."""
    frame = _made_up(700, 8)
    target = {"linear": "y", "logistic": "died", "poisson": "visits"}[family]
    analysis = analysis_of(
        FEATURES,
        family=family,
        target=target,
        classes="no, yes" if family == "logistic" else "",
        offset="years",
        weights="weight",
        **MADE_UP,
    )
    found = result_of(analysis, split(frame, 3))
    whole, columns = _dummies(frame)
    y = (whole["died"] == "yes").astype(float) if family == "logistic" else whole[target]
    kinds = {
        "linear": sm.families.Gaussian,
        "logistic": sm.families.Binomial,
        "poisson": sm.families.Poisson,
    }
    model = sm.GLM(
        y, columns, family=kinds[family](), offset=whole["years"], var_weights=whole["weight"]
    ).fit(tol=1e-14, maxiter=100)
    _check(found, model)
    assert found["fit"] == {}


def test_ridge() -> None:
    """It ends what separates, and has no errors."""
    frame = _made_up(300, 9).assign(died=lambda rows: (rows["crp"] > 9).astype(float))
    options: dict[str, Any] = {"family": "logistic", "target": "died"}
    with pytest.raises(AnalysisError, match="crp separates the target"):
        result_of(analysis_of(("crp",), **options), [frame])
    found = result_of(analysis_of(("crp",), ridge=1.0, **options), split(frame, 2))
    beta, errors = estimates(found)
    assert errors == [None, None]
    z = ((frame["crp"] - frame["crp"].mean()) / frame["crp"].std(ddof=0)).to_numpy()
    mean = 1 / (1 + np.exp(-(beta[0] + beta[1] * frame["crp"])))
    slope = beta[1] * frame["crp"].std(ddof=0)
    assert float(np.sum((frame["died"] - mean) * z)) == pytest.approx(slope, rel=1e-9)


# Any split, any order


@settings(max_examples=12)
@given(
    st.sampled_from(["linear", "logistic", "poisson"]),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
)
def test_any_split_of_rows_has_the_same_states(family: str, sites: int, seed: int) -> None:
    """The bits of every state, but for the number of sites; robust errors too."""
    frame = _made_up(240, 3)
    target = {"linear": "y", "logistic": "died", "poisson": "visits"}[family]
    analysis = analysis_of(
        FEATURES,
        family=family,
        target=target,
        classes="no, yes" if family == "logistic" else "",
        robust="HC0",
        **MADE_UP,
    )
    pooled = _without_sites(analysis, states(analysis, [frame]))
    shuffled = frame.sample(frac=1, random_state=seed % 1000)
    assert _without_sites(analysis, states(analysis, split(shuffled, sites, seed))) == pooled


def _without_sites(analysis: Regression, found: Sequence[Any]) -> list[bytes]:
    plain = []
    for state in found:
        bare = state.copy()
        moments = analysis.fields.view(bare, "moments")
        analysis.moments_layout.view(moments, "sites")[:] = 0
        last = analysis.fields.view(bare, "last")
        analysis.point_layout(True).view(last, "sites")[:] = 0
        plain.append(bare.tobytes())
    return plain


def test_what_is_kept_of_rows_may_be_lost() -> None:
    """At any step; the words are the same."""
    frame = _made_up(300, 4)
    analysis = analysis_of(FEATURES, **MADE_UP)
    found = states(analysis, [frame])
    table = tables.site_rows(analysis, frame)
    for state in found[:-1]:
        kept = analysis.local(state, table, Limits())
        assert (
            analysis.local(state, tables.site_rows(analysis, frame), Limits()).tolist()
            == kept.tolist()
        )


def test_a_steep_likelihood_ends_all_the_same() -> None:
    """Counts of which one is a thousand times the others: steps are halved, and the grid becomes coarser."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({"x": rng.normal(size=200)})
    frame["visits"] = rng.poisson(1.0, 200).astype(float)
    frame.loc[frame["x"].idxmax(), "visits"] = 1500.0
    analysis = analysis_of(("x",), family="poisson", target="visits", max_steps=60)
    found = result_of(analysis, split(frame, 3))
    model = sm.GLM(frame["visits"], sm.add_constant(frame[["x"]]), family=sm.families.Poisson())
    _check(found, model.fit(tol=1e-14, maxiter=200))
    one, other = (states(analysis, split(frame, sites))[-1] for sites in (2, 5))
    assert (
        _without_sites(analysis, [one])[0][: 8 * 60]
        == _without_sites(analysis, [other])[0][: 8 * 60]
    )


# What ends a fit


def test_dependent_columns() -> None:
    """They are named before anything is divided."""
    frame = _made_up(200, 1).assign(double=lambda rows: 2 * rows["crp"] + rows["years"])
    with pytest.raises(AnalysisError, match="columns crp, years, double are linearly dependent"):
        result_of(analysis_of(("age", "crp", "years", "double")), [frame])


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("linear", {"crp": 1.0}, "column crp has one value over all sites"),
        ("linear", {"y": 1.0}, "the target y has one value over all sites"),
        ("logistic", {"y": 1.0}, "the target y has one level over all sites"),
        ("poisson", {"y": 0.0}, "the target y is 0 in all rows of all sites"),
    ],
)
def test_columns_without_variance(family: str, change: dict[str, float], message: str) -> None:
    """Found in the first step."""
    frame = _made_up(60, 1).assign(**change)
    with pytest.raises(AnalysisError, match=message):
        result_of(analysis_of(("age", "crp"), family=family), split(frame, 2))


def test_what_a_site_counts() -> None:
    """Coefficients, and the words of the longest vector."""
    analysis = analysis_of(FEATURES, robust="HC0", **MADE_UP)
    assert analysis.parameters == 5
    sizes = [analysis.layout(state).size for state in states(analysis, [_made_up(99, 1)])[:-1]]
    assert analysis.total_size == max(sizes)


def test_too_few_rows() -> None:
    """There are more coefficients than rows."""
    with pytest.raises(AnalysisError, match="3 rows without a gap are too few for 3 coefficients"):
        result_of(analysis_of(("years", "crp")), [_made_up(3, 1)])


def test_quasi_separation_ends_with_the_last_step() -> None:
    """A category of which one level has no events."""
    frame = _made_up(300, 2)
    frame.loc[frame["stage"] == "I", "died"] = "no"
    analysis = analysis_of(
        ("age", "stage"), family="logistic", target="died", classes="no, yes", **MADE_UP
    )
    with pytest.raises(AnalysisError, match="stage: I separates the target"):
        result_of(analysis, [frame])


def test_no_step_follows_the_last() -> None:
    """The state of a fit that has ended has no layout."""
    analysis = analysis_of(("crp",))
    found = states(analysis, [_made_up(50, 1)])
    assert analysis.result(found[-2]) is None
    with pytest.raises(MessageError, match="has ended"):
        analysis.layout(found[-1])


# What a site refuses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crp": lambda rows: np.arange(len(rows)) < 4}, "column crp would show few rows"),
        ({"y": lambda rows: np.arange(len(rows)) < 4}, "column y would show few rows"),
        ({"crp": lambda rows: np.where(np.arange(len(rows)) < 1, 1e6, 1.5)}, "column crp would"),
        ({"stage": lambda rows: np.where(np.arange(len(rows)) < 4, "I", "II")}, "column stage"),
        (
            {
                "crp": lambda rows: np.arange(len(rows)) < 40,
                "y": lambda rows: np.arange(len(rows)) > 35,
            },
            "columns crp and y have few rows in common",
        ),
    ],
)
def test_sums_of_few_rows(change: dict[str, Any], message: str) -> None:
    """The column is named, and no level."""
    frame = _made_up(300, 6).dropna().assign(**change)
    numbers = {name: frame[name].astype(float) for name in ("crp", "y")}
    analysis = analysis_of(FEATURES, **MADE_UP)
    with pytest.raises(PolicyRefusal, match=message):
        result_of(analysis, [frame.assign(**numbers)], Limits(50, 10, 15.0))


def _levels_of_few(rows: int) -> pd.DataFrame:
    """A table in which one row is of the third stage, and few of the wards are mixed."""
    rng = np.random.default_rng(4)
    place = np.arange(rows)
    frame = pd.DataFrame({"x": rng.normal(50, 9, rows).round(1), "y": rng.normal(0, 1, rows)})
    frame["stage"] = np.where(place == 7, "III", np.where(place % 2, "I", "II"))
    frame["ward"] = np.where(place < 100, "a", np.where(place < 104, "c", "b"))
    frame["side"] = np.where(place < 103, "left", "right")
    frame["sex"], frame["arm"] = 1.0 + (place < 100), 1.0 + (place < 104)
    frame["income"] = np.where(place == 3, 1e6, np.where(place < 100, 10.0, 9e5) + frame["x"])
    frame["weight"] = np.where(place < 3, 2.0, 1.0)
    return frame


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        pytest.param(
            ("x", "stage"),
            {"columns": {"stage": {"levels": ("I", "II", "III"), "reference": "III"}}},
            "column stage would show few rows",
            id="reference",
        ),
        pytest.param(
            ("ward", "side"),
            {
                "columns": {
                    "ward": {"levels": ("a", "b", "c"), "reference": "b"},
                    "side": {"levels": ("left", "right")},
                }
            },
            "column ward would show few rows",
            id="level",
        ),
        pytest.param(
            ("sex", "arm"), {}, "columns sex and arm have few rows in common", id="1 and 2"
        ),
        pytest.param(("sex", "income"), {}, "income by sex would show few rows", id="dominance"),
        pytest.param(("x",), {"weights": "weight"}, "column weight would show", id="weights"),
        pytest.param(("x",), {"offset": "weight"}, "column weight would show", id="offset"),
        pytest.param(
            ("x",),
            {
                "family": "cox",
                "target": "income,arm",
                "strata": "stage",
                "columns": {"stage": {"levels": ("I", "II", "III")}},
            },
            "column stage would show few rows",
            id="strata",
        ),
    ],
)
def test_levels_of_few_rows(features: Any, options: dict[str, Any], message: str) -> None:
    """
    The level without a coefficient has what the others leave of the whole.

    Two values may be any; and weights, offset and strata show rows as features do.
    """
    frame = _levels_of_few(300)
    frame["arm"] -= float(options.get("family") == "cox")
    analysis = analysis_of(features, **options)
    with pytest.raises(PolicyRefusal, match=message):
        result_of(analysis, [frame], Limits(50, 10, 15.0))


def test_references_with_few_rows_in_common() -> None:
    """The cross-table of two categories has a line for the level without a coefficient, too."""
    rows = 300
    place = np.arange(rows)
    frame = pd.DataFrame({"y": np.random.default_rng(1).normal(0, 1, rows)})
    frame["ward"] = np.array(["a", "b", "c"])[place % 3]
    frame["stage"] = np.array(["I", "II", "III"])[(place // 3) % 3]
    both = (frame["ward"] == "a") & (frame["stage"] == "I")
    frame = frame[~both | (both.cumsum() <= 4)]
    columns = {"ward": {"levels": ("a", "b", "c")}, "stage": {"levels": ("I", "II", "III")}}
    analysis = analysis_of(("ward", "stage"), columns=columns)
    with pytest.raises(PolicyRefusal, match="columns ward and stage have few rows in common"):
        result_of(analysis, [frame], Limits(50, 10))
    assert result_of(analysis, [frame], Limits(50, 4))["rows"] == len(frame)


def test_few_rows_without_a_gap() -> None:
    """Rows with a gap do not count; few of them are not shown."""
    frame = _made_up(100, 6)
    frame.loc[frame.index > 40, "crp"] = np.nan
    with pytest.raises(PolicyRefusal, match="rows without a gap are fewer than its min_rows"):
        result_of(analysis_of(("crp",)), [frame], Limits(50, 10))
    frame = _made_up(100, 6)
    frame.loc[:3, "crp"] = np.nan
    found = result_of(analysis_of(("crp",)), [frame, _made_up(80, 7)], Limits(50, 10))
    assert (found["dropped"], found["withheld"], found["rows"]) == (0, 1, 176)


def test_few_rows_with_another_text() -> None:
    """A question cannot find out whether a rare text is in the table: few of them are refused, more left out."""
    frame = _made_up(300, 6).dropna()
    analysis = analysis_of(("crp", "stage"), **MADE_UP)
    changed = frame.assign(stage=frame["stage"].where(np.arange(len(frame)) >= 4, "IV"))
    with pytest.raises(PolicyRefusal, match="levels of stage do not list"):
        result_of(analysis, [changed], Limits(50, 10))
    more = frame.assign(stage=frame["stage"].where(np.arange(len(frame)) >= 12, "IV"))
    assert result_of(analysis, [more], Limits(50, 10))["dropped"] == 12


def test_the_model_predicts() -> None:
    """Other programs read its coefficients by column and level."""
    frame = _made_up(300, 5).dropna()
    options = {"family": "logistic", "target": "died", "classes": "no, yes"}
    analysis = analysis_of(FEATURES, **options, **MADE_UP)
    found = states(analysis, [frame])
    assert analysis.model(found[-2]) is None
    model = analysis.model(found[-1])
    assert model is not None
    assert (model["schema"], model["link"], model["class"]) == (
        "fl-queue-regression-1",
        "logit",
        "yes",
    )
    eta = np.zeros(len(frame))
    for term in model["terms"]:
        if term["column"] is None:
            x: Any = 1.0
        elif term["level"] is None:
            x = frame[term["column"]]
        else:
            x = frame[term["column"]] == term["level"]
        eta += term["coefficient"] * x
    # With an intercept the means add up to the events.
    assert float(np.sum(1 / (1 + np.exp(-eta)))) == pytest.approx((frame["died"] == "yes").sum())


def test_a_point_that_selects_few_rows() -> None:
    """A made-up state whose weights are those of a single row."""
    frame = _made_up(300, 6)
    analysis = analysis_of(("crp",), family="logistic", target="died", classes="no, yes")
    found = states(analysis, [frame])
    crafted = found[1].copy()
    analysis.floats(crafted, "beta")[:] = [-60.0, 14.5]
    with pytest.raises(PolicyRefusal, match="weight to too few rows"):
        analysis.local(crafted, tables.site_rows(analysis, frame), Limits(50, 10))


def test_numbers_that_cannot_be_summed() -> None:
    """And weights that are none: the column is named."""
    frame = _made_up(60, 1)
    with pytest.raises(DataError, match="column crp: values outside"):
        result_of(analysis_of(("crp",)), [frame.assign(crp=2.0**65)])
    with pytest.raises(DataError, match="column weight: a weight is not above 0"):
        result_of(analysis_of(("crp",), weights="weight"), [frame.assign(weight=0.0)])


@pytest.mark.parametrize("family", ["linear", "logistic", "poisson"])
@pytest.mark.parametrize("lost_at", [2, 3, -1])
def test_a_site_that_is_lost(family: str, lost_at: int) -> None:
    """The fit begins anew where it is, and ends with the estimate of those who are left."""
    frame = _made_up(400, 11)
    target = {"linear": "y", "logistic": "died", "poisson": "visits"}[family]
    classes = "no, yes" if family == "logistic" else ""
    analysis = analysis_of(
        FEATURES, family=family, target=target, classes=classes, robust="HC0", **MADE_UP
    )
    sites = split(frame, 3)
    begun = states(analysis, sites)
    state = begun[lost_at - 1 if lost_at < 0 else lost_at]
    found = analysis.result(states(analysis, sites[:2], begun=state)[-1])
    assert found is not None
    alone = result_of(analysis, sites[:2])
    for ours, wanted in zip(estimates(found), estimates(alone), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-6)
    assert found["lost"] == {
        "sites": 1,
        "rows": result_of(analysis, sites)["rows"] - alone["rows"],
    }
    assert (found["sites"], found["fit"]) == (2, {})
