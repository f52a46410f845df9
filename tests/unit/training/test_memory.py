"""Memory that is not there is named by the part of the training that asked for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fl_queue.client.local_update import initial_model, train_update
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import OutOfMemory
from fl_queue.tasks.base import ClientData, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.error_disclosure import disclosed
from fl_queue.training import memory

#: More than the addresses of a process.
HUGE = 1 << 50


class Greedy(torch.autograd.Function):
    """Asks for memory in the backward pass."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient + torch.empty(HUGE)


class Needing(nn.Module):
    def __init__(self, part: str) -> None:
        super().__init__()
        self.part, self.layer = part, nn.Linear(3, 2, bias=part != "bias")
        if part == "the model":
            torch.empty(HUGE)

    def forward(self, x: Tensor) -> Tensor:
        if self.part == "an evaluation" or (self.part == "forward" and self.training):
            torch.empty(HUGE)
        return self.layer(Greedy.apply(x * self.layer.weight[0]) if self.part == "backward" else x)


class Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, part: str) -> None:
        self.part = part

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        if self.part == "a batch":
            np.empty(HUGE, np.float32)
        return torch.ones(3), index % 2


class Hungry(Task):
    def build_model(self) -> nn.Module:
        return Needing(self.options["part"])

    def client_data(self, context: ClientContext) -> ClientData:
        if self.options["part"] == "the data":
            np.empty(HUGE, np.float32)
        rows = TensorDataset(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64))
        return ClientData(Rows(self.options["part"]), rows)

    def train(self, model: Any, data: ClientData, context: ClientContext, on_epoch: Any) -> Any:
        if self.options["part"] == "the training":
            torch.empty(HUGE)
        return super().train(model, data, context, on_epoch)


class HungrySGD(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        torch.empty(HUGE)


@pytest.mark.parametrize("part", memory.FIXES)
def test_a_part_that_asks_for_too_much_is_named(part: str) -> None:
    own = "mine:Optimizer" if part == "the optimizer" else "sgd"
    config = RunConfig.from_dict(
        {"run": {"task": "mine:Hungry"}, "task": {"part": part}, "train": {"optimizer": own}}
    )
    task = Hungry(config)
    task.own_optimizer = lambda: lambda parameters, lr: HungrySGD(parameters, lr)
    context = ClientContext.of(config, client="a", run="r", round_number=1)

    with pytest.raises(OutOfMemory) as caught:
        train_update(task, *initial_model(task, 1), context)

    assert f"out of memory in {part}" in str(caught.value)
    assert str(caught.value).endswith(memory.FIXES[part])
    assert str(caught.value) in disclosed(caught.value, config)


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0"),
            "2.5 GiB",
        ),
        (RuntimeError("can't allocate memory: you tried to allocate 1536 bytes."), "1.5 KiB"),
        (RuntimeError("can't allocate memory: you tried to allocate 12 bytes."), "12 bytes"),
        (MemoryError(), ""),
    ],
)
def test_the_amount_is_shown_where_it_is_known(error: Exception, asked: str) -> None:
    found = memory.error_of(error, "forward")
    assert found is not None
    shown = f", which asked for {asked}" if asked else ""
    assert str(found) == f"out of memory in forward{shown}; {memory.FIXES['forward']}"


def test_another_error_stays_as_it_is() -> None:
    assert memory.error_of(RuntimeError("sizes do not match"), "forward") is None
    with pytest.raises(ValueError, match="out of memory"), memory.naming("forward"):
        raise ValueError("out of memory")
