"""A task's declared metrics in a whole update: as a class, as a function, with an evaluation of its own."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fl_queue import metrics
from fl_queue.client import local_update
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError
from fl_queue.metrics import Language, Macro, Ratio, Segmentation
from fl_queue.tasks import ClientContext, ClientData, Task, calls
from fl_queue.tasks.loading import load_task

DRAWN = torch.Generator().manual_seed(4)
IMAGES = torch.randn(20, 1, 6, 5, generator=DRAWN)
SCANNERS = torch.randint(0, 3, (20,), generator=DRAWN)
MASKS = (IMAGES[:, 0] > 0.3).long()


class Net(nn.Module):
    """Log-odds of each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, images: Tensor, scanners: Tensor) -> Tensor:
        found: Tensor = self.layer(images)
        return found


DECLARED = [
    Ratio("recall", "found", "there", "max"),
    Macro("recall_by_scanner", "found_by_scanner", "there_by_scanner", "max"),
    Segmentation(background=False),
]


def loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(output[:, 0], target.float())


def own_sums(output: Tensor, batch: Any) -> dict[str, Any]:
    _, scanners, masks = batch
    found = ((output[:, 0] > 0) & (masks == 1)).flatten(1).sum(1)
    there = (masks == 1).flatten(1).sum(1)
    by_scanner = nn.functional.one_hot(scanners, 3)
    return {
        "found": found.sum(),
        "there": there.sum(),
        "found_by_scanner": (found[:, None] * by_scanner).sum(0),
        "there_by_scanner": (there[:, None] * by_scanner).sum(0),
    }


class Vessels(Task):
    """The task of the guide."""

    def build_model(self) -> nn.Module:
        return Net()

    def client_data(self, context: ClientContext) -> ClientData:
        return ClientData(
            TensorDataset(IMAGES[:12], SCANNERS[:12], MASKS[:12]),
            TensorDataset(IMAGES[12:], SCANNERS[12:], MASKS[12:]),
        )

    def loss(self, output: Any, target: Any) -> Tensor:
        return loss(output, target)

    def metrics(self) -> Any:
        return DECLARED

    def own_sums(self, output: Any, batch: Any) -> dict[str, Any]:  # type: ignore[override]
        return own_sums(output, batch)


class ByHand(Vessels):
    """The same with an evaluation of its own."""

    def evaluate(self, model: nn.Module, dataset: Any, context: ClientContext) -> Any:
        batch = dataset[:]
        model.eval()
        with torch.no_grad():
            output = model(*batch[:2])
        return {"num_examples": len(dataset), "loss_sum": 1.0, **own_sums(output, batch)}


def vessels() -> dict[str, Any]:
    return {
        "model": Net(), "train": TensorDataset(IMAGES, SCANNERS, MASKS), "loss": loss,
        "metrics": DECLARED, "own_sums": own_sums,
    }  # fmt: skip


def updated(monkeypatch: pytest.MonkeyPatch, code: Any) -> Any:
    own = types.ModuleType("vessels")
    own.task = code  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vessels", own)
    raw = {"run": {"task": "vessels:task"}, "train": {"batch_size": 2}}
    task = load_task("vessels:task", RunConfig.from_dict(raw), ["vessels:task"])
    manifest, base = local_update.initial_model(task, 0)
    context = ClientContext.of(task.config, client="a", run="r", round_number=1)
    return local_update.train_update(task, manifest, base, context)


@pytest.mark.parametrize("code", [Vessels, vessels, ByHand])
def test_declared_metrics_are_in_the_update(monkeypatch: pytest.MonkeyPatch, code: Any) -> None:
    made = updated(monkeypatch, code)
    metrics.check(made.metrics)
    found = metrics.finish(made.metrics)
    names = {"loss", "recall", "recall_by_scanner"}
    assert found.keys() == names | (set() if code is ByHand else {"dice", "iou", "pixel_accuracy"})
    assert 0 <= found["recall"] <= 1


@pytest.mark.parametrize("declared", [None, "regression", 3])
def test_metrics_that_are_no_list_are_refused(
    monkeypatch: pytest.MonkeyPatch, declared: Any
) -> None:
    class Wrong(Vessels):
        def metrics(self) -> Any:
            return declared

    with pytest.raises(ConfigError, match=r"metrics\(\) returned .*; return a list"):
        updated(monkeypatch, Wrong)


def test_a_task_of_language_counts_and_weighs_tokens() -> None:
    class Reading(Vessels):
        def loss(self, output: Any, target: Any) -> Tensor:
            return Task.loss(self, output, target)

        def metrics(self) -> Any:
            return [Language(shift=1)]

    task = Reading(RunConfig.from_dict({}))
    scores, target = torch.randn(2, 4, 7, generator=DRAWN), torch.tensor([[0, 1, 2, -100]] * 2)
    assert task.hooks.items is not None
    assert task.hooks.items((scores, target)) == 4
    expected = nn.functional.cross_entropy(scores[:, :2].flatten(0, 1), target[:, 1:3].flatten())
    assert torch.allclose(task.loss(scores, target), expected)


class Undeclared(Vessels):
    def metrics(self) -> Any:
        return ()


class Judged(Undeclared):
    def evaluate(self, model: nn.Module, dataset: Any, context: ClientContext) -> Any:
        return {"num_examples": 1}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (Vessels, ["recall:max", "recall_by_scanner:max", "dice:max", "iou:max", "pixel_accuracy:max", "loss:min"]),
        (Undeclared, ["accuracy", "auc", "f1", "loss"]),
        (Judged, []),
    ],
)  # fmt: skip
def test_what_a_run_records_of_an_own_task(kind: type[Task], names: list[str]) -> None:
    assert calls.metric_names(kind(RunConfig.from_dict({"run": {"task": "vessels:task"}}))) == names
    assert calls.metric_names(kind(RunConfig.from_dict({"run": {"task": "mnist-2nn"}}))) == []
