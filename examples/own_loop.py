"""
A training loop of your own under FedProx: ten virtual clients on this machine, on data it makes itself.

fl-queue start-round own_loop.toml, in this folder.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fl_queue.tasks import ClientContext, ClientData, Task
from fl_queue.tasks.base import OnEpoch


class OwnLoop(Task):
    """Three classes of points in the plane, other points at each client."""

    def build_model(self) -> nn.Module:
        """A small network; (B, 2) points in, (B, 3) scores out."""
        return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))

    def client_data(self, context: ClientContext) -> ClientData:
        """Points around three centres."""
        drawn = torch.Generator().manual_seed(context.share)
        y = torch.randint(0, 3, (120,), generator=drawn)
        centres = torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])
        x = centres[y] + torch.randn(120, 2, generator=drawn)
        return ClientData(TensorDataset(x[:90], y[:90]), TensorDataset(x[90:], y[90:]))

    def train(
        self, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
    ) -> Mapping[str, float]:
        """Train with a loop as anyone writes it; a strategy's terms are added at each step."""
        optimizer = torch.optim.AdamW(model.parameters(), lr=context.learning_rate)
        total = 0.0
        for _ in range(context.epochs):
            for x, y in DataLoader(data.train, context.batch_size, shuffle=True):
                optimizer.zero_grad()
                loss = self.loss(model(x), y)
                loss.backward()
                optimizer.step()
                total += loss.item() * len(y)
        count = len(data.train)
        return {"num_examples": count, "loss_sum": total / context.epochs}


class ByConfig(OwnLoop):
    """The same with the batches, the optimizer and the steps of the config's ``[train]``, and a loss of its own."""

    def train(
        self, model: nn.Module, data: ClientData, context: ClientContext, on_epoch: OnEpoch
    ) -> Mapping[str, float]:
        """Train towards targets that are mixed with those of other samples."""
        training = context.training
        assert training is not None
        total = 0.0
        for _ in range(context.epochs):
            for x, y in training.batches(data.train):
                other = torch.randperm(len(y))
                with training.forward():
                    scores = model(0.8 * x + 0.2 * x[other])
                    loss = 0.8 * self.loss(scores, y) + 0.2 * self.loss(scores, y[other])
                training.step(loss)
                total += loss.item() * len(y)
        return {"num_examples": len(data.train), "loss_sum": total / context.epochs}
