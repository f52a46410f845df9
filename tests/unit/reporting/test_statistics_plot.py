"""A figure of statistics: its parts, and a result with nothing to draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped,unused-ignore]
import pytest
from click.testing import CliRunner

from fl_queue.cli import cli
from fl_queue.errors import ConfigError
from fl_queue.reporting import plotting, statistics_plot

CONFIG = """
[run]
task = "statistics"
[task]
numbers = ["age"]
quantiles = [0.25, 0.5]
levels = { sex = ["F", "M"], stage = ["I", "$2^"] }
groups = ["age by sex"]
tables = ["sex by stage"]
"""


def test_each_part_of_a_result_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantiles, two categories, means and a table; texts are no formulas."""
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "age": rng.integers(20, 90, 200),
            "sex": rng.choice(["F", "M"], 200),
            "stage": rng.choice(["I", "$2^"], 200, p=[0.96, 0.04]),
        }
    )
    frame.to_csv(tmp_path / "table.csv", index=False)
    (tmp_path / "survey.toml").write_text(CONFIG)
    drawn, save = [], plotting.save

    def noted(figure: object, path: Path) -> None:
        drawn.extend(axes.get_title() for axes in figure.axes)  # type: ignore[attr-defined]
        save(figure, path)  # type: ignore[arg-type]

    monkeypatch.setattr(plotting, "save", noted)
    output = tmp_path / "figure.png"
    words = ["statistics", str(tmp_path / "survey.toml"), "--here", "--data", str(tmp_path)]
    done = CliRunner().invoke(
        cli, [*words, "--state-dir", str(tmp_path / "state"), "-o", str(output)]
    )
    assert done.exit_code == 0, done.output
    assert output.read_bytes().startswith(b"\x89PNG")
    assert drawn == [
        "quantiles of age, 200 rows",
        "levels of sex",
        "levels of stage",
        "age by sex",
        "sex by stage",
    ]


def test_a_result_without_parts_has_no_figure(tmp_path: Path) -> None:
    """The message names the option."""
    with pytest.raises(ConfigError, match="none was asked for"):
        statistics_plot.plot(tmp_path / "x.png", {"numbers": {"age": {}}})
    assert not (tmp_path / "x.png").exists()
