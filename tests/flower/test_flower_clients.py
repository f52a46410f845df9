"""A Flower client as a task: what it is given, what becomes of what it returns, what is refused."""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="needs the extra flower; make test-flower")

from fl_queue import metrics
from fl_queue.client.local_update import (
    ClientStrategy,
    TrainingResult,
    evaluate_client,
    initial_model,
    train_update,
)
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, DataError, ModelMismatch
from fl_queue.experiments import baseline_training
from fl_queue.experiments.trial import run_trial
from fl_queue.protocol.manifest import Manifest
from fl_queue.strategies import get_strategy
from fl_queue.tasks.base import Task, code_digest
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.error_disclosure import FULL, disclosed
from fl_queue.tasks.loading import load_task
from fl_queue.training.model_tensors import Arrays
from tests.flower import apps
from tests.support.checkout import ROOT

APPS = "tests.flower.apps"


def config_of(attribute: str, *, strategy: str = "fedavg", **options: object) -> RunConfig:
    return RunConfig.from_dict({
        "run": {"task": f"flower:{APPS}:{attribute}", "rounds": 2},
        "data": {"shares": 3},
        "train": {"epochs": 2, "batch_size": 20, "learning_rate": 0.3},
        "aggregation": {"strategy": strategy, "weighting": "uniform"},
        "task": options,
    })  # fmt: skip


def task_of(config: RunConfig) -> Task:
    return load_task(config.run.task, config, [f"{APPS}:*", config.run.task])


def begun(task: Task) -> tuple[Manifest, Arrays]:
    manifest, arrays = initial_model(task, 0)
    return manifest, {name: array.copy() for name, array in arrays.items()}


def context_of(config: RunConfig, share: int = 0) -> ClientContext:
    return ClientContext.of(
        config, client=f"site-{share}", run="demo", round_number=7, share=share, shares=3
    )


def trained(config: RunConfig, share: int = 0, **given: Any) -> TrainingResult:
    task = task_of(config)
    return train_update(task, *begun(task), context_of(config, share), **given)


def answered(answer: str) -> TrainingResult:
    """One update of the client that answers so."""
    return trained(config_of("answers", answer=answer, flower_model=f"{APPS}:two_arrays"))


def test_a_client_learns_from_its_share_and_reports() -> None:
    seen: list[Any] = []

    done = trained(config_of("client_fn"), 1, on_epoch=lambda *epoch: seen.append(epoch))

    before, (epoch, epochs, after) = metrics.finish(done.metrics), seen[0]
    assert (done.num_examples, done.metrics["num_examples"]) == (600, 200)
    assert (epoch, epochs, len(seen)) == (2, 2, 1)
    assert after["accuracy"] > 0.75 > 0.3 > before["accuracy"]
    assert after["loss"] < before["loss"]
    # A text has no mean, and stays.
    assert metrics.finish(done.train_metrics) == {"round": 7.0}


def test_arrays_travel_by_number_floats_as_parameters_and_integers_as_they_are() -> None:
    done = trained(config_of("client_fn"))

    kinds = {spec.name: (spec.kind, spec.shape) for spec in done.manifest.tensors}
    assert kinds == {
        "0": ("parameter", (784, 10)),
        "1": ("parameter", (10,)),
        "2": ("integer_buffer", ()),
    }
    assert done.tensors["0"].dtype == np.float32
    assert np.abs(done.tensors["0"]).max() > 0.01
    # Two epochs of thirty batches: the value itself, not a difference.
    assert done.tensors["2"] == 60


@pytest.mark.parametrize("attribute", ["Softmax", "softmax", "client_fn", "legacy"])
def test_each_kind_of_client_gives_the_same_update(attribute: str) -> None:
    done, plain = trained(config_of(attribute)), trained(config_of("client_fn"))

    assert done.num_examples == (
        1200 if attribute == "legacy" else 600
    )  # It has a mod that doubles.
    if attribute != "softmax":  # Its weights were drawn when it was imported.
        assert all((done.tensors[name] == plain.tensors[name]).all() for name in plain.tensors)
    assert done.metrics["num_examples"] == 200


def test_done_again_it_has_the_same_bits_and_another_client_has_others() -> None:
    config = config_of("answers", answer="drawn", flower_model=f"{APPS}:two_arrays")
    first = trained(config).tensors["0"]
    torch.rand(3), np.random.rand(3)

    assert (trained(config).tensors["0"] == first).all()
    assert (trained(config, 1).tensors["0"] != first).any()


def test_an_app_with_messages_trains_the_tensors_of_its_model_by_name() -> None:
    seen: list[Any] = []
    config = config_of("app", flower_model=f"{APPS}:Net")

    done = trained(config, 2, on_epoch=lambda *epoch: seen.append(epoch[2]))

    kinds = {spec.name: spec.kind for spec in done.manifest.tensors}
    assert kinds["norm.running_var"] == "float_buffer"
    assert kinds["norm.num_batches_tracked"] == "integer_buffer"
    assert kinds["out.weight"] == kinds["norm.bias"] == "parameter"
    assert done.tensors["norm.num_batches_tracked"] == 60
    assert seen[0]["accuracy"] > 0.75
    assert metrics.finish(done.train_metrics)["train_loss"] < 1
    assert done.num_examples == 600


def test_arrays_keep_their_order_and_their_dtypes() -> None:
    done = trained(config_of("Ordered"))

    changed = {name: float(done.tensors[name][0]) for name in done.tensors}
    assert changed == {"0": 100.0} | {str(index): float(index) for index in range(1, 12)}
    assert metrics.finish(done.train_metrics) == {"bytes": 4 + 8 + 10 * 2}


def test_a_list_is_taken_in_the_order_of_the_models_tensors() -> None:
    done = trained(config_of("by_position", flower_model=f"{APPS}:Net"))

    names = list(apps.Net().state_dict())
    integers = "norm.num_batches_tracked"
    changed = {name: float(done.tensors[name].reshape(-1)[0]) for name in done.tensors}
    assert changed == {name: names.index(name) for name in names}
    assert names.index(integers) == 4


def test_layers_of_its_model_can_be_private() -> None:
    config = config_of("by_position", flower_model=f"{APPS}:Net")
    done = trained(replace(config, model=replace(config.model, private=("@batch_norm",))))

    assert [spec.name for spec in done.sent.tensors] == ["out.bias", "out.weight"]
    assert float(done.kept("private", "norm.bias")[0]) == 1.0


def test_what_is_drawn_at_import_has_the_runs_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from tests.flower.apps import NoFit\nimport numpy as np\nDRAWN = np.random.rand(3)\n"
    source += "class Drawn(NoFit):\n    def get_parameters(self, config): return [DRAWN]\n"
    (tmp_path / "drawn.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = RunConfig.from_dict({"run": {"task": "flower:drawn:Drawn"}})

    found = []
    for _ in range(2):
        monkeypatch.delitem(sys.modules, "drawn", raising=False)
        np.random.rand()
        found.append(begun(load_task("flower:drawn:Drawn", config, ["drawn:Drawn"]))[1]["0"])

    assert (found[0] == found[1]).all()


def test_version_0_has_the_runs_seed_and_its_tensors_are_what_fit_is_given() -> None:
    first, again = begun(task_of(config_of("client_fn"))), begun(task_of(config_of("client_fn")))

    assert all((first[1][name] == array).all() for name, array in again[1].items())
    assert first[1]["0"].std() > 0.005


def test_the_closing_evaluation_is_the_clients_own() -> None:
    config = config_of("client_fn")
    task = task_of(config)

    sums = evaluate_client(task, *begun(task), context_of(config))

    assert sums["num_examples"] == 200
    assert {"loss_sum", "accuracy_sum"} <= sums.keys()
    assert task.test_data("") is None
    assert len(code_digest(task)) == 64


def test_a_client_without_evaluate_has_no_validation_metrics() -> None:
    done = answered("")

    assert metrics.finish(done.metrics) == {}
    # A metric that is not finite has no mean.
    assert done.train_metrics == {"num_examples": 4}


def test_config_that_fit_receives(monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, Any] = {}

    def noted(self: Any, parameters: Any, config: Any) -> Any:
        received.update(config)
        return parameters, 1, {}

    monkeypatch.setattr(apps.Answers, "fit", noted)
    trained(config_of("answers", flower_model=f"{APPS}:two_arrays", proximal_mu=0.1, app={"x": 3}))

    assert received == {
        "server_round": 7, "server-round": 7, "lr": 0.3,
        "learning_rate": 0.3, "learning-rate": 0.3, "local_epochs": 2, "local-epochs": 2,
        "batch_size": 20, "batch-size": 20, "proximal_mu": 0.1, "app.x": 3,
    }  # fmt: skip


def test_try_task_runs_it() -> None:
    result = run_trial(config_of("app", flower_model=f"{APPS}:Net"))

    assert (result.num_examples, result.num_validation, result.problem) == (600, 200, "")
    assert result.trained["accuracy"] > result.base["accuracy"]


def test_the_documented_client_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/guides/flower.md").read_text()
    code = re.search(r"```python\n# ridge.py\n(.*?)```", text, re.DOTALL)
    table = re.search(r"```toml\n# ridge.toml\n(.*?)```", text, re.DOTALL)
    assert code is not None
    assert table is not None
    (tmp_path / "ridge.py").write_text(code[1])
    monkeypatch.syspath_prepend(str(tmp_path))

    result = run_trial(RunConfig.from_dict(tomllib.loads(table[1])))

    assert (result.num_examples, result.base["error"] > 2 * result.trained["error"]) == (100, True)


def test_a_baseline_is_of_one_client_at_a_time() -> None:
    config = config_of("client_fn")

    found = baseline_training.train(config, "local", clients=0)
    with pytest.raises(ConfigError, match="not those of others"):
        baseline_training.train(config, "centralised")

    assert [(model.num_examples, model.validation["accuracy"] > 0.7) for model in found.models] == [
        (600, True)
    ] * 3
    assert len({model.digest for model in found.models}) == 3


def test_fewer_examples_than_a_site_allows_are_no_update_and_no_metric() -> None:
    config = config_of("client_fn")
    task = task_of(config)
    epochs: list[Any] = []

    with pytest.raises(ConfigError, match="601 examples") as caught:
        train_update(
            task,
            *begun(task),
            replace(context_of(config), min_examples=601),
            lambda *epoch: epochs.append(epoch),
        )
    done = train_update(task, *begun(task), replace(context_of(config), min_examples=201))

    assert (caught.value.field, epochs) == ("--min-examples", [])
    assert (done.num_examples, done.metrics) == (600, {"num_examples": 0})


def test_a_site_cannot_give_a_part_of_data_it_does_not_see() -> None:
    config = config_of("client_fn")
    task = task_of(config)

    with pytest.raises(ConfigError, match="reads its data itself") as caught:
        train_update(task, *begun(task), replace(context_of(config), max_examples=10))

    assert caught.value.field == "--max-examples"


def test_a_nan_is_named_before_it_is_sent() -> None:
    result = run_trial(config_of("answers", answer="undefined", flower_model=f"{APPS}:two_arrays"))

    assert "not finite" in result.problem


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ("fewer", ModelMismatch, "returned 1 arrays and was given 2"),
        ("nothing", ModelMismatch, "returned 0 arrays and was given 2"),
        ("shape", ModelMismatch, "as array 0 one of shape (3, 2), and was given (2, 3)"),
        ("floats", ModelMismatch, "as array 1 one of float64, and was given int32"),
        ("objects", ModelMismatch, "as array 0 one of <U1"),
        ("no examples", DataError, "trained on no examples"),
    ],
)
def test_a_wrong_answer_is_named(answer: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        answered(answer)


@pytest.mark.parametrize(
    ("attribute", "options", "words"),
    [
        ("sofmax", {}, "has no 'sofmax'; did you mean softmax?"),
        ("CLASSES", {}, "is a int; name a ClientApp"),
        ("share", {}, "must take one context"),
        ("NeedsShare", {}, "name a function client_fn(context)"),
        ("NoFit", {}, "has no fit"),
        ("Complex", {}, "array 0 is of complex64"),
        ("NoArrays", {}, "gives no arrays"),
        ("Answers", {}, "has no get_parameters"),
        ("app", {}, "has no get_parameters"),
        ("empty", {}, "neither a client_fn nor @app.train()"),
        ("remembers", {"flower_model": f"{APPS}:two_arrays"}, "keeps mine in context.state"),
        ("uncounted", {"flower_model": f"{APPS}:two_arrays"}, "add num-examples"),
        ("answers", {"flower_model": f"{APPS}:Softmax"}, "returned a Softmax; return a"),
        ("answers", {"flower_model": f"{APPS}:dict"}, "has no 'dict'"),
        ("answers", {"flower_model": "Net"}, "'Net' is not module:name"),
        ("answers", {"flower_model": ["a:b"]}, "may not load ['a:b']"),
        ("answers", {"layers": [1, 2]}, "task.layers: is a list"),
    ],
)
def test_what_cannot_be_a_task_is_named(
    attribute: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises((ConfigError, ModelMismatch), match=re.escape(words)):
        trained(config_of(attribute, **options))


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("Leaks", rf"ValueError \(line \d+ of {APPS}\); {FULL}"),
        ("fails", rf"run\.task: {APPS}:fails answered with an error; {FULL}"),
        ("remembers", rf"run\.task: {APPS}:remembers keeps something in context\.state.*; {FULL}"),
    ],
)
def test_what_a_client_reports_of_its_data_stays_at_the_site(attribute: str, expected: str) -> None:
    own = {} if attribute == "Leaks" else {"flower_model": f"{APPS}:two_arrays"}
    config = config_of(attribute, **own)
    with pytest.raises(Exception, match=r"Erika Musterfrau|mine") as caught:
        trained(config)

    assert re.fullmatch(expected, disclosed(caught.value, config))


@pytest.mark.parametrize("strategy", ["fedprox", "ditto", "qfedavg"])
def test_a_strategy_that_needs_our_own_loops_is_refused(strategy: str) -> None:
    config = config_of("client_fn", strategy=strategy)

    with pytest.raises(ConfigError, match="use another") as caught:
        trained(config, plan=ClientStrategy(get_strategy(strategy, config.strategy)))

    assert caught.value.field == "aggregation.strategy"
