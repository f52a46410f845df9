"""The analyses that a run can make instead of a training: their names, and the options they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fl_queue.analyses import questions, regression_options
from fl_queue.analyses.base import Analysis
from fl_queue.analyses.boosting import options as tree_options
from fl_queue.analyses.boosting import plan as tree_plan
from fl_queue.analyses.cox import BRESLOW, EFRON, Cox
from fl_queue.analyses.families import FAMILIES
from fl_queue.analyses.regression import Regression
from fl_queue.analyses.statistics import Statistics
from fl_queue.analyses.trees import Trees
from fl_queue.common import data_folder
from fl_queue.common.options import Option, OptionTable
from fl_queue.tables.schema import DELIMITERS


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


#: Options of all of them: the file, and its form.
_TABLE = {
    "file": Option(
        "str",
        "table.csv",
        "file name in each site's data folder: CSV or TSV with a header line, Parquet, Arrow or Feather",
        check=data_folder.problem,
    ),
    "delimiter": Option(
        "str", "", "between cells of a text file; empty: detected", choices=("", *DELIMITERS)
    ),
    "decimal": Option(
        "str", "", "decimal sign of a text file; empty: detected", choices=("", ".", ",")
    ),
}

#: Of each analysis whose steps depend on each other.
FIT = {
    "on_loss": Option(
        "str",
        "restart",
        "once a site of the first step does not answer a later one: restart (go on without it, and begin anew where "
        "that is needed), wait (ask again, up to round.max_abandoned times) or fail",
        choices=("restart", "wait", "fail"),
        newer=True,
    )
}
ANALYSES: dict[str, AnalysisEntry] = {
    "statistics": AnalysisEntry(
        Statistics,
        "rows, missing cells, means, quantiles, counts, tables, correlations and survival curves of the sites' tables",
        {
            **_TABLE,
            "numbers": Option(
                "strs", (), "columns of numbers: rows, missing cells, mean and standard deviation"
            ),
            "dates": Option(
                "strs", (), "those of them that are dates such as 2024-02-29: days since 1970-01-01"
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
            "vocabulary": Option(
                "strs",
                (),
                "categories whose levels are asked for by name: those that have min_cell rows at a site, of all sites together about 256",
                newer=True,
            ),
            "per_site": Option(
                "bool",
                False,
                "whether the numbers of each site alone are asked for, too; a site answers if per_site of its policy is true",
                newer=True,
            ),
            "where": Option(
                "strs",
                (),
                'conditions of the rows that are asked about, such as ["age >= 18", "sex = F"]; a site answers those that filters of its policy lists',
                newer=True,
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
    "regression": AnalysisEntry(
        Regression,
        "linear, logistic, Poisson and Cox regressions of the sites' tables, with standard errors and p-values",
        {
            **_TABLE,
            **FIT,
            "family": Option(
                "str",
                "logistic",
                "of the target: linear (a number), logistic (0 and 1, or task.classes), poisson (a count), cox (a time to an event)",
                choices=(*FAMILIES, Cox.name),
            ),
            "target": Option(
                "str",
                "",
                "column that is explained; of family cox those of time and event, such as months,died",
            ),
            "classes": Option(
                "str",
                "",
                "two texts of a logistic target, comma separated, of which the second counts as 1; empty: it is 0 and 1",
            ),
            "features": Option("str", "", "columns that explain it, comma separated"),
            "columns": Option(
                "table",
                OptionTable(),
                "of a feature, by its name: type (number, integer, boolean, date or category), levels and the reference among them (else the first), date (some of year, month, weekday)",
            ),
            "offset": Option(
                "str", "", "column that is added to the linear predictor; empty: none"
            ),
            "weights": Option("str", "", "column of the rows' weights, above 0; empty: none"),
            "strata": Option(
                "str",
                "",
                "of family cox: categories of task.columns, comma separated; rows are compared with those of the same levels at their site",
            ),
            "ties": Option(
                "str",
                "",
                "of family cox, events at the same time: breslow (also if empty) or efron",
                choices=("", BRESLOW, EFRON),
            ),
            "robust": Option(
                "str",
                "",
                "standard errors that hold without the model's variance: HC0, or HC1 (times n / (n - p)); a further step",
                choices=("", "HC0", "HC1"),
            ),
            "ridge": Option(
                "float",
                0.0,
                "penalty: half of it times the sum of squared coefficients of standardised columns; there are no errors then",
                low=0,
            ),
            "max_steps": Option(
                "int", 25, "most evaluations of the likelihood, each a round", low=2, high=500
            ),
        },
        regression_options.check,
    ),
    "trees": AnalysisEntry(
        Trees,
        "boosted trees of the sites' tables, as XGBoost grows them on all tables together; a site must allow them",
        {**_TABLE, **FIT, **tree_options.OPTIONS},
        tree_plan.check,
    ),
}
