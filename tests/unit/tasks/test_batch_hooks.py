"""A task's collate, forward, items and loss of whole batches, as class and as function, in a whole update."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_queue import metrics
from fl_queue.client import local_update
from fl_queue.config.run_config import RunConfig
from fl_queue.tasks import ClientContext, ClientData, Task, pad
from fl_queue.tasks.loading import load_task
from fl_queue.tasks.site_facts import facts_of

WORDS = [torch.arange(1 + index % 4) for index in range(40)]
SAMPLES = [{"ids": word, "next": word + 1, "labels": 1} for word in WORDS]


class Reader(nn.Module):
    """Scores (B, T, 6) of the word after each word."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 6)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.table(ids)
        return found


def collate(samples: list[Any]) -> Any:
    return pad(samples, {"next": -100})


def forward(model: nn.Module, batch: Any) -> Any:
    return model(batch["ids"])


def items(batch: Any) -> int:
    return int((batch["next"] != -100).sum())


def loss(output: Any, batch: Any) -> Tensor:
    return functional.cross_entropy(output.flatten(0, 1), batch["next"].flatten())


class Reading(Task):
    """The same as a class."""

    def build_model(self) -> nn.Module:
        return Reader()

    def client_data(self, context: ClientContext) -> ClientData:
        return ClientData(SAMPLES[:30], SAMPLES[30:])  # type: ignore[arg-type]

    def collate(self, samples: list[Any]) -> Any:
        return collate(samples)

    def forward(self, model: nn.Module, batch: Any) -> Any:
        return forward(model, batch)

    def items(self, batch: Any) -> int:
        return items(batch)

    def loss(self, output: Any, batch: Any) -> Tensor:  # type: ignore[override]
        return loss(output, batch)


def reading() -> dict[str, Any]:
    return {
        "model": Reader(), "train": SAMPLES, "loss": loss, "collate": collate, "forward": forward,
        "items": items,
    }  # fmt: skip


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Task:
    own = types.ModuleType("words")
    own.task = request.param  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "words", own)
    raw = {"run": {"task": "words:task"}, "train": {"batch_size": 4, "accumulate": 2, "epochs": 20}}
    return load_task("words:task", RunConfig.from_dict(raw), ["words:task"])


@pytest.mark.parametrize("loaded", [Reading, reading], indirect=True)
def test_a_task_with_batches_of_its_own_trains(loaded: Task) -> None:
    manifest, base = local_update.initial_model(loaded, 0)
    context = ClientContext.of(loaded.config, client="a", run="r", round_number=1)
    made = local_update.train_update(loaded, manifest, base, context)
    before, after = metrics.finish(made.metrics), metrics.finish(made.train_metrics)
    assert after["loss"] < before["loss"]
    # The mean over tokens, and not over samples of up to four of them.
    model = loaded.build_model()
    model.load_state_dict({"table.weight": torch.from_numpy(base["table.weight"])})
    held_out: Any = loaded.client_data(context).validation
    batch = collate([held_out[index] for index in range(len(held_out))])
    assert before["loss"] == pytest.approx(float(loss(forward(model, batch), batch)), rel=1e-5)
    assert "loss_items" not in before
    metrics.check(made.metrics)
    metrics.check(made.train_metrics)


def test_a_class_without_overrides_has_no_hooks() -> None:
    class Plain(Reading):
        collate = None  # type: ignore[assignment]
        forward, items = Task.forward, Task.items

    task = Plain(RunConfig.from_dict({}))
    assert task.hooks == (task.hooks.__class__)()
    assert task.items((torch.zeros(7, 2), torch.zeros(7))) == 7


def test_facts_of_mappings_are_of_their_first_input() -> None:
    task = Reading(RunConfig.from_dict({}))
    data = task.client_data(ClientContext.of(task.config, client="a", run="r", round_number=1))
    assert facts_of(task, data)["input"] == "int64 (?)"
