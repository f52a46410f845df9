"""
The Flower app that ``benchmarks.cases.flower_comparison`` copies into an app folder: a server and a client.

It is run by the Python of an environment that has Flower, and imports nothing of this project. The
run config selects the model: ``constant`` adds 0.001 to one flat float32 array, ``digits`` is one
epoch of the perceptron 2NN (784-200-200-10) in batches of ten, at learning rate 0.1.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

# Clients that add a constant are new processes every round: only those that train import torch.
if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 10
LEARNING_RATE = 0.1

server = ServerApp()
client = ClientApp()


class TimedFedAvg(FedAvg):
    """
    Flower's FedAvg without evaluation, which notes when each round begins.

    Args:
        clients: Nodes that must have connected.
        cohort: How many of them train in a round.
    """

    def __init__(self, clients: int, cohort: int) -> None:
        super().__init__(
            fraction_train=cohort / clients,
            fraction_evaluate=0.0,
            min_train_nodes=cohort,
            min_available_nodes=clients,
        )
        self.cohort = cohort
        #: Seconds, of a clock of its own.
        self.stamps: list[float] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note the time, and ask the cohort."""
        self.stamps.append(time.perf_counter())
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """
        The mean of the replies.

        Raises:
            RuntimeError: A client failed: Flower would go on without it, in less time.
        """
        answers = list(replies)
        failed = [message.error.reason for message in answers if message.has_error()]
        if failed or len(answers) != self.cohort:
            raise RuntimeError(f"{len(answers)} of {self.cohort} replied; failures: {failed}")
        return super().aggregate_train(server_round, answers)


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """Run the rounds; the stamps of their beginnings, and of the end, go to the file ``result``."""
    config = context.run_config
    if config["task"] == "constant":
        initial = ArrayRecord([np.zeros(int(config["parameters"]), np.float32)])
    else:
        initial = ArrayRecord(perceptron().state_dict())
    strategy = TimedFedAvg(int(config["clients"]), int(config["cohort"]))
    strategy.start(grid, initial, num_rounds=int(config["rounds"]), timeout=config["timeout"])
    strategy.stamps.append(time.perf_counter())
    path = str(config["result"])
    partial = Path(f"{path}.part")
    with partial.open("w") as file:
        json.dump(strategy.stamps, file)
    # Rename: the reader that waits for the file sees all of it.
    partial.replace(path)


@client.train()
def train(message: Message, context: Context) -> Message:
    """The model after this client's training; the key ``arrays`` is what FedAvg looks for."""
    arrays = message.content["arrays"]
    if context.run_config["task"] == "constant":
        local = ArrayRecord([array + np.float32(0.001) for array in arrays.to_numpy_ndarrays()])
        count = 4
    else:
        local, count = train_digits(arrays, context)
    metrics = MetricRecord({"num-examples": count})
    return Message(RecordDict({"arrays": local, "metrics": metrics}), reply_to=message)


def train_digits(arrays: ArrayRecord, context: Context) -> tuple[ArrayRecord, int]:
    """One epoch of SGD on this client's share of the images; (model, number of images)."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(1)
    path, clients = str(context.run_config["data"]), int(context.run_config["clients"])
    images, labels = share(path, int(context.node_config["partition-id"]), clients)
    model = perceptron()
    model.load_state_dict(arrays.to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    for batch in torch.randperm(len(labels)).split(BATCH):  # (10,)
        optimizer.zero_grad()
        cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    return ArrayRecord(model.state_dict()), len(labels)


def perceptron() -> nn.Module:
    """784-200-200-10 with ReLU: 199,210 parameters."""
    from torch import nn

    return nn.Sequential(
        nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
    )


def share(path: str, index: int, clients: int) -> tuple[Tensor, Tensor]:
    """Every ``clients``-th image from ``index`` on: float32 (N, 784) in [0, 1], int64 (N,)."""
    images, labels = everything(path)
    return images[index::clients], labels[index::clients]


@lru_cache(maxsize=1)
def everything(path: str) -> tuple[Tensor, Tensor]:
    """All images and labels, read once for all the clients that a process serves."""
    import torch

    with np.load(path) as data:
        images = torch.from_numpy(data["images"].astype(np.float32)) / 255
        return images, torch.from_numpy(data["labels"].astype(np.int64))
