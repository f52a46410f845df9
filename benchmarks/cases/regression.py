"""
A logistic regression beside statsmodels' on the pooled table: ``python -m benchmarks.cases.regression [--quick]``.

Four sites with a quarter of the rows each, two at a time, without Redis: their sums, and Newton's steps. The kernel is
what adds up the information, in nanoseconds a row and word, on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import statsmodels.api as sm  # type: ignore[import-untyped,unused-ignore]

from benchmarks.harness.table import markdown
from fl_queue.analyses import grid
from fl_queue.analyses.base import Limits, SiteRows
from fl_queue.analyses.regression import Regression
from fl_queue.config.run_config import RunConfig
from fl_queue.protocol.arrays import Float64s, Int64s

SITES = 4
CORES = 2
COLUMNS = 30


def analysis_of(columns: int) -> Regression:
    """A logistic regression on columns ``x0`` and so on."""
    names = ",".join(f"x{place}" for place in range(columns))
    task = {"family": "logistic", "target": "y", "features": names}
    found = RunConfig.from_dict({"run": {"task": "regression"}, "task": task}).analysis
    assert isinstance(found, Regression)
    return found


def fit(analysis: Regression, columns: Float64s, target: Float64s) -> tuple[Float64s, int]:
    """Coefficients, and how many steps it took. Args: ``columns``: (rows, p) of all sites together."""
    parts = np.array_split(np.arange(len(target)), SITES)
    tables = [
        SiteRows(
            len(rows),
            {
                **{f"x{place}": columns[rows, place] for place in range(columns.shape[1])},
                "y": target[rows],
            },
            {},
        )
        for rows in parts
    ]
    state = analysis.initial()
    with ThreadPoolExecutor(CORES) as pool:
        while not analysis.is_done(state):
            total = np.zeros(analysis.layout(state).size, np.int64)

            def words(table: SiteRows, state: Int64s = state) -> Int64s:
                return analysis.local(state, table, Limits())

            for found in pool.map(words, tables):
                total = total + found
            state = analysis.advance(state, total)
    result = analysis.result(state)
    assert result is not None
    return np.array([one["coefficient"] for one in result["coefficients"]]), result["steps"]


def kernel(rows: int) -> float:
    """Nanoseconds a row and word of the information; the best of five."""
    rng = np.random.default_rng(1)
    columns, weight = rng.normal(size=(rows, COLUMNS + 1)), rng.random(rows) / 4
    words = (COLUMNS + 1) * (COLUMNS + 2) // 2
    grid.products(columns[:10], weight[:10], 30)
    return min(_seconds(lambda: grid.products(columns, weight, 30)) for _ in range(5)) / (
        rows * words * 1e-9
    )


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    rows = 100_000 if parser.parse_args().quick else 1_000_000
    rng = np.random.default_rng(2)
    columns = rng.normal(size=(rows, COLUMNS))
    eta = columns[:, 0] - 0.5 * columns[:, 1] - 1
    target = (rng.random(rows) < 1 / (1 + np.exp(-eta))).astype(np.float64)
    pooled, analysis = sm.add_constant(columns), analysis_of(COLUMNS)
    models: dict[str, Callable[[], object]] = {
        "statsmodels GLM": lambda: sm.GLM(target, pooled, family=sm.families.Binomial()).fit(),
        "statsmodels Logit": lambda: sm.Logit(target, pooled).fit(disp=0),
    }
    found, steps = fit(analysis, columns, target)
    ours = _seconds(lambda: fit(analysis, columns, target))
    table = [("ours", f"{ours:.2f}", "1.00")]
    for name, model in models.items():
        taken = _seconds(model)
        table.append((name, f"{taken:.2f}", f"{taken / ours:.2f}"))
    print(f"{rows:,} rows, {COLUMNS} columns, {SITES} sites, {CORES} cores, {steps} rounds\n")
    print(markdown(("", "s", "of ours"), table))
    exact = sm.Logit(target, pooled).fit(disp=0, tol=1e-12).params
    print(f"\nlargest relative difference of coefficients: {np.max(np.abs(found / exact - 1)):.1e}")
    print(f"kernel: {kernel(rows // 4):.2f} ns a row and word")


if __name__ == "__main__":
    main()
