"""A model that does not take a batch: the error names the shapes of both, and no value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from fl_queue.errors import ConfigError
from fl_queue.training import sgd


class Flat(nn.Module):
    """A perceptron that flattens its images by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(784, 20), nn.Linear(30, 2)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.last(self.first(images.view(-1, 784)))
        return found


class Masked(nn.Module):
    """A model of two arguments."""

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        return words * mask


def train(*what: Any) -> Any:
    return sgd.local_sgd(*what, seed=1, epochs=1, batch_size=4, learning_rate=0.1)


def evaluate(*what: Any) -> Any:
    return sgd.evaluate(*what)


@pytest.mark.parametrize(
    ("model", "x", "text"),
    [
        (nn.Linear(784, 2), torch.zeros(4, 1, 28, 28),
         "input (4, 1, 28, 28), first layer wants 784 (RuntimeError in forward)"),
        (nn.Conv2d(3, 2, 3), torch.zeros(4, 1, 28, 28), "input (4, 1, 28, 28), first layer wants 3 channels"),
        (nn.Conv2d(3, 2, 3), torch.zeros(4, 30), "input (4, 30), first layer wants 3 channels"),
        (nn.BatchNorm1d(7), torch.zeros(4, 6), "input (4, 6), first layer wants 7 channels"),
        (nn.LayerNorm(7), torch.zeros(4, 6), "input (4, 6), first layer wants (7,) at the end"),
        (nn.GRU(5, 3), torch.zeros(4, 2, 6), "input (4, 2, 6), first layer wants 5"),
        (nn.Embedding(9, 2), torch.full((4, 3), 9), "input int64 (4, 3), first layer wants whole numbers below 9"),
        (nn.Linear(3, 2), torch.zeros(4, 3).double(), "input float64 (4, 3), the model's weights are float32"),
        (Flat(), torch.zeros(4, 1, 28, 28), "input (4, 1, 28, 28), layer last wants 30"),
        (Flat(), torch.zeros(4, 30), "input (4, 30), first layer wants 784"),
        (Masked(), torch.zeros(4, 3), "input (4, 3), forward takes words, mask (TypeError in forward)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("run", [train, evaluate])
def test_both_shapes_are_named(
    run: Callable[..., Any], model: nn.Module, x: Tensor, text: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        run(model, TensorDataset(x, torch.zeros(4).long()), functional.cross_entropy)
    assert refused.value.field == "run.task"
    assert f"the model does not take a batch of the data: {text}" in refused.value.public
    assert refused.value.reason.startswith(refused.value.public)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("of another kind"),
        RuntimeError(
            "DataLoader worker (pid 7) is killed by signal: Killed. Sizes of shared memory"
        ),
        torch.OutOfMemoryError("CUDA out of memory; sizes"),
        KeyError("size"),
        ValueError("Smith is no name"),
    ],
)
def test_any_other_error_is_raised_as_it_is(error: Exception) -> None:
    class Broken(nn.Module):
        def forward(self, x: Any) -> Any:
            raise error

    data = TensorDataset(torch.zeros(4, 3), torch.zeros(4).long())
    with pytest.raises(type(error)) as raised:
        sgd.evaluate(Broken(), data, functional.cross_entropy)
    assert raised.value is error
