"""Statistics as tables of text, and as files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped,unused-ignore]
import pytest
from click.testing import CliRunner

from fl_queue.cli import cli
from fl_queue.reporting import analysis_result, statistics_table

CONFIG = """
[run]
task = "statistics"
[task]
numbers = ["age", "crp"]
quantiles = [0.5]
levels = { sex = ["F", "M"], "a|b" = ["<i>", "no"] }
groups = ["age by sex"]
tables = ["sex by a|b"]
correlation = ["age", "crp"]
"""


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """A table of 200 rows with gaps."""
    rng = np.random.default_rng(3)
    made = pd.DataFrame(
        {
            "age": rng.integers(20, 90, 200),
            "crp": rng.normal(5, 2, 200).round(2),
            "sex": rng.choice(["F", "M"], 200),
            "a|b": rng.choice(["<i>", "no"], 200, p=[0.97, 0.03]),
        }
    )
    made.loc[:19, "crp"] = np.nan
    return made


def _written(folder: Path, frame: pd.DataFrame, suffix: str) -> str:
    frame.to_csv(folder / "table.csv", index=False)
    (folder / "survey.toml").write_text(CONFIG)
    output = folder / f"result{suffix}"
    words = ["statistics", str(folder / "survey.toml"), "--here", "--data", str(folder)]
    done = CliRunner().invoke(
        cli, [*words, "--state-dir", str(folder / "state"), "-o", str(output)]
    )
    assert done.exit_code == 0, done.output
    return output.read_text()


def test_csv_has_each_number_with_all_digits(tmp_path: Path, frame: pd.DataFrame) -> None:
    """Equal to those of the JSON, and to pandas'."""
    rows = list(csv.DictReader(io.StringIO(_written(tmp_path, frame, ".csv"))))
    found: dict[tuple[str, ...], str] = {
        (row["question"], row["row"], row["column"], row["number"]): row["value"] for row in rows
    }
    assert len(found) == len(rows)
    whole: dict[str, Any] = json.loads(_written(tmp_path, frame, ".json"))
    assert found["", "", "", "rows"] == "200"
    assert float(found["numbers", "crp", "", "sd"]) == whole["numbers"]["crp"]["sd"]
    assert float(found["numbers", "crp", "", "mean"]) == pytest.approx(
        frame["crp"].mean(), rel=1e-12
    )
    assert found["numbers", "crp", "", "missing"] == "20"
    low, high = (
        float(found["numbers", "age", "", f"quantile 0.5 {end}"]) for end in ("low", "high")
    )
    assert low <= frame["age"].median() <= high
    assert int(found["sex", "F", "", "rows"]) == (frame["sex"] == "F").sum()
    matrix = whole["correlation"]["correlation"]
    assert float(found["correlation", "age", "crp", "correlation"]) == matrix[0][1]


def test_markdown_and_html_keep_texts_apart(tmp_path: Path, frame: pd.DataFrame) -> None:
    """A column or level may hold what separates cells, or looks like HTML."""
    markdown = _written(tmp_path, frame, ".md")
    assert "table.csv: 200 rows at 1 site" in markdown
    assert "| sex by a\\|b | <i> |" in markdown
    for block in markdown.split("\n\n"):
        lines = [line.replace("\\|", "") for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1
    html = _written(tmp_path, frame, ".html")
    assert "<th>&lt;i&gt;</th>" in html
    assert "<i>" not in html
    assert html.count("<table>") == html.count("</table>") == 6


def test_survival_and_named_levels_are_among_the_tables() -> None:
    """A line for each time and group, and for each name."""
    group = {"level": "all", "rows": 20, "withheld": 0, "at_risk": [20, 15], "survival": [0.9, 0.5]}
    curve = {"times": [10.0, 20.0], "groups": [{**group, "low": [0.8, 0.3], "high": [1.0, 0.7]}]}
    found = {
        "task": "statistics", "file": "t.csv", "sites": 1, "rows": 20, "numbers": {}, "levels": {},
        "vocabulary": {"drug": ["x", "y"], "note": None}, "groups": {}, "tables": {}, "correlation": None, "survival": {"week": {**curve, "log_rank": None}},
    }  # fmt: skip
    assert "| all | 20 | 15 | 0.5 | 0.3 | 0.7 |" in analysis_result.file_text(found, ".md")
    assert "levels of drug: x, y" in analysis_result.file_text(found, ".md")
    assert "levels of note: too many to be found" in analysis_result.file_text(found, ".html")
    assert "levels of drug,y,,is named,1" in analysis_result.file_text(found, ".csv")
    assert "survival week,all,20,survival,0.5" in analysis_result.file_text(found, ".csv")
    assert statistics_table.file_text(found, ".xlsx") is None


def test_conditions_stand_beside_the_file(tmp_path: Path, frame: pd.DataFrame) -> None:
    """In each form; the counts are those of pandas."""
    asked = CONFIG.replace("quantiles = [0.5]", 'where = ["age>=40.0", "sex = F"]')
    (tmp_path / "site.toml").write_text('filters = ["age >= 40", "sex"]\nmin_rows = 20\n')
    frame.to_csv(tmp_path / "table.csv", index=False)
    (tmp_path / "survey.toml").write_text(asked)
    words = ["statistics", str(tmp_path / "survey.toml"), "--here", "--data", str(tmp_path)]
    words += ["--policy", str(tmp_path / "site.toml"), "--state-dir", str(tmp_path / "state")]
    rows = int(((frame["age"] >= 40) & (frame["sex"] == "F")).sum())
    line = f"table.csv where age >= 40 and sex = F: {rows} rows at 1 site"
    shown = CliRunner().invoke(cli, words)
    assert shown.exit_code == 0, shown.output
    assert line in shown.output
    found = json.loads(CliRunner().invoke(cli, [*words, "--json"]).output)
    assert found["where"] == ["age >= 40", "sex = F"]
    assert line in analysis_result.file_text(found, ".md")
    refused = CliRunner().invoke(cli, [*words[:5], "--state-dir", str(tmp_path / "state")])
    assert "a condition on age is not in its list (filters)" in str(refused.exception)
