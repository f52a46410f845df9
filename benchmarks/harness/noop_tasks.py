"""
Tasks whose training costs next to nothing, so that a round shows what everything else costs.

A worker must allow them: ``--task-allow benchmarks.harness.noop_tasks:*``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fl_queue.common.seeding import seed_for
from fl_queue.tasks.base import ClientData, OnEpoch, Task
from fl_queue.tasks.context import ClientContext
from fl_queue.training.sgd import Samples

#: Elements of a tensor at most; models of real tasks have many tensors, too.
_LARGEST = 4_000_000


class Flat(nn.Module):
    """``count`` parameters, all 0, in tensors of at most four million. Input (B, 1) -> (B, 2)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        for index, start in enumerate(range(0, count, _LARGEST)):
            size = min(_LARGEST, count - start)
            self.register_parameter(f"w{index:04d}", nn.Parameter(torch.zeros(size)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores that depend on every parameter."""
        total = torch.stack([tensor.mean() for tensor in self.parameters()]).sum()
        return inputs * total + torch.zeros(1, 2)


class AddConstant(Task):
    """Training adds a constant to ``task.parameters`` float32 parameters. No validation data."""

    def build_model(self) -> nn.Module:
        """Flat array of ``task.parameters`` parameters."""
        return Flat(int(self.options["parameters"]))

    def client_data(self, context: ClientContext) -> ClientData:
        """Four constant samples, none for validation."""
        inputs, target = torch.ones(4, 1), torch.zeros(4, dtype=torch.int64)
        none = TensorDataset(inputs[:0], target[:0])
        return ClientData(TensorDataset(inputs, target), none)

    def test_data(self, data_dir: str) -> Samples:
        """The training samples."""
        return self.client_data(None).train  # type: ignore[arg-type]

    def train(
        self, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
    ) -> Mapping[str, Any]:
        """Add a constant that differs for each client and round to what is trained."""
        # Another one each time: equal updates would share their chunks on the server.
        drawn = seed_for(context.seed, context.round, context.client) % 1000
        with torch.no_grad():
            for tensor in model.parameters():
                if tensor.requires_grad:
                    tensor.add_(0.001 + drawn * 1e-6)
        return {"num_examples": 4}


class OneStep(AddConstant):
    """The same model, trained with one real step of SGD: its gradients are as large as it is."""

    def train(
        self, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
    ) -> Mapping[str, Any]:
        """Train as `Task` does."""
        return Task.train(self, model, data, context, on_epoch)


class Layers(nn.Module):
    """Square layers whose weights are frozen, and adapters of a rank beside them. Input (B, 1) -> (B, 2)."""

    def __init__(self, layers: int, width: int, rank: int, shift: float) -> None:
        super().__init__()
        for index in range(layers):
            base = nn.Parameter(torch.randn(width, width) + shift, requires_grad=False)
            self.register_parameter(f"base{index}", base)
            self.register_parameter(f"a{index}", nn.Parameter(torch.zeros(rank, width)))
            self.register_parameter(f"b{index}", nn.Parameter(torch.zeros(width, rank)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores that depend on every adapter."""
        trained = [tensor.mean() for tensor in self.parameters() if tensor.requires_grad]
        return inputs * torch.stack(trained).sum() + torch.zeros(1, 2)


class Adapters(AddConstant):
    """
    Training adds a constant to the adapters of ``task.layers`` layers of ``task.width``, of ``task.rank``.

    With ``task.foreign = true`` the clients build other frozen weights than the evaluator, which makes
    version 0: they have to fetch them.
    """

    def build_model(self) -> nn.Module:
        """Layers with adapters."""
        layers, width, rank = (int(self.options[name]) for name in ("layers", "width", "rank"))
        is_site = os.environ.get("FLQ_SITE_WORKER", "").startswith("site")
        shift = 1.0 if is_site and self.options.get("foreign") else 0.0
        return Layers(layers, width, rank, shift)
