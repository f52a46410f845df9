"""Proportional hazards from tables to their results, without Redis: beside statsmodels and lifelines."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines import CoxPHFitter
from lifelines.datasets import load_rossi

from fl_queue.analyses import cox, elementary
from fl_queue.analyses.base import Limits
from fl_queue.analyses.families import SiteDesign
from fl_queue.analyses.regression import Regression
from fl_queue.errors import AnalysisError, DataError, PolicyRefusal
from tests.support.regression_tables import (
    analysis_of,
    estimates,
    result_of,
    site_rows,
    split,
    states,
)

ROSSI = ("fin", "age", "race", "wexp", "mar", "paro", "prio")


def analysis(features: tuple[str, ...] = ROSSI, **options: Any) -> Regression:
    """A Cox regression of the Rossi data."""
    return analysis_of(features, **{"family": "cox", "target": "week, arrest", **options})


def thirds() -> list[pd.DataFrame]:
    """The Rossi data at three sites."""
    rossi = load_rossi()
    return [rossi[rossi.index % 3 == site] for site in range(3)]


def made_up(rows: int, seed: int) -> pd.DataFrame:
    """Times without ties and with them, a stratum, and gaps."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "age": rng.normal(60, 9, rows).round(1),
            "crp": rng.gamma(2, 5, rows).round(2),
            "stage": rng.choice(["I", "II", "III"], rows),
            "sex": rng.choice(["F", "M"], rows),
        }
    )
    hazard = np.exp(0.03 * (frame["age"] - 60) - 0.04 * frame["crp"] + (frame["sex"] == "F"))
    frame["week"] = np.minimum(np.ceil(rng.exponential(40 / hazard)), 50.0)
    frame["arrest"] = ((frame["week"] < 50) & (rng.random(rows) < 0.8)).astype(float)
    frame.loc[rng.random(rows) < 0.1, "crp"] = np.nan
    return frame


STAGED: dict[str, Any] = {
    "strata": "sex",
    "columns": {"stage": {"levels": ("I", "II", "III")}, "sex": {"levels": ("F", "M")}},
}


def test_rossi_equals_the_golden() -> None:
    """Three sites are three strata; six rounds."""
    found = result_of(analysis(), thirds())
    beta, errors = estimates(found)
    assert beta == pytest.approx(
        [
            *(-0.3692501787, -0.05747550919, 0.3000300995, -0.1449413423),
            *(-0.436041218, -0.07984255327, 0.08996658132),
        ],
        rel=1e-9,
    )
    assert errors == pytest.approx(
        [
            *(0.1914747575, 0.02200350072, 0.3089151444, 0.2129805692),
            *(0.3821147918, 0.1962313295, 0.02865084511),
        ],
        rel=1e-8,
    )
    assert found["fit"]["log_likelihood"] == pytest.approx(-534.2691272027, rel=1e-12)
    assert (found["steps"], found["events"], found["rows"]) == (6, 114, 432)
    assert found["coefficients"][0]["hazard_ratio"] == pytest.approx(np.exp(beta[0]), rel=1e-15)
    efron = result_of(analysis(ties="efron"), thirds())
    assert efron["fit"]["log_likelihood"] == pytest.approx(-534.0373439431, rel=1e-12)
    assert efron["coefficients"][6]["coefficient"] == pytest.approx(0.090100851, rel=1e-8)
    one = result_of(analysis(), [load_rossi()])
    assert one["fit"]["log_likelihood"] == pytest.approx(-659.1206056773, rel=1e-12)
    assert one["coefficients"][0]["coefficient"] == pytest.approx(-0.3790218878, rel=1e-9)


@pytest.mark.parametrize("ties", ["breslow", "efron"])
def test_equal_to_other_programs_with_strata_categories_and_gaps(ties: str) -> None:
    """On the pooled table, with a stratum for each site and sex."""
    sites = [made_up(rows, seed) for seed, rows in enumerate((180, 90, 260))]
    features = ("age", "crp", "stage")
    found = result_of(analysis(features, ties=ties, **STAGED), sites)
    beta, errors = estimates(found)
    pooled = pd.concat([frame.assign(site=site) for site, frame in enumerate(sites)]).dropna()
    pooled["II"], pooled["III"] = (
        (pooled["stage"] == level).astype(float) for level in ("II", "III")
    )
    names = ["age", "crp", "II", "III"]
    pooled["strata"] = 2 * pooled["site"] + (pooled["sex"] == "M")
    if ties == "breslow":
        columns = (pooled["week"], pooled[names])
        fitted = sm.PHReg(
            *columns, status=pooled["arrest"], strata=pooled["strata"], ties=ties
        ).fit(disp=0, tol=1e-14)
        wanted, likelihood = (fitted.params, fitted.bse), fitted.llf
    else:
        model = CoxPHFitter()
        columns = pooled[[*names, "week", "arrest", "strata"]]
        model.fit(columns, "week", "arrest", strata=["strata"], fit_options={"precision": 1e-12})
        wanted = (model.params_[names], model.standard_errors_[names])
        likelihood = model.log_likelihood_
    np.testing.assert_allclose(beta, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(errors, wanted[1], rtol=1e-6)
    assert found["fit"]["log_likelihood"] == pytest.approx(likelihood, rel=1e-10)
    assert found["rows"] == len(pooled)
    assert found["dropped"] == sum(map(len, sites)) - len(pooled)


ROW = st.tuples(
    st.sampled_from([1.0, 1.0, 2.0, 5.0]),
    st.sampled_from([0.0, 1.0]),
    st.one_of(st.sampled_from([-1.5, 0.0, 2.0]), st.floats(-2, 2)),
    st.sampled_from([-1.0, 0.3, 1.0]),
    st.sampled_from([0, 1]),
)


def _design(rows: list[Any]) -> cox.RiskSets:
    times, events, x, y, strata = (np.array(column) for column in zip(*rows, strict=True))
    none, ones = np.zeros(len(rows)), np.ones(len(rows))
    return cox.risk_sets(SiteDesign(np.stack([x, y], axis=1), events, none, ones), times, strata)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=30), st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_bit(rows: list[Any], is_efron: bool, random: Random) -> None:
    """And numpy has the bits of numba; both are the sums by the definition."""
    first, other = (_design(each) for each in (rows, random.sample(rows, len(rows))))
    found = []
    for design in (first, other):
        hazard = elementary.exp(design.columns @ np.array([0.5, -1.25]))
        found.append(cox.event_parts(design, hazard, is_efron, 40))
    for one, two in zip(*found, strict=True):
        assert one.tobytes() == two.tobytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cox, "_loops", lambda: None)
        plain = cox.event_parts(other, hazard, is_efron, 40)
    for one, two in zip(plain, found[1], strict=True):
        assert one.tobytes() == two.tobytes()
    score, information = _by_definition(rows, is_efron)
    np.testing.assert_allclose(found[0].score * 2.0**-40, score, rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        found[0].information * 2.0**-40, np.tril(information), rtol=0, atol=1e-9
    )


def _by_definition(rows: list[Any], is_efron: bool) -> tuple[np.ndarray, np.ndarray]:
    """Score and information with risk sets found anew for each time."""
    score, information = np.zeros(2), np.zeros((2, 2))
    for stratum in (0, 1):
        own = [(time, event, np.array([x, y])) for time, event, x, y, s in rows if s == stratum]
        for time in sorted({time for time, event, _ in own if event}):
            risk = [(np.exp(z @ [0.5, -1.25]), z) for later, _, z in own if later >= time]
            tied = [(np.exp(z @ [0.5, -1.25]), z) for same, e, z in own if same == time and e]
            for place, (_, z) in enumerate(tied):
                share = place / len(tied) if is_efron else 0.0
                parts = [(w, z) for w, z in risk] + [(-share * w, z) for w, z in tied]
                total = sum(w for w, _ in parts)
                mean = sum(w * z for w, z in parts) / total
                score += z - mean
                information += sum(w * np.outer(z, z) for w, z in parts) / total
                information -= np.outer(mean, mean)
    return score, information


def test_the_bits_do_not_depend_on_the_order_in_the_files() -> None:
    """All states of a fit, with rows of each site turned around."""
    fit = analysis()
    turned = [frame.iloc[::-1] for frame in thirds()]
    for one, two in zip(states(fit, thirds()), states(fit, turned[::-1]), strict=True):
        assert np.array_equal(one, two)


def test_more_times_than_fit_into_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks change no bit."""
    found = [states(analysis(), thirds())[-1]]
    monkeypatch.setattr(cox, "_BLOCK", 5)
    found.append(states(analysis(), thirds())[-1])
    assert np.array_equal(*found)


def test_a_site_without_events_and_one_without_rows_in_a_stratum() -> None:
    """They add nothing, and break nothing."""
    frame = made_up(200, 3)
    quiet = made_up(80, 4).assign(arrest=0.0, sex="F")
    options = {"strata": "sex", "columns": {"sex": {"levels": ("F", "M", "X")}}}
    fit = analysis(("age", "crp"), **options)
    alone, both = (estimates(result_of(fit, sites)) for sites in ([frame], [frame, quiet]))
    # The columns' scale is that of all rows.
    np.testing.assert_allclose(alone[0], both[0], rtol=1e-9)


def test_hazards_beyond_all_bounds_end_or_shorten_a_step() -> None:
    """A column by which those with events go first separates the target."""
    frame = made_up(120, 5).dropna()
    frame["first"] = -frame["week"]
    frame["arrest"] = 1.0
    with pytest.raises(AnalysisError, match="first separates the target"):
        result_of(analysis(("first", "age")), [frame])


def test_no_event() -> None:
    """Ends the run with the sentence."""
    frame = made_up(120, 5).assign(arrest=0.0)
    with pytest.raises(AnalysisError, match="arrest is 0 in all rows of all sites"):
        result_of(analysis(("age",)), [frame])


def test_its_model_has_no_intercept() -> None:
    """The hazard is relative, by strata; the terms are those of the features."""
    fit = analysis(("age", "stage"), **STAGED)
    model = fit.model(states(fit, [made_up(200, 8)])[-1])
    assert model is not None
    assert (model["link"], model["time"], model["strata"]) == ("log", "week", ["sex"])
    assert [(one["column"], one["level"]) for one in model["terms"]] == [
        ("age", None),
        ("stage", "II"),
        ("stage", "III"),
    ]


# A site


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("week", -1.0, "column week: times are 0 or more"),
        ("arrest", 0.5, "column arrest: an event"),
    ],
)
def test_numbers_that_are_no_times_or_events(column: str, value: float, reason: str) -> None:
    """The column is named, and no row."""
    frame = made_up(120, 6)
    frame.loc[3, column] = value
    with pytest.raises(DataError, match=reason):
        result_of(analysis(("age",)), [frame])


def test_few_events_are_refused() -> None:
    """As is every column of two values of which one has few rows."""
    frame = made_up(120, 7).assign(arrest=0.0)
    frame.loc[:3, "arrest"] = 1.0
    with pytest.raises(PolicyRefusal, match="column arrest would show few rows"):
        result_of(analysis(("age",)), [frame], Limits(50, 10))


def test_a_made_up_state_that_selects_one_row_is_refused() -> None:
    """Its hazard is all of the sums."""
    fit, sites = analysis(), thirds()
    state = states(fit, sites)[1].copy()
    fit.floats(state, "beta")[:] = [0, 25.0, 0, 0, 0, 0, 0]
    with pytest.raises(PolicyRefusal, match="gives weight to too few rows"):
        fit.local(state, site_rows(fit, sites[0]), Limits(50, 10))


def test_the_split_of_other_families_is_not_promised_here() -> None:
    """Sites are strata: rows at another site are compared with others."""
    fit = analysis()
    likelihoods = [
        result_of(fit, sites)["fit"]["log_likelihood"]
        for sites in (thirds(), split(load_rossi(), 2))
    ]
    assert abs(likelihoods[0] - likelihoods[1]) > 1.0
