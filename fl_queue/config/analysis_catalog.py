"""The analyses that a run can make instead of a training: their names, and the options they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fl_queue.analyses import questions
from fl_queue.analyses.base import Analysis
from fl_queue.analyses.statistics import Statistics
from fl_queue.common import data_folder
from fl_queue.common.options import Option, OptionTable


@dataclass(frozen=True)
class AnalysisEntry:
    """
    An analysis.

    Args:
        kind: Its class.
        doc: One line for users.
        options: What ``[task]`` may hold.
        check: Raises ConfigError for options that contradict each other.
    """

    kind: type[Analysis]
    doc: str
    options: dict[str, Option]
    check: Callable[[Mapping[str, Any]], None]


ANALYSES: dict[str, AnalysisEntry] = {
    "statistics": AnalysisEntry(
        Statistics,
        "rows, missing cells, means, quantiles, counts, tables, correlations and survival curves of the sites' tables",
        {
            "file": Option(
                "str",
                "table.csv",
                "file name in each site's data folder: a CSV file with a header line",
                check=data_folder.problem,
            ),
            "numbers": Option(
                "strs", (), "columns of numbers: rows, missing cells, mean and standard deviation"
            ),
            "quantiles": Option(
                "floats",
                (),
                "quantiles of each of them, such as [0.25, 0.5, 0.75]; they need a second step",
                check=questions.quantiles_problem,
            ),
            "levels": Option(
                "table",
                OptionTable(),
                'categories, and the levels that are counted, such as { sex = ["F", "M"] }; any other text counts as other',
            ),
            "groups": Option(
                "strs", (), 'means by level, such as ["age by sex"]: of task.numbers by task.levels'
            ),
            "tables": Option(
                "strs", (), 'tables of two categories, such as ["sex by stage"]: of task.levels'
            ),
            "correlation": Option(
                "strs",
                (),
                "columns of numbers whose correlations are computed, over rows without a gap",
            ),
            "survival": Option(
                "strs",
                (),
                'survival curves, such as ["months died", "months died by sex"]: columns of times and of events (1 and 0), and a category of task.levels',
                newer=True,
            ),
            "time_grid": Option(
                "floats",
                (),
                "times at which the curves are known, such as [0, 30, 60, 90]; events are counted in the intervals between them",
                low=0,
                newer=True,
            ),
            "time_width": Option(
                "float",
                0.0,
                "width of the intervals, where task.time_grid is the first and the last time; 0: task.time_grid has all times",
                low=0,
                newer=True,
            ),
        },
        questions.check,
    ),
}
