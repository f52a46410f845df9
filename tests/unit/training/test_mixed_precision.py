"""Training in mixed precision: the bits of torch's autocast, and none of it when it is off."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fl_queue.errors import ConfigError
from fl_queue.training import sgd
from fl_queue.training.mixed_precision import Precision
from fl_queue.training.plain_sgd import PlainSGD

GENERATOR = torch.Generator().manual_seed(3)
ROWS, TARGET = torch.randn(24, 6, generator=GENERATOR), torch.arange(24) % 3
CAST = {
    "float32": nullcontext,
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
}


def model_of() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def ours(**options: Any) -> list[Tensor]:
    model = model_of()
    dataset, loss = TensorDataset(ROWS, TARGET), nn.functional.cross_entropy
    sgd.local_sgd(
        model, dataset, loss, seed=7, epochs=2, batch_size=8, learning_rate=0.3, **options
    )
    return [parameter.detach() for parameter in model.parameters()]


def by_hand(cast: Any) -> list[Tensor]:
    """The same, written out."""
    model, order = model_of(), torch.Generator().manual_seed(7)
    for _ in range(2):
        for chunk in torch.randperm(24, generator=order).split(8):
            model.zero_grad()
            context: AbstractContextManager[Any] = cast()
            with context:
                value = nn.functional.cross_entropy(model(ROWS[chunk]), TARGET[chunk])
            value.backward()
            for parameter in model.parameters():
                parameter.data.add_(parameter.grad, alpha=-0.3)
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_bits_are_those_of_torch_itself(precision: str) -> None:
    found = ours(precision=precision)
    assert all(map(torch.equal, found, by_hand(CAST[precision])))
    assert {parameter.dtype for parameter in found} == {torch.float32}
    assert all(map(torch.equal, found, ours())) == (precision == "float32")
    torch.testing.assert_close(found, ours(), rtol=0.1, atol=0.05)


def test_float16_without_a_gpu_is_refused_with_advice() -> None:
    with pytest.raises(ConfigError, match=r"float16 needs a CUDA device.*use bfloat16") as caught:
        ours(precision="float16")
    assert caught.value.field == "train.precision"


def test_scaled_gradients_make_the_same_step_and_one_that_overflows_makes_none() -> None:
    """The scaling itself, on a CPU: float16 computes on GPUs alone."""
    model = nn.Linear(2, 1, bias=False)
    start = model.weight.detach().clone()
    optimizer = PlainSGD(model, 0.5, 0.0, 0.0)
    scaled = Precision("float32", "cpu", scaled=True)
    rows = torch.tensor([[1.0, 2.0]])

    scaled.backward(model(rows).sum())
    assert float(model.weight.grad.abs().max()) > 1000  # type: ignore[union-attr]
    scaled.step(optimizer)
    torch.testing.assert_close(model.weight.detach(), start - 0.5 * rows)

    before = model.weight.detach().clone()
    model.zero_grad()
    scaled.backward((model(rows) * 1e38).sum())
    scaled.step(optimizer)
    assert torch.equal(model.weight.detach(), before)
    model.zero_grad()
    scaled.backward(model(rows).sum())
    scaled.step(optimizer)
    torch.testing.assert_close(model.weight.detach(), before - 0.5 * rows)
