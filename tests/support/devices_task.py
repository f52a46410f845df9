"""Tasks for trainings on several devices: layers that see the whole batch, losses over tokens, and processes that fail."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from fl_queue.metrics import Language
from fl_queue.tasks import ClientContext, ClientData, Task, local_sgd

#: No multiple of a batch: the last one is smaller.
COUNT = 20


def is_second() -> bool:
    """Whether this is the second of several processes that train."""
    return dist.is_initialized() and dist.get_rank() == 1


class Normed(Task):
    """Two layers of BatchNorm, one of which averages over all batches; a regression of classes."""

    def build_model(self) -> nn.Module:
        """The network."""
        return nn.Sequential(
            nn.Unflatten(1, (2, 3)),
            nn.Conv1d(2, 4, 2),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.BatchNorm1d(8, momentum=None, affine=False),
            nn.Linear(8, 3),
        )

    def client_data(self, context: ClientContext) -> ClientData:
        """Samples of three classes, drawn by a fixed seed."""
        draw = torch.Generator().manual_seed(7)
        inputs = torch.randn(COUNT + 20, 6, generator=draw)
        labels = (inputs.sum(1) > 0).long() + (inputs[:, 0] > 1).long()
        whole = [
            TensorDataset(inputs[part], labels[part]) for part in (slice(COUNT), slice(COUNT, None))
        ]
        return ClientData(whole[0], whole[1])


class Tokens(Task):
    """A model of language, whose batches hold different numbers of tokens; some samples have none."""

    def build_model(self) -> nn.Module:
        """The network."""
        return nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 11))

    def metrics(self) -> list[Any]:
        """Those of language: the loss is a mean over tokens."""
        return [Language(shift=0)]

    def client_data(self, context: ClientContext) -> ClientData:
        """Texts of 5 tokens, of which the first ones count."""
        draw = torch.Generator().manual_seed(7)
        texts = torch.randint(0, 11, (COUNT, 5), generator=draw)
        labels = (texts + 1) % 11
        counted = torch.randint(0, 6, (COUNT, 1), generator=draw)
        labels[torch.arange(5).expand(COUNT, 5) >= counted] = -100
        return ClientData(TensorDataset(texts, labels), TensorDataset(texts, labels))


class Plain(Normed):
    """A model without layers over the batch."""

    def build_model(self) -> nn.Module:
        """The network."""
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


class Amounts(Plain):
    """Log-odds by their loss in the first batch of an evaluation, and amounts by that of the others."""

    def build_model(self) -> nn.Module:
        """The network."""
        return nn.Linear(6, 1)

    def client_data(self, context: ClientContext) -> ClientData:
        """The samples of the others, with other targets."""
        found = super().client_data(context)
        parts = []
        for samples in (found.train, found.validation):
            inputs, labels = cast(TensorDataset, samples).tensors
            amounts = (labels > 0).float().reshape(-1, 1)
            amounts[0], amounts[7::7] = 0, 1
            parts.append(TensorDataset(inputs, amounts))
        return ClientData(parts[0], parts[1])

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Of a batch that begins with 0: of log-odds."""
        if torch.is_grad_enabled() or not target[0]:
            return functional.binary_cross_entropy_with_logits(output, target)
        return functional.mse_loss(output, target)


class OwnLoop(Plain):
    """Trains by a loop of its own."""

    def train(self, model: Any, data: Any, context: ClientContext, on_epoch: Any) -> Any:
        """The same as the default, which cannot be seen."""
        return local_sgd(model, data.train, functional.cross_entropy, self.sgd_options(context))


class _Counted(nn.Module):
    """Counts what it has seen in a buffer."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, batch: Tensor) -> Tensor:
        """The batch."""
        if self.training:
            self.seen += batch.sum().detach()
        return batch


class Remembers(Plain):
    """A model with a buffer that follows the samples."""

    def build_model(self) -> nn.Module:
        """The network."""
        return nn.Sequential(_Counted(), nn.Linear(6, 3))


class _Samples(Dataset[Any]):
    """Samples, of which the one of the second process's third reading does something."""

    def __init__(self, deed: Any) -> None:
        self._deed, self._read = deed, 0

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self._read += 1
        if self._read > 2 and is_second():
            self._deed()
        return torch.ones(6) * index / COUNT, index % 3


def _deeds() -> Iterator[tuple[str, Any]]:
    def fail() -> None:
        raise ValueError("the second process fails")

    yield "Fails", fail
    yield "Dies", lambda: os.kill(os.getpid(), signal.SIGKILL)
    yield "Sleeps", lambda: time.sleep(600)


class _Deed(Plain):
    """Its second process does something in the middle of a training."""

    deed: Any = None

    def client_data(self, context: ClientContext) -> ClientData:
        """Samples, without a validation."""
        samples = _Samples(type(self).deed)
        return ClientData(samples, torch.utils.data.Subset(samples, []))


Fails, Dies, Sleeps = (
    type(name, (_Deed,), {"deed": staticmethod(deed), "__module__": __name__})
    for name, deed in _deeds()
)
