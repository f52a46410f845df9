"""The result of a regression as it is shown, and as files."""

from __future__ import annotations

import csv
import io
import sys
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from lifelines.datasets import load_rossi
from rich.console import Console

from fl_queue.common.extras import how_to_install
from fl_queue.reporting import p_values, regression_table
from tests.support import regression_tables as tables
from tests.support.regression_tables import BREAST_CANCER, analysis_of, result_of, split


def _logistic(**options: Any) -> dict[str, Any]:
    analysis = analysis_of(BREAST_CANCER, family="logistic", target="malignant", **options)
    found = result_of(analysis, split(tables.breast_cancer(), 3))
    return regression_table.completed({"file": "cohort.csv", **found})


def _shown(found: dict[str, Any]) -> str:
    console = Console(width=200, file=io.StringIO())
    for part in regression_table.renderables(found):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_logistic_regression() -> None:
    """The numbers that statisticians expect, and what was fitted."""
    shown = _shown(_logistic())
    assert "cohort.csv: 569 rows at 3 sites, 212 events" in shown
    assert "logistic regression of malignant: 8 steps" in shown
    line = next(line for line in shown.splitlines() if "mean radius" in line)
    for cell in ("1.30065", "0.163635", "7.949", "<0.0001", "0.979935", "1.62137"):
        assert cell in line
    assert "log-likelihood -80.032   null -375.72   pseudo R2 0.78699   AIC 172.064" in shown


def test_p_values_and_intervals_are_those_of_statsmodels() -> None:
    """Normal for a logistic target, Student's t for a linear one."""
    frame = tables.breast_cancer()
    model = sm.Logit(frame["malignant"], sm.add_constant(frame[list(BREAST_CANCER)])).fit(disp=0)
    found = _logistic()["coefficients"]
    np.testing.assert_allclose([one["p"] for one in found], model.pvalues, rtol=1e-6)
    np.testing.assert_allclose(
        [(one["low"], one["high"]) for one in found], model.conf_int(), rtol=1e-6
    )
    logistic = analysis_of(BREAST_CANCER, family="logistic", target="malignant")
    wide = regression_table.completed(result_of(logistic, [frame]), 0.99)
    np.testing.assert_allclose(
        [(one["low"], one["high"]) for one in wide["coefficients"]], model.conf_int(0.01), rtol=1e-6
    )
    assert "[0.005" in _shown({"file": "cohort.csv", **wide})
    linear = analysis_of(BREAST_CANCER[1:], target="mean radius")
    done = regression_table.completed(result_of(linear, [frame]))
    ols = sm.OLS(frame["mean radius"], sm.add_constant(frame[list(BREAST_CANCER[1:])])).fit()
    found = done["coefficients"]
    np.testing.assert_allclose([one["p"] for one in found], ols.pvalues, rtol=1e-6)
    np.testing.assert_allclose(
        [(one["low"], one["high"]) for one in found], ols.conf_int(), rtol=1e-6
    )
    assert " t " in _shown(done)


def test_without_errors_and_with_gaps() -> None:
    """A ridge has no errors; rows that were left out are named."""
    frame = tables.breast_cancer().astype(float)
    frame.loc[:20, "mean radius"] = np.nan
    analysis = analysis_of(BREAST_CANCER, family="logistic", target="malignant", ridge=1.0)
    shown = _shown(regression_table.completed(result_of(analysis, [frame])))
    assert "ridge 1, so without errors" in shown
    assert "21 rows with a gap, or with another text than the levels, are left out" in shown
    assert "log-likelihood" not in shown


def test_files() -> None:
    """CSV has all digits, Markdown and HTML what is shown."""
    found = _logistic(robust="HC0")
    rows = list(csv.DictReader(io.StringIO(regression_table.file_text(found, ".csv") or "")))
    assert [row["name"] for row in rows] == ["const", *BREAST_CANCER]
    assert float(rows[1]["coefficient"]) == found["coefficients"][1]["coefficient"]
    markdown = regression_table.file_text(found, ".md") or ""
    assert "| mean radius | 1.30065 | 0.152551 | 8.526 | <0.0001 |" in markdown
    page = regression_table.file_text(found, ".html") or ""
    assert "<td>mean radius</td><td>1.30065</td>" in page
    assert "robust errors (HC0)" in page
    assert regression_table.file_text(found, ".xlsx") is None


def test_names_are_escaped() -> None:
    """Columns and levels are texts of a config."""
    found = _logistic()
    found["coefficients"][1]["name"] = "a|b <script>"
    assert "a\\|b" in (regression_table.file_text(found, ".md") or "")
    assert "<script>" not in (regression_table.file_text(found, ".html") or "")


def test_categories_and_what_was_lost() -> None:
    """A joint test of a category, and sites that did not stay."""
    frame = tables.diabetes()
    frame["sex"] = frame["sex"].map({1: "f", 2: "m"})
    analysis = analysis_of(("bmi", "sex"), columns={"sex": {"levels": ("f", "m")}})
    found = regression_table.completed(result_of(analysis, [frame]))
    found["lost"] = {"sites": 1, "rows": 70}
    found["withheld"] = 2
    shown = _shown(found)
    assert "sex: chi-square" in shown
    assert "with 1 degrees of freedom, p " in shown
    assert "lost on the way: 1 sites, 70 rows" in shown
    assert "2 sites withhold how few theirs are" in shown


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are coefficients and errors all the same, and what to install."""
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    assert p_values.two_sided(2.0, 5) is None
    assert p_values.quantile(0.975, 0) == pytest.approx(1.959963984540054)
    assert p_values.quantile(0.975, 5) is None
    assert f"p-values need scipy; {how_to_install('tables')}" in _shown(_logistic())


def test_hazard_ratios() -> None:
    """With their own bounds in place of the coefficients', which files have, too; one that is no number is a gap."""
    frame = load_rossi().assign(tiny=lambda rows: rows["prio"] * 1e-6)
    options = {"family": "cox", "target": "week, arrest", "ties": "efron"}
    fit = analysis_of(("fin", "tiny"), **options)
    found = regression_table.completed(result_of(fit, [frame]))
    shown = _shown(found)
    assert "cox regression of week, arrest: 6 steps" in shown
    assert "ties by Efron, strata: site" in shown
    fin, tiny = csv.DictReader(io.StringIO(regression_table.file_text(found, ".csv") or ""))
    for end in ("low", "high"):
        ratio = float(fin[f"hazard_{end}"])
        assert ratio == pytest.approx(np.exp(float(fin[end])))
        assert f"{ratio:#.6g}" in shown
    assert (tiny["hazard_ratio"], tiny["hazard_high"]) == ("", "")
    assert float(tiny["coefficient"]) > 1e4
