"""The documented forms of batches: how the model is called, where the target is, which loss is taken."""

from __future__ import annotations

import logging
from collections import OrderedDict, UserDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from fl_queue import metrics
from fl_queue.errors import ConfigError, DataError
from fl_queue.tasks.base import Task
from fl_queue.training import batches, sgd
from fl_queue.training.batches import (
    BatchHooks,
    BatchPass,
    default_forward,
    own_loss,
    target_of,
    to_device,
)
from fl_queue.training.evaluation import EvaluationOptions

X, Y = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0])


class Named(nn.Module):
    """The arguments that it is called with."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return arguments, named


class Words(nn.Module):
    """Scores of words; its loss, too, where it has labels: as a model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(
        self, input_ids: Tensor, mask: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        logits = self.table(input_ids).sum(1)
        if labels is None:
            return {"logits": logits}
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class Pair(NamedTuple):
    """A named batch."""

    image: Tensor
    target: Tensor


@pytest.mark.parametrize(
    ("batch", "arguments", "named", "target"),
    [
        ((X, Y), (X,), {}, Y),
        ([X, Y], (X,), {}, Y),
        (Pair(X, Y), (X,), {}, Y),
        ((X, X + 1, Y), (X, X + 1), {}, Y),
        (((X, X + 1), Y), (X, X + 1), {}, Y),
        (([X, X + 1], Y), (X, X + 1), {}, Y),
        (({"x": X}, Y), (), {"x": X}, Y),
        ({"x": X, "labels": Y}, (), {"x": X, "labels": Y}, Y),
        ({"x": X, "label": Y}, (), {"x": X, "label": Y}, Y),
        ({"target": Y, "x": X}, (), {"x": X, "target": Y}, Y),
        (UserDict({"x": X, "labels": Y}), (), {"x": X, "labels": Y}, Y),
    ],
)
def test_the_model_is_called_as_the_table_has_it(
    batch: Any, arguments: Any, named: Any, target: Any
) -> None:
    found, by_name = default_forward(Named(), batch)
    assert len(found) == len(arguments)
    assert all(map(torch.equal, found, arguments))
    assert by_name.keys() == named.keys()
    assert all(torch.equal(by_name[key], named[key]) for key in named)
    assert torch.equal(target_of(batch), target)


def test_keys_that_the_model_does_not_take_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    batches._note_left_out.cache_clear()
    batch = {"input_ids": torch.ones(2, 3).long(), "idx": X, "label": Y[:2]}
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert default_forward(Words(), batch).keys() == {"logits"}
    assert [record.message for record in caplog.records] == [
        "batch: idx are no arguments of Words.forward, and are left out"
    ]


@pytest.mark.parametrize("batch", [X, {"x": X}, (X,), None])
def test_a_batch_of_another_form_needs_a_forward(batch: Any) -> None:
    with pytest.raises(DataError, match=r"forward\(model, batch\)") as refused:
        BatchPass(Named(), lambda output, target: X.sum()).output(batch)
    assert "forward(model, batch)" in refused.value.public
    own = BatchPass(Named(), lambda output, batch: X.sum(), lambda model, batch: model(batch))
    assert own.output(batch)[0] == (batch,)
    assert target_of(batch) is None


@pytest.mark.parametrize(
    ("loss", "is_whole"),
    [
        (lambda output, target: target, False),
        (lambda output, batch: batch, True),
        (lambda output, batch, weight=1: batch, True),
        (lambda batch, target: target, False),
        (lambda *both: both[1], False),
    ],
)
def test_the_name_of_the_second_argument_decides_what_the_loss_is_given(
    loss: Callable[..., Any], is_whole: bool
) -> None:
    batch = (X, Y)
    assert BatchPass(Named(), loss).loss(X, batch) is (batch if is_whole else Y)


@dataclass
class Output:
    """An output with attributes, as transformers' are."""

    logits: Tensor
    loss: Tensor | None = None


def default_loss(output: Any, target: Any = Y) -> Tensor:
    return Task.loss(SimpleNamespace(metrics=tuple), output, target)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "output",
    [
        X,
        (X, X + 1),
        [X],
        {"logits": X},
        OrderedDict(logits=X),
        Output(X),
        {"logits": X, "loss": None},
    ],
)
def test_cross_entropy_is_of_the_scores_in_the_output(output: Any) -> None:
    assert torch.equal(default_loss(output), functional.cross_entropy(X, Y))


@pytest.mark.parametrize(
    "output",
    [Output(X, torch.tensor(7.0)), {"loss": torch.tensor([6.0, 8.0])}],
)
def test_a_loss_that_the_output_has_is_taken(output: Any) -> None:
    assert float(default_loss(output, None)) == 7.0
    found = own_loss(output)
    assert found is not None
    assert found.ndim == 0


def test_an_output_without_loss_and_a_batch_without_target_are_refused() -> None:
    with pytest.raises(DataError, match=r"loss\(output, batch\)"):
        default_loss(X, None)


def words(index: int) -> dict[str, Any]:
    return {"input_ids": torch.tensor([index % 5, 1, 2]), "labels": index % 3}


@pytest.mark.parametrize("has_loss", [True, False])
def test_mappings_train_and_are_evaluated_with_the_loss_of_the_model_or_of_its_scores(
    has_loss: bool,
) -> None:
    class Silent(Words):
        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return super().forward(input_ids)

    def trained(model: nn.Module, data: Any, loss: Any) -> tuple[dict[str, Tensor], Any]:
        model.load_state_dict(start)
        sgd.local_sgd(model, data, loss, seed=2, epochs=2, batch_size=4, learning_rate=0.5)
        return model.state_dict(), sgd.evaluate(model, data, loss)

    start = Words().state_dict()
    state, sums = trained(Words() if has_loss else Silent(), [*map(words, range(12))], default_loss)

    class Plain(Words):
        def forward(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(input_ids)["logits"]

    samples = [*map(words, range(12))]
    pairs = TensorDataset(
        torch.stack([one["input_ids"] for one in samples]),
        torch.tensor([one["labels"] for one in samples]),
    )
    expected = trained(Plain(), pairs, functional.cross_entropy)
    assert torch.equal(state["table.weight"], expected[0]["table.weight"])
    assert sums == expected[1]
    assert "accuracy" in metrics.finish(sums)


@pytest.mark.parametrize("items", [lambda batch: None, lambda batch: 2.5, lambda batch: -1])
def test_items_that_are_no_count_are_refused(items: Any) -> None:
    data = TensorDataset(X, Y)
    with pytest.raises(ConfigError, match=r"items\(batch\)"):
        sgd.local_sgd(
            nn.Linear(3, 3), data, functional.cross_entropy, seed=1, epochs=1, batch_size=2,
            learning_rate=0.1, items=items,
        )  # fmt: skip


def test_a_batch_of_no_items_is_passed_over() -> None:
    target = torch.tensor([0, 1, -100, -100])
    model = nn.Linear(3, 3)
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def items(batch: Any) -> int:
        return int((batch[1] != -100).sum())

    sums = sgd.local_sgd(
        model, TensorDataset(X, target), functional.cross_entropy, seed=1, epochs=1, batch_size=1,
        accumulate=4, learning_rate=0.1, items=items,
    )  # fmt: skip
    assert all(torch.isfinite(one).all() for one in model.parameters())
    assert not torch.equal(model.weight, start["weight"])
    assert sums["loss_items_sum"] == 2
    options = EvaluationOptions(hooks=BatchHooks(items=items), batch_size=1)
    found = sgd.evaluate(model, TensorDataset(X, target), functional.cross_entropy, options=options)
    expected = functional.cross_entropy(model(X), target)
    assert metrics.finish(found)["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_what_moves_itself_is_moved_by_its_method() -> None:
    class Encoded(UserDict[str, Tensor]):
        def to(self, device: str) -> Encoded:
            return Encoded({key: value.to(device) for key, value in self.items()})

    moved = to_device({"a": Encoded(x=X), "b": "text", "c": OrderedDict(y=Y)}, "meta")
    assert moved["a"]["x"].device.type == "meta"
    assert type(moved["c"]) is OrderedDict
    assert moved["b"] == "text"
