"""What a task may declare, and what is refused with the fix; which keys an aggregator takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from fl_queue import metrics
from fl_queue.errors import ConfigError, MessageError
from fl_queue.metrics import Classification, Macro, Mean, Ratio, Regression, declared
from fl_queue.training.batches import BatchHooks
from fl_queue.training.evaluation import EvaluationOptions, evaluate


def test_names_and_directions_are_in_the_order_of_the_declaration() -> None:
    found = declared([Ratio("hit_rate", "hits", "total"), "regression", Classification])
    assert found.to_record() == [
        "hit_rate:max", "mae:min", "rmse:min", "r2:max",
        "accuracy:max", "balanced_accuracy:max", "f1:max", "auc:max", "loss:min",
    ]  # fmt: skip
    assert metrics.names_in(found.to_record())["mae"] == "min"
    assert metrics.names_in(["accuracy"]) == {"accuracy": ""}
    assert declared([Regression(center=3.0)]).kinds == (Regression(3.0),)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        (["regresion"], "did you mean regression"),
        ([3], "a int is none of classification, multilabel"),
        (["regression", Ratio("mae", "a", "b")], "mae is declared twice"),
        ([Mean("loss", "a")], "loss is declared twice"),
        ([Mean(f"m{i}", f"sum{i}") for i in range(25)], "more than 24 sums"),
    ],
)
def test_a_declaration_that_cannot_be_used_is_refused(entries: list[Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        declared(entries)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Ratio("Dice", "a", "b"), "is no name"),
        (lambda: Ratio("dice", "a", "b", "up"), "write max or min"),  # type: ignore[arg-type]
        (lambda: Macro("dice", "a"), "needs a denominator"),
    ],
)
def test_a_metric_that_cannot_be_used_is_refused(make: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dice.ratio.max", [1]),
        ("dice.ratio.max", [1, float("nan")]),
        ("dice.ratio.max", 1),
        ("dice.macro.max", [1, 2]),
        ("dice.macro.max", [[1, 2], [1]]),
        ("dice.macro.max", [[1] * 257] * 2),
        ("dice.macro.max", [["a"], [1]]),
        ("r2.r2.max", [1, 2, 3]),
        ("dice.code.max", [1, 2]),
        ("Dice.ratio.max", [1, 2]),
        ("dice.ratio.up", [1, 2]),
    ],
)
def test_an_aggregator_takes_no_other_values(key: str, value: Any) -> None:
    with pytest.raises(MessageError, match=r"metrics\."):
        metrics.check({"num_examples": 3, key: value})


def test_sums_are_merged_over_the_clients_that_have_them_and_beside_the_version() -> None:
    a = {"num_examples": 2, "dice.macro.max": [[1, 0], [2, 2]]}
    b = {"num_examples": 3, "dice.macro.max": [[1, 0], [2, 0]], "mae.ratio.min": [1.5, 3]}
    merged = metrics.merge_clients({"a": a, "b": b, "c": {"num_examples": 1}})
    assert metrics.finish(merged) == {"dice": 0.25, "mae": 0.5}
    assert metrics.told_by(merged) == {"dice": (2, 5), "mae": (1, 3)}
    beside = metrics.beside("personal", b)
    metrics.check(beside)
    assert metrics.finish(beside) == {"personal_dice": 0.5, "personal_mae": 0.5}
    assert metrics.beside("personal", {"x.macro.max": [[1] * 33] * 2}) == {}


def test_a_loss_and_its_items_are_of_the_same_clients() -> None:
    by_items = {"num_examples": 2, "loss_sum": 30.0, "loss_items_sum": 10}
    plain = {"num_examples": 2, "loss_sum": 4.0}
    both = metrics.merge_clients({"a": by_items, "b": by_items, "c": plain})
    assert metrics.finish(both) == {"loss": 3.0}
    most = metrics.merge_clients({"a": by_items, "b": plain, "c": plain})
    assert metrics.finish(most) == {"loss": 2.0}


@pytest.mark.parametrize(
    ("kind", "scores", "target", "text"),
    [
        ("multilabel", torch.zeros(4, 3), torch.zeros(4, 2), r"multilabel wants .* \(4, 3\) and the target \(4, 2\)"),
        ("regression", torch.zeros(4, 3), torch.zeros(4), "as many predictions as targets"),
        ("segmentation", torch.zeros(4, 3), torch.zeros(4, 2, 2), r"\(B, C, \.\.\.\)"),
        ("segmentation", torch.zeros(4, 2, 5), torch.full((4, 5), 2), "targets from 0 to 1"),
        ("language", torch.zeros(4, 3), torch.zeros(4).long(), r"\(B, T, V\)"),
    ],
)  # fmt: skip
def test_outputs_of_another_kind_are_refused_with_their_shapes(
    kind: str, scores: Any, target: Any, text: str
) -> None:
    options = EvaluationOptions(declared=declared([kind]))
    with pytest.raises(ConfigError, match=text):
        evaluate(
            nn.Identity(), TensorDataset(scores, target), lambda o, t: o.sum(), options=options
        )


@pytest.mark.parametrize(
    ("own", "text"),
    [
        (lambda output, target: None, "own_sums returned NoneType"),
        (lambda output, target: {"hit": 1}, "needs the sum hits"),
        (lambda output, target: {"hits": [1, 2]}, "needs a number"),
        (lambda output, target: {"hits": "Smith"}, "no number"),
        (lambda output, target: {"hits": [0.0] * 61}, "at most 60"),
    ],
)
def test_sums_of_a_task_that_cannot_be_used_are_refused(own: Any, text: str) -> None:
    options = EvaluationOptions(
        hooks=BatchHooks(own_sums=own), declared=declared([Mean("rate", "hits")])
    )
    data = TensorDataset(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(ConfigError, match=text) as refused:
        evaluate(nn.Identity(), data, lambda o, t: o.sum(), options=options)
    assert "Smith" not in refused.value.public


@pytest.mark.parametrize(
    ("raw", "is_read"),
    [
        (["dice:max", "loss:min"], True),
        (["accuracy", "loss"], True),
        ([f"m{n}:max" for n in range(64)], True),
        ([f"m{n}:max" for n in range(65)], False),
        (["m" * 64 + ":max"], True),
        (["m" * 65 + ":max"], False),
        (["dice:max", "dice:min"], False),
        (["dice", "dice"], False),
        (["loss:max"], False),
        (["dice:best"], False),
        (["dice:max\n"], False),
        (["DICE:max"], False),
        (["<b>:max"], False),
        ([["dice"]], False),
        ({"dice": "max"}, False),
        ("dice:max", False),
        (None, False),
    ],
)
def test_a_record_that_another_machine_has_written_is_read_whole_or_not_at_all(
    raw: Any, is_read: bool
) -> None:
    assert metrics.parse_record(raw) == (tuple(raw) if is_read else ())


def test_every_list_that_may_be_declared_can_be_recorded() -> None:
    most = declared([Mean(f"m{n}" + "x" * 40, "hits") for n in range(63)])
    assert metrics.parse_record(most.to_record()) == tuple(most.to_record())
    with pytest.raises(ConfigError, match="65 metrics with the loss; declare 64 at most"):
        declared([Mean(f"m{n}", "hits") for n in range(64)])
    kinds = declared(["classification", "multilabel", "regression", "segmentation", "language"])
    assert metrics.parse_record(kinds.to_record()) == tuple(kinds.to_record())
