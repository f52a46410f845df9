"""Personalization: private tensors, personal models, fine-tuning, and what is reported of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from fl_queue import metrics
from fl_queue.client.local_update import (
    ClientStrategy,
    TrainingResult,
    evaluate_client,
    initial_model,
    train_update,
)
from fl_queue.client.personalization import private_names
from fl_queue.config import loading
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, MessageError, ModelMismatch
from fl_queue.strategies import get_strategy
from fl_queue.strategies.layouts import client_layouts, update_manifest
from fl_queue.tasks.base import ClientData, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.training.model_tensors import load_arrays, manifest_of

BODY = ["body.bias", "body.weight"]
NORM = ["odd.bias", "odd.num_batches_tracked", "odd.running_mean", "odd.running_var", "odd.weight"]
HEAD = ["head.bias", "head.weight"]


class Net(nn.Module):
    """A BatchNorm layer without 'bn' in its name, and a layer with it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.odd = nn.BatchNorm1d(6)
        self.bn_head = nn.Linear(6, 3, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.odd(self.body(rows)))
        return self.head(x) + self.bn_head(x)


class Rows(Task):
    """Rows that are scaled by each client in its own way."""

    def build_model(self) -> nn.Module:
        return Net()

    def client_data(self, context: ClientContext) -> ClientData:
        rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(context.share))
        data = TensorDataset(rows * (1 + 5 * context.share), rows.argmax(dim=1) % 3)
        return ClientData(TensorDataset(*data[:40]), TensorDataset(*data[40:]))


def task_of(strategy: str = "fedavg", private: tuple[str, ...] = (), **train: Any) -> Rows:
    raw = {
        "run": {"task": "x:Rows"},
        "train": {"epochs": 2, "batch_size": 10} | train,
        "aggregation": {"strategy": strategy},
        "model": {"private": list(private)},
    }
    return Rows(RunConfig.from_dict(raw))


def context_of(task: Task, share: int = 0, number: int = 1) -> ClientContext:
    return ClientContext.of(
        task.config, client="a", run="demo", round_number=number, share=share, shares=2
    )


def plan_of(task: Task, kept: Mapping[str, Any] | None = None) -> ClientStrategy:
    name = task.config.aggregation.strategy
    return ClientStrategy(get_strategy(name, task.config.strategy), kept=kept or {})


def trained(task: Task, kept: Mapping[str, Any] | None = None, **where: int) -> TrainingResult:
    manifest, arrays = initial_model(task, 1)
    return train_update(task, manifest, arrays, context_of(task, **where), plan=plan_of(task, kept))


def kept_of(task: Task, made: TrainingResult) -> dict[str, dict[str, np.ndarray]]:
    layouts = client_layouts(plan_of(task).strategy, made.manifest)
    return {
        which: {s.name: made.kept(which, s.name).copy() for s in layout.tensors}
        for which, layout in layouts.items()
    }


def body_of(made: TrainingResult) -> bytes:
    return b"".join(block.tobytes() for _, _, block in made.pieces())


# Which tensors


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), []),
        (("head.*",), HEAD),
        (("@batch_norm",), NORM),
        (("@batch_norm", "head.b*", "head.bias"), ["head.bias", *NORM]),
        (("*.running_???",), ["odd.running_var"]),
    ],
)
def test_patterns_name_tensors_and_batch_norm_is_found_by_its_type(
    patterns: tuple[str, ...], expected: list[str]
) -> None:
    manifest = initial_model(task_of(private=patterns), 1)[0]
    assert list(manifest.private) == expected
    sent = [spec.name for spec in update_manifest(get_strategy("fedavg"), manifest).tensors]
    assert sorted([*sent, *expected]) == [spec.name for spec in manifest.tensors]


def test_a_batch_norm_model_itself_has_names_without_a_path() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert "1.running_mean" in private_names(model, manifest_of(model), ["@batch_norm"])
    alone = nn.BatchNorm1d(2)
    with pytest.raises(ConfigError, match="every parameter"):
        private_names(alone, manifest_of(alone), ["@batch_norm"])


def test_tied_tensors_are_private_by_any_of_their_names() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    assert private_names(model, manifest_of(model), ["b.weight"]) == ("a.weight",)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("haed.*", r"matches no tensor; did you mean head\.\*\?; the model has: bn_head\.weight"),
        ("head.weigth", r"did you mean head\.weight\?"),
        ("*", r"matches every parameter.*leave some out of: bn_head\.weight, body\.bias"),
    ],
)
def test_a_pattern_that_matches_nothing_or_everything_is_an_error(
    pattern: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        initial_model(task_of(private=(pattern,)), 1)
    assert caught.value.field == "model.private"


def test_a_model_without_batch_norm_cannot_keep_it() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(ConfigError, match="no BatchNorm layer"):
        private_names(model, manifest_of(model), ["@batch_norm"])


def test_a_client_sends_nothing_that_its_config_keeps_private() -> None:
    task = task_of(private=("head.*",))
    manifest, arrays = initial_model(task, 1)
    with pytest.raises(ModelMismatch, match=r"tensor head\.bias is private"):
        train_update(task, replace(manifest, private=()), arrays, context_of(task))


@pytest.mark.parametrize(
    ("overrides", "field", "reason"),
    [
        (("model.private=['@batchnorm']",), "model.private", "did you mean @batch_norm?"),
        (("model.private=['']",), "model.private", "is not a pattern"),
        (("model.private=head",), "model.private", "is not a list"),
        (
            ("aggregation.strategy=ditto", "model.private=['head.*']"),
            "model.private",
            "keeps a whole model",
        ),
        (("aggregation.strategy=fedbn",), "aggregation.strategy", '["@batch_norm"]'),
        (("aggregation.strategy=fedper",), "aggregation.strategy", '["head.*"]'),
        (("train.finetune_epochs=-1",), "train.finetune_epochs", "too small"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_field(
    overrides: tuple[str, ...], field: str, reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loading.load("mnist-3v7", overrides, {})
    assert caught.value.field == field
    assert reason in caught.value.reason


# Private tensors in training


def test_private_tensors_are_kept_not_sent_nor_overwritten() -> None:
    task = task_of(private=("@batch_norm",))
    first = trained(task)
    kept = kept_of(task, first)
    assert sorted(kept["private"]) == NORM
    assert kept["private"]["odd.num_batches_tracked"] == 8
    assert sorted(first.tensors) == sorted(["bn_head.weight", *BODY, *HEAD])
    whole = body_of(first)
    assert len(whole) == 4 * (6 * 4 + 6 + 18 + 18 + 3)
    for name, array in kept["private"].items():
        if array.size > 1:
            change = array - initial_model(task, 1)[1][name]
            assert array.tobytes() not in whole
            assert change.tobytes() not in whole

    # The next round's version has what it likes in their place.
    manifest, arrays = initial_model(task, 1)
    other = {n: a + 1 if n in NORM else a for n, a in arrays.items()}
    made = [
        train_update(task, manifest, base, context_of(task, number=2), plan=plan_of(task, kept))
        for base in (arrays, other)
    ]
    assert body_of(made[0]) == body_of(made[1])
    assert body_of(made[0]) != body_of(trained(task, number=2))
    assert kept_of(task, made[0])["private"]["odd.num_batches_tracked"] == 16


def test_what_is_validated_is_the_version_and_beside_it_the_clients_own_model() -> None:
    task = task_of(private=("head.*", "@batch_norm"))
    kept = kept_of(task, trained(task, share=1))
    manifest, arrays = initial_model(task, 1)
    context = context_of(task, share=1, number=2)
    sums = evaluate_client(task, manifest, arrays, context, plan_of(task, kept))

    def alone(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
        model = Net()
        load_arrays(model, manifest, values)
        return dict(task.evaluate(model, task.client_data(context).validation, context))

    version, own = alone(arrays), alone({**arrays, **kept["private"]})
    assert version != own
    assert sums == {**version, **metrics.beside("personal", own)}
    again = train_update(task, manifest, arrays, context, plan=plan_of(task, kept))
    assert again.metrics == sums


# A personal model, and fine-tuning


def test_the_personal_model_is_the_kept_one_buffers_included() -> None:
    task, plain = task_of("ditto"), task_of()
    first = trained(task)
    assert body_of(first) == body_of(trained(plain))
    # Nothing is kept yet: it is the version.
    assert metrics.finish(first.metrics)["personal_loss"] == metrics.finish(first.metrics)["loss"]
    kept = kept_of(task, first)
    assert sorted(kept["personal"]) == [spec.name for spec in first.manifest.tensors]
    assert kept["personal"]["odd.num_batches_tracked"] == 8
    second = trained(task, kept, number=2)
    assert body_of(second) == body_of(trained(plain, number=2))
    assert kept_of(task, second)["personal"]["odd.num_batches_tracked"] == 16
    found = metrics.finish(second.metrics)
    assert found["personal_loss"] < found["loss"]
    manifest, arrays = initial_model(task, 1)
    context = context_of(task, number=2)
    assert evaluate_client(task, manifest, arrays, context, plan_of(task, kept)) == second.metrics


@pytest.mark.parametrize(
    ("strategy", "private"), [("fedavg", ()), ("fedavg", ("@batch_norm",)), ("ditto", ())]
)
def test_fine_tuning_is_local_training_and_changes_no_bit(
    strategy: str, private: tuple[str, ...]
) -> None:
    tuning, plain = (task_of(strategy, private, finetune_epochs=n) for n in (2, 0))
    kept = kept_of(plain, trained(plain))
    made, without = (trained(task, kept, number=2) for task in (tuning, plain))
    assert body_of(made) == body_of(without)
    tuned = {k: v for k, v in made.metrics.items() if k.startswith("finetuned_")}
    assert {k: v for k, v in made.metrics.items() if k not in tuned} == without.metrics

    # As many epochs as a round has: from the same model it is the round's own training.
    manifest, arrays = initial_model(plain, 1)
    context = context_of(plain, number=2)
    model = Net()
    load_arrays(model, manifest, {**arrays, **kept.get("private", {})})
    data = plain.client_data(context)
    plain.train(model, data, context, lambda *epoch: None)
    expected = metrics.beside("finetuned", plain.evaluate(model, data.validation, context))
    # Threads are as they happen to be here.
    assert tuned.pop("finetuned_loss_sum") == pytest.approx(expected.pop("finetuned_loss_sum"))
    assert tuned == expected
    assert evaluate_client(tuning, manifest, arrays, context, plan_of(tuning, kept)) == made.metrics


# Metrics


def test_what_is_beside_the_version_has_names_of_its_own() -> None:
    version = {"num_examples": 4, "confusion": [[1, 1], [1, 1]], "loss_sum": 4.0}
    own = {"num_examples": 4, "confusion": [[2, 0], [0, 2]], "loss_sum": 1.0}
    sums = {**version, **metrics.beside("personal", own), **metrics.beside("finetuned", own)}
    metrics.check(sums)
    found = metrics.finish(metrics.merge([sums, sums]))
    assert {**metrics.finish(version), **metrics.only_beside(found)} == found
    assert (found["accuracy"], found["loss"]) == (0.5, 1.0)
    assert (found["personal_accuracy"], found["finetuned_loss"]) == (1.0, 0.25)
    assert metrics.best_version("personal_accuracy:max", {3: found}) == 3
    # A task may have such a mean of its own.
    assert metrics.finish({"num_examples": 2, "personal_best_sum": 4.0}) == {"personal_best": 2.0}


def test_of_many_classes_beside_the_version_only_the_hits_are_sent() -> None:
    table = (3 * np.eye(40, dtype=int) + 1).tolist()
    sums = metrics.beside("personal", {"num_examples": 1720, "confusion": table})
    assert sums == {"personal_num_examples": 1720, "personal_accuracy_sum": 160}
    histograms = {"num_examples": 1, "logit_histograms": metrics.logit_histograms(
        np.array([0.5]), np.array([1])
    )}  # fmt: skip
    assert metrics.beside("personal", histograms) == {"personal_num_examples": 1}


@pytest.mark.parametrize(
    "bad", [{"personal_confusion": [[1, 2]]}, {"finetuned_num_examples": -1}, {"personal_x": 1}]
)
def test_what_comes_from_outside_beside_the_version_is_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(MessageError, match=next(iter(bad))):
        metrics.check({"num_examples": 1, **bad})
