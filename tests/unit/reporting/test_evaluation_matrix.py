"""The matrix of models against sites, from reports."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fl_queue.errors import ConfigError
from fl_queue.reporting import evaluation_matrix as matrices


def report(run: str, value: float, hidden: int = 0, **sites: float) -> dict[str, Any]:
    """A report with one figure."""
    return {
        "run": run,
        "metrics": {"auc": {"value": value}, "loss": {"value": 0.5}},
        "per_site": {site: {"auc": {"value": own}} for site, own in sites.items()},
        "hidden_sites": hidden,
    }


REPORTS = {
    "a": report("x-a", 0.9, a=0.99, b=0.6),
    "b": report("x-b", 0.8, 2, a=0.7),
    matrices.MERGED: report("x", 0.95, a=0.96, b=0.94),
}


def test_rows_are_models_and_columns_sites() -> None:
    """A figure that a site does not show is a dash."""
    found = matrices.matrix("x", 3, REPORTS, "")
    assert (found["figure"], found["sites"], found["hidden_sites"]) == ("auc", ["a", "b"], 2)
    console = Console(width=120, record=True, file=io.StringIO())
    for part in matrices.renderables(found):
        console.print(part)
    text = console.export_text()
    rows = [[cell for cell in line.split() if cell != "│"] for line in text.splitlines()]
    assert ["b", "0.7", "-", "0.8"] in rows
    assert "2 of the sites show their figures only together" in text


def test_files_have_all_figures(tmp_path: Path) -> None:
    """CSV has a line for each, with an empty site for all together."""
    found = matrices.matrix("x", 3, REPORTS, "loss")
    for suffix in (".json", ".csv", ".md", ".svg"):
        matrices.write(found, tmp_path / f"m{suffix}")
    assert json.loads((tmp_path / "m.json").read_text()) == found
    rows = list(csv.DictReader(io.StringIO((tmp_path / "m.csv").read_text())))
    assert {"model": "b", "site": "a", "figure": "auc", "value": "0.7"} in rows
    assert {"model": "b", "site": "", "figure": "loss", "value": "0.5"} in rows
    assert (tmp_path / "m.md").read_text().startswith("# x, round 3: loss of each model")
    assert b"<svg" in (tmp_path / "m.svg").read_bytes()


def test_an_unknown_figure_or_suffix_is_refused(tmp_path: Path) -> None:
    """With those that there are."""
    with pytest.raises(ConfigError, match="'f1' is none of auc, loss"):
        matrices.matrix("x", 3, REPORTS, "f1")
    with pytest.raises(ConfigError, match=r"one of \.json, \.csv, \.md"):
        matrices.check_suffix(tmp_path / "m.html")
