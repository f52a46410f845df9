"""
Tasks that train next to nothing, so that a round costs what moving its bytes costs.

Options in ``[task]``: ``parameters``, the number of float32 parameters of the model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fl_queue.records import Sums
from fl_queue.tasks import ClientContext, ClientData, OnEpoch, Task

#: Elements of the largest tensor, 16 MiB: models of this size have many tensors, not one.
LARGEST = 4 * 1024 * 1024
#: Elements of one small tensor, so that the others do not lie on round offsets.
ODD = 7
SAMPLES = 8
#: A power of two: added to small numbers it is exact.
STEP = 2.0**-10


def sizes(parameters: int) -> list[int]:
    """Elements of each tensor of a model of so many parameters (1 or more)."""
    odd = min(ODD, parameters)
    whole, rest = divmod(parameters - odd, LARGEST)
    return [odd, *[LARGEST] * whole, *([rest] if rest else [])]


class Flat(nn.Module):
    """Vectors of zeros. Called with (B, 1) values it gives (B, 2) scores that use every parameter."""

    def __init__(self, parameters: int) -> None:
        super().__init__()
        # Zeros cost no memory before they are written.
        self.tensors = nn.ParameterList(torch.zeros(size) for size in sizes(parameters))

    def forward(self, values: Tensor) -> Tensor:
        total = torch.stack([tensor.mean() for tensor in self.tensors]).sum()
        return torch.cat([values * (1 + total), -values * (1 + total)], dim=1)  # (B, 2)


class PlainSGD(Task):
    """One step of local SGD with a gradient for every parameter, and no validation data."""

    def build_model(self) -> nn.Module:
        return Flat(int(self.options["parameters"]))

    def client_data(self, context: ClientContext) -> ClientData:
        samples = TensorDataset(torch.ones(SAMPLES, 1), torch.zeros(SAMPLES, dtype=torch.long))
        return ClientData(samples, TensorDataset(torch.empty(0, 1), torch.empty(0)))


class AddConstant(PlainSGD):
    """Adds a constant to every parameter; nothing is allocated for that."""

    def train(
        self, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
    ) -> Sums:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(STEP)
        return {}
