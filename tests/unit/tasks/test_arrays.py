"""Models of named arrays, trained by any code."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, ModelMismatch
from fl_queue.experiments import trial
from fl_queue.strategies import STRATEGIES
from fl_queue.tasks.arrays import ArrayModel, ArrayTask, Rows, arrays_of, rows_of
from fl_queue.tasks.base import ClientData
from fl_queue.tasks.loading import load_task
from fl_queue.training.model_tensors import manifest_of
from tests.support.documented_task import documented

X = np.arange(24.0).reshape(12, 2)
Y = np.arange(12)


class Means(ArrayTask):
    """The mean row, and the largest target."""

    made: Any = None

    def initial_arrays(self) -> Any:
        return {"mean": np.zeros(2), "most": np.array(-1)}

    def client_data(self, context: Any) -> ClientData:
        return ClientData(Rows(X[:8], Y[:8]), Rows(X[8:], Y[8:]))

    def fit(self, arrays: Any, rows: Any, context: Any) -> Any:
        arrays["mean"] += 100  # They are its own.
        x, y = rows
        found = {"mean": x.mean(axis=0), "most": y.max()}
        return found if self.made is None else self.made(found)

    def score(self, arrays: Any, rows: Any, context: Any) -> Any:
        gap = rows[0] - arrays["mean"]
        return {"num_examples": len(gap), "gap_sum": np.abs(gap).sum()}


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> type[Means]:
    module = ModuleType("averaging")
    made = type("Means", (Means,), {"__module__": "averaging"})
    module.Means = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "averaging", module)
    return made


def config_of(**sections: dict[str, Any]) -> RunConfig:
    return RunConfig.from_dict({"run": {"task": "averaging:Means"}, **sections})


def test_a_fit_makes_an_update_of_its_arrays(own: type[Means]) -> None:
    found = trial.run_trial(config_of())

    assert (found.parameters, found.num_examples, found.num_validation) == (3, 8, 4)
    assert found.largest == X[:8].mean(axis=0).max()
    assert found.base["gap"] == np.abs(X[8:]).sum() / 4
    assert found.trained["gap"] == np.abs(X[8:] - X[:8].mean(axis=0)).sum() / 4
    assert found.problem == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: None, "fit() of averaging:Means returned None, not a table of arrays"),
        (lambda made: {"mean": made["mean"]}, "returned no array most"),
        (lambda made: made | {"erika": 1}, "returned an array 'erika', which initial_arrays()"),
        (
            lambda made: made | {"mean": np.zeros(3)},
            "as mean one of shape (3,), and was given (2,)",
        ),
        (
            lambda made: made | {"most": np.array(0.5)},
            "as most one of float64, and was given int64",
        ),
        (lambda made: made | {"mean": np.array(["a", "b"])}, "as mean one of <U1, and was given"),
    ],
)
def test_arrays_that_do_not_fit_the_model_are_named(
    own: type[Means], change: Any, words: str
) -> None:
    own.made = staticmethod(change)

    with pytest.raises(ModelMismatch) as caught:
        trial.run_trial(config_of())

    assert words in str(caught.value)
    assert caught.value.public
    assert "erika" not in caught.value.public


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_strategies_that_correct_steps_are_refused_by_name(own: type[Means], strategy: str) -> None:
    config = config_of(
        aggregation={
            "strategy": strategy,
            "weighting": STRATEGIES[strategy].WEIGHTINGS[0],
        },
        round={"cohort": 100, "quorum": 100},
    )
    if not STRATEGIES[strategy].needs_local_sgd:
        assert load_task("averaging:Means", config, ["averaging:Means"])
        return
    with pytest.raises(ConfigError, match=f"^aggregation.strategy: {strategy} corrects") as caught:
        load_task("averaging:Means", config, ["averaging:Means"])
    assert caught.value.public


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "gives no arrays"),
        ([], "gives no arrays"),
        ({"a.b": X}, "an array is called 'a.b'"),
        ({"training": X}, "an array is called 'training'"),
        ({"": X}, "an array is called ''"),
        ({"a": np.array(["x"])}, "array a is of <U1, and only numbers travel"),
        ([X, X.astype(complex)], "array 1 is of complex128"),
    ],
)
def test_arrays_that_cannot_be_a_model_are_named(arrays: Any, words: str) -> None:
    with pytest.raises(ModelMismatch) as caught:
        ArrayModel("here:Task", arrays)

    assert words in str(caught.value)
    assert caught.value.public


def test_a_model_has_its_arrays_and_their_dtypes() -> None:
    given = {"b": X.astype(">f8"), "a": Y.astype(np.int32), "c": X[:, ::-1].astype(np.float32)}
    model = ArrayModel("here:Task", given)

    found = arrays_of(model)
    assert found.keys() == given.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, given[name])
        assert array.dtype.kind + str(array.itemsize) == given[name].dtype.str[1:]
    found["b"][:] = 7
    np.testing.assert_array_equal(arrays_of(model)["b"], given["b"])
    kinds = {spec.name: spec.kind for spec in manifest_of(model).tensors}
    assert kinds == {"a": "integer_buffer", "b": "parameter", "c": "parameter"}


def test_a_list_keeps_its_order() -> None:
    given = [np.full(1, index, np.int64 if index % 3 else np.float32) for index in range(12)]

    assert list(arrays_of(ArrayModel("here:Task", given))) == [str(index) for index in range(12)]
    assert [int(a[0]) for a in arrays_of(ArrayModel("here:Task", given)).values()] == [*range(12)]


@pytest.mark.parametrize(
    "dataset",
    [
        Rows(X[2:6], Y[2:6]),
        Subset(Rows(X, Y), [2, 3, 4, 5]),
        Subset(Subset(Rows(X, Y), range(1, 9)), [1, 2, 3, 4]),
        ConcatDataset([Rows(X[2:4], Y[2:4]), Subset(Rows(X, Y), [4, 5])]),
        TensorDataset(torch.from_numpy(X[2:6]), torch.from_numpy(Y[2:6])),
    ],
)
def test_the_rows_of_a_data_set(dataset: Any) -> None:
    x, y = rows_of(dataset)

    np.testing.assert_array_equal(x, X[2:6])
    np.testing.assert_array_equal(y, Y[2:6])
    assert len(dataset) == 4
    np.testing.assert_array_equal(np.stack([dataset[index][0] for index in range(4)]), X[2:6])


@pytest.mark.parametrize("arrays", [(), (X, Y[:3]), (np.float64(1),), (3,)])
def test_rows_are_of_one_length(arrays: Any) -> None:
    with pytest.raises(ConfigError, match="one row for each sample"):
        Rows(*arrays)


def test_other_data_sets_are_refused_by_their_class() -> None:
    with pytest.raises(ConfigError, match=r"its data are a list; give fl_queue.tasks.Rows"):
        rows_of([(1, 2)])  # type: ignore[arg-type]


def test_the_documented_task_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "averages.py").write_text(documented("# averages.py"))
    np.save(tmp_path / "train.npy", np.arange(90.0).reshape(30, 3) / 9)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = RunConfig.from_dict({"run": {"task": "averages:Averages"}})

    found = trial.run_trial(config, data_dir=str(tmp_path))

    assert (found.num_examples, found.problem) == (20, "")
    # Of rows i, i + 1, i + 2 in ninths the first ten are held out: their means are 15 rows of 1 / 3 apart.
    assert found.trained["gap"] == pytest.approx(3 * 15 / 3)


def test_what_is_no_table_of_arrays_is_named(own: type[Means], tmp_path: Path) -> None:
    own.initial_arrays = lambda self: [X]  # type: ignore[method-assign]

    with pytest.raises(ConfigError, match=r"initial_arrays\(\) of averaging:Means returned a list"):
        trial.run_trial(config_of())
