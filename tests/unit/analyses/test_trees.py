"""Boosted trees as an analysis: the same model for any split of the rows over sites."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_queue.analyses.base import Limits, SiteRows
from fl_queue.analyses.boosting import plan
from fl_queue.analyses.boosting.site import Site
from fl_queue.analyses.boosting.state import State
from fl_queue.analyses.trees import Trees
from fl_queue.common.safe_json import dumps
from fl_queue.errors import AnalysisError, ConfigError, DataError, MessageError, PolicyRefusal
from fl_queue.protocol.arrays import Float32s, Float64s, Int64s
from tests.support import tree_runs

ROWS = 240
LEVELS = {"stage": ("I", "II", "III", "IV", "V"), "sex": ("F", "M")}


def _columns(seed: int = 0) -> tuple[dict[str, Float64s], dict[str, Int64s]]:
    """Numbers with gaps, categories with other texts and gaps, and targets that depend on them."""
    rng = np.random.default_rng(seed)
    age, crp = rng.integers(20, 90, ROWS).astype(np.float64), rng.lognormal(1, 1, ROWS)
    stage, sex = rng.integers(0, 7, ROWS), rng.integers(0, 4, ROWS)
    risk = (age - 55) / 20 + np.isin(stage, [1, 4]) + 0.3 * crp + rng.normal(0, 0.5, ROWS)
    age[rng.random(ROWS) < 0.1] = np.nan
    crp[rng.random(ROWS) < 0.05] = np.nan
    numbers = {
        "age": age,
        "crp": crp,
        "binary": (risk > 1.4).astype(np.float64),
        "squared": np.round(risk, 3),
        "poisson": np.floor(np.exp(np.clip(risk / 2, 0, 3))),
    }
    codes = {"stage": stage, "sex": sex, "multi": np.digitize(risk, [0.8, 1.8])}
    return numbers, {name: values.astype(np.int64) for name, values in codes.items()}


def _options(objective: str, **more: Any) -> dict[str, Any]:
    levels: dict[str, tuple[str, ...]] = dict(LEVELS)
    if objective == "multi":
        levels["multi"] = ("low", "middle", "high")
    return {
        "target": objective,
        "numbers": ("age", "crp"),
        "levels": levels,
        "objective": objective,
        **more,
    }


def _tables(places: Sequence[int], seed: int = 0) -> list[SiteRows]:
    numbers, codes = _columns(seed)
    return tree_runs.tables_of(numbers, codes, np.array(places, np.int64))


def _model(
    options: Mapping[str, Any], tables: Sequence[SiteRows], least: int = 1, forgets: bool = False
) -> str:
    """The model and the result as text, without how many sites there were."""
    analysis, state = tree_runs.fitted(options, tables, least, forgets)
    found = State(analysis.plan, state.copy())
    found["sites"] = 0
    result = analysis.result(found.words)
    assert result is not None
    return dumps([analysis.model(found.words), result, found.words.tolist()])


OBJECTIVES = ("binary", "multi", "squared", "poisson")
_POOLED: dict[str, str] = {}


@settings(max_examples=5)
@given(st.sampled_from(OBJECTIVES), st.integers(1, 10), st.integers(0, 2**32), st.booleans())
def test_any_split_of_the_rows_over_sites(
    objective: str, sites: int, seed: int, forgets: bool
) -> None:
    """Has the same bits as one site with all rows, also where sites forget what they have computed."""
    options = _options(objective, subsample=0.7, validation=0.2, seed=3)
    if objective not in _POOLED:
        _POOLED[objective] = _model(options, _tables([0] * ROWS))
    rng = np.random.default_rng(seed)
    places = rng.permutation(np.arange(ROWS) % sites)
    tables = _tables(places)
    assert (
        _model(options, rng.permutation(np.array(tables, object)), 1, forgets) == _POOLED[objective]
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_xgboost_predicts_the_same_margins(objective: str, tmp_path: Path) -> None:
    """From the file, of rows with gaps, with other levels and with levels never seen."""
    import xgboost

    tables = _tables([0] * ROWS)
    analysis, state = tree_runs.fitted(_options(objective), tables)
    file = tmp_path / "model.json"
    file.write_text(json.dumps(analysis.model(state)))
    booster = xgboost.Booster(model_file=file)
    numbers, codes = _columns(seed=1)
    cells = np.stack([numbers["age"], numbers["crp"], codes["stage"], codes["sex"]], axis=1)
    # After the levels comes that of other texts; then, of a missing cell, none.
    for column, name in enumerate(LEVELS, 2):
        cells[cells[:, column] > len(LEVELS[name]), column] = np.nan
    rows = xgboost.DMatrix(
        cells.astype(np.float32),
        feature_names=["age", "crp", "stage", "sex"],
        feature_types=["float", "float", "c", "c"],
    )
    found = booster.predict(rows, output_margin=True)
    assert np.array_equal(found.reshape(ROWS, -1), _margins(analysis, state, numbers, codes).T)
    # Each margin is a sum of leaves: those of the rows that were trained on differ.
    assert len(np.unique(found)) > 5


def _margins(
    analysis: Trees, state: Int64s, numbers: Mapping[str, Float64s], codes: Mapping[str, Int64s]
) -> Float32s:
    found = State(analysis.plan, state)
    bins = found.grid.binned(
        [numbers[name] for name in analysis.plan.numbers],
        [codes[name] for name in analysis.plan.levels],
    )
    trees = [tree for one in range(found["iteration"]) for tree in found.trees(one)]
    classes, first = analysis.plan.rules.classes, found.number("margin")
    return tree_runs.margins_of(trees, found.grid, bins, classes, first)


def test_a_class_whose_tree_is_finished_before_the_others() -> None:
    """No row is of the last class: its trees are a leaf, while those of the others go on."""
    numbers, codes = _columns()
    codes["multi"] = np.minimum(codes["multi"], 1)
    tables = tree_runs.tables_of(numbers, codes, np.arange(ROWS) % 2)
    analysis, state = tree_runs.fitted(_options("multi"), tables)
    result = analysis.result(state)
    assert result is not None
    sizes = [[len(tree) for tree in State(analysis.plan, state).trees(one)] for one in range(3)]
    assert all(last < min(others) for *others, last in sizes)
    assert result["loss"][-1] < result["loss"][0]


def test_losses_are_those_of_the_margins() -> None:
    """The last loss is that of all trees; it falls."""
    numbers, codes = _columns()
    analysis, state = tree_runs.fitted(_options("binary"), _tables([0] * ROWS))
    result = analysis.result(state)
    assert result is not None
    margins = _margins(analysis, state, numbers, codes)[0].astype(np.float64)
    expected = np.mean(np.logaddexp(0, margins) - margins * numbers["binary"])
    assert result["loss"][-1] == pytest.approx(expected, rel=1e-9)
    assert (np.diff(result["loss"]) < 0).all()
    assert result["importance"][0]["gain"] > 0
    assert sum(one["share"] for one in result["importance"]) == pytest.approx(1)


def test_patience_keeps_the_best_trees() -> None:
    """Of a target that is noise the rows that are not trained on soon lose."""
    numbers, codes = _columns()
    numbers["binary"] = np.random.default_rng(5).integers(0, 2, ROWS).astype(np.float64)
    tables = tree_runs.tables_of(numbers, codes, np.zeros(ROWS, np.int64))
    options = _options("binary", trees=40, validation=0.3, patience=2, eta=1.0)
    analysis, state = tree_runs.fitted(options, tables)
    result = analysis.result(state)
    assert result is not None
    losses = result["validation_loss"]
    assert result["iterations"] == int(np.argmin(losses)) == len(losses) - 3
    assert (
        len(analysis.model(state)["learner"]["gradient_booster"]["model"]["trees"])
        == (result["trees"])
    )


@settings(max_examples=5)
@given(st.integers(2, 4), st.integers(0, 2**32))
def test_a_site_with_a_limit_sends_no_cell_of_few_rows(sites: int, seed: int) -> None:
    """The trees are then others, but do not depend on what a site keeps in memory."""
    places = np.random.default_rng(seed).integers(0, sites, ROWS)
    options = _options("squared", subsample=0.8)
    assert _model(options, _tables(places), 10) == _model(options, _tables(places), 10, True)


def test_a_site_that_leaves_has_its_tree_begun_anew() -> None:
    """And the one that is left goes on with the trees that are there."""
    options = _options("binary")
    analysis, limits = Trees(tree_runs.OPTIONS | options), Limits()
    tables = _tables(np.arange(ROWS) % 2)
    state = analysis.initial()
    for _ in range(3):
        state = analysis.advance(
            state, np.sum([analysis.local(state, table, limits) for table in tables], axis=0)
        )
    assert State(analysis.plan, state)["level"] == 1
    state = analysis.advance(state, analysis.local(state, tables[0], limits))
    assert State(analysis.plan, state)["level"] == 0
    while not analysis.is_done(state):
        state = analysis.advance(state, analysis.local(state, tables[0], limits))
    result = analysis.result(state)
    assert result is not None
    assert result["rows"] == ROWS // 2
    assert result["trees"] == 3
    assert result["sites"] == 1


@pytest.mark.parametrize("patience", [0, 2])
def test_losses_after_a_site_has_left(patience: int) -> None:
    """They are means over the rows that are left, and are not compared with those of more rows."""
    options = _options("binary", trees=5, validation=0.3, patience=patience)
    analysis, limits = Trees(tree_runs.OPTIONS | options), Limits()
    tables = _tables(np.arange(ROWS) % 2)
    # Of the site that is left nothing can be learned: its losses are higher than those of both.
    tables[0].numbers["binary"][:] = np.random.default_rng(5).integers(0, 2, ROWS // 2)
    state = analysis.initial()
    while State(analysis.plan, state)["iteration"] < 2:
        state = analysis.advance(
            state, np.sum([analysis.local(state, table, limits) for table in tables], axis=0)
        )
    before = State(analysis.plan, state)["validation_rows"]
    site: Site = tables[0].scratch["trees"]
    while not analysis.is_done(state):
        words = analysis.local(state, tables[0], limits)
        state = analysis.advance(state, words)
    result = analysis.result(state)
    assert result is not None
    assert result["validation_rows"] == len(site.validation) < before
    last = State(analysis.plan, state)
    unit = 2.0 ** -last["loss_scale"]
    of_site = analysis.layout(_before_last(last)).view(words, "losses")[1] * unit
    assert result["validation_loss"][-1] == of_site / len(site.validation)
    assert last["best"] >= 2


def _before_last(last: State) -> Int64s:
    """The state of the same trees, whose losses are not known."""
    before = last.copy()
    before["phase"] = 2
    return before.words


def test_sums_that_do_not_fit_are_sent_on_a_coarser_grid() -> None:
    """A step too far makes the means of counts grow; after four times the run ends."""
    options = _options("poisson", eta=60.0, trees=6)
    with pytest.raises(AnalysisError, match=r"task\.eta: sums grow"):
        tree_runs.fitted(options, _tables([0] * ROWS))


BAD_OPTIONS = [
    ({"target": ""}, r"task\.target.*is empty"),
    ({"numbers": (), "levels": {}}, r"task\.numbers"),
    ({"numbers": ("age", "age")}, "stands twice"),
    ({"numbers": ("age", "y")}, "y is a target"),
    ({"levels": {"a": tuple(map(str, range(64)))}}, r"task\.levels\.a.*63 at most"),
    ({"objective": "multi"}, "name the classes of y"),
    ({"levels": {"y": ("a", "b", "c")}}, "objective binary has two"),
    ({"levels": {"y": ("a", "b")}, "objective": "squared"}, "predicts a number"),
    ({"patience": 3}, r"task\.patience.*task\.validation"),
    ({"max_depth": 20, "numbers": ("age",)}, r"task\.max_depth"),
    ({"trees": 10**6}, r"task\.trees"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_options_that_cannot_be_used(options: Mapping[str, Any], message: str) -> None:
    """Each names its field."""
    with pytest.raises(ConfigError, match=message):
        plan.check(tree_runs.OPTIONS | {"numbers": ("age",)} | dict(options))


BAD_TARGETS = [
    ("binary", [0.0, 2.0], "not all are 0 or 1"),
    ("poisson", [0.5, 1.0], "whole numbers"),
    ("poisson", [-1.0, 1.0], "whole numbers"),
    ("squared", [1.0, 1e30], "scale it"),
]


@pytest.mark.parametrize(("objective", "values", "message"), BAD_TARGETS)
def test_targets_that_are_none(objective: str, values: list[float], message: str) -> None:
    """The column is named, and no value."""
    table = SiteRows(2, {"age": np.array([1.0, 2.0]), "y": np.array(values)}, {})
    options = tree_runs.OPTIONS | {"numbers": ("age",), "objective": objective}
    with pytest.raises(DataError, match=f"column y: .*{message}"):
        Site(Trees(options).plan, table, Limits())


@pytest.mark.parametrize(
    ("objective", "value", "message"),
    [("binary", 1.0, "one class"), ("squared", 3.0, "one value"), ("poisson", np.nan, "no row")],
)
def test_targets_of_all_sites_that_say_nothing(objective: str, value: float, message: str) -> None:
    """The run ends with a sentence."""
    table = SiteRows(3, {"age": np.arange(3.0), "y": np.full(3, value)}, {})
    with pytest.raises(AnalysisError, match=message):
        tree_runs.fitted({"numbers": ("age",), "objective": objective}, [table], least=0)


def test_a_target_that_varies_too_little_for_its_margins() -> None:
    """A float32 of its mean has no other digits."""
    table = SiteRows(30, {"age": np.arange(30.0), "y": 1e9 + np.arange(30.0)}, {})
    with pytest.raises(AnalysisError, match="subtract about the mean"):
        tree_runs.fitted({"numbers": ("age",), "objective": "squared"}, [table], least=0)


def test_a_class_of_few_rows_is_refused() -> None:
    """The class is not named."""
    numbers, codes = _columns()
    numbers["binary"] = np.where(np.arange(ROWS) < 4, 1.0, 0.0)
    tables = tree_runs.tables_of(numbers, codes, np.zeros(ROWS, np.int64))
    with pytest.raises(PolicyRefusal, match="a class of binary has too few rows"):
        tree_runs.fitted(_options("binary"), tables, least=5)


def test_states_that_no_step_has_made() -> None:
    """No loop runs over words that lead out of an array."""
    analysis, state = tree_runs.fitted(_options("binary"), _tables([0] * ROWS))
    table = _tables([0] * ROWS)[0]
    words = State(analysis.plan, state.copy())
    words["phase"] = 2
    words.iteration_words(0)[0] |= 0xFF << 44
    with pytest.raises(MessageError, match="a column or a bin that does not exist"):
        analysis.local(words.words, table, Limits())
    for field, value in (("phase", 9), ("iteration", -1), ("level", 3), ("scale", 99)):
        words = State(analysis.plan, state.copy())
        words[field] = value
        with pytest.raises(MessageError, match=field):
            analysis.layout(words.words)
