"""Survival curves of a result: as tables, with p-values, and as a plot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from lifelines import KaplanMeierFitter
from lifelines.datasets import load_rossi

from fl_queue.cli import cli
from fl_queue.reporting import p_values, survival_tables

CONFIG = """
[run]
task = "statistics"

[task]
file = "rossi.csv"
survival = ["week arrest", "week arrest by fin"]
levels = { fin = ["0", "1"] }
time_grid = [0, 52]
time_width = 1
"""


@pytest.fixture
def site(tmp_path: Path) -> list[str]:
    """A site with a table of 432 rows that shows all numbers: the words of a command."""
    load_rossi().to_csv(tmp_path / "rossi.csv", index=False)
    (tmp_path / "survey.toml").write_text(CONFIG)
    (tmp_path / "site.toml").write_text("min_cell = 1")
    return [
        "statistics", str(tmp_path / "survey.toml"), "--here", "--data", str(tmp_path),
        "--policy", str(tmp_path / "site.toml"),
    ]  # fmt: skip


def test_curves_and_the_test_of_a_site(site: list[str], tmp_path: Path) -> None:
    """As text, as JSON, and as a picture."""
    shown = CliRunner().invoke(cli, site, env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "52   │ 322     │ 0.7361 [0.6919, 0.7751]" in shown.output
    assert "log-rank chi-square 3.83757, degrees of freedom 1, p 0.0501" in shown.output
    output = tmp_path / "curves.png"
    found = json.loads(CliRunner().invoke(cli, [*site, "--json", "-o", str(output)]).output)
    test = found["survival"]["week arrest by fin"]["log_rank"]
    assert test["p"] == pytest.approx(0.050116, abs=5e-7)
    assert output.read_bytes().startswith(b"\x89PNG")


def test_intervals_of_another_level_are_those_of_lifelines(site: list[str]) -> None:
    """And so is the median's; 95 % is the default, to the last bit."""
    whole = json.loads(CliRunner().invoke(cli, [*site, "--json"]).output)["survival"]
    assert (
        json.loads(CliRunner().invoke(cli, [*site, "--json", "--level", "0.95"]).output)["survival"]
        == whole
    )
    shown = CliRunner().invoke(cli, [*site, "--level", "0.9"], env={"COLUMNS": "200"})
    assert "90 %" in shown.output
    found = json.loads(CliRunner().invoke(cli, [*site, "--json", "--level", "0.9"]).output)
    curve = found["survival"]["week arrest"]
    assert curve["level"] == 0.9
    rossi = load_rossi()
    fitted = KaplanMeierFitter(alpha=0.1).fit(rossi["week"], rossi["arrest"])
    interval = fitted.confidence_interval_.reindex(curve["times"], method="ffill")
    [group] = curve["groups"]
    np.testing.assert_allclose(group["low"], interval.iloc[:, 0], atol=1e-12)
    np.testing.assert_allclose(group["high"], interval.iloc[:, 1], atol=1e-12)
    assert group["survival"] == whole["week arrest"]["groups"][0]["survival"]


def test_a_result_without_curves_stays_as_it_is() -> None:
    """No p-value is added."""
    assert survival_tables.completed({"numbers": {}}) == {"numbers": {}}


@pytest.mark.parametrize(
    ("p", "shown"), [(None, "-"), (0.00005, "<0.0001"), (0.0501, "0.0501"), (1.0, "1.0000")]
)
def test_p_values_as_text(p: float | None, shown: str) -> None:
    """No small one is 0."""
    assert p_values.text(p) == shown


def test_p_values_of_chi_square() -> None:
    """The 95 % points of the tables."""
    assert p_values.chi_square(3.841458820694124, 1) == pytest.approx(0.05, rel=1e-9)
    assert p_values.chi_square(5.991464547107979, 2) == pytest.approx(0.05, rel=1e-9)
