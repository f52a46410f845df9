"""Trees of published tables: literal digests, and what xgboost reads and predicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fl_queue.analyses.boosting import gradients
from fl_queue.analyses.boosting.grid import Grid
from fl_queue.analyses.boosting.rules import Rules
from fl_queue.analyses.boosting.tree_json import Model
from fl_queue.protocol.arrays import Float64s
from tests.support import tree_runs

Table = tuple[Float64s, Float64s]


def _breast_cancer() -> Table:
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    return found.data, 1.0 - found.target


def _diabetes() -> Table:
    from sklearn.datasets import load_diabetes

    found = load_diabetes(scaled=False)
    return found.data, found.target


def _randhie() -> Table:
    from statsmodels.datasets import randhie

    found = randhie.load_pandas().data
    names = ["lncoins", "idp", "lpi", "fmde", "physlm", "disea", "hlthg", "hlthf", "hlthp"]
    return found[names].to_numpy(float), found["mdvis"].to_numpy(float)


def _adult() -> Table:
    import pandas as pd

    # It pins packages that others of the tests do not allow, so it is not among them.
    xai = pytest.importorskip("xai")
    file = Path(xai.__file__).parent / "data" / "census.csv"
    found = pd.read_csv(file, index_col=0, skipinitialspace=True)
    numbers = ["age", "education-num", "capital-gain", "capital-loss", "hours-per-week"]
    texts = [
        "workclass",
        "education",
        "marital-status",
        "occupation",
        "relationship",
        "ethnicity",
        "gender",
    ]
    columns = [found[name].to_numpy(float) for name in numbers]
    for name in texts:
        cells = found[name].where(found[name] != "?")
        codes = {level: code for code, level in enumerate(sorted(cells.dropna().unique()))}
        columns.append(cells.map(codes).to_numpy(float))
    return np.stack(columns, axis=1), (found["loan"] == ">50K").to_numpy(float)


@dataclass(frozen=True)
class Golden:
    """
    Trees of a table.

    Args:
        table: Columns and target.
        rules: Settings.
        mean: Score from which the trees begin.
        bound: Of a row's share.
        every: Rows for the test, as a period and the place in it.
        digest: Of the trees.
        nodes: Of all trees.
        margin: Of the first row of the test.
    """

    table: Callable[[], Table]
    rules: Rules
    mean: float
    bound: float
    every: tuple[int, int]
    digest: str
    nodes: int
    margin: float


GOLDEN = {
    "breast cancer": Golden(
        _breast_cancer,
        Rules(trees=50, max_depth=4, eta=0.1),
        0.5,
        1.0,
        (5, 0),
        "866356c6aa255e16",
        760,
        2.61547947,
    ),
    "diabetes": Golden(
        _diabetes,
        Rules(objective="squared", trees=50, max_depth=3, eta=0.1),
        152.0,
        4 * 77.0,
        (5, 0),
        "3b88c958324df432",
        718,
        211.999039,
    ),
    "randhie": Golden(
        _randhie,
        Rules(objective="poisson", trees=50, max_depth=4, eta=0.1),
        2.875,
        16 * 2.875,
        (5, 0),
        "5560dce6c364736c",
        1542,
        0.938524544,
    ),
    "Adult": Golden(
        _adult,
        Rules(trees=100, max_depth=6, eta=0.1),
        0.5,
        1.0,
        (4, 3),
        "14fb34ecb00b971d",
        7428,
        float("nan"),
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name == "Adult" else []) for name in GOLDEN],
)
def test_trees_of_published_tables(name: str, tmp_path: Path) -> None:
    """Of rows at three sites; xgboost has the same margins, bit by bit."""
    import xgboost

    golden = GOLDEN[name]
    columns, target = golden.table()
    columns = columns.astype(np.float32).astype(np.float64)
    period, place = golden.every
    is_test = np.arange(len(target)) % period == place
    trained, targets = columns[~is_test], target[~is_test]
    grid = Grid(tree_runs.distinct_edges(trained, golden.rules.max_bin))
    score, margin = gradients.base(golden.rules.objective, golden.mean)
    pool = tree_runs.Pool(
        grid,
        grid.binned(list(trained.T), []),
        targets,
        golden.rules,
        margin,
        gradients.grid_scale(len(targets), golden.bound),
        np.random.default_rng(0).integers(0, 3, len(targets)),
    ).grow()
    assert tree_runs.digest_of(pool.trees) == golden.digest
    assert sum(map(len, pool.trees)) == golden.nodes

    names = [f"c{column}" for column in range(columns.shape[1])]
    file = tmp_path / "model.json"
    model = Model(names, grid, golden.rules, score, pool.trees, {})
    file.write_text(json.dumps(model.to_json()))
    tested = columns[is_test].astype(np.float32)
    found = xgboost.Booster(model_file=file).predict(
        xgboost.DMatrix(tested, feature_names=names), output_margin=True
    )
    bins = grid.binned(list(tested.astype(np.float64).T), [])
    ours = tree_runs.margins_of(pool.trees, grid, bins, 1, margin)[0]
    assert np.array_equal(ours, found)
    assert np.isnan(golden.margin) or ours[0] == np.float32(golden.margin)
